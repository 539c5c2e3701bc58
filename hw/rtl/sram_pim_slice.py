"""Bit lines with a full adder each, and the sequencer that builds tables and looks them up."""

from __future__ import annotations

from typing import Any

from amaranth.hdl import Array, Cat, Const, Elaboratable, Module, Mux, Signal, Value, signed
from amaranth.lib import data
from amaranth.lib.memory import Memory

from hw.rtl.float import signal
from hw.rtl.proof import Theorem
from hw.rtl.stream import Pipeline, StreamUnit
from hw.units.sram_pim_slice import ADD, AND, BUILD, COPY, LATCH, LOOKUP, OR, READ, SET, STEP, WRITE, XOR, ZERO, Layout


def full_adder(a: Any, b: Any, carry: Any) -> tuple[Any, Any]:
    """Sum and carry of each column."""
    either = a ^ b
    return either ^ carry, (a & b) | (carry & either)


class SramPimSliceRtl(StreamUnit):
    """Two rows are read and one is written per cycle. A command is taken when the one before is done.

    WRITE, READ and STEP take one cycle; ZERO one per bit of an accumulator; BUILD and LOOKUP one to prepare and one per bit of each
    sum. While a row waits to be taken, the slice stands still.
    """

    def __init__(self, columns: int, layout: Layout) -> None:
        self.columns, self.layout = columns, layout
        word = {"kind": 3, "a": 12, "pattern": 4, "plane": 3, "subtract": 1, "item": 8}
        word |= {"operation": 3, "b": 12, "target": 12, "carry": 2, "invert": 1, "predicated": 1, "row": columns}
        super().__init__(data.StructLayout(word), columns)

    def elaborate(self, platform: Any) -> Module:
        m = Module()
        place, word = self.layout, self.operands.payload
        address = range(max(place.rows, 2))
        array = m.submodules.array = Memory(shape=self.columns, depth=max(place.rows, 2), init=[])
        write, first, second = array.write_port(), array.read_port(domain="comb"), array.read_port(domain="comb")
        building, adding, zeroing = Signal(), Signal(), Signal()
        flow = Pipeline(m, self, accept=~(building | adding | zeroing))
        moves, taken = flow.moves, signal(m, flow.moves & flow.valid, "taken")

        carry, predicate = Signal(self.columns), Signal(self.columns, init=(1 << self.columns) - 1)
        bit = Signal(range(max(place.accumulator_bits, place.entry_bits) + 1))
        kind = word.kind
        ones = Const((1 << self.columns) - 1, self.columns)

        # what the sequencer adds: rows of two sums while it builds, an accumulator and a sum while it looks up
        entry, left, top, target = self._build(m, moves, taken & (kind == BUILD), building, bit)
        plane, base, length, empty, subtract, sums = self._decode(m, taken & (kind == LOOKUP), word)
        place_in_entry = signal(m, bit - plane, "place_in_entry")
        below = signal(m, bit < plane, "below")
        looked_up = signal(m, base + Mux(place_in_entry < length, place_in_entry, length - 1), "looked_up")
        summing = signal(m, building & entry, "summing")
        a = signal(m, Mux(building, left, Mux(adding, sums + bit, word.a)), "row_a")
        b = signal(m, Mux(building, top, Mux(adding, looked_up, word.b)), "row_b")
        m.d.comb += [first.addr.eq(a[: len(first.addr)]), second.addr.eq(b[: len(second.addr)])]

        masked = Mux(adding & (below | empty), 0, second.data)
        inverted = Mux(Mux(adding, subtract, ~building & word.invert), ones, 0)
        x, y = first.data, signal(m, masked ^ inverted, "second_operand")
        before = Mux(building | adding | (word.carry == 0), carry, Mux(word.carry == SET, ones, 0))
        total, out = (signal(m, value, name) for value, name in zip(full_adder(x, y, before), ("total", "carries"), strict=True))
        steps = signal(m, taken & (kind == STEP), "steps")
        operations = Array([Const(0, self.columns)] * 8)
        for operation, value in ((AND, x & y), (OR, x | y), (XOR, x ^ y), (ADD, total), (COPY, x)):
            operations[operation] = signal(m, value[: self.columns], "operation")
        chosen = signal(m, Mux(building | adding, total, operations[word.operation]), "chosen")

        zero_row = Signal(address)
        commanded = (taken & ((kind == WRITE) | (kind == ZERO))) | (steps & (word.operation != LATCH))
        own = Mux(kind == ZERO, self._accumulator(word.item), Mux(kind == STEP, word.target, word.a))
        m.d.comb += write.en.eq(moves & (summing | adding | zeroing | commanded))
        m.d.comb += write.addr.eq(Mux(building, target, Mux(adding, a, Mux(zeroing, zero_row, own))))
        kept = Mux(steps & word.predicated, predicate, ones)
        # a column that is not predicated keeps the target's bit
        old = array.read_port(domain="comb")
        m.d.comb += old.addr.eq(word.target[: len(old.addr)])
        data_in = Mux(building | adding | steps, (chosen & kept) | (old.data & ~kept), Mux(~zeroing & (kind == WRITE), word.row, 0))
        m.d.comb += write.data.eq(data_in)

        with m.If(moves):
            with m.If(building | adding):
                m.d.sync += carry.eq(Mux(building & ~entry, 0, out))
            with m.If(steps):
                m.d.sync += carry.eq(Mux(word.operation == ADD, out, before))
                with m.If(word.operation == LATCH):
                    m.d.sync += predicate.eq(x)
            with m.If(taken & (kind == LOOKUP)):
                m.d.sync += [adding.eq(1), bit.eq(0), carry.eq(Mux(word.subtract, ones, 0))]
            with m.If(taken & (kind == BUILD)):
                m.d.sync += carry.eq(0)
            with m.If(adding):
                m.d.sync += [bit.eq(bit + 1), adding.eq(bit != place.accumulator_bits - 1)]
            with m.If(taken & (kind == ZERO)):
                m.d.sync += [zeroing.eq(place.accumulator_bits > 1), bit.eq(1), zero_row.eq(self._accumulator(word.item) + 1)]
            with m.If(zeroing):
                m.d.sync += [bit.eq(bit + 1), zero_row.eq(zero_row + 1), zeroing.eq(bit != place.accumulator_bits - 1)]
        flow.emit(kind == READ, first.data)
        return m

    def _accumulator(self, item: Any) -> Any:
        """The first row of an item's accumulator."""
        return item * self.layout.accumulator_bits + self.layout.sums

    def _build(self, m: Module, moves: Any, starts: Any, building: Signal, bit: Signal) -> tuple[Any, Any, Any, Any]:
        """Steps through the sums of two and more weights: whether this cycle adds, the two rows it adds, and the row it writes.

        The cycle before each sum clears the carries; that of the first is the one that takes the command.
        """
        place = self.layout
        last = len(place.patterns) - 1
        number, adds = Signal(range(last + 1)), Signal()
        sources = [[place.entry(part) for part in place.parts(p)] for p in place.patterns]

        def row(which: int) -> Any:
            bases = Array([Const(pair[which][0], 12) for pair in sources])
            lengths = Array([Const(pair[which][1], 4) for pair in sources])
            length = lengths[number]
            return bases[number] + Mux(bit < length, bit, length - 1)

        targets = Array([Const(place.entry(p)[0], 12) for p in place.patterns])
        with m.If(starts):
            m.d.sync += [building.eq(1), adds.eq(1), bit.eq(0), number.eq(0)]
        with m.If(moves & building):
            with m.If(~adds):
                m.d.sync += [adds.eq(1), bit.eq(0)]
            with m.Elif(bit == place.entry_bits - 1):
                m.d.sync += [adds.eq(0), number.eq(Mux(number == last, 0, number + 1)), building.eq(number != last)]
            with m.Else():
                m.d.sync += bit.eq(bit + 1)
        return adds, row(0), row(1), targets[number] + bit

    def _decode(self, m: Module, starts: Any, word: Any) -> tuple[Signal, ...]:
        """What a look-up needs, kept from the cycle that takes the command."""
        place = self.layout
        entries = [(0, 1), *(place.entry(p) for p in range(1, 1 << place.group))]
        plane, base, length, empty, subtract, sums = Signal(3), Signal(12), Signal(4), Signal(), Signal(), Signal(12)
        pattern = word.pattern[: place.group]
        with m.If(starts):
            m.d.sync += [
                plane.eq(word.plane),
                base.eq(Array([Const(first, 12) for first, _ in entries])[pattern]),
                length.eq(Array([Const(rows, 4) for _, rows in entries])[pattern]),
                empty.eq(~pattern.any()),
                subtract.eq(word.subtract),
                sums.eq(self._accumulator(word.item)),
            ]
        return plane, base, length, empty, subtract, sums


