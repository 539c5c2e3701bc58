"""Sensitivity and the fitted model, on objectives whose truth is known."""

from __future__ import annotations

from typing import Any

import pytest

from dovetail import sweep
from dovetail.explore.errors import ExploreError
from dovetail.explore.sensitivity import sensitivity
from dovetail.explore.store import Memory
from dovetail.explore.study import Study
from dovetail.explore.surrogate import Surrogate, propose_and_check
from dovetail.sweep import _exploration
from tests.explore.cases import GEMM, array


def formula(text: str, **space: Any) -> Study:
    """A study whose objective is a formula of its parameters."""

    def design(**_: Any) -> Any:
        return array()

    return sweep(design, workload=GEMM, objectives=({"name": "f", "formula": text},), workers=0, **space)


def test_the_parameter_with_the_larger_exponent_moves_the_objective_more() -> None:
    found = sensitivity(formula("a ** 2 * b / b ** 2", a=[1, 2, 4, 8], b=[1, 2, 4]))
    first, second = found.effects
    # a step doubles: a^2 grows four times, 1/b halves
    assert (first.parameter, second.parameter) == ("a", "b")
    assert (first.step, first.largest, first.trend) == pytest.approx((4, 4, 4))
    assert (second.step, second.trend) == pytest.approx((2, 0.5))
    assert first.rank is not None
    assert first.rank > 0
    assert second.rank is not None
    assert second.rank < 0
    assert (first.pairs, second.pairs) == (3 * 3, 2 * 4)


def test_a_choice_has_no_order_and_a_parameter_without_effect_says_so() -> None:
    found = sensitivity(formula("3 if kind == 'a' else 1", kind=["a", "b"], n=[1, 2]))
    kind, n = found.effects
    assert (kind.parameter, kind.step, kind.rank) == ("kind", pytest.approx(3), None)
    assert str(n) == "n: changes nothing"


def test_a_parameter_that_stops_helping_names_the_bound_that_stops_it() -> None:
    # 256 x 512 + 512 x 256 + 4 x 256 x 256 bytes at least through one interface of 1 GB/s: the array soon waits for it
    study = sweep(array, workload=GEMM, rows=[8, 16, 32, 64, 128], bandwidth=["1 GB/s"], columns=[64], sram=[512], workers=0)
    found = sensitivity(study)
    assert found.effects[0].parameter == "rows"
    assert "dram" in found.stop
    assert "beyond" in found.stop


def test_parameters_that_exist_only_for_one_value_do_not_hide_its_effect() -> None:
    from dovetail.explore import Parameter, Space

    space = Space((Parameter("flow", ("os", "ws")), Parameter("preload", (1, 2), when="flow == 'ws'")))
    study = formula("1 if flow == 'os' else 4", space=space)
    flow = next(e for e in sensitivity(study).effects if e.parameter == "flow")
    assert flow.step == pytest.approx(4)


def test_sensitivity_needs_two_designs() -> None:
    with pytest.raises(ExploreError, match="at least two feasible designs, found 1"):
        sensitivity(formula("a", a=[1]))


# The fitted model ------------------------------------------------------------------------------------------------------------
def test_a_smooth_objective_is_predicted_within_its_stated_error() -> None:
    space = {"a": [1, 2, 4, 8, 16, 32], "b": [1, 2, 4, 8, 16]}
    study = formula("a ** 2 / b + 10 * b", **space)
    held = study.points[::4]
    model = Surrogate.fit(study.space, study.objectives, [p for p in study.points if p not in held])
    assert model.points == 22
    assert 0 < model.error["f"] < 0.2
    assert model.error["f"] <= model.worst["f"]
    wrong = sorted(abs(p["f"] / q.objectives["f"] - 1) for p, q in zip(model.predict([q.parameters for q in held]), held, strict=True))
    assert wrong[len(wrong) // 2] < 0.2
    assert "error on held-out points: f: median" in str(model)


def test_proposals_are_estimated_and_extend_the_front() -> None:
    space: dict[str, Any] = {"rows": [4, 8, 16, 32, 64], "columns": [4, 8, 16, 32, 64], "sram": [32, 64, 128]}
    exploration = _exploration(array, GEMM, None, ("latency", "area"), (), "s", "fast", space)
    everything = sweep(exploration, workers=0)
    some = sweep(exploration, points=[p.parameters for p in everything.points[::3]], workers=0)
    better, model = propose_and_check(exploration, some, 12, Memory())
    assert len(better) == len(some) + 12
    truth = {tuple(p.parameters.items()): p.objectives for p in everything.points}
    assert all(p.objectives == truth[tuple(p.parameters.items())] for p in better.points)  # simulated, not predicted
    on = {tuple(p.parameters.items()) for p in everything.pareto()}
    assert len(on & {tuple(p.parameters.items()) for p in better.pareto()}) > len(on & {tuple(p.parameters.items()) for p in some.pareto()})
    assert set(model.error) == {"latency", "area"}


def test_too_few_points_and_objectives_without_a_logarithm_are_refused() -> None:
    study = formula("a - 1", a=[1, 2, 3, 4, 5, 6, 7, 8, 9])
    with pytest.raises(ExploreError, match="needs values above 0, found 0"):
        Surrogate.fit(study.space, study.objectives, study.points)
    with pytest.raises(ExploreError, match="at least 8 evaluated points, found 3"):
        Surrogate.fit(study.space, study.objectives, study.points[:3])
