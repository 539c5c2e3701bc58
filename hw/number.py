"""Small floating-point formats as integer codes: the definitions that goldens and RTL share.

Values are exact in float64 for every format here. Encoding rounds to nearest, ties to even.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from hw.bits import Array
from hw.errors import HardwareError, nearest


@dataclass(frozen=True, slots=True)
class Float:
    """Sign, `exponent` bits and `fraction` bits, from the top down.

    `specials`: `ieee` has infinities and NaNs in the highest exponent; `fn` has one NaN (all ones) and no infinity;
    `none` has only finite values.
    """

    name: str
    exponent: int
    fraction: int
    bias: int
    specials: Literal["ieee", "fn", "none"]

    @property
    def width(self) -> int:
        return 1 + self.exponent + self.fraction

    @property
    def largest(self) -> int:
        """Magnitude code of the largest finite value."""
        match self.specials:
            case "ieee":
                return (((1 << self.exponent) - 1) << self.fraction) - 1
            case "fn":
                return (1 << (self.width - 1)) - 2
            case _:
                return (1 << (self.width - 1)) - 1

    @property
    def nan(self) -> int:
        """The quiet NaN that arithmetic produces. Raises `HardwareError` where the format has none."""
        match self.specials:
            case "ieee":
                return self.largest + 1 + (1 << (self.fraction - 1))
            case "fn":
                return self.largest + 1
            case _:
                raise HardwareError(f"{self.name} has no NaN")

    def finite(self, codes: Any) -> Array:
        """True where a code is a finite value."""
        return np.asarray((np.asarray(codes, np.int64) & ((1 << (self.width - 1)) - 1)) <= self.largest)

    def decode(self, codes: Any) -> Array:
        """float64 values of codes."""
        codes = np.asarray(codes, np.int64)
        magnitude = codes & ((1 << (self.width - 1)) - 1)
        field, fraction = magnitude >> self.fraction, magnitude & ((1 << self.fraction) - 1)
        significand = fraction + np.where(field > 0, 1 << self.fraction, 0)
        value = np.ldexp(significand.astype(np.float64), np.maximum(field, 1) - self.bias - self.fraction)
        if self.specials == "ieee":
            value = np.where(magnitude == self.largest + 1, np.inf, value)
        value = np.where(magnitude > self.largest + (self.specials == "ieee"), np.nan, value)
        return np.asarray(np.where(codes >> (self.width - 1) & 1, -value, value))

    def encode(self, values: Any, *, saturate: bool = False) -> Array:
        """Codes of float64 values, rounded to nearest even; beyond the largest value infinity (or NaN), or saturated."""
        values = np.asarray(values, np.float64)
        magnitude = np.abs(values)
        finite = np.isfinite(magnitude)
        safe = np.where(finite, magnitude, 0.0)
        exponent = np.maximum(np.where(safe > 0, np.frexp(safe)[1] - 1, 1 - self.bias), 1 - self.bias)
        quantum = np.rint(np.ldexp(safe, self.fraction - exponent)).astype(np.int64)
        code = quantum + ((exponent + self.bias - 1).astype(np.int64) << self.fraction)
        beyond = (code > self.largest) | np.isinf(values)
        over = self.largest if saturate or self.specials == "none" else self.largest + 1
        code = np.where(beyond, over, code)
        if self.specials != "none":
            code = np.where(np.isnan(values), self.nan, code)
        return np.asarray(code | (np.where(np.signbit(values) & ~np.isnan(values), 1, 0) << (self.width - 1)))


FLOATS: dict[str, Float] = {
    f.name: f
    for f in (
        Float("fp32", 8, 23, 127, "ieee"),  # IEEE 754 binary32
        Float("fp16", 5, 10, 15, "ieee"),  # IEEE 754 binary16
        Float("bf16", 8, 7, 127, "ieee"),
        Float("fp8-e4m3", 4, 3, 7, "fn"),  # OCP 8-bit Floating Point Specification 1.0
        Float("fp8-e5m2", 5, 2, 15, "ieee"),  # the same
        Float("fp6-e3m2", 3, 2, 3, "none"),  # OCP Microscaling Formats 1.0
        Float("fp6-e2m3", 2, 3, 1, "none"),  # the same
        Float("fp4", 2, 1, 1, "none"),  # the same, E2M1
    )
}


def float_format(name: str, among: tuple[str, ...] = tuple(FLOATS)) -> Float:
    """The float format called `name`. Raises `HardwareError` with the nearest name."""
    if name not in among:
        raise HardwareError(f"unknown float format {name!r}, expected one of {', '.join(among)}{nearest(name, among)}")
    return FLOATS[name]
