"""Small floating-point formats: rounded to nearest even, saturating, subnormals kept."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np

from workloads.errors import WorkloadError
from workloads.format import Format
from workloads.quantisers.base import Array, Field, Fields, Quantiser, Shape, blocks, float_field, floats, real

KINDS: dict[str, Any] = {
    "fp16": np.float16,
    "bf16": ml_dtypes.bfloat16,
    "fp8": ml_dtypes.float8_e4m3fn,
    "fp8-e4m3": ml_dtypes.float8_e4m3fn,
    "fp8-e5m2": ml_dtypes.float8_e5m2,
    "fp6": ml_dtypes.float6_e3m2fn,
    "fp6-e3m2": ml_dtypes.float6_e3m2fn,
    "fp6-e2m3": ml_dtypes.float6_e2m3fn,
    "fp4": ml_dtypes.float4_e2m1fn,
}
"""Element types of IEEE 754, OCP FP8 1.0 and OCP MX 1.0."""


@dataclass(frozen=True)
class Element:
    """A float type: its `width` in bits, its largest value, and codes to and from fp32."""

    name: str
    width: int
    largest: float

    def encode(self, values: Array) -> Array:
        """Codes of fp32 values; beyond the largest value they saturate."""
        kind = KINDS[self.name]
        codes = np.empty(values.shape, np.uint16 if self.width > 8 else np.uint8)
        flat, out, start = values.reshape(-1), codes.reshape(-1), 0
        for part in blocks(flat):
            limited = np.clip(part, -self.largest, self.largest).astype(kind)
            out[start : start + part.size] = limited.view(codes.dtype)
            start += part.size
        return codes

    def decode(self, codes: Array) -> Array:
        """fp32 values of codes."""
        if self.width > 8:
            wide: Array = np.ascontiguousarray(codes, np.uint16).view(KINDS[self.name]).astype(np.float32)
            return wide
        table: Array = np.arange(1 << self.width, dtype=np.uint8).view(KINDS[self.name]).astype(np.float32)
        return table.take(codes)


@dataclass(frozen=True)
class Minifloat(Element):
    """`exponent` and `mantissa` bits below a sign, bias 2^(exponent - 1) - 1, every code a finite number."""

    exponent: int = 0
    mantissa: int = 0

    @property
    def bias(self) -> int:
        return (1 << (self.exponent - 1)) - 1

    def encode(self, values: Array) -> Array:
        codes = np.empty(values.shape, np.uint32)
        flat, out, start = values.reshape(-1), codes.reshape(-1), 0
        for part in blocks(flat):
            magnitude = np.minimum(np.abs(part), self.largest)
            exponent = np.maximum(np.frexp(magnitude)[1] - 1, 1 - self.bias)
            quantum = np.rint(np.ldexp(magnitude, self.mantissa - exponent)).astype(np.int64)
            code = quantum + ((exponent + self.bias - 1).astype(np.int64) << self.mantissa)
            code = np.where(magnitude > 0, code, 0)
            out[start : start + part.size] = code | (np.signbit(part).astype(np.int64) << (self.width - 1))
            start += part.size
        return codes

    def decode(self, codes: Array) -> Array:
        magnitude = np.arange(1 << (self.width - 1))
        field, fraction = magnitude >> self.mantissa, magnitude & ((1 << self.mantissa) - 1)
        significand = fraction + np.where(field > 0, 1 << self.mantissa, 0)
        values = np.ldexp(significand.astype(np.float64), np.maximum(field, 1) - self.bias - self.mantissa).astype(np.float32)
        return np.concatenate([values, -values]).take(codes)


def element(name: str) -> Element:
    """The float type called `name`: one of `KINDS`, or `e4m3` and its like. Raises `WorkloadError` for another name."""
    if match := re.fullmatch(r"e([2-7])m([1-9])", name):
        exponent, mantissa = int(match[1]), int(match[2])
        top = (1 << exponent) - 1 - ((1 << (exponent - 1)) - 1)
        return Minifloat(name, 1 + exponent + mantissa, float(2.0**top * (2 - 2.0**-mantissa)), exponent, mantissa)
    if name not in KINDS:
        raise WorkloadError(f"float type {name!r}: unknown, expected one of {', '.join(KINDS)} or e4m3 and its like")
    width = int(name.removeprefix("b").removeprefix("fp").removeprefix("f").partition("-")[0])
    return Element(name, width, float(ml_dtypes.finfo(KINDS[name]).max))  # type: ignore[no-untyped-call]


class Cast(Quantiser):
    """Rounds to fp32, fp16 or bf16 without a scale; values beyond the largest saturate."""

    def encode(self, values: Array) -> Fields:
        if self.format.name == "fp32":
            return {"code": Field(values.view(np.uint32), 32, "value")}
        return {"code": Field(element(self.format.name).encode(values), 16, "value")}

    def decode(self, fields: Mapping[str, Field], shape: Shape) -> Array:
        codes = fields["code"].values.reshape(shape)
        return codes.view(np.float32) if self.format.name == "fp32" else element(self.format.name).decode(codes)


class Scaled(Quantiser):
    """A small float times one fp32 scale per tensor, which maps the largest magnitude to the largest value."""

    def __init__(self, format: Format) -> None:
        super().__init__(format)
        self.element = element(format.name)

    def prepared(self, values: Any) -> Array:
        return real(values, self.format)

    def encode(self, values: Array) -> Fields:
        top = max(float(values.max()), -float(values.min()))
        scale = np.float32(max(top / self.element.largest, float(np.finfo(np.float32).tiny)) if top else 1)
        codes = np.empty(values.size, np.uint32 if self.element.width > 8 else np.uint8)
        start = 0
        for part in blocks(values.ravel()):
            codes[start : start + part.size] = self.element.encode(part / scale)
            start += part.size
        return {
            "code": Field(codes.reshape(values.shape), self.element.width, "value"),
            "scale": float_field(np.array([scale]), 32, "tensor"),
        }

    def decode(self, fields: Mapping[str, Field], shape: Shape) -> Array:
        values = self.element.decode(fields["code"].values.reshape(shape))
        values *= floats(fields["scale"])[0]
        return values
