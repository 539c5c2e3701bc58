"""Sections of a dataflow machine: laws of their pipelines, their memories, and what is refused."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from functools import cache

import pytest

from dovetail import estimate
from dovetail.report import Report
from hw.devices import load as load_device
from mapper.compile import Compiled, compile_graph
from mapper.errors import CapacityError, MappingError
from mapper.mapping import Mapping
from mapper.sections import Machine, bodies, compile_sections
from mapper.shard import tensor_parallel
from sim import simulate
from studies.sn40l import monarch
from workloads import load

MODEL = "opt-1.3b"


@cache
def run(phase: str = "decode", batch: int = 1, model: str = MODEL, **settings: object) -> Report:
    device = load_device("sn40l").with_settings({path.replace("__", "."): value for path, value in settings.items()})
    length = {"seq": 64} if phase == "prefill" else {"context": 256}
    return estimate(model, device=device, phase=phase, batch=batch, **length)  # type: ignore[arg-type]


def sections(phase: str, fused: bool = True) -> Compiled:
    device = load_device("sn40l")
    graph = load(MODEL, phase=phase, batch=1, **({"seq": 256} if phase == "prefill" else {"context": 256}))  # type: ignore[arg-type]
    return compile_sections(tensor_parallel(graph, 8), device, fused=fused)


@pytest.mark.parametrize("phase", ["decode", "prefill"])
def test_both_engines_take_exactly_the_closed_form(phase: str) -> None:
    compiled = sections(phase)
    expected = sum(placed.plan.latency_fs * placed.count for placed in compiled.kernels)
    for engine in ("fast", "simpy"):
        assert simulate(compiled.program, engine).makespan == expected
    assert compiled.lower_bound_fs <= expected


def test_a_section_takes_its_fill_and_then_its_longest_stage_per_tile() -> None:
    """Four stages behind each other in 8 tiles, weights loaded in the first step: 8 + 3 steps and one for the last store."""
    (_, body), *_ = bodies(monarch(batch=64), Machine(load_device("sn40l")), {}, fused=False)
    pcus = next(body.allocations(0, 4, 8))
    section = body.timed(0, 4, body.layout(0, 4, 8, True, pcus))
    assert section.layout.depth == 4
    assert len(section.steps) == 8 + 4 - 1 + 1
    assert section.fs == sum(step.fs for step in section.steps)
    middle = section.steps[5]
    assert middle.active == (0, 1, 2, 3)
    assert middle.compute_fs == max(step.compute_fs for step in section.steps)


@pytest.mark.parametrize("phase", ["decode", "prefill"])
def test_fusion_never_moves_more_bytes_nor_takes_longer(phase: str) -> None:
    fused, single = sections(phase), sections(phase, fused=False)
    moved = [sum(which.program.traffic()["hbm"]) for which in (fused, single)]
    times = [simulate(which.program, "fast").makespan for which in (fused, single)]
    assert moved[0] < moved[1]
    assert times[0] < times[1]
    assert len(fused.kernels) < len(single.kernels)


@pytest.mark.parametrize("phase", ["decode", "prefill"])
@pytest.mark.parametrize(
    ("path", "values"),
    [
        ("memories__pmu__capacity", ["64 KiB", "512 KiB", "2 MiB"]),
        ("memories__pmu__count", [200, 1040, 4000]),
        ("units__rdu__pcus", [260, 1040, 2080]),
        ("memories__hbm__bandwidth", ["900 GB/s", "1800 GB/s", "3600 GB/s"]),
        ("node__bandwidth", ["50 GB/s", "100 GB/s", "1000 GB/s"]),
        ("launch", ["20 us", "2 us", "0 us"]),
    ],
)
def test_more_of_anything_is_never_slower(phase: str, path: str, values: list[object]) -> None:
    times = [run(phase, **{path: value}).latency_fs for value in values]
    assert times == sorted(times, reverse=True)


def test_steps_grow_with_the_batch_and_throughput_too() -> None:
    batches = (1, 4, 16, 64)
    times = [run("decode", batch).latency_s for batch in batches]
    assert times == sorted(times)
    rates = [batch / time for batch, time in zip(batches, times, strict=True)]
    assert rates == sorted(rates)


def test_layouts_stay_within_compute_and_memory_units() -> None:
    report = run("prefill", 4)
    assert report.mapping is not None
    for own in report.mapping.operators:  # type: ignore[union-attr]
        assert sum(map(int, str(own.parameters["pcus"]).split(","))) <= 1040
    pmu = next(use for use in report.memories if use.name == "pmu")
    assert pmu.peak <= 1040 * 512 * 1024


def test_a_saved_mapping_is_replayed_exactly() -> None:
    compiled = sections("decode")
    saved = Mapping.loads(compiled.mapping.dumps())
    again = compile_sections(compiled.graph, compiled.device, saved)
    assert again.program == compiled.program


def altered(change: dict[str, object], index: int = 1) -> Mapping:
    """The mapping of a decode step with parameters of one section changed."""
    compiled = sections("decode")
    document = json.loads(compiled.mapping.dumps())
    document["operators"][index]["parameters"] |= change
    return Mapping.loads(json.dumps(document))


def replay(mapping: Mapping) -> Compiled:
    compiled = sections("decode")
    return compile_sections(compiled.graph, compiled.device, mapping)


def test_sections_in_conflict_are_refused_with_numbers() -> None:
    compiled = sections("decode")
    own = compiled.mapping.operators[1]
    stages = len(str(own.parameters["pcus"]).split(","))
    with pytest.raises(MappingError, match=r"need 1100 compute units of 'rdu', which has 1040: 60 short"):
        replay(altered({"pcus": ", ".join([str(1100 - stages + 1), *["1"] * (stages - 1)])}))
    twice = Mapping(compiled.mapping.device, compiled.mapping.workload, (*compiled.mapping.operators, replace(own, operator="again")))
    with pytest.raises(MappingError, match=r"are in conflict: both hold operator"):
        replay(twice)


def test_sections_of_unknown_operators_out_of_order_or_missing_are_refused() -> None:
    compiled = sections("decode")
    listed = str(compiled.mapping.operators[1].parameters["operators"]).split(", ")
    with pytest.raises(MappingError, match=rf"unknown operator '{re.escape(listed[1][:-1])}'.*did you mean"):
        replay(altered({"operators": ", ".join([listed[0], listed[1][:-1], *listed[2:]])}))
    with pytest.raises(MappingError, match="expected neighbours in their order"):
        replay(altered({"operators": ", ".join([listed[1], listed[0], *listed[2:]])}))
    with pytest.raises(MappingError, match=r"pcus: expected \d+ numbers"):
        replay(altered({"pcus": "1, many"}))
    with pytest.raises(MappingError, match="tiles: expected one of 1, found 7"):
        replay(altered({"tiles": 7}))
    short = Mapping(compiled.mapping.device, compiled.mapping.workload, compiled.mapping.operators[:1])
    with pytest.raises(MappingError, match="has no section for operator"):
        replay(short)


def test_a_cache_that_does_not_fit_is_refused_with_the_missing_bytes() -> None:
    with pytest.raises(CapacityError, match=r"KV cache \(\d+ B\) and activations \(\d+ B\) of one chip do not fit .* \d+ B short"):
        estimate("llama-2-7b", device="sn40l", phase="decode", batch=4096, context=4096)


def test_an_operator_that_no_tiling_fits_is_refused_with_its_memory_units() -> None:
    device = load_device("sn40l").with_settings({"memories.pmu.count": 3})
    with pytest.raises(CapacityError, match=r"needs \d+ memory units of 524288 B in 'pmu' of sn40l, which has 3: \d+ short"):
        estimate(MODEL, device=device, phase="decode", batch=1, context=64)


def test_weights_beyond_main_memory_come_from_the_tier_behind_it() -> None:
    """A chip of 64 MiB holds a part of opt-1.3b's 2.6 GB / 8; the rest is read over the link of 125 GB/s in every step."""
    small = {"memories__hbm__capacity": "128 MiB"}
    report = run("decode", **small)
    away = next(use for use in report.memories if use.name == "ddr")
    held = next(use for use in report.memories if use.name == "hbm")
    assert held.peak <= 128 * 2**20
    assert held.peak + away.peak == next(use for use in run("decode").memories if use.name == "hbm").peak
    assert report.latency_s >= away.read / 125e9
    assert report.latency_fs > run("decode").latency_fs
    faster = run("decode", **small, memories__ddr__bandwidth="100 GB/s").latency_fs
    assert faster > report.latency_fs  # the slower of link and memory counts


def test_a_workload_beyond_all_tiers_is_refused_with_the_missing_bytes() -> None:
    device = load_device("sn40l").with_settings({"memories.hbm.capacity": "128 MiB", "memories.ddr.capacity": "1 MiB"})
    with pytest.raises(CapacityError, match=r"needs \d+ B in 'hbm' of sn40l.* and 1048576 B behind it: \d+ B short"):
        estimate(MODEL, device=device, phase="decode", batch=1, context=64)


def test_formats_that_the_machine_lacks_are_refused() -> None:
    device = load_device("sn40l").with_settings({"units.rdu.dtypes": ["int8"]})
    with pytest.raises(MappingError, match="which 'rdu' of sn40l does not: it multiplies int8"):
        estimate(MODEL, device=device, phase="decode", batch=1, context=64)


def test_a_single_chip_needs_no_links() -> None:
    device = load_device("sn40l").with_settings({"node.chips": 1})
    graph = load(MODEL, phase="decode", batch=1, context=64)
    assert "fabric" not in simulate(compile_graph(graph, device).program, "fast").busy
