"""Goldens against definitions written out here, over whole input spaces where they are small, and against published examples."""

from __future__ import annotations

import itertools
from fractions import Fraction

import ml_dtypes
import numpy as np
import pytest

from hw.bits import pack, unpack
from hw.number import FLOATS, float_format
from hw.units import (
    BankMac,
    BfpDot,
    BitmodPe,
    CsdChain,
    DequantStream,
    HuffmanDecode,
    Lmul,
    LutTensorCore,
    MxDot,
    OliveMac,
    SoftmaxStream,
    TernaryRow,
    Wht128,
)
from hw.units import bitmod_pe as bitmod
from hw.units import huffman_decode as huffman
from hw.units import lut_tensor_core as lut
from hw.units import olive_mac as olive

TYPES = {"fp16": np.float16, "bf16": ml_dtypes.bfloat16, "fp8-e4m3": ml_dtypes.float8_e4m3fn, "fp8-e5m2": ml_dtypes.float8_e5m2}
SMALL = {"fp6-e3m2": ml_dtypes.float6_e3m2fn, "fp6-e2m3": ml_dtypes.float6_e2m3fn, "fp4": ml_dtypes.float4_e2m1fn}


# Numbers and words ------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", [*TYPES, *SMALL])
def test_every_code_decodes_as_the_library_says_and_comes_back(name: str):
    form, dtype = FLOATS[name], {**TYPES, **SMALL}[name]
    codes = np.arange(1 << form.width)
    raw = codes.astype(np.uint16 if form.width == 16 else np.uint8).view(dtype)
    values = form.decode(codes)
    with np.errstate(all="ignore"):
        assert np.array_equal(values, raw.astype(np.float64), equal_nan=True)
    finite = form.finite(codes)
    assert np.array_equal(finite, np.isfinite(values))
    assert np.array_equal(form.encode(values[finite]), codes[finite])


@pytest.mark.parametrize("name", TYPES)
def test_encoding_rounds_to_nearest_even_as_the_library_does(name: str):
    form, rng = FLOATS[name], np.random.default_rng(3)
    tie = [form.decode(1) / 2, form.decode(form.largest), form.decode(form.largest) * 1.01]
    values = np.concatenate([rng.normal(size=20_000) * 2.0 ** rng.integers(-30, 18, 20_000), tie, [0.0, -0.0, np.inf, np.nan]])
    with np.errstate(all="ignore"):
        values = values.astype(np.float32).astype(np.float64)
        raw = values.astype(np.float32).astype(TYPES[name])
    want = raw.view(np.uint16 if form.width == 16 else np.uint8).astype(np.int64)
    got = form.encode(values)
    nan = np.isnan(form.decode(want))
    assert np.array_equal(got[~nan], want[~nan])
    assert set(got[nan] & form.nan) <= {form.nan}


def test_an_unknown_float_format_is_named_with_the_nearest():
    with pytest.raises(ValueError, match=r"unknown float format 'fp8-e4m'.*did you mean `fp8-e4m3`"):
        float_format("fp8-e4m")
    with pytest.raises(ValueError, match="fp4 has no NaN"):
        _ = FLOATS["fp4"].nan


def test_words_hold_fields_from_the_lowest_bit_up_and_come_back():
    rng = np.random.default_rng(0)
    signed, plain = rng.integers(-16, 16, (50, 7)), rng.integers(0, 1 << 33, (50, 3))
    words = pack((signed, 5), (plain, 33))
    assert words[0] & 31 == signed[0, 0] % 32
    back = unpack(words, (7, 5, True), (3, 33, False))
    assert np.array_equal(back[0], signed)
    assert np.array_equal(back[1], plain)


# L-Mul ------------------------------------------------------------------------------------------------------------------------
def l_mul(x: Fraction, y: Fraction, offset: Fraction) -> Fraction:
    """(1 + a + b + 2^-l) 2^(e + f) with whole ones of the sum carried into the exponent."""
    e, f = (v.numerator.bit_length() - v.denominator.bit_length() for v in (x, y))
    e -= x < Fraction(2) ** e
    f -= y < Fraction(2) ** f
    total = x / Fraction(2) ** e - 1 + y / Fraction(2) ** f - 1 + offset
    return (1 + total - total.__floor__()) * Fraction(2) ** (e + f + total.__floor__())


