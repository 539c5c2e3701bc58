"""One pass of maximum and sum, a serial reciprocal, one pass of products."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

from amaranth.hdl import Array, Cat, Const, Elaboratable, Module, Mux, Signal, signed
from amaranth.lib import data
from amaranth.lib.memory import Memory

from hw.number import FLOATS
from hw.rtl.bitmod_pe import round_shift
from hw.rtl.float import round_pack, signal, unpack
from hw.rtl.proof import Theorem
from hw.rtl.stream import Pipeline, StreamUnit
from hw.units.softmax_stream import DIVIDE, INDEX_BITS, LOG2_E, LOG_FRACTION, POWER_FRACTION, SUM_FRACTION, TABLE

FP16 = FLOATS["fp16"]
LOG_BITS = 32
WHOLE_BITS = LOG_BITS - LOG_FRACTION
POWER_BITS = POWER_FRACTION + 1
SUM_BITS = SUM_FRACTION + 11
RECIPROCAL_BITS = DIVIDE


def logarithm(m: Module, code: Any) -> Signal:
    """A number times log2(e), signed, rounded to nearest even."""
    x = unpack(m, code, FP16)
    product = Cat(Const(0, 3), x.significand * Const(LOG2_E, 16), Const(0, 2))
    size = round_shift(m, product, (31 - x.exponent)[:5])
    return signal(m, Mux(x.sign, -size, size)[:LOG_BITS].as_signed(), "logarithm")


def power(m: Module, fraction: Any) -> Signal:
    """2^fraction by a table and linear interpolation."""
    rest_bits = LOG_FRACTION - INDEX_BITS
    steps = [b - a for a, b in pairwise(TABLE)]
    base, slope = Array([Const(v, POWER_BITS) for v in TABLE[:-1]]), Array([Const(v, max(steps).bit_length()) for v in steps])
    index, rest = fraction[rest_bits:], fraction[:rest_bits]
    return signal(m, (base[index] + ((slope[index] * rest) >> rest_bits))[:POWER_BITS], "power")


def shifted(value: Any, amount: Any) -> Any:
    """`value` >> `amount` for an unsigned amount of any width."""
    reach = len(value).bit_length()
    return Mux(amount[reach:].any(), 0, value >> amount[:reach])


def division_step(remainder: Any, divisor: Any) -> tuple[Any, Any]:
    """The next remainder and bit of the quotient."""
    double = Cat(Const(0, 1), remainder)
    fits = double >= divisor
    return Mux(fits, double - divisor, double), fits


class SoftmaxStreamRtl(StreamUnit):
    """Numbers go to a buffer as logarithms while their maximum and sum are formed; `closes` marks the last of a vector."""

    def __init__(self, longest: int) -> None:
        self.longest = longest
        super().__init__(data.StructLayout({"code": 16, "closes": 1}), 16)

    def elaborate(self, platform: Any) -> Module:
        m = Module()
        word = self.operands.payload
        loading, emitting = Signal(init=1), Signal()
        flow = Pipeline(m, self, accept=loading)
        moves = flow.moves
        buffer = m.submodules.buffer = Memory(shape=LOG_BITS, depth=self.longest, init=[])
        write, read = buffer.write_port(), buffer.read_port(domain="comb")
        count, position = Signal(range(self.longest + 1)), Signal(range(self.longest + 1))
        with m.If(moves & self.operands.valid & loading & word.closes):
            m.d.sync += loading.eq(0)

        closes, log = flow.register(word.closes, logarithm(m, word.code))
        m.d.comb += [write.addr.eq(count), write.data.eq(log), write.en.eq(moves & flow.valid)]
        flow.update(count.eq(count + 1))
        closes, whole, size = flow.register(closes, log[LOG_FRACTION:].as_signed(), power(m, log[:LOG_FRACTION]))

        opening, top, total = Signal(init=1), Signal(signed(WHOLE_BITS)), Signal(SUM_BITS)
        own = signal(m, (whole + 1)[:WHOLE_BITS].as_signed(), "own")
        higher = opening | (own > top)
        above = signal(m, Mux(higher, own, top), "above")
        raise_by = signal(m, (above - top)[:WHOLE_BITS], "raise_by")
        term = Cat(Const(0, SUM_FRACTION - POWER_FRACTION - 1), size)
        kept = Mux(opening, 0, shifted(total, raise_by))
        flow.update(opening.eq(closes), top.eq(above), total.eq(kept + shifted(term, signal(m, (above - own)[:WHOLE_BITS], "below"))))

        steps, remainder, reciprocal = Signal(range(DIVIDE + 1)), Signal(SUM_BITS + 1), Signal(RECIPROCAL_BITS)
        with m.If(moves & flow.valid & closes):
            m.d.sync += [steps.eq(DIVIDE), remainder.eq(1 << (SUM_FRACTION - 2))]
        left, bit = division_step(remainder, total)
        with m.If(moves & steps.any()):
            m.d.sync += [remainder.eq(left), reciprocal.eq(Cat(bit, reciprocal)), steps.eq(steps - 1), emitting.eq(steps == 1)]

        m.d.comb += read.addr.eq(position)
        last = position == count - 1
        with m.If(moves & emitting):
            m.d.sync += position.eq(position + 1)
            with m.If(last):
                m.d.sync += [emitting.eq(0), loading.eq(1), position.eq(0), count.eq(0)]
        flow.valid = emitting
        log = signal(m, read.data, "buffered")
        below = signal(m, (top - log[LOG_FRACTION:].as_signed())[: WHOLE_BITS + 1], "distance")
        size, below = flow.register(power(m, log[:LOG_FRACTION]), below)
        product, below = flow.register(size * reciprocal, below)
        # anything below 2^-63 is zero in fp16, whatever its exponent
        exponent = -Mux(below > 63, 63, below[:6]) - (POWER_FRACTION + SUM_FRACTION + 4)
        flow.emit(1, round_pack(m, FP16, Const(0), product, signal(m, exponent, "exponent")))
        return m


class _Power(Elaboratable):  # type: ignore[misc]
    """2^f for two neighbouring fractions."""

    def __init__(self) -> None:
        self.fraction = Signal(LOG_FRACTION, name="fraction")
        self.here, self.above = Signal(POWER_BITS, name="here"), Signal(POWER_BITS, name="above")

    def elaborate(self, platform: Any) -> Module:
        m = Module()
        following = signal(m, (self.fraction + 1)[:LOG_FRACTION])
        m.d.comb += [self.here.eq(power(m, self.fraction)), self.above.eq(power(m, following))]
        return m


def power_theorem() -> Theorem:
    """For every fraction, 2^f is at least one, below two, and not above that of the next fraction."""
    design = _Power()
    low, high = (f"(_ bv{value} {POWER_BITS})" for value in (TABLE[0], TABLE[-1] - 1))
    last = f"(_ bv{(1 << LOG_FRACTION) - 1} {LOG_FRACTION})"
    within = f"(and (bvule {low} {{here}}) (bvule {{here}} {high}))"
    claim = f"(and {within} (=> (distinct {{fraction}} {last}) (bvule {{here}} {{above}})))"
    return Theorem(design, {"fraction": design.fraction, "here": design.here, "above": design.above}, claim)


class _Division(Elaboratable):  # type: ignore[misc]
    def __init__(self) -> None:
        self.remainder, self.divisor = Signal(SUM_BITS, name="remainder"), Signal(SUM_BITS, name="divisor")
        self.left, self.bit = Signal(SUM_BITS + 1, name="left"), Signal(name="bit")

    def elaborate(self, platform: Any) -> Module:
        m = Module()
        left, bit = division_step(self.remainder, self.divisor)
        m.d.comb += [self.left.eq(left), self.bit.eq(bit)]
        return m


def division_theorem() -> Theorem:
    """From a remainder below the divisor, a step doubles it exactly: 2 r = r' + bit d with r' below d again.

    By induction the quotient's bits are those of the division, rounded down, for any number of steps.
    """
    design = _Division()
    wide = SUM_BITS + 1
    double = "(concat {remainder} #b0)"
    divisor = "(concat #b0 {divisor})"
    taken = f"(ite (= {{bit}} #b1) {divisor} (_ bv0 {wide}))"
    exact = f"(= {double} (bvadd {{left}} {taken}))"
    claim = f"(=> (bvult {{remainder}} {{divisor}}) (and {exact} (bvult {{left}} {divisor})))"
    ports = {"remainder": design.remainder, "divisor": design.divisor, "left": design.left, "bit": design.bit}
    return Theorem(design, ports, claim)
