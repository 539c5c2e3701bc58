"""Attention whose scores go through main memory: predicted is simulated, all products are computed, all bytes move."""

from __future__ import annotations

from math import ceil

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hw.devices import load
from mapper.attention import Flash
from mapper.compile import compile_graph, workload_name
from mapper.kernels import fuse
from mapper.mapping import Mapping, OperatorMapping
from mapper.target import Target
from sim import simulate
from tests.mapper.test_laws import attention

NPU = load("edge-npu")


@settings(max_examples=25, deadline=None)
@given(
    queries=st.integers(2, 60),
    past=st.integers(0, 40),
    group=st.integers(1, 3),
    dim=st.sampled_from([8, 24, 64]),
    causal=st.booleans(),
    pick=st.integers(0, 10**6),
)
def test_predicted_and_simulated_times_are_equal_and_every_score_is_written_and_read(
    queries: int, past: int, group: int, dim: int, causal: bool, pick: int
) -> None:
    """A score is written once and read for every slab of the values; queries come again for every block of keys when their slabs do
    not stay."""
    graph = attention(1, 2, group, queries, past, dim, causal=causal)
    kernel = fuse(graph)[0][1][0]
    space = Flash(Target(NPU), kernel).others[0]
    candidates = list(space.candidates())
    mapping = candidates[pick % len(candidates)]
    plan = space.plan(mapping)
    assert space.bound(mapping) <= plan.latency_fs
    compiled = compile_graph(graph, NPU, Mapping(NPU.name, workload_name(graph), (mapping,)))
    assert {simulate(compiled.program, engine).makespan for engine in ("fast", "simpy")} == {plan.latency_fs}
    q, k, d = (int(mapping.parameters[name]) for name in "qkd")
    blocks = space.blocks.rows_and_keys(min(q, queries))
    scores = 2 * group * sum(rows * keys for rows, keys in blocks)
    keys_moved = 2 * sum(keys for _, keys in blocks)
    again = sum(rows * ceil(keys / k) for rows, keys in blocks) if d < dim else queries
    read = 4 * scores * ceil(dim / d) + 2 * (2 * dim * keys_moved + 2 * group * dim * again)
    assert plan.effort["dram"].read == read
    assert plan.effort["dram"].written == 4 * scores + 2 * 2 * group * dim * queries
    assert plan.effort["array"].macs == 2 * dim * scores


def test_one_query_has_no_such_mapping() -> None:
    assert Flash(Target(NPU), fuse(attention(1, 1, 4, 1, 100, 64))[0][1][0]).others == ()


@pytest.mark.parametrize("name", ["q", "k", "d"])
def test_impossible_sizes_are_refused(name: str) -> None:
    space = Flash(Target(NPU), fuse(attention(1, 1, 1, 16, 0, 64))[0][1][0]).others[0]
    with pytest.raises(ValueError, match=f"{name}: expected an integer of at least 1"):
        space.plan(OperatorMapping("attention", "array", "scored", {"q": 4, "k": 4, "d": 4, name: 0}))
