"""A study before it is run: a design, its space, workloads, objectives and constraints; and how its points are evaluated."""

from __future__ import annotations

import inspect
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dovetail.explore import area
from dovetail.explore.errors import ExploreError
from dovetail.explore.evaluate import Job, Outcome, pack_graph
from dovetail.explore.execute import Pool, execute
from dovetail.explore.objectives import Constraint, NotModelledError, Objective, Run, constraint, objective
from dovetail.explore.progress import Progress, Silent
from dovetail.explore.space import Parameters, Space
from dovetail.explore.store import Memory, Store
from dovetail.explore.study import Describe, Evaluated, Point, Study
from dovetail.explore.version import model_version
from dovetail.explore.words import parameters as spelled
from dovetail.explore.words import quantity
from dovetail.explore.workload import Workload, digest_of, labelled
from hw.device import Device
from hw.errors import HardwareError, nearest
from workloads.errors import WorkloadError

if TYPE_CHECKING:
    from workloads.graph import Graph

Design = Callable[..., Device]
FLUSH_S = 0.25
"""Longest time that a finished evaluation waits to be written."""


@dataclass(frozen=True)
class Exploration:
    """What to explore. `design` makes a `Device` from parameters of `space`; parameters that it does not take must be used by a
    workload or a formula. `describe` says which device and settings a point stands for, where that is known.

    Raises `ExploreError` for parameters that nothing uses, with the nearest name, and for a workload that does not exist.
    """

    design: Design
    space: Space
    workloads: tuple[Workload, ...]
    objectives: tuple[Objective, ...]
    constraints: tuple[Constraint, ...] = ()
    name: str = "study"
    engine: str = "fast"
    notes: tuple[str, ...] = ()
    describe: Describe | None = None
    command: str = ""
    _graphs: dict[tuple[Any, ...], Graph | ValueError] = field(default_factory=dict, init=False, repr=False, compare=False)
    _packed: dict[str, bytes] = field(default_factory=dict, init=False, repr=False, compare=False)

    @classmethod
    def of(
        cls,
        design: Design,
        *,
        space: Space,
        workloads: Sequence[Workload],
        objectives: Iterable[object] = ("latency",),
        constraints: Iterable[object] = (),
        **more: Any,
    ) -> Exploration:
        """The exploration whose objectives and constraints are given in words."""
        named = labelled(workloads)
        if not named:
            raise ExploreError("a study needs at least one workload")
        labels = [w.label for w in named]
        chosen = tuple(objective(o, labels, space.names) for o in ((objectives,) if isinstance(objectives, (str, Mapping)) else objectives))
        limits = tuple(constraint(c, labels, space.names) for c in ((constraints,) if isinstance(constraints, str) else constraints))
        if not chosen:
            raise ExploreError("a study needs at least one objective, such as latency")
        if twice := [o.name for i, o in enumerate(chosen) if o.name in [c.name for c in chosen[:i]]]:
            raise ExploreError(f"objective {twice[0]!r} is given twice")
        return cls(design, space, named, chosen, limits, **more)

    def __post_init__(self) -> None:
        from sim import ENGINES

        if self.engine not in ENGINES:
            raise ExploreError(f"engine {self.engine!r}: unknown, expected one of {', '.join(ENGINES)}{nearest(self.engine, ENGINES)}")
        takes, anything = self._takes
        for workload in self.workloads:
            for name in sorted(workload.depends_on()):
                if name not in self.space.names:
                    raise ExploreError(
                        f"workload {workload.label!r} refers to {name!r}, expected a parameter ({', '.join(self.space.names)})"
                        f"{nearest(name, self.space.names)}"
                    )
        for name in self.space.names:
            if not anything and name not in takes and not self.uses(name):
                raise ExploreError(
                    f"unknown parameter {name!r}: the design takes {', '.join(takes) or 'no parameters'}{nearest(name, takes)}"
                )

    @cached_property
    def _takes(self) -> tuple[list[str], bool]:
        """Parameters of the design function, and whether it takes any."""
        signature = inspect.signature(self.design)
        kinds = {name: p.kind for name, p in signature.parameters.items()}
        named = [n for n, kind in kinds.items() if kind in (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)]
        return named, inspect.Parameter.VAR_KEYWORD in kinds.values()

    def uses(self, name: str) -> bool:
        """Whether a workload, a condition or a formula refers to a parameter."""
        from dovetail.explore import expression

        texts = [o.formula for o in (*self.objectives, *(c.objective for c in self.constraints)) if o.formula]
        texts += [p.when for p in self.space.parameters if p.when]
        return any(name in w.depends_on() for w in self.workloads) or any(name in expression.names(text) for text in texts)

    @cached_property
    def digest(self) -> str:
        """The identity of the definition: its space, workloads and what is asked. Designs are identified point by point."""
        space = [[p.name, list(p.values), p.when] for p in self.space.parameters]
        what = [[repr(w.request), w.label, w.weight] for w in self.workloads]
        return digest_of([space, what, [repr(o) for o in self.objectives], [c.text for c in self.constraints], self.engine])

    # Designs and graphs ------------------------------------------------------------------------------------------------------
    def device(self, parameters: Parameters) -> Device:
        """The design of one point. Raises `ExploreError` when it is no `Device`, and whatever the design function raises."""
        takes, anything = self._takes
        device = self.design(**{n: v for n, v in parameters.items() if anything or n in takes})
        if not isinstance(device, Device):
            raise ExploreError(f"the design returned {type(device).__name__} for {parameters}, expected a hw.Device")
        return device

    def graph(self, workload: Workload) -> Graph:
        """The graph of a resolved workload; each is made once. Raises `WorkloadError` or `ExploreError`."""
        request = workload.request
        if request not in self._graphs:
            try:
                self._graphs[request] = workload.graph()
            except (WorkloadError, ExploreError) as error:
                self._graphs[request] = error
        found = self._graphs[request]
        if isinstance(found, ValueError):
            raise found
        return found

    def _pack(self, graph: Graph) -> str:
        if graph.digest not in self._packed:
            self._packed[graph.digest] = pack_graph(graph)
        return graph.digest

    # Evaluation ----------------------------------------------------------------------------------------------------------------
    def evaluate(
        self,
        points: Sequence[Parameters],
        store: Store | Memory,
        pool: Pool | None = None,
        *,
        progress: Progress | None = None,
        retry_failed: bool = False,
        files: Sequence[str] = (),
    ) -> tuple[list[Point], int]:
        """The points with their objectives, in the order given, and how many evaluations had to be run.

        Raises `ExploreError` when an objective or constraint is not modelled for a device, as soon as that is known; what was
        evaluated before is in the store.
        """
        tell = progress or Silent()
        for workload in self.workloads:
            if not workload.depends_on():
                self.graph(workload)  # a workload that does not exist is refused before anything runs
        planned = [self._plan(parameters) for parameters in points]
        keys = [job.key for plan in planned for job in plan.jobs]
        known = store.find(keys, failed=not retry_failed)
        missing = {job.key: job for plan in planned for job in plan.jobs if job.key not in known}
        owners: dict[str, list[_Plan]] = {}
        for plan in planned:
            for job in plan.jobs:
                owners.setdefault(job.key, []).append(plan)
        for key in known:  # what is stored may also show that an objective is not modelled
            for plan in owners[key]:
                self._finish(plan, known)
        if missing:
            # spawned workers know the unit classes of hw; those of the user's own files are imported there, too
            places = own_files([plan.device for plan in planned if plan.device is not None])
            target = pool or Pool()
            if places is None and target.scheduler is None:
                target = Pool(workers=0)
            self._run(list(missing.values()), known, owners, store, target, tell, [*files, *(places or ())])
        return [self._finish(plan, known) for plan in planned], len(missing)

    def _run(
        self,
        jobs: Sequence[Job],
        known: dict[str, Outcome],
        owners: Mapping[str, list[_Plan]],
        store: Store | Memory,
        pool: Pool,
        tell: Progress,
        files: Sequence[str],
    ) -> None:
        version, waiting, best, done = model_version(), [], "", 0
        best_point: Point | None = None
        first = self.objectives[0]
        last = time.monotonic()
        tell(0, len(jobs), best)
        try:
            for outcome in execute(jobs, self._packed, pool, files):
                known[outcome.key] = outcome
                waiting.append(outcome)
                done += 1
                for plan in owners[outcome.key]:
                    if all(job.key in known for job in plan.jobs):
                        point = self._finish(plan, known)
                        value = point.objectives.get(first.name)
                        if point.feasible and (best_point is None or first.sign * value < first.sign * best_point.objectives[first.name]):  # type: ignore[operator]
                            best_point = point
                            best = f"best {first.name} {quantity(point.objectives[first.name], first)} at {spelled(point)}"
                if time.monotonic() - last > FLUSH_S:
                    store.add(waiting, version)
                    waiting, last = [], time.monotonic()
                tell(done, len(jobs), best)
        finally:
            store.add(waiting, version)
            tell.close()

    def _plan(self, parameters: Parameters) -> _Plan:
        """The jobs of one point, or why there are none."""
        try:
            device = self.device(parameters)
        except ExploreError:
            raise
        except HardwareError as error:
            return _Plan(parameters, reason=f"no such device: {error}")
        except Exception as error:  # the user's function; one design that it cannot make must not stop the others
            return _Plan(parameters, reason=f"the design function raised {type(error).__name__}: {error}", failed=True)
        if (broken := self._broken(device, (), parameters, of_device=True)) is not None:
            return _Plan(parameters, device=device, reason=broken[0], violation=broken[1])
        data = device.to_dict()
        digest = digest_of(data)
        plan = _Plan(parameters, device=device)
        for workload in self.workloads:
            resolved = workload.resolved(parameters)
            try:
                graph = self._pack(self.graph(resolved))
            except (WorkloadError, ExploreError) as error:
                return _Plan(parameters, device=device, reason=f"workload {workload.label!r}: {error}")
            key = digest_of(["evaluation", model_version(), digest, graph, self.engine])
            plan.jobs.append(Job(key, data, graph, self.engine))
            plan.workloads.append(resolved)
        return plan

    def _broken(self, device: Device, runs: Sequence[Run], parameters: Parameters, of_device: bool = False) -> tuple[str, float] | None:
        """The first constraint that does not hold, in words and relative to its limit; of the device alone, or of all."""
        for limit in self.constraints:
            about_device = limit.objective.quantity is not None and not limit.objective.quantity.per_run
            if of_device and not about_device:
                continue
            value = limit.objective.value(device, runs, parameters)
            if (excess := limit.violation(value)) > 0:
                return f"constraint {limit.text} does not hold: {limit.objective.name} is {quantity(value, limit.objective)}", excess
        if of_device:
            for chosen in self.objectives:
                if chosen.quantity is not None and not chosen.quantity.per_run:
                    chosen.value(device, runs, parameters)  # refused now where it is not modelled
        return None

    def _finish(self, plan: _Plan, known: Mapping[str, Outcome]) -> Point:
        if plan.reason or plan.device is None:
            return Point(plan.parameters, {}, False, plan.reason, plan.device, (), plan.failed, plan.violation)
        pairs = list(zip(plan.workloads, plan.jobs, strict=True))
        runs = tuple(Evaluated(w, job.key, known[job.key].metrics) for w, job in pairs if job.key in known)
        for workload, job in pairs:
            outcome = known.get(job.key)
            if outcome is not None and outcome.status != "ok":
                where = f"{workload.label}: " if len(pairs) > 1 else ""
                return Point(plan.parameters, {}, False, f"{where}{outcome.reason}", plan.device, runs, outcome.status == "failed")
        if len(runs) < len(pairs):
            return Point(plan.parameters, {}, False, "not evaluated", plan.device, runs)
        measured = [Run(run.workload.label, float(run.workload.weight), run.metrics) for run in runs]
        try:
            values = {o.name: o.value(plan.device, measured, plan.parameters) for o in self.objectives}
            broken = self._broken(plan.device, measured, plan.parameters)
        except NotModelledError as error:
            raise NotModelledError(f"study {self.name!r}: {error}; leave it out, or add it to the device") from None
        reason, violation = broken or ("", 0.0)
        return Point(plan.parameters, values, not reason, reason, plan.device, runs, violation=violation)

    def study(self, points: Sequence[Point], store: Store | Memory, evaluated: int, elapsed_s: float) -> Study:
        """The outcome, with notes on what its numbers mean."""
        notes = list(self.notes)
        asked = {o.quantity.name if o.quantity else o.formula for o in (*self.objectives, *(c.objective for c in self.constraints))}
        if any("area" in name for name in asked):
            notes.append(area.NOTE)
        if any(name in ("energy", "edp", "average_power", "tokens_per_joule") for name in asked):
            notes.append("energy is switching energy: static power is not modelled")
        return Study(
            name=self.name,
            space=self.space,
            objectives=self.objectives,
            constraints=self.constraints,
            workloads=self.workloads,
            points=tuple(points),
            notes=tuple(notes),
            engine=self.engine,
            describe=self.describe,
            store=store,
            place=store.place,
            command=self.command,
            elapsed_s=elapsed_s,
            evaluated=evaluated,
        )


@dataclass
class _Plan:
    """A point with its jobs, or with the reason for having none."""

    parameters: Parameters
    device: Device | None = None
    jobs: list[Job] = field(default_factory=list)
    workloads: list[Workload] = field(default_factory=list)
    reason: str = ""
    failed: bool = False
    violation: float = 0.0


def own_files(devices: Iterable[Device]) -> list[str] | None:
    """Files that define the units and memories of these devices and do not belong to `hw`; None where a class has no file
    (it was typed into a notebook), so that other processes cannot know it."""
    files: dict[str, None] = {}
    for cls in {type(part) for device in devices for part in (*device.units.values(), *device.memories.values())}:
        if cls.__module__.split(".")[0] == "hw":
            continue
        place = getattr(sys.modules.get(cls.__module__), "__file__", None)
        if place is None:
            return None
        files[str(Path(place).resolve())] = None
    return list(files)
