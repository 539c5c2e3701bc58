"""The compute slice of SRAM: what its rows hold, what its micro-operations do, and its cycles against the formulas of bit-serial SRAM."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from hw import Case, Gemm
from hw.units import SramPimSlice
from hw.units.sram_pim_slice import ADD, AND, BUILD, CLEAR, COPY, KEEP, LATCH, LOOKUP, OR, READ, SET, WRITE, XOR, ZERO, Micro

pytest.importorskip("amaranth", reason="RTL needs the extra `rtl`")

from verif.conformance import batches, differences
from verif.simulate import Batch, simulate


def commands(unit: SramPimSlice, *rows: tuple[int, ...], data: dict[int, np.ndarray] | None = None) -> list[int]:
    """Words of (kind, row, pattern, plane, subtract, item) commands; `data` gives the rows that WRITE brings, by position."""
    table = np.zeros((len(rows), unit.columns), np.int64)
    for position, row in (data or {}).items():
        table[position] = row
    return unit.words(np.array(rows), table)


def bits(values: np.ndarray, count: int) -> np.ndarray:
    """[values, columns] integers as [values * count, columns] bit rows."""
    return (values[:, None] >> np.arange(count)[:, None] & 1).reshape(-1, values.shape[1])


def numbers(rows: np.ndarray) -> np.ndarray:
    """Signed integers of [bits, columns] rows."""
    weights = 1 << np.arange(len(rows))
    weights[-1] *= -1
    return weights @ rows


def write_and_build(unit: SramPimSlice, weights: np.ndarray) -> list[int]:
    rows = bits(weights, unit.weight_bits)
    writes = commands(unit, *((WRITE, i, 0, 0, 0, 0) for i in range(len(rows))), data=dict(enumerate(rows)))
    return writes + commands(unit, (BUILD, 0, 0, 0, 0, 0))


def read(unit: SramPimSlice, rows: range) -> list[int]:
    return commands(unit, *((READ, row, 0, 0, 0, 0) for row in rows))


def as_rows(unit: SramPimSlice, words: tuple[int, ...]) -> np.ndarray:
    return np.array([[word >> c & 1 for c in range(unit.columns)] for word in words])


@pytest.mark.parametrize(("group", "weight_bits"), [(2, 2), (2, 8), (3, 3), (3, 5), (4, 2), (4, 4), (4, 6)])
def test_a_build_leaves_every_sum_of_two_and_more_weights_in_its_rows(group: int, weight_bits: int):
    unit = SramPimSlice(columns=16, group=group, weight_bits=weight_bits, items=1)
    rng = np.random.default_rng(group * 8 + weight_bits)
    half = 1 << (weight_bits - 1)
    weights = rng.integers(-half, half, (group, unit.columns))
    weights[:, 0], weights[:, 1] = -half, half - 1  # the largest sums
    place = unit.layout
    words = write_and_build(unit, weights) + read(unit, range(place.sums))
    found = as_rows(unit, simulate(unit.rtl(), [Batch(words, place.sums)]).results[0])
    for pattern in range(1, 1 << group):
        first, count = place.entry(pattern)
        assert numbers(found[first : first + count]).tolist() == sum(weights[k] for k in range(group) if pattern >> k & 1).tolist(), pattern


@pytest.mark.parametrize(("group", "weight_bits", "accumulator_bits"), [(2, 4, 12), (3, 3, 9), (4, 4, 24), (4, 8, 20)])
def test_building_and_looking_up_take_the_cycles_of_bit_serial_sram(group: int, weight_bits: int, accumulator_bits: int):
    """2^g - g - 1 additions of n + 1 cycles with n = weight bits + ceil(log2 g); a look-up takes one cycle and one per sum bit."""
    unit = SramPimSlice(columns=2, group=group, weight_bits=weight_bits, accumulator_bits=accumulator_bits, items=1)
    n = weight_bits + {2: 1, 3: 2, 4: 2}[group]
    assert unit.build_cycles() == (2**group - group - 1) * (n + 1)
    assert unit.lookup_cycles() == accumulator_bits + 1

    def cycles(*kinds: int) -> int:
        """From the first command to the row that a READ after all of them brings."""
        words = commands(unit, *((kind, 0, (1 << group) - 1, 0, 0, 0) for kind in (*kinds, READ)))
        return simulate(unit.rtl(), [Batch(words, 1)]).cycles[0]

    alone = cycles()
    assert cycles(BUILD) - alone == unit.build_cycles()
    assert cycles(LOOKUP) - alone == unit.lookup_cycles()
    assert cycles(ZERO) - alone == accumulator_bits
    assert cycles(BUILD, LOOKUP, LOOKUP, BUILD, ZERO) - alone == 2 * unit.build_cycles() + 2 * unit.lookup_cycles() + accumulator_bits


def test_tables_pay_already_for_one_row_of_activations():
    """Four 4-bit weights: 77 cycles to build. An early-stopping look-up would take 8; one that carries to the top of 24 bits, 25."""
    unit = SramPimSlice(weight_bits=4, group=4, accumulator_bits=24)
    assert unit.build_cycles() == 11 * 7 == 77
    assert unit.group_cycles(3) - unit.group_cycles(2) == 8 * 25
    direct = 4 * 8 * (24 + 1)  # weight by weight and bit by bit: four times as many additions into the sum
    assert unit.group_cycles(1) == 77 + 8 * 25 < direct


@pytest.mark.parametrize("group", [2, 3, 4])
@pytest.mark.parametrize(("weight_bits", "activation_bits"), [(2, 2), (3, 8), (4, 5), (8, 8)])
def test_products_of_signed_numbers_are_exact_and_on_time(group: int, weight_bits: int, activation_bits: int):
    unit = SramPimSlice(columns=5, group=group, weight_bits=weight_bits, activation_bits=activation_bits, accumulator_bits=20, items=2)
    rng = np.random.default_rng(7)
    a, w = 1 << (activation_bits - 1), 1 << (weight_bits - 1)
    case = Case(Gemm(3, 6, 7, "int8"), (rng.integers(-a, a, (3, 7)), rng.integers(-w, w, (7, 6))))
    run = simulate(unit.rtl(), batches(unit, [case]), apart=True)
    assert differences(unit, [case], run.results) == []
    assert run.cycles == (unit.cycles(case.work),)


def test_sums_wrap_at_the_width_of_the_accumulator():
    """Four times -8 times -128 is 4096: zero in 12 bits."""
    unit = SramPimSlice(columns=1, accumulator_bits=12, items=1)
    assert unit.golden(np.full((1, 4), -128), np.full((4, 1), -8)).tolist() == [[0]]


def test_micro_operations_do_what_the_golden_says():
    """Random programs of all operations, carries, complements and predicates on random rows."""
    unit = SramPimSlice(columns=9, weight_bits=4, group=2, accumulator_bits=6, items=2)
    rng, size = np.random.default_rng(5), unit.layout.rows
    for _ in range(20):
        rows = rng.integers(0, 2, (size, unit.columns))
        draws = (rng.integers(0, limit, 40) for limit in (6, size, size, size, 3, 2, 2))
        program = [Micro(*map(int, step)) for step in zip(*draws, strict=True)]
        words = commands(unit, *((WRITE, i, 0, 0, 0, 0) for i in range(size)), data=dict(enumerate(rows)))
        # carries of a fresh slice are zero, predicates one
        words += unit.step_words(program) + read(unit, range(size))
        found = as_rows(unit, simulate(unit.rtl(), [Batch(words, size)]).results[0])
        assert np.array_equal(found, unit.micro(rows, program))


def test_two_numbers_subtract_where_a_predicate_says_so():
    """A program by hand: rows 0-3 less rows 4-7 into rows 8-11, only in columns where row 12 is one."""
    unit = SramPimSlice(columns=4, weight_bits=4, group=2, accumulator_bits=6, items=2)
    rows = np.zeros((unit.layout.rows, 4), np.int64)
    rows[0:4], rows[4:8], rows[12] = bits(np.array([[5, 3, -8, 7]]), 4), bits(np.array([[2, 4, 1, 7]]), 4), [1, 1, 1, 0]
    program = [Micro(LATCH, 12, 0, 0)]
    program += [Micro(ADD, i, 4 + i, 8 + i, SET if i == 0 else KEEP, invert=1, predicated=1) for i in range(4)]
    assert numbers(unit.micro(rows, program)[8:12]).tolist() == [3, -1, 7, 0]  # -9 wraps to 7 in four bits


@pytest.mark.parametrize(("operation", "table"), [(AND, [0, 0, 0, 1]), (OR, [0, 1, 1, 1]), (XOR, [0, 1, 1, 0]), (COPY, [0, 0, 1, 1])])
def test_bitwise_operations_by_their_truth_tables(operation: int, table: list[int]):
    unit = SramPimSlice(columns=4, items=1)
    rows = np.zeros((3, 4), np.int64)
    rows[0], rows[1] = zip(*itertools.product((0, 1), repeat=2), strict=True)
    assert unit.micro(rows, [Micro(operation, 0, 1, 2, CLEAR)])[2].tolist() == table


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"group": 5}, "group: input should be less than or equal to 4, found 5"),
        ({"weight_bits": 1}, "weight_bits: input should be greater than or equal to 2, found 1"),
        ({"activation_bits": 9}, "activation_bits: input should be less than or equal to 8, found 9"),
        ({"items": 200}, "items: 200 accumulators need 4882 rows of the 4096 of a slice; at most 167 fit"),
        ({"columns": 0}, "columns"),
    ],
)
def test_a_slice_that_cannot_be_built_is_refused(fields: dict[str, int], message: str):
    with pytest.raises(ValueError, match=message):
        SramPimSlice.model_validate(fields)