@pytest.mark.parametrize(("name", "offset"), [("fp8-e4m3", Fraction(1, 8)), ("fp8-e5m2", Fraction(1, 4))])
def test_l_mul_of_all_pairs_of_positive_normal_codes_is_the_formula_with_carry(name: str, offset: Fraction):
    form = FLOATS[name]
    codes = np.arange(1 << form.fraction, form.largest + 1)
    x, y = (part.ravel() for part in np.meshgrid(codes, codes))
    got = form.decode(Lmul.model_validate({"format": name}).golden(x, y))
    values = {int(c): Fraction(float(form.decode(c))) for c in codes}
    tiny, largest = values[1 << form.fraction], values[form.largest]
    for a, b, found in zip(x, y, got, strict=True):
        exact = l_mul(values[int(a)], values[int(b)], offset)
        want = Fraction(0) if exact < tiny else min(exact, largest)
        assert Fraction(float(found)) == want, (a, b)


def test_l_mul_of_published_examples():
    """1.5 x 1.5 in bf16: 0x3fc0 + 0x3fc0 - 0x3f80 + 8 = 0x4008 = 2.125; 1 x 1 = 1.0625."""
    assert Lmul().golden([0x3FC0, 0x3F80], [0x3FC0, 0x3F80]).tolist() == [0x4008, 0x3F88]


def test_l_mul_of_specials_is_defined():
    nan, infinite, one, zero, tiny, minus = 0x7FC1, 0x7F80, 0x3F80, 0x0000, 0x0001, 0xBF80
    x, y = [nan, infinite, infinite, zero, tiny, minus, 0x7F7F], [one, one, zero, one, one, zero, 0x7F7F]
    assert Lmul().golden(x, y).tolist() == [0x7FC0, 0x7F7F, 0x7FC0, 0, 0, 0x8000, 0x7F7F]


@pytest.mark.parametrize(("name", "l", "mean"), [("fp8-e5m2", 2, 0.1467), ("fp8-e4m3", 3, 0.0493), ("bf16", 4, 0.0041)])
def test_the_constant_of_l_mul_centres_mitchells_error_in_bf16_and_overshoots_in_8_bits(name: str, l: int, mean: float):  # noqa: E741
    """Over all fractions. Mitchell's product is never too large, by 3.6 to 3.9 % too small on average.

    With the carry into the exponent that hardware has, the constant 2^-l weighs more than in the paper's formula.
    """
    form = FLOATS[name]
    fractions = np.arange(1 << form.fraction) + (form.bias << form.fraction)
    x, y = (part.ravel() for part in np.meshgrid(fractions, fractions))
    exact = form.decode(x) * form.decode(y)
    mitchell = form.decode(x + y - (form.bias << form.fraction)) / exact - 1
    ours = form.decode(Lmul.model_validate({"format": name}).golden(x, y)) / exact - 1
    assert mitchell.max() == 0
    assert -0.039 < mitchell.mean() < -0.035
    assert ours.mean() == pytest.approx(mean, abs=0.0002)
    assert 2.0**-l * 0.1 < ours.max() <= 2.0**-l


# Integer units ------------------------------------------------------------------------------------------------------------------
def test_ternary_code_two_counts_as_zero():
    assert TernaryRow().golden([[100, 100, 100, 100]], [[0], [1], [2], [3]]).tolist() == [[0]]
    assert TernaryRow().golden([[100]], [[2]]).tolist() == [[0]]


