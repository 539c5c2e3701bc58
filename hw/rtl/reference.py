"""What the units replace, built from the same blocks: for areas that stand beside theirs."""

from __future__ import annotations

from typing import Any

from amaranth.hdl import Array, Cat, Module, Mux, Signal, Value, signed
from amaranth.lib import data

from hw.number import FLOATS
from hw.rtl.float import Operation, add, multiply, round_pack, signal, unpack
from hw.rtl.flush_multiplier import flush_multiply
from hw.rtl.lmul import lmul
from hw.rtl.lut_tensor_core import ENTRIES, ENTRY_BITS, table
from hw.rtl.shift_add import ShiftAddElement
from hw.rtl.stream import Pipeline, StreamUnit, total

HALF, WIDE = FLOATS["fp16"], FLOATS["fp32"]


class MacCore(StreamUnit):
    """`rows` x `columns` dot products of four int8 activations and four weights of `weight_bits`, by multiplication.

    Weights are the odd integers of the look-up core, so that both compute the same; a step takes one cycle.
    """

    def __init__(self, rows: int, columns: int, weight_bits: int) -> None:
        self.rows, self.columns = rows, columns
        width = signed(weight_bits + 1) if weight_bits > 1 else signed(2)
        word = {
            "activations": data.ArrayLayout(data.ArrayLayout(signed(8), 4), rows),
            "weights": data.ArrayLayout(data.ArrayLayout(width, 4), columns),
            "closes": 1,
        }
        super().__init__(data.StructLayout(word), data.ArrayLayout(signed(32), rows * columns))

    def elaborate(self, platform: Any) -> Module:
        m = Module()
        flow = Pipeline(m, self)
        word = self.operands.payload
        sums = [
            total(word.activations[r][j] * word.weights[n][j] for j in range(4)) for r in range(self.rows) for n in range(self.columns)
        ]
        closes, *sums = flow.register(word.closes, *sums)
        flow.accumulate(sums, closes)
        return m


def exact_product(m: Module, a: Any, b: Any) -> Signal:
    """The fp32 product of two finite fp16 codes."""
    x, y = unpack(m, a, HALF), unpack(m, b, HALF)
    exponent = x.exponent + y.exponent - 2 * (HALF.bias + HALF.fraction)
    return round_pack(m, WIDE, x.sign ^ y.sign, signal(m, x.significand * y.significand), signal(m, exponent))


def accumulate32(m: Module, flow: Pipeline, unit: StreamUnit, term: Any, closes: Any) -> None:
    """A running fp32 sum, offered after a word with `closes`."""
    opening, held = Signal(init=1), Signal(32)
    m.d.comb += unit.result.payload.eq(held)
    flow.update(opening.eq(closes), held.eq(Mux(opening, term, add(m, WIDE, held, term))))
    flow.emit(closes)


class Fp16Mac(StreamUnit):
    """`lanes` fp16 products per cycle, exact, added to an fp32 sum."""

    def __init__(self, lanes: int = 1) -> None:
        self.lanes = lanes
        vector = data.ArrayLayout(16, lanes)
        super().__init__(data.StructLayout({"a": vector, "b": vector, "closes": 1}), 32)

    def elaborate(self, platform: Any) -> Module:
        m = Module()
        flow = Pipeline(m, self)
        word = self.operands.payload
        closes, *terms = flow.register(word.closes, *(exact_product(m, word.a[i], word.b[i]) for i in range(self.lanes)))
        while len(terms) > 1:
            terms = [add(m, WIDE, terms[i], terms[i + 1]) if i + 1 < len(terms) else terms[i] for i in range(0, len(terms), 2)]
        accumulate32(m, flow, self, terms[0], closes)
        return m


class LookupTable(StreamUnit):
    """The sums of one row's four activations, as integers of the unit or as fp16 numbers; shared by all columns of a core."""

    def __init__(self, fp16: bool) -> None:
        self.fp16 = fp16
        super().__init__(data.ArrayLayout(16 if fp16 else signed(8), 4), data.ArrayLayout(16 if fp16 else signed(ENTRY_BITS), ENTRIES))

    def elaborate(self, platform: Any) -> Module:
        m = Module()
        flow = Pipeline(m, self)
        acts = [self.operands.payload[j] for j in range(4)]
        if not self.fp16:
            entries = [Signal(signed(ENTRY_BITS), name=f"entry_{p}") for p in range(ENTRIES)]
            m.d.comb += [entry.eq(sum_) for entry, sum_ in zip(entries, table(acts), strict=True)]
            flow.emit(1, Cat(*entries))
            return m
        a, b, c, d = (Value.cast(act) for act in acts)

        def negative(code: Any) -> Value:
            return Cat(code[:15], ~code[15])

        near = [add(m, HALF, negative(b), negative(a)), add(m, HALF, b, negative(a))]
        like, unlike = add(m, HALF, c, d), add(m, HALF, d, negative(c))
        far = [negative(like), negative(unlike), unlike, like]  # the signs of c (low bit) and of d
        flow.emit(1, Cat(*(add(m, HALF, near[p & 1], far[p >> 1]) for p in range(ENTRIES))))
        return m


