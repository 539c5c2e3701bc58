"""Laws of every mapping on every device: bounds, conservation, monotonicity, determinism."""

import hashlib
import itertools
import json
import os
import subprocess
import sys
from fractions import Fraction
from math import ceil, prod
from pathlib import Path

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from hw import Device
from hw.devices import load as device_called
from mapper import CapacityError, Mapping, MappingError, OperatorMapping, compile_graph
from mapper.compile import choose_space
from mapper.kernels import fuse
from mapper.residency import Residency
from mapper.search import search
from mapper.target import Target
from sim import simulate
from workloads import cost, load
from workloads.format import parse_format
from workloads.graph import Graph, Operator, Segment, Tensor

ROOT = Path(__file__).parents[2]
DEVICES = {name: device_called(name) for name in ("systolic-32", "systolic-128", "edge-npu", "a100-80g", "h100-sxm")}
FULL = [name for name, device in DEVICES.items() if device.units_for("vector")]


# Workloads --------------------------------------------------------------------------------------------------------------------
def tensor(name, shape, number_format="fp16", role="activation"):
    return Tensor(name, tuple(shape), parse_format(number_format), role)


def graph(tensors, operators, inputs, outputs, context=1, tokens=1, batch=1):
    segment = Segment("body", 1, tuple(operators))
    return Graph("law", "single", batch, tokens, context, {t.name: t for t in tensors}, (segment,), tuple(inputs), tuple(outputs))


def product(m, k, n, number_format="int8", weights=None, result=None, batch=1, shared=False):
    lead = (batch,) if batch > 1 else ()
    tensors = [
        tensor("x", (*lead, m, k), number_format),
        tensor("w", (*(() if shared else lead), k, n), weights or number_format, "weight"),
        tensor("y", (*lead, m, n), result or number_format),
    ]
    return graph(tensors, [Operator("gemm", "matmul", ("x", "w"), ("y",), {"batch": batch, "m": m, "n": n, "k": k})], ["x"], ["y"])


def attention(batch, kv_heads, group, queries, past, dim, causal=True, window=0, role="kv_cache"):
    heads, keys = kv_heads * group, queries + past
    tensors = [
        tensor("q", (batch, heads, queries, dim)),
        tensor("k", (batch, kv_heads, keys, dim), role=role),
        tensor("v", (batch, kv_heads, keys, dim), role=role),
        tensor("o", (batch, heads, queries, dim)),
    ]
    attributes = {"batch": batch, "heads": heads, "kv_heads": kv_heads, "queries": queries, "keys": keys, "head_dim": dim, "value_dim": dim}
    operator = Operator("attention", "attention", ("q", "k", "v"), ("o",), {**attributes, "causal": int(causal), "window": window})
    inputs = ["q"] if role == "kv_cache" else ["q", "k", "v"]
    return graph(tensors, [operator], inputs, ["o"], context=keys, tokens=queries, batch=batch)


def elementwise(elements, operations, specials):
    operator = Operator("e", "elementwise", ("x",), ("y",), {"elements": elements, "operations": operations, "specials": specials})
    return graph([tensor("x", (elements,)), tensor("y", (elements,))], [operator], ["x"], ["y"])


def experts(rows, count, active, k, n):
    tensors = [tensor("x", (rows, k)), tensor("w", (count, k, n), role="weight"), tensor("y", (rows, n))]
    attributes = {"rows": rows, "experts": count, "top_k": 1, "active": min(active, rows), "n": n, "k": k}
    return graph(tensors, [Operator("moe", "grouped_matmul", ("x", "w"), ("y",), attributes)], ["x"], ["y"])


