"""Validation: files are read strictly, what is not physical is left out, errors are the stated ones, protocols change predictions."""

import gzip
import json
import os
from functools import lru_cache
from pathlib import Path

import numpy as np
import pytest
import typer
from typer.testing import CliRunner

from dovetail import estimate
from dovetail.validate import validate
from hw.collectives import fabric_of
from hw.devices import load
from verif.validation import Measurement, evaluate, read, rows
from verif.validation.bands import Band, band, summarise
from verif.validation.baselines import BASELINES, fit
from verif.validation.clocks import launched
from verif.validation.errors import MeasurementError
from verif.validation.hygiene import unphysical
from verif.validation.layer import eager
from verif.validation.predict import GAP_S, LEFT_OUT_S, STATED_S, Predictor, stated
from verif.validation.score import metrics, without_own_constants

DATA = os.environ.get("DOVETAIL_MEASURED", "")
HEADER = "device,operator,dtype,latency_us,m,n,k\n"
ATTENTION = "device,operator,dtype,latency_us,batch,queries,keys,heads,kv_heads,head_dim\n"
TOP_K = "device,operator,dtype,latency_us,rows,columns,top_k\n"


def gemm(m, n, k, latency_s=1e-3, device="h100-sxm", dtype="bf16", **fields):
    return Measurement(device, "gemm", dtype, {"m": m, "n": n, "k": k}, latency_s, **fields)


def write(folder, text, name="rows.csv"):
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


# Reading ------------------------------------------------------------------------------------------------------------------
def test_our_own_rows_are_read_with_their_unit(tmp_path):
    write(tmp_path, HEADER + "h100-sxm,gemm,bf16,12.5,16,4096,4096\n")
    (row,), other = read(tmp_path)
    assert (row.device, row.operator, row.dtype, dict(row.shape)) == ("h100-sxm", "gemm", "bf16", {"m": 16, "n": 4096, "k": 4096})
    assert row.latency_s == pytest.approx(12.5e-6)
    assert (row.clock, row.copies, other) == ("kernel", 1, {})