@pytest.mark.parametrize("bits", [1, 2, 3, 4])
def test_packed_weights_look_up_the_odd_integers(bits: int):
    """All codes of a group of four: the packed index and sign of each plane select the signed sum of four activations."""
    codes = np.array(list(itertools.product(range(1 << bits), repeat=4)))
    acts = np.array([3, -50, 127, -128])
    index, sign = lut.pack_weights(codes, bits)
    digits = 2 * (index[..., None] >> np.arange(3) & 1) - 1
    entries = -acts[0] + (digits * acts[1:]).sum(-1)
    total = (np.where(sign, -entries, entries) << np.arange(bits)[:, None]).sum(0)
    assert np.array_equal(total, (2 * codes - (2**bits - 1)) @ acts)


def test_the_largest_table_entry_needs_eleven_bits():
    """Four times -128 with all signs negative is 512, one more than ten bits hold: the core must not wrap there."""
    unit = LutTensorCore(rows=1, columns=1, weight_bits=1)
    assert unit.golden(np.full((1, 4), -128), np.zeros((4, 1))).tolist() == [[512]]


def test_olive_decodes_the_published_values():
    """int4 outliers are 12, 16, 24, 32, 48, 64, 96 beside a victim; flint4 has 0, 1, 2, 3, 4, 6, 8, 16."""
    outliers = [int(v) for v in olive.values_of((np.arange(1, 8) << 4) | 8, "int4")[:, 1]]
    assert outliers == [12, 16, 24, 32, 48, 64, 96]
    assert sorted(set(olive.values_of(np.arange(8), "flint4")[:, 0].tolist())) == [0, 1, 2, 3, 4, 6, 8, 16]
    assert olive.values_of(0x88, "int4").tolist() == [0, 0], "two identifiers, which no encoder writes, are two zeros"


@pytest.mark.parametrize("form", ["int4", "flint4"])
def test_olive_encoding_comes_back_for_every_value_that_a_pair_can_hold(form: olive.NormalFormat):
    for byte in range(256):
        values = olive.values_of(byte, form)
        assert olive.values_of(olive.encode_pairs(values, form), form).tolist() == values.tolist(), hex(byte)


def test_olive_keeps_the_even_one_of_two_outliers_and_takes_the_nearest_value():
    assert olive.values_of(olive.encode_pairs([[-98.0, 50.0]], "int4"), "int4").tolist() == [[-96, 0]]
    assert olive.values_of(olive.encode_pairs([[2.6, 4.2]], "int4"), "int4").tolist() == [[3, 4]]


@pytest.mark.parametrize("kept", [2, 4, 8, 16])
def test_a_chain_refuses_weights_that_are_not_sparse_enough(kept: int):
    unit = CsdChain.model_validate({"kept": kept})
    dense = np.ones((16, 1), np.int64)
    if kept == 16:
        assert unit.golden(np.ones((1, 16)), dense).tolist() == [[16]]
    else:
        with pytest.raises(ValueError, match=f"expected at most {kept} weights of 16 along K that are not zero, found 16"):
            unit.encode(np.ones((1, 16), np.int64), dense)


def test_walsh_hadamard_of_an_impulse_is_a_row_of_ones_and_twice_is_a_multiple():
    unit, rng = Wht128(points=16), np.random.default_rng(0)
    assert unit.golden([[1] + [0] * 15]).tolist() == [[1] * 16]
    values = rng.integers(-128, 128, (5, 16))
    assert np.array_equal(Wht128(points=16, width=12).golden(unit.golden(values)), 16 * values)


# Block formats, bit-serial, fp16 ----------------------------------------------------------------------------------------------
def test_mx_products_are_those_of_the_values():
    """1.5 x -6 in fp4 with scales 2^1 and 2^-3: -9 / 4."""
    code = FLOATS["fp4"].encode([1.5, -6.0])
    found = MxDot(block_size=1).golden([[code[0]]], [[128]], [[code[1]]], [[124]])
    assert FLOATS["fp32"].decode(found).tolist() == [[-2.25]]


def test_nan_scales_and_elements_make_an_mx_sum_nan_but_every_bfp_code_is_a_number():
    nan = FLOATS["fp32"].nan
    assert MxDot(block_size=1).golden([[1]], [[255]], [[1]], [[127]]).tolist() == [[nan]]
    e4m3 = MxDot(element_format="fp8-e4m3", block_size=2)
    assert e4m3.golden([[0x7F, 0]], [[127]], [[0], [0]], [[127]]).tolist() == [[nan]]
    assert BfpDot(block_size=1).golden([[1]], [[255]], [[1]], [[0]]).tolist() != [[nan]]


