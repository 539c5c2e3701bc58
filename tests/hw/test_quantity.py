"""Quantities: exact integers from text with units, and back."""

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hw.errors import HardwareError
from hw.quantity import (
    BANDWIDTH,
    CAPACITY,
    ENERGY,
    FREQUENCY,
    FS_PER_S,
    POWER,
    TIME,
    cycles_to_fs,
    parse,
    spell,
    transfer_fs,
)

TABLES = {"capacity": CAPACITY, "bandwidth": BANDWIDTH, "frequency": FREQUENCY, "time": TIME, "energy": ENERGY, "power": POWER}
WHOLE = {name: TABLES[name] for name in ("capacity", "bandwidth", "frequency", "time")}


def test_decimal_prefixes_are_powers_of_ten_and_binary_ones_powers_of_two():
    assert parse("1 GB", CAPACITY) == 10**9
    assert parse("1 GiB", CAPACITY) == 2**30
    assert parse("3 GiB", CAPACITY) - parse("3 GB", CAPACITY) == 3 * (2**30 - 10**9)
    assert parse("1 kB", CAPACITY) == 1000
    assert parse("1 KiB", CAPACITY) == 1024


@pytest.mark.parametrize(
    ("text", "table", "base"),
    [
        ("64 KiB", CAPACITY, 65_536),
        ("1.5 MiB", CAPACITY, 3 * 2**19),
        ("819 GB/s", BANDWIDTH, 819 * 10**9),
        ("19.491840 TB/s", BANDWIDTH, 19_491_840_000_000),
        ("1.41 GHz", FREQUENCY, 1_410_000_000),
        ("2.5 us", TIME, 2_500_000_000),
        ("2260.5 ns", TIME, 2_260_500_000),
        ("1 s", TIME, FS_PER_S),
        ("64KiB", CAPACITY, 65_536),
        ("  64   KiB ", CAPACITY, 65_536),
        ("1_000_000 B", CAPACITY, 10**6),
        ("1e3 B", CAPACITY, 1000),
        ("4096", CAPACITY, 4096),  # a plain number is in base units
        (4096, CAPACITY, 4096),
        (2.5e9, FREQUENCY, 2_500_000_000),
        (Fraction(8), CAPACITY, 8),
    ],
)
def test_a_quantity_is_the_exact_number_of_its_base_units(text, table, base):
    assert parse(text, table, minimum=0) == base


@pytest.mark.parametrize(("text", "picojoule"), [("0.72 pJ", Fraction(18, 25)), ("845 fJ", Fraction(169, 200)), ("1.2 nJ", 1200)])
def test_energies_are_exact_fractions_of_a_picojoule(text, picojoule):
    assert parse(text, ENERGY, whole=False, minimum=0) == picojoule


def test_a_decimal_float_means_what_was_typed_not_its_binary_neighbour():
    assert parse(0.1, ENERGY, whole=False, minimum=0) == Fraction(1, 10)


@pytest.mark.parametrize(
    "text", ["64 KB", "64 Kib", "64 kb", "64 bytes", "5 GHz", "GB", "", "1,000 B", ".5 GB", "5. GB", "inf B", "nan", "six B", "1 2 x B"]
)
def test_an_unknown_unit_or_number_is_refused_with_the_units_that_are_known(text):
    with pytest.raises(HardwareError) as caught:
        parse(text, CAPACITY)
    assert str(caught.value) == f"expected a number with B, KiB, MiB, GiB, TiB, kB, MB, GB or TB, not {text!r}"


@pytest.mark.parametrize("value", [True, None, [1], {"B": 1}, float("nan"), float("inf")])
def test_what_is_no_number_is_refused(value):
    with pytest.raises(HardwareError, match=r"^expected a number with Hz, kHz, MHz or GHz, not "):
        parse(value, FREQUENCY)


