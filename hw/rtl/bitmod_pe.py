"""Term encoder, aligned four-lane bit-serial dot product, accumulator and bit-serial multiplication by the group's scale."""

from __future__ import annotations

from typing import Any

from amaranth.hdl import Array, Cat, Const, Elaboratable, Module, Mux, Signal, Value, signed
from amaranth.lib import data

from hw.number import FLOATS
from hw.rtl.float import round_pack, signal, signed_magnitude, unpack
from hw.rtl.proof import Theorem
from hw.rtl.stream import StreamUnit, total
from hw.units.bitmod_pe import DEQUANTISE, GUARD, HEADROOM, LANES, MAGNITUDES, SPECIAL, TERMS, UNIT, WIDTH, WeightFormat, doubled_values
from hw.units.bitmod_pe import shifts as term_shifts

FP16 = FLOATS["fp16"]
SUM_BITS = 25


def encode_term(m: Module, form: WeightFormat, code: Any, select: Any, number: Any) -> tuple[Value, Value, Value]:
    """(sign, exponent, one) of term `number` of a weight code."""
    code, number = Value.cast(code), Value.cast(number)
    width = WIDTH[form]
    if form in ("int8", "int6"):
        digits = Cat(Const(0, 1), code[:width])
        window = signal(m, (digits >> (number << 1))[:3], "window")
        high, low = window[2], window[0] + window[1]
        two = Mux(high, low == 0, low == 2)
        return high, two, Mux(high, low != 2, low != 0)
    sign_bit = width - 1
    magnitudes = Array([Const(v, 5) for v in MAGNITUDES[form]])
    special = code[:width] == 1 << sign_bit
    signs = Array([Const(int(v < 0)) for v in SPECIAL[form]])
    values = Array([Const(abs(v), 5) for v in SPECIAL[form]])
    magnitude = signal(m, Mux(special, values[select], magnitudes[code[:sign_bit]]), "magnitude")
    sign = Mux(special, signs[select], code[sign_bit])
    first, some = leading_one(m, magnitude[1:])
    taken = Mux(some, Const(2, 5) << first, 0)
    rest, more = leading_one(m, signal(m, (magnitude & ~taken)[:4]))
    return sign, Mux(number[0], rest, first), Mux(number[0], more, some)


def leading_one(m: Module, bits: Any) -> tuple[Signal, Value]:
    """Position of the highest one of four bits, and whether there is one."""
    position = Signal(2, name="position")
    m.d.comb += position.eq(Mux(bits[3], 3, Mux(bits[2], 2, Mux(bits[1], 1, 0))))
    return position, bits.any()


def round_shift(m: Module, value: Any, amount: Any) -> Signal:
    """A signed value over 2^`amount`, rounded to nearest even."""
    value, amount = Value.cast(value), Value.cast(amount)
    current: Value = Cat(Const(0, 2), value)
    width = len(current)
    for step in range(len(amount)):
        moved = current.as_signed() >> min(1 << step, width - 1)
        lost = current[: min(1 << step, width)].any()
        current = signal(m, Mux(amount[step], Cat(moved[0] | lost, moved[1:width]), current)[:width], "moved")
    up = current[1] & (current[0] | current[2])
    return signal(m, (current[2:].as_signed() + up)[: len(value)].as_signed(), "shifted")