@pytest.mark.parametrize(("form", "grid"), [("fp4", [0, 0.5, 1, 1.5, 2, 3, 4, 6]), ("fp3", [0, 1, 2, 4])])
def test_bit_serial_terms_of_every_code_sum_to_its_value(form: bitmod.WeightFormat, grid: list[float]):
    special = {"fp4": [5, -5, 8, -8], "fp3": [3, -3, 6, -6]}[form]
    for code, select in itertools.product(range(2 * len(grid)), range(4)):
        want = special[select] if code == len(grid) else grid[code] if code < len(grid) else -grid[code - len(grid)]
        sign, exponent, one, count = bitmod.terms(code, select, form)
        found = sum(float((-1) ** int(sign[i]) * int(one[i]) * 2.0 ** (int(exponent[i]) + bitmod.shifts(form)[i])) for i in range(count))
        assert found == want, (code, select)


@pytest.mark.parametrize("form", ["int6", "int8"])
def test_booth_terms_of_every_integer_sum_to_it(form: bitmod.WeightFormat):
    bits = int(form[3:])
    codes = np.arange(1 << bits)
    sign, exponent, one, _ = bitmod.terms(codes, np.zeros_like(codes), form)
    shifts = np.array(bitmod.shifts(form))[:, None]
    signed = np.where(codes >= 1 << (bits - 1), codes - (1 << bits), codes)
    assert np.array_equal(((-1) ** sign * one * 2 ** (exponent + shifts)).sum(0), signed)
    assert set(exponent.ravel()) <= {0, 1}


def test_bitmod_group_sums_stay_near_the_exact_ones():
    """Each term's alignment errs by at most half a unit per lane of its last bit: 2^-13 of the largest partial sum."""
    rng, unit = np.random.default_rng(1), BitmodPe(group=64)
    acts = FLOATS["fp16"].encode(rng.normal(size=(20, 64)))
    codes, select, scale = rng.integers(0, 16, (64, 20)), rng.integers(0, 4, (1, 20)), np.full((1, 20), 7)
    x, w = FLOATS["fp16"].decode(acts), bitmod.doubled_values(codes, select, "fp4") / 2
    error = np.abs(FLOATS["fp32"].decode(unit.golden(acts, codes, select, scale))[..., 0] - 7 * (x @ w))
    bound = 7 * 2 * 64 * 2.0**-13 * np.abs(x[:, :, None] * w[None]).max(axis=1)
    assert (error <= bound).all()


def test_bank_mac_rounds_product_and_sum_apart():
    """(1 + 2^-10)^2 = 1 + 2^-9 + 2^-20 rounds to 1 + 2^-9 before -(1 + 2^-9) is added: zero, where a fused one has 2^-20."""
    form = FLOATS["fp16"]
    a, b = form.encode([1 + 2.0**-10, 1 + 2.0**-9])
    found = BankMac(lanes=1, registers=2).golden([[a, form.encode(1.0)]], [[a], [b | 0x8000]])
    assert form.decode(found).ravel().tolist() == [0.0]


def test_dequantised_weights_round_half_to_even_and_saturate():
    """2 x 3 / 4 = 1.5 -> 2; 2 x 1 / 4 = 0.5 -> 0; -8 x 255 / 4 = -510 -> -128."""
    unit = DequantStream(bits=4, group=1, lanes=1, scale_fraction=2)
    assert unit.golden([2, 2, 8], [3, 1, 255]).tolist() == [2, 0, -128]


