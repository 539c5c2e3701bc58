"""Quantisers against definitions written out here: brute-force nearest codes, exact fractions, published tables."""

from __future__ import annotations

import itertools
from fractions import Fraction
from math import ceil, prod

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hw.number import FLOATS
from hw.units.bitmod_pe import doubled_values
from hw.units.huffman_decode import canonical_codes
from hw.units.huffman_decode import code_lengths as unit_code_lengths
from hw.units.olive_mac import encode_pairs as unit_encode_pairs
from hw.units.olive_mac import normal_tables, outlier_tables, values_of
from workloads.errors import WorkloadError
from workloads.format import parse_format
from workloads.quantisers import distribution, errors, pack, quantisable, quantiser, report, unpack
from workloads.quantisers.ant import TYPES, flint_magnitudes
from workloads.quantisers.base import pack_bits, unpack_bits
from workloads.quantisers.binary import assign, greedy, power_of_two, refine, signs_of
from workloads.quantisers.bitmod import SPECIAL, codes_of, grid
from workloads.quantisers.dfloat import canonical, code_lengths, compress, decompress
from workloads.quantisers.floats import element
from workloads.quantisers.grids import Grid
from workloads.quantisers.integer import bipolar_matmul
from workloads.quantisers.kivi import Kivi, hadamard
from workloads.quantisers.olive import SEARCH, Olive, encode_pairs, kinds, pair_statistics
from workloads.quantisers.outliers import DEVIATIONS, listed_share, representatives, stored_bits
from workloads.quantisers.qmoe import dictionary
from workloads.quantisers.smooth import SmoothQuant, factors

ALL = quantisable()
FIXED_SIZE = [name for name in ALL if name not in ("dfloat11", "qmoe", "gobo3", "gobo4", "olaccel4")]


def normal(*shape: int, seed: int = 0, scale: float = 0.02) -> np.ndarray:
    return (np.random.default_rng(seed).standard_normal(shape) * scale).astype(np.float32)


def nearest(values: np.ndarray, points: list[float], ties: str) -> np.ndarray:
    """The nearest point by looking at every distance, in exact arithmetic of float64."""
    ordered = sorted(points)
    out = []
    for value in np.ravel(values).astype(np.float64):
        distances = [abs(value - p) for p in ordered]
        best = [p for p, d in zip(ordered, distances, strict=True) if d == min(distances)]
        out.append({"down": best[0], "up": best[-1], "away": best[-1] if value >= 0 else best[0]}[ties])
    return np.array(out).reshape(values.shape)


# Laws that every format obeys -------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", FIXED_SIZE)
@pytest.mark.parametrize("shape", [(4, 256), (2, 3, 384)])
def test_packed_bytes_are_what_the_format_charges(name: str, shape: tuple[int, ...]):
    shape = (*shape[:-2], 32 * shape[-2], shape[-1])
    packed = pack(quantiser(name).quantise(normal(*shape)))
    charged = parse_format(name).bits * prod(shape) / 8
    assert packed.size_bytes == ceil(charged) == parse_format(name).bytes(prod(shape))


@pytest.mark.parametrize("name", ALL)
def test_unpacking_gives_the_codes_that_were_packed(name: str):
    quantised = quantiser(name).quantise(normal(64, 128, seed=3))
    again = unpack(pack(quantised))
    assert again.shape == quantised.shape
    assert again.fields.keys() == quantised.fields.keys()
    for field, other in zip(quantised.fields.values(), again.fields.values(), strict=True):
        assert np.array_equal(field.values, other.values)
        assert (field.bits, field.per) == (other.bits, other.per)


RESCALING = {
    "olive4", "olive8", "ternary", "ternary-dense", "int1", "bcq3-g128", "shiftadd3-g128", "bitmod3", "bitmod4", "smoothquant8",
    "kivi2", "kivi4", "gobo3", "gobo4", "olaccel4",
}  # fmt: skip
"""Formats whose scale is a statistic (mean, deviation, least squares, fp16 minimum, a share of the values): quantised values may move
once more."""


@pytest.mark.parametrize("name", [name for name in ALL if name not in RESCALING])
def test_quantised_values_quantise_to_themselves(name: str):
    once = quantiser(name).round_trip(normal(32, 256, seed=5))
    again = quantiser(name).round_trip(once)
    assert np.allclose(again, once, rtol=2e-3, atol=1e-7)  # scales are recomputed, in fp16 for groups


@pytest.mark.parametrize("name", ALL)
def test_zeros_stay_zero(name: str):
    restored = quantiser(name).round_trip(np.zeros((32, 256), np.float32))
    assert np.abs(restored).max() <= 2e-5  # a sign has no zero: the smallest scale remains


@pytest.mark.parametrize("name", [name for name in ALL if name not in ("int2", "int1", "qmoe", "ternary", "ternary-dense")])
@pytest.mark.parametrize("spec", ["gaussian:64x256", "student-t:64x256", "outliers:64x256", "uniform:64x256"])
def test_what_is_stored_resembles_what_was_given(name: str, spec: str):
    values = distribution(spec, 1)
    found = errors(values, quantiser(name).round_trip(values))
    assert found.cosine is not None
    assert found.cosine > 0.3
    assert found.max_abs_error <= np.abs(values).max()


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("name", ALL)
def test_values_that_are_no_numbers_are_refused(name: str, bad: float):
    values = normal(32, 128)
    values[3, 5] = bad
    with pytest.raises(WorkloadError, match="1 of 4096 values are NaN or infinite"):
        quantiser(name).quantise(values)


@pytest.mark.parametrize("name", [name for name in ALL if parse_format(name).group and "kivi" not in name])
def test_groups_that_do_not_divide_are_refused(name: str):
    with pytest.raises(WorkloadError, match=r"groups of \d+ do not divide the last dimension, 259"):
        quantiser(name).quantise(normal(4, 259))


