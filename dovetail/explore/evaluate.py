"""One evaluation: a workload on a design, measured. This is what a worker process does, here or on another machine."""

from __future__ import annotations

import importlib
import importlib.util
import json
import sys
import time
import traceback
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from hw.device import Device
from hw.errors import HardwareError
from mapper.errors import MappingError
from workloads.errors import WorkloadError

if TYPE_CHECKING:
    from dovetail.report import Report
    from mapper.strategies import Search
    from workloads.graph import Graph

Status = Literal["ok", "infeasible", "failed"]
"""`ok`: measured. `infeasible`: the design cannot run the workload, for a reason that stays. `failed`: an error of ours, or a
worker that died; it is tried again when the sweep is resumed."""


@dataclass(frozen=True)
class Job:
    """One evaluation: its key in the store, the device as plain data, the digest of the graph, and the engine."""

    key: str
    device: Mapping[str, Any]
    graph: str
    engine: str


@dataclass(frozen=True)
class Outcome:
    """What became of a job. `metrics` are those of `measure`; `report` is the compressed report, empty where there is none."""

    key: str
    status: Status
    reason: str = ""
    metrics: Mapping[str, Any] = field(default_factory=dict)
    report: bytes = b""
    elapsed_s: float = 0.0


def measure(report: Report, device: Device) -> dict[str, Any]:
    """The numbers that objectives are made of, with the bound that decided them."""
    main = device.main_memory
    traffic = sum(use.read + use.written for use in report.memories if use.name == main)
    return {
        "latency_fs": report.latency_fs,
        "lower_bound_fs": report.lower_bound_fs,
        "energy_j": report.energy_j,
        "energy_missing": sorted(n for n, v in report.energy_parts.items() if v is None and n != "static power"),
        "tokens": None if report.phase == "single" else report.batch * report.tokens,
        "dram_bytes": traffic,
        "bound": report.bound_resource,
        "bound_utilization": report.bound_utilization,
    }


def packed(report: Report) -> bytes:
    """A report for the store: without wall-clock times, so that the same point is the same bytes."""
    document = {**report.to_json(), "elapsed_s": {}}
    return zlib.compress(json.dumps(document, separators=(",", ":")).encode(), 6)


def unpacked(data: bytes, where: str) -> Report:
    """The report in the store, without its timeline. Raises `ReportError` for a damaged one."""
    from dovetail.report import Report as ReportType
    from dovetail.report import ReportError

    try:
        return ReportType.from_json(json.loads(zlib.decompress(data)), where)
    except (zlib.error, ValueError) as error:
        raise ReportError(f"{where}: the stored report is damaged ({error})") from None


def run(job: Job, graph: Graph, search: Search) -> Outcome:
    """Evaluates one job, with mappings that a `search` finds or remembers.

    A design that cannot run the workload, and an error of ours, become an outcome with the reason."""
    from dovetail.estimate import estimate

    start = time.perf_counter()
    try:
        device = Device.from_dict(job.device, "design")
        report = estimate(graph, device=device, engine=job.engine, strategy=search)
        return Outcome(job.key, "ok", "", measure(report, device), packed(report), time.perf_counter() - start)
    except (WorkloadError, HardwareError, MappingError) as error:
        return Outcome(job.key, "infeasible", f"{type(error).__name__}: {error}", elapsed_s=time.perf_counter() - start)
    except Exception as error:  # a point must not stop the sweep; the reason and the place are kept
        frame = traceback.extract_tb(error.__traceback__)[-1]
        reason = f"{type(error).__name__}: {error} ({Path(frame.filename).name}:{frame.lineno})"
        return Outcome(job.key, "failed", reason, elapsed_s=time.perf_counter() - start)


# In a worker ---------------------------------------------------------------------------------------------------------------
_graphs: dict[str, Graph] = {}


@lru_cache(maxsize=1)
def _search() -> Search:
    """The search of this process: that of `estimate`, remembering from design to design, and on disk what it has proven."""
    from mapper.memo import Memo
    from mapper.strategies import Search as SearchType

    return SearchType(memo=Memo.default())


def load_files(paths: Sequence[str]) -> None:
    """Imports Python files that define units of their own, once per process."""
    for path in paths:
        name = f"dovetail_loaded_{Path(path).stem}"
        if name in sys.modules:
            continue
        spec = importlib.util.spec_from_file_location(name, path)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module
        spec.loader.exec_module(module)


def run_chunk(jobs: Sequence[Job], graphs: Mapping[str, bytes], files: Sequence[str] = ()) -> list[Outcome]:
    """Evaluates jobs one after the other. `graphs` are the packed graphs that they name (`pack_graph`); `files` are imported first."""
    load_files(files)
    for digest, data in graphs.items():
        if digest not in _graphs:
            _graphs[digest] = unpack_graph(data)
    return [run(job, _graphs[job.graph], _search()) for job in jobs]


def pack_graph(graph: Graph) -> bytes:
    """A graph as bytes for another process."""
    return zlib.compress(json.dumps(graph.to_json(), separators=(",", ":")).encode(), 1)


def unpack_graph(data: bytes) -> Graph:
    from workloads.graph import Graph as GraphType

    return GraphType.from_json(json.loads(zlib.decompress(data)), "graph of a study")


def warm_up() -> None:
    """Imports what an evaluation needs, so that the first one of a process is as fast as the others."""
    for name in ("dovetail.estimate", "mapper.compile", "sim.fast_engine", "workloads.graph"):
        importlib.import_module(name)
