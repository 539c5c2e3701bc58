"""A shift window, parallel comparison with the limits of all code lengths, and the alphabet as a small memory."""

from __future__ import annotations

from typing import Any

from amaranth.hdl import Array, Cat, Const, Elaboratable, Module, Mux, Signal, Value
from amaranth.lib import data
from amaranth.lib.memory import Memory

from hw.rtl.float import signal
from hw.rtl.proof import Theorem
from hw.rtl.stream import Pipeline, StreamUnit
from hw.units.huffman_decode import CODE, COUNT, LIMIT, OFFSET, SYMBOL, WORD

WINDOW = 3 * WORD


def match(code: Any, limits: list[Any]) -> tuple[Any, Any]:
    """The shortest length, less one, whose limit is above `code`, and whether there is one; else the longest."""
    length: Any = len(limits) - 1
    for number in reversed(range(len(limits))):
        length = Mux(code < limits[number], number, length)
    return length, code < limits[-1]


class HuffmanDecodeRtl(StreamUnit):
    """Operand words set a limit, an offset or a symbol, start a decoding of so many symbols, or bring 32 bits of codes.

    A symbol is decoded in each cycle in which at least 32 bits are in the window; a word of codes is taken while there is room.
    """

    rigid = False

    def __init__(self, symbols: int, longest: int) -> None:
        self.symbols, self.longest = symbols, longest
        super().__init__(data.StructLayout({"kind": 3, "address": 8, "data": WORD + 1}), 8)

    def elaborate(self, platform: Any) -> Module:
        m = Module()
        word = self.operands.payload
        limits = [Signal(self.longest + 1, name=f"limit_{i + 1}") for i in range(self.longest)]
        offsets = Array([Signal(8, name=f"offset_{i + 1}") for i in range(self.longest)])
        alphabet = m.submodules.alphabet = Memory(shape=8, depth=self.symbols, init=[])
        write, read = alphabet.write_port(), alphabet.read_port(domain="comb")
        window, fill, remaining = Signal(WINDOW), Signal(range(WINDOW + 1)), Signal(WORD)

        room = (fill <= WINDOW - WORD) | ~remaining.any()
        flow = Pipeline(m, self, accept=Mux(word.kind == CODE, room, ~remaining.any()))
        taken = signal(m, flow.valid & flow.moves, "taken")
        with m.If(taken), m.Switch(word.kind):
            with m.Case(LIMIT):
                m.d.sync += Array(limits)[word.address].eq(word.data)
            with m.Case(OFFSET):
                m.d.sync += offsets[word.address].eq(word.data)
        m.d.comb += [write.addr.eq(word.address), write.data.eq(word.data), write.en.eq(taken & (word.kind == SYMBOL))]

        top = signal(m, window[WINDOW - self.longest :], "top")
        index, some = match(top, limits)
        length = signal(m, index + 1, "length")
        decodes = signal(m, flow.moves & remaining.any() & (fill >= WORD), "decodes")
        used = signal(m, Mux(decodes, length, 0), "used")
        arrives = taken & (word.kind == CODE) & remaining.any()
        left = signal(m, fill - used, "left")
        place = signal(m, (WINDOW - WORD) - left, "place")
        bits = Mux(arrives, Cat(word.data[:WORD], Const(0, WINDOW - WORD)) << place[:7], 0)
        m.d.sync += [window.eq((window << used) | bits), fill.eq(left + Mux(arrives, WORD, 0)), remaining.eq(remaining - decodes)]
        with m.If(taken & (word.kind == COUNT)):
            m.d.sync += [window.eq(0), fill.eq(0), remaining.eq(word.data)]

        code = signal(m, top >> signal(m, self.longest - length)[:6], "code")
        flow.valid = decodes
        entry, known = flow.register((code + offsets[signal(m, index, "index")])[:8], some)
        m.d.comb += read.addr.eq(entry)
        flow.emit(1, Mux(known, Value.cast(read.data), 0))
        return m


class _Match(Elaboratable):  # type: ignore[misc]
    """The comparison of one code with the limits of all lengths."""

    def __init__(self, longest: int) -> None:
        self.longest = longest
        self.code = Signal(longest, name="code")
        self.limits = {f"limit{i}": Signal(longest + 1, name=f"limit{i}") for i in range(longest)}
        self.length, self.some = Signal(8, name="length"), Signal(name="some")

    def elaborate(self, platform: Any) -> Module:
        m = Module()
        length, some = match(self.code, list(self.limits.values()))
        m.d.comb += [self.length.eq(length), self.some.eq(some)]
        return m


def match_theorem(longest: int) -> Theorem:
    """For limits that never fall, the length found is the first whose limit is above the code, and every shorter one is not."""
    design = _Match(longest)

    def above(i: int) -> str:
        return f"(bvult (concat #b0 {{code}}) {{limit{i}}})"

    rising = " ".join(f"(bvule {{limit{i}}} {{limit{i + 1}}})" for i in range(longest - 1))
    found = " ".join(
        f"(=> (= {{length}} (_ bv{i} 8)) (and true {above(i)} {' '.join(f'(not {above(j)})' for j in range(i))}))" for i in range(longest)
    )
    any_above = f"(or false {' '.join(map(above, range(longest)))})"
    claim = f"(=> (and true {rising}) (and (= (= {{some}} #b1) {any_above}) (=> (= {{some}} #b1) (and true {found}))))"
    ports = {"code": design.code, **design.limits, "length": design.length, "some": design.some}
    return Theorem(design, ports, claim)
