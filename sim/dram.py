"""DRAM in time: a pattern of requests through one channel.

Mode `burst` issues every command (`sim.dram_burst`). Mode `chunk` is for bulk: a contiguous chunk is one service in closed
form (`hw.dram.stream_cost`); scattered requests run through the burst engine until the rate is steady, and the rest of the
chunk goes on at that rate. Both return the same result.
"""

from __future__ import annotations

from collections.abc import Mapping as Map
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from hw.dram import (
    REQUEST_BYTES,
    DramEnergy,
    DramPreset,
    Mapping,
    idle_latency_fs,
    refresh_loss,
    stream_cost,
    stream_fraction,
)
from hw.errors import HardwareError, nearest
from sim.dram_burst import REASONS, S_ACT, S_END, S_RD, S_REF, S_WR, W_BUS, configuration, decoder, run
from sim.patterns import Requests, requests

MODES = ("burst", "chunk")
Mode = Literal["burst", "chunk"] | str

QUEUE = 32
"""Bursts that the read queue and the write queue of a controller hold each."""
HIGH, LOW = 26, 6
"""Writes drain when this many bursts wait (0.8 of the queue), until this many are left (0.2 of it)."""
SAMPLE = 1 << 15
"""Requests of a scattered pattern that chunk mode runs one by one, at least; the second half gives the steady rate."""
SAMPLED_REFRESHES = 24
"""Refresh intervals that the sample spans at least, so that their phase does not tilt the rate."""
BUSY = Fraction(9, 10)
"""From this fraction of the peak on, less what refresh takes, the data bus itself is the limit."""

WORDS = {
    "data bus": "data bus (peak bandwidth)",
    "tCCD_L": "tCCD_L (bursts in one bank group)",
    "tCCD_R": "tCCD_R (bursts from different ranks)",
    "tRCD": "tRCD (rows opened for single requests)",
    "tWTR": "tWTR (write to read turnaround)",
    "tRTW": "tRTW (read to write turnaround)",
    "tRRD": "tRRD (activate to activate)",
    "tFAW": "tFAW (four activates)",
    "tRC": "tRC (rows of one bank)",
    "tRP": "tRP + tRCD (row conflicts that the queue cannot hide)",
    "tRTP": "tRTP + tRP (row conflicts)",
    "tWR": "tWR + tRP (row conflicts after writes)",
    "refresh": "refresh (tRFC)",
    "command bus": "command bus",
    "queue depth": "queue depth",
    "arrival rate": "arrival rate",
}


@dataclass(frozen=True)
class Latency:
    """Nanoseconds from the arrival of a request at the controller to its last data beat."""

    mean: float
    p50: float
    p99: float


@dataclass(frozen=True)
class MemoryResult:
    """What a pattern did to one channel. `fraction` = bandwidth / peak; `limited_by` names the binding rule in words.

    `activates`, `row_hits` (bursts that found their row open) and `refreshes` are extrapolated in chunk mode. `energy_parts`
    are joules by command and, for data, by location; None is a part that the preset's source does not give, and
    `energy_j` sums the parts that it does; None when it gives none.
    """

    preset: str
    pattern: str
    mode: str
    bytes: int
    time_s: float
    bandwidth_gbps: float
    peak_gbps: float
    fraction: float
    activates: int
    row_hits: int
    refreshes: int
    latency_ns: Latency
    limited_by: str
    energy_j: float | None
    energy_parts: Map[str, float | None]
    lost: Map[str, float]  # fraction of the data bus time idle, by reason

    def to_json(self) -> dict[str, Any]:
        """The documented keys; scripts depend on them."""
        return {
            "schema": 1,
            "type": "memory",
            "preset": self.preset,
            "pattern": self.pattern,
            "mode": self.mode,
            "bytes": self.bytes,
            "time_s": self.time_s,
            "bandwidth_gbps": self.bandwidth_gbps,
            "peak_gbps": self.peak_gbps,
            "fraction": self.fraction,
            "activates": self.activates,
            "row_hits": self.row_hits,
            "refreshes": self.refreshes,
            "latency_ns": {"mean": self.latency_ns.mean, "p50": self.latency_ns.p50, "p99": self.latency_ns.p99},
            "limited_by": self.limited_by,
            "energy_j": self.energy_j,
            "energy_parts_j": dict(self.energy_parts),
            "lost": dict(self.lost),
        }


