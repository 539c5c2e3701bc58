"""Costs of many mappings at once say what the plan of each says."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import workloads
from hw.device import Device
from hw.devices import load
from mapper.kernels import fuse
from mapper.nest import Nest
from mapper.objective import energy_pj
from mapper.plan import balanced_sizes
from mapper.target import Target
from workloads.format import parse_format
from workloads.graph import Graph, Operator, Segment, Tensor

WEIGHTS = {"units.array.dataflow": "weight_stationary", "memories.dram.sharing": "shared"}
DEVICES = {
    "output stationary": ("systolic-32", {}),
    "weight stationary": ("systolic-32", WEIGHTS),
    "overlapping folds": ("systolic-32", {"units.array.fold_overlap": "full"}),
    "without the first fill": ("systolic-32", {"memories.dram.cold_fill": "excluded"}),
    "npu": ("edge-npu", {}),
    "npu without the first fill": ("edge-npu", {"memories.dram.cold_fill": "excluded"}),
}


def device(name: str) -> Device:
    base, changes = DEVICES[name]
    return load(base).with_settings(changes)


def nest(target: Device, m: int, k: int, n: int) -> Nest:
    return Nest(Target(target), fuse(workloads.load(f"gemm:{m}x{k}x{n}:int8"))[0][1][0])


@pytest.mark.parametrize("name", DEVICES)
@settings(max_examples=8, deadline=None)
@given(m=st.integers(1, 700), k=st.integers(1, 900), n=st.integers(1, 700), seed=st.integers(0, 2**16))
def test_arrays_say_what_plans_say(name: str, m: int, k: int, n: int, seed: int) -> None:
    space = nest(device(name), m, k, n)
    table = space.table
    rows = np.sort(np.random.default_rng(seed).choice(table.size, min(12, table.size), replace=False))
    latencies, bounds, traffic, energies, needs = (
        table.latencies(rows),
        table.bounds(rows),
        table.traffic(rows),
        table.energies(rows),
        table.needs(),
    )
    for index, row in enumerate(rows.tolist()):
        mapping = space.mapping(row)
        plan = space.plan(mapping)
        assert plan.latency_fs == latencies[index], mapping
        assert bounds[index] <= plan.latency_fs, mapping
        assert traffic[index] == pytest.approx(plan.traffic("dram"), abs=1)
        assert {pad: int(need[row]) for pad, need in needs.items()} == space.footprint(mapping)
        if energies is not None:
            energy = energy_pj(space, plan)
            assert energy is not None
            assert energies[index] == pytest.approx(float(energy), rel=1e-9)


def test_products_of_two_sizes_and_their_epilogues_are_costed_alike() -> None:
    """100 rows over 8 experts: four of 13 and four of 12 rows, one stream of tiles."""
    fp16 = parse_format("fp16")
    sizes = {"rows": 100, "active": 8, "experts": 8, "top_k": 1, "n": 200, "k": 300}
    shapes = {"x": (100, 300), "w": (8, 200, 300), "y": (100, 200), "z": (100, 200)}
    tensors = {name: Tensor(name, shape, fp16, "weight" if name == "w" else "activation") for name, shape in shapes.items()}
    main = Operator("experts", "grouped_matmul", ("x", "w"), ("y",), sizes)
    behind = Operator("silu", "elementwise", ("y",), ("z",), {"elements": 20_000, "operations": 2, "specials": 1}, function="silu")
    graph = Graph("g", "single", 1, 100, 100, tensors, (Segment("all", 1, (main, behind)),), ("x",), ("z",))
    kernel = next(k for _, kernels in fuse(graph) for k in kernels if k.kind == "grouped_matmul")
    space = Nest(Target(load("edge-npu")), kernel)
    assert [p.m for p in space.products] == [13, 12]
    assert space.post_unit
    rows = np.arange(0, space.table.size, max(1, space.table.size // 60))
    for row, fs in zip(rows.tolist(), space.table.latencies(rows).tolist(), strict=True):
        assert space.plan(space.mapping(row)).latency_fs == fs, space.mapping(row)


@given(size=st.integers(1, 100_000), block=st.integers(1, 300))
def test_sizes_are_whole_blocks_and_each_is_the_smallest_of_its_number_of_tiles(size: int, block: int) -> None:
    sizes = balanced_sizes(size, block)
    assert sizes == sorted(set(sizes))
    assert sizes[-1] == size
    assert all(s == size or s % block == 0 for s in sizes)
    counts = [-(-size // s) for s in sizes]
    assert len(set(counts)) == len(counts)


def test_the_space_does_not_depend_on_capacities_or_speeds() -> None:
    changed = load("systolic-32").with_settings({"memories.ifmap.capacity": "1 KiB", "memories.dram.bandwidth": "1 GB/s", "clock": "2 GHz"})
    one, other = nest(load("systolic-32"), 300, 400, 500), nest(changed, 300, 400, 500)
    assert [str(c) for c in one.candidates()] == [str(c) for c in other.candidates()]
    assert [str(c) for c in one.others[0].candidates()] == [str(c) for c in other.others[0].candidates()]
