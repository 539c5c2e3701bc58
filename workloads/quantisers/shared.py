"""Blocks with a shared scale: OCP microscaling (MX), NVFP4 and block floating point."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from workloads.format import Format
from workloads.quantisers.base import Array, Field, Fields, Quantiser, Shape, blocks, float_field, floats, grouped, largest
from workloads.quantisers.floats import element

E8M0_BIAS = 127
MX_ELEMENTS = {
    "mxfp8": "fp8-e4m3",
    "mxfp8-e4m3": "fp8-e4m3",
    "mxfp8-e5m2": "fp8-e5m2",
    "mxfp6": "fp6-e3m2",
    "mxfp6-e3m2": "fp6-e3m2",
    "mxfp6-e2m3": "fp6-e2m3",
    "mxfp4": "fp4",
}
INT8_STEP = 64
"""MXINT8 counts 1/64; -2 (code -128) is left unused, so that codes are symmetric."""


def exponents(top: Array) -> Array:
    """floor(log2 x) of positive numbers; -127 for zero."""
    return np.where(top > 0, np.frexp(top)[1] - 1, -E8M0_BIAS).astype(np.int32)


class Mx(Quantiser):
    """32 values share 2^(c - 127): its exponent is that of the largest magnitude less the largest exponent of the elements.

    Elements round to nearest even and saturate. A block of zeros has c = 0.
    """

    def __init__(self, format: Format) -> None:
        super().__init__(format)
        self.element = element(MX_ELEMENTS[format.name]) if format.name in MX_ELEMENTS else None

    def encode(self, values: Array) -> Fields:
        rows = grouped(values, self.format)
        top = int(np.floor(np.log2(self.element.largest))) if self.element else 0
        shared = np.clip(exponents(largest(rows)) - top, -E8M0_BIAS, E8M0_BIAS)
        codes = np.empty(rows.shape, np.uint8)
        start = 0
        for part in blocks(rows):
            scaled = np.ldexp(part, -shared[start : start + len(part)])
            if self.element:
                codes[start : start + len(part)] = self.element.encode(scaled)
            else:
                whole = np.clip(np.rint(scaled * INT8_STEP), -127, 127)
                codes[start : start + len(part)] = whole.astype(np.int8).view(np.uint8)
            start += len(part)
        return {
            "code": Field(codes.reshape(values.shape), self.format.element_bits, "value"),
            "scale": Field((shared[:, 0] + E8M0_BIAS).astype(np.uint8), 8, "group"),
        }

    def decode(self, fields: Mapping[str, Field], shape: Shape) -> Array:
        rows = grouped(fields["code"].values.reshape(shape), self.format)
        shared = fields["scale"].values.astype(np.int32)[:, None] - E8M0_BIAS
        out = np.empty(rows.shape, np.float32)
        start = 0
        for part in blocks(rows):
            own = shared[start : start + len(part)]
            if self.element:
                out[start : start + len(part)] = np.ldexp(self.element.decode(part), own)
            else:
                out[start : start + len(part)] = np.ldexp(part.view(np.int8).astype(np.float32), own - 6)
            start += len(part)
        return out.reshape(shape)


class NvFp4(Quantiser):
    """E2M1 values in blocks of 16 with an E4M3 scale each and one fp32 scale for the tensor.

    The tensor's scale maps its largest magnitude to 6 x 448; a block whose scale rounds to zero holds zeros.
    """

    def encode(self, values: Array) -> Fields:
        rows = grouped(values, self.format)
        scales, values4 = element("fp8-e4m3"), element("fp4")
        top = largest(rows)
        tensor = np.float32(max(float(top.max()) / (values4.largest * scales.largest), float(np.finfo(np.float32).tiny)))
        scale_codes = scales.encode(top / (np.float32(values4.largest) * tensor))
        own = scales.decode(scale_codes) * tensor
        codes = np.empty(rows.shape, np.uint8)
        start = 0
        for part in blocks(rows):
            scale = own[start : start + len(part)]
            codes[start : start + len(part)] = values4.encode(np.where(scale > 0, part / np.where(scale > 0, scale, 1), 0))
            start += len(part)
        return {
            "code": Field(codes.reshape(values.shape), 4, "value"),
            "scale": Field(scale_codes[:, 0], 8, "group"),
            "tensor_scale": float_field(np.array([tensor]), 32, "tensor"),
        }

    def decode(self, fields: Mapping[str, Field], shape: Shape) -> Array:
        rows = grouped(fields["code"].values.reshape(shape), self.format)
        scale = element("fp8-e4m3").decode(fields["scale"].values) * floats(fields["tensor_scale"])[0]
        values = element("fp4").decode(rows)
        values *= scale[:, None]
        return values.reshape(shape)


class BlockFloat(Quantiser):
    """Values of a block share the exponent E of the largest magnitude; each has a sign and m bits in units of 2^(E - m + 1).

    Magnitudes round to nearest even and are limited to 2^m - 1; a block of zeros has the smallest exponent.
    """

    def encode(self, values: Array) -> Fields:
        rows, bits = grouped(values, self.format), self.format.element_bits - 1
        shared = np.maximum(exponents(largest(rows)), -E8M0_BIAS)
        codes = np.empty(rows.shape, np.uint16)
        start = 0
        for part in blocks(rows):
            units = np.ldexp(np.abs(part), bits - 1 - shared[start : start + len(part)])
            whole = np.minimum(np.rint(units), (1 << bits) - 1).astype(np.uint16)
            codes[start : start + len(part)] = whole | (np.signbit(part).astype(np.uint16) << np.uint16(bits))
            start += len(part)
        return {
            "code": Field(codes.reshape(values.shape), bits + 1, "value"),
            "scale": Field((shared[:, 0] + E8M0_BIAS).astype(np.uint8), 8, "group"),
        }

    def decode(self, fields: Mapping[str, Field], shape: Shape) -> Array:
        rows, bits = grouped(fields["code"].values.reshape(shape), self.format), self.format.element_bits - 1
        shared = fields["scale"].values.astype(np.int32)[:, None] - E8M0_BIAS
        out = np.empty(rows.shape, np.float32)
        start = 0
        for part in blocks(rows):
            magnitude = (part & ((1 << bits) - 1)).astype(np.float32)
            signed = np.where(part >> bits, -magnitude, magnitude)
            out[start : start + len(part)] = np.ldexp(signed, shared[start : start + len(part)] - (bits - 1))
            start += len(part)
        return out.reshape(shape)