def test_the_message_names_groups_that_divide_where_the_group_is_free():
    with pytest.raises(WorkloadError, match="use a group that does, such as 96, 48, 32"):
        quantiser("int4-g128").quantise(normal(2, 96))
    with pytest.raises(WorkloadError, match="pad the tensor"):
        quantiser("bitmod4").quantise(normal(2, 96))


@pytest.mark.parametrize("name", ["olive4", "olive8", "qmoe"])
def test_pairs_need_an_even_dimension(name: str):
    with pytest.raises(WorkloadError, match="pairs need an even last dimension"):
        quantiser(name).quantise(normal(4, 33))


@pytest.mark.parametrize("values", [np.zeros((0, 4)), np.array(1.0), np.array(["a"]), [[1, 2], [3]]])
def test_what_is_no_tensor_of_numbers_is_refused(values: object):
    with pytest.raises((WorkloadError, ValueError), match=r"expected|inhomogeneous"):
        quantiser("int8").quantise(values)


@pytest.mark.parametrize("name", ["fp64", "bool", "int64", "int4-8of16"])
def test_formats_without_a_quantiser_say_so(name: str):
    with pytest.raises(WorkloadError, match="no quantiser makes it from real numbers, expected one of fp32, fp16"):
        quantiser(name)


# Bits -----------------------------------------------------------------------------------------------------------------------
@given(st.integers(1, 18), st.integers(1, 200), st.integers(0, 2**31))
def test_bits_come_back(bits: int, count: int, seed: int):
    if bits > 8 and bits != 16 and 32 % bits == 0:
        return
    codes = np.random.default_rng(seed).integers(0, 1 << bits, count).astype(np.uint32)
    data = pack_bits(codes, bits)
    assert np.array_equal(unpack_bits(data, count, bits), codes)
    assert data.size == (ceil(count * bits / 8) if 32 % bits == 0 else bits * ceil(count / 8))


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_code_j_lies_at_bit_b_times_j_of_its_word(bits: int):
    codes = np.random.default_rng(bits).integers(0, 1 << bits, 96)
    words = pack_bits(codes, bits).view("<u4")
    per_word = 32 // bits
    assert all(int(words[j // per_word]) >> bits * (j % per_word) & ((1 << bits) - 1) == int(c) for j, c in enumerate(codes))


def test_widths_that_do_not_divide_a_word_are_bit_planes():
    codes = np.random.default_rng(0).integers(0, 8, 64)
    planes = pack_bits(codes, 3).reshape(3, 8)
    assert all(int(planes[i, j // 8]) >> j % 8 & 1 == int(c) >> i & 1 for j, c in enumerate(codes) for i in range(3))


# Grids ----------------------------------------------------------------------------------------------------------------------
POINTS = st.lists(st.integers(-400, 400), min_size=2, max_size=20, unique=True)


@given(POINTS, st.sampled_from(["down", "up", "away"]), st.lists(st.integers(-1700, 1700), min_size=1, max_size=40))
def test_grids_round_to_the_nearest_point_and_break_ties_as_stated(points: list[int], ties: str, quarters: list[int]):
    if ties == "away" and any(a + b == 0 for a, b in itertools.pairwise(sorted(points))):
        return  # half-way between -x and x there is no direction away from zero
    values = np.array(quarters, np.float32) / 4
    found = Grid(tuple(float(p) for p in points), ties).nearest(values)  # type: ignore[arg-type]
    assert np.array_equal(found, nearest(values, [float(p) for p in points], ties))


def test_a_grid_of_odd_spacing_falls_back_to_a_search():
    points = (0.1, 0.7, 1.9)
    values = normal(500, scale=1.5)
    grid = Grid(points, "down")
    assert grid._table is None
    assert np.array_equal(grid.nearest(values), nearest(values, [float(np.float32(p)) for p in points], "down").astype(np.float32))


# Integers ---------------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("bits", range(2, 9))
def test_symmetric_integers_per_tensor_follow_the_formula(bits: int):
    values, top = normal(5, 64, seed=bits), 2 ** (bits - 1) - 1
    scale = np.float32(np.abs(values).max() / np.float32(top))
    expected = np.clip(np.rint(values / scale), -top, top) * scale
    assert np.array_equal(quantiser(f"int{bits}").round_trip(values), expected)


@pytest.mark.parametrize("bits", range(2, 9))
def test_asymmetric_integers_per_channel_follow_the_formula(bits: int):
    values, top = normal(5, 64, seed=bits) + np.float32(0.005), 2**bits - 1
    low, high = values.min(1, keepdims=True), values.max(1, keepdims=True)
    scale = (high - low) / np.float32(top)
    zero = np.clip(np.rint(-low / scale), 0, top)
    expected = (np.clip(np.rint(values / scale) + zero, 0, top) - zero) * scale
    assert np.array_equal(quantiser(f"int{bits}-channel-asym").round_trip(values), expected)


@pytest.mark.parametrize("name", ["int4-g32", "int3-g64"])
def test_groups_use_the_scale_that_is_stored_in_fp16(name: str):
    format = parse_format(name)
    values, top = normal(4, 128, seed=1), 2 ** (format.element_bits - 1) - 1
    groups = values.reshape(-1, format.group)
    scale = (np.abs(groups).max(1, keepdims=True) / np.float32(top)).astype(np.float16).astype(np.float32)
    expected = np.clip(np.rint(groups / scale), -top, top) * scale
    assert np.array_equal(quantiser(name).round_trip(values), expected.reshape(values.shape))


def test_halves_round_to_even():
    values = np.array([[7.0, 0.5, 1.5, 2.5, -0.5, -1.5, -2.5, 0.0]], np.float32)  # scale 1
    assert quantiser("int4").round_trip(values).tolist() == [[7, 0, 2, 2, 0, -2, -2, 0]]


def test_a_group_of_one_sign_keeps_its_values():
    values = np.linspace(5, 6, 32, dtype=np.float32)[None]
    assert np.abs(quantiser("int8-g32a").round_trip(values) - values).max() < 6 / 255


@given(st.integers(1, 4), st.integers(1, 4), st.integers(1, 20), st.integers(0, 1000))
def test_bipolar_products_by_bit_planes_are_exact(a: int, b: int, k: int, seed: int):
    rng = np.random.default_rng(seed)
    left, right = rng.integers(0, 1 << a, (3, k)), rng.integers(0, 1 << b, (4, k))
    dense = (2 * left - (2**a - 1)) @ (2 * right - (2**b - 1)).T
    assert np.array_equal(bipolar_matmul(left, right, a, b), dense)


@pytest.mark.parametrize("bits", [1, 2, 3, 4])
def test_bipolar_integers_are_the_nearest_odd_ones(bits: int):
    values, top = normal(3, 64, seed=bits), 2**bits - 1
    scale = np.abs(values).max(1, keepdims=True) / np.float32(top)
    points = [float(v) for v in range(-top, top + 1, 2)]
    assert np.allclose(quantiser(f"bipolar{bits}").round_trip(values), nearest(values / scale, points, "down") * scale, rtol=1e-6)


def test_ternary_weights_follow_bitnet():
    values = normal(8, 40)
    scale = np.float32(np.abs(values).mean(dtype=np.float64))
    expected = np.clip(np.rint(values / scale), -1, 1) * scale
    for name in ("ternary", "ternary-dense"):
        assert np.array_equal(quantiser(name).round_trip(values), expected)


def test_dense_ternary_bytes_are_five_base_3_digits():
    values = np.array([[1, 0, -1, 1, -1, 1, 0]], np.float32)
    data = pack(quantiser("ternary-dense").quantise(values)).parts["code"].data
    digits = [2, 1, 0, 2, 0, 2, 1, 1, 1, 1]  # value + 1, filled up with zeros
    assert data.tolist() == [sum(d * 3**i for i, d in enumerate(digits[at : at + 5])) for at in (0, 5)]


# Floats -----------------------------------------------------------------------------------------------------------------------
FLOAT_NAMES = ["fp8-e4m3", "fp8-e5m2", "fp6-e3m2", "fp6-e2m3", "fp4", "bf16", "fp16"]


@pytest.mark.parametrize("name", FLOAT_NAMES)
def test_every_finite_code_survives(name: str):
    codes = np.arange(1 << FLOATS[name].width)
    finite = codes[FLOATS[name].finite(codes)]
    values = FLOATS[name].decode(finite)
    mine = element(name)
    assert np.array_equal(mine.decode(finite.astype(np.uint16 if mine.width > 8 else np.uint8)), values.astype(np.float32))
    assert np.array_equal(mine.encode(values.astype(np.float32)), finite)


@pytest.mark.parametrize("name", FLOAT_NAMES)
def test_floats_round_to_even_and_saturate(name: str):
    own = FLOATS[name]
    codes = np.arange(own.largest + 1)
    values = own.decode(codes)
    middles = (values[1:] + values[:-1]) / 2
    around = np.concatenate([middles, np.nextafter(middles, 0), values * 1.01, [values[-1] * 4]])
    around = np.minimum(around, np.finfo(np.float32).max).astype(np.float32)
    around = np.concatenate([around, -around])[: 1 << 16]
    assert np.array_equal(element(name).encode(around), own.encode(around.astype(np.float64), saturate=True))


@pytest.mark.parametrize("name", ["e4m3", "e3m4", "e2m1", "e5m2", "e7m9"])
def test_floats_without_specials_are_the_nearest_finite_number(name: str):
    own = element(name)
    points = own.decode(np.arange(1 << (own.width - 1)))
    assert np.all(np.diff(points) > 0)
    assert points[-1] == np.float32(own.largest)
    values = np.concatenate([normal(200, seed=2, scale=float(points[len(points) // 2])), [own.largest * 2]]).astype(np.float32)
    found = own.decode(own.encode(values))
    expected = np.array([np.sign(v) * points[np.argmin(np.abs(points.astype(np.float64) - abs(float(v))))] for v in values])
    assert np.array_equal(found, expected.astype(np.float32))


def test_the_scale_maps_the_largest_magnitude_to_the_largest_value():
    values = normal(8, 16, seed=9)
    restored = quantiser("fp8").round_trip(values)
    at = np.unravel_index(np.abs(values).argmax(), values.shape)
    assert restored[at] == pytest.approx(values[at], rel=1e-6)


# Shared scales ------------------------------------------------------------------------------------------------------------------
MX = {
    "mxfp8-e4m3": ("fp8-e4m3", 8),
    "mxfp8-e5m2": ("fp8-e5m2", 15),
    "mxfp6-e3m2": ("fp6-e3m2", 4),
    "mxfp6-e2m3": ("fp6-e2m3", 2),
    "mxfp4": ("fp4", 2),
}


@pytest.mark.parametrize("name", MX)
def test_mx_blocks_follow_the_specification(name: str):
    kind, top = MX[name]
    values = normal(4, 64, seed=4, scale=3.0)
    for block, restored in zip(values.reshape(-1, 32), quantiser(name).round_trip(values).reshape(-1, 32), strict=True):
        shared = int(np.floor(np.log2(float(np.abs(block).max())))) - top
        codes = FLOATS[kind].encode(block.astype(np.float64) * 2.0**-shared, saturate=True)
        assert np.array_equal(restored, (FLOATS[kind].decode(codes) * 2.0**shared).astype(np.float32))


def test_mxint8_counts_sixty_fourths_and_leaves_minus_two_unused():
    values = normal(4, 64, seed=4, scale=3.0)
    fields = quantiser("mxint8").quantise(values).fields
    assert (fields["code"].values != 128).all()
    for number, block in enumerate(values.reshape(-1, 32)):
        shared = int(np.floor(np.log2(float(np.abs(block).max()))))
        expected = np.clip(np.rint(block.astype(np.float64) * 2.0**-shared * 64), -127, 127)
        assert np.array_equal(fields["code"].values.reshape(-1, 32)[number].view(np.int8), expected)
        assert fields["scale"].values[number] == shared + 127


@pytest.mark.parametrize("name", ["mxfp4", "mxint8", "mxfp8"])
def test_a_block_of_zeros_has_scale_code_zero(name: str):
    assert quantiser(name).quantise(np.zeros((1, 32))).fields["scale"].values.tolist() == [0]


@pytest.mark.parametrize("exponent", [-126, -100, 0, 100, 126])
def test_mx_scales_reach_from_the_smallest_to_the_largest_numbers(exponent: int):
    values = np.full((1, 32), 2.0**exponent, np.float32)
    assert np.array_equal(quantiser("mxint8").round_trip(values), values)


def test_nvfp4_scales_blocks_by_e4m3_and_the_tensor_by_fp32():
    values = normal(4, 64, seed=7)
    tensor = np.float32(np.abs(values).max() / (6 * 448))
    for block, restored in zip(values.reshape(-1, 16), quantiser("nvfp4").round_trip(values).reshape(-1, 16), strict=True):
        code = FLOATS["fp8-e4m3"].encode(np.abs(block).max() / (np.float32(6) * tensor), saturate=True)
        own = np.float32(FLOATS["fp8-e4m3"].decode(code))
        codes = FLOATS["fp4"].encode((block / (own * tensor)).astype(np.float64))
        assert np.allclose(restored, FLOATS["fp4"].decode(codes) * own * tensor, rtol=1e-6)


@pytest.mark.parametrize(("name", "bits", "size"), [("bfp12", 3, 16), ("bfp16", 7, 16), ("bfp14-b32", 5, 32)])
def test_block_floating_point_is_one_exponent_and_rounded_magnitudes(name: str, bits: int, size: int):
    values = normal(4, 64, seed=8, scale=5)
    for block, restored in zip(values.reshape(-1, size), quantiser(name).round_trip(values).reshape(-1, size), strict=True):
        unit = 2.0 ** (int(np.floor(np.log2(float(np.abs(block).max())))) - bits + 1)
        magnitude = np.minimum(np.rint(np.abs(block).astype(np.float64) / unit), 2**bits - 1)
        assert np.array_equal(restored, (np.sign(block) * magnitude * unit).astype(np.float32))


# BitMoD -----------------------------------------------------------------------------------------------------------------------
FP3, FP4 = [0.0, 1, 2, 4], [0, 0.5, 1, 1.5, 2, 3, 4, 6]


@pytest.mark.parametrize(("bits", "magnitudes", "special"), [(3, FP3, (3, -3, 6, -6)), (4, FP4, (5, -5, 8, -8))])
def test_bitmod_takes_the_special_value_of_least_error(bits: int, magnitudes: list[float], special: tuple[float, ...]):
    values = distribution("student-t:6x256", 2)
    quantised = quantiser(f"bitmod{bits}").quantise(values)
    selectors = quantised.fields["selector"].values
    scales = []
    for number, group in enumerate(values.reshape(-1, 128)):
        found = []
        for value in special:
            points = sorted({*magnitudes, *(-m for m in magnitudes), float(value)})
            scale = np.float32(np.float16(np.float32(np.abs(group).max()) / np.float32(max(map(abs, points)))))
            rounded = nearest(group / scale, points, "down")
            found.append((float(((rounded * np.float64(scale) - group) ** 2).mean()), scale, rounded))
        best = min(range(4), key=lambda i: found[i][0])
        assert int(selectors[number]) == best
        scales.append(found[best][1])
        codes = quantised.fields["code"].values.reshape(-1, 128)[number]
        assert np.array_equal(grid(bits, best).values[[list(codes_of(bits, best)).index(c) for c in codes]], found[best][2])
    by_channel = np.array(scales, np.float32).reshape(6, 2)
    unit = by_channel.max(1, keepdims=True) / np.float32(127)
    assert np.array_equal(quantised.fields["scale"].values.reshape(6, 2), np.rint(by_channel / unit))


@pytest.mark.parametrize(("bits", "form"), [(3, "fp3"), (4, "fp4")])
def test_bitmod_codes_mean_what_the_processing_element_multiplies(bits: int, form: str):
    for selector in range(4):
        codes = codes_of(bits, selector)
        assert np.array_equal(doubled_values(codes, selector, form), 2 * grid(bits, selector).values)  # type: ignore[arg-type]
        assert sorted(codes) == list(range(1 << bits))


def test_bitmod_ties_go_to_the_lower_value_and_equal_errors_to_the_first_special_value():
    group = np.resize(np.array([-6, -4, -3, 3, 4, 5, 1.5, 0], np.float32), (1, 128))  # exact with +5 only
    group[0, :6] = [6.0, 2.5, -2.5, 0.25, -0.25, 5.0]
    assert quantiser("bitmod4").quantise(group).fields["selector"].values.tolist() == [0]  # +5 is exact
    values = quantiser("bitmod4").round_trip(group)[0, :6]
    unit = np.float32(1) / np.float32(127)
    assert np.allclose(values, np.array([6.0, 2.0, -3.0, 0.0, -0.5, 5.0]) * 127 * unit, rtol=1e-6)
    assert quantiser("bitmod4").quantise(np.zeros((1, 128))).fields["selector"].values.tolist() == [0]


def test_bitmod_beats_integers_of_the_same_width_on_normal_weights():
    values = distribution("gaussian:256x512")
    quality = {name: report(values, name)[0].sqnr_db for name in ("bitmod4", "int4-g128a", "mxfp4", "int4-g128", "bitmod3", "int3-g128a")}
    assert quality["bitmod4"] > quality["int4-g128a"] > quality["mxfp4"] > quality["int4-g128"]  # type: ignore[operator]
    assert quality["bitmod3"] > quality["int3-g128a"]  # type: ignore[operator]


def test_special_values_are_two_inside_and_two_outside_the_range():
    assert SPECIAL == {3: (3, -3, 6, -6), 4: (5, -5, 8, -8)}


# ANT and OliVe ------------------------------------------------------------------------------------------------------------------
def test_flint_codes_are_those_of_the_paper():
    assert flint_magnitudes(3) == (0, 1, 2, 3, 16, 8, 4, 6)
    assert flint_magnitudes(4) == (*range(8), 64, 32, 16, 24, 8, 10, 12, 14)


ANT = {"int": range(8), "flint": (0, 1, 2, 3, 4, 6, 8, 16), "pot": (0, 1, 2, 4, 8, 16, 32, 64), "float": (0, 1, 2, 3, 4, 6, 8, 12)}


@pytest.mark.parametrize("spec", ["gaussian:4x96", "uniform:4x96", "student-t:4x96", "outliers:4x1000"])
def test_ant_takes_the_type_of_least_error_and_its_nearest_values(spec: str):
    values = distribution(spec, 4)
    found = {}
    for kind in TYPES:
        points = [float(s * m) for m in ANT[kind] for s in (1, -1)]
        scale = np.abs(values).max(1, keepdims=True) / np.float32(max(ANT[kind]))
        found[kind] = nearest(values / scale, sorted(set(points)), "away") * scale
    best = min(TYPES, key=lambda kind: float(((found[kind] - values) ** 2).sum()))
    quantised = quantiser("ant4").quantise(values)
    assert TYPES[int(quantised.fields["type"].values[0])] == best
    assert np.allclose(quantiser("ant4").dequantise(quantised), found[best], rtol=1e-6)


def test_ant_finds_the_type_that_a_tensor_was_made_of():
    for kind in TYPES:
        points = np.array([s * m for m in ANT[kind] for s in (1, -1)], np.float32)
        values = np.random.default_rng(1).choice(points, (4, 64))
        values[:, 0] = points.max()
        assert TYPES[int(quantiser("ant4").quantise(values).fields["type"].values[0])] == kind


def olive(values: np.ndarray, kind: str, scale: np.ndarray) -> np.ndarray:
    """Pairs by the published rules, one after the other."""
    normal_points = {"int4": range(8), "flint4": (0, 1, 2, 3, 4, 6, 8, 16)}[kind]
    bias = {"int4": 2, "flint4": 3}[kind]
    outliers = [(2 + m) << (e + bias) for e in range(4) for m in range(2) if e or m]
    points = sorted({float(s * m) for m in (*normal_points, *outliers) for s in (1, -1)})
    out = nearest(values / scale[:, None], points, "away")
    for row in out:
        for i in range(0, len(row), 2):
            if abs(row[i]) > max(normal_points):
                row[i + 1] = 0
            elif abs(row[i + 1]) > max(normal_points):
                row[i] = 0
    return out * scale[:, None]


@pytest.mark.parametrize("spec", ["gaussian:3x128", "outliers:3x400", "student-t:3x128"])
def test_olive_searches_scale_and_type_of_least_error_after_pairing(spec: str):
    values = distribution(spec, 6)
    mean, spread = values.mean(1, dtype=np.float64), 3 * values.std(1, dtype=np.float64)
    start = np.maximum(np.abs(mean + spread), np.abs(mean - spread)).astype(np.float32)
    best = {}
    for kind, reach in (("int4", 8), ("flint4", 16)):
        tried = []
        for percent in SEARCH:
            scale = start / np.float32(reach) * np.float32(percent / 100)
            restored = olive(values, kind, scale)
            tried.append((((restored - values) ** 2).sum(1), restored))
        choice = np.argmin([error for error, _ in tried], axis=0)
        rows = np.stack([tried[c][1][i] for i, c in enumerate(choice)])
        best[kind] = (float(sum(tried[c][0][i] for i, c in enumerate(choice))), rows)
    expected = min(best.values(), key=lambda pair: pair[0])[1]
    assert np.allclose(Olive(parse_format("olive4"), sampled=None).round_trip(values), expected, rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize("form", ["int4", "flint4"])
def test_olive_codes_are_those_of_the_unit(form: str):
    kind = next(k for k in kinds(4) if k.name == form)
    (exponent, integer), (e, i) = normal_tables(form), outlier_tables(form)  # type: ignore[arg-type]
    used = np.arange(16) != kind.identifier
    assert np.array_equal((integer << exponent)[used], kind.normal_table[used])
    assert np.array_equal(i << e, kind.outlier_table)
    values = np.random.default_rng(3).standard_normal((64, 40)).astype(np.float32) * 12
    codes = encode_pairs(values, kind)
    as_bytes = codes[:, 0::2] | codes[:, 1::2] << 4
    assert np.array_equal(as_bytes, unit_encode_pairs(values.reshape(64, 20, 2), form))  # type: ignore[arg-type]
    packed = pack_bits(codes, 4).reshape(64, 20)
    assert np.array_equal(packed, as_bytes)
    assert set(np.unique(values_of(packed, form))) <= set(kind.grid.values.astype(int))  # type: ignore[arg-type]


def test_the_left_of_two_outliers_stays():
    kind = kinds(4)[0]
    codes = encode_pairs(np.array([[-98.0, 50.0, 3.0, 40.0, 2.6, 4.2]], np.float32), kind)
    # -96 is abfloat 1|11|1 and its neighbour a victim; 3 is the victim of 40, half-way between 32 and 48 (0|10|1); then int4
    assert codes.tolist() == [[0b1111, 0b1000, 0b1000, 0b0101, 0b0011, 0b0100]]


def test_eight_bit_outliers_are_limited_to_what_32_bit_sums_take():
    kind = kinds(8)[0]
    assert max(kind.outlier) == 1 << 15
    assert kind.identifier == 0x80
    values = np.array([[1e6, 3.0, -7.0, 200.0]], np.float32)
    codes = encode_pairs(values, kind)
    assert codes[0, 1] == codes[0, 2] == 0x80


def test_pair_statistics_of_independent_outliers_are_binomial():
    p = 0.0026997960632601866  # share of a normal distribution beyond 3 sigma
    found = pair_statistics(np.random.default_rng(0).standard_normal(1 << 21))
    assert found.outlier_normal == pytest.approx(2 * p * (1 - p), rel=0.03)
    assert found.outlier_outlier == pytest.approx(p * p, rel=1.0)
    assert found.normal_normal + found.outlier_normal + found.outlier_outlier == pytest.approx(1)
    assert pair_statistics(np.array([0.0] * 98 + [9.0, 9.0])).outlier_outlier == 1 / 50


# KIVI ---------------------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(("name", "bits"), [("kivi2", 2), ("kivi4", 4)])
@pytest.mark.parametrize("role", ["keys", "values"])
def test_kivi_groups_keys_by_channel_and_values_by_token(name: str, bits: int, role: str):
    cache = normal(64, 96, seed=2, scale=1.0)
    found = Kivi(parse_format(name), role).round_trip(cache)  # type: ignore[arg-type]
    lines, restored = (cache.T, found.T) if role == "keys" else (cache, found)
    for line, own in zip(lines, restored, strict=True):
        for start in range(0, len(line), 32):
            group = line[start : start + 32]
            low = np.float32(np.float16(group.min()))
            scale = np.float32(np.float16((group.max() - low) / np.float32(2**bits - 1)))
            codes = np.rint(np.clip((group - low) / scale, 0, 2**bits - 1))
            assert np.array_equal(own[start : start + 32], (codes * scale + low).astype(np.float16).astype(np.float32))


@pytest.mark.parametrize("tokens", [1, 100, 128, 129, 160, 200, 300])
def test_the_newest_tokens_stay_as_they_are(tokens: int):
    cache = normal(2, tokens, 32, scale=1.0).astype(np.float16).astype(np.float32)
    found = Kivi(parse_format("kivi2-r128")).round_trip(cache)
    old = max(0, tokens - 128) // 32 * 32
    assert np.array_equal(found[:, old:], cache[:, old:])
    assert old == 0 or not np.array_equal(found[:, :old], cache[:, :old])


def test_a_residual_window_is_charged_for_the_context():
    assert parse_format("kivi2-r128@2048").bits == (Fraction(3) * 1920 + 16 * 128) / 2048
    assert parse_format("kivi2-r128@100").bits == 16
    packed = pack(Kivi(parse_format("kivi2-r128"), "values").quantise(normal(2048, 128)))
    assert packed.size_bytes == parse_format("kivi2-r128@2048").bytes(2048 * 128)


def test_equal_values_have_scale_zero_and_codes_zero():
    quantised = quantiser("kivi2").quantise(np.full((32, 4), 0.5))
    assert (quantised.fields["code"].values == 0).all()
    assert np.array_equal(quantiser("kivi2").dequantise(quantised), np.full((32, 4), 0.5))


def test_keys_that_do_not_fill_a_group_ask_for_a_residual_window():
    with pytest.raises(WorkloadError, match=r"groups of 32 do not divide the 33 tokens of the keys; .* kivi2-r128"):
        quantiser("kivi2").quantise(normal(33, 64))


def test_the_hadamard_transform_keeps_products_and_is_exact_for_integers():
    rng = np.random.default_rng(0)
    q, k = rng.integers(-128, 128, (2, 5, 128))
    assert np.array_equal(hadamard(q) @ hadamard(k).T, 128 * (q @ k.T))
    with pytest.raises(WorkloadError, match="power of two, found 96"):
        hadamard(np.zeros(96))


# Binary coding --------------------------------------------------------------------------------------------------------------------
def test_greedy_scales_are_mean_residuals():
    w = normal(3, 64, seed=1)
    scales = greedy(w, 2)
    first = np.abs(w).mean(1)
    assert np.allclose(scales[:, 0], first, rtol=1e-6)
    assert np.allclose(scales[:, 1], np.abs(w - np.where(w >= 0, 1, -1) * first[:, None]).mean(1), rtol=1e-5)


@pytest.mark.parametrize("bits", [1, 2, 3, 4])
def test_every_weight_has_the_nearest_sum(bits: int):
    w, scales = normal(4, 50, seed=bits), np.abs(normal(4, bits, seed=bits + 9))
    codes = assign(w, scales)
    for row, own, alphas in zip(w, codes, scales, strict=True):
        levels = signs_of(bits) @ alphas
        assert np.allclose(np.abs(levels[own] - row), np.abs(levels[None] - row[:, None]).min(1), atol=1e-8)


@pytest.mark.parametrize("bits", [1, 2, 3, 4])
def test_half_way_weights_go_to_the_higher_sum(bits: int):
    rng = np.random.default_rng(bits)
    w = rng.integers(-40, 41, (50, 64)).astype(np.float32) / 4  # many lie half-way between sums of whole numbers
    scales = rng.integers(1, 9, (50, bits)).astype(np.float32)
    for row, own, alphas in zip(w, assign(w, scales), scales, strict=True):
        levels = signs_of(bits) @ alphas
        assert np.array_equal(levels[own], nearest(row, sorted(set(levels.tolist())), "up"))


def test_one_round_of_refinement_is_least_squares_for_the_signs_at_hand():
    w = normal(6, 128, seed=4)
    start = greedy(w, 3)
    signs = signs_of(3)[assign(w, start)]  # [groups, G, q]
    expected = np.stack([np.linalg.lstsq(b.astype(np.float64), row, rcond=None)[0] for b, row in zip(signs, w, strict=True)])
    assert np.allclose(refine(w, start, rounds=1), expected, rtol=1e-4, atol=1e-7)


def test_refinement_and_more_terms_of_powers_of_two_reduce_the_error():
    w = normal(64, 128, seed=6)

    def error(scales: np.ndarray) -> float:
        levels = scales @ signs_of(3).T
        return float(((np.take_along_axis(levels, assign(w, scales).astype(int), 1) - w) ** 2).sum())

    free = refine(w, greedy(w, 3))
    assert error(free) < error(greedy(w, 3))
    shifts = [error(power_of_two(free, terms).astype(np.float32)) for terms in (1, 2, 3)]
    assert shifts[0] > shifts[1] > shifts[2] > 0.97 * error(free)
    assert shifts[2] < 1.05 * error(free)


def test_scales_of_shift_add_are_powers_of_two():
    quantised = quantiser("shiftadd3-g128").quantise(normal(8, 256))
    scales = 2.0 ** (quantised.fields["scale"].values.astype(int) - 120)
    levels = np.unique(np.abs(quantiser("shiftadd3-g128").dequantise(quantised)))
    sums = {abs(float(s)) for row in scales.reshape(-1, 3) for s in signs_of(3) @ row}
    assert all(any(abs(level - s) < 1e-9 for s in sums) for level in levels)


# Listed outliers ------------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", ["gobo3", "gobo4", "olaccel4"])
@pytest.mark.parametrize("spec", ["gaussian:256x512", "outliers:64x256", "student-t:33x77"])
def test_listed_outliers_cost_their_places_and_values(name: str, spec: str):
    quantised = quantiser(name).quantise(distribution(spec, 2))
    packed = pack(quantised)
    share = listed_share(quantised.fields)
    size = prod(quantised.shape)
    expected = stored_bits(parse_format(name), share) * size / 8
    assert expected - 1 <= packed.size_bytes <= expected + 4  # whole bytes, and a count for the last places
    if spec == "gaussian:256x512":
        assert packed.bits_per_value == pytest.approx(float(parse_format(name).bits), abs=0.02)


def test_gobo_keeps_exactly_the_values_beyond_its_deviations():
    values = distribution("student-t:128x256", 3)
    quantised = quantiser("gobo3").quantise(values)
    far = np.abs(values - values.mean(dtype=np.float64)) > DEVIATIONS * values.std(dtype=np.float64)
    assert 0 < far.sum() < 0.02 * values.size
    assert np.array_equal(quantised.fields["place"].values, np.flatnonzero(far))
    restored = quantiser("gobo3").dequantise(quantised)
    assert np.array_equal(restored[far], values[far])
    table = quantised.fields["table"].values.view(np.float32)
    assert np.array_equal(restored[~far], nearest(values[~far], [float(v) for v in table], "up").astype(np.float32))


def test_representatives_lie_near_the_means_of_their_values_and_closer_than_equal_shares_do():
    values = normal(50000, seed=4)
    table = representatives(values, 3)
    cells = np.searchsorted((table[1:] + table[:-1]) / 2, values, "right")
    assert np.allclose(table, [values[cells == i].mean() for i in range(8)], atol=0.05 * values.std())  # it stops where distances do
    even = np.array_split(np.sort(values), 8)  # where the search starts
    first = np.array([part.mean() for part in even])
    start = np.searchsorted((first[1:] + first[:-1]) / 2, values, "right")
    assert np.abs(values - table[cells]).sum() < np.abs(values - first[start]).sum()


def test_representatives_of_few_values_are_those():
    values = np.repeat(np.float32([-2, -1, 0.5, 3]), 100)
    assert set(representatives(values, 2).tolist()) == {-2, -1, 0.5, 3}
    assert np.array_equal(quantiser("gobo3").round_trip(values.reshape(4, 100)).ravel(), values)


def test_olaccel_lists_the_largest_three_percent_with_eight_bits_of_the_same_unit():
    values = distribution("student-t:100x100", 5)
    quantised = quantiser("olaccel4").quantise(values)
    restored = quantiser("olaccel4").dequantise(quantised)
    ordered = np.sort(np.abs(values).ravel())
    limit = ordered[-301]  # 300 of 10,000 are larger
    unit = np.float32(limit / 7)
    expected = np.rint(values / unit)
    large = np.abs(values) > limit
    assert large.sum() == quantised.fields["place"].values.size == 300
    whole = np.where(large, np.clip(expected, -127, 127), np.clip(expected, -7, 7))
    assert np.allclose(restored, whole * unit, rtol=1e-6)


# SmoothQuant ------------------------------------------------------------------------------------------------------------------------
def test_smoothing_leaves_the_product_and_balances_the_ranges():
    weights, acts = normal(16, 64, seed=1), normal(40, 64, seed=2, scale=1.0)
    acts[:, 7] *= 80
    own = factors(np.abs(acts).max(0), weights)
    assert np.allclose((acts / own) @ (weights * own).T, acts @ weights.T, atol=1e-4)
    assert np.allclose(np.abs(acts / own).max(0), np.abs(weights * own).max(0), rtol=1e-4)  # alpha = 1/2


def test_smoothquant_reduces_the_error_of_an_int8_product_with_outliers():
    weights, acts = normal(64, 128, seed=1), normal(256, 128, seed=2, scale=1.0)
    acts[:, 7] *= 100
    smooth = SmoothQuant(parse_format("smoothquant8"), acts)
    own = factors(np.abs(acts).max(0), weights)
    plain = quantiser("int8").round_trip(acts) @ quantiser("int8-channel").round_trip(weights).T
    better = (quantiser("int8").round_trip(acts / own) * own) @ smooth.round_trip(weights).T
    exact = acts @ weights.T
    assert np.abs(better - exact).mean() < 0.5 * np.abs(plain - exact).mean()
    with pytest.raises(WorkloadError, match="expected activations of 128 input channels"):
        SmoothQuant(parse_format("smoothquant8"), acts[:, :5]).quantise(weights)


# DFloat11 -----------------------------------------------------------------------------------------------------------------------------
def test_ten_million_bf16_weights_come_back_bit_for_bit():
    values = np.random.default_rng(0).standard_normal(10_000_000, np.float32) * np.float32(0.02)
    bits = values.astype(ml_dtypes.bfloat16).view(np.uint16)
    fields = compress(bits)
    assert np.array_equal(decompress(fields), bits)
    sizes = {name: pack_bits(f.values, f.bits).size for name, f in fields.items()}
    exponents = np.bincount(bits >> 7 & 255, minlength=256) / bits.size
    entropy = -float(sum(p * np.log2(p) for p in exponents if p))
    assert 2.5 < entropy < 2.7
    stream = 8 * sizes["stream"] / bits.size
    assert entropy <= stream < entropy + 0.1  # Huffman loses little
    assert 8 * sum(sizes.values()) / bits.size == pytest.approx(8 + stream * (1 + 5 / 64), abs=0.01)


@settings(deadline=None)
@given(st.integers(0, 2**31), st.integers(1, 3000), st.sampled_from(["all", "two", "one", "rare"]))
def test_any_bf16_codes_come_back(seed: int, size: int, what: str):
    rng = np.random.default_rng(seed)
    if what == "rare":  # probabilities of 2^-i give long codes
        exponents = np.minimum(rng.geometric(0.5, size), 60)
        bits = (exponents << 7 | rng.integers(0, 2, size) << 15 | rng.integers(0, 128, size)).astype(np.uint16)
    else:
        pool = {"all": np.arange(1 << 16), "two": np.array([0x3F80, 0xC000]), "one": np.array([0x7FC1])}[what]
        bits = rng.choice(pool, size).astype(np.uint16)
    assert np.array_equal(decompress(compress(bits)), bits)


def test_long_codes_are_limited_and_decode():
    counts = np.array([1, 1, *(2**i for i in range(1, 40))])  # Huffman codes of up to 40 bits
    lengths = code_lengths(counts)
    assert lengths.max() <= 32
    assert sum(Fraction(1, 2 ** int(n)) for n in lengths) == 1
    bits = (np.repeat(np.arange(20), [1, 1, *(2**i for i in range(1, 19))]) << 7).astype(np.uint16)
    assert np.array_equal(decompress(compress(bits)), bits)


@given(st.lists(st.integers(0, 1000), min_size=2, max_size=40).filter(lambda c: sum(map(bool, c)) > 1))
def test_codes_are_those_of_the_decoding_unit(counts: list[int]):
    own, units = code_lengths(np.array(counts)), unit_code_lengths(counts, 32)
    assert own @ np.array(counts) == units @ np.array(counts)  # optimal: the same size in all
    table = canonical_codes(own)
    assert all(int(canonical(own)[symbol]) == code for symbol, (code, _) in table.items())


def test_a_damaged_stream_is_refused():
    fields = compress(np.arange(5000, dtype=np.uint16))
    short = {**fields, "stream": type(fields["stream"])(fields["stream"].values[:-800], 8, "value")}
    short["gap"] = type(fields["gap"])(fields["gap"].values[:-100], 5, "group")
    with pytest.raises(WorkloadError, match="the code stream ends after"):
        decompress(short)


# QMoE -----------------------------------------------------------------------------------------------------------------------------------
def test_the_dictionary_is_complete_and_no_entry_begins_another():
    children, digits, lengths = dictionary(90)
    assert len(lengths) <= 1 << 16
    assert len(lengths) > (1 << 16) - 9
    leaves = -1 - children[children < 0]
    assert sorted(leaves) == list(range(len(lengths)))  # every pair from every node leads on, each entry is reached once
    assert (children != 0).all()
    assert lengths.max() <= 32
    assert ((digits < 3).all(), bool((lengths % 2 == 0).all())) == (True, True)


@settings(deadline=None)
@given(st.integers(1, 40), st.integers(1, 300), st.sampled_from([0, 0.6, 0.9, 1]), st.integers(0, 2**31))
def test_ternary_rows_survive_qmoe(rows: int, pairs: int, zeros: float, seed: int):
    rng = np.random.default_rng(seed)
    values = np.where(rng.random((rows, 2 * pairs)) < zeros, 0, rng.choice([-1.0, 1.0], (rows, 2 * pairs))).astype(np.float32)
    assert np.array_equal(quantiser("qmoe").round_trip(values), values)


def test_qmoe_stores_sparse_ternary_weights_below_one_bit():
    rng = np.random.default_rng(0)
    values = np.where(rng.random((256, 4096)) < 0.885, 0, rng.choice([-1.0, 1.0], (256, 4096))).astype(np.float32)
    bits = pack(quantiser("qmoe").quantise(values)).bits_per_value
    p = 0.115
    entropy = -(1 - p) * np.log2(1 - p) - p * np.log2(p / 2)
    assert entropy < bits < 0.8


# Reports --------------------------------------------------------------------------------------------------------------------------------
def test_errors_are_those_of_their_definitions():
    a, b = normal(100, seed=1).astype(np.float64), normal(100, seed=2).astype(np.float64)
    found = errors(a, b)
    assert found.sqnr_db == pytest.approx(10 * np.log10((a @ a) / ((a - b) @ (a - b))))
    assert found.cosine == pytest.approx(a @ b / np.linalg.norm(a) / np.linalg.norm(b))
    assert found.max_abs_error == np.abs(a - b).max()
    assert errors(a, a).exact
    assert errors(a, a).sqnr_db is None


def test_reports_name_keys_and_values_apart():
    assert [row.format for row in report(normal(64, 64), "kivi2")] == ["kivi2 keys", "kivi2 values"]


def test_lossless_formats_say_that_they_are_exact():
    row = report(normal(64, 64), "dfloat11")[0]
    assert row.exact
    assert row.sqnr_db is None


def test_random_tensors_are_what_they_say():
    for name in ("gaussian", "student-t", "uniform"):
        values = distribution(f"{name}:400x1000", 5)
        assert values.std() == pytest.approx(0.02, rel=0.02)
        assert np.array_equal(values, distribution(f"{name}:400x1000", 5))
    outliers = distribution("outliers:400x1000")
    assert np.count_nonzero(np.abs(outliers) > 0.12) == pytest.approx(400 * 0.764, rel=0.2)  # P(20 |N| > 6) = 0.764


@pytest.mark.parametrize(
    "spec", ["gauss:4x4", "gaussian", "gaussian:", "gaussian:4xx4", "gaussian:0", "gaussian:-1x4", "gaussian:100000x100000"]
)
def test_wrong_random_tensors_are_refused(spec: str):
    with pytest.raises(WorkloadError, match="random tensor"):
        distribution(spec)
