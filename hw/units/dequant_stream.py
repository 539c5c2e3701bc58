"""Group-scaled integer weights of 3, 4 or 5 bits to int8 or bf16, as they stream from memory."""

from __future__ import annotations

from collections.abc import Iterator
from math import ceil
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field, model_validator

from hw.bits import Array, pack, unpack
from hw.errors import HardwareError
from hw.gemm import codes_of, integers, shapes, vector
from hw.number import FLOATS
from hw.quantity import Count
from hw.unit import Unit
from hw.work import Case, Vector, Work


class DequantStream(Unit, kind="dequant_stream"):
    """`lanes` codes per cycle, after one cycle in which the scale of their group arrives.

    Codes are two's complement integers of `bits`. Scales to int8 are unsigned 8-bit numbers in units of 2^-`scale_fraction`
    and results round to nearest even and saturate; scales to bf16 are bf16 codes and results are the correctly rounded products.
    """

    bits: Annotated[int, Field(ge=3, le=5)] = 4
    target: Literal["int8", "bf16"] = "int8"
    group: Count = 128
    lanes: Count = 8
    scale_fraction: Annotated[int, Field(ge=1, le=8)] = 4

    @model_validator(mode="after")
    def _whole(self) -> DequantStream:
        if self.group % self.lanes:
            raise HardwareError(f"group: expected a multiple of the {self.lanes} lanes, found {self.group}")
        return self

    @property
    def scale_bits(self) -> int:
        return 8 if self.target == "int8" else 16

    def cycles(self, work: Work) -> int:
        """One word per group for the scale, then one per `lanes` codes; two cycles from the last to its results.

        >>> DequantStream(group=128, lanes=8).cycles(Vector(elements=256))
        35
        """
        elements = vector(work).elements
        return ceil(elements / self.group) + ceil(elements / self.lanes) - 1 + 2

    def golden(self, *operands: Any) -> Array:
        """int8 values or bf16 codes of a vector of codes, from one scale per group."""
        codes, scales = integers("codes", operands[0], codes_of(self.bits)), integers("scales", operands[1], codes_of(self.scale_bits))
        if scales.size != ceil(codes.size / self.group):
            raise HardwareError(f"expected {ceil(codes.size / self.group)} scales, one for each {self.group} codes, found {scales.size}")
        value = np.where(codes >> (self.bits - 1) & 1, codes - (1 << self.bits), codes)
        scale = np.repeat(scales, self.group)[: len(codes)]
        if self.target == "int8":
            return np.asarray(np.clip(np.rint(value * scale / (1 << self.scale_fraction)), -128, 127).astype(np.int64))
        with np.errstate(invalid="ignore"):
            return FLOATS["bf16"].encode(value.astype(np.float64) * FLOATS["bf16"].decode(scale))

    def cases(self, rng: Any) -> Iterator[Case]:
        for number, (size, _, _) in enumerate(shapes(rng, (2 * self.group, 1, 1))):
            groups = ceil(size / self.group)
            if self.target == "int8" or number % 3 == 0:
                scales = rng.integers(0, 1 << self.scale_bits, groups)
            else:
                scales = FLOATS["bf16"].encode(rng.normal(size=groups))
            yield Case(Vector(size), (rng.integers(0, 1 << self.bits, size), scales))

    def whole_space(self) -> Iterator[Case]:
        """Every code with every scale of 8 bits; of bf16 scales there are too many."""
        if self.target == "int8":
            each = ceil((1 << self.bits) / self.group)  # groups that hold all codes
            codes = np.tile(np.arange(each * self.group) % (1 << self.bits), 1 << self.scale_bits)
            yield Case(Vector(len(codes)), (codes, np.repeat(np.arange(1 << self.scale_bits), each)))

    @classmethod
    def samples(cls) -> tuple[DequantStream, ...]:
        small = {"group": 12, "lanes": 4}
        return (
            cls(group=16),
            cls.model_validate({"bits": 3, **small}),
            cls.model_validate({"bits": 5, "scale_fraction": 7, **small}),
            cls.model_validate({"bits": 4, "target": "bf16", "group": 6, "lanes": 2}),
        )

    def rtl(self) -> Any:
        from hw.rtl.dequant_stream import DequantStreamRtl

        return DequantStreamRtl(self.bits, self.target == "bf16", self.lanes, self.scale_fraction)

    def results(self, work: Work) -> int:
        return ceil(vector(work).elements / self.lanes)

    def encode(self, *operands: Any) -> list[int]:
        codes, scales = (np.asarray(x, np.int64) for x in operands)
        words: list[int] = []
        for number, scale in enumerate(scales):
            part = codes[number * self.group : (number + 1) * self.group]
            rows = np.pad(part, (0, -len(part) % self.lanes)).reshape(-1, self.lanes)
            lanes = np.concatenate([np.zeros((1, self.lanes), np.int64), rows])
            field = np.where(np.arange(len(lanes)) == 0, scale, 0)
            words += pack((lanes, self.bits), (field, self.scale_bits), (np.arange(len(lanes)) == 0, 1))
        return words

    def decode(self, words: list[int], work: Work) -> Array:
        field = (self.lanes, 8, True) if self.target == "int8" else (self.lanes, 16, False)
        return unpack(words, field)[0].reshape(-1)[: vector(work).elements]

    def proofs(self) -> dict[str, Any]:
        from hw.rtl.dequant_stream import int8_theorem
        from hw.rtl.float import product_theorem

        if self.target == "int8":
            return {"rounded_and_saturated_product": int8_theorem(self.bits, self.scale_fraction)}
        return {"bf16_product_is_ieee": product_theorem(FLOATS["bf16"])}
