"""A multiply-accumulate unit beside a DRAM bank, stepped through a small program by the bank's column accesses.

In the manner of Samsung's HBM-PIM (Kwon et al., ISSCC 2021; Lee et al., ISCA 2021): 16 lanes of fp16, two register files, an
instruction memory with a program counter and a zero-cycle jump. The encoding of instructions is our own.
"""

from __future__ import annotations

from collections.abc import Iterator
from math import ceil
from typing import Any, NamedTuple

import numpy as np
from pydantic import field_validator

from hw.bits import Array, pack, unpack
from hw.errors import HardwareError
from hw.gemm import codes_of, gemm, matrices, shapes
from hw.number import FLOATS
from hw.quantity import Count
from hw.unit import Unit
from hw.work import Case, Gemm, Work

NOP, JUMP, EXIT, FILL_A, FILL_B, MUL, MAC, STORE = range(8)
PROGRAM, VECTOR, COLUMN = range(3)
"""Kinds of operand words: an instruction, an activation vector for register file A, a column access."""
INSTRUCTIONS = 32
LATENCY = 3
"""Cycles from a column access to its result: instruction, product, sum."""


class Instruction(NamedTuple):
    """`target` and `rounds` belong to JUMP: back to `target` for so many rounds, then on."""

    operation: int
    target: int = 0
    rounds: int = 0


def multiply_add(total: Any, x: Any, y: Any) -> Array:
    """total + x * y on fp16 codes, product and sum each rounded to nearest even; any NaN is the quiet one."""
    form = FLOATS["fp16"]
    a, b, c = (np.asarray(codes, np.uint16).view(np.float16) for codes in (total, x, y))
    with np.errstate(all="ignore"):
        sum_ = a + b * c
    return np.asarray(np.where(np.isnan(sum_), form.nan, sum_.view(np.uint16).astype(np.int64)))


def multiply(x: Any, y: Any) -> Array:
    """x * y on fp16 codes, rounded to nearest even."""
    form = FLOATS["fp16"]
    b, c = (np.asarray(codes, np.uint16).view(np.float16) for codes in (x, y))
    with np.errstate(all="ignore"):
        product = b * c
    return np.asarray(np.where(np.isnan(product), form.nan, product.view(np.uint16).astype(np.int64)))


