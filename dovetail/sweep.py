"""The public way into design-space exploration: `sweep` for every point of a space, `optimise` for a search in a large one."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dovetail.explore.errors import ExploreError

if TYPE_CHECKING:
    from dovetail.explore.exploration import Exploration
    from dovetail.explore.progress import Progress
    from dovetail.explore.study import Study
    from hw.device import Device


def sweep(
    design: Callable[..., Device] | Exploration,
    *,
    workload: object = None,
    space: Mapping[str, Sequence[Any]] | object = None,
    objectives: Iterable[object] | str = ("latency",),
    constraints: Iterable[object] | str = (),
    name: str | None = None,
    engine: str = "fast",
    store: str | Path | None = None,
    workers: int | None = None,
    scheduler: str | None = None,
    resume: bool = False,
    points: Sequence[Mapping[str, Any]] | None = None,
    progress: Progress | None = None,
    **values: Any,
) -> Study:
    """Estimates every design of a space.

    `design` is a function that returns a `Device`; each of its arguments that is given as a list of values is swept. `workload`
    is a model's name, a `Graph`, a `Workload`, or several of them; `phase`, `batch`, `seq`, `context`, `weights`, `acts`, `kv`
    and `layers` apply to all of them and may be lists, too, or functions of the swept parameters. `space` gives parameters whose
    names are taken here, or a `Space` with conditions. `objectives` are names (`latency`, `energy`, `area`, `tokens/J`,
    `decode.latency`, ...), `constraints` such as `area <= 400`.

    `store` is a file or an SQL URL; points that it has are not evaluated again. `resume` also tries points again that failed. `workers`
    processes (default: one per processor; 0: this process) evaluate, or the Dask cluster at `scheduler`. `points` evaluates only those.

    Raises `ExploreError`, `WorkloadError` or `HardwareError` for what a user can get wrong; designs that cannot run the workload are
    points of the study with their reason.
    """
    from dovetail.explore.execute import Pool

    exploration = _exploration(design, workload, space, objectives, constraints, name, engine, values)
    chosen = [exploration.space.active({**p}) if _complete(exploration, p) else dict(p) for p in points] if points is not None else None
    return run(exploration, points=chosen, store=store, pool=Pool(workers, scheduler), resume=resume, progress=progress)


def optimise(
    design: Callable[..., Device] | Exploration,
    *,
    workload: object = None,
    space: Mapping[str, Sequence[Any]] | object = None,
    objectives: Iterable[object] | str = ("latency",),
    constraints: Iterable[object] | str = (),
    sampler: str = "tpe",
    evaluations: int = 100,
    seed: int = 0,
    batch_size: int | None = None,
    storage: str | None = None,
    name: str | None = None,
    engine: str = "fast",
    store: str | Path | None = None,
    workers: int | None = None,
    scheduler: str | None = None,
    resume: bool = False,
    progress: Progress | None = None,
    **values: Any,
) -> Study:
    """Searches a space that is too large to sweep; arguments that `sweep` has, too, mean the same.

    `sampler` is `tpe`, `nsga2`, `gp` (Optuna's), `surrogate` (a model fitted to the points so far, whose candidates are
    estimated like all others) or `random`. `evaluations` different designs are estimated. The same `seed` and `batch_size` give
    the same designs, so that a search that was stopped goes on where it was when it is started again with its `store`.
    `storage` is an Optuna storage URL through which several machines work on one search.
    """
    from dovetail.explore.execute import Pool
    from dovetail.explore.optimise import search

    exploration = _exploration(design, workload, space, objectives, constraints, name, engine, values)
    with _opened(store) as opened:
        return search(
            exploration,
            sampler=sampler,
            evaluations=evaluations,
            seed=seed,
            batch_size=batch_size,
            storage=storage,
            store=opened,
            pool=Pool(workers, scheduler),
            retry_failed=resume,
            progress=progress,
        )


def run(
    exploration: Exploration,
    *,
    points: Sequence[dict[str, Any]] | None = None,
    store: str | Path | None = None,
    pool: Any = None,
    resume: bool = False,
    progress: Progress | None = None,
    files: Sequence[str] = (),
) -> Study:
    """Evaluates the grid of an exploration, or the given points."""
    start = time.perf_counter()
    chosen = list(exploration.space.grid()) if points is None else list(points)
    with _opened(store) as opened:
        opened.begin(exploration.name, exploration.digest)
        found, count = exploration.evaluate(chosen, opened, pool, progress=progress, retry_failed=resume, files=files)
        return exploration.study(found, opened, count, time.perf_counter() - start)


class _opened:  # noqa: N801 - used like a function
    """The store at a place, or one in memory. A file stays open for the study's reports; it is closed where the study fails."""

    def __init__(self, place: str | Path | None) -> None:
        from dovetail.explore.store import Memory, Store

        self.store: Store | Memory = Memory() if place is None else Store(place)

    def __enter__(self) -> Any:
        return self.store

    def __exit__(self, kind: object, *_: object) -> None:
        if kind is not None:
            self.store.close()


def _complete(exploration: Exploration, point: Mapping[str, Any]) -> bool:
    exploration.space.check(point)
    return set(exploration.space.names) <= set(point)


def _exploration(
    design: Callable[..., Device] | Exploration,
    workload: object,
    space: Mapping[str, Sequence[Any]] | object,
    objectives: Iterable[object] | str,
    constraints: Iterable[object] | str,
    name: str | None,
    engine: str,
    values: Mapping[str, Any],
) -> Exploration:
    from dataclasses import replace

    from dovetail.explore.exploration import Exploration as ExplorationType
    from dovetail.explore.space import Parameter, Space
    from dovetail.explore.workload import SWEEPABLE
    from dovetail.explore.workload import workload as described

    if isinstance(design, ExplorationType):
        if workload is not None or space is not None or values:
            raise ExploreError("an exploration has its own workload and space; leave them out")
        return design
    if workload is None:
        raise ExploreError("workload: missing; give a model's name such as llama-2-7b, a graph or a gemm:MxKxN")
    given = list(workload) if isinstance(workload, (list, tuple)) else [workload]
    items = [described(item) for item in given]
    if isinstance(space, Space):
        parameters = list(space.parameters)
    elif space is None or isinstance(space, Mapping):
        parameters = [Parameter(str(n), tuple(_listed(str(n), v))) for n, v in (space or {}).items()]
    else:
        raise ExploreError(f"space: expected a mapping of names to values or a Space, found {space!r}")
    for key, value in values.items():
        if key in SWEEPABLE:
            if isinstance(value, (list, tuple, range)):
                parameters.append(Parameter(key, tuple(value)))
                value = f"{{{key}}}"
            items = [item if getattr(item, key) is not None else replace(item, **{key: value}) for item in items]
        else:
            parameters.append(Parameter(key, tuple(_listed(key, value))))
    chosen = name or getattr(design, "__name__", "study")
    return ExplorationType.of(
        design,
        space=Space(tuple(parameters)),
        workloads=items,
        objectives=objectives,
        constraints=constraints,
        name="study" if chosen == "<lambda>" else chosen,
        engine=engine,
    )


def _listed(name: str, value: object) -> Sequence[Any]:
    if isinstance(value, (list, tuple, range)):
        return value
    if isinstance(value, (str, int, float, bool)):
        return (value,)
    raise ExploreError(f"parameter {name!r}: expected a list of values, found {value!r}")