def test_a_compressed_file_is_read_like_a_plain_one(tmp_path):
    with gzip.open(tmp_path / "rows.csv.gz", "wt", encoding="utf-8") as file:
        file.write(HEADER + "h100-sxm,gemm,bf16,12.5,16,4096,4096\n")
    assert len(read(tmp_path)[0]) == 1


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("device,operator,latency_us,m,n,k\nh100-sxm,gemm,1,1,1,1\n", "row 1: column 'dtype' is missing, found device, operator"),
        ("device,operator,dtype,latency,m,n,k\n", "row 1: expected one latency column with its unit .*found latency"),
        ("device,operator,dtype,latency_us,m,n\nh100-sxm,gemm,bf16,9,1,1\n", "row 2: column 'k' is missing, which gemm needs"),
        (HEADER + "h100-sxm,gemm,bf16,-3,1,1,1\n", "row 2: column latency_us: expected a latency above 0, found -3"),
        (HEADER + "h100-sxm,gemm,bf16,nan,1,1,1\n", "row 2: column latency_us: expected a latency above 0, found nan"),
        (HEADER + "h100-sxm,gemm,bf16,fast,1,1,1\n", "row 2: column latency_us: expected a number, found 'fast'"),
        (HEADER + "h100-sxm,gemm,bf16,0.00001,1,1,1\n", "row 2: column latency_us: 1e-11 s is no latency .*is the unit right"),
        (HEADER + "h100-sxm,gemm,bf16,9,0,1,1\n", "row 2: column m: expected at least 1, found 0"),
        (HEADER + "h100-sxm,gemm,bf16,9,1.5,1,1\n", "row 2: column m: expected a whole number, found '1.5'"),
        (HEADER + "h100-sxm,gemm,bf16,9,1,1,1\nh100-sx,gemm,bf16,9,1,1,1\n", "row 3: column device: unknown device .*mean `h100-sxm`"),
        (HEADER + "h100-sxm,gemmm,bf16,9,1,1,1\n", "row 2: column operator: unknown operator 'gemmm'.*did you mean `gemm`"),
        (HEADER + "h100-sxm,gemm,bf17,9,1,1,1\n", "row 2: column dtype: unknown dtype 'bf17'.*did you mean `bf16`"),
        (HEADER + "h100-sxm,gemm,bf16,9,1,1\n", "row 2: expected 7 cells, found 6"),
        ("a,b\n1,2\n", "found none"),
        ("", "row 1: expected a header, found an empty file"),
        (HEADER + "h100-sxm,gemm,bf16,9,99999999999999,1,1\n", "row 2: column m: expected at most 1099511627776"),
        (HEADER.replace("m,n", "m,m,n") + "h100-sxm,gemm,bf16,9,1,1,1,1\n", "row 1: column 'm' is there 2 times"),
        (ATTENTION + "h100-sxm,attention-decode,bf16,9,1,1,64,8,3,64\n", "column kv_heads: attention-decode needs a divisor of heads = 8"),
        (ATTENTION + "h100-sxm,attention-prefill,bf16,9,1,65,64,8,8,64\n", "column queries: expected at most keys = 64, found 65"),
        (TOP_K + "h100-sxm,top-k,bf16,9,16,8,9\n", "column top_k: expected at most columns = 8, found 9"),
        ("device,operator,dtype,latency_us,ranks,bytes\nh100-sxm,all-reduce,fp16,9,1,8\n", "column ranks: expected at least 2, found 1"),
        (HEADER[:-1] + ",clock\nh100-sxm,gemm,bf16,9,1,1,1,wall\n", "column clock: unknown clock 'wall'"),
        (HEADER[:-1] + ",host_us\nh100-sxm,gemm,bf16,9,1,1,1,-4\n", "column host_us: expected a latency above 0, found -4"),
    ],
)
def test_a_bad_file_is_refused_with_its_row_and_column(tmp_path, text, message):
    write(tmp_path, text)
    with pytest.raises(MeasurementError, match=message):
        read(tmp_path)


def test_bytes_that_are_no_csv_are_refused_with_their_file(tmp_path):
    for name, data in (("rows.csv.gz", b"garbage"), ("rows.csv.gz", gzip.compress(b"device,operator")[:-9]), ("rows.csv", b"\xff\xfe\0")):
        (tmp_path / name).write_bytes(data)
        with pytest.raises(MeasurementError, match=f"{name}: cannot be read"):
            read(tmp_path)
        (tmp_path / name).unlink()


def test_a_byte_order_mark_and_a_single_file_are_read(tmp_path):
    path = write(tmp_path, "\ufeff" + HEADER + "h100-sxm,gemm,bf16,12.5,16,4096,4096\n")
    assert len(read(path)[0]) == len(read(tmp_path)[0]) == 1


def test_what_a_device_cannot_do_is_counted_and_the_rest_is_scored(tmp_path):
    write(tmp_path, "device,operator,dtype,latency_us,ranks,bytes\nl40s,all-reduce,fp16,12,4,1000\na100-80g,all-reduce,fp16,12,4,1000\n")
    score = evaluate(read(tmp_path)[0])
    assert (len(score.measured), sum(score.refused.values())) == (1, 1)
    assert "l40s all-reduce fp16: l40s: links between devices are known for" in next(iter(score.refused))


def test_a_window_may_be_stated_for_attention(tmp_path):
    write(
        tmp_path,
        ATTENTION[:-1] + ",window\nh100-sxm,attention-decode,bf16,9,1,1,64,8,8,64,16\nh100-sxm,attention-decode,bf16,9,1,1,64,8,8,64,\n",
    )
    windowed, plain = read(tmp_path)[0]
    assert (windowed.shape["window"], "window" in plain.shape) == (16, False)
    assert windowed.fitted == plain.fitted


