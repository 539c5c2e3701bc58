"""What a server achieved: throughput, latencies and where the time went."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from dovetail.serving.arrivals import NS, Requests
from dovetail.serving.server import Served, population_ns, weighted_percentiles

SCHEMA = 1
SHARES = {"p50": 0.5, "p90": 0.9, "p95": 0.95, "p99": 0.99}
WARM = 0.1
"""Share of the requests that are done before the steady window begins; it ends when the last request arrives."""


@dataclass(frozen=True)
class ServingReport:
    """Metrics of a run. Times are in seconds; `served` has them request by request and iteration by iteration."""

    model: str
    device: str
    devices: int
    settings: Mapping[str, Any]
    requests: Requests
    served: Served
    capacity: Mapping[str, int]
    notes: tuple[str, ...] = ()
    elapsed_s: Mapping[str, float] = field(default_factory=dict)
    mapped: int = 0

    # Arrays -----------------------------------------------------------------------------------------------------------------
    @cached_property
    def _done(self) -> np.ndarray[Any, np.dtype[np.int64]]:
        return np.flatnonzero(np.array(self.served.done) >= 0)

    @cached_property
    def _durations(self) -> np.ndarray[Any, np.dtype[np.int64]]:
        return np.array(self.served.lasts, dtype=np.int64) - np.array(self.served.starts, dtype=np.int64)

    @property
    def duration_s(self) -> float:
        """Seconds from the first arrival to the last token."""
        return self.served.lasts[-1] / NS if self.served.lasts else 0.0

    @cached_property
    def output_tokens(self) -> int:
        """Tokens given to requests."""
        return sum(self.served.emitted)

    # Metrics ----------------------------------------------------------------------------------------------------------------
    @cached_property
    def ttft(self) -> dict[str, float] | None:
        """Time to the first token of requests that got one."""
        got = np.flatnonzero(np.array(self.served.first) >= 0)
        return _summary(np.array(self.served.first)[got] - np.array(self.served.arrived)[got])

    @cached_property
    def e2e(self) -> dict[str, float] | None:
        """Time from the arrival to the last token of finished requests."""
        return _summary(np.array(self.served.done)[self._done] - np.array(self.served.arrived)[self._done])

    @cached_property
    def tbt(self) -> dict[str, float] | None:
        """Time between two tokens of a request, over all of them."""
        weights = np.array(self.served.decoding, dtype=np.int64)
        return _summary(self._durations, weights)

    @cached_property
    def steady_tokens_per_s(self) -> float | None:
        """Tokens per second while the load is in full flow: from when a tenth of the requests are done until the last one arrives.
        None where there is no such time."""
        done = np.sort(np.array(self.served.done)[self._done])
        if not len(done) or min(self.served.arrived) < 0:
            return None
        start, end = int(done[min(len(done) - 1, int(len(done) * WARM))]), max(self.served.arrived)
        lasts, emitted = np.array(self.served.lasts), np.array(self.served.emitted)
        inside = (lasts > start) & (lasts <= end)
        return float(emitted[inside].sum()) * NS / (end - start) if end > start and inside.any() else None

    @cached_property
    def mean_population(self) -> float:
        """Requests in the system, averaged over time."""
        end = self.served.lasts[-1] if self.served.lasts else 0
        return population_ns(self.served) / end if end and min(self.served.done) >= 0 else 0.0

    def _mean_over_time(self, values: list[int]) -> float:
        total = int(self._durations.sum())
        return float((np.array(values) * self._durations).sum() / total) if total else 0.0

    def to_json(self) -> dict[str, Any]:
        """The documented keys of `serve --json`."""
        served, duration = self.served, self.duration_s
        finished = len(self._done)
        prompt = sum(served.prompts)
        total = sum(served.parts.values())
        return {
            "schema": SCHEMA,
            "model": self.model,
            "device": self.device,
            "devices": self.devices,
            **self.settings,
            "requests": len(self.requests),
            "finished": finished,
            "ended": served.ended,
            "duration_s": duration,
            "iterations": len(served.lasts),
            "mixed_iterations": int(np.count_nonzero(served.prompts)),
            "tokens": {"input": prompt, "output": self.output_tokens},
            "throughput": {
                "requests_per_s": finished / duration if duration else 0.0,
                "output_tokens_per_s": self.output_tokens / duration if duration else 0.0,
                "total_tokens_per_s": (self.output_tokens + prompt) / duration if duration else 0.0,
                "steady_output_tokens_per_s": self.steady_tokens_per_s,
            },
            "ttft_s": self.ttft,
            "tbt_s": self.tbt,
            "e2e_s": self.e2e,
            "batch": {"mean": self._mean_over_time(served.decoding), "max": max(served.decoding, default=0)},
            "population": self.mean_population,
            "kv": {**self.capacity, "peak_tokens": max(served.held, default=0)},
            "time": {name: fs / total for name, fs in served.parts.items()} if total else {},
            "energy_j": served.joules,
            "energy_per_token_j": served.joules / self.output_tokens if served.joules is not None and self.output_tokens else None,
            "assumptions": list(self.notes),
            "parts_mapped": self.mapped,
            "elapsed_s": dict(self.elapsed_s),
        }

    # Words ------------------------------------------------------------------------------------------------------------------
    def text(self) -> str:
        """A few lines for the terminal."""
        from dovetail.human import capacity, digits, integer, joules, percent, seconds

        data = self.to_json()
        rate, kv = data["throughput"], data["kv"]
        several = f"{self.devices} x " if self.devices > 1 else ""
        lines = [
            f"{self.model} on {several}{self.device}: {digits(rate['output_tokens_per_s'])} tokens/s, "
            f"{digits(rate['requests_per_s'])} requests/s ({data['finished']} of {data['requests']} requests in "
            f"{seconds(data['duration_s'])}, {integer(data['iterations'])} iterations)",
        ]
        for name, key in (("first token", "ttft_s"), ("between tokens", "tbt_s"), ("whole answer", "e2e_s")):
            if (found := data[key]) is not None:
                shown = ", ".join(f"{label} {seconds(found[label])}" for label in ("mean", "p50", "p90", "p99"))
                lines.append(f"{name:<15} {shown}")
        parts = ", ".join(f"{percent(share)} {name}" for name, share in sorted(data["time"].items(), key=lambda item: -item[1]))
        lines.append(f"{'time':<15} {parts}")
        lines.append(
            f"{'batch':<15} {digits(data['batch']['mean'])} decoding on average, {data['batch']['max']} at most; "
            f"{data['mixed_iterations']} iterations with prompts"
        )
        lines.append(
            f"{'memory':<15} weights {capacity(kv['weight_bytes'])} and up to {integer(kv['peak_tokens'])} of {integer(kv['tokens'])} "
            "tokens of keys and values per device"
        )
        if data["energy_j"] is None:
            lines.append(f"{'energy':<15} not modelled: the device states too few energies")
        else:
            each = f", {joules(data['energy_per_token_j'])} per token" if data["energy_per_token_j"] else ""
            lines.append(f"{'energy':<15} {joules(data['energy_j'])}{each} (switching; static power and links not modelled)")
        lines.append(f"assumed: {'; '.join(self.notes[:2])}" + (f"; {len(self.notes) - 2} more (--json)" if len(self.notes) > 2 else ""))
        return "\n".join(lines)

    def save_json(self, path: str | Path) -> None:
        from dovetail.files import atomic_writer

        with atomic_writer(path) as file:
            json.dump(self.to_json(), file, indent=2)
            file.write("\n")

    def save_html(self, path: str | Path) -> None:
        """One page without scripts: headline numbers, batch and memory over time, and how latencies are distributed."""
        from dovetail.files import atomic_writer
        from dovetail.serving.page import page

        with atomic_writer(path) as file:
            file.write(page(self))


def _summary(
    values: np.ndarray[Any, np.dtype[np.int64]], weights: np.ndarray[Any, np.dtype[np.int64]] | None = None
) -> dict[str, float] | None:
    """Mean, percentiles and largest of nanoseconds, in seconds; None without any."""
    weights = np.ones(len(values), dtype=np.int64) if weights is None else weights
    if not weights.sum():
        return None
    used = weights > 0
    values, weights = values[used], weights[used]
    found = weighted_percentiles(values, weights, tuple(SHARES.values()))
    return {
        "mean": float((values * weights).sum() / weights.sum()) / NS,
        **{name: value / NS for name, value in zip(SHARES, found, strict=True)},
        "max": float(values.max()) / NS,
    }
