"""No schedule moves fewer words than the lower bounds say, and the mapper's are within stated constants of them."""

from __future__ import annotations

from math import sqrt

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

import workloads
from hw.devices import load
from mapper.compile import compile_graph
from mapper.errors import CapacityError
from mapper.io_bounds import attention_words, gemm_compulsory, gemm_words
from mapper.kernels import fuse
from mapper.nest import Nest
from mapper.target import Target
from sim import simulate
from tests.mapper.test_laws import attention

ARRAY = load("systolic-32").with_settings({"units.array.rows": 8, "units.array.columns": 8})


def with_pads(capacity: int):
    return ARRAY.with_settings({f"memories.{pad}.capacity": capacity for pad in ("ifmap", "filter", "ofmap")})


@settings(max_examples=25, deadline=None)
@given(m=st.integers(1, 200), k=st.integers(1, 200), n=st.integers(1, 200), kib=st.sampled_from([1, 2, 8]), pick=st.integers(0, 10**6))
def test_no_mapping_of_a_product_moves_fewer_words_than_the_bound(m: int, k: int, n: int, kib: int, pick: int) -> None:
    """Words are bytes here. On the chip are three scratchpads and the 8 x 8 sums in the array."""
    device = with_pads(kib * 1024)
    space = Nest(Target(device), fuse(workloads.load(f"gemm:{m}x{k}x{n}:int8"))[0][1][0])
    fits = [
        (family, mapping)
        for family in (space, *space.others)
        for mapping in family.candidates()
        if all(need <= kib * 1024 for need in family.footprint(mapping).values())
    ]
    assume(fits)
    family, mapping = fits[pick % len(fits)]
    effort = family.plan(mapping).effort["dram"]
    assert effort.read + effort.written >= gemm_words(m, n, k, 3 * kib * 1024 + 64)


def test_what_is_simulated_moves_no_fewer_words_than_the_bound() -> None:
    for kib in (4, 16):
        compiled = compile_graph(workloads.load("gemm:256x256x256:int8"), with_pads(kib * 1024))
        simulate(compiled.program, "fast")
        read, written = compiled.program.traffic()["dram"]
        bound = gemm_words(256, 256, 256, 3 * kib * 1024 + 64)
        assert bound <= read + written


def test_the_bound_of_a_product_is_the_compulsory_traffic_when_everything_fits() -> None:
    assert gemm_words(10, 20, 30, 10**6) == gemm_compulsory(10, 20, 30) == 10 * 30 + 30 * 20 + 10 * 20
    assert gemm_words(1024, 1024, 1024, 1024) == 2 * 1024**3 // 32 - 2 * 1024


def test_the_bound_of_attention_has_the_two_regimes_that_meet_at_d_squared() -> None:
    """d^2 N^2 / S above and d N^2 / sqrt(S) below, within the constant 4 + 2 sqrt(2) of the derivation."""
    n, d = 1 << 16, 64
    for s in (d * d, 4 * d * d, 16 * d * d):
        assert n * n * d * d / s / (4 + 2 * sqrt(2)) * 0.99 <= attention_words(n * n, n, n, d, d, s) <= n * n * d * d / s / 4
    for s in (d * d // 16, d * d // 4):
        assert (
            n * n * d / sqrt(s) / (4 + 2 * sqrt(2)) * 0.99 <= attention_words(n * n, n, n, d, d, s) <= n * n * d / sqrt(s) / (2 * sqrt(2))
        )


NPU = load("edge-npu")


def npu(words: int):
    """An NPU whose three scratchpads hold so many 16-bit words in all."""
    return NPU.with_settings({f"memories.{pad}.capacity": words * 2 // 3 for pad in ("activations", "weights", "outputs")})


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize(("queries", "dim"), [(512, 64), (1000, 64), (1024, 128)])
@pytest.mark.parametrize("factor", [1, 2, 8, 32])
def test_no_schedule_of_attention_moves_fewer_words_than_the_bound(queries: int, dim: int, factor: int, causal: bool) -> None:
    words = factor * dim * dim
    workload = attention(1, 1, 1, queries, 0, dim, causal=causal, role="activation")
    try:
        compiled = compile_graph(workload, npu(words))
    except CapacityError:
        pytest.skip("nothing fits")
    read, written = compiled.program.traffic()["dram"]
    pairs = queries * (queries + 1) // 2 if causal else queries * queries
    assert (read + written) / 2 >= attention_words(pairs, queries, queries, dim, dim, words + 128 * 128)


FLASH = 60
"""Stated constant of streaming attention: words moved times S / (N d)^2, for S of 4 d^2 and more words in three equal scratchpads.

A block of q queries is loaded once and sees all keys and values: 2 d N words for each of N / q blocks, 2 (N d)^2 / (q d). The
outputs' scratchpad, a third of S, bounds q: it holds scores and probabilities of q x k twice (6 bytes for each of 2) and the
running output twice (4 bytes for each of 2), 12 q k + 8 q d bytes or (6 k + 4 d) q words; with k of at most d that is 10 q d, so
that q d >= S / 30 and 2 (N d)^2 / (q d) <= 60 (N d)^2 / S, before q is rounded to a size that is tried (at most a factor of 2)."""


@pytest.mark.parametrize(("queries", "dim"), [(2048, 64), (4096, 64), (4096, 128)])
@pytest.mark.parametrize("factor", [4, 8, 16, 32])
def test_streaming_attention_is_within_its_stated_constant_of_the_optimum(queries: int, dim: int, factor: int) -> None:
    words = factor * dim * dim
    workload = attention(1, 1, 1, queries, 0, dim, causal=False, role="activation")
    compiled = compile_graph(workload, npu(words))
    read, written = compiled.program.traffic()["dram"]
    moved = float(read + written) / 2 - 4 * queries * dim  # beyond what must move anyway
    assert moved * words / (queries * dim) ** 2 <= 2 * FLASH
