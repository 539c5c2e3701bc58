"""ShiftAddLLM: the shifter on every fp16 code, sums against dense weights, quantised weights end to end, costs and energies."""

from __future__ import annotations

from math import ceil

import numpy as np
import pytest

from dovetail import estimate
from hw import HardwareError, devices
from hw.lowbit.lookup import lut_gemm
from hw.lowbit.shiftadd import exponent_shift, integer_shift_add, shift_add
from hw.units.shift_add import ShiftAdd
from hw.work import Gemm
from studies import shiftadd
from workloads.catalogue import describe
from workloads.errors import WorkloadError
from workloads.quantisers import quantiser

CODES = np.arange(1 << 16)
VALUES = CODES.astype(np.uint16).view(np.float16)
NUMBERS = ~np.isnan(VALUES)


# The shifter ----------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("exponent", range(-32, 32))
def test_a_gradual_shift_is_the_rounded_product_for_every_code(exponent: int):
    with np.errstate(over="ignore", invalid="ignore"):
        wanted = (VALUES.astype(np.float32) * np.float32(2.0**exponent)).astype(np.float16)
    found = exponent_shift(CODES, exponent)
    assert np.array_equal(found[NUMBERS], wanted.view(np.uint16)[NUMBERS])
    assert (found[~NUMBERS] == 0x7E00).all()


@pytest.mark.parametrize("exponent", [-32, -14, -1, 0, 1, 15, 31])
def test_a_flushing_shift_knows_no_subnormals(exponent: int):
    with np.errstate(over="ignore", invalid="ignore"):
        exact = VALUES.astype(np.float64) * 2.0**exponent
        wanted = np.where((np.abs(VALUES) < 2.0**-14) | (np.abs(exact) < 2.0**-14), 0 * np.sign(VALUES), exact.astype(np.float16))
    wanted = np.where(NUMBERS, np.copysign(wanted, VALUES), np.nan).astype(np.float16)
    found = exponent_shift(CODES, exponent, "flush")
    assert np.array_equal(found[NUMBERS], wanted.view(np.uint16)[NUMBERS])


def test_shifts_beyond_six_bits_and_unknown_rules_are_refused():
    with pytest.raises(HardwareError, match="shifts lie between -32 and 31, found 5 to 32"):
        exponent_shift([0x3C00, 0x3C00], [5, 32])
    with pytest.raises(HardwareError, match="expected `gradual` or `flush`"):
        exponent_shift(0x3C00, 0, "round")  # type: ignore[arg-type]


# Sums -----------------------------------------------------------------------------------------------------------------------
def drawn(bits: int, groups: int, seed: int, low: int = -6, high: int = 3):
    rng = np.random.default_rng(seed)
    return rng.integers(0, 1 << bits, (6, 64)), rng.integers(low, high, (6, groups, bits)), rng


