"""A study and what came out of it: designs with their objectives, the front, tables and pages."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from dovetail.explore.errors import ExploreError
from dovetail.explore.objectives import Constraint, Objective
from dovetail.explore.pareto import front
from dovetail.explore.space import Parameters, Space
from hw.errors import nearest

if TYPE_CHECKING:
    from dovetail.explore.workload import Workload
    from dovetail.report import Report
    from hw.device import Device

TABLE_SCHEMA = "1"


@dataclass(frozen=True)
class Evaluated:
    """One workload on one design: the resolved workload, the key in the store and what was measured."""

    workload: Workload
    key: str
    metrics: Mapping[str, Any]


@dataclass(frozen=True)
class Point:
    """One design. Where it is not feasible `reason` says why; `objectives` are empty where it could not be evaluated, and
    `violation` is how far it breaks a constraint, relative to its limit. `device` is None where the parameters describe none."""

    parameters: Parameters
    objectives: Mapping[str, float]
    feasible: bool
    reason: str
    device: Device | None = field(default=None, repr=False, compare=False)
    runs: tuple[Evaluated, ...] = field(default=(), repr=False, compare=False)
    failed: bool = False
    violation: float = 0.0

    def bound_run(self, label: str = "") -> Evaluated | None:
        """The workload labelled, or the one that takes longest."""
        runs = [run for run in self.runs if run.metrics and label in ("", run.workload.label)]
        return max(runs, key=lambda run: run.workload.weight * run.metrics["latency_fs"], default=None)

    @property
    def bound(self) -> str:
        """What limits the workload that takes longest; empty where nothing was measured."""
        run = self.bound_run()
        return str(run.metrics["bound"]) if run else ""


Describe = Callable[[Mapping[str, Any]], tuple[str, dict[str, Any]]]
"""The device (a name or a file) and the settings on it that a point's parameters stand for."""


class Reports(Protocol):
    """Where reports of evaluations come from."""

    def report(self, key: str) -> bytes: ...


