"""Uniform integers, bipolar integers, signs and ternary weights.

Divisions are in fp32 and round to nearest even, by the scale as it is stored: fp16 per group, fp32 per channel or tensor.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from workloads.format import Format
from workloads.quantisers.base import (
    LEAST_SCALE,
    Array,
    Field,
    Fields,
    Per,
    Quantiser,
    Shape,
    blocks,
    channels,
    float_field,
    floats,
    grouped,
    half_scale,
    largest,
)


def scope(format: Format) -> tuple[Per, int]:
    """Where the scales of a format are stored, and in how many bits."""
    if format.group:
        return "group", 16
    return ("channel", 32) if "channel" in format.scheme else ("tensor", 32)


def rows_of(values: Array, format: Format) -> Array:
    """Values [scales, values per scale]."""
    if format.group:
        return grouped(values, format)
    return channels(values) if "channel" in format.scheme else values.reshape(1, -1)


def stored(scale: Array, format: Format) -> Array:
    """Scales as they are stored, in fp32."""
    return half_scale(scale) if format.group else np.maximum(scale, LEAST_SCALE).astype(np.float32)


def apply(rows: Array, scale: Array, out: Array, function: Callable[[Array, Array], Array]) -> None:
    """`function(part, scale of its rows)` into `out`, in pieces that fit a cache, whatever the length of the rows."""
    if len(rows) == 1:
        start = 0
        for part in blocks(rows[0]):
            out[0, start : start + part.size] = function(part, scale[0])
            start += part.size
        return
    start = 0
    for part in blocks(rows):
        out[start : start + len(part)] = function(part, scale[start : start + len(part)])
        start += len(part)


class Symmetric(Quantiser):
    """q = clip(round(w / s), -m, m) with m = 2^(b-1) - 1 and s = max |w| / m, in two's complement."""

    def encode(self, values: Array) -> Fields:
        rows, bits = rows_of(values, self.format), self.format.element_bits
        limit = (1 << (bits - 1)) - 1
        scale = stored(largest(rows) / np.float32(limit), self.format)
        codes = np.empty(rows.shape, np.int8)

        def code(part: Array, own: Array) -> Array:
            ratio = part / own
            np.rint(ratio, out=ratio)
            return np.clip(ratio, -limit, limit, out=ratio)

        apply(rows, scale, codes, code)
        per, width = scope(self.format)
        unsigned = codes.view(np.uint8) & np.uint8((1 << bits) - 1)
        return {"code": Field(unsigned.reshape(values.shape), bits, "value"), "scale": float_field(scale[:, 0], width, per)}

    def decode(self, fields: Mapping[str, Field], shape: Shape) -> Array:
        bits = self.format.element_bits
        shift = np.uint8(8 - bits)
        signed = (fields["code"].values << shift).view(np.int8) >> np.int8(8 - bits)
        return _scaled(signed.reshape(shape), floats(fields["scale"]), self.format, shape)


class Asymmetric(Quantiser):
    """q = clip(round(w / s) + z, 0, 2^b - 1) with s = (max - min) / (2^b - 1) and z = clip(round(-min / s), 0, 2^b - 1).

    The range always includes zero: where all values of a group have one sign, the rule would clip z and lose them.
    """

    def encode(self, values: Array) -> Fields:
        rows, top = rows_of(values, self.format), (1 << self.format.element_bits) - 1
        low = np.minimum(_row_reduce(rows, np.min), 0)
        high = np.maximum(_row_reduce(rows, np.max), 0)
        scale = stored((high - low) / np.float32(top), self.format)
        zero = np.clip(np.rint(-low / scale), 0, top).astype(np.float32)
        codes = np.empty(rows.shape, np.uint8)

        def code(part: Array, own: Array) -> Array:
            ratio = part / own[..., :1]
            np.rint(ratio, out=ratio)
            ratio += own[..., 1:]
            return np.clip(ratio, 0, top, out=ratio)

        apply(rows, np.concatenate([scale, zero], axis=1), codes, code)
        per, width = scope(self.format)
        return {
            "code": Field(codes.reshape(values.shape), self.format.element_bits, "value"),
            "scale": float_field(scale[:, 0], width, per),
            "zero": float_field(zero[:, 0], width, per),
        }

    def decode(self, fields: Mapping[str, Field], shape: Shape) -> Array:
        rows = rows_of(fields["code"].values.reshape(shape), self.format)
        scale, zero = floats(fields["scale"])[:, None], floats(fields["zero"])[:, None]
        out = np.empty(rows.shape, np.float32)
        apply(rows, np.concatenate([scale, zero], axis=1), out, lambda part, own: (part - own[..., 1:]) * own[..., :1])
        return out.reshape(shape)


