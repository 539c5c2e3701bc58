"""A systolic array: operands enter skewed at the left and top edges, every register moves by one cell per cycle."""

from __future__ import annotations

from typing import Any

from amaranth.hdl import Array, Cat, Const, Module, Mux, Signal, Value, signed
from amaranth.lib import data

from hw.rtl.proof import Theorem
from hw.rtl.stream import Pipeline, StreamUnit


class SystolicRtl(StreamUnit):
    """`rows` x `columns` cells of signed multiply-accumulate of two operands of `operand_bits` into `accumulator_bits`.

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

    def __init__(
        self,
        rows: int,
        columns: int,
        accumulator_bits: int,
        *,
        stationary_weights: bool,
        hidden: bool,
        overlap: bool,
        operand_bits: int = 8,
    ) -> None:
        self.rows, self.columns, self.accumulator_bits, self.operand_bits = rows, columns, accumulator_bits, operand_bits
        self.stationary_weights, self.hidden, self.overlap = stationary_weights, hidden, overlap
        word = data.StructLayout(
            {
                "left": data.ArrayLayout(signed(operand_bits), rows),
                "top": data.ArrayLayout(signed(operand_bits), columns),
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
        bits, opening = self.operand_bits, Signal(init=1)
        with m.If(flow.moves & flow.valid):
            m.d.sync += opening.eq(word.closes)
        first = [delayed(opening, r) for r in range(self.rows)]
        falling = [delayed(word.top[c], c) for c in range(self.columns)]
        done = Array([Array([Signal(name=f"done_{r}_{c}") for c in range(self.columns)]) for r in range(self.rows)])
        sums = [[Signal(signed(self.accumulator_bits), name=f"sum_{r}_{c}") for c in range(self.columns)] for r in range(self.rows)]
        for r in range(self.rows):
            passing, starts = left[r], first[r]
            for c in range(self.columns):
                a, b = passing[:bits].as_signed(), falling[c].as_signed()
                valid, closes = passing[bits], passing[bits + 2]
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
        bits, number = self.operand_bits, Signal(range(self.rows))
        with m.If(flow.moves & flow.valid & word.has_top):
            m.d.sync += number.eq(Mux(number == self.rows - 1, 0, number + 1))
        falling = [delayed(Cat(word.top[c], flow.valid & word.has_top, number), c) for c in range(self.columns)]
        partial: list[Any] = [Const(0, signed(self.accumulator_bits))] * self.columns
        arrived: Any = Const(0)
        for r in range(self.rows):
            passing = left[r]
            for c in range(self.columns):
                weight = Signal(signed(bits), name=f"weight_{r}_{c}")
                valid, opens = passing[bits], passing[bits + 1]
                load = flow.moves & falling[c][bits] & (falling[c][bits + 1 :] == r)
                used: Any = weight
                if self.hidden:
                    following = Signal(signed(bits), name=f"following_{r}_{c}")
                    used = Mux(opens & valid, following, weight)
                    with m.If(load):
                        m.d.sync += following.eq(falling[c][:bits])
                    with m.If(flow.moves & valid & opens):
                        m.d.sync += weight.eq(following)
                else:
                    with m.If(load):
                        m.d.sync += weight.eq(falling[c][:bits])
                sum_ = Signal(signed(self.accumulator_bits), name=f"sum_{r}_{c}")
                with m.If(flow.moves & valid):
                    m.d.sync += sum_.eq(partial[c] + passing[:bits].as_signed() * used)
                partial[c] = sum_
                arrived = valid
                passing = delayed(passing, 1)
        for c in range(self.columns):
            m.d.comb += self.result.payload[c].eq(delayed(partial[c], self.columns - 1 - c))
        m.d.comb += self.result.valid.eq(delayed(arrived, 1))


PROOF_SIDE = 2
PROOF_OPERAND = 4
PROOF_BITS = 10
"""Side of the array, length of the contraction and rows that stream, width of an operand and of a sum in `product_theorem`."""


def product_theorem(*, stationary_weights: bool, hidden: bool, overlap: bool) -> Theorem:
    """From reset, an array of two by two gives the product of any two 4-bit matrices of two by two, in the cycles of its cost.

    The claim follows the words through every register of the array. Both rows of results leave in turn, the last one
    K + R + C - 2 cycles after the first word with stationary outputs and M + 2R + C - 2 with stationary weights.
    """
    side = PROOF_SIDE
    flow = {"stationary_weights": stationary_weights, "hidden": hidden, "overlap": overlap}
    design = SystolicRtl(side, side, PROOF_BITS, operand_bits=PROOF_OPERAND, **flow)
    inputs, outputs = design.operands, design.result
    signals = {"word": inputs.payload, "valid": inputs.valid, "accepts": inputs.ready}
    signals |= {"takes": outputs.ready, "offers": outputs.valid, "result": outputs.payload}
    ports = {name: Value.cast(value) for name, value in signals.items()}
    # (has_left, has_top, opens, closes) of each word
    if stationary_weights:
        loads = [(0, 1, int(t == 0 and not hidden), 0) for t in range(side)]
        words = loads + [(1, 0, int(t == 0 and hidden), int(t == side - 1)) for t in range(side)]
    else:
        words = [(1, 1, int(t == 0), int(t == side - 1)) for t in range(side)]
    last = len(words) + 2 * side - 2

    def operand(cycle: int, lane: int) -> str:
        low = PROOF_OPERAND * lane
        return f"((_ sign_extend {PROOF_BITS - PROOF_OPERAND}) ((_ extract {low + PROOF_OPERAND - 1} {low}) {{word_{cycle}}}))"

    def sum_of_products(row: int, column: int) -> str:
        if stationary_weights:
            factors = [(operand(side + row, i), operand(i, side + column)) for i in range(side)]
        else:
            factors = [(operand(k, row), operand(k, side + column)) for k in range(side)]
        products = [f"(bvmul {a} {b})" for a, b in factors]
        return f"(bvadd {' '.join(products)})"

    given, found = [], []
    for cycle in range(last + 1):
        given += [f"(= {{takes_{cycle}}} #b1)", f"(= {{valid_{cycle}}} #b{int(cycle < len(words))})"]
        if cycle < len(words):
            flags = "".join(str(flag) for flag in reversed(words[cycle]))
            given.append(f"(= ((_ extract {2 * side * PROOF_OPERAND + 3} {2 * side * PROOF_OPERAND}) {{word_{cycle}}}) #b{flags})")
            found.append(f"(= {{accepts_{cycle}}} #b1)")
        row = cycle - (last - side + 1)
        found.append(f"(= {{offers_{cycle}}} #b{int(row >= 0)})")
        for column in range(side) if row >= 0 else ():
            low = PROOF_BITS * column
            found.append(f"(= ((_ extract {low + PROOF_BITS - 1} {low}) {{result_{cycle}}}) {sum_of_products(row, column)})")
    return Theorem(design, ports, f"(=> (and {' '.join(given)}) (and {' '.join(found)}))", cycles=last + 1)
