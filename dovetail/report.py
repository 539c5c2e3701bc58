"""The result of an estimate: every number with its unit, as text and JSON. HTML and timelines are in `dovetail.html` and
`dovetail.timeline`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from dovetail.error_band import UNKNOWN, ErrorBand

if TYPE_CHECKING:
    from pathlib import Path

    from mapper.compile import Compiled
    from mapper.flightllm.compile import Stream
    from mapper.mapping import Mapping as OperatorMappings
    from sim.trace import Trace

FS = 10**15
"""Femtoseconds per second."""


SCHEMA = 1


_DERIVED = frozenset({"latency_s", "lower_bound_s", "fused", "gap", "error_band", "candidates", "parts"})
"""Keys of a saved operator that are not fields of it as they are."""


class ReportError(ValueError):
    """A saved report that cannot be read; the message says where and what was expected."""


@dataclass(frozen=True)
class Candidate:
    """What was weighed for an operator: a unit (or two together, `a+b`) with its best mapping and latency; or, without a latency, the
    reason why it cannot run there."""

    unit: str
    mapping: str
    latency_fs: int | None
    reason: str = ""


@dataclass(frozen=True)
class UnitPart:
    """What one of several units does of an operator that they share: its latency, and its mapping."""

    unit: str
    latency_fs: int
    mapping: str


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
    error_band: ErrorBand = UNKNOWN
    mapping_bound_fs: int = 0  # no mapping that was considered for this operator is faster
    proven: bool = False  # whether this is shown: the mapping is the best of its space
    commands: Mapping[str, int] = field(default_factory=dict)  # of one memory channel, for a kernel in its banks
    candidates: tuple[Candidate, ...] = ()  # where there was a choice of units
    parts: tuple[UnitPart, ...] = ()  # where units share the operator
    lowering: str = ""  # how it multiplies: the format, what is converted to it, or the look-up instruction and who builds its tables

    @property
    def total_fs(self) -> int:
        """Latency of all runs."""
        return self.latency_fs * self.count


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
    """An estimate of one workload phase on one device.

    `phase` is `prefill`, `decode` or `single`; `latency_fs` is of one prefill, one decode step or one run. `mapping` is what
    was simulated (loop nests, or an instruction stream), saved with `--save-mapping`; a report that was read back has
    none, and an empty `trace`.
    """

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
    mapping: OperatorMappings | Stream | None = None
    error_band: ErrorBand = UNKNOWN
    search: Mapping[str, Any] = field(default_factory=dict)  # how the mappings were found; empty for a replayed one
    compiled: Compiled | None = field(default=None, repr=False, compare=False)  # what was simulated; not part of the saved report

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
            "schema": SCHEMA,
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
            "lower_bound_fs": self.lower_bound_fs,
            "error_band": self.error_band.to_json(),
            "bound": {"resource": self.bound_resource, "utilization": self.bound_utilization},
            "bytes": {m.name: {"read": m.read, "write": m.written} for m in self.memories},
            "memory": {m.name: {"capacity": m.capacity, "peak": m.peak, "parts": dict(m.parts)} for m in self.memories},
            "utilization": dict(self.utilization),
            "peak_fraction": dict(self.peak_fraction),
            "stalls": {resource: dict(reasons) for resource, reasons in self.stalls.items()},
            "roofs": [
                {"unit": r.unit, "format": r.format, "peak_flops": r.peak_flops, "memory": r.memory, "bandwidth": r.bandwidth}
                for r in self.roofs
            ],
            "tasks": self.tasks,
            "folded": {"tasks": self.trace.skipped, "repetitions": self.trace.repetitions},
            "assumptions": list(self.assumptions),
            "constants": [{"name": c.name, "value": c.value, "source": c.source} for c in self.constants],
            "operators": [
                {
                    "name": o.name,
                    "kind": o.kind,
                    "unit": o.unit,
                    "count": o.count,
                    "latency_s": o.latency_fs / FS,
                    "latency_fs": o.latency_fs,
                    "lower_bound_s": o.lower_bound_fs / FS,
                    "lower_bound_fs": o.lower_bound_fs,
                    "flops": o.flops,
                    "bytes": o.bytes,
                    "bound": o.bound,
                    "mapping": o.mapping,
                    "lowering": o.lowering,
                    "fused": list(o.fused),
                    "error_band": o.error_band.to_json(),
                    "mapping_bound_fs": o.mapping_bound_fs,
                    "gap": o.latency_fs / o.mapping_bound_fs - 1 if o.mapping_bound_fs else None,
                    "proven": o.proven,
                    **({"commands": dict(o.commands)} if o.commands else {}),
                    **({"candidates": [vars(c) for c in o.candidates]} if o.candidates else {}),
                    **({"parts": [vars(p) for p in o.parts]} if o.parts else {}),
                }
                for o in self.operators
            ],
            "search": dict(self.search),
            "elapsed_s": dict(self.elapsed_s),
        }

    @classmethod
    def from_json(cls, document: Any, where: str = "report") -> Report:
        """The report in a decoded JSON document, without its trace and mapping; `where` names its place in messages.

        Raises `ReportError` for anything that `to_json` did not write.
        """
        from sim.trace import Trace

        if not isinstance(document, dict) or document.get("type") != "report":
            raise ReportError(f'{where}: expected a saved report (a JSON object with "type": "report")')
        if document.get("schema") != SCHEMA:
            raise ReportError(f"{where}: schema {document.get('schema')!r} cannot be read, expected {SCHEMA}; estimate again")
        folded = document.get("folded", {})
        same = "workload phase batch tokens context formats device clock_hz engine latency_fs lower_bound_fs"
        try:
            return cls(
                **{name: document[name] for name in same.split()},
                bound_resource=document["bound"]["resource"],
                bound_utilization=document["bound"]["utilization"],
                utilization=document["utilization"],
                peak_fraction=document["peak_fraction"],
                stalls=document["stalls"],
                memories=tuple(
                    MemoryUse(
                        name=name,
                        capacity=use["capacity"],
                        peak=use["peak"],
                        read=document["bytes"][name]["read"],
                        written=document["bytes"][name]["write"],
                        parts=use["parts"],
                    )
                    for name, use in document["memory"].items()
                ),
                energy_j=document["energy_j"],
                energy_parts=document["energy_parts_j"],
                tasks=document["tasks"],
                error_band=ErrorBand.from_json(document["error_band"]) if "error_band" in document else UNKNOWN,
                operators=tuple(
                    OperatorRow(
                        **{k: v for k, v in o.items() if k not in _DERIVED},
                        candidates=tuple(Candidate(**c) for c in o.get("candidates", ())),
                        parts=tuple(UnitPart(**p) for p in o.get("parts", ())),
                        fused=tuple(o["fused"]),
                        error_band=ErrorBand.from_json(o["error_band"]) if "error_band" in o else UNKNOWN,
                    )
                    for o in document["operators"]
                ),
                roofs=tuple(Roof(**r) for r in document["roofs"]),
                assumptions=tuple(document["assumptions"]),
                constants=tuple(Constant(**c) for c in document["constants"]),
                elapsed_s=document["elapsed_s"],
                search=document.get("search", {}),
                trace=Trace((), document["latency_fs"], skipped=folded.get("tasks", 0), repetitions=folded.get("repetitions", 0)),
            )
        except (KeyError, TypeError, AttributeError) as error:
            raise ReportError(f"{where}: not a complete saved report ({error!r})") from error

    def timeloop(self) -> str:
        """The mapping of a single product as Timeloop's YAML. Raises `MappingError` where it has none, `ReportError` for a report
        that was read back."""
        from mapper.timeloop import export

        if self.compiled is None:
            raise ReportError(f"{self.workload}: a report that was read back has no mapping; estimate again")
        return export(self.compiled)

    def text(self) -> str:
        """Five lines: the answer, its bound, where the time goes, memory and energy, what was assumed; one more with the lowering of
        products where some look up tables, and one with the commands of kernels in memory banks, where there are any."""
        from dovetail.text import commands, five_lines, look_ups, units

        return "\n".join([*five_lines(self), *units(self), *look_ups(self), *commands(self)])

    def __str__(self) -> str:
        return self.text()

    def __repr__(self) -> str:
        from dovetail.human import seconds

        return f"Report({self.workload} {self.phase} on {self.device}: {seconds(self.latency_s)})"

    def _repr_html_(self) -> str:
        from dovetail.text import notebook_table

        return notebook_table(self)

    def save_html(self, path: str | Path) -> None:
        """Writes one self-contained page. Raises `OSError` when `path` cannot be written; leaves nothing half-written."""
        from dovetail.html import write_html

        write_html(self, path)

    def save_mapping(self, path: str | Path) -> None:
        """Writes what was simulated: a mapping, Timeloop's YAML for a path that ends so, or an instruction file.

        Raises `OSError` when `path` cannot be written, `ReportError` for a report that was read back and has none.
        """
        from dovetail.files import atomic_file
        from mapper.flightllm import binary
        from mapper.flightllm.compile import Stream

        if self.mapping is None:
            raise ReportError(f"{self.workload}: a report that was read back has no mapping; estimate again")
        if isinstance(self.mapping, Stream):
            data = binary.dumps(self.mapping)
        else:
            data = (self.timeloop() if str(path).endswith((".yaml", ".yml")) else self.mapping.dumps()).encode()
        with atomic_file(path) as file:
            file.write(data)

    def save_trace(self, path: str | Path) -> None:
        """Writes the timeline as Chrome-trace JSON, which Perfetto opens. Raises `OSError` when `path` cannot be written."""
        from dovetail.timeline import write_timeline

        write_timeline(self, path)
