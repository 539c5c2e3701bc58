"""A kernel on PIM channels: its stream of commands, its time and its energy by location."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from typing import Any

from hw.pim.channel import PimChannel
from hw.pim.stream import Stream
from hw.pim.timeline import Timed, follow

ACTIVATE, REFRESH = "activate", "refresh"
"""What the controller adds to the commands of a stream, as `energy_pj` names it: per bank, and per channel."""


@dataclass(frozen=True)
class Kernel:
    """`stream` on each of `channels` in lockstep.

    `macs` are the useful multiply-accumulates of all channels together, `internal_bytes` what the units read from the banks
    with padding, `host_read` and `host_written` what crosses the interface. `array` names the commands that feed the units.
    """

    name: str
    channel: PimChannel
    channels: int
    stream: Stream
    macs: int
    internal_bytes: int
    host_read: int
    host_written: int
    array: tuple[str, ...]
    padding: float = 1.0
    refresh: bool = True
    notes: tuple[str, ...] = ()

    @cached_property
    def timed(self) -> Timed:
        return follow(self.channel, self.stream, refresh=self.refresh)

    @property
    def clocks(self) -> int:
        return self.timed.clocks

    @property
    def fs(self) -> int:
        """Femtoseconds from the first command to the end of the last."""
        return self.clocks * self.channel.preset.clock_fs

    @cached_property
    def counts(self) -> dict[str, int]:
        """Commands of one channel by name, with those that the controller adds."""
        timed = self.timed
        added = {"FENCE": self.stream.fences(), "ACT": timed.opens, "PRE": timed.closes, "REF": timed.refreshes}
        return {**self.stream.counts(), **{name: count for name, count in added.items() if count}}

    @property
    def bandwidth(self) -> Fraction:
        """Bytes per second that the units read, all channels together."""
        return Fraction(self.internal_bytes * 10**15, self.fs)

    @cached_property
    def energy_pj(self) -> dict[str, float | None]:
        """Picojoules of all channels by location; None where a command happens whose energy is not modelled."""
        table, timed = self.channel.energy_pj, self.timed
        happened = {**self.stream.counts(), ACTIVATE: timed.activates, REFRESH: timed.refreshes}
        total: dict[str, float | None] = {}
        for command, count in happened.items():
            if not count:
                continue
            if command not in table:
                total[command] = None
                continue
            for location, pj in table[command].items():
                total[location] = (total.get(location) or 0.0) + pj * count * self.channels
        return total

    def to_json(self) -> dict[str, Any]:
        """What a report says of it."""
        return {
            "name": self.name,
            "channels": self.channels,
            "clocks": self.clocks,
            "clock_hz": 10**15 // self.channel.preset.clock_fs,
            "commands": self.counts,
            "waits": self.timed.waits,
            "followed": self.timed.followed,
            "internal_bytes": self.internal_bytes,
            "internal_gbps": float(self.bandwidth) * 1e-9,
            "host_read": self.host_read,
            "host_written": self.host_written,
            "padding": self.padding,
            "energy_j": {place: None if pj is None else pj * 1e-12 for place, pj in self.energy_pj.items()},
            "notes": list(self.notes),
        }
