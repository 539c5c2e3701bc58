from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import workloads
from dovetail import estimate, sweep
from dovetail.explore import Parameter, Space, Store, Workload
from dovetail.explore.errors import ExploreError
from dovetail.explore.evaluate import run as evaluate_job
from dovetail.explore.workload import only_layers
from hw.device import Device
from hw.devices import load
from hw.errors import HardwareError
from mapper.compile import compile_graph
from mapper.memo import Spaces, prune
from mapper.strategies import Search
from tests.explore.cases import GEMM, array
from workloads.errors import WorkloadError


def small(**more: Any) -> Any:
    return sweep(array, **{"workload": GEMM, "rows": [8, 16], "sram": [32, 64], "workers": 0, **more})


def test_every_point_is_what_estimate_says_of_the_same_design() -> None:
    study = small(objectives=("latency", "area"))
    assert len(study) == 4
    for point in study.points:
        assert point.objectives["latency"] == estimate(GEMM, device=array(**point.parameters)).latency_s
    first = study.points[0]
    assert study.report(first).to_json()["operators"] == estimate(GEMM, device=array(**first.parameters)).to_json()["operators"]


def test_two_processes_find_the_same_as_none() -> None:
    assert small(workers=2).columns() == small(workers=0).columns()


def test_a_second_sweep_evaluates_only_what_is_new(tmp_path: Path) -> None:
    place = tmp_path / "s.sqlite"
    assert small(store=place).evaluated == 4
    assert small(store=place).evaluated == 0
    assert small(store=place, rows=[8, 16, 32]).evaluated == 2
    assert small(store=place, objectives=("area", "dram_traffic")).evaluated == 0  # other questions about the same points


def test_an_infeasible_design_keeps_its_reason_and_does_not_stop_the_sweep() -> None:
    study = small(sram=[1, 64], rows=[128])
    bad, good = study.points
    assert not bad.feasible
    assert "CapacityError" in bad.reason
    assert "no mapping fits" in bad.reason
    assert good.feasible
    assert study.pareto() == [good]


