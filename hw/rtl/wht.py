"""Butterflies: sums and differences of elements that lie half a block apart."""

from __future__ import annotations

from typing import Any

from amaranth.hdl import Cat, Elaboratable, Module, Signal, signed
from amaranth.lib import data

from hw.rtl.proof import Theorem
from hw.rtl.stream import Pipeline, StreamUnit
from hw.units.wht import hadamard


def stage(values: list[Any], span: int) -> list[Any]:
    """One stage: elements `span` apart become their sum and their difference."""
    found = list(values)
    for i in range(len(values)):
        if not i & span:
            found[i], found[i + span] = values[i] + values[i + span], values[i] - values[i + span]
    return found


class WhtRtl(StreamUnit):
    def __init__(self, points: int, width: int) -> None:
        self.points, self.width = points, width
        out = width + points.bit_length() - 1
        super().__init__(data.ArrayLayout(signed(width), points), data.ArrayLayout(signed(out), points))

    def elaborate(self, platform: Any) -> Module:
        m = Module()
        flow = Pipeline(m, self)
        values = [self.operands.payload[i] for i in range(self.points)]
        span, width = 1, self.width
        while 2 * span < self.points:
            width += 1
            values = [v[:width].as_signed() for v in flow.register(*(v[:width].as_signed() for v in stage(values, span)))]
            span *= 2
        flow.emit(1, Cat(*(v[: width + 1] for v in stage(values, span))))
        return m


class _Butterflies(Elaboratable):  # type: ignore[misc]
    def __init__(self, points: int, width: int) -> None:
        self.points, self.width = points, width
        self.values = Signal(points * width, name="values")
        self.out = width + points.bit_length() - 1
        self.result = Signal(points * self.out, name="result")

    def elaborate(self, platform: Any) -> Module:
        m = Module()
        values: list[Any] = [self.values.word_select(i, self.width).as_signed() for i in range(self.points)]
        span = 1
        while span < self.points:
            values = stage(values, span)
            span *= 2
        m.d.comb += self.result.eq(Cat(*(v[: self.out] for v in values)))
        return m


def butterfly_theorem(points: int, width: int) -> Theorem:
    """Each result is the signed sum of the inputs that Hadamard's matrix asks for."""
    design = _Butterflies(points, width)
    rows, out = hadamard(points), design.out

    def term(i: int) -> str:
        return f"((_ sign_extend {out - width}) ((_ extract {width * i + width - 1} {width * i}) {{values}}))"

    claims = []
    for j in range(points):
        sum_ = term(0)
        for i in range(1, points):
            sum_ = f"({'bvadd' if rows[i, j] > 0 else 'bvsub'} {sum_} {term(i)})"
        claims.append(f"(= ((_ extract {out * j + out - 1} {out * j}) {{result}}) {sum_})")
    return Theorem(design, {"values": design.values, "result": design.result}, f"(and {' '.join(claims)})")