def test_a_kernel_that_does_not_go_before_another_is_refused():
    with pytest.raises(MeasurementError, match="'append' does not go before gemm"):
        Predictor(load("h100-sxm")).seconds(gemm(16, 64, 64, before=("append",)))


# Clocks -------------------------------------------------------------------------------------------------------------------
def test_calls_that_a_host_issues_take_the_longer_of_issuing_and_executing():
    predictor = Predictor(load("h100-sxm"))
    kernel = predictor.seconds(gemm(64, 4096, 4096))
    assert predictor.seconds(gemm(64, 4096, 4096, clock="launch", host_s=1e-7)) == pytest.approx(kernel)
    assert predictor.seconds(gemm(64, 4096, 4096, clock="launch", host_s=1e-3)) == pytest.approx(1e-3)


def test_a_step_of_a_model_is_bound_by_its_host_where_kernels_are_short():
    """80 layers of 12 kernels (two norms, four products, rotation, cache, attention, activation, two sums over devices), the
    embedding, the last norm and the scores: 963 kernels."""
    shape = {"layers": 80, "hidden": 8192, "inter": 28672, "heads": 64, "kv_heads": 8, "vocabulary": 32000, "gated": 1}
    step = Measurement(
        "a100-80g", "model-step", "fp16", {**shape, "tp": 8, "batch": 1, "queries": 1, "keys": 512}, 1, "launch", host_s=46e-6
    )
    predictor = Predictor(load("a100-80g"))
    kernels = predictor.kernels(step)
    assert len(kernels) == 80 * 12 + 3
    assert predictor.seconds(step) == pytest.approx(963 * 46e-6 + kernels[-1])
    assert launched(kernels, 46e-6).host_bound
    assert not launched(kernels, 1e-6).host_bound
    assert launched(kernels, 1e-6).queued_s > 100 * launched(kernels, 46e-6).queued_s


def test_a_layer_of_plain_torch_is_the_sum_of_its_kernels():
    shape = {"batch": 1, "queries": 1, "keys": 64, "hidden": 256, "inter": 512, "heads": 4, "kv_heads": 2}
    predictor = Predictor(load("h100-sxm"))
    layer = Measurement("h100-sxm", "llama-layer", "bf16", shape, 1e-4)
    kernels = predictor.kernels(layer)
    # two norms, four products, attention, five kernels to rotate queries and five for keys, two writes to the cache, a transposition,
    # an activation, its product, and two sums
    assert len(kernels) == len(list(eager(shape))) == 2 + 4 + 1 + 2 * 5 + 2 + 1 + 2 + 2
    assert predictor.seconds(layer) == pytest.approx(sum(kernels))


@pytest.mark.parametrize("arguments", [([], 1.0), ([1.0, -1.0], 1.0), ([1.0], -1.0), ([1.0], 1.0, -1.0)])
def test_a_queue_of_nothing_and_negative_times_are_refused(arguments):
    with pytest.raises(ValueError, match="expected at least one kernel, and no negative times"):
        launched(*arguments)


def test_requests_are_counted_and_not_compared_with_kernels(tmp_path):
    write(tmp_path, HEADER[:-1] + ",clock\nh100-sxm,gemm,bf16,9,16,16,16,request\nh100-sxm,gemm,bf16,9,16,16,16,kernel\n")
    known, other = read(tmp_path)
    assert [m.clock for m in known] == ["kernel"]
    assert list(other.values()) == [1]


def test_a_folder_that_is_not_there_is_named():
    with pytest.raises(MeasurementError, match=r"--data: nowhere: no such folder"):
        read(Path("nowhere"))


def test_an_unknown_kernel_before_the_one_of_interest_is_refused():
    with pytest.raises(MeasurementError, match=r"unknown kernel 'apend'.*did you mean `append`"):
        Predictor(load("h100-sxm")).seconds(gemm(16, 64, 64, before=("apend",)))


