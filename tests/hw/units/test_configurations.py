"""Units beyond their samples: any configuration within the stated limits works, and what lies outside them is refused."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from importlib.util import find_spec
from random import Random
from typing import Any

import numpy as np
import pytest

from hw import HardwareError, Systolic, Unit
from hw.gemm import integers, matrices
from hw.units import (
    BankMac,
    BfpDot,
    BitmodPe,
    CsdChain,
    DequantStream,
    HuffmanDecode,
    Lmul,
    LmulDot8,
    LutTensorCore,
    MxDot,
    OliveMac,
    SoftmaxStream,
    SramPimSlice,
    TernaryRow,
    Wht128,
)
from hw.work import Gemm, Vector
from verif.conformance import check_cycles, check_results, describe, samples, units_with_rtl
from verif.stalls import STALLS

LMUL = ("bf16", "fp16", "fp8-e4m3", "fp8-e5m2")
MX = ("fp8-e4m3", "fp8-e5m2", "fp6-e3m2", "fp6-e2m3", "fp4", "int8")
OLIVE = ("int4", "flint4")


def configurations(random: Random) -> Iterator[tuple[type[Unit], dict[str, Any]]]:
    """One of each unit, its parameters drawn from all that it accepts (sizes up to what simulates in seconds)."""
    size, one = random.randint, random.choice
    array = {"dataflow": one(["output_stationary", "weight_stationary"]), "preload": one(["serial", "hidden"])}
    widths = {"accumulator_bits": one([2, 7, 17, 32, 40, 62]), "fold_overlap": one(["none", "full"])}
    yield Systolic, {"rows": size(1, 5), "columns": size(1, 5), **array, **widths}
    yield LutTensorCore, {"rows": size(1, 4), "columns": size(1, 6), "weight_bits": size(1, 4)}
    kept = one([2, 4, 8, 16])
    yield CsdChain, {"kept": kept, "groups": kept // 2 * size(1, 3)}
    yield BitmodPe, {"weights": one(["int8", "int6", "fp4", "fp3"]), "group": size(1, 20)}
    yield Lmul, {"format": one(LMUL), "lanes": size(1, 5)}
    yield LmulDot8, {"format": one(LMUL)}
    yield BankMac, {"lanes": size(1, 4), "registers": one([2, 4])}
    yield OliveMac, {"pairs": size(1, 4), "activations": one(OLIVE), "weights": one(OLIVE)}
    yield TernaryRow, {"lanes": size(1, 9), "accumulator_bits": one([2, 5, 13, 32, 62])}
    yield MxDot, {"block_size": size(1, 9), "element_format": one(MX)}
    yield BfpDot, {"block_size": size(1, 9), "magnitude_bits": size(1, 12)}
    lanes = size(1, 8)
    scale = {"target": one(["int8", "bf16"]), "scale_fraction": size(1, 8)}
    yield DequantStream, {"bits": size(3, 5), "lanes": lanes, "group": lanes * size(1, 3), **scale}
    yield Wht128, {"points": one([2, 4, 8, 16]), "width": size(1, 12)}
    yield HuffmanDecode, {"symbols": size(2, 30), "longest": size(5, 32)}
    yield SoftmaxStream, {"longest": size(1, 30)}
    bits = {"weight_bits": size(2, 8), "activation_bits": size(2, 8), "accumulator_bits": size(4, 32)}
    yield SramPimSlice, {"columns": size(1, 6), "group": size(2, 4), "items": size(1, 4), **bits}


@pytest.mark.slow
@pytest.mark.skipif(find_spec("amaranth") is None, reason="RTL needs the extra `rtl`")
@pytest.mark.parametrize("seed", range(4))
def test_any_configuration_is_golden_under_stalls_and_takes_the_cycles_of_its_model(seed: int):
    for cls, parameters in configurations(Random(seed)):
        unit = cls.model_validate(parameters)
        check = check_results(unit, 5, offer=STALLS["random_half"], take=STALLS["every_third"]) + check_cycles(unit, 10)
        assert check.failures == (), describe(unit)
        assert check.cycles_exact == 10


def test_random_configurations_cover_every_unit():
    assert {cls.kind for cls, _ in configurations(Random(0))} == set(units_with_rtl())


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: TernaryRow(accumulator_bits=63), "accumulator_bits: input should be less than or equal to 62, found 63"),
        (lambda: Systolic(rows=2, columns=2, accumulator_bits=1), "accumulator_bits: input should be greater than or equal to 2"),
        (lambda: Systolic(rows=0, columns=2), "rows: input should be greater than or equal to 1, found 0"),
        (lambda: Wht128(width=64), "width: input should be less than or equal to 32, found 64"),
        (lambda: Lmul(lanes=1.5), "lanes: input should be a valid integer"),  # type: ignore[arg-type]
        (lambda: BfpDot(magnitude_bits=13), "magnitude_bits: input should be less than or equal to 12"),
        (lambda: SramPimSlice(group=5), "group: input should be less than or equal to 4"),
        (lambda: MxDot(element_format="fp5"), "element_format: input should be 'fp8-e4m3'"),  # type: ignore[arg-type]
    ],
)
def test_widths_that_cannot_be_built_are_refused_with_the_field(build: Callable[[], Unit], message: str):
    with pytest.raises(HardwareError, match=message):
        build()


ONES = np.ones((1, 16), np.int64), np.ones((16, 1), np.int64)


@pytest.mark.parametrize(
    ("unit", "operands", "message"),
    [
        (LutTensorCore(weight_bits=2), (ONES[0], ONES[1] * 4), "right operand: expected integers from 0 to 3, found 4"),
        (LutTensorCore(weight_bits=2), (ONES[0] * 128, ONES[1]), "left operand: expected integers from -128 to 127, found 128"),
        (TernaryRow(), (ONES[0], ONES[1] * -1), "right operand: expected integers from 0 to 3, found -1"),
        (OliveMac(), (ONES[0] * 256, ONES[1]), "left operand: expected integers from 0 to 255, found 256"),
        (CsdChain(kept=2), ONES, "at most 2 weights of 16 along K that are not zero, found 16; prune the weights to 2:16"),
        (Systolic(rows=2, columns=2), (ONES[0], ONES[0]), r"a product of \[M, K\] by \[K, N\], found \[1, 16\] by \[1, 16\]"),
        (Systolic(rows=2, columns=2), (ONES[0] * 0.5, ONES[1]), "left operand: expected integers, found 0.5"),
        (SramPimSlice(), (ONES[0], ONES[1] * 8), "right operand: expected integers from -8 to 7, found 8"),
        (BankMac(), (ONES[0] << 16, ONES[1]), "left operand: expected integers from 0 to 65535, found 65536"),
        (BitmodPe(group=16), (*ONES, np.zeros((2, 1), int), np.zeros((1, 1), int)), r"expected \[1, 1\] selectors and .*found \[2, 1\]"),
        (MxDot(block_size=8), (ONES[0], ONES[0][:, :1], ONES[1], ONES[1][:2]), r"expected scales of \[1, 2\] and \[2, 1\], found \[1, 1\]"),
        (LmulDot8(format="fp8-e4m3"), (ONES[0] * 256, ONES[1]), "left operand: expected integers from 0 to 255, found 256"),
        (Lmul(), (np.array([1, 2]), np.array([1])), r"as many codes on either side, found \[2\] and \[1\]"),
        (DequantStream(group=8), (np.zeros(9, int), np.zeros(1, int)), "expected 2 scales, one for each 8 codes, found 1"),
        (Wht128(points=16), (np.zeros((1, 8), int),), r"expected vectors \[V, 16\], found \[1, 8\]"),
        (SoftmaxStream(longest=4), (np.zeros((1, 5), int),), "vectors of 1 to 4 elements"),
        (HuffmanDecode(symbols=4, longest=8), (np.zeros(8, int), np.ones(4, int), 1), "add up to at most 1, found 2"),
        (HuffmanDecode(symbols=4, longest=8), (np.zeros(8, int), np.ones(3, int), 1), "expected 4 code lengths"),
        (HuffmanDecode(symbols=4, longest=8), (np.full(8, 2), np.array([1, 1, 0, 0]), 1), "bits: expected integers from 0 to 1, found 2"),
    ],
)
def test_operands_that_a_format_does_not_define_are_refused_by_the_golden(unit: Unit, operands: Any, message: str):
    with pytest.raises(HardwareError, match=message):
        unit.golden(*operands)


def test_operand_checks_let_the_ends_of_the_range_through():
    assert integers("x", [-128, 127], (-128, 127)).tolist() == [-128, 127]
    assert integers("x", np.zeros(0, np.int64), (0, 1)).size == 0
    assert integers("x", np.array([2.0]), (0, 3)).dtype == np.int64
    with pytest.raises(HardwareError, match="x: expected integers, found an array of <U1"):
        integers("x", ["a"], (0, 1))
    a, b = matrices(np.int8([[1, -2]]), (-2, 1), np.int8([[1], [0]]), (0, 1))
    assert a.dtype == b.dtype == np.int64


@pytest.mark.parametrize("kind", [kind for kind in units_with_rtl() if kind != "systolic"])
def test_empty_work_is_refused(kind: str):
    unit = samples(kind)[0]
    case = next(iter(unit.cases(np.random.default_rng(0))))
    empty = [Gemm(0, 1, 1, "int8"), Gemm(1, 1, 0, "int8")] if isinstance(case.work, Gemm) else [Vector(0)]
    for work in empty:
        with pytest.raises(HardwareError, match=r"at least (1|one element), found"):
            unit.cycles(work)
