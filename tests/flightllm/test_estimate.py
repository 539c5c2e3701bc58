"""`estimate` on machines that run instruction streams: the report is the stream's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from dovetail import estimate
from dovetail.report import Report
from mapper.errors import CapacityError, MappingError
from mapper.flightllm import binary
from studies import flightllm as study

HOW: dict[str, Any] = {"weights": "int4", "acts": "int8", "kv": "int8"}


@pytest.fixture(scope="module")
def report() -> Report:
    return estimate("llama-2-7b", device="flightllm-vhk158", phase="decode", context=500, **HOW)


def test_layers_add_up_to_the_whole_and_lie_above_their_bounds(report: Report) -> None:
    assert sum(row.total_fs for row in report.operators) == report.latency_fs
    assert all(row.lower_bound_fs <= row.latency_fs for row in report.operators)
    assert 0 < report.lower_bound_fs < report.latency_fs
    for queue, busy in report.utilization.items():
        assert busy + sum(report.stalls[queue].values()) == pytest.approx(1)


def test_the_bound_is_weights_and_caches_over_the_peak_bandwidth(report: Report) -> None:
    h, f, v, context = 4096, 11008, 32000, 500
    weights = (32 * (4 * h * h + 3 * h * f) + h * v) / 2
    caches = 2 * 32 * h * (context - 1)
    assert report.lower_bound_fs == pytest.approx((weights + caches) / (32 * 25.6 * 2**30) * 1e15, rel=1e-6)


def test_a_denser_model_takes_longer_than_the_profiled_one_by_its_queries_and_keys(report: Report) -> None:
    # 30 % of two of the projections, 32 layers, 1024 multiply-accumulates per cycle, a speed-up of 3.2
    more = 32 * 2 * 0.3 * 4096**2 / 1024 / 225e6 / 3.2
    assert report.utilization["MV"] * report.latency_s == pytest.approx(study.decoded(512).busy["MV"] + more, rel=1e-4)


def test_a_saved_stream_replays_and_shows(report: Report, tmp_path: Path) -> None:
    path = tmp_path / "program.bin"
    report.save_mapping(path)
    stream = binary.load(path)
    again = estimate("llama-2-7b", device="flightllm-vhk158", phase="decode", context=500, mapping=stream, **HOW)
    assert (again.latency_fs, again.operators) == (report.latency_fs, report.operators)
    with pytest.raises(MappingError, match="compiled for llama-2-7b decode for 512 tokens, expected llama-2-7b decode for 528 tokens"):
        estimate("llama-2-7b", device="flightllm-vhk158", phase="decode", context=513, mapping=stream, **HOW)
    with pytest.raises(MappingError, match="a100-80g runs loop nests: expected a saved mapping, found instructions"):
        estimate("llama-2-7b", device="a100-80g", phase="decode", mapping=stream)


def test_loop_nests_of_another_device_are_refused() -> None:
    other = estimate("gemm:64x64x64:int8", device="edge-npu").mapping
    with pytest.raises(MappingError, match="expected an instruction file, found a mapping of loop nests"):
        estimate("llama-2-7b", device="flightllm-vhk158", phase="decode", mapping=other, **HOW)


def test_a_tied_table_is_read_as_int8() -> None:
    report = estimate("opt-6.7b", device="flightllm-vhk158", phase="decode", context=128, **HOW)
    assert any("reads a copy in int8" in note for note in report.assumptions)


def test_what_the_machine_cannot_run_is_refused_with_the_options_that_help() -> None:
    with pytest.raises(MappingError, match="found acts in fp16 and kv in fp16; add --acts int8 --kv int8"):
        estimate("llama-2-7b", device="flightllm-u280", phase="decode", weights="int4")
    with pytest.raises(MappingError, match="expected a prefill or decode graph, found phase 'single'"):
        estimate("gemm:64x64x64:int8", device="flightllm-u280")
    with pytest.raises(CapacityError, match="do not fit the global buffer; use a shorter context"):
        estimate("llama-2-7b", device="flightllm-vhk158", phase="decode", context=5000, **HOW)
