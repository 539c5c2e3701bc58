"""A systolic array: operands enter skewed at the left and top edges, every register moves by one cell per cycle."""

from __future__ import annotations

from typing import Any

from amaranth.hdl import Array, Cat, Const, Module, Mux, Signal, signed
from amaranth.lib import data

from hw.rtl.stream import Pipeline, StreamUnit


class SystolicRtl(StreamUnit):
    """`rows` x `columns` cells of 8-bit by 8-bit signed multiply-accumulate into `accumulator_bits`.

    One operand word holds what enters the edges in one cycle; the array does the skewing.

    Output-stationary: `left` is a column of the left operand, `top` a row of the right one; `closes` marks the last of the
    contraction. `columns` results, one row of the block, leave per result word, the first row first.

    Weight-stationary: `top` is a row of weights (the first row of the block first) in words with `has_top`, `left` a row of
    activations in words with `has_left`; `opens` and `closes` mark the words that begin a fold and end its activations.
    A result word is one row of partial sums. With `hidden`, weights go to a second register of each cell and take
    effect with the next word that has `opens`.

    Without `overlap`, a word with `opens` waits until the fold before has left the array. With it, output-stationary blocks
    may still not close faster than one per `rows` cycles, because one row of results leaves per cycle.
    """

    def __init__(self, rows: int, columns: int, accumulator_bits: int, *, stationary_weights: bool, hidden: bool, overlap: bool) -> None:
        self.rows, self.columns, self.accumulator_bits = rows, columns, accumulator_bits
        self.stationary_weights, self.hidden, self.overlap = stationary_weights, hidden, overlap
        word = data.StructLayout(
            {
                "left": data.ArrayLayout(signed(8), rows),
                "top": data.ArrayLayout(signed(8), columns),
                "has_left": 1,
                "has_top": 1,
                "opens": 1,
                "closes": 1,
            }
        )
        super().__init__(word, data.ArrayLayout(signed(accumulator_bits), columns))

    def elaborate(self, platform: Any) -> Module:
        m = Module()
        word = self.operands.payload
        drain = self.rows + self.columns - 2
        wait = Signal(range(max(drain, self.rows) + 1))
        blocked = wait.any() & (word.opens if not self.overlap else word.closes if not self.stationary_weights else 0)
        flow = Pipeline(m, self, accept=~blocked)
        with m.If(flow.moves & wait.any()):
            m.d.sync += wait.eq(wait - 1)
        flow.update()
        with m.If(flow.moves & flow.valid & word.closes):
            m.d.sync += wait.eq(self.rows - 1 if self.overlap else drain)

        def delayed(value: Any, cycles: int) -> Any:
            for _ in range(cycles):
                later = Signal.like(value)
                with m.If(flow.moves):
                    m.d.sync += later.eq(value)
                value = later
            return value

        left = [delayed(Cat(word.left[r], flow.valid & word.has_left, word.opens, word.closes), r) for r in range(self.rows)]
        if self.stationary_weights:
            self._weights(m, flow, word, left, delayed)
        else:
            self._outputs(m, flow, word, left, delayed)
        return m

    def _outputs(self, m: Module, flow: Pipeline, word: Any, left: list[Any], delayed: Any) -> None:
        opening = Signal(init=1)
        with m.If(flow.moves & flow.valid):
            m.d.sync += opening.eq(word.closes)
        first = [delayed(opening, r) for r in range(self.rows)]
        falling = [delayed(word.top[c], c) for c in range(self.columns)]
        done = Array([Array([Signal(name=f"done_{r}_{c}") for c in range(self.columns)]) for r in range(self.rows)])
        sums = [[Signal(signed(self.accumulator_bits), name=f"sum_{r}_{c}") for c in range(self.columns)] for r in range(self.rows)]
        for r in range(self.rows):
            passing, starts = left[r], first[r]
            for c in range(self.columns):
                a, b = passing[:8].as_signed(), falling[c].as_signed()
                valid, closes = passing[8], passing[10]
                with m.If(flow.moves):
                    with m.If(valid):
                        m.d.sync += sums[r][c].eq(Mux(starts, 0, sums[r][c]) + a * b)
                    m.d.sync += done[r][c].eq(valid & closes)
                passing, starts, falling[c] = delayed(passing, 1), delayed(starts, 1), delayed(falling[c], 1)
        for c in range(self.columns):
            bus = Const(0, self.accumulator_bits)
            for r in range(self.rows):
                bus = bus | Mux(done[r][c], sums[r][c].as_unsigned(), 0)
            m.d.comb += self.result.payload[c].eq(delayed(bus[: self.accumulator_bits], self.columns - 1 - c))
        m.d.comb += self.result.valid.eq(Cat(*(done[r][self.columns - 1] for r in range(self.rows))).any())

    def _weights(self, m: Module, flow: Pipeline, word: Any, left: list[Any], delayed: Any) -> None:
        number = Signal(range(self.rows))
        with m.If(flow.moves & flow.valid & word.has_top):
            m.d.sync += number.eq(Mux(number == self.rows - 1, 0, number + 1))
        falling = [delayed(Cat(word.top[c], flow.valid & word.has_top, number), c) for c in range(self.columns)]
        partial: list[Any] = [Const(0, signed(self.accumulator_bits))] * self.columns
        arrived: Any = Const(0)
        for r in range(self.rows):
            passing = left[r]
            for c in range(self.columns):
                weight = Signal(signed(8), name=f"weight_{r}_{c}")
                valid, opens = passing[8], passing[9]
                load = flow.moves & falling[c][8] & (falling[c][9:] == r)
                used: Any = weight
                if self.hidden:
                    following = Signal(signed(8), name=f"following_{r}_{c}")
                    used = Mux(opens & valid, following, weight)
                    with m.If(load):
                        m.d.sync += following.eq(falling[c][:8])
                    with m.If(flow.moves & valid & opens):
                        m.d.sync += weight.eq(following)
                else:
                    with m.If(load):
                        m.d.sync += weight.eq(falling[c][:8])
                sum_ = Signal(signed(self.accumulator_bits), name=f"sum_{r}_{c}")
                with m.If(flow.moves & valid):
                    m.d.sync += sum_.eq(partial[c] + passing[:8].as_signed() * used)
                partial[c] = sum_
                arrived = valid
                passing = delayed(passing, 1)
        for c in range(self.columns):
            m.d.comb += self.result.payload[c].eq(delayed(partial[c], self.columns - 1 - c))
        m.d.comb += self.result.valid.eq(delayed(arrived, 1))
