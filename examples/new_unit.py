"""A unit of your own in one file: cost, golden arithmetic, RTL, cases and a proof.

    dovetail verify --load examples/new_unit.py --formal my_unit

The unit keeps the largest of a stream of signed integers: it could sit before a quantiser.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from hw import Case, Unit, Vector
from hw.bits import pack, unpack
from hw.gemm import shapes, vector


class MyUnit(Unit, kind="my_unit"):
    """The maximum of a vector, `lanes` integers of `width` bits per cycle."""

    lanes: int = 4
    width: int = 8

    # Cost: arithmetic that a reader can check with a pencil
    def cycles(self, work: Any) -> int:
        """A word per cycle; one cycle for the maximum of a word and one for the running maximum."""
        return -(-vector(work).elements // self.lanes) - 1 + 2

    # Arithmetic: numpy, from the definition
    def golden(self, *operands: Any) -> Any:
        return np.max(operands[0]).reshape(1)

    # RTL: built when asked for, so that listing units stays fast
    def rtl(self) -> Any:
        from amaranth.hdl import Module, Mux, Signal, signed
        from amaranth.lib import data

        from hw.rtl.stream import Pipeline, StreamUnit

        class MaximumRtl(StreamUnit):
            def elaborate(self, platform: Any) -> Module:
                m = Module()
                flow = Pipeline(m, self)
                word = self.operands.payload
                closes, largest = flow.register(word.closes, maximum([word.values[i] for i in range(len(word.values))]))
                opening, held = Signal(init=1), Signal.like(self.result.payload)
                flow.update(opening.eq(closes), held.eq(Mux(opening | (largest > held), largest, held)))
                m.d.comb += self.result.payload.eq(held)
                flow.emit(closes)
                return m

        values = data.ArrayLayout(signed(self.width), self.lanes)
        return MaximumRtl(data.StructLayout({"values": values, "closes": 1}), signed(self.width))

    # Cases: what both are compared on
    def cases(self, rng: Any) -> Iterator[Case]:
        half = 1 << (self.width - 1)
        for size, _, _ in shapes(rng, (4 * self.lanes, 1, 1)):
            yield Case(Vector(size), (rng.integers(-half, half, size),))

    @classmethod
    def samples(cls) -> tuple[MyUnit, ...]:
        return (cls(), cls(lanes=3, width=5))

    def results(self, work: Any) -> int:
        return 1

    def encode(self, *operands: Any) -> list[int]:
        values = np.asarray(operands[0])
        lowest = -(1 << (self.width - 1))
        rows = np.pad(values, (0, -len(values) % self.lanes), constant_values=lowest).reshape(-1, self.lanes)
        return pack((rows, self.width), (np.arange(len(rows)) == len(rows) - 1, 1))

    def decode(self, words: list[int], work: Any) -> Any:
        return unpack(words, (1, self.width, True))[0].reshape(1)

    # Proof: for every input, not only for the cases
    def proofs(self) -> dict[str, Any]:
        from amaranth.hdl import Elaboratable, Module, Signal, signed

        from hw.rtl.proof import Theorem

        width, inputs = self.width, [Signal(signed(self.width), name=f"x{i}") for i in range(self.lanes)]
        result = Signal(signed(width), name="result")

        class Tree(Elaboratable):
            def elaborate(self, platform: Any) -> Module:
                m = Module()
                m.d.comb += result.eq(maximum(inputs))
                return m

        names = [signal.name for signal in inputs]
        none_above = " ".join(f"(bvsge {{result}} {{{name}}})" for name in names)
        one_equal = " ".join(f"(= {{result}} {{{name}}})" for name in names)
        ports = {**dict(zip(names, inputs, strict=True)), "result": result}
        return {"largest_of_all": Theorem(Tree(), ports, f"(and {none_above} (or {one_equal}))")}


def maximum(values: list[Any]) -> Any:
    from amaranth.hdl import Mux

    found = values[0]
    for value in values[1:]:
        found = Mux(value > found, value, found)
    return found
