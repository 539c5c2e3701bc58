"""Number formats as storage: exact bits, metadata included."""

from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from workloads.errors import WorkloadError
from workloads.format import FORMATS, parse_format


@pytest.mark.parametrize(
    ("name", "bits"),
    [
        ("fp16", 16),
        ("bf16", 16),
        ("int8", 8),
        ("int4-g128", 4 + Fraction(16, 128)),  # an fp16 scale per 128 values: 4.125
        ("w4-g128", 4 + Fraction(16, 128)),
        ("int4-g128a", 4 + Fraction(32, 128)),  # and an fp16 zero point
        ("int3-g64", 3 + Fraction(16, 64)),
        ("mxfp4", 4 + Fraction(8, 32)),
        ("mxfp6", 6 + Fraction(8, 32)),
        ("mxfp8", 8 + Fraction(8, 32)),
        ("nvfp4", 4 + Fraction(8, 16)),
        ("kivi2", 2 + Fraction(32, 32)),
        ("ternary", 2),
        ("ternary-dense", Fraction(8, 5)),
    ],
)
def test_bits_per_value_include_the_metadata_of_its_group(name, bits):
    assert parse_format(name).bits == bits


def test_four_bit_weights_in_groups_of_128_cost_4_125_bits():
    assert float(parse_format("int4-g128").bits) == 4.125
    assert parse_format("int4-g128").bytes(4096 * 4096) == 4096 * 4096 * 4 // 8 + 4096 * 4096 // 128 * 2


@given(st.sampled_from(sorted(FORMATS)), st.integers(0, 10**9))
def test_bytes_are_the_bits_rounded_up(name, elements):
    format = parse_format(name)
    assert 0 <= format.bytes(elements) * 8 - elements * format.bits < 8


@given(st.integers(1, 8), st.integers(1, 512))
def test_larger_groups_cost_fewer_bits(bits, group):
    assert parse_format(f"int{bits}-g{group}").bits > parse_format(f"int{bits}-g{group + 1}").bits > bits


@pytest.mark.parametrize("name", [" FP16 ", "Int8", "MXFP4"])
def test_names_are_read_without_case_and_spaces(name):
    assert parse_format(name).name == name.strip().lower()


@pytest.mark.parametrize("name", ["int9", "int4-g0", "int4-g", "fp17", "", "int4g128b"])
def test_an_unknown_format_is_refused(name):
    with pytest.raises(WorkloadError, match="unknown number format, expected one of fp64, fp32"):
        parse_format(name)


def test_the_nearest_name_is_offered():
    with pytest.raises(WorkloadError, match="did you mean `mxfp4`"):
        parse_format("mxfp-4")
