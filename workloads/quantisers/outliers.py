"""Formats that keep outliers apart, in a list with their places: GOBO and OLAccel, which OliVe is compared with.

Zadeh et al., "GOBO: Quantizing Attention-Based NLP Models for Low Latency and Energy Efficient Inference", MICRO 2020, arXiv:2005.03842;
Park, Kim and Yoo, "Energy-Efficient Neural Network Accelerator Based on Outlier-Aware Low-Precision Computation", ISCA 2018 (OLAccel).
What the papers leave to each layer is fixed here: the shares of outliers that they name on the whole.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import prod

import numpy as np

from workloads.format import Format
from workloads.quantisers.base import BLOCK, LEAST_SCALE, Array, Field, Fields, Quantiser, Shape, blocks, float_field, floats

DEVIATIONS = 3.2905
"""GOBO's outliers lie as many standard deviations from the mean: 0.1 % of a normal tensor."""
BINS = 1 << 14
"""Equal pieces of the range of the other values, whose means stand for them while the representatives are searched."""
ROUNDS = 50
SHARE = 0.03
"""OLAccel's outliers are this share of a tensor, the values of largest magnitude."""
LARGEST = 127
"""OLAccel's outliers have 8 bits in the unit of the 4-bit values."""
PLACES = 256
"""Values among which an 8-bit index finds an OLAccel outlier."""


def representatives(values: Array, bits: int) -> Array:
    """[2^bits] ascending fp32 representatives of values [n]: means of equally many values, then of the values nearest to each, until
    the sum of the distances no longer falls."""
    low, high = float(values.min()), float(values.max())
    count = 1 << bits
    if high == low:
        return np.full(count, low, np.float32)
    numbers, sums = np.zeros(BINS, np.int64), np.zeros(BINS)
    step = (high - low) / BINS
    for part in blocks(values):
        index = np.minimum(((part - np.float32(low)) * np.float32(1 / step)).astype(np.int32), BINS - 1)
        numbers += np.bincount(index, minlength=BINS)
        sums += np.bincount(index, part, minlength=BINS)
    used = numbers > 0
    number, total = numbers[used], sums[used]
    middle = total / number
    cells = np.minimum((np.cumsum(number) - number) * count // values.size, count - 1)
    best, least = np.zeros(count), np.inf
    for _ in range(ROUNDS):
        weight = np.bincount(cells, number, minlength=count)
        mean = np.bincount(cells, total, minlength=count) / np.maximum(weight, 1)
        found = np.sort(np.where(weight > 0, mean, mean[weight > 0].max()))
        cells = np.searchsorted((found[1:] + found[:-1]) / 2, middle, "right")
        distance = float((np.abs(middle - found[cells]) * number).sum())
        if distance >= least:
            break
        best, least = found, distance
    return best.astype(np.float32)


class Gobo(Quantiser):
    """Indices of 2^b representatives of a tensor; values far from its mean as they are (fp32), each with a 32-bit place."""

    def encode(self, values: Array) -> Fields:
        flat = values.ravel()
        mean, spread = float(flat.mean(dtype=np.float64)), float(flat.std(dtype=np.float64))
        places = np.concatenate(
            [
                start + np.flatnonzero(np.abs(flat[start : start + BLOCK] - mean) > DEVIATIONS * spread)
                for start in range(0, flat.size, BLOCK)
            ]
        )
        rest = np.delete(flat, places) if places.size else flat
        table = representatives(rest if rest.size else flat, self.format.element_bits)
        middles = (table[1:] + table[:-1]) * np.float32(0.5)
        codes = np.zeros(flat.size, np.uint8)
        start = 0
        for part in blocks(flat):
            own = codes[start : start + part.size]
            for middle in middles:
                own += part >= middle
            start += part.size
        codes[places] = 0
        return {
            "code": Field(codes.reshape(values.shape), self.format.element_bits, "value"),
            "place": Field(places.astype(np.uint32), 32, "group"),
            "outlier": float_field(flat[places], 32, "group"),
            "table": float_field(table, 32, "tensor"),
        }

    def decode(self, fields: Mapping[str, Field], shape: Shape) -> Array:
        out = floats(fields["table"]).take(fields["code"].values.ravel())
        out[fields["place"].values] = floats(fields["outlier"])
        return out.reshape(shape)


class OlAccel(Quantiser):
    """4-bit integers with one scale; the largest 3 % have 8 bits instead, in a list of 8-bit places, counted per 256 values."""

    def encode(self, values: Array) -> Fields:
        flat = values.ravel()
        magnitudes = np.abs(flat)
        kept = max(0, flat.size - 1 - int(SHARE * flat.size))
        limit = float(np.partition(magnitudes, kept)[kept])
        most = (1 << (self.format.element_bits - 1)) - 1
        scale = np.float32(max(limit / most if limit else float(magnitudes.max()) / LARGEST, LEAST_SCALE))
        whole = np.rint(flat / scale)
        places = np.flatnonzero(magnitudes > np.float32(limit))
        listed = np.clip(whole[places], -LARGEST, LARGEST).astype(np.int8)
        whole[places] = 0
        codes = np.clip(whole, -most, most).astype(np.int8).view(np.uint8) & np.uint8((1 << self.format.element_bits) - 1)
        counts = np.bincount(places // PLACES, minlength=-(-flat.size // PLACES))
        return {
            "code": Field(codes.reshape(values.shape), self.format.element_bits, "value"),
            "place": Field((places % PLACES).astype(np.uint8), 8, "group"),
            "outlier": Field(listed.view(np.uint8), 8, "group"),
            "count": Field(counts.astype(np.uint16), 16, "group"),
            "scale": float_field(np.array([scale]), 32, "tensor"),
        }

    def decode(self, fields: Mapping[str, Field], shape: Shape) -> Array:
        half = 1 << (self.format.element_bits - 1)
        whole = ((fields["code"].values.ravel().astype(np.int16) + half) & (2 * half - 1)) - half
        first = np.repeat(np.arange(fields["count"].values.size) * PLACES, fields["count"].values)
        whole[first + fields["place"].values] = fields["outlier"].values.view(np.int8)
        return (whole * floats(fields["scale"])).astype(np.float32).reshape(shape)


def listed_share(fields: Mapping[str, Field]) -> float:
    """Outliers over values."""
    return fields["place"].values.size / prod(fields["code"].values.shape)


def stored_bits(format: Format, share: float) -> float:
    """Bits per value with a `share` of outliers: their place and value on top of what every value has.

    >>> from workloads.format import parse_format
    >>> stored_bits(parse_format("gobo3"), 0.001), stored_bits(parse_format("olaccel4"), 0.03)
    (3.064, 4.5425)
    """
    if format.scheme == "gobo":
        return format.element_bits + 64 * share
    return format.element_bits + 16 / PLACES + 16 * share