# The two halves -----------------------------------------------------------------------------------------------------------
def test_the_half_that_is_fitted_depends_on_the_shape_alone():
    shapes = [(m, n, k) for m in (1, 16, 256) for n in (64, 128, 4096) for k in (64, 512, 8192)]
    for shape in shapes:
        assert len({gemm(*shape, device=d, dtype=t).fitted for d in ("a100-80g", "h100-sxm") for t in ("bf16", "fp8")}) == 1
    share = sum(gemm(*shape).fitted for shape in shapes) / len(shapes)
    assert 0.25 < share < 0.75


# Hygiene ------------------------------------------------------------------------------------------------------------------
def test_what_beats_the_data_sheet_is_not_physical():
    device = load("h100-sxm")
    flops = 2 * 8192**3
    peak = 2 * 2048 * 132 * device.clock
    assert unphysical(gemm(8192, 8192, 8192, flops / peak * 1.01), device) is None
    assert "TFLOP/s of at most" in unphysical(gemm(8192, 8192, 8192, flops / peak * 0.99), device)
    size = 2 * (16 * 16384 * 2 + 16384**2)  # far beyond twice the 50 MiB cache
    assert unphysical(gemm(16, 16384, 16384, size / 3.35e12 * 1.01), device) is None
    assert "TB/s of at most 3.35" in unphysical(gemm(16, 16384, 16384, size / 3.35e12 * 0.99), device)
    small = 2 * (16 * 1024 * 2 + 1024**2)
    assert unphysical(gemm(16, 1024, 1024, small / 3.35e12 * 0.5), device) is None  # it fits into the cache


def test_a_row_that_is_not_physical_is_counted_and_not_scored():
    score = evaluate([gemm(16, 16384, 16384, 1e-6), gemm(16, 16384, 16384, 200e-6)])
    assert (len(score.measured), len(score.excluded)) == (1, 1)
    assert rows(score)[0]["n"] == 1


# Predictions --------------------------------------------------------------------------------------------------------------
def test_a_product_bound_by_memory_takes_its_bytes_at_the_sustained_rate():
    """Beside the memory's stream the cache feeds the SMs and these multiply, at the same time. The model's definition (`overlap`): they
    take as long as the norm of order 4 of their times, so that two others of at most a third of the stream's time stretch it by
    at most (1 + 2 / 3**4) ** (1 / 4), 0.6 %."""
    device = load("h100-sxm")
    memory, cache = device.memories["hbm"], device.memories["l2"]
    m, n, k = 16, 16384, 16384
    read_bytes, written = 2 * (m * k + n * k), 2 * m * n
    stream = memory.occupied_fs(read_bytes, written)
    feed = read_bytes / (device.units["tensor"].port * device.units["tensor"].count * device.clock) * 1e15  # each byte once, over all ports
    assert feed < stream / 3
    ramp = min(memory.ramp, memory.occupied_fs(read_bytes))
    before = device.launch + cache.latency + memory.latency + ramp
    seconds = Predictor(device).seconds(gemm(m, n, k, copies=0))
    assert (before + stream) * 1e-15 < seconds <= (before + stream * (1 + 2 / 3**4) ** 0.25) * 1e-15


def test_weights_that_take_turns_are_found_only_if_all_fit():
    predictor = Predictor(load("h100-sxm"))
    times = [predictor.seconds(gemm(16, 4096, 1024, copies=copies)) for copies in (1, 3, 6, 0)]  # 8 MiB each, a 50 MiB cache
    assert times[0] < times[1] < times[2] <= times[3]


def test_kernels_that_run_before_add_at_least_a_launch_each():
    predictor = Predictor(load("h100-sxm"))
    plain, quantised = (predictor.seconds(gemm(16, 4096, 4096, copies=0, dtype="fp8", before=b)) for b in ((), ("maximum", "quantise")))
    assert quantised - plain >= 2 * load("h100-sxm").launch * 1e-15


