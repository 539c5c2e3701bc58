"""A sequencer, two register files and lanes of fp16 multiply-accumulate."""

from __future__ import annotations

from typing import Any

from amaranth.hdl import Array, Cat, Module, Mux, Signal
from amaranth.lib import data

from hw.number import FLOATS
from hw.rtl.float import add, multiply, signal
from hw.rtl.stream import Pipeline, StreamUnit
from hw.units.bank_mac import COLUMN, EXIT, FILL_A, FILL_B, INSTRUCTIONS, JUMP, MAC, MUL, PROGRAM, STORE, VECTOR

FP16 = FLOATS["fp16"]
INSTRUCTION = data.StructLayout({"operation": 3, "target": 5, "count": 24})


class BankMacRtl(StreamUnit):
    """A column access executes the instruction under the program counter on its data, then steps.

    JUMP and EXIT take no access of their own: they are resolved while the instruction before them executes. EXIT starts over.
    """

    def __init__(self, lanes: int, registers: int) -> None:
        self.lanes, self.registers = lanes, registers
        vector = data.ArrayLayout(16, lanes)
        super().__init__(data.StructLayout({"kind": 2, "address": 8, "data": vector, "instruction": INSTRUCTION}), vector)

    def elaborate(self, platform: Any) -> Module:
        m = Module()
        flow = Pipeline(m, self)
        word = self.operands.payload
        width = 16 * self.lanes
        half = self.registers.bit_length() - 1
        operation = self._sequencer(m, flow, word)

        a_file = Array([Signal(width, name=f"a_{i}") for i in range(self.registers)])
        b_file = Array([Signal(width, name=f"b_{i}") for i in range(self.registers)])
        kind, operation, address, operand = flow.register(word.kind, operation, word.address, Cat(*word.data))
        column = kind == COLUMN
        a, b = address[:half], address[half : 2 * half]
        with m.If(column & (operation == FILL_A)):
            flow.update(a_file[a].eq(operand))
        with m.If(kind == VECTOR):
            flow.update(a_file[a].eq(operand))
        activations = signal(m, a_file[a], "activations")
        lanes = range(self.lanes)
        products = [multiply(m, FP16, activations.word_select(i, 16), operand.word_select(i, 16)) for i in lanes]

        column, operation, b, operand, product = flow.register(column, operation, b, operand, Cat(*products))
        held = signal(m, b_file[b], "held")
        sums = [add(m, FP16, held.word_select(i, 16), product.word_select(i, 16)) for i in lanes]
        value = Mux(operation == MAC, Cat(*sums), Mux(operation == MUL, product, operand))
        with m.If(column & ((operation == MAC) | (operation == MUL) | (operation == FILL_B))):
            flow.update(b_file[b].eq(value))
        flow.emit(column & (operation == STORE), held)
        return m

    @staticmethod
    def _sequencer(m: Module, flow: Pipeline, word: Any) -> Signal:
        """The operation of the column access in the first stage."""
        memory = Array([Signal(INSTRUCTION, name=f"instruction_{i}") for i in range(INSTRUCTIONS)])
        counter, looping, left = Signal(5), Signal(), Signal(24)
        with m.If(word.kind == PROGRAM):
            flow.update(memory[word.address[:5]].eq(word.instruction), counter.eq(0), looping.eq(0))
        after = signal(m, (counter + 1)[:5], "after")
        following = Signal(INSTRUCTION)
        m.d.comb += following.eq(memory[after])
        beyond = Signal(INSTRUCTION)
        m.d.comb += beyond.eq(memory[(counter + 2)[:5]])
        jumps = following.operation == JUMP
        rounds = signal(m, Mux(looping, left, following.count), "rounds")
        back = jumps & rounds.any()
        ended = Mux(jumps, beyond.operation, following.operation) == EXIT
        straight = Mux(ended, 0, Mux(jumps, counter + 2, after))
        with m.If(word.kind == COLUMN):
            flow.update(counter.eq(Mux(back, following.target, straight)), looping.eq(back), left.eq(rounds - 1))
        current = Signal(INSTRUCTION)
        m.d.comb += current.eq(memory[counter])
        return signal(m, current.operation, "operation")
