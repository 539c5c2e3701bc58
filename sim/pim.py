"""PIM kernels in time, command by command, beside ordinary traffic in the same channel (`share`), or alone (`play`)."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hw.dram import REQUEST_BYTES, Mapping
from hw.errors import HardwareError
from hw.pim.kernel import Kernel
from sim.dram_burst import decoder
from sim.patterns import Requests
from sim.pim_engine import (
    L_PIM,
    S_ACT,
    S_BANKS,
    S_BURSTS,
    S_CLOSES,
    S_END,
    S_LOGGED,
    S_OPENS,
    S_PIM_END,
    S_REF,
    S_TURNS,
    bank_sets,
    configuration,
    run,
    table,
)

QUEUE = 32
"""Bursts that the queue of ordinary requests holds."""
QUANTUM = 32
"""Bursts of ordinary requests that end their turn while a kernel waits: one queue."""
CODES = ("ACT", "PRE", "RD", "WR", "PREab", "REFab", "PIM-ACT", "PIM-PRE")


@dataclass(frozen=True)
class Shared:
    """One channel that ran a kernel and ordinary requests. Clocks of the channel; `kernel_clocks` 0 and `traffic_clocks` 0 where
    there was none. `latency_clocks` is of every request, from its arrival to its last data beat. `turns` counts how often the
    kernel handed the channel over; `commands` are rows (clock, name, bank or set, row) when recorded."""

    kernel_clocks: int
    traffic_clocks: int
    opens: int
    activates: int
    closes: int
    refreshes: int
    turns: int
    bursts: int
    ordinary_activates: int
    latency_clocks: NDArray[np.int64]
    commands: tuple[tuple[int, str, int, int], ...] = ()


def play(kernel: Kernel, *, refresh: bool = True, record: bool = False) -> Shared:
    """A kernel alone on its channel."""
    return share(kernel, None, refresh=refresh, record=record)


def share(
    kernel: Kernel | None,
    traffic: Requests | None,
    *,
    channel: Kernel | None = None,
    mapping: Mapping = "interleaved",
    arrivals: NDArray[np.int64] | None = None,
    refresh: bool = True,
    quantum: int = QUANTUM,
    queue: int = QUEUE,
    record: bool = False,
) -> Shared:
    """A kernel and ordinary requests of 64 bytes in one channel, from clock 0 on.

    Without `arrivals` (clocks, ascending) each request arrives as soon as the queue has room. Without a kernel give one as
    `channel`, whose channel then serves the traffic alone. `quantum` bursts end a turn of the requests.
    Raises `HardwareError` for nothing to do, addresses beyond the channel, or sizes below 1.
    """
    model = kernel or channel
    if model is None:
        raise HardwareError("expected a kernel, or the kernel whose channel the traffic runs on")
    if quantum < 1 or queue < 1:
        raise HardwareError(f"expected a quantum and a queue of at least 1, found {quantum} and {queue}")
    part = model.channel
    preset = part.preset
    runs = list(kernel.stream.runs()) if kernel else []
    if not runs and (traffic is None or not len(traffic)):
        raise HardwareError("nothing to do: neither a kernel nor a request")
    rows, names = table(part, runs)
    of_bank, shape = bank_sets(part)
    count = len(traffic) if traffic else 0
    if traffic is not None and count:
        top = int(traffic.addresses.max()) + REQUEST_BYTES
        if int(traffic.addresses.min()) < 0 or top > preset.capacity:
            raise HardwareError(f"address {top - REQUEST_BYTES:#x} lies beyond one channel of {preset.name} ({preset.capacity} B)")
    bursts = traffic.addresses // preset.burst_bytes if traffic else np.zeros(0, np.int64)
    writes = traffic.writes if traffic else np.zeros(0, np.bool_)
    when = np.zeros(0, np.int64) if arrivals is None else np.ascontiguousarray(arrivals, np.int64)
    if len(when) not in (0, count) or (len(when) and (np.diff(when) < 0).any()):
        raise HardwareError(f"expected one ascending arrival for each of {count} requests, found {len(when)}")
    latency = np.zeros(count, np.int64)
    commands = int(rows[:, 2].sum()) if runs else 0
    log = np.zeros((4 * (commands + count * preset.bursts_per_request) + 4096 if record else 0, 4), np.int64)
    cfg = configuration(part, refresh=refresh, quantum=quantum, queue=queue)
    stats = run(cfg, rows, of_bank, shape, decoder(preset, mapping), bursts, writes, when, latency, log)
    named = tuple(
        (int(clock), names[code - L_PIM] if code >= L_PIM else CODES[code], int(place), int(at))
        for clock, code, place, at in log[: stats[S_LOGGED]]
    )
    return Shared(
        kernel_clocks=int(stats[S_PIM_END]),
        traffic_clocks=int(stats[S_END]),
        opens=int(stats[S_OPENS]),
        activates=int(stats[S_BANKS]),
        closes=int(stats[S_CLOSES]),
        refreshes=int(stats[S_REF]),
        turns=int(stats[S_TURNS]),
        bursts=int(stats[S_BURSTS]),
        ordinary_activates=int(stats[S_ACT]),
        latency_clocks=latency,
        commands=named,
    )


def across(
    kernel: Kernel, traffic: Requests, channels: int, *, on: Iterable[int] | None = None, interleave_bytes: int = 256, **settings: Any
) -> list[Shared]:
    """A memory of `channels` channels on one clock: the kernel runs in lockstep on the channels `on` (all by default), while
    ordinary requests go to the channel that their address says, `interleave_bytes` to each in turn.

    Returns what every channel did; the kernel as a whole ends with its slowest channel. `settings` are those of `share`.
    Raises `HardwareError` for a channel that does not exist or an interleaving that splits requests.
    """
    chosen = set(range(channels)) if on is None else set(on)
    if channels < 1 or not chosen <= set(range(channels)):
        raise HardwareError(f"expected channels of 0 to {channels - 1}, found {sorted(chosen)}")
    if interleave_bytes < REQUEST_BYTES or interleave_bytes % REQUEST_BYTES:
        raise HardwareError(f"expected an interleaving of whole requests of {REQUEST_BYTES} B, found {interleave_bytes} B")
    block, offset = np.divmod(traffic.addresses, interleave_bytes)
    home, local = block % channels, block // channels * interleave_bytes + offset
    found = []
    for index in range(channels):
        mine = home == index
        part = Requests(local[mine], traffic.writes[mine]) if mine.any() else None
        runs = kernel if index in chosen else None
        found.append(share(runs, part, channel=kernel, **settings) if runs or part else _IDLE)
    return found


_IDLE = Shared(0, 0, 0, 0, 0, 0, 0, 0, 0, np.zeros(0, np.int64))
