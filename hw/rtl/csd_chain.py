"""A chain of packed multiply-accumulates with a sparse multiplexer before and a reduction node after each pair."""

from __future__ import annotations

from typing import Any

from amaranth.hdl import Array, Elaboratable, Module, Mux, Signal, Value, signed
from amaranth.lib import data

from hw.rtl.proof import Theorem
from hw.rtl.stream import Pipeline, StreamUnit
from hw.units.csd_chain import WINDOW

SUM_BITS = 32


def field_bits(width: int) -> int:
    """Bits of the low field: two products of `width`-bit integers and their sign. 18 bits for bytes leave one to spare."""
    return 2 * width + 2


def packed(a: Any, b: Any, width: int) -> Any:
    """Two activations in one multiplier operand."""
    return (a << field_bits(width)) + b


def split(product: Any, width: int) -> tuple[Any, Any]:
    """The two sums that a packed sum holds: the low field, and the high one freed of the low one's borrow."""
    field = field_bits(width)
    low = product[:field].as_signed()
    return (product >> field) + product[field - 1], low


class CsdChainRtl(StreamUnit):
    """Group g works g cycles after group 0, as partial sums arrive; the results are brought together again at the end.

    A result word holds the two running sums of every group; those at the end of a segment are sums of the whole segment.
    """

    def __init__(self, groups: int) -> None:
        self.groups = groups
        window = data.ArrayLayout(signed(8), WINDOW)
        word = {
            "weights": data.ArrayLayout(signed(8), 2 * groups),
            "index": data.ArrayLayout(4, 2 * groups),
            "first": window,
            "second": window,
            "cuts": data.ArrayLayout(1, groups),
            "closes": 1,
        }
        super().__init__(data.StructLayout(word), data.ArrayLayout(signed(SUM_BITS), 2 * groups))

    def elaborate(self, platform: Any) -> Module:
        m = Module()
        flow = Pipeline(m, self)
        word = self.operands.payload
        slots: list[Any] = []
        rows = [Array([window[i] for i in range(WINDOW)]) for window in (word.first, word.second)]
        for slot in range(2 * self.groups):
            chosen = Signal(signed(27), name=f"chosen_{slot}")
            m.d.comb += chosen.eq(packed(rows[0][word.index[slot]], rows[1][word.index[slot]], 8))
            slots += [chosen, word.weights[slot]]
        closes, *rest = flow.register(word.closes, *(word.cuts[g] for g in range(self.groups)), *slots)
        cuts, operands = rest[: self.groups], rest[self.groups :]
        carried: tuple[Any, Any] = (0, 0)
        ends: list[tuple[Any, Any]] = []
        for group in range(self.groups):
            x0, w0, x1, w1 = (self._delayed(m, flow, value, group) for value in operands[4 * group : 4 * group + 4])
            first, x1, w1 = (self._delayed(m, flow, value, 1) for value in (x0 * w0, x1, w1))
            pair = self._delayed(m, flow, first + x1 * w1, 1)
            sums = split(pair, 8)
            totals = tuple(self._delayed(m, flow, (old + new)[:SUM_BITS].as_signed(), 1) for old, new in zip(carried, sums, strict=True))
            ends.append((totals[0], totals[1]))
            cut = self._delayed(m, flow, cuts[group], group + 3)
            carried = (Mux(cut, 0, totals[0]), Mux(cut, 0, totals[1]))
        aligned = [self._delayed(m, flow, value, self.groups - 1 - group) for group, both in enumerate(ends) for value in both]
        for _ in range(self.groups + 2):
            (closes,) = flow.register(closes)
        flow.accumulate(aligned, closes)
        return m

    @staticmethod
    def _delayed(m: Module, flow: Pipeline, value: Any, cycles: int) -> Any:
        value = Value.cast(value)
        for _ in range(cycles):
            later = Signal.like(value)
            with m.If(flow.moves):
                m.d.sync += later.eq(value)
            value = later
        return value


class _Pair(Elaboratable):  # type: ignore[misc]
    """Two packed products, added and split."""

    def __init__(self, width: int) -> None:
        self.width = width
        self.inputs = {name: Signal(signed(width), name=name) for name in ("a0", "a1", "b0", "b1", "w0", "w1")}
        self.high, self.low = (Signal(signed(2 * width + 2), name=name) for name in ("high", "low"))

    def elaborate(self, platform: Any) -> Module:
        m = Module()
        i = self.inputs
        sum_ = Signal(signed(4 * self.width + 6), name="packed_sum")
        m.d.comb += sum_.eq(packed(i["a0"], i["b0"], self.width) * i["w0"] + packed(i["a1"], i["b1"], self.width) * i["w1"])
        high, low = split(sum_, self.width)
        m.d.comb += [self.high.eq(high), self.low.eq(low)]
        return m


def split_theorem(width: int) -> Theorem:
    """The split fields are the two sums of products, for all operands, the most negative ones included."""
    design = _Pair(width)
    extra = width + 2

    def sum_(row: str) -> str:
        def product(i: int) -> str:
            return f"(bvmul ((_ sign_extend {extra}) {{{row}{i}}}) ((_ sign_extend {extra}) {{w{i}}}))"

        return f"(bvadd {product(0)} {product(1)})"

    ports = {**design.inputs, "high": design.high, "low": design.low}
    return Theorem(design, ports, f"(and (= {{high}} {sum_('a')}) (= {{low}} {sum_('b')}))")