class _Addition(Elaboratable):  # type: ignore[misc]
    """One column's adder, bit after bit."""

    def __init__(self, width: int) -> None:
        self.width = width
        self.a, self.b, self.result = (Signal(width, name=name) for name in ("a", "b", "result"))
        self.subtract = Signal(name="subtract")

    def elaborate(self, platform: Any) -> Module:
        m = Module()
        carry: Any = self.subtract
        bits = []
        for i in range(self.width):
            total, carry = full_adder(self.a[i], self.b[i] ^ self.subtract, carry)
            bits.append(total)
        m.d.comb += self.result.eq(Cat(*bits))
        return m


def addition_theorem(width: int) -> Theorem:
    """A column that takes one bit row per cycle adds two numbers of `width` bits, or subtracts the second, for all of them."""
    design = _Addition(width)
    ports = {"a": design.a, "b": design.b, "subtract": design.subtract, "result": design.result}
    return Theorem(design, ports, "(= {result} (ite (= {subtract} #b1) (bvsub {a} {b}) (bvadd {a} {b})))")


class _Tables(Elaboratable):  # type: ignore[misc]
    """The sums in the order in which the sequencer builds them, each from two earlier ones."""

    def __init__(self, layout: Layout) -> None:
        self.layout = layout
        self.weights = [Signal(signed(layout.weight_bits), name=f"w{k}") for k in range(layout.group)]
        self.sums = [Signal(layout.entry_bits, name=f"sum{p}") for p in layout.patterns]

    def elaborate(self, platform: Any) -> Module:
        m = Module()
        place = self.layout
        rows: dict[int, Any] = {}
        for k, weight in enumerate(self.weights):
            base, length = place.entry(1 << k)
            rows |= {base + i: weight[i] for i in range(length)}
        for pattern, found in zip(place.patterns, self.sums, strict=True):
            (left, left_bits), (top, top_bits) = (place.entry(part) for part in place.parts(pattern))
            carry: Any = Const(0, 1)
            for i in range(place.entry_bits):
                total, carry = full_adder(rows[left + min(i, left_bits - 1)], rows[top + min(i, top_bits - 1)], carry)
                rows[place.entry(pattern)[0] + i] = found[i]
                m.d.comb += found[i].eq(total)
        return m


def tables_theorem(layout: Layout) -> Theorem:
    """After a build, the rows of every pattern hold the signed sum of its weights, for all weights."""
    design = _Tables(layout)
    extra = layout.entry_bits - layout.weight_bits

    def weight(k: int) -> str:
        return f"((_ sign_extend {extra}) {{w{k}}})"

    claims = []
    for pattern in layout.patterns:
        terms = [weight(k) for k in range(layout.group) if pattern >> k & 1]
        sum_ = terms[0]
        for term in terms[1:]:
            sum_ = f"(bvadd {sum_} {term})"
        claims.append(f"(= {{sum{pattern}}} {sum_})")
    ports = {s.name: Value.cast(s) for s in (*design.weights, *design.sums)}
    return Theorem(design, ports, f"(and true {' '.join(claims)})")