# Coding and softmax ---------------------------------------------------------------------------------------------------------------
def test_huffman_codes_are_prefix_free_and_as_short_as_the_entropy_allows():
    rng = np.random.default_rng(0)
    counts = rng.integers(0, 1000, 256)
    lengths = huffman.code_lengths(counts, 32)
    used = lengths > 0
    assert np.array_equal(used, counts > 0)
    assert (2.0 ** -lengths[used].astype(float)).sum() == 1, "Kraft's sum of a complete code"
    share = counts[used] / counts.sum()
    entropy = -(share * np.log2(share)).sum()
    assert entropy <= (share * lengths[used]).sum() < entropy + 1


def test_huffman_lengths_are_limited_where_counts_are_too_uneven():
    counts = [2**i for i in range(20)]
    assert huffman.code_lengths(counts, 32).max() == 19
    limited = huffman.code_lengths(counts, 8)
    assert limited.max() <= 8
    assert (2.0 ** -limited.astype(float)).sum() <= 1


def test_gaussian_bf16_exponents_compress_to_under_three_bits_and_come_back():
    """The published ratio: weights of a normal distribution need 2.5 to 2.7 bits of exponent."""
    rng = np.random.default_rng(0)
    exponents = FLOATS["bf16"].encode(rng.normal(size=4000) * 0.02) >> 7 & 255
    lengths = huffman.code_lengths(np.bincount(exponents, minlength=256), 32)
    bits = huffman.compress(exponents, lengths)
    assert 2.4 < len(bits) / 4000 < 2.8
    assert np.array_equal(HuffmanDecode().golden(bits, lengths, 4000), exponents)


@pytest.mark.parametrize("length", [1, 2, 64, 1024])
@pytest.mark.parametrize("scale", [0.1, 4.0, 100.0])
def test_softmax_keeps_its_error_bound_against_float64(length: int, scale: float):
    rng, form = np.random.default_rng(0), FLOATS["fp16"]
    codes = form.encode(rng.normal(size=(50, length)) * scale)
    x = form.decode(codes)
    exact = np.exp(x - x.max(axis=-1, keepdims=True))
    exact /= exact.sum(axis=-1, keepdims=True)
    found = form.decode(SoftmaxStream().golden(codes))
    assert (np.abs(found - exact) <= exact * 2.0**-10 + 2.0**-24).all()


def test_softmax_masks_minus_infinity():
    form = FLOATS["fp16"]
    found = form.decode(SoftmaxStream().golden(form.encode([[1.0, -np.inf, 1.0, -np.inf]])))
    assert found.tolist() == [[0.5, 0.0, 0.5, 0.0]]


# Bad descriptions -------------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: Lmul.model_validate({"format": "fp4"}), "format"),
        (lambda: Lmul(format="fp12"), "format: input should be 'bf16', 'fp16', 'fp8-e4m3' or 'fp8-e5m2', found 'fp12'"),  # type: ignore[arg-type]
        (lambda: LutTensorCore(weight_bits=5), "weight_bits: input should be less than or equal to 4, found 5"),
        (lambda: CsdChain(kept=3), "kept: input should be 2, 4, 8 or 16, found 3"),  # type: ignore[arg-type]
        (lambda: CsdChain(groups=3, kept=8), "take a multiple of 4 groups"),
        (lambda: Wht128(points=12), "points: expected a power of two from 2 to 65536, found 12"),
        (lambda: BankMac(registers=3), "registers: expected a power of two"),
        (lambda: DequantStream(bits=6), "bits: input should be less than or equal to 5"),
        (lambda: DequantStream(group=12, lanes=8), "group: expected a multiple of the 8 lanes, found 12"),
        (lambda: HuffmanDecode(symbols=257), "symbols: expected an alphabet of 2 to 256 symbols, found 257"),
        (lambda: HuffmanDecode(longest=33), "longest: input should be less than or equal to 32"),
        (lambda: OliveMac(weights="int8"), "weights: input should be 'int4' or 'flint4'"),  # type: ignore[arg-type]
        (lambda: SoftmaxStream(longest=4).encode(np.zeros(5)), "at most 4 elements"),
    ],
)
def test_a_description_that_cannot_be_built_is_refused_with_the_field(build, message):
    with pytest.raises(ValueError, match=message):
        build()