class BankMac(Unit, kind="bank_mac", executes={"gemm"}):
    """`lanes` fp16 multiply-accumulates per column access, product and sum rounded separately, with `registers` vectors
    in each of the register files A (activations) and B (sums).

    Each lane keeps its own sum: results are [M, N, lanes] partial sums, which the host adds. Registers are addressed by the
    column: A by its low, B by its high half.
    """

    lanes: Count = 16
    registers: Count = 8

    @field_validator("registers")
    @classmethod
    def _power(cls, registers: int) -> int:
        if registers < 2 or registers & (registers - 1):
            raise HardwareError(f"expected a power of two of at least 2, found {registers}")
        return registers

    def _steps(self, k: int) -> int:
        """Input tiles: `registers` vectors of `lanes` along K each."""
        return ceil(k / (self.lanes * self.registers))

    def program(self, k: int) -> list[Instruction]:
        """Clear the sums, multiply and accumulate every tile, store the sums."""
        r = self.registers
        return [
            Instruction(FILL_B),
            Instruction(JUMP, 0, r - 1),
            Instruction(MAC),
            Instruction(JUMP, 2, r * r * self._steps(k) - 1),
            Instruction(STORE),
            Instruction(JUMP, 4, r - 1),
            Instruction(EXIT),
        ]

    def cycles(self, work: Work) -> int:
        """The program once; for each row and `registers` columns the clearing, per input tile its vectors and its accesses,
        and the stores; a command per cycle and three cycles from the last store to its result.

        >>> BankMac(lanes=16, registers=8).cycles(Gemm(1, 8, 128, "fp16"))
        97
        """
        work = gemm(work)
        r = self.registers
        commands = work.m * ceil(work.n / r) * (2 * r + self._steps(work.k) * (r + r * r))
        return len(self.program(work.k)) + commands - 1 + LATENCY

    def formats(self) -> frozenset[str]:
        return frozenset({"fp16"})

    def macs_per_cycle(self, number_format: str) -> int:
        return self.lanes if number_format == "fp16" else 0

    def golden(self, *operands: Any) -> Array:
        """fp16 codes [M, N, lanes] from codes [M, K] and [K, N]: lane l sums products of k = l, l + lanes, ... in that order."""
        left, right = self._padded(*operands)
        total = np.zeros((left.shape[0], right.shape[1], self.lanes), np.int64)
        for start in range(0, left.shape[1], self.lanes):
            part = slice(start, start + self.lanes)
            total = multiply_add(total, right[part].T[None], left[:, None, part])
        return total

    def _padded(self, left: Any, right: Any) -> tuple[Array, Array]:
        left, right = matrices(left, codes_of(16), right, codes_of(16))
        padding = -left.shape[1] % (self.lanes * self.registers)
        return np.pad(left, ((0, 0), (0, padding))), np.pad(right, ((0, padding), (0, 0)))

    def cases(self, rng: Any) -> Iterator[Case]:
        form = FLOATS["fp16"]
        for number, (m, n, k) in enumerate(shapes(rng, (1, self.registers, self.lanes * self.registers), largest=1)):
            if number % 3 == 2:
                operands = tuple(rng.integers(0, 1 << 16, shape) for shape in ((m, k), (k, n)))
            else:
                operands = tuple(form.encode(rng.normal(size=shape) * 4) for shape in ((m, k), (k, n)))
            yield Case(Gemm(m, n, k, "fp16"), operands)

    @classmethod
    def samples(cls) -> tuple[BankMac, ...]:
        return (cls(lanes=2, registers=2), cls(lanes=1, registers=4))

    def rtl(self) -> Any:
        from hw.rtl.bank_mac import BankMacRtl

        return BankMacRtl(self.lanes, self.registers)

    def results(self, work: Work) -> int:
        return gemm(work).m * ceil(gemm(work).n / self.registers) * self.registers

    def encode(self, *operands: Any) -> list[int]:
        left, right = self._padded(*operands)
        r, lanes = self.registers, self.lanes
        tiles = left.shape[1] // (lanes * r)
        right = np.pad(right, ((0, 0), (0, -right.shape[1] % r)))
        rows: list[tuple[int, int, Array]] = []
        empty = np.zeros(lanes, np.int64)
        for row in left.reshape(len(left), tiles, r, lanes):
            for column in range(0, right.shape[1], r):
                rows += [(COLUMN, b * r, empty) for b in range(r)]
                for tile in range(tiles):
                    rows += [(VECTOR, a, row[tile, a]) for a in range(r)]
                    block = right[tile * r * lanes : (tile + 1) * r * lanes, column : column + r].reshape(r, lanes, r)
                    rows += [(COLUMN, b * r + a, block[a, :, b]) for b in range(r) for a in range(r)]
                rows += [(COLUMN, b * r, empty) for b in range(r)]
        kind, address, vectors = (np.array(column) for column in zip(*rows, strict=True))
        zeros = np.zeros(len(rows), np.int64)
        program = self.program(np.shape(operands[0])[1])
        code = np.array(program)
        head = (np.full(len(code), PROGRAM), np.arange(len(code)), np.zeros((len(code), lanes), np.int64), *code.T)
        body = (kind, address, vectors, zeros, zeros, zeros)
        fields = [np.concatenate([a, b]) for a, b in zip(head, body, strict=True)]
        return pack(*zip(fields, (2, 8, 16, 3, 5, 24), strict=True))

    def decode(self, words: list[int], work: Work) -> Array:
        work = gemm(work)
        (values,) = unpack(words, (self.lanes, 16, False))
        return values.reshape(work.m, -1, self.lanes)[:, : work.n]

    def proofs(self) -> dict[str, Any]:
        from hw.rtl.float import rounding_theorem, sum_theorem

        return {"fp16_sum_is_ieee": sum_theorem(FLOATS["fp16"]), "fp16_product_rounds_as_ieee": rounding_theorem(FLOATS["fp16"])}
