"""A slice of SRAM that computes on its bit lines, with a sequencer for matrix products by look-up tables.

In the manner of SAIL (arXiv:2509.25853), whose body was not at hand: the arrangement is the only one in which all columns look up
the same row (tables hold sums of weights, activation bits are the index), and the cycle counts are those of bit-serial SRAM
arithmetic, one bit row per cycle, as in Eckert et al., "Neural Cache", ISCA 2018. The encoding of commands is our own.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import ceil
from typing import Annotated, Any, NamedTuple

import numpy as np
from pydantic import Field, model_validator

from hw.bits import Array, pack, unpack
from hw.errors import HardwareError
from hw.gemm import gemm, gemm_cases, matrices, wrap
from hw.quantity import Count
from hw.unit import Unit
from hw.work import Case, Work

WRITE, READ, STEP, ZERO, BUILD, LOOKUP = range(6)
"""Kinds of commands: a row in, a row out, one micro-operation; an accumulator to zero, all tables, one look-up and addition."""
AND, OR, XOR, ADD, COPY, LATCH = range(6)
"""Micro-operations on two rows; LATCH keeps the first one as the predicate of later ones."""
KEEP, CLEAR, SET = range(3)
"""What a micro-operation does to the carries before it uses them."""

ROWS = 4096
"""That a command can name."""


class Micro(NamedTuple):
    """A micro-operation of one cycle: row `target` = row `a` (operation) row `b`, in the columns whose predicate is one."""

    operation: int
    a: int
    b: int
    target: int
    carry: int = KEEP
    invert: int = 0
    """Whether the second row is complemented: a subtraction is an addition of the complement with the carries set."""
    predicated: int = 0


@dataclass(frozen=True, slots=True)
class Layout:
    """Rows of a slice: weights first, then the sums of two and more weights, then the accumulators."""

    group: int
    weight_bits: int
    entry_bits: int
    accumulator_bits: int
    items: int

    @property
    def patterns(self) -> list[int]:
        """The patterns whose sums are stored, in the order in which they are built: those of at least two weights."""
        return [p for p in range(1 << self.group) if p.bit_count() > 1]

    def entry(self, pattern: int) -> tuple[int, int]:
        """(first row, rows) of a sum of weights; a single weight is where it was written. Not for the empty pattern."""
        if pattern.bit_count() == 1:
            return (pattern.bit_length() - 1) * self.weight_bits, self.weight_bits
        return self.group * self.weight_bits + self.patterns.index(pattern) * self.entry_bits, self.entry_bits

    def parts(self, pattern: int) -> tuple[int, int]:
        """The two patterns whose sums are added: all but the highest weight, and that one."""
        top = 1 << (pattern.bit_length() - 1)
        return pattern - top, top

    @property
    def sums(self) -> int:
        """The first row of the accumulators."""
        return self.group * self.weight_bits + len(self.patterns) * self.entry_bits

    @property
    def rows(self) -> int:
        return self.sums + self.items * self.accumulator_bits


class SramPimSlice(Unit, kind="sram_pim_slice", executes={"gemm"}):
    """`columns` bit lines, each with a carry and a predicate; numbers stand upright, one bit per row.

    Signed weights of `weight_bits` are grouped by `group`; all sums of a group's weights are tabulated once, and each bit plane of
    a group of activations of `activation_bits` picks one of them, which is added to the accumulator, shifted by the plane. Tables
    are used for up to `items` rows of activations. Sums are modulo 2^`accumulator_bits`.
    """

    columns: Count = 256
    weight_bits: Annotated[int, Field(ge=2, le=8)] = 4
    activation_bits: Annotated[int, Field(ge=2, le=8)] = 8
    group: Annotated[int, Field(ge=2, le=4)] = 4
    accumulator_bits: Annotated[int, Field(ge=4, le=32)] = 24
    items: Count = 4

    @model_validator(mode="after")
    def _addressable(self) -> SramPimSlice:
        if self.layout.rows > ROWS:
            fits = (ROWS - self.layout.sums) // self.accumulator_bits
            needed = f"{self.items} accumulators need {self.layout.rows} rows of the {ROWS} of a slice"
            raise HardwareError(f"items: {needed}; at most {fits} fit")
        return self

    @property
    def entry_bits(self) -> int:
        """Bits of a sum of a group's weights."""
        return self.weight_bits + (self.group - 1).bit_length()

    @property
    def layout(self) -> Layout:
        return Layout(self.group, self.weight_bits, self.entry_bits, self.accumulator_bits, self.items)

    def build_cycles(self) -> int:
        """All tables of a group: for each sum of at least two weights a cycle to clear the carries and one per bit.

        >>> SramPimSlice(weight_bits=4, group=4).build_cycles()
        77
        """
        return ((1 << self.group) - self.group - 1) * (self.entry_bits + 1)

    def lookup_cycles(self) -> int:
        """One look-up: a cycle to decode the index, then the addition, which carries to the top of the accumulator.

        >>> SramPimSlice(accumulator_bits=24).lookup_cycles()
        25
        """
        return 1 + self.accumulator_bits

    def group_cycles(self, batch: int) -> int:
        """Tables of one group and the look-ups of `batch` rows of activations, bit plane by bit plane.

        >>> SramPimSlice().group_cycles(batch=2)
        477
        """
        return self.build_cycles() + batch * self.activation_bits * self.lookup_cycles()

    def cycles(self, work: Work) -> int:
        """For each block of `items` rows and `columns` columns: the accumulators to zero, a bit row per cycle; for each group along
        K its weights in and `group_cycles`; the sums out, a bit row per cycle.

        >>> from hw.work import Gemm
        >>> SramPimSlice().cycles(Gemm(2, 256, 4, "int8"))
        589
        """
        work = gemm(work)
        groups, total = ceil(work.k / self.group), 0
        for start in range(0, work.m, self.items):
            batch = min(self.items, work.m - start)
            total += 2 * batch * self.accumulator_bits + groups * (self.group * self.weight_bits + self.group_cycles(batch))
        return ceil(work.n / self.columns) * total

    def formats(self) -> frozenset[str]:
        return frozenset({"int8"})

    def macs_per_cycle(self, number_format: str) -> int:
        """At most one look-up's share of a bit plane per `lookup_cycles`."""
        if number_format != "int8":
            return 0
        return ceil(self.columns * self.group / (self.activation_bits * self.lookup_cycles()))

    def golden(self, *operands: Any) -> Array:
        """[M, N] sums modulo 2^accumulator_bits of signed [M, K] and [K, N]."""
        a, w = (1 << (bits - 1) for bits in (self.activation_bits, self.weight_bits))
        left, right = matrices(operands[0], (-a, a - 1), operands[1], (-w, w - 1))
        return wrap(left @ right, self.accumulator_bits)

    def cases(self, rng: Any) -> Iterator[Case]:
        left, right = ((-(1 << (bits - 1)), (1 << (bits - 1)) - 1) for bits in (self.activation_bits, self.weight_bits))
        yield from gemm_cases(rng, "int8", left, right, steps=(self.items, self.columns, self.group), largest=1)

    @classmethod
    def samples(cls) -> tuple[SramPimSlice, ...]:
        return (
            cls(columns=8, accumulator_bits=14, items=2),
            cls(columns=3, weight_bits=2, activation_bits=3, group=3, accumulator_bits=9, items=3),
            cls(columns=2, weight_bits=3, activation_bits=2, group=2, accumulator_bits=4, items=1),
        )

    def rtl(self) -> Any:
        from hw.rtl.sram_pim_slice import SramPimSliceRtl

        return SramPimSliceRtl(self.columns, self.layout)

    def results(self, work: Work) -> int:
        work = gemm(work)
        return ceil(work.n / self.columns) * work.m * self.accumulator_bits

    def encode(self, *operands: Any) -> list[int]:
        left, right = (np.asarray(x, np.int64) for x in operands)
        (m, k), n = left.shape, right.shape[1]
        across, groups, place = ceil(n / self.columns), ceil(k / self.group), self.layout
        left = np.pad(left, ((0, 0), (0, groups * self.group - k)))
        right = np.pad(right, ((0, groups * self.group - k), (0, across * self.columns - n)))
        planes, powers = np.arange(self.activation_bits), 1 << np.arange(self.group)
        # the index of each look-up: [M, groups, planes]
        index = ((left.reshape(m, groups, self.group, 1) >> planes & 1) * powers[:, None]).sum(axis=2)
        # the rows of each group's weights: [blocks, groups, weights and bits, columns]
        rows = right.reshape(groups, self.group, across, self.columns, 1) >> np.arange(self.weight_bits) & 1
        rows = rows.transpose(2, 0, 1, 4, 3).reshape(across, groups, -1, self.columns)
        commands: list[tuple[int, ...]] = []
        data: list[Array] = []
        nothing = np.zeros(self.columns, np.int64)

        def command(kind: int, *, a: int = 0, pattern: int = 0, plane: int = 0, item: int = 0, row: Array = nothing) -> None:
            commands.append((kind, a, pattern, plane, int(kind == LOOKUP and plane == self.activation_bits - 1), item))
            data.append(row)

        for start in range(0, m, self.items):
            batch = range(min(self.items, m - start))
            for block in rows:
                for item in batch:
                    command(ZERO, item=item)
                for group, weights in enumerate(block):
                    for address, row in enumerate(weights):
                        command(WRITE, a=address, row=row)
                    command(BUILD)
                    for item in batch:
                        for plane in range(self.activation_bits):
                            command(LOOKUP, pattern=int(index[start + item, group, plane]), plane=plane, item=item)
                for item in batch:
                    for bit in range(self.accumulator_bits):
                        command(READ, a=place.sums + item * self.accumulator_bits + bit)
        return self.words(np.array(commands), np.array(data))

    def words(self, commands: Array, rows: Array) -> list[int]:
        """Stream words of commands [count, (kind, row, pattern, plane, subtract, item)] and the rows to write [count, columns]."""
        kind, a, pattern, plane, subtract, item = commands.T
        zero = np.zeros(len(commands), np.int64)
        fields = ((kind, 3), (a, 12), (pattern, 4), (plane, 3), (subtract, 1), (item, 8))
        return pack(*fields, *((zero, width) for width in (3, 12, 12, 2, 1, 1)), (rows, 1))

    def step_words(self, program: list[Micro]) -> list[int]:
        """Stream words of micro-operations."""
        operation, a, b, target, carry, invert, predicated = np.array(program).T
        zero = np.zeros(len(program), np.int64)
        fields = ((np.full(len(program), STEP), 3), (a, 12), (zero, 4), (zero, 3), (zero, 1), (zero, 8))
        rest = ((operation, 3), (b, 12), (target, 12), (carry, 2), (invert, 1), (predicated, 1))
        return pack(*fields, *rest, (np.zeros((len(program), self.columns), np.int64), 1))

    def micro(self, rows: Any, program: list[Micro]) -> Array:
        """Golden of micro-operations: the rows [rows, columns] after a program that starts with all predicates one."""
        rows = np.array(rows, np.int64)
        carry, predicate = np.zeros(rows.shape[1], np.int64), np.ones(rows.shape[1], np.int64)
        for step in program:
            a, b = rows[step.a], rows[step.b] ^ step.invert
            carry = {KEEP: carry, CLEAR: carry * 0, SET: carry * 0 + 1}[step.carry]
            if step.operation == LATCH:
                predicate = a.copy()
                continue
            value = {AND: a & b, OR: a | b, XOR: a ^ b, ADD: a ^ b ^ carry, COPY: a}[step.operation]
            if step.operation == ADD:
                carry = (a & b) | (carry & (a ^ b))
            keep = predicate if step.predicated else 1
            rows[step.target] = np.where(keep, value, rows[step.target])
        done: Array = rows
        return done

    def decode(self, words: list[int], work: Work) -> Array:
        work = gemm(work)
        (bits,) = unpack(words, (self.columns, 1, False))
        weights = np.left_shift(np.int64(1), np.arange(self.accumulator_bits, dtype=np.int64))
        across, position, blocks = ceil(work.n / self.columns), 0, []
        for start in range(0, work.m, self.items):
            batch = min(self.items, work.m - start)
            count = across * batch * self.accumulator_bits
            part = bits[position : position + count].reshape(across, batch, self.accumulator_bits, self.columns)
            blocks.append(np.einsum("abrc,r->bac", part, weights).reshape(batch, across * self.columns))
            position += count
        return wrap(np.concatenate(blocks)[:, : work.n], self.accumulator_bits)

    def proofs(self) -> dict[str, Any]:
        from hw.rtl.sram_pim_slice import addition_theorem, tables_theorem

        return {
            "rows_add_and_subtract": addition_theorem(self.accumulator_bits),
            "tables_hold_every_sum_of_weights": tables_theorem(self.layout),
        }
