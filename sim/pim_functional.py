"""PIM kernels on data: the commands of every channel are interpreted one by one over the contents of its banks.

Numbers are fp16, every product and every sum rounded to nearest even. The order of additions is that of the commands. What
the publications leave open is stated here: adder trees add neighbours, level by level; a host or buffer die adds partial sums
of lanes, slices, banks and ways in ascending order in fp32 and rounds once.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from hw.errors import HardwareError
from hw.pim.aim import Aim
from hw.pim.attacc import PARTS, WAYS, AttAcc
from hw.pim.hbm_pim import EVEN, ODD, HbmPim
from hw.pim.layout import HeadLayout, Place, RowLayout, TileLayout
from hw.pim.neupims import NeuPims
from hw.pim.stream import Run
from hw.units.bank_mac import EXIT, JUMP, MAC, STORE, Instruction, multiply_add

Array = np.ndarray[Any, Any]


def tree(products: Array) -> Array:
    """The sum of the last axis by a tree of fp16 adders: neighbours first, level by level."""
    while products.shape[-1] > 1:
        with np.errstate(all="ignore"):
            products = products[..., 0::2] + products[..., 1::2]
    return products[..., 0]


def rounded(values: Array) -> Array:
    """fp32 values rounded to fp16 once."""
    with np.errstate(over="ignore"):
        return values.astype(np.float16)


class Banks:
    """Contents of the banks of all channels: fp16 bursts by channel, bank, row and column, zero where nothing was written."""

    def __init__(self, channels: int, banks: int, rows: int, columns: int, lanes: int) -> None:
        self.data = np.zeros((channels, banks, rows, columns, lanes), np.float16)

    def fill(self, matrix: Array, place: Callable[[int, int], Place]) -> None:
        """Every element of a matrix at its place. Raises `HardwareError` when two elements share one."""
        taken: set[Place] = set()
        for output in range(matrix.shape[0]):
            for index in range(matrix.shape[1]):
                at = place(output, index)
                if at in taken:
                    raise HardwareError(f"layout: element ({output}, {index}) lies at {at}, where another one is")
                taken.add(at)
                self.data[at] = matrix[output, index]


class Sequencer:
    """The program of an HBM-PIM unit: a column command executes the instruction under the counter; jumps take no command."""

    def __init__(self, program: list[Instruction]) -> None:
        self.program = program
        self.reset()

    def reset(self) -> None:
        self.counter, self.left, self.ended = 0, -1, False

    def step(self) -> int:
        """The operation of the next column command. Raises `HardwareError` after the program's end."""
        if self.ended:
            raise HardwareError("a column command came after the program's end")
        operation = self.program[self.counter].operation
        self.counter += 1
        if self.program[self.counter].operation == JUMP:
            jump = self.program[self.counter]
            self.left = jump.rounds if self.left < 0 else self.left
            if self.left > 0:
                self.left -= 1
                self.counter = jump.target
            else:
                self.left = -1
                self.counter += 1
        self.ended = self.program[self.counter].operation == EXIT
        return operation


def hbm_pim_program(layout: TileLayout) -> list[Instruction]:
    """Multiply and accumulate all even, then all odd tiles, then store: MAC, jump, MAC, jump, STORE, jump, exit."""
    even = layout.pairs * layout.bursts
    odd = layout.input_tiles * layout.bursts - even
    head = [Instruction(MAC), Instruction(JUMP, 0, even - 1)]
    if odd:
        head += [Instruction(MAC), Instruction(JUMP, 2, odd - 1)]
    return [*head, Instruction(STORE), Instruction(JUMP, len(head), layout.registers - 1), Instruction(EXIT)]