def test_the_host_adds_its_time_only_by_its_own_clock():
    """A host that waits for every call puts its own time where the gap between two kernels of a queue would be: that part of the
    launch (`GAP_S`) is not charged twice."""
    predictor = Predictor(load("a100-80g"))
    kernel, host = (predictor.seconds(gemm(64, 64, 64, device="a100-80g", clock=c, host_s=21e-6)) for c in ("kernel", "host"))
    assert host - kernel == pytest.approx(21e-6 - GAP_S)
    profiled = predictor.seconds(gemm(64, 64, 64, device="a100-80g", profiled=True))
    assert 0 <= kernel - LEFT_OUT_S - profiled < STATED_S


def test_a_profiler_states_whole_microseconds_and_never_none():
    """Durations are cut, not rounded."""
    assert [round(stated(us * 1e-6 + LEFT_OUT_S) * 1e6, 9) for us in (1.01, 1.99, 2.01, 70.6, 0.2)] == [1, 1, 2, 70, 1]
    row = Measurement("a100-80g", "rmsnorm", "fp16", {"rows": 300, "columns": 4096}, 9e-6, profiled=True)
    assert (Predictor(load("a100-80g")).seconds(row) * 1e6) % 1 == pytest.approx(0, abs=1e-6)


def test_what_a_profiled_kernel_wrote_last_is_written_back_after_its_end():
    """192 MB pass; 33 MB of them, a half of the 50 MiB cache's share of what is written, are still there at the end."""
    device = load("h100-sxm")
    cache, memory = device.memories["l2"], device.memories["hbm"]
    row = {"device": "h100-sxm", "operator": "add", "dtype": "fp16", "shape": {"elements": 2**25}, "latency_s": 6e-5}
    plain, profiled = (Predictor(device).seconds(Measurement(**row, profiled=value)) for value in (False, True))
    saved = memory.occupied_fs(0, 2 * 2**25 * cache.kept(6 * 2**25)) * memory.efficiency * 1e-15
    assert saved > 2e-6
    assert 0 <= plain - saved - LEFT_OUT_S - profiled < STATED_S


