"""Products by look-up in mirrored and whole tables are the products, and quantised tables are as near as their scales say."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hw.errors import HardwareError
from hw.lowbit.mirrored import build, look_up, quantise


@settings(max_examples=60, deadline=None)
@given(
    m=st.integers(1, 5), groups=st.integers(1, 6), n=st.integers(1, 7), bits=st.integers(1, 8), depth=st.integers(2, 6),
    mirrored=st.booleans(), seed=st.integers(0, 2**31),
)  # fmt: skip
def test_looking_up_is_multiplying_by_odd_integers(m, groups, n, bits, depth, mirrored, seed):
    rng = np.random.default_rng(seed)
    left = rng.integers(-128, 128, (m, groups * depth))
    codes = rng.integers(0, 1 << bits, (groups * depth, n))
    tables = build(left, depth, mirrored)
    assert np.array_equal(look_up(tables, codes, bits, depth, mirrored), left @ (2 * codes - (1 << bits) + 1))


@pytest.mark.parametrize("depth", [2, 3, 4, 5])
def test_the_half_that_is_not_stored_is_the_other_one_negated(depth):
    values = np.random.default_rng(1).integers(-128, 128, (3, 4 * depth))
    half, whole = build(values, depth), build(values, depth, symmetric=False)
    assert whole.shape[-1] == 2 * half.shape[-1]
    assert np.array_equal(whole[..., 0::2], half)  # first digit -1
    assert np.array_equal(whole[..., 1::2], -half[..., ::-1])  # first digit +1: every other digit turned around


def test_an_entry_is_at_most_the_sum_of_magnitudes_and_some_entry_is():
    values = np.random.default_rng(2).standard_normal((5, 64))
    most = np.abs(values.reshape(5, 16, 4)).sum(axis=-1)
    assert np.abs(build(values)).max(axis=-1) == pytest.approx(most)


@pytest.mark.parametrize("bits", [4, 8])
def test_quantised_entries_are_within_half_a_step_and_use_the_whole_range(bits):
    tables = build(np.random.default_rng(3).standard_normal((4, 256)))
    codes, scales = quantise(tables, bits)
    assert np.abs(codes * scales[..., None] - tables).max() <= scales.max() / 2 * (1 + 1e-12)
    assert np.abs(codes).reshape(4, 4, -1).max(axis=-1).tolist() == [[2 ** (bits - 1) - 1] * 4] * 4  # per 16 tables: 64 activations


def test_products_through_eight_bit_tables_keep_forty_decibels():
    rng = np.random.default_rng(4)
    left, codes = rng.standard_normal((32, 2048)), rng.integers(0, 4, (2048, 64))
    exact = left @ (2 * codes - 3)
    entries, scales = quantise(build(left))
    noise = look_up(entries * scales[..., None], codes, 2) - exact
    assert 10 * np.log10((exact**2).sum() / (noise**2).sum()) > 40


def test_tables_of_zeros_stay_zeros():
    codes, scales = quantise(build(np.zeros((2, 8))))
    assert not codes.any()
    assert (scales == 1).all()


def test_what_has_no_table_is_refused():
    with pytest.raises(HardwareError, match="groups of 4 do not divide 6 activations; pad"):
        build(np.zeros(6))
    for bad in (np.nan, np.inf):
        with pytest.raises(HardwareError, match="must be finite"):
            quantise(build([1.0, bad, 0.0, 0.0]))
