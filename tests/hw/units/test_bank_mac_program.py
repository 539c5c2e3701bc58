"""The bank unit's sequencer runs the matrix-vector program of a processing-in-memory DRAM: eight registers, sixteen lanes, loops."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from hw import Case, Gemm
from hw.bits import unpack
from hw.number import FLOATS
from hw.units import BankMac
from hw.units.bank_mac import COLUMN, EXIT, FILL_B, JUMP, MAC, MUL, NOP, PROGRAM, STORE, VECTOR, Instruction

pytest.importorskip("amaranth", reason="RTL needs the extra `rtl`")

from verif.conformance import batches, differences
from verif.simulate import Batch, simulate

LANES, REGISTERS = 16, 8
FP16 = FLOATS["fp16"]


def fields(unit: BankMac, words: list[int]) -> list[np.ndarray]:
    """Kind, address, data, operation, target, count of operand words."""
    return unpack(words, (1, 2, False), (1, 8, False), (unit.lanes, 16, False), (1, 3, False), (1, 5, False), (1, 24, False))


def lane_sums(weights: np.ndarray, vector: np.ndarray) -> np.ndarray:
    """[rows, lanes] by the definition: a lane adds its products in the order of K, each product and sum rounded to fp16."""
    total = np.zeros((len(weights), LANES), np.float16)
    for start in range(0, weights.shape[1], LANES):
        product = (weights[:, start : start + LANES] * vector[start : start + LANES]).astype(np.float16)
        total = (total + product).astype(np.float16)
    return total


@pytest.fixture(scope="module")
def product() -> tuple[BankMac, np.ndarray, np.ndarray, Case]:
    """A matrix of 16 rows by 256 columns: two output tiles of eight rows, two input tiles of 128."""
    rng = np.random.default_rng(3)
    weights, vector = (rng.normal(size=shape).astype(np.float16) for shape in ((16, 256), (256,)))
    codes = (vector[None].view(np.uint16).astype(np.int64), weights.T.copy().view(np.uint16).astype(np.int64))
    return BankMac(lanes=LANES, registers=REGISTERS), weights, vector, Case(Gemm(1, 16, 256, "fp16"), codes)


def test_the_commands_are_those_of_the_published_order(product):
    """Per output tile: eight writes of the vector and 64 accesses for each input tile, and eight stores at its end."""
    unit, _, _, case = product
    kind = fields(unit, unit.encode(*case.operands))[0][:, 0].tolist()
    program = unit.program(256)
    assert [step.operation for step in program] == [FILL_B, JUMP, MAC, JUMP, STORE, JUMP, EXIT]
    output_tiles, input_tiles = 2, 2
    accesses = output_tiles * (8 + input_tiles * 64 + 8)  # clearing, accumulating, storing
    assert Counter(kind) == {PROGRAM: 7, VECTOR: output_tiles * input_tiles * 8, COLUMN: accesses}
    tile = [VECTOR] * 8 + [COLUMN] * 64
    assert kind == [PROGRAM] * 7 + ([COLUMN] * 8 + tile * input_tiles + [COLUMN] * 8) * output_tiles
    assert unit.cycles(case.work) == len(kind) - 1 + 3


def test_the_sequencer_runs_the_whole_program_with_the_lanes_and_roundings_of_the_definition(product):
    unit, weights, vector, case = product
    run = simulate(unit.rtl(), batches(unit, [case]), apart=True)
    assert differences(unit, [case], run.results) == []
    assert run.cycles == (unit.cycles(case.work),)
    want = lane_sums(weights, vector)
    found = unit.decode(list(run.results[0]), case.work)[0]
    assert np.array_equal(found, want.view(np.uint16))
    # the host adds the lanes; fp16 partial sums of 16 products each keep within 16 roundings of the exact sum
    exact = weights.astype(np.float64) @ vector.astype(np.float64)
    bound = 16 * 2.0**-11 * (np.abs(weights.astype(np.float64)) @ np.abs(vector.astype(np.float64)))
    assert (np.abs(want.astype(np.float64).sum(axis=1) - exact) <= bound).all()


def test_another_order_of_the_columns_rounds_to_other_sums(product):
    """So the comparison above does test the order."""
    _, weights, vector, _ = product
    assert not np.array_equal(lane_sums(weights, vector), lane_sums(weights[:, ::-1], vector[::-1])[:, ::-1])


def words_of(unit: BankMac, program: list[Instruction], accesses: list[tuple[int, np.ndarray]]) -> list[int]:
    """A program and then column accesses (address, data)."""
    from hw.bits import pack

    code = np.array(program)
    kind = [PROGRAM] * len(program) + [COLUMN] * len(accesses)
    address = [*range(len(program)), *(address for address, _ in accesses)]
    data = np.array([[0] * unit.lanes] * len(program) + [list(row) for _, row in accesses])
    blank = [0] * len(accesses)
    steps = [[*column, *blank] for column in code.T.tolist()]
    return pack(*((np.array(c), w) for c, w in zip((kind, address, data, *steps), (2, 8, 16, 3, 5, 24), strict=True)))


def test_a_jump_goes_back_as_often_as_it_says_and_costs_no_access():
    """Three stores, then two products: the loop counter starts anew when the program ends and begins again."""
    unit = BankMac(lanes=1, registers=2)
    one, two = FP16.encode([1.0, 2.0]).tolist()
    program = [
        Instruction(FILL_B),
        Instruction(STORE),
        Instruction(JUMP, 1, 2),
        Instruction(NOP),
        Instruction(MUL),
        Instruction(STORE),
        Instruction(EXIT),
    ]
    once = [(0, [two])] + [(0, [one])] * 3 + [(0, [one]), (0, [one]), (0, [one])]
    words = words_of(unit, program, once * 2)
    # register A holds zeros: the product that MUL puts into B is 1 x 0
    assert simulate(unit.rtl(), [Batch(words, 8)]).results[0] == (two, two, two, 0) * 2


def test_a_program_without_exit_wraps_after_its_last_slot_of_nops():
    """Slots that no one wrote are NOPs: accesses step through all 32 of them, and the first instruction comes again."""
    unit = BankMac(lanes=1, registers=2)
    (two,) = FP16.encode([2.0]).tolist()
    words = words_of(unit, [Instruction(FILL_B), Instruction(STORE)], [(0, [two])] * 34)
    assert simulate(unit.rtl(), [Batch(words, 2)]).results[0] == (two, two)
