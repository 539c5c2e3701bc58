"""Samsung HBM-PIM (Aquabolt-XL): a unit per pair of banks, stepped by column commands in all-bank mode.

Modes, registers and kernel orders as in Samsung's PIMSimulator and Lee et al., ISCA 2021: single-bank mode (SB), all-bank mode
(HAB), in which one command reaches all even or all odd banks and the host writes registers, and HAB-PIM, in which column
commands step the program. Registers lie behind reserved rows, so that writing them opens such a row in a bank.
"""

from __future__ import annotations

from dataclasses import replace
from functools import cached_property, lru_cache
from math import ceil

from hw.errors import HardwareError
from hw.part import Part as Sheet
from hw.pim.channel import HBM2_STAGES, HBM_PIM, BankSet, PimChannel
from hw.pim.kernel import Kernel
from hw.pim.layout import TileLayout, check_fit, check_shape
from hw.pim.stream import Kind, Part, Run, Stream, once
from hw.quantity import Count

EVEN, ODD = 0, 1
PARK, ENTER, REGISTERS, LEAVE = -2, -3, -4, -5
RESERVED = 4
"""Reserved rows of a bank: parking, entering all-bank mode, registers, leaving it."""
PROGRAM = 6
"""Instructions of the matrix-vector program: MAC and jump for even banks, for odd banks, store (MOV), exit."""
ARRAY = ("MAC",)


def energies(blocks: int, lanes: int, mac_pj: float) -> dict[str, dict[str, float]]:
    """Picojoules by command: 256 bits from the cells to where they end, all blocks together for a MAC.

    Stages of an HBM2 access from O'Connor et al., MICRO 2017; `mac_pj` per multiply-accumulate.
    """
    beat = {place: 256 * pj for place, pj in HBM2_STAGES.items()}
    cells = beat.pop("cells")
    return {
        "activate": {"activate": 909.0},
        "MAC": {"cells": cells * blocks, "compute": mac_pj * lanes * blocks},
        "STORE": {"cells": cells * blocks},
        "READ_RESULT": {"cells": cells, **beat},
        **{name: {"cells": cells, **beat} for name in ("PARK", "UNPARK")},
        **dict.fromkeys(("SB_TO_HAB", "HAB_TO_SB", "HAB_TO_PIM", "PIM_TO_HAB", "WR_CRF", "WR_GRF"), beat),
        "FILL": {"cells": cells * blocks},
        "OPERATE": {"cells": cells * blocks, "compute": mac_pj * lanes * blocks},
    }


class HbmPim(Sheet):
    """`channels` pseudo channels with `blocks` units each: `lanes` of fp16, two files of `registers` vectors.

    `mac_pj` is the energy of one multiply-accumulate. `read_back` lets the host read the partial sums of all lanes, 16 times
    the results, as part of a kernel.
    """

    channels: Count = 64
    blocks: Count = 8
    registers: Count = 8
    lanes: Count = 16
    mac_pj: float = 0.32  # AttAcc simulator's energy table, 7 nm
    read_back: bool = True
    refresh: bool = True

    @cached_property
    def channel(self) -> PimChannel:
        banks = 2 * self.blocks
        sets = (BankSet(name="even", first=0, banks=self.blocks, step=2), BankSet(name="odd", first=1, banks=self.blocks, step=2))
        if banks > HBM_PIM.banks_per_pseudo_channel:
            raise HardwareError(
                f"blocks: {self.blocks} pairs of banks are more than the {HBM_PIM.banks_per_pseudo_channel} banks of a channel"
            )
        hand_over = (4 + 2) * HBM_PIM.n_ccd_l + 2 * (HBM_PIM.n_rp + HBM_PIM.n_rcd_wr)
        return PimChannel(
            preset=HBM_PIM,
            sets=sets,
            mode_clocks=hand_over,
            energy_pj=energies(self.blocks, self.lanes, self.mac_pj),
            source=HBM_PIM.source,
        )

    @property
    def formats(self) -> frozenset[str]:
        return frozenset({"fp16"})

    @property
    def free_rows(self) -> int:
        return HBM_PIM.rows - RESERVED

    @property
    def internal_peak(self) -> int:
        """Bytes per second of all units: a column of every block each n_ccd_l."""
        return int(self.channel.internal_peak(HBM_PIM.n_ccd_l) * self.channels)

    def layout(self, outputs: int, inputs: int, batch: int = 1) -> TileLayout:
        """The layout of a weight matrix. Raises `HardwareError` when it and the results of `batch` vectors do not fit."""
        check_shape("HBM-PIM matrix", outputs=outputs, inputs=inputs, batch=batch)
        layout = TileLayout(
            outputs, inputs, self.channels, self.blocks, self.registers, self.lanes, HBM_PIM.row_bytes // HBM_PIM.burst_bytes
        )
        results = ceil(layout.output_tiles * batch * self.registers / layout.columns)
        needed = layout.rows_needed + results
        check_fit(
            f"HBM-PIM matrix {outputs} x {inputs} on {self.channels} channels", needed, self.free_rows, HBM_PIM.row_bytes, 2 * self.blocks
        )
        return layout

    def product(self, outputs: int, inputs: int, batch: int = 1) -> Kernel:
        """`batch` vectors of `inputs` fp16 numbers times a matrix [outputs, inputs] in the banks."""
        return _product(self, outputs, inputs, batch)

    def elementwise(self, elements: int) -> Kernel:
        """Sums or products of two arrays of `elements` fp16 numbers in the banks, the result back into them."""
        check_shape("HBM-PIM array", elements=elements)
        per_tile = 2 * self.blocks * self.registers * self.lanes
        tiles = ceil(elements / (self.channels * per_tile))
        columns = HBM_PIM.row_bytes // HBM_PIM.burst_bytes
        rows = ceil(tiles * self.registers / columns)
        check_fit(f"HBM-PIM arrays of {elements} elements", 3 * rows, self.free_rows, HBM_PIM.row_bytes, 2 * self.blocks)
        gap = HBM_PIM.n_ccd_l

        def tile(i: int) -> tuple[Run, ...]:
            row, column = divmod(i * self.registers, columns)
            return tuple(
                Run(name, kind, self.registers, gap, side, base * rows + row, column, fence=True, tag=(i, side))
                for side in (EVEN, ODD)
                for base, (name, kind) in enumerate((("FILL", Kind.READ), ("OPERATE", Kind.READ), ("STORE", Kind.WRITE)))
            )

        stream = Stream((self._enter(), once(self._register("HAB_TO_PIM", EVEN)), Part(tiles, tile), self._leave()))
        read = 2 * tiles * self.channels * per_tile * 2
        return Kernel(
            f"{elements} elements", self.channel, self.channels, stream, 0, read, 0, 0, ("FILL", "OPERATE"),
            tiles * self.channels * per_tile / elements, self.refresh,
        )  # fmt: skip

    # Pieces of streams ----------------------------------------------------------------------------------------------------
    def _register(self, name: str, side: int, count: int = 1, row: int = REGISTERS, tag: tuple[int, ...] = ()) -> Run:
        return Run(name, Kind.WRITE, count, HBM_PIM.n_ccd_l, side, row, fence=True, tag=tag)

    def _enter(self) -> Part:
        """Park, enter all-bank mode with two writes to even and two to odd banks, load the program."""
        return once(
            Run("PARK", Kind.READ, self.blocks, HBM_PIM.n_ccd_l, EVEN, PARK),
            Run("PARK", Kind.READ, self.blocks, HBM_PIM.n_ccd_l, ODD, PARK),
            self._register("SB_TO_HAB", EVEN, 2, ENTER),
            self._register("SB_TO_HAB", ODD, 2, ENTER),
            self._register("WR_CRF", ODD, ceil(PROGRAM / 8)),
        )

    def _leave(self) -> Part:
        return once(
            self._register("HAB_TO_SB", EVEN, 1, LEAVE),
            self._register("HAB_TO_SB", ODD, 1, LEAVE),
            Run("UNPARK", Kind.READ, 1, HBM_PIM.n_ccd_l, EVEN, PARK),
            Run("UNPARK", Kind.READ, 1, HBM_PIM.n_ccd_l, ODD, PARK),
        )