class BitmodPeRtl(StreamUnit):
    """A word of four weights and activations is held for as many cycles as its weights have terms.

    Three stages follow: partial sum, accumulator, and the dequantiser, which works beside them until the next group closes.
    """

    rigid = False

    def __init__(self, weights: WeightFormat) -> None:
        self.weights = weights
        word = {
            "activations": data.ArrayLayout(16, LANES),
            "weights": data.ArrayLayout(8, LANES),
            "select": 2,
            "scale": 8,
            "closes": 1,
        }
        super().__init__(data.StructLayout(word), 32)

    def elaborate(self, platform: Any) -> Module:
        m = Module()
        moves = Signal()
        word, held = self.operands.payload, Signal.like(self.operands.payload, name="held")
        holds, number = Signal(), Signal(range(TERMS[self.weights]))
        finished = number == TERMS[self.weights] - 1
        m.d.comb += self.operands.ready.eq(moves & (~holds | finished))
        with m.If(moves):
            with m.If(holds):
                m.d.sync += number.eq(Mux(finished, 0, number + 1))
            with m.If(~holds | finished):
                m.d.sync += [holds.eq(self.operands.valid), held.eq(word)]

        partial, top = self._partial(m, held, number)
        shift = Array([Const(s + 1, 4) for s in term_shifts(self.weights)])[number]
        first = Signal(), Signal(signed(len(partial)), name="partial"), Signal(7, name="own"), Signal(), Signal(8, name="first_scale")
        with m.If(moves):
            reach = Mux(partial == 0, 0, top + shift)
            sources = (holds, partial, reach, holds & finished & held.closes, held.scale)
            m.d.sync += [target.eq(source) for target, source in zip(first, sources, strict=True)]
        valid, partial, own, closes, scale = first

        opening, sum_, exponent = Signal(init=1), Signal(signed(SUM_BITS)), Signal(7)
        closed, second_scale = Signal(), Signal(8)
        old_sum, old_exponent = Mux(opening, 0, sum_), Mux(opening, 0, exponent)
        common = signal(m, Mux(old_exponent > own, old_exponent, own), "common")
        term = Cat(Const(0, HEADROOM), partial).as_signed()
        wide = round_shift(m, signal(m, old_sum), (common - old_exponent)[:6]) + round_shift(m, signal(m, term), (common - own)[:6])
        wide = signal(m, wide, "wide")
        over = signal(m, (wide >= 1 << (SUM_BITS - 1)) | (wide <= -(1 << (SUM_BITS - 1))), "over")
        with m.If(moves):
            m.d.sync += closed.eq(valid & closes)
            with m.If(valid):
                narrowed = Mux(over, round_shift(m, wide, Const(1, 1)), wide)
                m.d.sync += [opening.eq(closes), sum_.eq(narrowed), exponent.eq(common + over), second_scale.eq(scale)]
        self._dequantise(m, moves, closed, sum_, exponent, second_scale)
        return m

    def _partial(self, m: Module, held: Any, number: Any) -> tuple[Value, Signal]:
        """Sum of the four products of one term, aligned to the largest exponent, and that exponent."""
        lanes = []
        for lane in range(LANES):
            x = unpack(m, held.activations[lane], FP16)
            sign, exponent, one = encode_term(m, self.weights, held.weights[lane], held.select, number)
            some = signal(m, one & x.significand.any(), "some")
            reach = signal(m, Mux(some, x.exponent + exponent, 0), "reach")
            lanes.append((x.sign ^ sign, Mux(some, x.significand, 0), reach))
        reaches = [lane[2] for lane in lanes]
        while len(reaches) > 1:
            reaches = [signal(m, Mux(a > b, a, b), "top") for a, b in zip(reaches[::2], reaches[1::2], strict=True)]
        top = reaches[0]
        terms = []
        for sign, significand, reach in lanes:
            aligned = round_shift(m, Cat(Const(0, GUARD), significand, Const(0, 1)), (top - reach)[:6])
            terms.append(Mux(sign, -aligned, aligned))
        return signal(m, total(terms), "step"), top

    def _dequantise(self, m: Module, moves: Signal, closed: Signal, sum_: Signal, exponent: Signal, scale: Signal) -> None:
        steps = Signal(range(DEQUANTISE + 1))
        ready = Signal()
        product, shifted, bits, power = Signal(signed(SUM_BITS + 8)), Signal(signed(SUM_BITS + 8)), Signal(8), Signal(7)
        free = (steps == 0) & (~ready | self.result.ready)
        m.d.comb += moves.eq(~closed | free)
        with m.If(self.result.ready):
            m.d.sync += ready.eq(0)
        with m.If(steps.any() & ~ready):
            with m.If(bits[0]):
                m.d.sync += product.eq(product + shifted)
            m.d.sync += [shifted.eq(shifted << 1), bits.eq(bits >> 1), steps.eq(steps - 1), ready.eq(steps == 1)]
        with m.If(closed & free):
            m.d.sync += [product.eq(0), shifted.eq(sum_), bits.eq(scale), power.eq(exponent), steps.eq(DEQUANTISE)]
        sign, magnitude = signed_magnitude(m, product)
        code = round_pack(m, FLOATS["fp32"], sign, magnitude, signal(m, Cat(power, 0).as_signed() - UNIT))
        m.d.comb += [self.result.valid.eq(ready), self.result.payload.eq(code)]


class _Terms(Elaboratable):  # type: ignore[misc]
    """All terms of one weight, added, beside the table of its values."""

    def __init__(self, form: WeightFormat) -> None:
        self.form = form
        self.code, self.select = Signal(8, name="code"), Signal(2, name="select")
        self.found, self.wanted = Signal(signed(12), name="found"), Signal(signed(12), name="wanted")

    def elaborate(self, platform: Any) -> Module:
        m = Module()
        parts = []
        for number, shift in enumerate(term_shifts(self.form)):
            sign, exponent, one = encode_term(m, self.form, self.code, self.select, Const(number, 2))
            value = signal(m, Mux(one, Const(1, 12) << exponent, 0)[:12] << (shift + 1))
            parts.append(Mux(sign, -value, value))
        m.d.comb += self.found.eq(total(parts))
        width = WIDTH[self.form]
        rows = [[int(doubled_values(code, select, self.form)) for code in range(1 << width)] for select in range(4)]
        tables = Array([Array([Const(v, signed(12)) for v in row]) for row in rows])
        m.d.comb += self.wanted.eq(tables[self.select][self.code[:width]])
        return m


def terms_theorem(form: WeightFormat) -> Theorem:
    """The terms of every code, with every special value, sum to the weight that the format defines."""
    design = _Terms(form)
    ports = {"code": design.code, "select": design.select, "found": design.found, "wanted": design.wanted}
    return Theorem(design, ports, "(= {found} {wanted})")


class _Scaling(Elaboratable):  # type: ignore[misc]
    """The dequantiser's eight steps, unrolled."""

    def __init__(self, width: int) -> None:
        self.sum, self.scale = Signal(signed(width), name="sum"), Signal(8, name="scale")
        self.result = Signal(signed(width + 8), name="result")

    def elaborate(self, platform: Any) -> Module:
        m = Module()
        m.d.comb += self.result.eq(total(Mux(self.scale[i], self.sum << i, 0) for i in range(DEQUANTISE)))
        return m


def scaling_theorem(width: int) -> Theorem:
    """Eight conditional shifted additions are the product of a sum of `width` bits and the scale, exactly."""
    design = _Scaling(width)
    product = f"(bvmul ((_ sign_extend 8) {{sum}}) ((_ zero_extend {width}) {{scale}}))"
    return Theorem(design, {"sum": design.sum, "scale": design.scale, "result": design.result}, f"(= {{result}} {product})")