def test_a_design_function_that_raises_is_a_failure_of_that_point() -> None:
    def picky(rows: int) -> Device:
        if rows == 3:
            raise HardwareError("three rows are not made")
        return array(rows=8 // (rows - 4))

    study = sweep(picky, workload=GEMM, rows=[3, 4, 5], workers=0)
    assert [p.reason for p in study.points[:2]] == [
        "no such device: three rows are not made",
        "the design function raised ZeroDivisionError: integer division or modulo by zero",
    ]
    assert [p.failed for p in study.points] == [False, True, False]
    assert study.points[2].feasible


def test_an_error_of_ours_is_recorded_with_its_place(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("a bug")

    monkeypatch.setattr("mapper.strategies.Search.choose", broken)
    study = small(rows=[8], sram=[64])
    assert study.points[0].failed
    assert study.points[0].reason.startswith("RuntimeError: a bug (test_sweep.py:")


def test_failed_points_are_tried_again_only_on_resume(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = tmp_path / "s.sqlite"
    with monkeypatch.context() as patch:
        patch.setattr("mapper.strategies.Search.choose", lambda *_: 1 / 0)
        assert small(store=place).points[0].failed
    assert small(store=place).points[0].failed
    again = small(store=place, resume=True)
    assert again.evaluated == 4
    assert all(p.feasible for p in again.points)


def test_constraints_on_the_device_are_checked_before_anything_is_simulated() -> None:
    study = small(rows=[8, 128], sram=[64], objectives=("latency", "area"), constraints=("area <= 2",))
    assert [p.feasible for p in study.points] == [True, False]
    assert study.evaluated == 1
    assert "constraint area <= 2 does not hold: area is " in study.points[1].reason


def test_constraints_on_what_is_measured_keep_the_numbers() -> None:
    latency = {p.parameters["rows"]: p.objectives["latency"] for p in small(sram=[64]).points}
    study = small(sram=[64], constraints=(f"latency <= {latency[16]}",))
    slow, fast = study.points
    assert (slow.feasible, fast.feasible) == (False, True)
    assert slow.violation == pytest.approx(latency[8] / latency[16] - 1)
    assert slow.objectives["latency"] == latency[8]


def test_objectives_that_are_not_modelled_are_refused_and_nothing_is_lost(tmp_path: Path) -> None:
    place = tmp_path / "s.sqlite"
    with pytest.raises(ExploreError, match="energy of systolic-32 is not modelled: no energy is stated for array, dram"):
        small(objectives=("latency", "energy"), store=place)
    with Store(place) as store:
        kept = store.count()
    assert kept >= 1
    assert small(store=place).evaluated == 4 - kept


def test_a_price_that_is_not_stated_is_refused_before_anything_runs(tmp_path: Path) -> None:
    with pytest.raises(ExploreError, match="price of systolic-32 is not modelled: its description states no `price`"):
        small(objectives=("latency", "price"), store=tmp_path / "s.sqlite")
    with Store(tmp_path / "s.sqlite") as store:
        assert store.count() == 0


def test_several_workloads_are_summed_by_weight_and_kept_apart_by_label() -> None:
    other = "gemm:64x64x64:int8"
    study = sweep(
        array, workload=[Workload(GEMM, label="big"), Workload(other, label="little", weight=3)], rows=[16], workers=0,
        objectives=("latency", "big.latency", "little.latency"),
    )  # fmt: skip
    device = array(rows=16)
    big, little = (estimate(w, device=device).latency_s for w in (GEMM, other))
    assert study.points[0].objectives == pytest.approx({"latency": big + 3 * little, "big.latency": big, "little.latency": 3 * little})


def test_formats_may_follow_the_parameters() -> None:
    study = sweep(
        lambda bits: load("edge-npu"), workload="llama-2-7b", phase="decode", layers=1, acts="int8",
        weights=lambda bits: f"int{bits}", bits=[4, 8], workers=0, objectives=("dram_traffic",),
    )  # fmt: skip
    four, eight = (p.objectives["dram_traffic"] for p in study.points)
    # one layer of Llama-2-7B: 4 x 4096 x 4096 and 3 x 4096 x 11008 weights of half a byte or one
    assert eight - four == (4 * 4096 * 4096 + 3 * 4096 * 11008) / 2


def test_a_list_for_an_option_of_the_workload_is_swept() -> None:
    study = sweep(lambda: load("a100-80g"), workload="llama-2-7b", phase=["prefill", "decode"], layers=1, workers=0)
    assert [p.parameters for p in study.points] == [{"phase": "prefill"}, {"phase": "decode"}]


def test_one_layer_is_a_thirtysecond_of_the_repeated_ones() -> None:
    graph = workloads.load("llama-2-7b", phase="decode")
    one, four = only_layers(graph, 1), only_layers(graph, 4)
    assert [op.name for op, _ in one.operators()] == [op.name for op, _ in four.operators()]
    device = load("a100-80g")
    assert estimate(four, device=device).latency_fs == 4 * estimate(one, device=device).latency_fs
    with pytest.raises(ExploreError, match="layers: expected a whole number from 1 to 32, not 33"):
        only_layers(graph, 33)


# Tables --------------------------------------------------------------------------------------------------------------------
def test_the_table_is_sorted_and_does_not_depend_on_the_order_of_evaluation(tmp_path: Path) -> None:
    small(objectives=("latency", "area")).to_parquet(tmp_path / "a.parquet")
    small(rows=[16, 8], sram=[64, 32], objectives=("latency", "area"), workers=2).to_parquet(tmp_path / "b.parquet")
    assert (tmp_path / "a.parquet").read_bytes() == (tmp_path / "b.parquet").read_bytes()


def test_the_table_has_a_column_per_parameter_and_objective() -> None:
    pa = pytest.importorskip("pyarrow")
    table = small(objectives=("latency", "area")).to_frame("pyarrow")
    assert table.schema.field("rows").type == pa.int64()
    assert table.column("rows").to_pylist() == [8, 8, 16, 16]
    assert table.column("latency").to_pylist() == small(objectives=("latency", "area")).to_frame("dict")["latency"]
    with pytest.raises(ExploreError, match=r"expected one of pandas, pyarrow, dict, not 'panda'; did you mean `pandas`"):
        small().to_frame("panda")


def test_a_study_as_json_has_the_documented_keys() -> None:
    study = small(sram=[1, 64], rows=[16, 128])
    document = json.loads(json.dumps(study.to_json(), allow_nan=False))
    assert {"points", "pareto"} <= set(document)
    assert all({"parameters", "objectives", "feasible", "reason"} <= set(p) for p in document["points"])
    assert all(document["points"][i]["feasible"] for i in document["pareto"])


def test_a_notebook_shows_the_front_with_everything_escaped() -> None:
    study = sweep(lambda tag: array(), workload=GEMM, tag=["<b>"], workers=0, name="<script>")
    html = study._repr_html_()
    assert "<script>" not in html
    assert "<b>" not in html
    assert "&lt;b&gt;" in html


# Mappings ------------------------------------------------------------------------------------------------------------------
@settings(max_examples=8, deadline=None)
@given(
    st.lists(st.tuples(*[st.sampled_from([4, 16, 64, 128, 1024])] * 3), min_size=2, max_size=5),
    st.sampled_from([(100, 300, 77), (512, 64, 512), (1, 1024, 300)]),
)
def test_a_search_with_remembered_costs_finds_what_a_search_without_finds(
    sizes: list[tuple[int, int, int]], shape: tuple[int, int, int]
) -> None:
    graph = workloads.load("gemm:{}x{}x{}:int8".format(*shape))
    search = Search()
    for pads in sizes:
        names = ("ifmap", "filter", "ofmap")
        device = load("systolic-32").with_settings({f"memories.{n}.capacity": f"{s} KiB" for n, s in zip(names, pads, strict=True)})
        try:
            wanted = compile_graph(graph, device, strategy=Search(spaces=Spaces(0))).mapping
        except ValueError as error:
            with pytest.raises(type(error), match=re.escape(str(error))):
                compile_graph(graph, device, strategy=search)
        else:
            assert compile_graph(graph, device, strategy=search).mapping == wanted


def test_a_layer_with_remembered_costs_is_mapped_as_without() -> None:
    graph = Workload("llama-2-7b", phase="decode", layers=1, weights="int8", acts="int8").graph()
    search = Search()
    for kib in (4096, 512, 256):
        device = load("edge-npu").with_settings({f"memories.{n}.capacity": f"{kib} KiB" for n in ("activations", "weights", "outputs")})
        remembered = compile_graph(graph, device, strategy=search)
        fresh = compile_graph(graph, device, strategy=Search(spaces=Spaces(0)))
        assert remembered.mapping == fresh.mapping
        assert [p.choice and (p.choice.bound_fs, p.choice.proven) for p in remembered.kernels] == [
            p.choice and (p.choice.bound_fs, p.choice.proven) for p in fresh.kernels
        ]


def test_costs_that_are_known_are_not_computed_again(monkeypatch: pytest.MonkeyPatch) -> None:
    graph, search = workloads.load(GEMM), Search()
    first, second = (estimate(graph, device=array(sram=sram), strategy=search) for sram in (64, 128))
    monkeypatch.setattr("mapper.nest_table._Streams.latencies", lambda *_: 1 / 0)
    monkeypatch.setattr("mapper.streamed.Streamed.bound", lambda *_: 1 / 0)
    again = estimate(graph, device=array(sram=64).with_settings({"title": "another", "price": 1.0}), strategy=search)
    assert again.mapping == first.mapping
    assert second.latency_fs <= first.latency_fs


def test_mappings_on_disk_stay_within_their_size_the_least_recently_used_go(tmp_path: Path) -> None:
    import os

    folder = tmp_path / "ab"
    folder.mkdir()
    for age in range(10):
        path = folder / f"{age}.json"
        path.write_bytes(bytes(1000))
        os.utime(path, (10**9 - age, 10**9 - age))
    prune(tmp_path, 3500)
    assert sorted(p.name for p in folder.iterdir()) == ["0.json", "1.json", "2.json"]


# Mistakes ------------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("more", "error", "message"),
    [
        ({"rows": []}, ExploreError, "parameter 'rows': the range is empty"),
        ({"rowz": [1]}, ExploreError, r"unknown parameter 'rowz'.*did you mean `rows`"),
        ({"rows": {1, 2}}, ExploreError, "parameter 'rows': expected a list of values"),
        ({"workload": None}, ExploreError, "workload: missing"),
        ({"workload": "llama-2-7"}, WorkloadError, "did you mean `llama-2-7b`"),
        ({"workload": {"workload": GEMM, "fase": "decode"}}, ExploreError, r"unknown field 'fase'.*did you mean `phase`"),
        ({"workload": 3}, ExploreError, "expected a model's name, a graph or fields"),
        ({"layers": 2}, ExploreError, "layers: expected a whole number from 1 to 1, not 2"),
        ({"objectives": ()}, ExploreError, "at least one objective"),
        ({"objectives": ("latency", "latency")}, ExploreError, "given twice"),
        ({"engine": "fats"}, ExploreError, "engine 'fats': unknown"),
        ({"workers": -1}, ExploreError, "workers: expected a whole number of at least 0"),
        ({"workers": 2, "scheduler": "tcp://x"}, ExploreError, "either workers or a scheduler"),
        ({"points": [{"rows": 8, "sram": 33}]}, ExploreError, "33 is none of its values"),
        ({"weights": "{bitz}"}, ExploreError, "refers to 'bitz'"),
        ({"space": 4}, ExploreError, "space: expected a mapping"),
    ],
)
def test_a_mistake_is_refused_with_one_message(more: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        small(**more)


def test_a_design_that_is_no_device_is_refused() -> None:
    with pytest.raises(ExploreError, match="the design returned str"):
        sweep(lambda rows: "x", workload=GEMM, rows=[1], workers=0)


def test_a_space_with_conditions_is_swept() -> None:
    space = Space((Parameter("rows", (8, 16)), Parameter("sram", (32, 64), when="rows > 8")))
    assert [p.parameters for p in sweep(array, workload=GEMM, space=space, workers=0).points] == [
        {"rows": 8}, {"rows": 16, "sram": 32}, {"rows": 16, "sram": 64},
    ]  # fmt: skip


def test_evaluate_says_infeasible_for_mistakes_and_failed_for_errors_of_ours() -> None:
    from dovetail.explore.evaluate import Job

    graph = workloads.load(GEMM)
    job = Job("k", {**array().to_dict(), "clock": "fast"}, graph.digest, "fast")
    assert evaluate_job(job, graph, Search()).status == "infeasible"
