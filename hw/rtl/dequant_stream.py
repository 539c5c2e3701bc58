"""Codes times the scale of their group, rounded."""

from __future__ import annotations

from typing import Any

from amaranth.hdl import Cat, Const, Elaboratable, Module, Mux, Signal, Value, signed
from amaranth.lib import data

from hw.number import FLOATS
from hw.rtl.float import multiply, round_pack, signal, signed_magnitude
from hw.rtl.proof import Theorem
from hw.rtl.stream import Pipeline, StreamUnit

BF16 = FLOATS["bf16"]


def to_int8(m: Module, code: Any, scale: Any, fraction: int) -> Any:
    """code * scale / 2^fraction to nearest even, within -128..127."""
    product = signal(m, Value.cast(code).as_signed() * scale, "product")
    kept = product >> fraction
    up = product[fraction - 1] & (product[: fraction - 1].any() | product[fraction])
    rounded = signal(m, kept + up, "rounded")
    return Mux(rounded > 127, Const(127, signed(8)), Mux(rounded < -128, Const(-128, signed(8)), rounded[:8].as_signed()))


def to_bf16(m: Module, code: Any, scale: Any) -> Any:
    sign, magnitude = signed_magnitude(m, Value.cast(code).as_signed())
    exact = round_pack(m, BF16, sign, magnitude, Const(0, signed(2)))
    return multiply(m, BF16, exact, scale)


class DequantStreamRtl(StreamUnit):
    """A word with `is_scale` sets the scale of those that follow and yields nothing."""

    def __init__(self, bits: int, bf16: bool, lanes: int, scale_fraction: int) -> None:
        self.bits, self.bf16, self.lanes, self.scale_fraction = bits, bf16, lanes, scale_fraction
        out = 16 if bf16 else signed(8)
        word = {"codes": data.ArrayLayout(bits, lanes), "scale": 16 if bf16 else 8, "is_scale": 1}
        super().__init__(data.StructLayout(word), data.ArrayLayout(out, lanes))

    def elaborate(self, platform: Any) -> Module:
        m = Module()
        flow = Pipeline(m, self)
        word = self.operands.payload
        is_scale, loaded, *codes = flow.register(word.is_scale, word.scale, *(word.codes[i] for i in range(self.lanes)))
        scale = Signal.like(loaded)
        with m.If(is_scale):
            flow.update(scale.eq(loaded))
        results = [to_bf16(m, c, scale) if self.bf16 else to_int8(m, c, scale, self.scale_fraction) for c in codes]
        flow.emit(~is_scale, Cat(*(Value.cast(result)[: 16 if self.bf16 else 8] for result in results)))
        return m


class _Int8(Elaboratable):  # type: ignore[misc]
    def __init__(self, bits: int, fraction: int) -> None:
        self.fraction = fraction
        self.code, self.scale, self.result = Signal(bits, name="code"), Signal(8, name="scale"), Signal(8, name="result")

    def elaborate(self, platform: Any) -> Module:
        m = Module()
        m.d.comb += self.result.eq(to_int8(m, self.code, self.scale, self.fraction))
        return m


def int8_theorem(bits: int, fraction: int) -> Theorem:
    """The result is the real product, rounded to an integer to nearest even and clipped, for every code and scale."""
    design = _Int8(bits, fraction)
    to_real = "(_ to_fp 8 24)"
    power = f"(fp #b0 (_ bv{127 - fraction} 8) (_ bv0 23))"
    product = f"(fp.mul RNE ({to_real} RNE {{code}}) ((_ to_fp_unsigned 8 24) RNE {{scale}}))"
    rounded = f"(fp.roundToIntegral RNE (fp.mul RNE {product} {power}))"
    high, low = f"({to_real} RNE #x7f)", f"({to_real} RNE #x80)"
    clipped = f"(ite (fp.gt {rounded} {high}) {high} (ite (fp.lt {rounded} {low}) {low} {rounded}))"
    ports = {"code": design.code, "scale": design.scale, "result": design.result}
    return Theorem(design, ports, f"(fp.eq ({to_real} RNE {{result}}) {clipped})")