class Bipolar(Quantiser):
    """An n-bit code u stands for the odd integer 2u - (2^n - 1), symmetric about zero without a sign bit.

    The scale maps the largest magnitude of a group (or channel) to 2^n - 1; what lies half-way goes to the even code.
    """

    def encode(self, values: Array) -> Fields:
        rows, top = _grouped_or_channels(values, self.format), (1 << self.format.element_bits) - 1
        scale = stored(largest(rows) / np.float32(top), self.format)
        codes = np.empty(rows.shape, np.uint8)

        def code(part: Array, own: Array) -> Array:
            half = (part / own + np.float32(top)) * np.float32(0.5)
            np.rint(half, out=half)
            return np.clip(half, 0, top, out=half)

        apply(rows, scale, codes, code)
        return {
            "code": Field(codes.reshape(values.shape), self.format.element_bits, "value"),
            "scale": float_field(scale[:, 0], *_channel_or_group(self.format)),
        }

    def decode(self, fields: Mapping[str, Field], shape: Shape) -> Array:
        rows = _grouped_or_channels(fields["code"].values.reshape(shape), self.format)
        odd = 2 * rows.astype(np.int16) - ((1 << self.format.element_bits) - 1)
        return (odd * floats(fields["scale"])[:, None]).reshape(shape)


def bipolar_matmul(left: Array, right: Array, left_bits: int, right_bits: int) -> Array:
    """[M, N] products of bipolar codes [M, K] and [N, K], bit plane by bit plane, exact: each is K - 2 popcount(a xor b).

    >>> bipolar_matmul(np.array([[3, 0]]), np.array([[1, 2]]), 2, 2).tolist()  # 3 x -1 + -3 x 1
    [[-6]]
    """
    total = np.zeros((len(left), len(right)), np.int64)
    length = left.shape[1]
    for i in range(left_bits):
        a = np.packbits((left >> i) & 1, axis=1)
        for j in range(right_bits):
            b = np.packbits((right >> j) & 1, axis=1)
            differing = np.bitwise_count(a[:, None, :] ^ b[None, :, :]).sum(axis=2, dtype=np.int64)
            total += (length - 2 * differing) << (i + j)
    return total


class Binary(Quantiser):
    """The sign of a value times the mean magnitude of its channel or group; zero counts as positive."""

    def encode(self, values: Array) -> Fields:
        rows = _grouped_or_channels(values, self.format)
        mean = np.concatenate([np.abs(part).mean(axis=1, dtype=np.float64) for part in blocks(rows)])[:, None]
        scale = stored(mean, self.format)
        code = Field((values >= 0).astype(np.uint8), 1, "value")
        return {"code": code, "scale": float_field(scale[:, 0], *_channel_or_group(self.format))}

    def decode(self, fields: Mapping[str, Field], shape: Shape) -> Array:
        rows = _grouped_or_channels(fields["code"].values.reshape(shape), self.format)
        scale = floats(fields["scale"])[:, None]
        return np.where(rows > 0, scale, -scale).astype(np.float32).reshape(shape)


class Ternary(Quantiser):
    """BitNet b1.58: t = clip(round(w / s), -1, 1) with s = mean |w| of the tensor.

    `ternary` stores 2-bit codes (0: 0, 1: +1, 3: -1), `ternary-dense` five to a byte, the first in the lowest of five base-3 digits
    of value + 1; the last byte is filled up with zeros.
    """

    def encode(self, values: Array) -> Fields:
        total = sum(float(np.abs(part).sum(dtype=np.float64)) for part in blocks(values.ravel()))
        scale = np.float32(max(total / values.size, LEAST_SCALE))
        signs = np.empty(values.size, np.int8)
        apply(values.reshape(1, -1), scale.reshape(1, 1), signs[None], lambda part, own: np.clip(np.rint(part / own), -1, 1))
        fields = {"scale": float_field(scale.reshape(1), 32, "tensor")}
        if self.format.name != "ternary-dense":
            return {"code": Field((signs.view(np.uint8) & np.uint8(3)).reshape(values.shape), 2, "value"), **fields}
        digits = np.pad((signs + 1).astype(np.uint8), (0, -signs.size % 5), constant_values=1).reshape(-1, 5)
        return {"code": Field(digits @ np.array([1, 3, 9, 27, 81], np.uint8), 8, "value"), **fields}

    def decode(self, fields: Mapping[str, Field], shape: Shape) -> Array:
        codes, scale = fields["code"].values.ravel(), floats(fields["scale"])[0]
        if self.format.name != "ternary-dense":
            return np.array([0, scale, 0, -scale], np.float32).take(codes).reshape(shape)
        table = (np.arange(256)[:, None] // np.array([1, 3, 9, 27, 81]) % 3 - 1).astype(np.float32) * scale
        count = int(np.prod(shape))
        return np.asarray(table[codes].ravel()[:count].reshape(shape))


def _channel_or_group(format: Format) -> tuple[int, Per]:
    return (16, "group") if format.group else (32, "channel")


def _grouped_or_channels(values: Array, format: Format) -> Array:
    return grouped(values, format) if format.group else channels(values)


def _row_reduce(rows: Array, function: Callable[..., Array]) -> Array:
    return np.concatenate([function(part, axis=1) for part in blocks(rows)])[:, None]


def _scaled(codes: Array, scale: Array, format: Format, shape: Shape) -> Array:
    rows = rows_of(codes, format)
    out = np.empty(rows.shape, np.float32)
    apply(rows, scale[:, None], out, lambda part, own: part * own)
    return out.reshape(shape)
