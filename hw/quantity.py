"""Quantities with units: text such as "64 KiB", "819 GB/s", "1.41 GHz" or "2.5 us" as exact integers, and back.

Decimal prefixes are powers of ten (1 GB = 10^9 B), binary ones powers of two (1 GiB = 2^30 B). Every quantity is an
integer in its base unit: bytes, bytes per second, hertz, femtoseconds; energies are exact fractions of a picojoule.
A value that is not a whole number of base units is refused instead of rounded.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from fractions import Fraction
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, PlainSerializer, WithJsonSchema

from hw.errors import HardwareError

FS_PER_S = 10**15

CAPACITY: dict[str, Fraction] = {
    "B": Fraction(1),
    **{f"{p}iB": Fraction(1024**i) for i, p in enumerate("KMGT", 1)},
    **{f"{p}B": Fraction(1000**i) for i, p in enumerate("kMGT", 1)},
}
BANDWIDTH: dict[str, Fraction] = {f"{unit}/s": factor for unit, factor in CAPACITY.items()}
FREQUENCY: dict[str, Fraction] = {"Hz": Fraction(1), "kHz": Fraction(10**3), "MHz": Fraction(10**6), "GHz": Fraction(10**9)}
TIME: dict[str, Fraction] = {
    "fs": Fraction(1),
    "ps": Fraction(10**3),
    "ns": Fraction(10**6),
    "us": Fraction(10**9),
    "ms": Fraction(10**12),
    "s": Fraction(10**15),
}
ENERGY: dict[str, Fraction] = {"fJ": Fraction(1, 1000), "pJ": Fraction(1), "nJ": Fraction(1000)}
POWER: dict[str, Fraction] = {"mW": Fraction(1, 1000), "W": Fraction(1), "kW": Fraction(1000)}

_NUMBER = re.compile(r"\s*([+-]?\d+(?:[_ ]\d+)*(?:/\d+|(?:\.\d+)?(?:[eE][+-]?\d{1,3})?))\s*(\S.*?)?\s*$")


def parse(text: object, units: Mapping[str, Fraction], *, whole: bool = True, minimum: int = 1) -> Fraction:
    """The number that `text` states, in base units. A plain number is taken to be in base units.

    Raises `HardwareError` naming the expected units.
    >>> parse("64 KiB", CAPACITY)
    Fraction(65536, 1)
    >>> parse("64 KB", CAPACITY)
    Traceback (most recent call last):
    hw.errors.HardwareError: expected a number with B, KiB, MiB, GiB, TiB, kB, MB, GB or TB, not '64 KB'
    """
    names = list(units)
    expected = f"expected a number with {', '.join(names[:-1])} or {names[-1]}"
    if isinstance(text, bool) or not isinstance(text, (str, int, float, Fraction)):
        raise HardwareError(f"{expected}, not {text!r}")
    if isinstance(text, str):
        match = _NUMBER.match(text)
        if not match or (match[2] or names[0]) not in units:
            raise HardwareError(f"{expected}, not {text!r}")
        try:
            value = Fraction(re.sub("[_ ]", "", match[1])) * (units[match[2]] if match[2] else 1)
        except ZeroDivisionError as error:
            raise HardwareError(f"{expected}, not {text!r}") from error
    else:
        try:
            value = Fraction(str(text)) if isinstance(text, float) else Fraction(text)
        except ValueError as error:  # nan and infinities
            raise HardwareError(f"{expected}, not {text!r}") from error
    if value < minimum:
        raise HardwareError(f"expected at least {minimum} {names[0]}, not {text!r}")
    if whole and value.denominator != 1:
        raise HardwareError(f"expected a whole number of {names[0]}, not {text!r}")
    return value


def spell(value: Fraction | int, units: Mapping[str, Fraction]) -> str:
    """The shortest exact text for a value in base units: `parse` returns the same value.

    >>> spell(65536, CAPACITY), spell(1_410_000_000, FREQUENCY)
    ('64 KiB', '1.41 GHz')
    """
    value = Fraction(value)
    best = ""
    for unit, factor in units.items():
        number = _decimal(value / factor)
        if number is not None and (not best or (len(number), -factor) < (len(best.split()[0]), 0)):
            best = f"{number} {unit}"
    unit, factor = next(iter(units.items()))
    return best or f"{value / factor} {unit}"


def _decimal(value: Fraction) -> str | None:
    """`value` as an exact decimal of at most twelve places, or None."""
    for places in range(13):
        scaled = value * 10**places
        if scaled.denominator == 1:
            whole, part = divmod(int(scaled), 10**places)
            return f"{whole}.{part:0{places}d}" if places else str(whole)
    return None


def _quantity(units: Mapping[str, Fraction], *, whole: bool = True, minimum: int = 1) -> Any:
    examples = [f"1 {unit}" for unit in units]
    def validate(text: object) -> int | Fraction:
        value = parse(text, units, whole=whole, minimum=minimum)
        return int(value) if whole else value

    serialise: Callable[[Any], str] = lambda value: spell(value, units)  # noqa: E731 - pydantic wants a callable
    return (
        BeforeValidator(validate),
        PlainSerializer(serialise, return_type=str),
        WithJsonSchema({"type": ["string", "number"], "examples": examples}),
    )


Count = Annotated[int, Field(ge=1)]
Capacity = Annotated[int, *_quantity(CAPACITY)]
Bandwidth = Annotated[int, *_quantity(BANDWIDTH)]
Frequency = Annotated[int, *_quantity(FREQUENCY)]
Duration = Annotated[int, *_quantity(TIME, minimum=0)]
Energy = Annotated[Fraction, *_quantity(ENERGY, whole=False, minimum=0)]
Power = Annotated[Fraction, *_quantity(POWER, whole=False, minimum=0)]


def cycles_to_fs(cycles: int, clock_hz: int) -> int:
    """Femtoseconds that `cycles` of a clock take, rounded up: the only place where cycles become time.

    >>> cycles_to_fs(3, 1_000_000_000)
    3000000
    """
    return -(-cycles * FS_PER_S // clock_hz)


def transfer_fs(size: Fraction | int, bandwidth: int) -> int:
    """Femtoseconds to move `size` bytes at `bandwidth` bytes per second, rounded up.

    >>> transfer_fs(100, 1_000_000_000)
    100000000
    """
    if isinstance(size, int):
        return -(-size * FS_PER_S // bandwidth)
    return -(-size.numerator * FS_PER_S // (size.denominator * bandwidth))
