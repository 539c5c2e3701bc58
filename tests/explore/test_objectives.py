from __future__ import annotations

from fractions import Fraction

import pytest

from dovetail.explore.area import area_mm2
from dovetail.explore.errors import ExploreError
from dovetail.explore.objectives import NotModelledError, Run, constraint, objective
from hw.devices import load
from tests.explore.cases import array

METRICS = {"latency_fs": 2 * 10**12, "lower_bound_fs": 10**12, "energy_j": 0.5, "energy_missing": [], "tokens": 8, "dram_bytes": 1000}
LABELS = ("prefill", "decode")
RUNS = (Run("prefill", 1.0, METRICS), Run("decode", 3.0, {**METRICS, "latency_fs": 10**12}))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("latency", 2e-3 + 3 * 1e-3),
        ("decode.latency", 3 * 1e-3),
        ("energy", 0.5 + 3 * 0.5),
        ("edp", 2.0 * 5e-3),
        ("dram_traffic", 4000),
        ("throughput", (8 + 24) / 5e-3),
        ("tokens/J", 32 / 2.0),
        ("average_power", 2.0 / 5e-3),
        ("bound_gap", 5e-3 / 4e-3),
        ("power", 400),
        ("throughput_per_watt", 32 / 5e-3 / 400),
    ],
)
def test_an_objective_is_the_weighted_sum_over_workloads(name: str, value: float) -> None:
    assert objective(name, LABELS, ()).value(load("a100-80g"), RUNS, {}) == pytest.approx(value)


def test_iso_area_and_iso_cost_divide_throughput_by_area_and_price() -> None:
    device = array().with_settings({"price": 250.0})
    size = area_mm2(device)[0]
    assert size is not None
    assert objective("tokens/s/mm2", LABELS, ()).value(device, RUNS, {}) == pytest.approx(32 / 5e-3 / size)
    assert objective("tokens/$", LABELS, ()).value(device, RUNS, {}) == pytest.approx(32 / 5e-3 / 250)


def test_area_counts_multipliers_adders_and_cells_at_45_nm() -> None:
    # Horowitz, ISSCC 2014: an 8-bit multiplier 282 um2, a 32-bit adder 137 um2; a memory cell 0.346 um2 (IEDM 2007)
    size, _ = area_mm2(array(rows=16, columns=8, sram=64))
    cells = Fraction(16 * 8 * (282 + 137)) + 3 * 64 * 1024 * 8 * Fraction(346, 1000)
    assert size == pytest.approx(float(cells / 10**6))


@pytest.mark.parametrize(
    ("name", "device", "message"),
    [
        ("area", "a100-80g", "area of a100-80g is not modelled: unit 'tensor' of a100-80g"),
        ("area", "edge-npu", "area of edge-npu is not modelled.*bf16 multiplier"),
        ("cells", "edge-npu", "was not synthesised"),
        ("power", "edge-npu", "power of edge-npu is not modelled: its description states no `power`"),
        ("tokens/$", "systolic-32", "price of systolic-32 is not modelled"),
    ],
)
def test_what_a_device_does_not_state_is_not_modelled_and_named(name: str, device: str, message: str) -> None:
    with pytest.raises(NotModelledError, match=message):
        objective(name, LABELS, ()).value(load(device), RUNS, {})


def test_an_energy_that_is_not_modelled_names_the_parts_without_one() -> None:
    runs = (Run("prefill", 1.0, {**METRICS, "energy_j": None, "energy_missing": ["array", "dram"]}),)
    with pytest.raises(NotModelledError, match="energy of systolic-32 is not modelled: no energy is stated for array, dram"):
        objective("energy", LABELS, ()).value(array(), runs, {})


def test_a_formula_is_computed_from_parameters_and_quantities() -> None:
    given = objective({"name": "score", "formula": "rows * decode.latency", "direction": "maximize", "unit": "x"}, LABELS, ("rows",))
    assert given.sign == -1
    assert given.value(array(), RUNS, {"rows": 4}) == pytest.approx(4 * 3e-3)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("latncy", "unknown objective 'latncy'.*did you mean `latency`"),
        ("decod.latency", "no workload is labelled 'decod'.*did you mean `decode`"),
        ("decode.area", "belongs to the device, not to a workload"),
        ({"name": "x", "formula": "rowz * 2"}, "unknown name 'rowz'.*did you mean `rows`"),
        ({"name": "x", "formula": "rows", "direction": "up"}, "expected minimize or maximize, not 'up'"),
        ({"name": "x"}, "expected a text for 'formula'"),
        ({"nam": "x"}, "unknown field 'nam'.*did you mean `name`"),
        (7, "objective 7: expected one of"),
    ],
)
def test_an_objective_that_does_not_exist_is_refused_with_the_nearest(given: object, message: str) -> None:
    with pytest.raises(ExploreError, match=message):
        objective(given, LABELS, ("rows",))


@pytest.mark.parametrize(
    ("text", "limit", "value", "broken"),
    [
        ("area <= 400", 400, 401, True),
        ("area <= 400", 400, 400, False),
        ("power <= 75 W", 75, 75.5, True),
        ("decode.latency <= 50 ms", 0.05, 0.049, False),
        ("tokens/J >= 10", 10, 9, True),
        ("dram_traffic <= 1 GiB", 2**30, 2**30 + 1, True),
    ],
)
def test_a_constraint_holds_up_to_its_limit(text: str, limit: float, value: float, broken: bool) -> None:
    found = constraint(text, LABELS, ())
    assert found.limit == pytest.approx(limit)
    assert (found.violation(value) > 0) == broken


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("area < 400", "use <= "),
        ("area", "expected a quantity, <= or >=, and a limit"),
        ("area <= big", "expected a number in mm2"),
        ("power <= 75 V", "expected a number with mW, W or kW, not '75 V'"),
        ("latency <= nan", "expected a finite limit"),
        ("lat <= 4", "unknown objective 'lat'"),
        (4, "constraint 4: expected a quantity"),
    ],
)
def test_a_constraint_that_says_nothing_is_refused(text: object, message: str) -> None:
    with pytest.raises(ExploreError, match=message):
        constraint(text, LABELS, ())
