"""One call from a workload's name to a report: published formulas, bounds, conservation, refusals."""

import json
from math import ceil

import pytest

from dovetail.estimate import estimate
from hw.devices import load
from hw.errors import HardwareError
from mapper.errors import CapacityError, MappingError
from workloads.errors import WorkloadError

IDEAL = {
    "units.array.preload": "serial",
    "units.array.fold_overlap": "none",
    "memories.dram.cold_fill": "excluded",
    "memories.dram.bandwidth": "100 TB/s",
}
SHAPES = [(1, 64, 64), (1, 1, 1), (100, 300, 77), (257, 129, 513), (33, 1000, 65), (5, 11008, 4096), (512, 4096, 4096)]


def stall_free(dataflow, size, m, k, n):
    """The published stall-free cycles of a square array; the published tool numbers its first cycle 0 and prints one less."""
    if dataflow == "output_stationary":
        return ceil(m / size) * ceil(n / size) * (k + 2 * size - 2)
    return ceil(k / size) * ceil(n / size) * (m + 3 * size - 2)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("size", [32, 128])
@pytest.mark.parametrize("dataflow", ["output_stationary", "weight_stationary"])
def test_published_array_cycles_are_reproduced_exactly(dataflow, size, shape):
    m, k, n = shape
    report = estimate(f"gemm:{m}x{k}x{n}:int8", device=f"systolic-{size}", settings={**IDEAL, "units.array.dataflow": dataflow})
    assert report.cycles == stall_free(dataflow, size, m, k, n)


@pytest.mark.parametrize(("m", "tolerance"), [(4096, 0.05), (32768, 0.01)])
def test_hidden_preload_approaches_one_pass_of_the_rows_per_weight_block(m, tolerance):
    settings = {**IDEAL, "units.array.dataflow": "weight_stationary", "units.array.preload": "hidden"}
    limit = ceil(1024 / 32) * ceil(1024 / 32) * ceil(m / 32) * 32
    for overlap, slack in (("none", tolerance), ("full", tolerance / 10)):
        report = estimate(f"gemm:{m}x1024x1024:int8", device="systolic-32", settings={**settings, "units.array.fold_overlap": overlap})
        assert limit <= report.cycles <= limit * (1 + slack)


def test_decode_on_a_gpu_lies_between_its_memory_bound_and_one_and_a_half_times_it():
    report = estimate("llama-2-7b", device="a100-80g", phase="decode", batch=1, context=2048)
    # every weight but the embedding table (one row is gathered), and the cache: 2 x 32 heads x 128 x 2 B x 32 layers per token
    weights = (6_738_415_616 - 32000 * 4096) * 2
    cache = 2048 * 524_288
    bound_s = (weights + cache) / 2039e9
    assert bound_s <= report.latency_s <= 1.5 * bound_s
    assert report.bound_resource == "hbm"


@pytest.mark.parametrize("device", ["a100-80g", "edge-npu"])
@pytest.mark.parametrize("phase", ["prefill", "decode"])
def test_every_part_of_a_report_sums_to_its_total(device, phase):
    report = estimate("llama-2-7b", device=device, phase=phase)
    assert sum(o.latency_fs * o.count for o in report.operators) == report.latency_fs
    for name, share in report.utilization.items():
        assert share + sum(report.stalls[name].values()) == pytest.approx(1, abs=1e-9)
    assert all(o.lower_bound_fs <= o.latency_fs for o in report.operators)
    assert report.lower_bound_fs <= report.latency_fs
    main = next(m for m in report.memories if m.name in ("hbm", "dram"))
    assert main.peak == sum(main.parts.values()) <= main.capacity
    assert abs(sum(o.bytes * o.count for o in report.operators) - main.read - main.written) <= sum(o.count for o in report.operators)
    parts = [value for value in report.energy_parts.values() if value is not None]
    assert report.energy_j == pytest.approx(sum(parts))
    assert report.energy_parts["static power"] is None


def test_both_engines_give_the_same_report():
    reports = [estimate("gemm:257x300x129:int8", device="systolic-32", engine=engine) for engine in ("fast", "simpy")]
    same = [{k: v for k, v in r.to_json().items() if k not in ("engine", "elapsed_s", "folded")} for r in reports]
    assert same[0] == same[1]
    assert len({tuple(sorted((s.on, s.start, s.end, s.name) for s in r.trace.spans())) for r in reports}) == 1