edges = st.sampled_from([1, 2, 7, 16, 31, 32, 33, 64, 100, 127, 128, 129, 257, 1000, 4096])
products_int8 = st.builds(product, edges, edges, edges, st.just("int8"), batch=st.sampled_from([1, 1, 3]), shared=st.booleans())
products_mixed = st.builds(
    product, edges, edges, edges, st.just("fp16"), st.sampled_from(["fp16", "int4", "int4-g128"]), st.sampled_from(["fp16", "fp32"]),
    batch=st.sampled_from([1, 1, 3]), shared=st.booleans(),
)  # fmt: skip
attentions = st.builds(
    attention, st.sampled_from([1, 3, 54]), st.sampled_from([1, 2, 8]), st.sampled_from([1, 4, 8]), st.sampled_from([1, 1, 16, 65, 257]),
    st.sampled_from([0, 1, 64, 1000, 4000]), st.sampled_from([64, 80, 128]), st.booleans(), st.sampled_from([0, 0, 1, 100]),
    st.sampled_from(["kv_cache", "activation"]),
)  # fmt: skip
vectors = st.builds(elementwise, st.sampled_from([1, 1023, 1024, 5000, 2**20]), st.integers(0, 3), st.integers(0, 1))
mixtures = st.builds(
    experts, st.integers(1, 40), st.just(40), st.integers(1, 40), st.sampled_from([64, 200]), st.sampled_from([64, 130])
)


@st.composite
def situations(draw):
    """A device, possibly altered, and one operator for it."""
    name = draw(st.sampled_from(sorted(DEVICES)))
    device = DEVICES[name]
    work = st.one_of(products_int8, products_mixed, attentions, vectors, mixtures) if name in FULL else products_int8
    changes = {}
    if "array" in device.units:
        options = {
            "units.array.dataflow": ["output_stationary", "weight_stationary"],
            "units.array.preload": ["serial", "hidden"],
            "units.array.fold_overlap": ["none", "full"],
            "memories.dram.cold_fill": ["counted", "excluded"],
            "memories.dram.sharing": ["shared", "per_operand"],
            "memories.dram.bandwidth": ["1 GB/s", "100 TB/s"],
        }
        changes = draw(st.fixed_dictionaries({}, optional={path: st.sampled_from(values) for path, values in options.items()}))
    elif draw(st.booleans()):
        changes = {"memories.hbm.bandwidth": "100 TB/s", "memories.l2.bandwidth": "100 TB/s", "launch": 0}
    return device.with_settings(changes), draw(work)


def compiled(workload, device):
    try:
        return compile_graph(workload, device)
    except CapacityError:
        assume(False)


def latency(workload, device):
    """Femtoseconds, or None where nothing fits."""
    try:
        return simulate(compile_graph(workload, device).program, "fast").makespan
    except CapacityError:
        return None


# Bounds and conservation -----------------------------------------------------------------------------------------------------
def check_laws(result):
    """What holds for everything that was ever compiled; returns the simulated time."""
    trace = simulate(result.program, "fast")
    assert trace.makespan == sum(placed.plan.latency_fs * placed.count for placed in result.kernels)
    assert trace.makespan >= result.lower_bound_fs
    for placed in result.kernels:
        assert placed.plan.latency_fs >= placed.lower_bound_fs, placed.kernel.name
    for queue, busy in trace.busy.items():
        assert busy + sum(trace.stalls[queue].values()) == trace.makespan, queue
    traffic = result.program.traffic()
    for memory, (read, written) in traffic.items():
        assert read == sum(p.plan.effort[memory].read * p.count for p in result.kernels if memory in p.plan.effort)
        assert written == sum(p.plan.effort[memory].written * p.count for p in result.kernels if memory in p.plan.effort)
    for placed in result.kernels:
        macs = sum(e.macs for name, e in placed.plan.effort.items() if name in result.device.units)
        needed = cost.macs(placed.kernel.operator) if placed.number_format else 0
        assert macs == needed if placed.kernel.kind != "attention" else macs >= needed  # blocks on the diagonal compute both halves
        for pad, need in placed.plan.footprint.items():
            assert need <= result.device.memories[pad].capacity
    return trace.makespan


