"""What the units replace, built from the same blocks: for areas that stand beside theirs."""

from __future__ import annotations

from typing import Any

from amaranth.hdl import Module, Mux, Signal, signed
from amaranth.lib import data

from hw.number import FLOATS
from hw.rtl.float import Operation, add, multiply, round_pack, signal, unpack
from hw.rtl.lmul import lmul
from hw.rtl.stream import Pipeline, StreamUnit, total


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


class Fp16Mac(StreamUnit):
    """One fp16 product per cycle, exact, added to an fp32 sum."""

    def __init__(self) -> None:
        super().__init__(data.StructLayout({"a": 16, "b": 16, "closes": 1}), 32)

    def elaborate(self, platform: Any) -> Module:
        m = Module()
        flow, wide, half = Pipeline(m, self), FLOATS["fp32"], FLOATS["fp16"]
        word = self.operands.payload
        x, y = unpack(m, word.a, half), unpack(m, word.b, half)
        exponent = x.exponent + y.exponent - 2 * (half.bias + half.fraction)
        product = round_pack(m, wide, x.sign ^ y.sign, signal(m, x.significand * y.significand), signal(m, exponent))
        closes, term = flow.register(word.closes, product)
        opening, held = Signal(init=1), Signal(32)
        m.d.comb += self.result.payload.eq(held)
        flow.update(opening.eq(closes), held.eq(Mux(opening, term, add(m, wide, held, term))))
        flow.emit(closes)
        return m


def references() -> dict[str, Any]:
    """Designs by name."""
    return {
        "ieee_bf16_multiplier": Operation(FLOATS["bf16"], multiply),
        "lmul_bf16_multiplier": Operation(FLOATS["bf16"], lmul),
        "ieee_fp16_multiplier": Operation(FLOATS["fp16"], multiply),
        "ieee_fp32_adder": Operation(FLOATS["fp32"], add),
        "mac_core_2x8_w1": MacCore(2, 8, 1),
        "mac_core_2x8_w2": MacCore(2, 8, 2),
        "mac_core_2x8_w4": MacCore(2, 8, 4),
        "fp16_mac": Fp16Mac(),
    }


__all__ = ["Fp16Mac", "MacCore", "references"]