def test_a_saved_mapping_replays_to_the_same_cycles_and_bytes():
    first = estimate("gemm:500x700x300:int8", device="systolic-32")
    saved = type(first.mapping).loads(first.mapping.dumps())
    again = estimate("gemm:500x700x300:int8", device="systolic-32", mapping=saved)
    assert again.latency_fs == first.latency_fs
    assert again.mapping.dumps() == first.mapping.dumps()


def edited(change):
    document = json.loads(estimate("gemm:500x700x300:int8", device="systolic-32").mapping.dumps())
    change(document)
    from mapper.mapping import Mapping

    return Mapping.loads(json.dumps(document))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d.update(device="a100-80g"), "made for device 'a100-80g', not for 'systolic-32'"),
        (lambda d: d.update(workload="other"), "made for workload 'other'"),
        (lambda d: d["operators"][0].update(operator="x"), "has no operator 'gemm'"),
        (lambda d: d["operators"][0].update(unit="mxu"), "expected 'nest' on unit 'array', found 'nest' on 'mxu'"),
        (lambda d: d["operators"][0]["parameters"].update(m=0), "m: expected an integer of at least 1, found 0"),
        (lambda d: d["operators"][0]["parameters"].update(order="kmn"), "order: expected one of"),
        (lambda d: d["operators"][0]["parameters"].pop("hold"), "expected the parameters m, n, k, order, hold, sums"),
        (lambda d: d["operators"][0]["parameters"].update(m=500, n=300, k=700, hold="none"), r"which holds \d+ B: \d+ B short"),
    ],
)
def test_a_mapping_that_does_not_apply_is_refused(change, message):
    with pytest.raises(MappingError, match=message):
        estimate("gemm:500x700x300:int8", device="systolic-32", mapping=edited(change))


def test_narrower_weights_move_exactly_their_bytes():
    report = estimate("gemm:1x4096x4096", device="edge-npu", weights="int4-g128", acts="fp16")
    main = next(m for m in report.memories if m.name == "dram")
    assert main.read == 4096 * 4096 * 4.125 / 8 + 4096 * 2
    assert main.written == 4096 * 2


def test_a_context_longer_than_memory_names_the_missing_bytes_and_the_largest_tensors():
    with pytest.raises(CapacityError, match=r"'hbm' of a100-80g, which holds 80.00 GiB: \d+ B short .*k_cache"):
        estimate("llama-2-7b", device="a100-80g", phase="decode", context=900_000)


def test_a_scratchpad_that_holds_no_tile_is_named():
    with pytest.raises(CapacityError, match=r"operator 'gemm': no mapping fits: the smallest needs \d+ B in 'filter', which holds 64 B"):
        estimate("gemm:64x64x64:int8", device="systolic-32", settings={"memories.filter.capacity": "64 B"})


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"workload": "gemm:8x8x8:fp16", "device": "systolic-32"}, MappingError, "multiplies fp16 by fp16, which no unit of systolic-32"),
        ({"workload": "gemm:8x8x8", "device": "a100-80"}, HardwareError, "did you mean `a100-80g`"),
        ({"workload": "llama-2-7", "device": "a100-80g"}, WorkloadError, "did you mean `llama-2-7b`"),
        ({"workload": "gemm:8x8x8", "device": "a100-80g", "engine": "quick"}, MappingError, "expected one of simpy, fast"),
        ({"workload": "gemm:8x8x8", "device": "a100-80g", "weights": "int3.5"}, WorkloadError, "unknown number format"),
        (
            {"workload": "gemm:8x8x8", "device": "edge-npu", "settings": {"units.aray.rows": 8}},
            HardwareError,
            "units has no 'aray'.*did you mean `array`",
        ),
        ({"workload": "llama-2-7b", "device": "systolic-32"}, MappingError, "no unit"),
    ],
)
def test_mistakes_are_refused_with_their_place_and_reason(arguments, error, message):
    with pytest.raises(error, match=message):
        estimate(arguments.pop("workload"), **arguments)


def test_a_gpu_without_a_cache_is_refused():
    device = load("a100-80g")
    memories = {name: memory for name, memory in device.memories.items() if name != "l2"}
    bare = device.model_copy(update={"memories": memories, "links": ()})
    with pytest.raises(MappingError, match="need a cache in front of main memory"):
        estimate("gemm:64x64x64", device=bare)
