"""Products and attention on a GPU: the ranking of candidates is the exact one, and mechanisms do what they are for."""

from fractions import Fraction
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hw.devices import load
from hw.memory import Cache
from mapper.compile import choose_space
from mapper.kernels import fuse
from mapper.residency import Found
from mapper.search import search
from mapper.target import Target
from workloads import load as workload
from workloads import quantise

TARGETS = {name: Target(load(name)) for name in ("a100-80g", "h100-sxm")}
sizes = st.sampled_from([1, 7, 16, 64, 100, 257, 1024, 4096, 20000])


def space(target, m, k, n, weights=None, found=None):
    graph = workload(f"gemm:{m}x{k}x{n}:fp16")
    if weights:
        graph = quantise(graph, weights=weights)
    ((_, (kernel,)),) = fuse(graph)
    return choose_space(target, kernel, found or Found())[0]


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(sorted(TARGETS)), sizes, sizes, sizes, st.sampled_from([None, "int8", "int4-g128"]), st.fractions(0, 1))
def test_estimates_are_the_plans_and_the_ranking_finds_the_least(name, m, k, n, weights, share):
    found = space(TARGETS[name], m, k, n, weights, Found({"b": share}))
    candidates = list(found.candidates())
    exact = [found.plan(mapping).latency_fs for mapping in candidates]
    assert list(found.estimates) == pytest.approx(exact, rel=1e-9)
    fits = [
        time
        for mapping, time in zip(candidates, exact, strict=True)
        if all(need <= TARGETS[name].device.memories[pad].capacity for pad, need in found.footprint(mapping).items())
    ]
    assert search(found, "gemm").plan.latency_fs == min(fits)


def test_a_lone_thread_block_cannot_keep_an_sm_busy():
    core = load("a100-80g").units["tensor"]  # a lone block of 128 x 128 reaches half of the rate
    tile = core.tile_cycles(128, 128, 4096, "fp16")
    one, two = (core.round_cycles(together, tile, 128 * 128, 4096) for together in (1, 2))
    assert one == two == 2 * tile
    wide = core.tile_cycles(128, 256, 4096, "fp16")
    assert core.round_cycles(1, wide, 128 * 256, 4096) == wide


@pytest.mark.parametrize("name", sorted(TARGETS))
def test_converting_weights_costs_time_where_products_compute_and_saves_it_where_they_stream(name):
    many = [search(space(TARGETS[name], 8192, 4096, 8192, weights), "g").plan.latency_fs for weights in (None, "int8")]
    one = [search(space(TARGETS[name], 1, 8192, 8192, weights), "g").plan.latency_fs for weights in (None, "int8", "int4-g128")]
    assert many[0] < many[1]
    assert one[0] > one[1] > one[2]


@pytest.mark.parametrize("name", sorted(TARGETS))
def test_time_falls_steadily_with_the_share_of_the_weights_that_the_cache_holds(name):
    times = [search(space(TARGETS[name], 16, 1024, 2048, None, Found({"b": Fraction(i, 4)})), "g").plan.latency_fs for i in range(5)]
    assert all(later < earlier for earlier, later in pairwise(times))


def test_a_cache_finds_less_the_more_was_touched_since():
    perfect = Cache(capacity=1000, bandwidth=1)
    assert [perfect.found(d) for d in (1, 1000, 1001)] == [1, 1, 0]
    uneven = Cache(capacity=1000, bandwidth=1, reuse="0.5")
    assert [uneven.found(d) for d in (0, 250, 500, 1000)] == [1, Fraction(1, 2), 0, 0]
