"""Conditional negation and an adder tree."""

from __future__ import annotations

from typing import Any

from amaranth.hdl import Elaboratable, Module, Mux, Signal, signed
from amaranth.lib import data

from hw.rtl.proof import Theorem
from hw.rtl.stream import Pipeline, StreamUnit, total


def chosen(activation: Any, code: Any) -> Any:
    """The activation times the ternary value of a code: code 2 is not defined and gives 0."""
    return Mux(code[0], Mux(code[1], -activation, activation), 0)


class TernaryRowRtl(StreamUnit):
    def __init__(self, lanes: int, accumulator_bits: int) -> None:
        self.lanes = lanes
        word = {"activations": data.ArrayLayout(signed(8), lanes), "codes": data.ArrayLayout(2, lanes), "closes": 1}
        super().__init__(data.StructLayout(word), signed(accumulator_bits))

    def elaborate(self, platform: Any) -> Module:
        m = Module()
        flow = Pipeline(m, self)
        word = self.operands.payload
        closes, step = flow.register(word.closes, total(chosen(word.activations[i], word.codes[i]) for i in range(self.lanes)))
        flow.accumulate([step], closes)
        return m


class _Tree(Elaboratable):  # type: ignore[misc]
    def __init__(self, lanes: int) -> None:
        self.lanes = lanes
        self.activations, self.codes = Signal(8 * lanes, name="activations"), Signal(2 * lanes, name="codes")
        self.result = Signal(signed(8 + lanes.bit_length() + 1), name="result")

    def elaborate(self, platform: Any) -> Module:
        m = Module()
        terms = (chosen(self.activations.word_select(i, 8).as_signed(), self.codes.word_select(i, 2)) for i in range(self.lanes))
        m.d.comb += self.result.eq(total(terms))
        return m


def tree_theorem(lanes: int) -> Theorem:
    """The tree's sum is the sum of each activation times +1, -1 or 0, for all activations and codes."""
    design = _Tree(lanes)
    width = len(design.result)
    terms = []
    for i in range(lanes):
        value = f"((_ sign_extend {width - 8}) ((_ extract {8 * i + 7} {8 * i}) {{activations}}))"
        code = f"((_ extract {2 * i + 1} {2 * i}) {{codes}})"
        terms.append(f"(ite (= {code} #b01) {value} (ite (= {code} #b11) (bvneg {value}) (_ bv0 {width})))")
    sum_ = terms[0]
    for term in terms[1:]:
        sum_ = f"(bvadd {sum_} {term})"
    ports = {"activations": design.activations, "codes": design.codes, "result": design.result}
    return Theorem(design, ports, f"(= {{result}} {sum_})")