def test_a_prompt_of_one_token_is_computed_head_by_head():
    """Kernels of prompts give every query head a thread block; those of decoding pack the 8 heads that share keys into one."""
    shape = {"batch": 256, "queries": 1, "keys": 1, "heads": 64, "kv_heads": 8, "head_dim": 128, "tokens": 1, "step": 0}
    predictor = Predictor(load("h100-sxm"))
    packed, alone = (
        predictor.seconds(Measurement("h100-sxm", "attention-prefill", "bf16", shape | extra, 1e-4, copies=0))
        for extra in ({}, {"prompt": 1})
    )
    rounds = -(-256 * 64 // 132)  # of thread blocks on an SM, one per head and sequence
    assert alone > rounds * load("h100-sxm").units["tensor"].attention_overhead / load("h100-sxm").clock
    assert alone > 3 * packed


def test_a_single_row_never_takes_longer_than_two():
    predictor = Predictor(load("a100-80g"))
    for n, k in ((32, 1024), (256, 1024), (4096, 4096), (768, 65536)):
        one, two = (predictor.seconds(gemm(m, n, k, device="a100-80g", copies=6)) for m in (1, 2))
        assert one <= two


def test_kernels_that_convert_their_weights_split_k_at_most_in_two():
    predictor = Predictor(load("a100-80g"))
    narrow = [predictor.seconds(gemm(16, 128, k, device="a100-80g", dtype="w4a16", copies=5)) for k in (2048, 16384)]
    plain = [predictor.seconds(gemm(16, 128, k, device="a100-80g", copies=5)) for k in (2048, 16384)]
    steps = (16384 - 2048) / 2 / 64 * load("a100-80g").units["tensor"].step_latency / load("a100-80g").clock
    assert narrow[1] - narrow[0] >= steps  # two thread blocks walk through k, each its half
    assert plain[1] - plain[0] < steps


# Scores -------------------------------------------------------------------------------------------------------------------
def test_metrics_are_the_stated_ones():
    found = metrics(np.array([1.1, 0.9, 1.0, 1.4]), np.array([1.0, 1.0, 1.0, 1.0]))
    assert found == {"mape": 0.15, "median": 0.1, "bias": 0.1, "p90": pytest.approx(0.1 + 0.7 * 0.3), "max": 0.4}


def test_totals_cover_their_size_classes_and_the_halves_cover_the_whole():
    measured = [gemm(m, n, 512, 1e-3) for m in (1, 64, 1024) for n in (64, 512, 4096, 16384)]
    score = evaluate(measured)
    table = rows(score)
    (total,) = (row for row in table if row["size_class"] == "all")
    assert total["n"] == sum(row["n"] for row in table if row["size_class"] != "all") == len(measured)
    halves = [row["n"] for half in (True, False) for row in rows(score, half=half) if row["size_class"] == "all"]
    assert sum(halves) == len(measured)


def test_the_three_parameter_fit_recovers_the_constants_it_was_made_with():
    device = load("h100-sxm")
    measured = []
    for m in (1, 16, 256, 1024, 4096):
        for n in (256, 1024, 4096, 8192):
            for k in (256, 1024, 4096):
                flops, size = gemm(m, n, k).work
                truth = max(flops / (0.6 * 2 * 2048 * 132 * device.clock), size / (0.7 * 3.35e12)) + 5e-6
                measured.append(gemm(m, n, k, truth))
    guess = fit(BASELINES[2], measured, device)
    assert np.abs(guess / [m.latency_s for m in measured] - 1).mean() < 0.03


def test_a_device_without_its_own_constants_has_those_of_the_other_generation():
    own, other, lent = load("a100-80g"), load("h100-sxm"), without_own_constants("a100-80g")
    assert lent.units["tensor"].count == own.units["tensor"].count
    assert lent.memories["hbm"].bandwidth == own.memories["hbm"].bandwidth
    assert lent.launch == other.launch != own.launch
    assert lent.memories["hbm"].efficiency == other.memories["hbm"].efficiency != own.memories["hbm"].efficiency


@pytest.mark.parametrize("name", ["b200", "l40s", "mi300x", "edge-npu"])
def test_a_device_that_nothing_was_fitted_on_is_the_same_left_out(name):
    assert without_own_constants(name) == load(name)


def test_links_left_out_take_the_constants_of_the_other_generation_and_their_own_rate():
    """Both fabrics ring 1 GiB at a share of the links' rate: on its own links the A100 with the H100's share."""
    measured = [Measurement(d, "all-gather", "fp16", {"ranks": 8, "bytes": 2**30}, 1.0) for d in ("a100-80g", "h100-sxm", "b200")]
    score = evaluate(measured, leave_one_device_out=True)
    own, other = (fabric_of(name) for name in ("a100-80g", "h100-sxm"))
    moved = 7 / 8 * 2**30
    assert score.predicted[0] == pytest.approx(moved / (own.share * float(own.link.rate)), rel=0.05)
    assert score.transferred[0] == pytest.approx(moved / (other.share * float(own.link.rate)), rel=0.05)
    assert score.transferred[1] != score.predicted[1]
    assert score.transferred[2] == score.predicted[2]


# Bands --------------------------------------------------------------------------------------------------------------------
def test_a_band_holds_nine_of_ten_of_its_class_and_falls_back_to_a_relative():
    measured = [gemm(m, n, k, 1e-5) for m in range(1, 40) for n in (64, 128) for k in (64, 128)]
    score = evaluate(measured)
    held = [(m, p) for m, p in zip(score.measured, score.predicted, strict=True) if not m.fitted]
    classes = summarise(score, "made up")["classes"]
    found = band(load("h100-sxm"), "gemm", "bf16", "small", classes)
    inside = sum(found.low <= m.latency_s / p <= found.high for m, p in held) / len(held)
    assert 0.85 <= inside <= 1
    assert found.exact
    sibling = band(load("h200-sxm"), "gemm", "bf16", "large", classes)
    assert sibling == Band(found.low, found.high, sibling.basis, exact=False, device="h100-sxm")
    assert "(all sizes) on h100-sxm, of the same generation" in sibling.basis
    assert band(load("edge-npu"), "gemm", "bf16", "small", classes) is None
    assert band(load("h100-sxm"), "gemm", "w4a16", "small", classes) is None


@pytest.mark.parametrize(
    ("device", "says"),
    [("h100-sxm", "from measurements on h100-sxm"), ("h200-sxm", "from measurements on h100-sxm"), ("b200", "not validated")],
)
def test_an_estimate_says_on_which_device_its_band_rests(device, says):
    found = estimate("gemm:64x4096x4096:bf16", device=device)
    assert says in found.text()
    assert (found.error_band.low_fs is None) == (says == "not validated")


def test_the_shipped_bands_cover_the_products_of_the_fitted_devices():
    for name in ("a100-80g", "h100-sxm"):
        for size in ("small", "medium", "large"):
            found = band(load(name), "gemm", "bf16", size)
            assert found.exact
            assert 0.5 < found.low < 1.1 < found.high * 1.2 < 2.5


# The verb -----------------------------------------------------------------------------------------------------------------
@pytest.fixture
def run():
    app = typer.Typer()
    app.command()(validate)
    return lambda *arguments: CliRunner().invoke(app, [str(a) for a in arguments])


def test_the_verb_prints_one_document_and_writes_a_page(tmp_path, run):
    write(tmp_path, HEADER + "h100-sxm,gemm,bf16,12.5,16,4096,4096\nh100-sxm,gemm,bf16,0.2,16,16384,16384\n")
    page = tmp_path / "page.html"
    result = run("--data", tmp_path, "--json", "--report", page, "--leave-one-device-out")
    assert result.exit_code == 0, result.output
    document = json.loads(result.stdout)
    assert set(document["rows"][0]) == {"device", "operator", "dtype", "size_class", "n", "mape", "median", "bias", "p90", "max"}
    assert set(document["baselines"]) == set(BASELINES)
    assert len(document["excluded"]) == 1
    assert document["leave_one_device_out"][0]["n"] == 1
    text = page.read_text(encoding="utf-8")
    assert "<svg" in text
    assert "mathdefault" not in text  # ticks are plain text: pictures are drawn without a formula parser
    table = run("gemm", "--data", tmp_path)
    assert "excluded: 1 rows" in table.stdout
    assert "  h100-sxm gemm bf16: 1 rows, such as " in table.stdout


def test_halves_are_shown_by_themselves_and_add_up(tmp_path, run):
    cells = [f"h100-sxm,gemm,bf16,{12 + i},{i},{n},512" for i in range(1, 30) for n in (256, 1024)]
    write(tmp_path, HEADER + "\n".join(cells) + "\n")
    page = tmp_path / "page.html"
    found = {}
    for half in ("both", "fitted", "held-out"):
        result = run("--data", tmp_path, "--json", "--half", half, "--learned-residual")
        assert result.exit_code == 0, result.output
        found[half] = json.loads(result.stdout)
        assert found[half]["half"] == half
    assert found["fitted"]["rows"] == found["both"]["fitted_half"]
    assert found["held-out"]["rows"] == found["both"]["held_out_half"]
    assert found["both"]["rows"][0]["n"] == 58 == found["fitted"]["rows"][0]["n"] + found["held-out"]["rows"][0]["n"]
    learned = found["both"]["learned_residual"]  # scored on held-out shapes, whatever is shown
    assert learned == found["fitted"]["learned_residual"]
    assert [row["n"] for row in learned] == [row["n"] for row in found["both"]["held_out_half"]]
    table = run("--data", tmp_path, "--learned-residual", "--leave-one-device-out", "--half", "held-out", "--report", page).stdout
    for text in ("The held-out half of the shapes", '<th class="num">learned residual</th>', '<th class="num">other generation</th>'):
        assert text in page.read_text(encoding="utf-8")
    assert table.splitlines()[0].endswith("other generation  learned residual")
    assert "learned residual: a regression fitted on the fitted half, scored on the other; no estimate uses it" in table
    assert "learned" not in run("--data", tmp_path).stdout


def test_what_cannot_be_scored_is_said(tmp_path, run):
    write(tmp_path, HEADER + "a100-80g,gemm,fp8,12,16,4096,4096\n")
    page = tmp_path / "page.html"
    result = run("--data", tmp_path, "--report", page, "--learned-residual", "--leave-one-device-out")
    assert result.exit_code == 0
    assert "no row could be scored" in result.stdout
    assert "refused: 1 rows: a100-80g gemm fp8: no rate for products" in result.stdout
    assert "no rate for products" in page.read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("rows", "arguments", "message"),
    [
        ("", (), "the files have a header and no rows"),
        ("h100-sxm,gemm,bf16,12,16,4096,4096\n", ("--half", "held-out"), "none of the 1 rows asked for is of that half"),
        ("h100-sxm,gemm,bf16,12,16,4096,4096\n", ("--device", "b200"), "none of the 1 rows is of the sets, device and clock"),
    ],
)
def test_nothing_to_score_is_refused_with_its_reason(tmp_path, run, rows, arguments, message):
    write(tmp_path, HEADER + rows)
    with pytest.raises(MeasurementError, match=message):
        raise run("--data", tmp_path, *arguments).exception