@lru_cache(maxsize=1024)
def _product(design: HbmPim, outputs: int, inputs: int, batch: int) -> Kernel:
    layout = design.layout(outputs, inputs, batch)
    gap, registers, columns = HBM_PIM.n_ccd_l, design.registers, layout.columns
    results = layout.rows_needed

    def macs(tile: int, input_tile: int) -> list[Run]:
        side, first, left = input_tile % 2, layout.first_burst(tile, input_tile), layout.bursts
        runs: list[Run] = []
        while left:
            row, column = layout.row_column(first)
            count = min(left, columns - column)
            runs.append(Run("MAC", Kind.READ, count, gap, side, row, column, fence=True, tag=(tile, input_tile), group=registers))
            first, left = first + count, left - count
        return runs

    def piece(index: int) -> tuple[Run, ...]:
        tile, vector = divmod(index, batch)
        start = design._register("HAB_TO_PIM", EVEN)
        runs: list[Run] = [replace(start, turn=True)]
        for input_tile in layout.order():
            runs.append(design._register("WR_GRF", ODD, registers, tag=(vector, input_tile)))
            runs += macs(tile, input_tile)
        row, column = divmod(index * registers, columns)
        runs.append(Run("STORE", Kind.WRITE, registers, gap, ODD, results + row, column, tag=(tile, vector)))
        runs.append(Run("PIM_TO_HAB", Kind.WRITE, 1, gap, EVEN, REGISTERS, fence=True))
        return tuple(runs)

    pieces = layout.output_tiles * batch
    per_row = columns * design.blocks
    bursts = pieces * registers * design.blocks

    def read(index: int) -> tuple[Run, ...]:
        count = min(per_row, bursts - index * per_row)
        return (Run("READ_RESULT", Kind.READ, count, HBM_PIM.n_bl, ODD, results + index, tag=(index,)),)

    parts = [design._enter(), Part(pieces, piece), design._leave()]
    if design.read_back:
        parts.append(Part(ceil(bursts / per_row), read))
    burst = HBM_PIM.burst_bytes
    return Kernel(
        name=f"[{batch}, {inputs}] x [{outputs}, {inputs}]",
        channel=design.channel,
        channels=design.channels,
        stream=Stream(tuple(parts)),
        macs=batch * outputs * inputs,
        internal_bytes=pieces * layout.input_tiles * layout.bursts * design.blocks * burst * design.channels,
        host_read=bursts * burst * design.channels if design.read_back else 0,
        host_written=pieces * layout.input_tiles * registers * burst * design.channels,
        array=ARRAY,
        padding=layout.padding,
        refresh=design.refresh,
        notes=("lanes keep partial sums: the host reads 16 times the results and adds them",),
    )
