"""OliVe: outliers keep their place and take that of their neighbour, the victim, which becomes zero.

Guo et al., "OliVe: Accelerating Large Language Models via Hardware-friendly Outlier-Victim Pair Quantization", ISCA 2023,
arXiv:2304.07493. Tensors are cut into adjacent pairs along memory. At 4 bits normal values are int4 without -8 or flint4 without
-0, outliers are abfloat E2M1; at 8 bits they are int8 without -128 and abfloat E4M3. The code that normal values give up marks the victim.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np

from workloads.errors import WorkloadError
from workloads.format import Format
from workloads.quantisers.ant import flint_magnitudes
from workloads.quantisers.base import LEAST_SCALE, Array, Field, Fields, Quantiser, Shape, blocks, channels, float_field, floats
from workloads.quantisers.grids import Grid

SIGMAS = 3
"""The scale search starts where mean + 3 standard deviations meet the end of the normal range."""
SEARCH = tuple(range(75, 151, 2))
"""Scales tried, in percent of that start. Steps of 2 % are the authors'; the ends of the range are ours."""
SAMPLED = 1 << 21
"""Values that the scale search looks at, at most: all of smaller tensors, else evenly spaced pairs."""
LARGEST_OUTLIER = 1 << 15
"""Outliers are limited to it, so that products of two fit a 32-bit accumulator."""


@dataclass(frozen=True)
class Kind:
    """A data type of normal values with its outliers: [code] tables, and where 3 sigma lie in units of the scale."""

    name: str
    bits: int
    normal: tuple[int, ...]  # magnitude by magnitude code
    outlier: tuple[int, ...]
    reach: int
    twos_complement: bool

    @property
    def identifier(self) -> int:
        """The code of a victim."""
        return 1 << (self.bits - 1)

    @cached_property
    def largest_normal(self) -> int:
        return max(self.normal)

    @cached_property
    def grid(self) -> Grid:
        """Normal values and outliers; half-way values go to the larger magnitude."""
        values = {float(sign * m) for m in (*self.normal, *self.outlier) for sign in (1, -1)}
        return Grid(tuple(values), "away")

    @cached_property
    def normal_table(self) -> Array:
        return _table(self.normal, self.bits, self.twos_complement)

    @cached_property
    def outlier_table(self) -> Array:
        return _table(self.outlier, self.bits, twos_complement=False)

    @cached_property
    def codes(self) -> Array:
        """Codes of the grid's values, in ascending order."""
        normal = {int(v): c for c, v in enumerate(self.normal_table) if c != self.identifier}
        outlier = {int(v): c for c, v in enumerate(self.outlier_table) if abs(v) > self.largest_normal}
        return np.array([{**outlier, **normal}[int(v)] for v in self.grid.values], np.uint8)


def _table(magnitudes: tuple[int, ...], bits: int, twos_complement: bool) -> Array:
    """Value by code; magnitudes below a sign, or two's complement of them."""
    half = 1 << (bits - 1)
    positive = np.zeros(half, np.float32)
    positive[: len(magnitudes)] = magnitudes
    if twos_complement:
        return np.concatenate([positive, [0], -positive[:0:-1]]).astype(np.float32)
    return np.concatenate([positive, -positive])


