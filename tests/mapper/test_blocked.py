"""Blocked products: weights are there before they are used, buffers hold what they are said to, and the time is the simulated one."""

from __future__ import annotations

from fractions import Fraction
from itertools import accumulate
from math import ceil

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import workloads
from hw.devices import load
from mapper.blocked import Blocked
from mapper.compile import compile_graph, workload_name
from mapper.errors import MappingError
from mapper.kernels import Kernel, fuse
from mapper.mapping import Mapping, OperatorMapping
from mapper.nest import Nest
from mapper.pipeline import Loop, Tile, Tiles
from mapper.streamed import cut
from mapper.target import Target
from sim import simulate
from workloads.format import parse_format
from workloads.graph import Graph, Operator, Segment, Tensor

NPU = load("edge-npu").with_settings({"units.array.rows": 8, "units.array.columns": 8})
sizes = st.integers(64, 200), st.integers(1, 150), st.integers(1, 150)


def blocked(m: int, k: int, n: int) -> Blocked:
    return Blocked(Nest(Target(NPU), fuse(workloads.load(f"gemm:{m}x{k}x{n}:int8"))[0][1][0]))


def residual(m: int, k: int, n: int) -> Kernel:
    """A product whose results are added to something that is read, by the vector unit."""
    shapes = {"x": (m, k), "w": (n, k), "y": (m, n), "r": (m, n), "z": (m, n)}
    tensors = {name: Tensor(name, shape, parse_format("fp16"), "weight" if name == "w" else "activation") for name, shape in shapes.items()}
    product = Operator("product", "matmul", ("x", "w"), ("y",), {"batch": 1, "m": m, "n": n, "k": k})
    add = Operator("add", "elementwise", ("y", "r"), ("z",), {"elements": m * n, "operations": 1, "specials": 0}, function="add")
    ((_, (kernel,)),) = fuse(Graph("g", "single", 1, m, m, tensors, (Segment("all", 1, (product, add)),), ("x", "r"), ("z",)))
    return kernel


def pick(space: Blocked, number: int) -> OperatorMapping:
    candidates = list(space.candidates())
    return candidates[number % len(candidates)]


def written_out(tiles: Tiles) -> list[Tile]:
    out: list[Tile] = []
    for item in tiles:
        out += written_out(item.body) * item.count if isinstance(item, Loop) else [item]
    return out


def moved(tile: Tile, name: str) -> Fraction:
    return sum((Fraction(m.read) for stage in tile for job in stage if job.name == name for m in job.moves), Fraction(0))


@settings(max_examples=40, deadline=None)
@given(*sizes, st.integers(0, 10**6), st.booleans())
def test_operands_are_there_in_time_and_buffers_hold_what_they_are_said_to(m: int, k: int, n: int, number: int, epilogue: bool) -> None:
    """Tile i is loaded in step i, computed in step i + 1 and, if something is added behind it, that happens in step i + 2."""
    space = Blocked(Nest(Target(NPU), residual(m, k, n))) if epilogue else blocked(m, k, n)
    mapping = pick(space, number)
    tiles, needs = written_out(space.plan(mapping).tiles), space.footprint(mapping)
    rows, height, columns, depth = (mapping.integer(name) for name in ("rows", "m", "n", "k"))
    slabs = [(b, c, d) for b in cut(m, rows) for c in cut(n, columns) for d in cut(k, depth)]
    counts = [ceil(b / height) for b, _, _ in slabs]
    ends = list(accumulate(counts))
    assert len(tiles) == ends[-1]
    width = space.nest.b_size
    arrived = list(accumulate(moved(tile, "load b") for tile in tiles))
    wanted = list(accumulate(c * d * width for _, c, d in slabs))
    assert arrived[-1] == wanted[-1]
    for end, count, total in zip(ends, counts, wanted, strict=True):
        assert arrived[end - count] >= total  # whole when its first tile has been loaded
    for step in range(len(tiles)):
        used = sum(c * d * width for end, (_, c, d) in zip(ends, slabs, strict=True) if end < step)  # computed in step `end`
        assert arrived[step] - used <= needs["weights"]
        assert sum(moved(tile, "load a") for tile in tiles[max(0, step - 1) : step + 1]) <= needs["activations"]
    results = columns * min(rows, m) * 4
    waiting = 3 if epilogue else 2
    for step in range(len(tiles)):
        extra = sum(moved(tile, "load extra") for tile in tiles[max(0, step + 1 - waiting) : step + 1])
        assert results + extra <= needs["outputs"]


@settings(max_examples=25, deadline=None)
@given(*sizes, st.integers(0, 10**6), st.sampled_from(["shared", "per_operand"]), st.sampled_from(["counted", "excluded"]))
def test_predicted_and_simulated_times_are_equal_and_nothing_is_below_its_bound(
    m: int, k: int, n: int, number: int, sharing: str, fill: str
) -> None:
    device = NPU.with_settings({"memories.dram.sharing": sharing, "memories.dram.cold_fill": fill})
    graph = workloads.load(f"gemm:{m}x{k}x{n}:int8")
    space = Blocked(Nest(Target(device), fuse(graph)[0][1][0]))
    mapping = pick(space, number)
    compiled = compile_graph(graph, device, Mapping(device.name, workload_name(graph), (mapping,)))
    plan = compiled.kernels[0].plan
    assert plan.mapping == mapping
    assert space.bound(mapping) <= plan.latency_fs
    for engine in ("fast", "simpy"):
        assert simulate(compiled.program, engine).makespan == plan.latency_fs
    assert plan.effort["array"].macs == m * k * n
    rows, columns = mapping.integer("rows"), mapping.integer("n")
    expected = m * k * ceil(n / columns) + n * k * ceil(m / rows)
    assert plan.effort["dram"].read == expected
    assert plan.effort["dram"].written == m * n * space.nest.out_size


def test_even_loads_hide_the_memory_where_the_ones_of_a_step_do_not() -> None:
    """down_proj of Llama-2-7B for 2,048 tokens: with evenly spread loads the array computes for 95 % of the time."""
    device = load("edge-npu")
    (placed,) = compile_graph(workloads.load("gemm:2048x11008x4096"), device).kernels
    table = Nest(Target(device), placed.kernel).table
    fitting = table.fitting({name: memory.capacity for name, memory in device.memories.items()})
    products_fs = 2048 * 11008 * 4096 // (128 * 128) * 10**6
    assert placed.plan.mapping.family == "blocked"
    assert placed.plan.latency_fs <= products_fs / 0.95
    assert table.latencies(fitting).min() > products_fs / 0.92


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"rows": 0}, "rows: expected an integer of at least 1"),
        ({"rows": 101}, "rows: the operator has 100 of it, found a tile of 101"),
        ({"m": 65}, "m: the operator has 64 of it, found a tile of 65"),
        ({"n": 10**9}, "n: the operator has 80 of it"),
        ({"k": "all"}, "k: expected an integer"),
        ({"rows": 1, "m": 1, "n": 1, "k": 1}, "slabs of weights, more than 4096"),
    ],
)
def test_impossible_parameters_are_refused_with_the_reason(changes: dict[str, object], reason: str) -> None:
    parameters = {"rows": 64, "m": 32, "n": 40, "k": 16, **changes}
    graph = workloads.load("gemm:100x60x80:int8")
    mapping = OperatorMapping("gemm", "array", "blocked", parameters)  # type: ignore[arg-type]
    with pytest.raises(MappingError, match=reason):
        compile_graph(graph, NPU, Mapping(NPU.name, workload_name(graph), (mapping,)))