class LookupElement(StreamUnit):
    """One multiplexer of a look-up core: an entry with its sign, shifted by the bit plane, added to a running sum.

    Of integers of `entry_bits` in 32 bits, or of fp16 entries in fp32, where a shift adds to the exponent. The table comes in
    from outside, as in a core that shares it.
    """

    def __init__(self, entry_bits: int, fp16: bool) -> None:
        self.entry_bits, self.fp16 = entry_bits, fp16
        word = {"entries": data.ArrayLayout(entry_bits, ENTRIES), "index": 3, "sign": 1, "plane": 2, "closes": 1}
        super().__init__(data.StructLayout(word), 32)

    def elaborate(self, platform: Any) -> Module:
        m = Module()
        flow = Pipeline(m, self)
        word = self.operands.payload
        # as in the unit: the weights' bits are kept for a cycle, the table is where it is
        plane, closes, index, sign = flow.register(word.plane, word.closes, word.index, word.sign)
        entry = signal(m, Array([word.entries[p] for p in range(ENTRIES)])[index], "entry")
        if not self.fp16:
            value = entry.as_signed()
            flow.accumulate([Mux(sign, -value, value) << plane], closes)
            return m
        x = unpack(m, entry, HALF)
        exponent = signal(m, Cat(x.exponent, 0).as_signed() + plane - (HALF.bias + HALF.fraction))
        accumulate32(m, flow, self, round_pack(m, WIDE, x.sign ^ sign, x.significand, exponent), closes)
        return m


class Fp16Adders(StreamUnit):
    """Bit-serial without tables: four fp16 activations, each with the sign of its weight's bit, added pair by pair, and their sum,
    shifted by the bit plane, added to a running fp32 sum."""

    def __init__(self) -> None:
        word = {"activations": data.ArrayLayout(16, 4), "signs": data.ArrayLayout(1, 4), "plane": 2, "closes": 1}
        super().__init__(data.StructLayout(word), 32)

    def elaborate(self, platform: Any) -> Module:
        m = Module()
        flow = Pipeline(m, self)
        word = self.operands.payload
        terms = [Cat(code[:15], code[15] ^ word.signs[j]) for j, code in enumerate(Value.cast(word.activations[j]) for j in range(4))]
        near, far = add(m, HALF, terms[0], terms[1]), add(m, HALF, terms[2], terms[3])
        plane, closes, sum_ = flow.register(word.plane, word.closes, add(m, HALF, near, far))
        x = unpack(m, sum_, HALF)
        exponent = signal(m, Cat(x.exponent, 0).as_signed() + plane - (HALF.bias + HALF.fraction))
        accumulate32(m, flow, self, round_pack(m, WIDE, x.sign, x.significand, exponent), closes)
        return m


class Int8Dot(StreamUnit):
    """`lanes` int8 products per cycle, added to a 32-bit sum: one element of an int8 core."""

    def __init__(self, lanes: int) -> None:
        self.lanes = lanes
        vector = data.ArrayLayout(signed(8), lanes)
        super().__init__(data.StructLayout({"a": vector, "b": vector, "closes": 1}), signed(32))

    def elaborate(self, platform: Any) -> Module:
        m = Module()
        flow = Pipeline(m, self)
        word = self.operands.payload
        closes, step = flow.register(word.closes, total(word.a[i] * word.b[i] for i in range(self.lanes)))
        flow.accumulate([step], closes)
        return m


def references() -> dict[str, Any]:
    """Designs by name."""
    return {
        "ieee_bf16_multiplier": Operation(FLOATS["bf16"], multiply),
        "lmul_bf16_multiplier": Operation(FLOATS["bf16"], lmul),
        "flush_bf16_multiplier": Operation(FLOATS["bf16"], flush_multiply),
        "flush_fp8_e4m3_multiplier": Operation(FLOATS["fp8-e4m3"], flush_multiply),
        "flush_fp8_e5m2_multiplier": Operation(FLOATS["fp8-e5m2"], flush_multiply),
        "lmul_fp8_e4m3_multiplier": Operation(FLOATS["fp8-e4m3"], lmul),
        "lmul_fp8_e5m2_multiplier": Operation(FLOATS["fp8-e5m2"], lmul),
        "ieee_fp16_multiplier": Operation(FLOATS["fp16"], multiply),
        "ieee_fp32_adder": Operation(FLOATS["fp32"], add),
        "mac_core_2x8_w1": MacCore(2, 8, 1),
        "mac_core_2x8_w2": MacCore(2, 8, 2),
        "mac_core_2x8_w4": MacCore(2, 8, 4),
        "fp16_mac": Fp16Mac(),
        "fp16_dot4": Fp16Mac(4),
        "fp16_adders4": Fp16Adders(),
        "int8_dot4": Int8Dot(4),
        "lookup_table_int": LookupTable(fp16=False),
        "lookup_table_fp16": LookupTable(fp16=True),
        "lookup_element_int": LookupElement(ENTRY_BITS, fp16=False),
        "lookup_element_int8": LookupElement(8, fp16=False),
        "lookup_element_fp16": LookupElement(16, fp16=True),
        "shift_add_element": ShiftAddElement(),
    }
