"""The form of every unit's RTL: a ready/valid stream of operand words in, a stream of results out."""

from __future__ import annotations

from typing import Any

from amaranth.hdl import Cat, Module, Mux, Signal, Value, signed
from amaranth.lib import stream, wiring
from amaranth.lib.wiring import In, Out


class StreamUnit(wiring.Component):  # type: ignore[misc]
    """A component with the streams `operands` and `result`.

    A word moves in a cycle in which `valid` and `ready` are both high. Once `valid` is high, the payload stays until it
    is taken.
    """

    operands: Any
    result: Any
    rigid = True
    """Whether nothing inside moves while a result waits to be taken."""

    def __init__(self, operands: Any, result: Any) -> None:
        super().__init__({"operands": In(stream.Signature(operands)), "result": Out(stream.Signature(result))})


class Pipeline:
    """A rigid pipeline between the two streams of a unit: all its stages move together or not at all.

    They stand still while a result waits to be taken. `valid` says whether the values of the current stage belong to an
    accepted word; `register` ends the stage, `accumulate` and `emit` act on its values.
    """

    def __init__(self, m: Module, unit: StreamUnit, accept: Any = 1) -> None:
        """`accept`: an extra condition, independent of the operands, for taking a word."""
        self.m, self.unit, self.stages = m, unit, 0
        self.moves = Signal()
        m.d.comb += self.moves.eq(~unit.result.valid | unit.result.ready)
        m.d.comb += unit.operands.ready.eq(self.moves & accept)
        self.valid: Value = unit.operands.valid & accept

    def register(self, *values: Any) -> tuple[Any, ...]:
        """`values` and `valid` one cycle later."""
        self.stages += 1
        later = tuple(Signal.like(value, name=f"stage{self.stages}_{i}") for i, value in enumerate(values))
        valid = Signal(name=f"stage{self.stages}_valid")
        with self.m.If(self.moves):
            self.m.d.sync += [valid.eq(self.valid), *(new.eq(old) for new, old in zip(later, values, strict=True))]
        self.valid = valid
        return later

    def update(self, *assignments: Any) -> None:
        """State that changes once per word that passes this stage."""
        with self.m.If(self.moves & self.valid):
            self.m.d.sync += list(assignments)

    def emit(self, when: Any, payload: Any | None = None) -> None:
        """Offers a result for each word of this stage for which `when` holds; without `payload` the result reads state."""
        with self.m.If(self.moves):
            self.m.d.sync += self.unit.result.valid.eq(self.valid & when)
            if payload is not None:
                self.m.d.sync += Value.cast(self.unit.result.payload).eq(payload)

    def accumulate(self, values: Any, closes: Any) -> None:
        """Adds `values` to one running sum each, which are the result, its fields in order, after a word with `closes`."""
        sums = Value.cast(self.unit.result.payload)
        values = list(values)
        width = len(sums) // len(values)
        opening = Signal(init=1)
        held = [Signal(signed(width), name=f"sum_{i}") for i in range(len(values))]
        self.m.d.comb += sums.eq(Cat(*held))
        kept = [Mux(opening, 0, old) + new for old, new in zip(held, values, strict=True)]
        self.update(opening.eq(closes), *(old.eq(new) for old, new in zip(held, kept, strict=True)))
        self.emit(closes)


def total(values: Any) -> Any:
    """The sum of `values` as a balanced tree of adders.

    Raises `IndexError` when there are none.
    """
    values = list(values)
    while len(values) > 1:
        values = [values[i] + values[i + 1] if i + 1 < len(values) else values[i] for i in range(0, len(values), 2)]
    return values[0]
