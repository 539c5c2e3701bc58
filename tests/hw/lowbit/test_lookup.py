"""T-MAC and LUT-GEMM in numpy, against products of dequantised weights and against a second implementation in torch."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hw import HardwareError
from hw.lowbit.lookup import (
    doubled_tables,
    indices,
    lut_gemm,
    quantised_tables,
    signed_product,
    tables,
    tmac,
    uniform_as_binary,
)
from studies.tmac_lutgemm import LIMIT, error


def drawn(bits: int, outputs: int, inputs: int, group: int, seed: int = 0):
    rng = np.random.default_rng(seed)
    codes = rng.integers(0, 1 << bits, (outputs, inputs))
    scales = rng.uniform(0.25, 2, (outputs, inputs // group)).astype(np.float32)
    return codes, scales, rng.standard_normal(inputs).astype(np.float16)


# Tables ---------------------------------------------------------------------------------------------------------------------
def test_a_table_holds_the_signed_sums_of_its_activations():
    (table,) = tables(np.array([1, 10, 100, 1000]))
    # index 5 = 0b0101: the first and the third are positive
    assert (table[0], table[5], table[15]) == (-1111, 1 - 10 + 100 - 1000, 1111)
    assert np.array_equal(table, -table[::-1])  # half of it suffices


def test_indices_are_bits_of_four_weights_per_plane():
    # 0, 1, 2, 3: plane 0 has the bits 0, 1, 0, 1, plane 1 has 0, 0, 1, 1
    assert indices(np.array([[0, 1, 2, 3]]), 2).tolist() == [[[0b1010]], [[0b1100]]]


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 4), st.integers(1, 9), st.integers(1, 12), st.integers(0, 1 << 30))
def test_lookups_of_integers_are_the_product(bits: int, outputs: int, groups: int, seed: int):
    rng = np.random.default_rng(seed)
    codes, acts = rng.integers(0, 1 << bits, (outputs, 4 * groups)), rng.integers(-(1 << 15), 1 << 15, 4 * groups)
    assert np.array_equal(signed_product(codes, bits, acts), (codes - (1 << (bits - 1))) @ acts)


@pytest.mark.parametrize("bits", [1, 2, 3, 4])
def test_the_integer_identity_holds_for_a_real_row_length(bits: int):
    rng = np.random.default_rng(bits)
    codes, acts = rng.integers(0, 1 << bits, (8, 4096)), rng.integers(-128, 128, 4096)
    assert np.array_equal(signed_product(codes, bits, acts), (codes - (1 << (bits - 1))) @ acts)


# T-MAC ----------------------------------------------------------------------------------------------------------------------
def test_scales_are_the_largest_sum_of_magnitudes_over_127():
    acts = np.zeros(128, np.float32)
    acts[[4, 5, 6, 7]] = [1, -2, 3, -4]  # |sum| of magnitudes 10 in the first 64, nothing in the second
    table, scales = quantised_tables(acts)
    assert scales.tolist() == [np.float32(10 / 127), 1.0]
    # entry 0b0101 = +1 +2 +3 +4 = 10, which is 127 steps
    assert table[1, 0b0101] == 127
    assert table[1, 0b1010] == -127
    assert not table[16:].any()


def torch_tmac(codes, bits, scales, acts, act_group, zeros):
    """The same arithmetic the other way around: bit by bit, no tables, rounding where T-MAC rounds."""
    torch = pytest.importorskip("torch")
    u, s, a = torch.as_tensor(codes), torch.as_tensor(scales), torch.as_tensor(acts, dtype=torch.float32)
    outputs, inputs = u.shape
    steps, result = inputs // act_group, torch.zeros(outputs)
    per = steps // s.shape[1]
    quads = a.reshape(steps, -1, 4)
    magnitude = quads.abs()
    size = (((magnitude[..., 0] + magnitude[..., 1]) + magnitude[..., 2]) + magnitude[..., 3]).amax(dim=1)
    scale = torch.where(size > 0, size / 127, torch.ones(()))
    for group in range(s.shape[1]):
        inner = torch.zeros(outputs)
        for step in range(group * per, (group + 1) * per):
            total = torch.zeros(outputs, dtype=torch.int64)
            first = torch.zeros((), dtype=torch.float64)
            for quad in range(act_group // 4):
                x = quads[step, quad]
                first += (((-x[0]) + (-x[1])) + (-x[2])) + (-x[3])
                for plane in range(bits):
                    sign = (u[:, step * act_group + 4 * quad : step * act_group + 4 * quad + 4] >> plane & 1) * 2 - 1
                    t = x * sign
                    entry = (((t[:, 0] + t[:, 1]) + t[:, 2]) + t[:, 3]) / scale[step]
                    total += torch.round(entry).clamp(-127, 127).to(torch.int64) << plane
            offset = first.to(torch.float32)
            part = 0.5 * (scale[step] * total.to(torch.float32) + offset)
            if zeros is not None:
                part = part + (torch.as_tensor(zeros)[:, group] - (1 << (bits - 1))) * offset
            inner = inner + part
        result = result + s[:, group] * inner
    return result.numpy()


@pytest.mark.parametrize("bits", [1, 2, 3, 4])
@pytest.mark.parametrize(("group", "act_group"), [(128, 64), (64, 64), (128, 32)])
@pytest.mark.parametrize("shifted", [False, True])
def test_tmac_equals_torch_bit_for_bit(bits: int, group: int, act_group: int, shifted: bool):
    codes, scales, acts = drawn(bits, 5, 256, group, seed=bits)
    zeros = np.random.default_rng(9).integers(0, 1 << bits, scales.shape).astype(np.float32) if shifted else None
    assert np.array_equal(tmac(codes, bits, scales, acts, act_group, zeros), torch_tmac(codes, bits, scales, acts, act_group, zeros))


@pytest.mark.parametrize("bits", [1, 2, 3, 4])
def test_int8_tables_lose_less_than_the_authors_accept(bits: int):
    # a step is a 127th of the largest of sixteen sums, about 3.3 sigma of one: errors uniform in a step of 2 sigma 3.3 / 254 ...
    assert error(bits) < LIMIT / 5


def test_ternary_weights_are_two_planes():
    rng = np.random.default_rng(2)
    weights, acts = rng.integers(-1, 2, (6, 64)), rng.integers(-128, 128, 64)
    assert np.array_equal(signed_product(weights + 2, 2, acts), weights @ acts)


# LUT-GEMM -------------------------------------------------------------------------------------------------------------------
def test_doubling_builds_the_signed_sums_of_integers():
    acts = np.random.default_rng(3).integers(-1000, 1000, 24)
    signs = np.where(np.arange(256)[:, None] >> np.arange(8) & 1, 1, -1)
    assert np.array_equal(doubled_tables(acts), acts.reshape(3, 8) @ signs.T)


def test_doubling_rounds_to_fp16_at_every_addition():
    torch = pytest.importorskip("torch")
    acts = np.random.default_rng(4).standard_normal(16).astype(np.float16)
    found = doubled_tables(acts)
    for row, x in zip(found, torch.from_numpy(acts).reshape(2, 8), strict=True):
        for p in range(256):
            value = -x[0]
            for s in range(1, 8):
                value = value - x[s]
            for s in range(8):  # from the lowest set bit to the highest: the order in which entries double
                value = value + 2 * x[s] if p >> s & 1 else value
            assert row[p] == value.numpy(), p


@pytest.mark.parametrize("bits", [1, 2, 3, 4])
def test_binary_coded_weights_by_lookup_are_their_dense_product(bits: int):
    rng = np.random.default_rng(bits)
    codes, acts = rng.integers(0, 1 << bits, (7, 64)), rng.integers(-15, 16, 64)
    scales, offsets = rng.integers(1, 9, (7, 4, bits)) / 8, rng.integers(-8, 9, (7, 4)) / 4
    signs = np.where(codes[..., None] >> np.arange(bits) & 1, 1, -1)
    dense = (signs * np.repeat(scales, 16, axis=1)).sum(axis=2) + np.repeat(offsets, 16, axis=1)
    # every sum is a multiple of 1/8 below 2^16: exact in fp16 tables and fp32 sums
    assert np.array_equal(lut_gemm(codes, bits, scales, acts, offsets), (dense @ acts).astype(np.float32))


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_uniform_weights_are_a_case_of_binary_coding(bits: int):
    codes, scales, _ = drawn(bits, 5, 64, 32)
    acts = np.random.default_rng(5).integers(-15, 16, 64)
    scales = np.ldexp(1.0, np.rint(np.log2(scales)).astype(int))
    zeros = np.full(scales.shape, 1.0)
    alpha, offset = uniform_as_binary(bits, scales, zeros)
    dense = (codes - 1) * np.repeat(scales, 32, axis=1)
    assert np.array_equal(lut_gemm(codes, bits, alpha, acts, offset), (dense @ acts).astype(np.float32))


# Bad input ------------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda c, s, a: tmac(c, 9, s, a), "weights of 9 bits: table lookup takes 1 to 8 planes"),
        (lambda c, s, a: tmac(c, 1, s, a), "codes of 1 bits lie between 0 and 1, found 0 to 3"),
        (lambda c, s, a: tmac(c[:, :126], 2, s, a), "126 inputs are not whole groups of 4"),
        (lambda c, s, a: tmac(c, 2, s, a[:64]), "weights have 128 inputs, activations 64"),
        (lambda c, s, a: tmac(c, 2, np.ones((4, 3)), a), r"scales \[4, 3\] do not fit weights \[4, 128\]"),
        (lambda c, s, a: tmac(c, 2, s * np.nan, a), "4 of 4 scales are NaN or infinite"),
        (lambda c, s, a: tmac(c, 2, s, a * np.inf), "128 of 128 activations are NaN or infinite"),
        (lambda c, s, a: tmac(c, 2, s, a, 62), "activation groups of 62: expected a multiple of 4"),
        (lambda c, s, a: tmac(c, 2, s, a, zeros=np.ones(4)), r"zero points have the shape of the scales, \[4, 1\]"),
        (lambda c, s, a: lut_gemm(c, 2, s, a), r"scales of 2 planes have the shape \[outputs, groups, 2\]"),
        (lambda c, s, a: lut_gemm(c[:, :124], 2, s, a), "124 inputs are not whole groups of 8"),
        (lambda c, s, a: signed_product(c, 2, a), "takes integer activations, found float16"),
        (lambda c, s, a: indices(c[0], 2), r"shape \[outputs, inputs\], found \[128\]"),
    ],
)
def test_what_cannot_be_looked_up_is_named(call, message: str):
    codes = np.arange(512).reshape(4, 128) % 4
    acts = np.ones(128, np.float16)
    with pytest.raises(HardwareError, match=message):
        call(codes, np.ones((4, 1)), acts)
