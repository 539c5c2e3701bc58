"""Exact integer dot product of one block per cycle, converted to fp32 and accumulated there."""

from __future__ import annotations

from typing import Any

from amaranth.hdl import Cat, Const, Elaboratable, Module, Mux, Signal, Value, signed
from amaranth.lib import data

from hw.number import FLOATS
from hw.rtl import float as ieee
from hw.rtl.proof import Theorem
from hw.rtl.stream import Pipeline, StreamUnit, total
from hw.units.block_dot import SCALE_BIAS, Element

WIDE = FLOATS["fp32"]


def integer(m: Module, element: Element, code: Any) -> tuple[Any, Any, Any]:
    """Signed significand, left shift and "is not a finite number" of a code."""
    code = Value.cast(code)
    match element.form:
        case "twos":
            return code.as_signed(), Const(0, 1), Const(0)
        case "magnitude":
            return Mux(code[-1], -code[:-1], code[:-1]), Const(0, 1), Const(0)
    form = FLOATS[element.form]
    parts = ieee.unpack(m, code, form)
    return Mux(parts.sign, -parts.significand, parts.significand), (parts.exponent - 1)[: form.exponent], parts.nan | parts.infinite


def widest_shift(element: Element) -> int:
    """The largest sum of the left shifts of two finite elements."""
    if element.form in ("twos", "magnitude"):
        return 0
    form = FLOATS[element.form]
    return 2 * ((form.largest >> form.fraction) - 1)


class BlockDotRtl(StreamUnit):
    def __init__(self, element: Element, block: int) -> None:
        self.element, self.block = element, block
        vector = data.ArrayLayout(element.width, block)
        word = {"left": vector, "right": vector, "left_scale": 8, "right_scale": 8, "closes": 1}
        super().__init__(data.StructLayout(word), WIDE.width)

    def elaborate(self, platform: Any) -> Module:
        m = Module()
        flow = Pipeline(m, self)
        word = self.operands.payload
        products, shifts, lost = [], [], []
        for i in range(self.block):
            a, b = (integer(m, self.element, side[i]) for side in (word.left, word.right))
            products.append(ieee.signal(m, a[0] * b[0]))
            shifts.append(ieee.signal(m, a[1] + b[1]))
            lost += [a[2], b[2]]
        if self.element.scale_nan:
            lost += [word.left_scale.all(), word.right_scale.all()]
        exponent = word.left_scale + word.right_scale - Const(2 * (SCALE_BIAS + self.element.fraction))
        nan = Cat(*lost).any()
        closes, exponent, nan, *parts = flow.register(word.closes, exponent, nan, *products, *shifts)
        # one bit for the sign, the significands' product, its shift, and the growth of the sum
        width = len(parts[0]) + widest_shift(self.element) + self.block.bit_length()
        terms = ((p << s)[:width].as_signed() for p, s in zip(parts[: self.block], parts[self.block :], strict=True))
        closes, exponent, nan, sum_ = flow.register(closes, exponent, nan, total(terms)[:width].as_signed())
        sign, magnitude = ieee.signed_magnitude(m, sum_)
        code = Mux(nan, WIDE.nan, ieee.round_pack(m, WIDE, sign, magnitude, exponent))
        closes, term = flow.register(closes, code)
        opening, held = Signal(init=1), Signal(WIDE.width)
        m.d.comb += self.result.payload.eq(held)
        flow.update(opening.eq(closes), held.eq(Mux(opening, term, ieee.add(m, WIDE, held, term))))
        flow.emit(closes)
        return m


