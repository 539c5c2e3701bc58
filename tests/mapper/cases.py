"""Devices, workloads and laws that the tests of placement share."""

import itertools

from hw import Device
from sim import simulate
from workloads import cost
from workloads.format import parse_format
from workloads.graph import Graph, Operator, Segment, Tensor

GHZ = 10**9
RICH = 64 * 64  # multiply-accumulates per cycle of the compute-rich array
NEAR = 512  # ... of the unit near memory: 64 lanes at eight times the clock
OUTSIDE, INSIDE = 64 * 10**9, 512 * 10**9  # bytes per second over the interface, and of the way inside
STREAMING = {"dtypes": ["fp16"], "dataflow": "weight_stationary", "preload": "hidden", "fold_overlap": "full"}


def near_memory(access="concurrent", **changes):
    """A 64 x 64 array behind the interface and a row of fast lanes in the memory; no launch and no latency."""
    description = {
        "name": "near",
        "clock": "1 GHz",
        "units": {
            "array": {"kind": "systolic", "rows": 64, "columns": 64, **STREAMING},
            "lanes": {"kind": "systolic", "rows": 1, "columns": 64, "clock": "8 GHz", **STREAMING},
            "vector": {"kind": "vector", "lanes": 512, "special_lanes": 128},
            "near_vector": {"kind": "vector", "lanes": 512, "special_lanes": 128},
        },
        "memories": {
            "pad": {"kind": "scratchpad", "capacity": "4 MiB", "bandwidth": "1 TB/s"},
            "buffer": {"kind": "scratchpad", "capacity": "4 MiB", "bandwidth": "1 TB/s"},
            "dram": {"kind": "dram", "capacity": "16 GiB", "bandwidth": f"{OUTSIDE} B/s"},
        },
        "links": [
            ["dram", "pad"],
            ["pad", "array"],
            ["pad", "vector"],
            {"source": "dram", "sink": "buffer", "bandwidth": f"{INSIDE} B/s", "access": access},
            ["buffer", "lanes"],
            ["buffer", "near_vector"],
        ],
    }
    description["units"] |= changes.pop("units", {})
    return Device.from_dict({**description, **changes})


def tensor(name, shape, number_format="fp16", role="activation"):
    return Tensor(name, tuple(shape), parse_format(number_format), role)


def graph(tensors, operators, inputs, outputs, context=1, tokens=1, batch=1, count=1):
    segment = Segment("body", count, tuple(operators))
    return Graph("law", "single", batch, tokens, context, {t.name: t for t in tensors}, (segment,), tuple(inputs), tuple(outputs))


def product(m, k, n, acts="fp16", weights=None):
    tensors = [tensor("x", (m, k), acts), tensor("w", (k, n), weights or acts, "weight"), tensor("y", (m, n), acts)]
    return graph(tensors, [Operator("gemm", "matmul", ("x", "w"), ("y",), {"batch": 1, "m": m, "n": n, "k": k})], ["x"], ["y"])


def experts(rows, count, active, k, n):
    tensors = [tensor("x", (rows, k)), tensor("w", (count, k, n), role="weight"), tensor("y", (rows, n))]
    attributes = {"rows": rows, "experts": count, "top_k": 1, "active": active, "n": n, "k": k}
    return graph(tensors, [Operator("moe", "grouped_matmul", ("x", "w"), ("y",), attributes)], ["x"], ["y"])


def attention(batch, kv_heads, group, queries, past, dim):
    heads, keys = kv_heads * group, queries + past
    tensors = [
        tensor("q", (batch, heads, queries, dim)),
        tensor("k", (batch, kv_heads, keys, dim), role="kv_cache"),
        tensor("v", (batch, kv_heads, keys, dim), role="kv_cache"),
        tensor("o", (batch, heads, queries, dim)),
    ]
    attributes = {"batch": batch, "heads": heads, "kv_heads": kv_heads, "queries": queries, "keys": keys, "head_dim": dim, "value_dim": dim}
    operator = Operator("attention", "attention", ("q", "k", "v"), ("o",), {**attributes, "causal": 1, "window": 0})
    return graph(tensors, [operator], ["q"], ["o"], context=keys, tokens=queries, batch=batch)


def checked(result):
    """The simulated time of a compiled workload, after the laws that hold for any placement."""
    trace = simulate(result.program, "fast")
    stages = {}
    for placed in result.kernels:
        for part in placed.parts:
            units = stages.setdefault(placed.stage, (placed.count, {}))[1]
            units[part.site.unit] = units.get(part.site.unit, 0) + part.plan.latency_fs
        assert placed.plan.latency_fs >= placed.lower_bound_fs
        macs = sum(e.macs for name, e in placed.plan.effort.items() if name in result.device.units)
        needed = cost.macs(placed.kernel.operator) if placed.number_format else 0
        assert macs == needed if placed.kernel.kind != "attention" else macs >= needed
        for pad, need in placed.plan.footprint.items():
            assert need <= result.device.memories[pad].capacity
    _check_room(result)
    assert trace.makespan == sum(count * max(units.values()) for count, units in stages.values())
    assert trace.makespan >= result.lower_bound_fs
    if result.program.tasks() < 2000:
        reference = simulate(result.program, "simpy")
        assert sorted((s.on, s.start, s.end) for s in trace.spans()) == sorted((s.on, s.start, s.end) for s in reference.spans())
    return trace.makespan


def _check_room(result):
    """Tiles and what is kept fit side by side, and what is kept at the same time does not overlap."""
    for body in {placed.stage[0] for placed in result.kernels}:
        kernels = [placed for placed in result.kernels if placed.stage[0] == body]
        kept = [one for one in result.kept if one.body == body]
        for index, placed in enumerate(kernels):
            alive = [one for one in kept if one.first <= index <= one.last]
            for pad, need in placed.plan.footprint.items():
                held = max((one.offset + one.size_bytes for one in alive if one.pad == pad), default=0)
                assert need + held <= result.device.memories[pad].capacity
            for one, other in itertools.combinations(alive, 2):
                apart = one.offset + one.size_bytes <= other.offset or other.offset + other.size_bytes <= one.offset
                assert one.pad != other.pad or apart


def only(result):
    (placed,) = result.kernels
    return placed
