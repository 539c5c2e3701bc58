"""The result of an estimate: every number with its unit, as text and JSON. HTML and timelines are in `dovetail.html` and
`dovetail.timeline`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sim.trace import Trace

FS = 10**15
"""Femtoseconds per second."""


@dataclass(frozen=True)
class OperatorRow:
    """One operator (kernel) after fusion. Latency, FLOPs, bytes and bound are of one run; it runs `count` times.

    `bytes` is traffic at the main memory (read + written). `bound` names the resource that limits it, `unit` the compute
    unit that executes it, `fused` the operators folded into it. `lower_bound_fs` <= `latency_fs`.
    """

    name: str
    kind: str
    unit: str
    count: int
    latency_fs: int
    lower_bound_fs: int
    flops: int
    bytes: int
    bound: str
    mapping: str
    fused: tuple[str, ...] = ()


@dataclass(frozen=True)
class Roof:
    """One roofline ceiling pair: a compute unit's peak for the format in use and a memory's peak bandwidth."""

    unit: str
    format: str
    peak_flops: float  # FLOP/s
    memory: str
    bandwidth: float  # B/s


@dataclass(frozen=True)
class MemoryUse:
    """Peak occupancy and total traffic of one memory, in bytes."""

    name: str
    capacity: int
    peak: int
    read: int
    written: int
    parts: Mapping[str, int]  # what the peak consists of, e.g. {"weights": ..., "kv cache": ..., "activations": ...}


@dataclass(frozen=True)
class Constant:
    """A named number that is not from a data sheet alone: value with unit, and its source."""

    name: str
    value: str
    source: str


@dataclass(frozen=True)
class Report:
    """An estimate of one workload phase on one device."""

    workload: str
    phase: str
    batch: int
    tokens: int
    context: int
    formats: Mapping[str, str]  # {"weights": "fp16", "acts": "fp16", "kv": "fp16"}
    device: str
    clock_hz: int
    engine: str
    latency_fs: int
    lower_bound_fs: int
    bound_resource: str
    bound_utilization: float  # fraction of that resource's peak that was achieved
    utilization: Mapping[str, float]  # busy fraction of each resource
    peak_fraction: Mapping[str, float]  # achieved / peak: bytes for memories, FLOPs for units
    stalls: Mapping[str, Mapping[str, float]]  # idle fraction by reason; busy + stalls = 1 for each resource
    memories: tuple[MemoryUse, ...]
    energy_j: float | None
    energy_parts: Mapping[str, float | None]  # joules by component; None = not modelled
    tasks: int
    operators: tuple[OperatorRow, ...]
    roofs: tuple[Roof, ...]
    assumptions: tuple[str, ...]
    constants: tuple[Constant, ...]
    elapsed_s: Mapping[str, float]  # trace, map, simulate
    trace: Trace

    @property
    def latency_s(self) -> float:
        return self.latency_fs / FS

    @property
    def cycles(self) -> int:
        """Whole cycles of the device's clock."""
        return self.latency_fs * self.clock_hz // FS

    def to_json(self) -> dict[str, Any]:
        """The documented keys; scripts depend on them."""
        return {
            "schema": 1,
            "type": "report",
            "workload": self.workload,
            "phase": self.phase,
            "batch": self.batch,
            "tokens": self.tokens,
            "context": self.context,
            "formats": dict(self.formats),
            "device": self.device,
            "engine": self.engine,
            "latency_s": self.latency_s,
            "latency_fs": self.latency_fs,
            "cycles": self.cycles,
            "clock_hz": self.clock_hz,
            "energy_j": self.energy_j,
            "energy_parts_j": dict(self.energy_parts),
            "lower_bound_s": self.lower_bound_fs / FS,
            "bound": {"resource": self.bound_resource, "utilization": self.bound_utilization},
            "bytes": {m.name: {"read": m.read, "write": m.written} for m in self.memories},
            "memory": {m.name: {"capacity": m.capacity, "peak": m.peak, "parts": dict(m.parts)} for m in self.memories},
            "utilization": dict(self.utilization),
            "peak_fraction": dict(self.peak_fraction),
            "stalls": {resource: dict(reasons) for resource, reasons in self.stalls.items()},
            "tasks": self.tasks,
            "assumptions": list(self.assumptions),
            "constants": [{"name": c.name, "value": c.value, "source": c.source} for c in self.constants],
            "operators": [
                {
                    "name": o.name,
                    "kind": o.kind,
                    "unit": o.unit,
                    "count": o.count,
                    "latency_s": o.latency_fs / FS,
                    "lower_bound_s": o.lower_bound_fs / FS,
                    "flops": o.flops,
                    "bytes": o.bytes,
                    "bound": o.bound,
                    "mapping": o.mapping,
                    "fused": list(o.fused),
                }
                for o in self.operators
            ],
            "elapsed_s": dict(self.elapsed_s),
        }