class _Elements(Elaboratable):  # type: ignore[misc]
    """The shifted product of two elements."""

    def __init__(self, element: Element) -> None:
        self.element = element
        self.a, self.b = Signal(element.width, name="a"), Signal(element.width, name="b")
        self.width = 2 * element.width + widest_shift(element) + 2
        self.result, self.lost = Signal(signed(self.width), name="result"), Signal(name="lost")

    def elaborate(self, platform: Any) -> Module:
        m = Module()
        a, b = (integer(m, self.element, code) for code in (self.a, self.b))
        m.d.comb += [self.result.eq((a[0] * b[0]) << (a[1] + b[1])), self.lost.eq(a[2] | b[2])]
        return m


def element_theorem(element: Element) -> Theorem:
    """The shifted product is the product of the two values, for every pair of codes.

    For float elements the values are those of SMT-LIB's theory of floating point, in a format wide enough to be exact.
    """
    design = _Elements(element)
    ports = {"a": design.a, "b": design.b, "result": design.result, "lost": design.lost}
    width = design.width
    if element.form in ("twos", "magnitude"):

        def value(port: str) -> str:
            top = element.width - 1
            if element.form == "twos":
                return f"((_ sign_extend {width - element.width}) {{{port}}})"
            magnitude = f"((_ zero_extend {width - top}) ((_ extract {top - 1} 0) {{{port}}}))"
            return f"(ite (= ((_ extract {top} {top}) {{{port}}}) #b1) (bvneg {magnitude}) {magnitude})"

        return Theorem(design, ports, f"(= {{result}} (bvmul {value('a')} {value('b')}))")
    form = FLOATS[element.form]
    wide = "(_ to_fp 11 53)"

    def real(port: str) -> str:
        """The value of a finite code over the format's smallest step: significand times 2^(exponent field - 1)."""
        top = form.width - 1
        field = f"((_ extract {top - 1} {form.fraction}) {{{port}}})"
        normal = f"(distinct {field} (_ bv0 {form.exponent}))"
        fraction = f"((_ extract {form.fraction - 1} 0) {{{port}}})"
        significand = f"(concat #b0 (ite {normal} #b1 #b0) {fraction})"
        exponent = f"(bvadd ((_ zero_extend {11 - form.exponent}) (ite {normal} {field} (_ bv1 {form.exponent}))) (_ bv1022 11))"
        size = f"(fp.mul RNE ({wide} RNE {significand}) (fp #b0 {exponent} (_ bv0 52)))"
        return f"(ite (= ((_ extract {top} {top}) {{{port}}}) #b1) (fp.neg {size}) {size})"

    claim = f"(fp.eq ({wide} RNE {{result}}) (fp.mul RNE {real('a')} {real('b')}))"
    return Theorem(design, ports, f"(=> (= {{lost}} #b0) {claim})")


class _Conversion(Elaboratable):  # type: ignore[misc]
    def __init__(self, width: int) -> None:
        self.magnitude, self.exponent = Signal(width, name="magnitude"), Signal(signed(10), name="exponent")
        self.sign, self.result = Signal(name="sign"), Signal(WIDE.width, name="result")

    def elaborate(self, platform: Any) -> Module:
        m = Module()
        m.d.comb += self.result.eq(ieee.round_pack(m, WIDE, self.sign, self.magnitude, self.exponent))
        return m


def conversion_theorem(width: int) -> Theorem:
    """A `width`-bit magnitude times any power of two becomes the nearest fp32, ties to even, subnormals and overflow included."""
    design = _Conversion(width)
    wide = "(_ to_fp 11 53)"
    power = "(fp #b0 (bvadd ((_ sign_extend 1) {exponent}) (_ bv1023 11)) (_ bv0 52))"
    exact = f"(fp.mul RNE ({wide} RNE (concat #b0 {{magnitude}})) {power})"
    signed_exact = f"(ite (= {{sign}} #b1) (fp.neg {exact}) {exact})"
    ports = {"magnitude": design.magnitude, "exponent": design.exponent, "sign": design.sign, "result": design.result}
    return Theorem(design, ports, f"(= ((_ to_fp 8 24) {{result}}) ((_ to_fp 8 24) RNE {signed_exact}))")