def dense(codes, exponents):
    signs = np.where(codes[..., None] >> np.arange(exponents.shape[2]) & 1, 1, -1)
    return (signs * np.ldexp(1.0, np.repeat(exponents, 64 // exponents.shape[1], axis=1))).sum(axis=2)


@pytest.mark.parametrize("bits", [1, 2, 3, 4])
@pytest.mark.parametrize("groups", [1, 4, 8])
def test_integer_sums_are_the_dense_product(bits: int, groups: int):
    codes, exponents, rng = drawn(bits, groups, bits, 0, 12)
    acts = rng.integers(-128, 128, 64)
    assert np.array_equal(integer_shift_add(codes, bits, exponents, acts), (dense(codes, exponents) @ acts).astype(np.int64))


@pytest.mark.parametrize("bits", [1, 2, 3, 4])
@pytest.mark.parametrize("order", ["accuracy", "latency"])
def test_sums_of_small_integers_are_exact_in_both_orders(bits: int, order):
    codes, exponents, rng = drawn(bits, 4, 10 + bits)
    acts = rng.integers(-15, 16, 64)
    # entries up to 120 with six fractional bits after the shift, sums below 2^14: exact in fp16 and fp32
    assert np.array_equal(shift_add(codes, bits, exponents, acts, order), (dense(codes, exponents) @ acts).astype(np.float32))


@pytest.mark.parametrize("bits", [2, 3])
def test_latency_order_is_lut_gemm_with_scales_that_are_powers_of_two(bits: int):
    codes, exponents, rng = drawn(bits, 4, 20 + bits)
    acts = rng.standard_normal(64).astype(np.float16)
    scales = np.ldexp(np.float32(1), exponents)
    assert np.array_equal(shift_add(codes, bits, exponents, acts, "latency"), lut_gemm(codes, bits, scales, acts))


@pytest.mark.parametrize("bits", [2, 3])
def test_accuracy_order_equals_torch_bit_for_bit(bits: int):
    torch = pytest.importorskip("torch")
    codes, exponents, rng = drawn(bits, 4, 30 + bits)
    acts = rng.standard_normal(64).astype(np.float16)
    x, total = torch.from_numpy(acts), torch.zeros(6)
    for group in range(4):
        for step in range(2):
            piece = slice(16 * group + 8 * step, 16 * group + 8 * step + 8)
            for plane in range(bits):
                for output in range(6):
                    value = -x[piece][0]
                    for j in range(1, 8):
                        value = value - x[piece][j]
                    for j in range(8):
                        value = value + 2 * x[piece][j] if codes[output, piece][j] >> plane & 1 else value
                    shifted = (value.to(torch.float32) * 2.0 ** int(exponents[output, group, plane])).to(torch.float16)
                    total[output] += shifted.to(torch.float32)
    assert np.array_equal(shift_add(codes, bits, exponents, acts), total.numpy())


@pytest.mark.parametrize("form", ["shiftadd2-g32", "shiftadd3-g64", "shiftadd4"])
def test_quantised_weights_run_as_they_are_stored(form: str):
    """From a real tensor to codes and exponents, through the lookups, and back to the dequantised product."""
    rng = np.random.default_rng(7)
    weights, acts = rng.standard_normal((8, 64)) / 8, rng.standard_normal(64).astype(np.float16)
    known = quantiser(form)
    stored = known.quantise(weights)
    bits = known.format.element_bits
    exponents = stored.fields["scale"].values.astype(int).reshape(8, -1, bits) - 120
    found = shift_add(stored.fields["code"].values.reshape(8, 64), bits, exponents, acts)
    wanted = known.dequantise(stored).astype(np.float64) @ acts.astype(np.float64)
    assert found == pytest.approx(wanted, abs=64 * bits * 2.0**-10)  # an fp16 table entry of a few units is off by 2^-10 at most
    assert np.abs(found - weights @ acts).max() < np.abs(weights @ acts).max()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"exponents": np.zeros((6, 3, 2), int)}, r"exponents \[6, 3, 2\] do not fit weights \[6, 64\] of 2 bits"),
        ({"exponents": np.zeros((6, 4, 2))}, "exponents are integers, found float64"),
        ({"acts": np.ones(56)}, "weights have 64 inputs, activations 56"),
        ({"acts": np.full(64, np.nan)}, "64 of 64 activations are NaN or infinite"),
        ({"bits": 0}, "weights of 0 bits"),
        ({"order": "speed"}, "expected `accuracy` or `latency`"),
    ],
)
def test_what_does_not_fit_is_named(change: dict[str, object], message: str):
    given = {"codes": np.zeros((6, 64), int), "bits": 2, "exponents": np.zeros((6, 4, 2), int), "acts": np.ones(64)} | change
    with pytest.raises(HardwareError, match=message):
        shift_add(**given)  # type: ignore[arg-type]


def test_integer_sums_refuse_fractions():
    with pytest.raises(HardwareError, match="exponents of integer sums are 0 or more, found -1"):
        integer_shift_add(np.zeros((1, 8), int), 1, np.full((1, 1, 1), -1), np.ones(8, int))
    with pytest.raises(HardwareError, match="takes integer activations, found float64"):
        integer_shift_add(np.zeros((1, 8), int), 1, np.zeros((1, 1, 1), int), np.ones(8))


