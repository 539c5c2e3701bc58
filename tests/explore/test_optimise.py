from __future__ import annotations

import statistics
from pathlib import Path
from typing import Any

import pytest

from dovetail import optimise, sweep
from dovetail.explore.errors import ExploreError
from dovetail.explore.pareto import hypervolume, normalised
from dovetail.explore.study import Study
from tests.explore.cases import GEMM, array

pytest.importorskip("optuna")
SPACE: dict[str, Any] = {"rows": [4, 8, 16, 32], "columns": [4, 8, 16, 32], "sram": [16, 32, 64, 128]}


def search(sampler: str, **more: Any) -> Study:
    given = {"objectives": ("latency", "area"), "evaluations": 24, "workers": 0, "sampler": sampler, **SPACE, **more}
    return optimise(array, workload=GEMM, **given)


@pytest.mark.parametrize("sampler", ["tpe", "nsga2", "random", "surrogate"])
def test_the_same_seed_finds_the_same_designs_and_another_seed_others(sampler: str) -> None:
    first, again, other = search(sampler, seed=1), search(sampler, seed=1), search(sampler, seed=2)
    assert [p.parameters for p in first.points] == [p.parameters for p in again.points]
    assert [p.parameters for p in first.points] != [p.parameters for p in other.points]
    assert len(first) == 24


@pytest.mark.parametrize("sampler", ["tpe", "nsga2", "surrogate"])
def test_a_search_that_was_stopped_goes_on_where_it_was(sampler: str, tmp_path: Path) -> None:
    place = tmp_path / "s.sqlite"
    stopped = search(sampler, store=place, evaluations=24, seed=3)
    longer = search(sampler, store=place, evaluations=24, seed=3)
    assert stopped.evaluated == 24
    assert longer.evaluated == 0
    assert longer.columns() == stopped.columns()


@pytest.mark.slow
def test_gaussian_processes_search_one_objective() -> None:
    pytest.importorskip("torch")
    study = search("gp", objectives=("latency",), evaluations=16)
    assert len(study) == 16


def test_a_search_of_a_small_space_ends_when_it_has_everything() -> None:
    study = optimise(array, workload=GEMM, rows=[8, 16], sram=[32, 64], evaluations=50, sampler="nsga2", workers=0)
    assert len(study) == 4


def test_points_that_break_a_constraint_are_known_as_such() -> None:
    study = search("nsga2", constraints=("area <= 0.5",), evaluations=32)
    assert study.feasible
    for point in study.points:
        assert point.feasible == (point.violation == 0)
        if point.feasible:
            assert point.objectives["area"] <= 0.5


def test_designs_that_cannot_run_do_not_stop_a_search() -> None:
    study = search("tpe", rows=[16, 256], sram=[1, 64], columns=[16, 256], evaluations=8)
    assert study.infeasible
    assert study.feasible


def test_two_searches_share_a_storage(tmp_path: Path) -> None:
    storage = f"sqlite:///{tmp_path / 'optuna.sqlite'}"
    one = search("nsga2", storage=storage, evaluations=8, name="shared")
    two = search("nsga2", storage=storage, evaluations=8, name="shared", seed=9)
    import optuna

    assert len(optuna.load_study(study_name="shared", storage=storage).trials) >= len(one) + len(two)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"sampler": "nsga3"}, r"sampler 'nsga3': unknown.*did you mean `nsga2`"),
        ({"sampler": "tpe", "evaluations": 0}, "evaluations: expected a whole number of at least 1"),
        ({"sampler": "tpe", "batch_size": -1}, "batch_size: expected a whole number of at least 1"),
        ({"sampler": "random", "storage": "sqlite:///x"}, "keeps no Optuna study"),
        ({"sampler": "tpe", "storage": "nosuch://x"}, "storage 'nosuch://x': cannot be opened"),
    ],
)
def test_a_search_that_makes_no_sense_is_refused(more: dict[str, Any], message: str) -> None:
    with pytest.raises(ExploreError, match=message):
        search(**more)


@pytest.mark.slow
def test_nsga2_reaches_95_percent_of_the_exhaustive_hypervolume_within_400_of_4096_designs(tmp_path: Path) -> None:
    space: dict[str, Any] = {
        "rows": [4, 6, 8, 12, 16, 24, 32, 48],
        "columns": [4, 6, 8, 12, 16, 24, 32, 48],
        "sram": [4, 6, 8, 12, 16, 24, 32, 64],
        "bandwidth": [f"{gb} GB/s" for gb in (2, 3, 4, 6, 8, 12, 16, 24)],
    }
    questions: dict[str, Any] = {
        "workload": "gemm:128x256x256:int8",
        "objectives": ("latency", {"name": "cost", "formula": "area + pins / 20", "unit": "mm2"}),
        "store": tmp_path / "s.sqlite",
    }

    def design(rows: int, columns: int, sram: int, pins: int) -> Any:
        return array(rows, columns, sram, f"{pins} GB/s")

    space["pins"] = [2, 3, 4, 6, 8, 12, 16, 24]
    del space["bandwidth"]
    everything = sweep(design, **space, **questions)
    assert len(everything) == 4096
    scaled, reference = normalised(everything.costs())
    whole = hypervolume(scaled, reference)
    at = {tuple(p.parameters.items()): cost for p, cost in zip(everything.feasible, scaled, strict=True)}
    shares = []
    for seed in range(5):
        found = optimise(design, **space, **questions, sampler="nsga2", evaluations=400, seed=seed, workers=0)
        assert len(found) <= 400
        assert found.evaluated == 0  # all of them are in the store of the sweep
        shares.append(hypervolume([at[tuple(p.parameters.items())] for p in found.feasible], reference) / whole)
    print("share of the exhaustive hypervolume:", [round(s, 4) for s in shares])
    assert statistics.median(shares) >= 0.95
