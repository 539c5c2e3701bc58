"""The outlier-victim decoder and multiplication of exponent-integer pairs."""

from __future__ import annotations

from typing import Any

from amaranth.hdl import Array, Cat, Const, Elaboratable, Module, Mux, Signal, Value, signed
from amaranth.lib import data

from hw.rtl.proof import Theorem
from hw.rtl.stream import Pipeline, StreamUnit, total
from hw.units.olive_mac import BIAS, IDENTIFIER, NormalFormat, decode_pairs

EXPONENT_BITS = 3
INTEGER_BITS = 4


def _normal(code: Any, form: NormalFormat) -> tuple[Any, Any]:
    if form == "int4":
        return Const(0, EXPONENT_BITS), code.as_signed()
    top, low, sign = code[2], code[:2], code[3]
    # with the top bit set: 00 is 1 << 4, 01 is 1 << 3, 10 is 2 << 1, 11 is 3 << 1
    exponent = Mux(top, Mux(low[1], 1, Mux(low[0], 3, 4)), 0)
    magnitude = Mux(top & ~low[1], 1, low)
    return exponent, Mux(sign, -magnitude, magnitude)


def _outlier(code: Any, form: NormalFormat) -> tuple[Any, Any]:
    magnitude = Cat(code[0], Const(1, 1))
    some = code[:3].any()
    return Mux(some, code[1:3] + BIAS[form], 0), Mux(some, Mux(code[3], -magnitude, magnitude), 0)


def decode(m: Module, pair: Any, form: NormalFormat) -> list[tuple[Signal, Signal]]:
    """(exponent, integer) of the even and the odd element of a byte."""
    pair = Value.cast(pair)
    halves = (pair[:4], pair[4:8])
    found = []
    for own, other in (halves, halves[::-1]):
        victim, outlier = own == IDENTIFIER, other == IDENTIFIER
        exponent, integer = Signal(EXPONENT_BITS, name="exponent"), Signal(signed(INTEGER_BITS), name="integer")
        for target, normal, special in zip((exponent, integer), _normal(own, form), _outlier(own, form), strict=True):
            m.d.comb += target.eq(Mux(victim, 0, Mux(outlier, special, normal)))
        found.append((exponent, integer))
    return found


def multiply(a: tuple[Any, Any], b: tuple[Any, Any]) -> Any:
    return (a[1] * b[1]) << (a[0] + b[0])


class OliveMacRtl(StreamUnit):
    def __init__(self, pairs: int, activations: NormalFormat, weights: NormalFormat) -> None:
        self.pairs, self.forms = pairs, (activations, weights)
        vector = data.ArrayLayout(8, pairs)
        super().__init__(data.StructLayout({"activations": vector, "weights": vector, "closes": 1}), signed(32))

    def elaborate(self, platform: Any) -> Module:
        m = Module()
        flow = Pipeline(m, self)
        word = self.operands.payload
        sides = []
        for bytes_, form in zip((word.activations, word.weights), self.forms, strict=True):
            elements = [element for i in range(self.pairs) for element in decode(m, bytes_[i], form)]
            sides.append([part for element in elements for part in element])
        closes, *parts = flow.register(word.closes, *sides[0], *sides[1])
        elements = list(zip(parts[::2], parts[1::2], strict=True))
        half = len(elements) // 2
        sum_ = total(multiply(a, b) for a, b in zip(elements[:half], elements[half:], strict=True))
        closes, step = flow.register(closes, sum_)
        flow.accumulate([step], closes)
        return m


class _Decoder(Elaboratable):  # type: ignore[misc]
    """The decoder beside the table of the definition, one entry per byte."""

    def __init__(self, form: NormalFormat) -> None:
        self.form = form
        self.pair, self.found, self.wanted = Signal(8, name="pair"), Signal(14, name="found"), Signal(14, name="wanted")

    def elaborate(self, platform: Any) -> Module:
        m = Module()
        elements = decode(m, self.pair, self.form)
        m.d.comb += self.found.eq(Cat(*(part for element in elements for part in element)))
        exponent, integer = decode_pairs(range(256), self.form)
        sides = (exponent | (integer & 15) << EXPONENT_BITS) << [0, EXPONENT_BITS + INTEGER_BITS]
        rows = [int(row) for row in sides.sum(axis=1)]
        m.d.comb += self.wanted.eq(Array([Const(row, 14) for row in rows])[self.pair])
        return m


def decoder_theorem(form: NormalFormat) -> Theorem:
    """Each of the 256 bytes decodes to what the format's definition says."""
    design = _Decoder(form)
    return Theorem(design, {"pair": design.pair, "found": design.found, "wanted": design.wanted}, "(= {found} {wanted})")


class _Product(Elaboratable):  # type: ignore[misc]
    def __init__(self) -> None:
        self.a, self.c = Signal(EXPONENT_BITS, name="a"), Signal(EXPONENT_BITS, name="c")
        self.b, self.d = Signal(signed(INTEGER_BITS), name="b"), Signal(signed(INTEGER_BITS), name="d")
        self.result = Signal(signed(24), name="result")

    def elaborate(self, platform: Any) -> Module:
        m = Module()
        m.d.comb += self.result.eq(multiply((self.a, self.b), (self.c, self.d)))
        return m


def product_theorem() -> Theorem:
    """The shifted product is the product of the two shifted integers, for every exponent and integer."""
    design = _Product()
    sides = [f"(bvshl ((_ sign_extend 20) {{{i}}}) ((_ zero_extend 21) {{{e}}}))" for e, i in (("a", "b"), ("c", "d"))]
    ports = {"a": design.a, "b": design.b, "c": design.c, "d": design.d, "result": design.result}
    return Theorem(design, ports, f"(= {{result}} (bvmul {sides[0]} {sides[1]}))")