@dataclass(frozen=True)
class Served:
    """The raw outcome of the burst engine, in ticks of the preset: the last data beat, counters, lost bus time, latencies."""

    end_ticks: int
    activates: int
    precharges: int
    reads: int
    writes: int
    refreshes: int
    lost_ticks: Map[str, int]
    latency_ticks: NDArray[np.int64]
    commands: NDArray[np.int64]  # rows (tick, command, bank, row, request), when recorded


def serve(
    preset: DramPreset,
    wanted: Requests,
    *,
    mapping: Mapping = "interleaved",
    refresh: bool = True,
    queue: int = QUEUE,
    high: int = 0,
    low: int = 0,
    arrival_ticks: NDArray[np.int64] | None = None,
    record: bool = False,
) -> Served:
    """Every burst of `wanted` through one channel, exactly.

    Without `arrival_ticks` each request arrives as soon as its queue has room. `queue` bounds the bursts of each of the two
    queues, `high` and `low` are the watermarks of a write drain (by default 0.8 and 0.2 of the queue).
    Raises `HardwareError` for addresses beyond the channel, a queue too short for a request, or watermarks out of order.
    """
    high = high or max(1, queue * HIGH // QUEUE)
    low = low or queue * LOW // QUEUE
    if queue < preset.bursts_per_request or not 0 <= low < high <= queue:
        raise HardwareError(
            f"expected 0 <= low watermark < high watermark <= queue, and a queue of at least {preset.bursts_per_request} bursts "
            f"for one request; found low {low}, high {high}, queue {queue}"
        )
    if len(wanted) == 0:
        raise HardwareError("nothing to serve: the pattern has no request")
    if int(wanted.addresses.min()) < 0 or int(wanted.addresses.max()) + REQUEST_BYTES > preset.capacity:
        raise HardwareError(f"address {int(wanted.addresses.max()):#x} lies beyond one channel of {preset.name} ({preset.capacity} B)")
    cfg = configuration(preset, refresh=refresh, queue=queue, high=high, low=low)
    latency = np.zeros(len(wanted), np.int64)
    rows = len(wanted) * preset.bursts_per_request * 6 + 64 if record else 0
    log = np.zeros((rows, 5), np.int64)
    arrivals = np.zeros(0, np.int64) if arrival_ticks is None else np.ascontiguousarray(arrival_ticks, np.int64)
    bursts = wanted.addresses // preset.burst_bytes
    stats, lost = run(cfg, decoder(preset, mapping), bursts, wanted.writes, arrivals, latency, log)
    return Served(
        end_ticks=int(stats[S_END]),
        activates=int(stats[S_ACT]),
        precharges=int(stats[2]),
        reads=int(stats[S_RD]),
        writes=int(stats[S_WR]),
        refreshes=int(stats[S_REF]),
        lost_ticks={reason: int(ticks) for reason, ticks in zip(REASONS, lost, strict=True)},
        latency_ticks=latency,
        commands=log[: int(stats[8])],
    )


def simulate(
    preset: DramPreset,
    pattern: str | Requests,
    size_bytes: int = 1 << 24,
    *,
    chunk_bytes: int = 4096,
    stride_bytes: int = 0,
    mapping: Mapping = "interleaved",
    refresh: bool = True,
    mode: Mode = "burst",
    queue: int = QUEUE,
    high: int = 0,
    low: int = 0,
    write: bool = False,
    seed: int = 0,
) -> MemoryResult:
    """A pattern of `size_bytes` through one channel of `preset`.

    Arguments are those of `sim.patterns.requests` and `serve`. Raises `HardwareError` with the reason for a bad one.
    """
    if mode not in MODES:
        raise HardwareError(f"unknown mode {mode!r}, expected burst or chunk{nearest(mode, MODES)}")
    name = pattern if isinstance(pattern, str) else "requests"
    settings: dict[str, Any] = {"mapping": mapping, "refresh": refresh, "queue": queue, "high": high, "low": low}

    def made(size: int) -> Requests:
        if isinstance(pattern, Requests):
            return Requests(pattern.addresses[: size // REQUEST_BYTES], pattern.writes[: size // REQUEST_BYTES], pattern.contiguous)
        options: dict[str, Any] = {
            "chunk_bytes": chunk_bytes,
            "stride_bytes": stride_bytes,
            "mapping": mapping,
            "write": write,
            "seed": seed,
        }
        return requests(preset, pattern, size, **options)

    if isinstance(pattern, Requests):
        size_bytes = len(pattern) * REQUEST_BYTES
    if mode == "chunk":
        contiguous = pattern.contiguous if isinstance(pattern, Requests) else pattern == "stream"
        bulk = size_bytes > 2 * SAMPLE * REQUEST_BYTES  # less is served exactly, as fast
        if bulk and contiguous and mapping in ("row", "interleaved") and queue == QUEUE and not (high or low):
            _check_stream(preset, size_bytes)
            return _stream(preset, name, size_bytes, str(mapping), refresh, write if isinstance(pattern, str) else bool(pattern.writes[0]))
        whole = chunk_bytes if name == "chunks" else 3 * REQUEST_BYTES
        sample = SAMPLE
        while sample * REQUEST_BYTES * 2 < size_bytes:
            part = max(whole, sample * REQUEST_BYTES // whole * whole)
            half = max(whole, part // 2 // whole * whole)
            if part >= size_bytes:
                break
            all_of, first = serve(preset, made(part), **settings), serve(preset, made(half), **settings)
            spans = (all_of.end_ticks - first.end_ticks) // (preset.n_refi * preset.ticks_per_clock)
            if not refresh or spans >= SAMPLED_REFRESHES:
                if isinstance(pattern, str):
                    _check_size(preset, pattern, size_bytes, chunk_bytes)
                return _extrapolated(preset, name, size_bytes, (half, first), (part, all_of), refresh)
            sample *= 2
    served = serve(preset, made(size_bytes), **settings)
    return _result(preset, name, "burst" if mode == "burst" else "chunk", size_bytes, Fraction(served.end_ticks), served, refresh)


def _check_stream(preset: DramPreset, size_bytes: int) -> None:
    if size_bytes < REQUEST_BYTES or size_bytes % REQUEST_BYTES:
        raise HardwareError(f"pattern stream: expected a size of whole {REQUEST_BYTES} B requests, found {size_bytes} B")
    if size_bytes > preset.capacity:
        raise HardwareError(
            f"pattern stream spans {size_bytes} B, but one channel of {preset.name} holds {preset.capacity} B "
            f"({size_bytes - preset.capacity} B missing): lower the size or spread it over more channels"
        )


def _check_size(preset: DramPreset, pattern: str, size_bytes: int, chunk_bytes: int) -> None:
    if size_bytes % REQUEST_BYTES or (pattern == "chunks" and size_bytes % chunk_bytes):
        raise HardwareError(f"pattern {pattern}: expected a size of whole requests and chunks, found {size_bytes} B")
    if pattern == "triad" and size_bytes // 3 > preset.capacity // 4:
        raise HardwareError(f"pattern triad: each of its three arrays may span a quarter of {preset.name} ({preset.capacity // 4} B)")


def _stream(preset: DramPreset, name: str, size_bytes: int, mapping: str, refresh: bool, write: bool) -> MemoryResult:
    """One contiguous chunk in closed form: the latency of its first burst, then the steady rate of the stream."""
    latency = idle_latency_fs(preset, "closed", preset.burst_bytes)
    if write:
        latency += (preset.n_rcd_wr - preset.n_rcd_rd + preset.n_cwl - preset.n_cl) * preset.clock_fs
    burst = preset.n_bl * preset.clock_fs
    total = latency - burst + stream_cost(preset, 1, size_bytes, mapping, refresh, write=write)
    ticks = Fraction(total, preset.tick_fs)
    bursts = size_bytes // preset.burst_bytes
    refreshes = total // (preset.n_refi * preset.clock_fs) * preset.pseudo_channels if refresh else 0
    # a refresh closes the rows in use: one per bank group when these are interleaved, two when rows follow one another
    reopened = preset.bank_groups if mapping == "interleaved" else 2
    activates = min(bursts, -(-size_bytes // preset.row_bytes) + refreshes * reopened)
    # the queue holds the bursts in flight: Little's law gives the time each waits
    flight = (preset.n_cl + preset.n_bl) * preset.clock_fs if not write else (preset.n_cwl + preset.n_bl) * preset.clock_fs
    wait = min(QUEUE, bursts) * Fraction(total, bursts)
    inside = Fraction(flight + wait, preset.tick_fs)
    fraction = stream_fraction(preset, mapping, refresh=refresh, write=write)
    busy = fraction / (1 - refresh_loss(preset)) if refresh else fraction
    limit = "data bus" if busy >= BUSY else "queue depth" if mapping == "interleaved" else "tCCD_L"
    lost = {"refresh": float(refresh_loss(preset)) if refresh else 0.0}
    counts = (activates, 0 if write else bursts, bursts if write else 0, refreshes)
    return _assembled(preset, name, "chunk", size_bytes, ticks, counts, (float(inside),) * 3, limit, lost)


def _extrapolated(
    preset: DramPreset, name: str, size_bytes: int, half: tuple[int, Served], whole: tuple[int, Served], refresh: bool
) -> MemoryResult:
    """The leading sample as it was, the rest at the rate of the sample's second half."""
    scale = Fraction(size_bytes - whole[0], whole[0] - half[0])
    first, sample = half[1], whole[1]
    end = sample.end_ticks + scale * (sample.end_ticks - first.end_ticks)

    def more(attribute: str) -> int:
        now, before = int(getattr(sample, attribute)), int(getattr(first, attribute))
        return now + round(scale * (now - before))

    bursts = size_bytes // preset.burst_bytes
    reads = min(bursts, more("reads"))
    counts = (min(bursts, more("activates")), reads, bursts - reads, more("refreshes"))
    latency = _percentiles(sample.latency_ticks)
    limit, lost = _limit(preset, sample, refresh)
    return _assembled(preset, name, "chunk", size_bytes, end, counts, latency, limit, lost)


def _percentiles(ticks: NDArray[np.int64]) -> tuple[float, float, float]:
    middle, high = np.percentile(ticks, (50, 99))
    return float(ticks.mean()), float(middle), float(high)


def _limit(preset: DramPreset, served: Served, refresh: bool) -> tuple[str, dict[str, float]]:
    """The rule that cost the data buses most time, or the bus itself; and the fraction lost to each."""
    total = served.end_ticks * preset.pseudo_channels
    lost = {reason: ticks / total for reason, ticks in served.lost_ticks.items() if ticks}
    busy = Fraction((served.reads + served.writes) * preset.n_bl * preset.ticks_per_clock, total)
    if refresh:
        busy /= 1 - refresh_loss(preset)
    rules = [reason for reason in lost if reason != "refresh"]
    if busy >= BUSY or not lost:
        return REASONS[W_BUS], lost
    return max(rules, key=lambda reason: lost[reason]) if rules else "refresh", lost


def _result(preset: DramPreset, name: str, mode: str, size_bytes: int, end: Fraction, served: Served, refresh: bool) -> MemoryResult:
    limit, lost = _limit(preset, served, refresh)
    counts = (served.activates, served.reads, served.writes, served.refreshes)
    return _assembled(preset, name, mode, size_bytes, end, counts, _percentiles(served.latency_ticks), limit, lost)


def _assembled(
    preset: DramPreset, name: str, mode: str, size_bytes: int, end: Fraction, counts: tuple[int, int, int, int],
    latency: tuple[float, float, float], limit: str, lost: Map[str, float],
) -> MemoryResult:  # fmt: skip
    activates, reads, writes, refreshes = counts
    fs = end * preset.tick_fs
    rate = Fraction(size_bytes * 10**15) / fs
    parts = energy_parts(preset.energy, preset.burst_bytes, activates, reads, writes, refreshes, float(fs) * 1e-15)
    known = [part for part in parts.values() if part is not None]
    ns = preset.tick_fs * 1e-6
    return MemoryResult(
        preset=preset.name,
        pattern=name,
        mode=mode,
        bytes=size_bytes,
        time_s=float(fs) * 1e-15,
        bandwidth_gbps=float(rate) * 1e-9,
        peak_gbps=float(preset.peak) * 1e-9,
        fraction=float(rate / preset.peak),
        activates=activates,
        row_hits=reads + writes - activates,
        refreshes=refreshes,
        latency_ns=Latency(*(value * ns for value in latency)),
        limited_by=WORDS[limit],
        energy_j=sum(known) if known else None,
        energy_parts=parts,
        lost=lost,
    )


def energy_parts(
    energy: DramEnergy | None, burst_bytes: int, activates: int, reads: int, writes: int, refreshes: int, time_s: float
) -> dict[str, float | None]:
    """Joules of the commands, data by location; None where the preset's source gives nothing. Empty without a source."""
    if energy is None:
        return {}
    bits = 8 * burst_bytes
    parts: dict[str, float | None] = {"activate": activates * energy.activate_pj * 1e-12}
    for direction, bursts, stages in (("read", reads, energy.read_pj_per_bit), ("write", writes, energy.write_pj_per_bit)):
        for place, pj_per_bit in stages.items():
            parts[f"{direction}.{place}"] = bursts * bits * pj_per_bit * 1e-12
    parts["refresh"] = None if energy.refresh_pj is None else refreshes * energy.refresh_pj * 1e-12
    parts["standby"] = None if energy.standby_mw is None else energy.standby_mw * 1e-3 * time_s
    return parts


def load_latency(
    preset: DramPreset, *, points: int = 12, pattern: str = "random", mapping: Mapping = "interleaved", refresh: bool = True, seed: int = 0
) -> list[tuple[float, float, float]]:
    """(bandwidth GB/s, mean latency ns, 99th percentile ns) at rising load: reads of `pattern` that arrive at random times.

    Arrivals are Poisson at even fractions of the rate that saturates the pattern. Raises `HardwareError` as `simulate` does.
    """
    size = (1 << 14) * REQUEST_BYTES
    wanted = requests(preset, pattern, size, mapping=mapping, seed=seed)
    full = serve(preset, wanted, mapping=mapping, refresh=refresh)
    curve = []
    for point in range(1, points + 1):
        spacing = full.end_ticks / len(wanted) * points / point
        rng = np.random.default_rng(seed + 1)
        arrivals = np.cumsum(rng.exponential(spacing, len(wanted))).astype(np.int64)
        served = serve(preset, wanted, mapping=mapping, refresh=refresh, arrival_ticks=arrivals)
        ns = preset.tick_fs * 1e-6
        mean, _, high = _percentiles(served.latency_ticks)
        curve.append((size / (served.end_ticks * ns), mean * ns, high * ns))
    return curve


__all__ = ["Latency", "MemoryResult", "Served", "load_latency", "serve", "simulate"]