@dataclass(frozen=True)
class Study:
    """The outcome of a sweep or a search: its points in order, what was asked, and notes on what the numbers mean."""

    name: str
    space: Space
    objectives: tuple[Objective, ...]
    constraints: tuple[Constraint, ...]
    workloads: tuple[Workload, ...]
    points: tuple[Point, ...]
    notes: tuple[str, ...] = ()
    engine: str = "fast"
    describe: Describe | None = field(default=None, repr=False, compare=False)
    store: Reports | None = field(default=None, repr=False, compare=False)
    place: str = ""
    command: str = ""
    elapsed_s: float = 0.0
    evaluated: int = 0

    def __len__(self) -> int:
        return len(self.points)

    def __iter__(self) -> Any:
        return iter(self.points)

    @property
    def feasible(self) -> tuple[Point, ...]:
        return tuple(p for p in self.points if p.feasible)

    @property
    def infeasible(self) -> tuple[Point, ...]:
        return tuple(p for p in self.points if not p.feasible)

    def objective(self, name: str | None = None) -> Objective:
        """An objective by name, by default the first. Raises `ExploreError` with the nearest name."""
        if name is None:
            return self.objectives[0]
        names = [o.name for o in self.objectives]
        if name not in names:
            raise ExploreError(f"study {self.name!r} has no objective {name!r}, expected one of {', '.join(names)}{nearest(name, names)}")
        return self.objectives[names.index(name)]

    def costs(self, points: Sequence[Point] | None = None) -> list[list[float]]:
        """Objectives of feasible points with their signs turned so that smaller is better."""
        return [[o.sign * p.objectives[o.name] for o in self.objectives] for p in (self.feasible if points is None else points)]

    def pareto(self) -> list[Point]:
        """Feasible points that no other beats in every objective, in the order of the first objective."""
        feasible = self.feasible
        chosen = [feasible[i] for i in front(self.costs())]
        first = self.objectives[0]
        return sorted(chosen, key=lambda p: (first.sign * p.objectives[first.name], json.dumps(p.parameters)))

    def best(self, name: str | None = None) -> Point:
        """The best feasible point in one objective; of equals the first. Raises `ExploreError` where none is feasible."""
        chosen = self.objective(name)
        if not self.feasible:
            reasons = "; ".join(dict.fromkeys(p.reason for p in self.points)) if self.points else "it has no points"
            raise ExploreError(f"study {self.name!r}: no design is feasible: {reasons[:400]}")
        return min(self.feasible, key=lambda p: chosen.sign * p.objectives[chosen.name])

    def report(self, point: Point, label: str | None = None) -> Report:
        """The estimate report of a point (of its first workload, or of the one labelled), without its timeline.

        Raises `ExploreError` where there is none.
        """
        from dovetail.explore.evaluate import unpacked

        runs = [run for run in point.runs if label in (None, run.workload.label)]
        data = self.store.report(runs[0].key) if runs and self.store is not None else b""
        if not data:
            why = point.reason or "it is not stored"
            raise ExploreError(f"study {self.name!r}: there is no report of {point.parameters} {label or ''}: {why}")
        return unpacked(data, f"{self.place or 'store'}: {runs[0].key[:12]}")

    # Tables -----------------------------------------------------------------------------------------------------------------
    def columns(self) -> dict[str, list[Any]]:
        """The table by column, sorted by parameters: parameters, objectives, `feasible`, `reason`, `bound`, `pareto`, and the
        measured quantities of every workload. Values that do not exist are None."""
        order = sorted(self.points, key=lambda p: [_sortable(p.parameters.get(name)) for name in self.space.names])
        on_front = {id(p) for p in self.pareto()}
        out: dict[str, list[Any]] = {name: [p.parameters.get(name) for p in order] for name in self.space.names}
        for objective in self.objectives:
            out[_free(objective.name, out)] = [p.objectives.get(objective.name) for p in order]
        out[_free("feasible", out)] = [p.feasible for p in order]
        out[_free("reason", out)] = [p.reason for p in order]
        out[_free("pareto", out)] = [id(p) in on_front for p in order]
        for workload in self.workloads:
            measured = [{r.workload.label: r.metrics for r in p.runs}.get(workload.label, {}) for p in order]
            for name in ("latency_fs", "lower_bound_fs", "energy_j", "dram_bytes", "bound", "bound_utilization"):
                out[_free(f"{workload.label}.{name}", out)] = [m.get(name) for m in measured]
        return out

    def to_frame(self, kind: str | None = None) -> Any:
        """The table as a `pandas` frame where pandas is installed, else a `pyarrow` table, else a dict of columns; `kind` asks
        for one of them. Raises `ExploreError` when that one is not installed."""
        kinds = ("pandas", "pyarrow", "dict")
        if kind is not None and kind not in kinds:
            raise ExploreError(f"to_frame: expected one of {', '.join(kinds)}, not {kind!r}{nearest(kind, kinds)}")
        if kind in (None, "pandas"):
            try:
                import pandas  # type: ignore[import-untyped, import-not-found, unused-ignore]

                return pandas.DataFrame(self.columns())
            except ImportError:
                if kind is not None:
                    raise ExploreError("to_frame: pandas is not installed; use to_frame('pyarrow') or to_frame('dict')") from None
        if kind in (None, "pyarrow"):
            try:
                return self._table()
            except ImportError:
                if kind is not None:
                    raise ExploreError("to_frame: pyarrow is not installed; install it with: pip install 'dovetail[dse]'") from None
        return self.columns()

    def _table(self) -> Any:
        import pyarrow as pa  # type: ignore[import-untyped, unused-ignore]

        arrays: dict[str, Any] = {}
        for name, values in self.columns().items():
            present = [v for v in values if v is not None]
            kinds = {type(v) for v in present}
            if kinds <= {int, float} and kinds != {int}:
                arrays[name] = pa.array([None if v is None else float(v) for v in values], pa.float64())
            elif len(kinds) > 1:
                arrays[name] = pa.array([None if v is None else str(v) for v in values], pa.string())
            else:
                arrays[name] = pa.array(values, None if kinds else pa.string())
        return pa.table(arrays).replace_schema_metadata({"dovetail.table": TABLE_SCHEMA, "dovetail.study": self.name})

    def to_parquet(self, path: str | Path) -> None:
        """Writes the table; the same points give the same bytes. Raises `OSError` when it cannot be written; nothing half-written
        stays."""
        try:
            import pyarrow.parquet as pq  # type: ignore[import-untyped, unused-ignore]
        except ImportError:
            raise ExploreError("--parquet needs pyarrow; install it with: pip install 'dovetail[dse]'") from None
        from dovetail.files import check_writable

        target = Path(path)
        check_writable(target)
        handle, temporary = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name[:80]}.")
        os.close(handle)
        try:
            pq.write_table(self._table(), temporary)
            mask = os.umask(0)
            os.umask(mask)
            os.chmod(temporary, 0o666 & ~mask)
            os.replace(temporary, target)
        except BaseException:
            with suppress(FileNotFoundError):
                os.unlink(temporary)
            raise

    def to_json(self) -> dict[str, Any]:
        """The documented keys, `points[{parameters, objectives, feasible, reason}]` and `pareto[]` (indices of points), and the
        directions, units and notes that they need."""
        index = {id(p): i for i, p in enumerate(self.points)}
        return {
            "schema": 1,
            "type": "study",
            "name": self.name,
            "objectives": [{"name": o.name, "direction": o.direction, "unit": o.unit} for o in self.objectives],
            "constraints": [c.text for c in self.constraints],
            "parameters": [{"name": p.name, "values": list(p.values), "when": p.when} for p in self.space.parameters],
            "notes": list(self.notes),
            "points": [
                {
                    "parameters": dict(p.parameters),
                    "objectives": dict(p.objectives),
                    "feasible": p.feasible,
                    "reason": p.reason,
                    "bound": p.bound,
                }
                for p in self.points
            ],
            "pareto": [index[id(p)] for p in self.pareto()],
        }

    # Commands ---------------------------------------------------------------------------------------------------------------
    def reproduce(self, point: Point, files: Mapping[str, str] | None = None) -> list[str]:
        """The commands that estimate a point again, one per workload. `files` maps digests of devices and graphs to files that
        hold them, for designs that a name and settings do not describe; without it such a design is named by its digest."""
        import shlex

        files = files or {}
        out: list[str] = []
        for run in point.runs:
            arguments = ["dovetail", "estimate"]
            options = run.workload.options()
            if run.workload.layers is not None or not isinstance(run.workload.workload, str):
                arguments.append(files.get(run.key, f"{run.key[:12]}.json.gz"))  # a saved graph has its formats and sizes in it
            else:
                arguments += options
            if self.describe is not None:
                device, settings = self.describe(point.parameters)
                arguments += ["--device", device]
                for path, value in settings.items():
                    arguments += ["--set", f"{path}={value}"]
            elif point.device is not None:
                arguments += ["--device", files.get(point.device.digest, f"{point.device.digest[:12]}.yaml")]
            if self.engine != "fast":
                arguments += ["--engine", self.engine]
            out.append(shlex.join(arguments))
        return out

    # Reading ----------------------------------------------------------------------------------------------------------------
    def text(self) -> str:
        """A few lines: size, front and the best of each objective."""
        from dovetail.explore.words import summary

        return "\n".join(summary(self))

    def __str__(self) -> str:
        return self.text()

    def __repr__(self) -> str:
        return f"Study({self.name}: {len(self.points)} points, {len(self.infeasible)} infeasible)"

    def _repr_html_(self) -> str:
        from dovetail.explore.words import described, number

        head = [*self.space.names, *(f"{o.name} [{o.unit}]" if o.unit else o.name for o in self.objectives), "bound"]
        shown = self.pareto()[:25]
        rows = "".join(
            "<tr>"
            + "".join(f"<td>{escape(str(p.parameters.get(n, '')))}</td>" for n in self.space.names)
            + "".join(f"<td>{escape(number(p.objectives[o.name]))}</td>" for o in self.objectives)
            + f"<td>{escape(p.bound)}</td></tr>"
            for p in shown
        )
        return (
            f'<table><caption style="text-align:left">{escape(described(self))}</caption><thead><tr>'
            + "".join(f'<th style="text-align:left">{escape(h)}</th>' for h in head)
            + f"</tr></thead><tbody>{rows}</tbody></table>"
        )

    def save_html(self, path: str | Path, other: Study | None = None) -> None:
        """Writes the page and, in a folder beside it, the reports of the front. `other` is a study to compare with.

        Raises `OSError` when it cannot be written.
        """
        from dovetail.explore.page import write_page

        write_page(self, path, other)


def _free(name: str, taken: Mapping[str, Any]) -> str:
    while name in taken:
        name += "_"
    return name


def _sortable(value: object) -> tuple[int, float, str]:
    """Absent values first, then numbers and quantities by size, then text."""
    from dovetail.explore.space import magnitudes

    if value is None:
        return (0, 0.0, "")
    if isinstance(value, (int, float, str)) and (size := magnitudes([value])) is not None:
        return (1, size[0], str(value))
    return (2, 0.0, str(value))