def test_rows_that_are_not_predicted_are_named_where_there_are_no_others(tmp_path, run):
    write(tmp_path, HEADER.replace("device", "device,card") + ",x86_64,gemm,bf16,9,16,16,16\n")
    result = run("--data", tmp_path)
    with pytest.raises(MeasurementError, match=r"none of the 0 rows .*1 not predicted: rows.csv: x86_64, which no device describes"):
        raise result.exception


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "--data: expected a folder"),
        (["gem", "--data", "."], "unknown set 'gem'.*did you mean `gemm`"),
        (["--data", ".", "--device", "h100"], "--device: unknown device 'h100'"),
        (["--data", ".", "--half", "first"], "--half: expected both, fitted, held-out, not 'first'"),
        (["--data", ".", "--clock", "wall"], "--clock: expected kernel, launch, host, request or all"),
    ],
)
def test_mistakes_on_the_command_line_are_named(run, arguments, message):
    result = run(*arguments)
    with pytest.raises(MeasurementError, match=message):
        raise result.exception


# Measured data, where there is any ------------------------------------------------------------------------------------------
@lru_cache
def measured():
    return read(Path(DATA))[0]


@pytest.mark.slow
@pytest.mark.skipif(not DATA, reason="no measured data: set DOVETAIL_MEASURED to a folder of measured CSV files")
@pytest.mark.parametrize(
    ("operator", "device", "dtype", "most"),
    [
        ("gemm", "h100-sxm", "bf16", 0.055),
        ("gemm", "a100-80g", "bf16", 0.08),
        ("gemm", "h100-sxm", "fp8", 0.09),
        ("gemm", "a100-80g", "w8a16", 0.12),
        ("gemm", "a100-80g", "w4a16", 0.14),
        ("attention-prefill", "a100-80g", "bf16", 0.065),
        ("attention-prefill", "h100-sxm", "bf16", 0.06),
        ("attention-prefill", "h100-sxm", "bf16-kv8", 0.075),
        ("attention-decode", "a100-80g", "bf16", 0.085),
        ("attention-decode", "h100-sxm", "bf16", 0.13),
        ("attention-decode", "h100-sxm", "bf16-kv8", 0.12),
    ],
)
def test_shapes_never_fitted_stay_within_their_errors(operator, device, dtype, most):
    wanted = (operator, device, dtype, "kernel")
    chosen = [m for m in measured() if (m.operator, m.device, m.dtype, m.clock) == wanted and not m.fitted]
    if not chosen:
        pytest.skip(f"{DATA} has no {operator} in {dtype} on {device}")
    score = evaluate(chosen[::4])
    (total,) = (row for row in rows(score) if row["size_class"] == "all")
    assert total["mape"] <= most
