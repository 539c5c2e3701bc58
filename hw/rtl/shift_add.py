"""One element of a ShiftAddLLM machine: an entry of a table of eight activations, its sign and shift, added to an fp32 sum."""

from __future__ import annotations

from typing import Any

from amaranth.hdl import Array, Cat, Module, Mux, Signal, signed
from amaranth.lib import data

from hw.number import FLOATS
from hw.rtl.float import add, round_pack, signal, unpack
from hw.rtl.stream import Pipeline, StreamUnit

HALF, WIDE = FLOATS["fp16"], FLOATS["fp32"]
ENTRIES = 128
"""Half of the 256 sums: those with the last activation added; the others are their negatives."""


class ShiftAddElement(StreamUnit):
    """Takes a table of 128 fp16 entries that is shared with other elements, an index, and an exponent of six bits per word.

    Bit 7 of the index is the sign of the last activation: where it is clear, the entry is that of the complemented index, negated.
    The shifted entry is exact in fp32; a result is offered after a word with `closes`.
    """

    def __init__(self) -> None:
        word = {"entries": data.ArrayLayout(16, ENTRIES), "index": 8, "exponent": signed(6), "closes": 1}
        super().__init__(data.StructLayout(word), 32)

    def elaborate(self, platform: Any) -> Module:
        m = Module()
        flow = Pipeline(m, self)
        word = self.operands.payload
        negative = ~word.index[7]
        place = signal(m, Mux(negative, ~word.index[:7], word.index[:7]), "place")
        entry = signal(m, Array([word.entries[p] for p in range(ENTRIES)])[place], "entry")
        exponent, closes, negative, entry = flow.register(word.exponent, word.closes, negative, entry)
        x = unpack(m, entry, HALF)
        field = signal(m, Cat(x.exponent, 0).as_signed() + exponent.as_signed() - (HALF.bias + HALF.fraction), "field")
        term = signal(m, round_pack(m, WIDE, x.sign ^ negative, x.significand, field), "term")
        opening, held = Signal(init=1), Signal(32)
        m.d.comb += self.result.payload.eq(held)
        flow.update(opening.eq(closes), held.eq(Mux(opening, term, add(m, WIDE, held, term))))
        flow.emit(closes)
        return m