@settings(max_examples=120, deadline=None)
@given(situations())
def test_nothing_beats_its_bounds_and_all_parts_sum_to_their_totals(situation):
    device, workload = situation
    result = compiled(workload, device)
    check_laws(result)
    read, written = result.program.traffic().get(device.main_memory, (0, 0))
    (operator,) = workload.segments[0].operators
    outputs = sum(t.elements * t.format.bits / 8 for t in workload.writes(operator))
    assert written >= outputs
    if operator.kind != "attention":
        used = Fraction(operator["active"], operator["experts"]) if operator.kind == "grouped_matmul" else 1
        inputs = sum(t.elements * t.format.bits / 8 * (used if t.role == "weight" else 1) for t in workload.reads(operator))
        assert read >= inputs


@settings(max_examples=40, deadline=None)
@given(situations())
def test_the_search_skips_nothing_that_is_better(situation):
    device, workload = situation
    target = Target(device)
    ((_, (kernel,)),) = fuse(workload)
    space, _ = choose_space(target, kernel)
    best = None
    candidates = list(space.candidates())
    for mapping in candidates[:: len(candidates) // 150 + 1]:
        time = space.plan(mapping).latency_fs
        assert space.bound(mapping) <= time, mapping
        if all(need <= device.memories[pad].capacity for pad, need in space.footprint(mapping).items()):
            best = time if best is None else min(best, time)
    if best is not None:
        assert search(space, kernel.name).plan.latency_fs <= best


@pytest.mark.parametrize("name", sorted(DEVICES))
@pytest.mark.parametrize(("m", "k", "n"), [(1, 1, 1), (1, 64, 64), (33, 100, 77), (127, 129, 65)])
@pytest.mark.parametrize("weights", ["int8", "int4", "int4-g128"])
def test_what_fits_on_the_chip_moves_exactly_its_own_bytes(name, m, k, n, weights):
    result = compile_graph(product(m, k, n, "int8", weights), DEVICES[name])
    # no padding to array blocks, instructions or tiles; group scales included
    width = {"int8": 1, "int4": Fraction(1, 2), "int4-g128": (4 + Fraction(16, 128)) / 8}[weights]
    assert result.program.traffic()[DEVICES[name].main_memory] == (m * k + k * n * width, m * n)


@pytest.mark.parametrize("name", sorted(DEVICES))
def test_a_right_operand_shared_over_the_batch_is_read_once(name):
    result = compile_graph(product(64, 64, 64, batch=64, shared=True), DEVICES[name])
    assert result.program.traffic()[DEVICES[name].main_memory] == (64 * 64 * 64 + 64 * 64, 64 * 64 * 64)


@pytest.mark.parametrize("name", FULL)
def test_attention_never_moves_scores(name):
    batch, heads, queries, dim = 2, 4, 512, 64
    result = compile_graph(attention(batch, heads, 1, queries, 0, dim, role="activation"), DEVICES[name])
    read, written = result.program.traffic()[DEVICES[name].main_memory]
    each = batch * heads * queries * dim * 2
    assert written == each
    assert 3 * each <= read  # queries, keys and values
    scores = batch * heads * queries * queries * 2
    assert read + written < 2 * scores


@pytest.mark.parametrize("name", ["a100-80g", "h100-sxm"])
@pytest.mark.parametrize("twice", ["input", "weight"])
def test_the_bound_counts_a_tensor_once_that_two_kernels_share_through_the_cache(name, twice):
    if twice == "weight":
        tensors = [tensor("x", (16, 4096)), tensor("w", (4096, 4096), role="weight"), tensor("y", (16, 4096)), tensor("z", (16, 4096))]
        dims = {"batch": 1, "m": 16, "n": 4096, "k": 4096}
        operators = [Operator("one", "matmul", ("x", "w"), ("y",), dims), Operator("two", "matmul", ("y", "w"), ("z",), dims)]
        workload = graph(tensors, operators, ["x"], ["z"])
    else:
        tensors = [
            tensor("x", (16384, 1024)),
            *(tensor(f"w{i}", (16, 1024), role="weight") for i in "12"),
            *(tensor(f"y{i}", (16384, 16)) for i in "12"),
        ]
        dims = {"batch": 1, "m": 16384, "n": 16, "k": 1024}
        workload = graph(tensors, [Operator(f"g{i}", "matmul", ("x", f"w{i}"), (f"y{i}",), dims) for i in "12"], ["x"], ["y1", "y2"])
    check_laws(compile_graph(workload, DEVICES[name]))


@pytest.mark.parametrize("name", FULL)
def test_one_tensor_may_be_both_operands(name):
    dims = {"batch": 1, "m": 64, "n": 64, "k": 64}
    square = graph([tensor("x", (64, 64)), tensor("y", (64, 64))], [Operator("g", "matmul", ("x", "x"), ("y",), dims)], ["x"], ["y"])
    check_laws(compile_graph(square, DEVICES[name]))


@pytest.mark.parametrize("name", FULL)
def test_latent_attention_with_all_heads_on_one_key_fits(name):
    # DeepSeek-V3: 128 query heads share one latent of 512 + 64 values that is key and value
    tensors = [tensor("q", (2, 128, 1, 576)), tensor("c", (2, 4096, 576), role="kv_cache"), tensor("o", (2, 128, 1, 512))]
    attributes = {
        "batch": 2,
        "heads": 128,
        "kv_heads": 1,
        "queries": 1,
        "keys": 4096,
        "head_dim": 576,
        "value_dim": 512,
        "causal": 1,
        "window": 0,
    }
    workload = graph(tensors, [Operator("mla", "attention", ("q", "c"), ("o",), attributes)], ["q"], ["o"], context=4096, batch=2)
    result = compile_graph(workload, DEVICES[name])
    check_laws(result)
    read, _ = result.program.traffic()[DEVICES[name].main_memory]
    assert read >= 2 * 4096 * 576 * 2  # the latent is read once, not once as keys and once as values
    assert read < 2 * 2 * 4096 * 576 * 2


@pytest.mark.parametrize("name", FULL)
def test_a_window_moves_only_the_keys_that_it_sees(name):
    # 64 new tokens of 10 000 with a window of 128: 128 + 64 - 1 keys, of which 127 were there before
    workload = attention(1, 8, 1, 64, 10_000 - 64, 128, window=128)
    result = compile_graph(workload, DEVICES[name])
    check_laws(result)
    read, _ = result.program.traffic()[DEVICES[name].main_memory]
    key = 2 * 8 * 128 * 2  # bytes of one key and its value over all heads
    assert 191 * key <= read < 10_000 * key
    compulsory = sum(operand.size for operand in result.kernels[0].kernel.compulsory if operand.role == "kv_cache")
    assert compulsory == 127 * key


@pytest.mark.parametrize("name", ["a100-80g", "h100-sxm"])
def test_a_wave_waits_for_its_slowest_thread_block(name):
    # one query more makes a second block of one row and one key block more, beside a block of 256 rows
    fast = DEVICES[name].with_settings({"memories.hbm.bandwidth": "100 TB/s", "memories.l2.bandwidth": "100 TB/s"})
    times = []
    for queries in (256, 257):
        workload = attention(54, 1, 1, queries, 100_096 - 256, 128)
        ((_, (kernel,)),) = fuse(workload)
        space, _ = choose_space(Target(fast), kernel)
        mapping = OperatorMapping("attention", "tensor", "wave", {"q": 256, "heads": 1, "k": 64, "split": 1})
        times.append(space.plan(mapping).latency_fs)
        assert space.bound(mapping) <= times[-1]
    assert times[0] <= times[1]


@pytest.mark.parametrize("sharing", ["shared", "per_operand"])
def test_vector_work_whose_fill_is_not_counted_takes_the_best_of_its_chunks(sharing):
    device = DEVICES["edge-npu"].with_settings({"memories.dram.cold_fill": "excluded", "memories.dram.sharing": sharing})
    target = Target(device)
    ((_, (kernel,)),) = fuse(elementwise(2**22, 1, 1))
    space, _ = choose_space(target, kernel)
    times = {}
    for mapping in space.candidates():
        time = space.plan(mapping).latency_fs
        assert space.bound(mapping) <= time
        if all(need <= device.memories[pad].capacity for pad, need in space.footprint(mapping).items()):
            times[mapping.parameters["chunk"]] = time
    assert search(space, kernel.name).plan.latency_fs == min(times.values()) < times[1024]


@pytest.mark.parametrize("name", ["a100-80g", "h100-sxm"])
def test_partial_sums_of_a_split_product_fit_into_the_cache(name):
    for m, k, n in [(16384, 16384, 16384), (1536, 16384, 8192), (64, 65536, 64)]:
        result = compile_graph(product(m, k, n, "fp16"), DEVICES[name])
        split = result.kernels[0].plan.mapping.parameters["split"]
        assert split == 1 or m * n * split * 4 <= DEVICES[name].memories["l2"].total
    assert split > 1  # the last product has too few results to fill the device otherwise


@pytest.mark.parametrize("capacity", [1, 2, 3])
@pytest.mark.parametrize(
    "workload",
    [product(64, 64, 64, "fp16"), attention(1, 2, 1, 16, 0, 64), elementwise(1000, 1, 1)],
    ids=["product", "attention", "elementwise"],
)
def test_a_cache_of_a_few_bytes_is_no_crash(capacity, workload):
    check_laws(compile_graph(workload, DEVICES["a100-80g"].with_settings({"memories.l2.capacity": capacity})))


def test_a_tensor_that_is_both_operands_is_read_once_behind_a_cache():
    dims = {"batch": 1, "m": 64, "n": 64, "k": 64}
    square = graph([tensor("x", (64, 64)), tensor("y", (64, 64))], [Operator("g", "matmul", ("x", "x"), ("y",), dims)], ["x"], ["y"])
    assert compile_graph(square, DEVICES["a100-80g"]).program.traffic()["hbm"] == (64 * 64 * 2, 64 * 64 * 2)


def test_a_kernel_runs_the_way_of_the_unit_that_takes_it():
    # int8 goes to a fast array beside the tensor cores, fp16 to the tensor cores: tiles for one, waves for the other
    device = DEVICES["a100-80g"]
    description = device.to_dict()
    description["units"] = {"array": {"kind": "systolic", "rows": 16, "columns": 16, "clock": "100 GHz"}, **description["units"]}
    description["units"]["tensor"]["macs"] = {"fp16": 1024}
    both = Device.from_dict(description)
    for number_format, unit, family in (("int8", "array", "nest"), ("fp16", "tensor", "wave")):
        result = compile_graph(product(64, 64, 64, number_format), both)
        check_laws(result)
        assert (result.kernels[0].plan.mapping.unit, result.kernels[0].plan.mapping.family) == (unit, family)


@pytest.mark.parametrize("workload", [product(64, 64, 64), product(1, 4096, 1000), attention(2, 4, 1, 33, 0, 64)])
def test_more_copies_of_an_array_are_never_slower(workload):
    times = []
    for count in (1, 2, 4, 8):
        result = compile_graph(workload, DEVICES["edge-npu"].with_settings({"units.array.count": count}))
        check_laws(result)
        times.append(sum(placed.plan.latency_fs for placed in result.kernels))
    assert times == sorted(times, reverse=True)


# More is never slower ---------------------------------------------------------------------------------------------------------
def never_slower(workload, device, path, values, rounding_fs=0):
    last = None
    for value in values:
        time = latency(workload, device.with_settings({path: value}))
        assert last is None or (time is not None and time <= last + rounding_fs), f"{path}={value}: {time} fs, less of it took {last} fs"
        last = time


BANDWIDTHS = ["1 MB/s", "1 GB/s", "17 GB/s", "1 TB/s", "100 TB/s"]
CLOCKS = ["1 MHz", "999 MHz", "1 GHz", "1001 MHz", "10 GHz"]
CAPACITIES = ["8 KiB", "33 kB", "64 KiB", "100 KiB", "227 KiB", "256 KiB", "1 MiB", "17 MiB", "40 MiB", "1 GiB"]


def ladders(device):
    """Every path of a device on which more is better, with rising values."""
    main = device.main_memory
    yield f"memories.{main}.bandwidth", BANDWIDTHS
    yield "clock", CLOCKS
    for unit in device.units:
        yield f"units.{unit}.clock", CLOCKS
    for memory in device.memories:
        if memory != main:
            yield f"memories.{memory}.capacity", CAPACITIES
    if "l2" in device.memories:
        yield "memories.l2.bandwidth", BANDWIDTHS


@settings(max_examples=60, deadline=None)
@given(situations(), st.data())
def test_more_of_anything_is_never_slower(situation, data):
    device, workload = situation
    path, values = data.draw(st.sampled_from(list(ladders(device))))
    never_slower(workload, device, path, values)


@pytest.mark.parametrize("name", ["edge-npu", "a100-80g"])
def test_more_of_anything_is_never_slower_for_a_real_model(name):
    device, workload = DEVICES[name], load("llama-2-7b", phase="decode", batch=1, context=2048)
    rungs = {
        "bandwidth": ["10 GB/s", "100 GB/s", "10 TB/s"],
        "clock": ["500 MHz", "2 GHz"],
        "capacity": ["256 KiB", "4 MiB", "40 MiB", "1 GiB"],
    }
    for path, _ in ladders(device):
        never_slower(workload, device, path, rungs[path.rpartition(".")[2]])


@pytest.mark.parametrize("phase", ["prefill", "decode"])
def test_a_larger_cache_is_never_slower_for_a_real_model(phase):
    # around the sizes of single weights and of their sums: 32 MiB (4096 x 4096), 86 MiB (4096 x 11008)
    workload = load("llama-2-7b", phase=phase)
    never_slower(
        workload, DEVICES["a100-80g"], "memories.l2.capacity", [f"{size} MiB" for size in (12, 16, 30, 32, 40, 64, 80, 86, 90, 120, 180)]
    )


@pytest.mark.slow
@pytest.mark.parametrize("name", FULL)
@pytest.mark.parametrize(("phase", "length"), [("prefill", 33), ("decode", 100)])
def test_the_laws_hold_for_a_model_traced_from_its_configuration(name, phase, length):
    folder = str(ROOT / "tests/workloads/data/tiny-llama")
    lengths = {"seq": length} if phase == "prefill" else {"context": length}
    workload = load(folder, phase=phase, batch=3, **lengths)
    check_laws(compile_graph(workload, DEVICES[name]))
    # what is prefetched beside a kernel is whole bytes: a shorter kernel may leave out the one that its time was just enough for
    byte_fs = -(-(10**15) // DEVICES[name].dram.bandwidth)
    for path, values in ladders(DEVICES[name]):
        slack = byte_fs * sum(count for _, count in workload.operators()) if path == "units.vector.clock" else 0
        never_slower(workload, DEVICES[name], path, values, slack)


sizes = st.integers(1, 30)
names = st.sampled_from("abcdefgh")
uses = st.lists(st.tuples(names, st.booleans()), min_size=1, max_size=4)


@given(st.lists(uses, min_size=1, max_size=12), st.dictionaries(names, sizes), sizes, sizes)
def test_a_larger_cache_finds_everything_that_a_smaller_one_finds(kernels, bytes_of, small, more):
    tensors = [tensor(name, (bytes_of.get(name, 7),), "int8") for name in "abcdefgh"]
    caches = Residency(small), Residency(small + more)
    for number, operands in enumerate(kernels):
        read = list(dict.fromkeys(name for name, _ in operands))
        operator = Operator(f"k{number}", "reduce", tuple(read), ("r",), {"elements": 1, "operations": 1})
        workload = graph([*tensors, tensor("r", (1,), "int8")], [operator], read, ["r"])
        ((_, (kernel,)),) = fuse(workload)
        few, many = (cache.run(kernel) for cache in caches)
        assert few <= many
        gone = {name for name, forgotten in operands if forgotten}
        for cache in caches:
            cache.forget(gone)


# A nest's traffic, counted tile by tile ---------------------------------------------------------------------------------------
def walk(space, mapping):
    """Bytes read and written, multiply-accumulates and the most bytes kept per operand, from the loops written out.

    A tile is loaded when it is not the one of the step before; a held operand keeps every tile until a loop outside turns.
    """
    order, hold, sums = (mapping.parameters[name] for name in ("order", "hold", "sums"))
    wide = space.target.unit(space.unit).accumulator_bytes()
    read = written = macs = Fraction(0)
    most = {"activations": Fraction(0), "weights": Fraction(0), "outputs": Fraction(0)}
    for shape in space.products:
        full = {"m": shape.m, "n": shape.n, "k": shape.k}
        tile = {d: min(mapping.parameters[d], full[d]) for d in full}
        for _ in range(shape.count):
            kept = {"activations": {}, "weights": {}}
            turn = {}
            partial = {}
            for indices in itertools.product(*(range(ceil(full[d] / tile[d])) for d in order)):
                at = dict(zip(order, indices, strict=True))
                size = {d: min(tile[d], full[d] - at[d] * tile[d]) for d in full}
                for operand, key, dims, over, each in (
                    ("activations", "a", "mk", "n", space.a_size),
                    ("weights", "b", "kn", "m", space.b_size),
                ):
                    place = tuple(at[d] for d in dims)
                    outside = tuple(at[d] for d in order[: order.index(over)]) if key in hold else place
                    if turn.get(operand) != outside:
                        turn[operand] = outside
                        kept[operand] = {}
                    if place not in kept[operand]:
                        kept[operand][place] = size[dims[0]] * size[dims[1]] * each
                        read += kept[operand][place]
                    most[operand] = max(most[operand], sum(kept[operand].values()))
                results, cell = size["m"] * size["n"], (at["m"], at["n"])
                macs += results * size["k"]
                reached = partial.get(cell, 0)
                assert reached == at["k"] * tile["k"]  # k is visited in order
                if reached and sums == "spill":
                    read += results * wide
                partial[cell] = reached + size["k"]
                if partial[cell] == full["k"]:
                    del partial[cell]
                    written += results * space.out_size
                    read += results * space.extra_size
                elif sums == "spill":
                    written += results * wide
                else:
                    cells = (min(tile["m"], full["m"] - i * tile["m"]) * min(tile["n"], full["n"] - j * tile["n"]) for i, j in partial)
                    most["outputs"] = max(most["outputs"], sum(cells) * wide)
            assert not partial
    return read, written, macs, most


@settings(max_examples=80, deadline=None)
@given(st.data())
def test_a_nest_moves_the_bytes_of_its_loops_and_keeps_no_more_than_it_reserves(data):
    draw = data.draw
    device = DEVICES[draw(st.sampled_from(["systolic-32", "edge-npu"]))].with_settings(
        {
            "units.array.rows": draw(st.sampled_from([4, 8, 32])),
            "units.array.columns": draw(st.sampled_from([4, 16, 32])),
            "units.array.dataflow": draw(st.sampled_from(["output_stationary", "weight_stationary"])),
        }
    )
    dims = st.sampled_from([1, 5, 33, 64, 100, 257])
    workload = product(
        draw(dims), draw(dims), draw(dims), "int8", draw(st.sampled_from(["int8", "int4-g128"])), batch=draw(st.sampled_from([1, 3]))
    )
    target = Target(device)
    ((_, (kernel,)),) = fuse(workload)
    space, _ = choose_space(target, kernel)
    extents = {d: getattr(space.products[0], d) for d in "mnk"}
    short = [c for c in space.candidates() if prod(ceil(extents[d] / c.parameters[d]) for d in extents) <= 3000]
    mapping = draw(st.sampled_from(short))
    read, written, macs, most = walk(space, mapping)
    effort = space.plan(mapping).effort
    assert (effort[target.main].read, effort[target.main].written) == (read, written)
    assert effort[space.unit].macs == macs
    reserved = space.footprint(mapping)
    for operand, need in most.items():
        assert need <= reserved[target.pad_capacity(operand, space.unit)[0]]


# Any mapping ----------------------------------------------------------------------------------------------------------------------
REPLAYED = {"product": product(64, 100, 257), "attention": attention(1, 2, 4, 33, 67, 64), "elementwise": elementwise(5000, 1, 1)}


@settings(max_examples=120, deadline=None)
@given(st.sampled_from(sorted(REPLAYED)), st.sampled_from(FULL), st.data())
def test_an_edited_mapping_is_refused_or_obeys_the_laws_on_both_engines(kind, name, data):
    base = compile_graph(REPLAYED[kind], DEVICES[name]).mapping
    (chosen,) = base.operators
    numbers = st.sampled_from([1, 2, 3, 7, 16, 100, 10**6, 10**12])
    words = st.sampled_from(["mnk", "nmk", "nkm", "a", "b", "ab", "none", "local", "spill"])
    edits = {key: data.draw(st.just(value) | (numbers if isinstance(value, int) else words)) for key, value in chosen.parameters.items()}
    mapping = Mapping(base.device, base.workload, (OperatorMapping(chosen.operator, chosen.unit, chosen.family, edits),))
    try:
        result = compile_graph(REPLAYED[kind], DEVICES[name], mapping)
    except MappingError:
        return
    check_laws(result)
    if result.program.tasks() < 1000:
        fast, reference = (simulate(result.program, engine) for engine in ("fast", "simpy"))
        assert sorted((s.on, s.start, s.end, s.name) for s in fast.spans()) == sorted(
            (s.on, s.start, s.end, s.name) for s in reference.spans()
        )
        assert fast.stalls == reference.stalls


# Determinism ------------------------------------------------------------------------------------------------------------------------
def fingerprint():
    """SHA-256 of programs, traces and mappings of a product and of a real model."""
    digest = hashlib.sha256()
    for name, workload in (("systolic-32", product(257, 129, 513)), ("a100-80g", load("llama-2-7b", phase="decode"))):
        result = compile_graph(workload, DEVICES[name])
        trace = simulate(result.program, "fast")
        digest.update(
            (json.dumps(result.program.to_json()) + repr(trace.entries) + result.mapping.dumps() + repr(result.assumptions)).encode()
        )
    return digest.hexdigest()


def test_the_same_inputs_give_the_same_bytes_in_every_process():
    code = f"import sys, runpy; sys.path.insert(0, {str(ROOT)!r}); print(runpy.run_path({__file__!r})['fingerprint']())"
    outputs = set()
    for seed in ("1", "2"):
        environment = {**os.environ, "PYTHONHASHSEED": seed}
        run = subprocess.run(
            [sys.executable, "-c", code], env=environment, cwd=ROOT, capture_output=True, text=True, timeout=120, check=True
        )
        outputs.add(run.stdout.strip())
    assert outputs == {fingerprint()}


def test_a_device_and_its_yaml_copy_give_the_same_bytes(tmp_path):
    path = tmp_path / "copy.yaml"
    path.write_text(DEVICES["edge-npu"].to_yaml(), encoding="utf-8")
    copy = Device.from_yaml(path)
    workload = product(100, 300, 77)
    first, second = (compile_graph(workload, device) for device in (DEVICES["edge-npu"], copy))
    assert json.dumps(first.program.to_json()) == json.dumps(second.program.to_json())
    assert first.mapping.dumps() == second.mapping.dumps()
