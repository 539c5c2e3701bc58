"""Tables of signed sums, built once per four activations, and bit-serial look-ups."""

from __future__ import annotations

from typing import Any

from amaranth.hdl import Array, Elaboratable, Module, Mux, Signal, signed
from amaranth.lib import data

from hw.rtl.proof import Theorem
from hw.rtl.stream import Pipeline, StreamUnit

ENTRIES = 8
ENTRY_BITS = 11
"""One more than the sum of four 8-bit values seems to need: four times -128 with all digits -1 is +512."""


def table(activations: Any) -> list[Any]:
    """Entry p: -a0 + sum over j = 1..3 of a_j where bit j-1 of p is set and -a_j where it is not."""
    a, b, c, d = activations
    near = [sign_b - a for sign_b in (-b, b)]
    far = [sign_c + sign_d for sign_d in (-d, d) for sign_c in (-c, c)]
    return [near[p & 1] + far[p >> 1] for p in range(ENTRIES)]


class LutTensorCoreRtl(StreamUnit):
    def __init__(self, rows: int, columns: int, weight_bits: int) -> None:
        self.rows, self.columns, self.weight_bits = rows, columns, weight_bits
        word = {
            "activations": data.ArrayLayout(data.ArrayLayout(signed(8), 4), rows),
            "index": data.ArrayLayout(3, columns),
            "sign": data.ArrayLayout(1, columns),
            "plane": 2,
            "closes": 1,
        }
        super().__init__(data.StructLayout(word), data.ArrayLayout(signed(32), rows * columns))

    def elaborate(self, platform: Any) -> Module:
        m = Module()
        flow = Pipeline(m, self)
        word = self.operands.payload
        tables = []
        for r in range(self.rows):
            entries = [Signal(signed(ENTRY_BITS), name=f"table_{r}_{p}") for p in range(ENTRIES)]
            sums = table([word.activations[r][j] for j in range(4)])
            with m.If(word.plane == 0):
                flow.update(*(entry.eq(value) for entry, value in zip(entries, sums, strict=True)))
            tables.append(Array(entries))
        columns = range(self.columns)
        plane, closes, *weights = flow.register(
            word.plane, word.closes, *(word.index[n] for n in columns), *(word.sign[n] for n in columns)
        )
        index, sign = weights[: self.columns], weights[self.columns :]
        values = []
        for r in range(self.rows):
            for n in columns:
                entry = Signal(signed(ENTRY_BITS), name=f"entry_{r}_{n}")
                m.d.comb += entry.eq(tables[r][index[n]])
                values.append(Mux(sign[n], -entry, entry) << plane)
        flow.accumulate(values, closes)
        return m


class _Lookup(Elaboratable):  # type: ignore[misc]
    """Packer, table and look-up of one bit plane of four weights."""

    def __init__(self) -> None:
        self.activations, self.bits = Signal(32, name="activations"), Signal(4, name="bits")
        self.result = Signal(signed(ENTRY_BITS), name="result")

    def elaborate(self, platform: Any) -> Module:
        m = Module()
        entries = Array([Signal(signed(ENTRY_BITS), name=f"entry_{p}") for p in range(ENTRIES)])
        sums = table([self.activations.word_select(j, 8).as_signed() for j in range(4)])
        m.d.comb += [entry.eq(value) for entry, value in zip(entries, sums, strict=True)]
        sign, index = self.bits[0], Signal(3)
        m.d.comb += index.eq(self.bits[1:] ^ sign.replicate(3))
        m.d.comb += self.result.eq(Mux(sign, -entries[index], entries[index]))
        return m


def lookup_theorem() -> Theorem:
    """A look-up is the sum of the four activations, each with the sign of its weight's bit, for all of them."""
    design = _Lookup()
    terms = []
    for j in range(4):
        value = f"((_ sign_extend {ENTRY_BITS - 8}) ((_ extract {8 * j + 7} {8 * j}) {{activations}}))"
        terms.append(f"(ite (= ((_ extract {j} {j}) {{bits}}) #b1) {value} (bvneg {value}))")
    claim = f"(= {{result}} (bvadd (bvadd {terms[0]} {terms[1]}) (bvadd {terms[2]} {terms[3]})))"
    return Theorem(design, {"activations": design.activations, "bits": design.bits, "result": design.result}, claim)