def test_groups_that_do_not_divide_and_other_widths_are_refused():
    with pytest.raises(WorkloadError, match="groups of 48 do not divide the last dimension, 64"):
        quantiser("shiftadd3-g48").quantise(np.ones((2, 64)))
    with pytest.raises(WorkloadError, match="unknown number format"):
        quantiser("shiftadd5-g64")
    with pytest.raises(WorkloadError, match="NaN or infinite"):
        quantiser("shiftadd3").quantise(np.full((2, 8), np.nan))


# Scales that are sums of powers of two ------------------------------------------------------------------------------------------
@pytest.mark.parametrize("bits", [2, 3])
def test_more_powers_of_two_come_closer_to_free_scales(bits: int):
    found = shiftadd.errors(bits, outputs=64)
    assert found["1"] > found["2"] >= found["3"] >= found["free"] * (1 - 1e-4)
    assert found["3"] == pytest.approx(found["free"], rel=0.01)


# Costs ----------------------------------------------------------------------------------------------------------------------
def test_an_array_takes_a_lookup_per_plane_and_eight_inputs():
    array = ShiftAdd(elements=100)
    # 5 tables per row, 2 rows, 3 blocks of outputs, 3 planes; 255 additions per table over 100 adders; two cycles to the last sum
    assert array.cycles(Gemm(2, 201, 37, "fp16xshiftadd3")) == 5 * 2 * 3 * 3 + ceil(10 * 255 / 100) + 2
    assert array.cycles(Gemm(2, 201, 37, "fp16xshiftadd3", final=False)) == 5 * 2 * 3 * 3 + ceil(10 * 255 / 100)


@pytest.mark.parametrize("work", [Gemm(1, 1, 1, "fp16xshiftadd1"), Gemm(7, 768, 99, "fp16xshiftadd2"), Gemm(3, 769, 13, "fp16xshiftadd3")])
def test_no_product_beats_the_elements(work: Gemm):
    assert ShiftAdd().cycles(work) * ShiftAdd().macs_per_cycle(work.format) >= work.macs


def test_scales_that_need_multipliers_are_refused():
    with pytest.raises(HardwareError, match="no products in fp16xbcq3, only in fp16xshiftadd1"):
        ShiftAdd().cycles(Gemm(1, 1, 1, "fp16xbcq3"))
    with pytest.raises(ValueError, match="which no unit of shiftadd does"):
        estimate("gemm:1x1024x1024", device="shiftadd", weights="bcq3-g128")


def test_energies_of_the_device_are_the_operations_of_the_study():
    array = devices.load("shiftadd").units["array"]
    for bits in (1, 2, 3, 4):
        per_mac = bits * (shiftadd.LOOKUP + shiftadd.SHIFT + shiftadd.ADD) / 8
        assert float(array.mac_energy[f"fp16xshiftadd{bits}"]) == pytest.approx(per_mac)


def test_both_engines_agree_and_the_bound_holds():
    reports = [estimate("gemm:3x1024x1024", device="shiftadd", weights="shiftadd3-g128", engine=e) for e in ("simpy", "fast")]
    assert reports[0].latency_fs == reports[1].latency_fs >= reports[0].lower_bound_fs


def test_energy_saved_is_that_of_fewer_bits():
    # both cross the same hierarchy, 237 pJ a word against 1.5 pJ of arithmetic: saved is 1 - 3/16 but for the scales and the arithmetic
    model = describe("llama-2-7b")
    saved = 1 - shiftadd.shifted(model, "shiftadd3").total / shiftadd.dense(model).total
    assert saved == pytest.approx(1 - 3 / 16, abs=0.002)
    assert shiftadd.dense(model).macs == 32 * (4 * 4096**2 + 3 * 4096 * 11008)
