"""Where the elements of a matrix lie in the banks of PIM channels, as objects: an element has one place, a place one element.

A matrix W [outputs, inputs] multiplies vectors of `inputs`. Layouts count what they need and refuse what does not fit.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil
from typing import NamedTuple, Protocol

from hw.errors import HardwareError


class Place(NamedTuple):
    """Channel, bank of the channel (flat), row, column (burst) and lane (element of a burst) of one element."""

    channel: int
    bank: int
    row: int
    column: int
    lane: int


class Layout(Protocol):
    """What kernels ask of a layout."""

    outputs: int
    inputs: int

    def place(self, output: int, index: int) -> Place: ...

    @property
    def rows_needed(self) -> int: ...

    @property
    def padding(self) -> float: ...


def check_fit(what: str, needed: int, free: int, row_bytes: int, banks: int) -> None:
    """Raises `HardwareError` when `needed` rows of every bank are more than are `free`."""
    if needed > free:
        raise HardwareError(
            f"{what}: needs {needed} rows of each bank, which has {free} for data: {needed - free} rows "
            f"({(needed - free) * row_bytes * banks} B per channel) short; use more channels, a smaller matrix or batch, or fewer tokens"
        )


def check_shape(what: str, **sizes: int) -> None:
    """Raises `HardwareError` for a size below 1."""
    for name, size in sizes.items():
        if size < 1:
            raise HardwareError(f"{what}: expected {name} of at least 1, found {size}")


@dataclass(frozen=True)
class TileLayout:
    """HBM-PIM: tiles of `registers` outputs per block and `registers` x `lanes` inputs; a block is a pair of banks.

    An output tile is `channels` x `blocks` x `registers` outputs, one block after the other, then the next channel. Even
    input tiles lie in even banks, odd ones in odd banks, a tile contiguous: burst `output register` x `registers` +
    `input register`.
    """

    outputs: int
    inputs: int
    channels: int
    blocks: int = 8
    registers: int = 8
    lanes: int = 16
    columns: int = 32
    first_row: int = 0

    @property
    def output_tile(self) -> int:
        return self.channels * self.blocks * self.registers

    @property
    def input_tile(self) -> int:
        return self.registers * self.lanes

    @property
    def output_tiles(self) -> int:
        return ceil(self.outputs / self.output_tile)

    @property
    def input_tiles(self) -> int:
        return ceil(self.inputs / self.input_tile)

    @property
    def pairs(self) -> int:
        """Tiles that one bank holds per output tile."""
        return ceil(self.input_tiles / 2)

    @property
    def bursts(self) -> int:
        """Bursts of a tile in one bank."""
        return self.registers**2

    @property
    def rows_needed(self) -> int:
        """Rows of weights in every bank."""
        return ceil(self.output_tiles * self.pairs * self.bursts / self.columns)

    @property
    def padding(self) -> float:
        """Padded elements over real ones."""
        return self.output_tiles * self.output_tile * self.input_tiles * self.input_tile / (self.outputs * self.inputs)

    def first_burst(self, output_tile: int, input_tile: int) -> int:
        """Burst of a bank at which a tile starts."""
        return (output_tile * self.pairs + input_tile // 2) * self.bursts

    def row_column(self, burst: int) -> tuple[int, int]:
        row, column = divmod(burst, self.columns)
        return self.first_row + row, column

    def place(self, output: int, index: int) -> Place:
        tile, inside = divmod(output, self.output_tile)
        block, register = divmod(inside, self.registers)
        channel, block = divmod(block, self.blocks)
        input_tile, offset = divmod(index, self.input_tile)
        part, lane = divmod(offset, self.lanes)
        row, column = self.row_column(self.first_burst(tile, input_tile) + register * self.registers + part)
        return Place(channel, 2 * block + input_tile % 2, row, column, lane)

    def order(self) -> list[int]:
        """Input tiles in the order in which a kernel takes them: the even ones, then the odd ones."""
        return [*range(0, self.input_tiles, 2), *range(1, self.input_tiles, 2)]


@dataclass(frozen=True)
class RowLayout:
    """GDDR6-AiM and NeuPIMs: an output per bank, its inputs along the row, whole bursts; short outputs share a row.

    Outputs go round the banks of a channel and, in groups of one per bank, round the channels. Inputs beyond a row go to
    further slices, each with rows of its own.
    """

    outputs: int
    inputs: int
    channels: int
    banks: int = 16
    lanes: int = 16
    columns: int = 64
    first_row: int = 0

    @property
    def row_elements(self) -> int:
        return self.columns * self.lanes

    @property
    def slices(self) -> int:
        return ceil(self.inputs / self.row_elements)

    @property
    def groups(self) -> int:
        """Groups of one output per bank in the busiest channel."""
        return ceil(ceil(self.outputs / self.banks) / self.channels)

    @property
    def accesses(self) -> int:
        """Bursts of one output in its first slice."""
        return ceil(min(self.inputs, self.row_elements) / self.lanes)

    @property
    def packed(self) -> int:
        """Outputs of one bank that share a row."""
        return self.columns // self.accesses if self.slices == 1 else 1

    @property
    def blocks(self) -> int:
        """Rows of every bank per slice."""
        return ceil(self.groups / self.packed)

    @property
    def rows_needed(self) -> int:
        return self.blocks * self.slices

    @property
    def padding(self) -> float:
        return self.channels * self.banks * self.rows_needed * self.row_elements / (self.outputs * self.inputs)

    def slice_accesses(self, number: int) -> int:
        """Bursts of one output in a slice."""
        return ceil(min(self.inputs - number * self.row_elements, self.row_elements) / self.lanes)

    def row(self, group: int, number: int) -> tuple[int, int]:
        """Row and first column of a group's part in a slice."""
        block, position = divmod(group, self.packed)
        return self.first_row + number * self.blocks + block, position * self.accesses if self.slices == 1 else 0

    def place(self, output: int, index: int) -> Place:
        group, bank = divmod(output, self.banks)
        group, channel = divmod(group, self.channels)
        number, offset = divmod(index, self.row_elements)
        row, first = self.row(group, number)
        return Place(channel, bank, row, first + offset // self.lanes, offset % self.lanes)


@dataclass(frozen=True)
class HeadLayout:
    """AttAcc: keys and values of one head in one channel, units in `ways` x `parts` banks.

    Keys: tokens go round the `ways`; the head's dimensions are spread over the `parts`, `lanes` at a time. Values: tokens
    likewise; each burst holds `lanes` dimensions of one token, dimension blocks one after the other.
    """

    tokens: int
    width: int
    ways: int = 16
    parts: int = 4
    lanes: int = 16
    columns: int = 32
    first_row: int = 0

    @property
    def outputs(self) -> int:
        return self.tokens

    @property
    def inputs(self) -> int:
        return self.width

    @property
    def token_steps(self) -> int:
        return ceil(self.tokens / self.ways)

    @property
    def width_steps(self) -> int:
        return ceil(self.width / (self.parts * self.lanes))

    @property
    def accesses(self) -> int:
        """Column accesses of every bank for the whole matrix."""
        return self.token_steps * self.width_steps

    @property
    def rows_needed(self) -> int:
        return ceil(self.accesses / self.columns)

    @property
    def padding(self) -> float:
        return self.accesses * self.ways * self.parts * self.lanes / (self.tokens * self.width)

    def place(self, output: int, index: int) -> Place:
        """Key element: token `output`, dimension `index`. Banks are numbered way by way."""
        return self._at(output, index, output // self.ways * self.width_steps + index // self.lanes // self.parts)

    def value_place(self, output: int, index: int) -> Place:
        """Value element: token `output`, dimension `index`."""
        return self._at(output, index, index // self.lanes // self.parts * self.token_steps + output // self.ways)

    def _at(self, token: int, index: int, step: int) -> Place:
        row, column = divmod(step, self.columns)
        part = index // self.lanes % self.parts
        return Place(0, token % self.ways * self.parts + part, self.first_row + row, column, index % self.lanes)
