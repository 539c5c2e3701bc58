"""L-Mul: the magnitude codes of two floats and a constant, added."""

from __future__ import annotations

from typing import Any

from amaranth.hdl import Cat, Const, Elaboratable, Module, Mux, Signal, Value
from amaranth.lib import data

from hw.number import FLOATS, Float
from hw.rtl.float import add, signal
from hw.rtl.proof import Theorem
from hw.rtl.stream import Pipeline, StreamUnit
from hw.units.lmul import offset_bits


def lmul(m: Module, form: Float, x: Any, y: Any) -> Signal:
    """The L-Mul product of two codes."""
    x, y = Value.cast(x), Value.cast(y)
    top = form.width - 1
    a, b = x[:top], y[:top]
    sign = x[top] ^ y[top]
    constant = (1 << (form.fraction - offset_bits(form.fraction))) - (form.bias << form.fraction)
    code = signal(m, a + b + Const(constant), "code")
    zero = ~a[form.fraction :].any() | ~b[form.fraction :].any()
    if form.specials == "ieee":
        infinite = (a == form.largest + 1) | (b == form.largest + 1)
        nan = (a > form.largest + 1) | (b > form.largest + 1) | (zero & infinite)
    else:
        infinite, nan = Const(0), (a > form.largest) | (b > form.largest)
    saturated = Mux(infinite | (code > form.largest), form.largest, code[:top])
    finite = Mux(zero | ((code < (1 << form.fraction)) & ~infinite), 0, saturated)
    return signal(m, Mux(nan, form.nan, Cat(finite[:top], sign)), "lmul")


def widen(m: Module, form: Float, code: Any) -> Signal:
    """The fp32 code of an L-Mul product, which is never subnormal or infinite."""
    code, wide = Value.cast(code), FLOATS["fp32"]
    top = form.width - 1
    magnitude = code[:top]
    exponent = Mux(magnitude.any(), magnitude[form.fraction :] + (wide.bias - form.bias), 0)
    fraction = Cat(Const(0, wide.fraction - form.fraction), magnitude[: form.fraction])
    value = Cat(fraction, exponent[: wide.exponent], code[top])
    return signal(m, Mux(magnitude > form.largest, wide.nan, value), "wide")


class LmulRtl(StreamUnit):
    """`lanes` products per word: operands `x` and `y` in, products one cycle later."""

    def __init__(self, form: Float, lanes: int) -> None:
        self.form, self.lanes = form, lanes
        vector = data.ArrayLayout(form.width, lanes)
        super().__init__(data.StructLayout({"x": vector, "y": vector}), vector)

    def elaborate(self, platform: Any) -> Module:
        m = Module()
        flow = Pipeline(m, self)
        word = self.operands.payload
        flow.emit(1, Cat(*(lmul(m, self.form, word.x[i], word.y[i]) for i in range(self.lanes))))
        return m


class LmulDotRtl(StreamUnit):
    """`lanes` products per word, a chain of fp32 adders with one stage each, and an accumulator; a result after `closes`."""

    def __init__(self, form: Float, lanes: int) -> None:
        self.form, self.lanes = form, lanes
        vector = data.ArrayLayout(form.width, lanes)
        super().__init__(data.StructLayout({"x": vector, "y": vector, "closes": 1}), 32)

    def elaborate(self, platform: Any) -> Module:
        m = Module()
        flow, wide = Pipeline(m, self), FLOATS["fp32"]
        word = self.operands.payload
        products = [widen(m, self.form, lmul(m, self.form, word.x[i], word.y[i])) for i in range(self.lanes)]
        closes, running, *waiting = flow.register(word.closes, *products)
        while waiting:
            closes, running, *waiting = flow.register(closes, add(m, wide, running, waiting[0]), *waiting[1:])
        opening = Signal(init=1)
        total = Mux(opening, running, add(m, wide, self.result.payload, running))
        held = Signal(32)
        m.d.comb += self.result.payload.eq(held)
        flow.update(opening.eq(closes), held.eq(total))
        flow.emit(closes)
        return m


class _Product(Elaboratable):  # type: ignore[misc]
    def __init__(self, form: Float) -> None:
        self.form = form
        self.x, self.y, self.result = (Signal(form.width, name=name) for name in ("x", "y", "result"))

    def elaborate(self, platform: Any) -> Module:
        m = Module()
        m.d.comb += self.result.eq(lmul(m, self.form, self.x, self.y))
        return m


def adder_theorem(form: Float) -> Theorem:
    """For every pair of normal operands: the product is the sum of the integers, where that is a normal code of the format."""
    design = _Product(form)
    width, top = form.width, form.width - 1
    wide = width + 4

    def magnitude(name: str) -> str:
        return f"((_ zero_extend {wide - top}) ((_ extract {top - 1} 0) {{{name}}}))"

    def number(value: int) -> str:
        return f"(_ bv{value % (1 << wide)} {wide})"

    constant = (1 << (form.fraction - offset_bits(form.fraction))) - (form.bias << form.fraction)
    code = f"(bvadd (bvadd {magnitude('x')} {magnitude('y')}) {number(constant)})"
    smallest = number(1 << form.fraction)
    normal = [f"(bvule {smallest} {magnitude(n)}) (bvule {magnitude(n)} {number(form.largest)})" for n in ("x", "y")]
    clipped = f"(ite (bvslt {code} {smallest}) {number(0)} (ite (bvsgt {code} {number(form.largest)}) {number(form.largest)} {code}))"
    sign = f"(bvxor ((_ extract {top} {top}) {{x}}) ((_ extract {top} {top}) {{y}}))"
    claim = (
        f"(=> (and {' '.join(normal)}) (and (= {magnitude('result')} {clipped}) "
        f"(= ((_ extract {top} {top}) {{result}}) {sign})))"
    )
    return Theorem(design, {"x": design.x, "y": design.y, "result": design.result}, claim)