def run_hbm_pim(design: HbmPim, matrix: Array, vectors: Array) -> tuple[Array, Array]:
    """`vectors` [batch, inputs] times `matrix` [outputs, inputs], both fp16: the results [batch, outputs] and the partial sums of the
    lanes [batch, outputs, lanes] that the host reads back."""
    batch, (outputs, inputs) = len(vectors), (int(size) for size in matrix.shape)
    layout = design.layout(outputs, inputs, batch)
    kernel = design.product(outputs, inputs, batch)
    rows = layout.rows_needed + -(-layout.output_tiles * batch * design.registers // layout.columns)
    banks = Banks(design.channels, 2 * design.blocks, rows, layout.columns, design.lanes)
    banks.fill(matrix, layout.place)
    padded = np.zeros((batch, layout.input_tiles * layout.input_tile), np.float16)
    padded[:, : matrix.shape[1]] = vectors
    a = np.zeros((design.channels, design.blocks, design.registers, design.lanes), np.float16)
    b = np.zeros_like(a)
    unit = Sequencer(hbm_pim_program(layout))
    stored: dict[tuple[int, int], tuple[int, int]] = {}
    for run in kernel.stream.runs():
        for i in range(run.count):
            side = slice(run.bank_set, None, 2)
            if run.name == "HAB_TO_PIM":
                unit.reset()
                b[:] = 0
            elif run.name == "WR_GRF":
                vector, tile = run.tag
                first = tile * layout.input_tile + i * design.lanes
                a[:, :, i] = padded[vector, first : first + design.lanes]
            elif run.name == "MAC":
                _expect(unit.step(), MAC, run)
                burst = (run.row * layout.columns + run.column + i) % layout.bursts
                target, source = divmod(burst, design.registers)
                codes = (x.view(np.uint16) for x in (b[:, :, target], a[:, :, source], banks.data[:, side, run.row, run.column + i].copy()))
                b[:, :, target] = multiply_add(*codes).astype(np.uint16).view(np.float16)
            elif run.name == "STORE":
                _expect(unit.step(), STORE, run)
                row, column = divmod(run.row * layout.columns + run.column + i, layout.columns)
                banks.data[:, side, row, column] = b[:, :, i]
                if i == 0:
                    tile, vector = run.tag
                    stored[tile, vector] = (run.row, run.column)
    lanes = np.zeros((batch, layout.output_tiles * layout.output_tile, design.lanes), np.float16)
    for (tile, vector), (row, column) in stored.items():
        part = banks.data[:, ODD::2, row, column : column + design.registers]
        first = tile * layout.output_tile
        lanes[vector, first : first + layout.output_tile] = part.reshape(-1, design.lanes)
    lanes = lanes[:, :outputs]
    assert EVEN == 0  # even banks are those from 0 on in steps of two
    return rounded(lanes.astype(np.float32).sum(axis=-1, dtype=np.float32)), lanes


def _expect(found: int, wanted: int, run: Run) -> None:
    if found != wanted:
        raise HardwareError(f"command {run.name}: the program stands at operation {found}, expected {wanted}")


def run_rows(design: Aim | NeuPims, matrix: Array, vectors: Array) -> Array:
    """GDDR6-AiM and NeuPIMs: `vectors` [batch, inputs] times `matrix` [outputs, inputs], fp16 results [batch, outputs]; slices of
    the inputs are added by the host."""
    batch, (outputs, inputs) = len(vectors), (int(size) for size in matrix.shape)
    layout: RowLayout = design.layout(outputs, inputs, 1 if isinstance(design, Aim) else design.channels)
    kernel = design.product(outputs, inputs, batch)
    banks = Banks(layout.channels, layout.banks, layout.rows_needed, layout.columns, layout.lanes)
    banks.fill(matrix, layout.place)
    padded = np.zeros((batch, layout.slices * layout.row_elements), np.float16)
    padded[:, : matrix.shape[1]] = vectors
    buffer = np.zeros((layout.columns, layout.lanes), np.float16)
    sums = np.zeros((layout.channels, layout.banks), np.float16)
    partial = np.zeros((batch, layout.slices, layout.groups * layout.channels * layout.banks), np.float16)
    for run in kernel.stream.runs():
        if run.name in ("WR_GB", "GWRITE"):
            vector, number = run.tag[:2]
            first = number * layout.row_elements
            buffer[:] = padded[vector, first : first + layout.row_elements].reshape(layout.columns, layout.lanes)
        elif run.name == "WR_BIAS":
            sums[:] = 0
        elif run.name in ("MAC_ABK", "COMP"):
            if run.name == "COMP":
                sums[:] = 0
            for i in range(run.count):
                with np.errstate(all="ignore"):
                    sums += tree(banks.data[:, :, run.row, run.column + i] * buffer[i])
        elif run.name in ("RD_MAC", "READRES"):
            vector, number, group = run.tag
            first = group * layout.channels * layout.banks
            partial[vector, number, first : first + sums.size] = sums.reshape(-1)
    return rounded(partial.astype(np.float32).sum(axis=1, dtype=np.float32))[:, :outputs]


def rows_golden(matrix: Array, vectors: Array, *, lanes: int, row_elements: int) -> Array:
    """What a unit of `lanes` with an adder tree computes: burst after burst, slices of `row_elements` added in fp32."""
    slices = []
    for first in range(0, matrix.shape[1], row_elements):
        part, vector = matrix[:, first : first + row_elements], vectors[:, first : first + row_elements]
        padding = -part.shape[1] % lanes
        part, vector = np.pad(part, ((0, 0), (0, padding))), np.pad(vector, ((0, 0), (0, padding)))
        total = np.zeros((len(vectors), len(matrix)), np.float16)
        for start in range(0, part.shape[1], lanes):
            burst = slice(start, start + lanes)
            total = total + tree(part[None, :, burst] * vector[:, None, burst])
        slices.append(total.astype(np.float32))
    return rounded(np.asarray(np.sum(slices, axis=0, dtype=np.float32)))


def softmax(scores: Array) -> Array:
    """Softmax in fp32 of fp16 scores, rounded to fp16."""
    wide = scores.astype(np.float32)
    powers = np.exp(wide - wide.max())
    return rounded(powers / powers.sum(dtype=np.float32))


def run_attacc(design: AttAcc, keys: Array, values: Array, query: Array) -> tuple[Array, Array]:
    """One head on one channel: scores [tokens] and context [width] in fp16, from `keys` and `values` [tokens, width] and a `query`.

    Units add along a head's width by a tree for scores, and along tokens lane by lane for the context. The units' sums of the
    four banks of a group (scores) and of the sixteen ways (context) are added on the way to the softmax buffer.
    """
    tokens, width = keys.shape
    layout: HeadLayout = design.head(tokens, width)
    kernel = design.attention(1, tokens, width)
    step_row = layout.rows_needed
    banks = Banks(1, WAYS * PARTS, 2 * layout.rows_needed, layout.columns, design.lanes)
    banks.fill(keys, layout.place)
    banks.fill(values, lambda token, index: layout.value_place(token, index)._replace(row=step_row + layout.value_place(token, index).row))
    chunk = PARTS * design.lanes
    flat = np.zeros(layout.width_steps * chunk, np.float16)
    flat[:width] = query
    vector = flat.reshape(layout.width_steps, PARTS, design.lanes)
    scores = np.zeros(layout.token_steps * WAYS, np.float16)
    context = np.zeros((layout.width_steps, PARTS, design.lanes), np.float32)
    weights = np.zeros((layout.token_steps, WAYS), np.float16)
    units = np.zeros((WAYS, PARTS), np.float16)
    lanes = np.zeros((WAYS, PARTS, design.lanes), np.float16)
    for run in kernel.stream.runs():
        if run.name == "MAC_AB":
            for i in range(run.count):
                burst = banks.data[0, :, run.row, run.column + i].reshape(WAYS, PARTS, design.lanes)
                at = (run.row - run.tag[1] * step_row) * layout.columns + run.column + i
                if run.tag[1] == 0:
                    step, part = divmod(at, layout.width_steps)
                    units = units + tree(burst * vector[part][None]) if part else tree(burst * vector[part][None])
                    if part == layout.width_steps - 1:
                        scores[step * WAYS : step * WAYS + WAYS] = rounded(units.astype(np.float32).sum(axis=1, dtype=np.float32))
                else:
                    part, step = divmod(at, layout.token_steps)
                    lanes = np.zeros_like(lanes) if step == 0 else lanes
                    with np.errstate(all="ignore"):
                        lanes = lanes + burst * weights[step][:, None, None]
                    context[part] = lanes.astype(np.float32).sum(axis=0, dtype=np.float32)
        elif run.name == "MV_GB":
            weights.reshape(-1)[:tokens] = softmax(scores[:tokens])
    return scores[:tokens], rounded(context.reshape(-1)[:width])


__all__ = ["Banks", "Sequencer", "rows_golden", "run_attacc", "run_hbm_pim", "run_rows", "softmax", "tree"]