@pytest.mark.parametrize(
    ("text", "table", "message"),
    [
        ("1.5 B", CAPACITY, "expected a whole number of B, not '1.5 B'"),
        ("1.0001 kHz", FREQUENCY, "expected a whole number of Hz, not '1.0001 kHz'"),
        ("1.5 fs", TIME, "expected a whole number of fs, not '1.5 fs'"),
        ("0 B", CAPACITY, "expected at least 1 B, not '0 B'"),
        ("-1 GB", CAPACITY, "expected at least 1 B, not '-1 GB'"),
        (0, FREQUENCY, "expected at least 1 Hz, not 0"),
    ],
)
def test_values_that_are_not_whole_or_not_positive_are_refused_not_rounded(text, table, message):
    with pytest.raises(HardwareError) as caught:
        parse(text, table)
    assert str(caught.value) == message


def test_a_duration_may_be_zero_but_not_negative():
    assert parse("0 s", TIME, minimum=0) == 0
    with pytest.raises(HardwareError, match="expected at least 0 fs, not '-1 ns'"):
        parse("-1 ns", TIME, minimum=0)


@given(st.sampled_from(sorted(WHOLE)), st.integers(0, 10**18))
def test_every_whole_value_is_spelled_so_that_it_reads_back_equal(name, value):
    assert parse(spell(value, WHOLE[name]), WHOLE[name], minimum=0) == value


@given(st.sampled_from(["energy", "power"]), st.integers(0, 10**9), st.integers(0, 9))
def test_every_decimal_energy_and_power_reads_back_equal(name, digits, places):
    value = Fraction(digits, 10**places)
    assert parse(spell(value, TABLES[name]), TABLES[name], whole=False, minimum=0) == value


@given(st.sampled_from(["energy", "power"]), st.fractions(0, 10**6))
def test_fractions_without_a_decimal_read_back_equal_too(name, value):
    assert parse(spell(value, TABLES[name]), TABLES[name], whole=False, minimum=0) == value


@pytest.mark.parametrize("text", ["1e999999999 B", "1e-999999999 B", "1/0 B"])
def test_a_number_that_no_quantity_has_is_refused_at_once(text):
    with pytest.raises(HardwareError, match=r"^expected a"):
        parse(text, CAPACITY)


@given(st.sampled_from(sorted(WHOLE)), st.data(), st.integers(1, 10**6))
def test_a_number_with_a_unit_is_that_many_units(name, data, count):
    table = WHOLE[name]
    unit = data.draw(st.sampled_from(sorted(table)))
    assert parse(f"{count} {unit}", table) == count * table[unit]


@pytest.mark.parametrize(
    ("value", "table", "text"),
    [
        (65_536, CAPACITY, "64 KiB"),
        (64_000, CAPACITY, "64 kB"),
        (1_410_000_000, FREQUENCY, "1.41 GHz"),
        (1023, CAPACITY, "1023 B"),
        (80 * 2**30, CAPACITY, "80 GiB"),
    ],
)
def test_the_spelling_is_the_short_one_a_data_sheet_uses(value, table, text):
    assert spell(value, table) == text


@given(st.integers(0, 10**12), st.integers(1, 10**10))
def test_cycles_round_up_to_the_next_femtosecond(cycles, clock_hz):
    time_fs = cycles_to_fs(cycles, clock_hz)
    assert (time_fs - 1) * clock_hz < cycles * FS_PER_S <= time_fs * clock_hz


@given(st.fractions(0, 10**12, max_denominator=64), st.integers(1, 10**14))
def test_a_transfer_rounds_up_to_the_next_femtosecond_for_whole_and_fractional_bytes(size, bandwidth):
    time_fs = transfer_fs(size, bandwidth)
    assert (time_fs - 1) * bandwidth < size * FS_PER_S <= time_fs * bandwidth
    if size.denominator == 1:
        assert transfer_fs(int(size), bandwidth) == time_fs


@given(st.integers(1, 10**9), st.integers(1, 10**9), st.integers(1, 10**12))
def test_a_split_transfer_is_never_faster_and_loses_at_most_one_femtosecond_per_cut(first, second, bandwidth):
    whole, parts = transfer_fs(first + second, bandwidth), transfer_fs(first, bandwidth) + transfer_fs(second, bandwidth)
    assert whole <= parts <= whole + 1
