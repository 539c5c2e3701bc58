"""Several channels of one DRAM preset behind one address space, and what a transfer on them costs in closed form."""

from __future__ import annotations

from fractions import Fraction
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, PlainSerializer, model_validator

from hw.dram import DramPreset, Mapping, idle_latency_fs, preset, row_cycle_ticks, scattered_cost, stream_cost
from hw.errors import HardwareError
from hw.part import Part


def _chosen(value: object) -> object:
    if isinstance(value, str):
        return preset(value)
    return DramPreset(**value) if isinstance(value, dict) else value


def _spelled(value: DramPreset) -> Any:
    from hw.dram import PRESETS

    return value.name if PRESETS.get(value.name) == value else value.model_dump()


class Channels(Part):
    """`channels` of a DRAM preset, over all of which every transfer is interleaved evenly.

    `preset` is the name of one, or a `DramPreset` of your own. Raises `HardwareError` for a mapping that streams are not costed
    for, or no channel.

    >>> float(Channels(preset="HBM2-PC", channels=8).peak) * 1e-9
    128.0
    """

    preset: Annotated[DramPreset, BeforeValidator(_chosen), PlainSerializer(_spelled)]
    channels: int = Field(ge=1)
    mapping: Mapping = "interleaved"
    refresh: bool = True

    @model_validator(mode="after")
    def _costed(self) -> Channels:
        stream_cost(self.preset, self.channels, 0, self.mapping, self.refresh)
        return self

    @property
    def peak(self) -> Fraction:
        """Bytes per second of all channels."""
        return self.preset.peak * self.channels

    @property
    def capacity(self) -> int:
        """Bytes of all channels."""
        return self.preset.capacity * self.channels

    @property
    def row_set(self) -> int:
        """Bytes of the rows that a stream has open at a time: one in every bank group when these are interleaved."""
        p = self.preset
        return self.channels * p.row_bytes * (p.bank_groups * p.pseudo_channels if self.mapping == "interleaved" else 1)

    @property
    def sets(self) -> int:
        """Row sets that can be open at a time."""
        p = self.preset
        return p.ranks * p.banks if self.mapping == "interleaved" else p.pseudo_channels * p.banks_per_pseudo_channel

    def busy_fs(self, size_bytes: int, *, piece_bytes: int = 0, write: bool = False, going_on: bool = False) -> int:
        """Femtoseconds that moving `size_bytes` in one direction keeps the channels busy.

        The bytes lie in contiguous pieces of `piece_bytes` (0: in one), each at a place of its own; `going_on` says that a single
        piece continues rows that are open already. The latency of the first access and turns of the bus are not in it.
        """
        if not piece_bytes or piece_bytes >= size_bytes:
            return self._piece_fs(size_bytes, write, going_on)
        pieces, rest = divmod(size_bytes, piece_bytes)
        return pieces * self._piece_fs(piece_bytes, write, False) + self._piece_fs(rest, write, False)

    def _piece_fs(self, size_bytes: int, write: bool, going_on: bool) -> int:
        cost = stream_cost if going_on else scattered_cost
        return cost(self.preset, self.channels, size_bytes, self.mapping, self.refresh, write=write)

    def first_access_fs(self, state: str = "closed", *, write: bool = False) -> int:
        """Femtoseconds from the arrival at idle channels to the first data beat; `state` of the row as in `idle_latency_fs`."""
        p = self.preset
        read = idle_latency_fs(p, state, p.burst_bytes) - p.n_bl * p.clock_fs  # type: ignore[arg-type]
        if not write:
            return read
        return read + (p.n_cwl - p.n_cl + (p.n_rcd_wr - p.n_rcd_rd if state != "hit" else 0)) * p.clock_fs

    @property
    def turns_fs(self) -> tuple[int, int]:
        """Idle data bus between the last beat of reads and the first of writes, and between writes and reads."""
        p = self.preset
        to_write = max(0, p.n_rtw + p.n_cwl - p.n_cl - p.n_bl)
        return to_write * p.clock_fs, (p.n_wtr_s + p.n_cl) * p.clock_fs

    @property
    def row_cycle_fs(self) -> int:
        """Shortest time between two activates of one bank."""
        return row_cycle_ticks(self.preset, 1) * self.preset.tick_fs

    def conflict_fs(self, *, after_write: bool, write: bool) -> int:
        """Idle data bus when the next transfer goes to other rows of the very banks that moved the last data."""
        p = self.preset
        last = p.n_wr if after_write else p.n_rtp - p.n_cl - p.n_bl  # precharge, counted from the last beat
        first = p.n_rcd_wr + p.n_cwl if write else p.n_rcd_rd + p.n_cl
        return max(0, last + p.n_rp + first) * p.clock_fs

    def transfer_fs(self, read: int, written: int, *, piece_bytes: int = 0) -> int:
        """Femtoseconds of an isolated transfer, reads before writes, from its arrival to its last data beat.

        First access to a closed row, the pieces of both directions, and the turn between them.
        >>> one = Channels(preset="HBM2-PC", channels=8)
        >>> one.transfer_fs(4096, 0) == one.first_access_fs() + one.busy_fs(4096)
        True
        """
        if read < 0 or written < 0 or piece_bytes < 0:
            raise HardwareError(
                f"{self.preset.name}: expected no negative size, found {read} B read, {written} B written, pieces of {piece_bytes} B"
            )
        if not read + written:
            return 0
        cost = self.first_access_fs("closed", write=not read)
        cost += self.busy_fs(read, piece_bytes=piece_bytes) + self.busy_fs(written, piece_bytes=piece_bytes, write=True)
        return cost + (self.turns_fs[0] if read and written else 0)
