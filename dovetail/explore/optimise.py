"""Searching large spaces: Optuna's samplers, and a fitted model whose proposals are estimated like every other design.

A search is a sequence of batches: the sampler proposes, the designs are estimated side by side, and it is told in the order in
which it proposed. The sequence follows from the seed and the batch size alone, so a search that was stopped is simply run
again: what its store has is not estimated twice.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from dovetail.explore.errors import ExploreError
from dovetail.explore.space import Parameters, Space
from dovetail.explore.study import Point, Study
from hw.errors import nearest

if TYPE_CHECKING:
    import optuna

    from dovetail.explore.execute import Pool
    from dovetail.explore.exploration import Exploration
    from dovetail.explore.progress import Progress
    from dovetail.explore.store import Memory, Store

SAMPLERS = ("tpe", "nsga2", "gp", "surrogate", "random")
BATCH = 8
"""Designs proposed at a time, where none is given. It is part of the sequence, so it does not depend on the machine."""

GIVE_UP = 20
"""Proposals per wanted design, all known already, after which a space counts as searched."""

_CONSTRAINT = "constraints of the study"
Key = tuple[tuple[str, Any], ...]


def search(
    exploration: Exploration,
    *,
    sampler: str,
    evaluations: int,
    seed: int = 0,
    batch_size: int | None = None,
    storage: str | None = None,
    store: Store | Memory,
    pool: Pool | None = None,
    retry_failed: bool = False,
    progress: Progress | None = None,
    files: Sequence[str] = (),
) -> Study:
    """Estimates up to `evaluations` different designs, fewer where the space has no more. See `dovetail.optimise`."""
    if sampler not in SAMPLERS:
        raise ExploreError(f"sampler {sampler!r}: unknown, expected one of {', '.join(SAMPLERS)}{nearest(sampler, SAMPLERS)}")
    for label, value in (("evaluations", evaluations), ("batch_size", BATCH if batch_size is None else batch_size)):
        if type(value) is not int or value < 1:
            raise ExploreError(f"{label}: expected a whole number of at least 1, not {value!r}")
    if storage is not None and sampler in ("surrogate", "random"):
        raise ExploreError(f"sampler {sampler!r} keeps no Optuna study, so it cannot share one at {storage!r}; leave `storage` out")
    start = time.perf_counter()
    store.begin(exploration.name, exploration.digest)
    found: dict[Key, Point] = {}
    count = 0

    def estimate(wanted: Sequence[Parameters]) -> list[Point]:
        nonlocal count
        new = list({_key(p): p for p in wanted if _key(p) not in found}.values())
        points, ran = exploration.evaluate(new, store, pool, progress=progress, retry_failed=retry_failed, files=files)
        count += ran
        found.update({_key(p.parameters): p for p in points})
        return [found[_key(p)] for p in wanted]

    size = batch_size or BATCH
    if sampler == "random":
        estimate(exploration.space.sample(evaluations, seed))
    elif sampler == "surrogate":
        _with_surrogate(exploration, estimate, found, evaluations, seed, size)
    else:
        _with_optuna(exploration, estimate, found, evaluations, seed, size, sampler, storage)
    return exploration.study(list(found.values()), store, count, time.perf_counter() - start)


def _key(point: Parameters) -> Key:
    return tuple(point.items())


# Optuna -------------------------------------------------------------------------------------------------------------------
def _with_optuna(
    exploration: Exploration,
    estimate: Callable[[Sequence[Parameters]], list[Point]],
    found: dict[Key, Point],
    evaluations: int,
    seed: int,
    size: int,
    sampler: str,
    storage: str | None,
) -> None:
    try:
        import optuna
    except ImportError:
        raise ExploreError(f"sampler {sampler!r} needs optuna; install it with: pip install 'dovetail[dse]'") from None
    from optuna.trial import TrialState

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        study = optuna.create_study(
            storage=storage,
            study_name=exploration.name if storage else None,
            load_if_exists=True,
            sampler=_sampler(sampler, seed, evaluations),
            directions=[o.direction for o in exploration.objectives],
        )
    except Exception as error:  # the storage's driver decides what it raises
        if storage is None:
            raise
        raise ExploreError(f"storage {storage!r}: cannot be opened ({' '.join(str(error).split())[:300]})") from None
    idle = 0
    while len(found) < evaluations and idle < GIVE_UP * size:
        trials = [study.ask() for _ in range(min(size, evaluations - len(found)))]
        before = len(found)
        points = estimate([_suggested(exploration.space, trial) for trial in trials])
        idle = 0 if len(found) > before else idle + len(trials)
        for trial, point in zip(trials, points, strict=True):
            if exploration.constraints:
                trial.set_constraint(_CONSTRAINT, point.violation if point.objectives else 1.0)
            if point.objectives:
                study.tell(trial, [point.objectives[o.name] for o in exploration.objectives])
            else:
                study.tell(trial, state=TrialState.FAIL)


def _suggested(space: Space, trial: optuna.Trial) -> Parameters:
    """The point of a trial. Every parameter is suggested, so that the space is the same for all trials; those whose condition
    does not hold are left out of the point. Ordered values are suggested by index."""
    chosen: Parameters = {}
    for p in space.parameters:
        ordered = p.numeric and len(p.values) > 1
        index = trial.suggest_int(p.name, 0, len(p.values) - 1) if ordered else trial.suggest_categorical(p.name, range(len(p.values)))
        chosen[p.name] = p.values[index]
    return space.active(chosen)


def _sampler(name: str, seed: int, evaluations: int) -> optuna.samplers.BaseSampler:
    import warnings

    import optuna

    warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)
    match name:
        case "nsga2":
            population = max(8, min(50, evaluations // 8))
            return optuna.samplers.NSGAIISampler(population_size=population, seed=seed)
        case "gp":
            try:
                return optuna.samplers.GPSampler(seed=seed, deterministic_objective=True)
            except ImportError as error:
                raise ExploreError(f"sampler 'gp' needs torch and scipy: {error}") from None
        case _:
            return optuna.samplers.TPESampler(seed=seed, multivariate=True, constant_liar=True)


# A fitted model -------------------------------------------------------------------------------------------------------------
def _with_surrogate(
    exploration: Exploration,
    estimate: Callable[[Sequence[Parameters]], list[Point]],
    found: dict[Key, Point],
    evaluations: int,
    seed: int,
    size: int,
) -> None:
    from dovetail.explore.surrogate import NEEDED, Surrogate

    estimate(exploration.space.sample(min(evaluations, max(NEEDED, evaluations // 4)), seed))
    step = 0
    while len(found) < evaluations:
        step += 1
        wanted = min(size, evaluations - len(found))
        pool = [p for p in exploration.space.sample(4096, seed + step) if _key(p) not in found]
        if not pool:
            return
        feasible = [p for p in found.values() if p.objectives]
        if len(feasible) < NEEDED:
            estimate(random.Random(seed + step).sample(pool, min(wanted, len(pool))))
            continue
        model = Surrogate.fit(exploration.space, exploration.objectives, feasible)
        estimate(model.propose(pool, wanted, [p for p in feasible if p.feasible]))