def abfloat(exponent_bits: int, mantissa_bits: int, bias: int) -> tuple[int, ...]:
    """Magnitudes of abfloat codes: (2^mantissa_bits + mantissa) 2^(exponent + bias); code 0 is not used and stands for zero.

    >>> abfloat(2, 1, 2)
    (0, 12, 16, 24, 32, 48, 64, 96)
    """
    steps = 1 << mantissa_bits
    return (0, *(min((steps + c % steps) << (c // steps + bias), LARGEST_OUTLIER) for c in range(1, steps << exponent_bits)))


@lru_cache
def kinds(bits: int) -> tuple[Kind, ...]:
    """The data types of normal values at 4 or 8 bits."""
    if bits == 8:
        wide = abfloat(4, 3, 4)
        distinct = tuple(m if m not in wide[:i] else 0 for i, m in enumerate(wide))  # the first code of those that are limited
        return (Kind("int8", 8, tuple(range(128)), distinct, 128, twos_complement=True),)
    return (
        Kind("int4", 4, tuple(range(8)), abfloat(2, 1, 2), 8, twos_complement=True),
        Kind("flint4", 4, flint_magnitudes(3), abfloat(2, 1, 3), 16, twos_complement=False),
    )


def victims(even: Array, odd: Array) -> tuple[Array, Array]:
    """Which even and which odd elements are victims, from which are outliers: of two outliers the even one is kept.

    >>> victims(np.array([True, True, False]), np.array([True, False, True]))[1].tolist()
    [True, True, False]
    """
    return odd & ~even, even


class Olive(Quantiser):
    """One scale per output channel, of least squared error after pairing among `SEARCH` percent of the 3-sigma one; the data type of
    normal values of least error over the tensor, the first among equals.

    `sampled` limits how many values the search looks at (None: all).
    """

    def __init__(self, format: Format, sampled: int | None = SAMPLED) -> None:
        super().__init__(format)
        self.sampled = sampled

    def encode(self, values: Array) -> Fields:
        rows = channels(values)
        if rows.shape[1] % 2:
            raise WorkloadError(f"format {self.format}: pairs need an even last dimension, found {values.shape}; pad the tensor")
        start = np.concatenate([_reach(part) for part in blocks(rows)])
        pairs = self._sample(rows)
        found = [self._search(pairs, start / kind.reach, kind) for kind in kinds(self.format.element_bits)]
        number = min(range(len(found)), key=lambda i: float(found[i][1].sum()))
        kind, scale = kinds(self.format.element_bits)[number], found[number][0]
        codes = np.empty(rows.shape, np.uint8)
        at = 0
        for part in blocks(rows):
            codes[at : at + len(part)] = encode_pairs(part / scale[at : at + len(part), None], kind)
            at += len(part)
        return {
            "code": Field(codes.reshape(values.shape), self.format.element_bits, "value"),
            "scale": float_field(scale, 32, "channel"),
            "type": Field(np.array([number], np.uint8), 1, "tensor"),
        }

    def _sample(self, rows: Array) -> tuple[Array, Array]:
        """Even and odd elements [channels, pairs] that the search looks at."""
        pairs = rows.shape[1] // 2
        wanted = pairs if self.sampled is None else max(1, self.sampled // (2 * len(rows)))
        step = max(1, pairs // wanted)
        return np.ascontiguousarray(rows[:, 0 :: 2 * step]), np.ascontiguousarray(rows[:, 1 :: 2 * step])

    def _search(self, pairs: tuple[Array, Array], start: Array, kind: Kind) -> tuple[Array, Array]:
        """(scales, squared errors) per channel."""
        best = np.maximum(start, LEAST_SCALE).astype(np.float32)
        least = np.full(len(best), np.inf)
        for percent in SEARCH:
            scale = np.maximum(start * np.float32(percent / 100), LEAST_SCALE).astype(np.float32)
            error, at = np.empty(len(scale)), 0
            for even in blocks(pairs[0]):
                own = scale[at : at + len(even)]
                error[at : at + len(even)] = _pair_error(even, pairs[1][at : at + len(even)], own, kind)
                at += len(even)
            better = error < least
            least[better], best[better] = error[better], scale[better]
        return best, least

    def decode(self, fields: Mapping[str, Field], shape: Shape) -> Array:
        kind = kinds(self.format.element_bits)[int(fields["type"].values[0])]
        rows = channels(fields["code"].values.reshape(shape))
        scale = floats(fields["scale"])
        out = np.empty(rows.shape, np.float32)
        at = 0
        for part in blocks(rows):
            out[at : at + len(part)] = decode_pairs(part, kind) * scale[at : at + len(part), None]
            at += len(part)
        return out.reshape(shape)


def _reach(rows: Array) -> Array:
    """max(|mean + 3 sigma|, |mean - 3 sigma|) of each channel."""
    mean = rows.mean(axis=1, dtype=np.float64)
    spread = SIGMAS * rows.std(axis=1, dtype=np.float64)
    return np.asarray(np.maximum(np.abs(mean + spread), np.abs(mean - spread)), np.float32)


def _pair_error(even: Array, odd: Array, scale: Array, kind: Kind) -> Array:
    """Squared error of each row after pairing."""
    scaled = [part / scale[:, None] for part in (even, odd)]
    near = [kind.grid.nearest(part) for part in scaled]
    outlier = [np.abs(part) > kind.largest_normal for part in near]
    total = np.zeros(len(even))
    for value, rounded, victim in zip(scaled, near, victims(*outlier), strict=True):
        rounded[victim] = 0
        rounded -= value
        total += np.einsum("ij,ij->i", rounded, rounded, dtype=np.float64)
    return total * scale.astype(np.float64) ** 2


def encode_pairs(scaled: Array, kind: Kind) -> Array:
    """Codes [rows, K] of values already divided by their scale."""
    index = kind.grid.index(scaled)
    codes = kind.codes.take(index)
    outlier = np.abs(kind.grid.values).take(index) > kind.largest_normal
    even, odd = victims(outlier[:, 0::2], outlier[:, 1::2])
    codes[:, 0::2][even] = kind.identifier
    codes[:, 1::2][odd] = kind.identifier
    return codes


def decode_pairs(codes: Array, kind: Kind) -> Array:
    """Values [rows, K] in units of the scale: what stands beside a victim is an outlier."""
    victim = codes == kind.identifier
    values = kind.normal_table.take(codes)
    beside = np.empty_like(victim)
    beside[:, 0::2], beside[:, 1::2] = victim[:, 1::2], victim[:, 0::2]
    np.copyto(values, kind.outlier_table.take(codes), where=beside)
    values[victim] = 0
    return values


@dataclass(frozen=True)
class PairStatistics:
    """Shares of pairs with no outlier, with one, and with two."""

    normal_normal: float
    outlier_normal: float
    outlier_outlier: float


def pair_statistics(values: Array, sigmas: float = SIGMAS) -> PairStatistics:
    """How often adjacent elements of a tensor lie beyond `sigmas` standard deviations from its mean."""
    flat = np.asarray(values, np.float64).ravel()
    beyond = np.abs(flat - flat.mean()) > sigmas * flat.std()
    beyond = beyond[: flat.size // 2 * 2].reshape(-1, 2).sum(axis=1)
    counts = np.bincount(beyond, minlength=3) / max(1, beyond.size)
    return PairStatistics(*(float(share) for share in counts))
