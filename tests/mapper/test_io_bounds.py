"""No schedule moves fewer words than the lower bounds say, and the mapper's are within stated constants of them."""

from __future__ import annotations

from math import sqrt

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

import workloads
from hw.devices import load
from mapper.compile import compile_graph
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
    """An NPU whose three scratchpads hold so many 16-bit words in all, and whose memory is so slow that traffic is what counts."""
    pads = {f"memories.{pad}.capacity": words * 2 // 3 for pad in ("activations", "weights", "outputs")}
    return NPU.with_settings({**pads, "memories.dram.bandwidth": "1 GB/s"})


def moved(queries: int, dim: int, words: int, causal: bool) -> float:
    """Words that the mapper's attention moves."""
    compiled = compile_graph(attention(1, 1, 1, queries, 0, dim, causal=causal, role="activation"), npu(words))
    read, written = compiled.program.traffic()["dram"]
    return float(read + written) / 2


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize(("queries", "dim", "factor"), [(256, 64, 0.5), (300, 64, 1), (512, 64, 8), (512, 128, 4), (512, 64, 32)])
def test_no_schedule_of_attention_moves_fewer_words_than_the_bound(queries: int, dim: int, factor: float, causal: bool) -> None:
    words = int(factor * dim * dim)
    pairs = queries * (queries + 1) // 2 if causal else queries * queries
    on_chip = words + 128 * 128  # the array keeps sums or weights
    assert moved(queries, dim, words, causal) >= attention_words(pairs, queries, queries, dim, dim, on_chip)


FLASH = 65
"""Stated constant of attention in a capacity of S >= d^2 words, in three equal scratchpads: words moved times S / (N d)^2.

A block of q queries is loaded once and sees all keys and values: 2 d N words for each of N / q blocks, 2 (N d)^2 / (q d) in all. The
outputs' scratchpad, a third of S, bounds q: scores and probabilities of q x k twice (2 x 6 bytes) and the running output twice
(2 x 4 bytes) are 12 q k + 8 q d bytes, 8.75 q d with the smallest k = 4 and d = 64. In 2 S / 3 bytes that is q d >= S / 13.2, half of
it with sizes that double: 2 (N d)^2 / (q d) <= 53 (N d)^2 / S, and at most 4 more for what must move anyway. The keys of a block
need 64 d bytes in 2 S / 3, S >= 96 d; below that (1.5 d^2 for d = 64) scores go through memory, with 53 (see there) times
sqrt(S) / d <= 1.23 in this unit: 65."""

SCORED = 53
"""Stated constant below d^2 words: words moved times sqrt(S) / (N^2 d).

Blocks of b queries, b keys and b elements: 2 N^2 d / b words of queries and keys, N^2 d / b of values, scores of two words written
once and read d / b times: 5 N^2 d / b + 2 N^2. Of the outputs' third of S words four blocks of four-byte scores need 16 b^2 bytes and
probabilities with the output at most 24 b^2, so b = sqrt(S / 36) at most is enough; with b = sqrt(S / 24) for the larger of
them after rounding, 5 sqrt(24) + 2 = 26.5, and twice that for sizes that double."""


@pytest.mark.parametrize(("queries", "dim", "factor"), [(1024, 64, 1), (1024, 64, 4), (2048, 64, 8), (2048, 64, 32), (2048, 128, 4)])
def test_attention_is_within_its_stated_constant_of_the_optimum_on_large_chips(queries: int, dim: int, factor: int) -> None:
    words = factor * dim * dim
    assert moved(queries, dim, words, causal=False) * words / (queries * dim) ** 2 <= FLASH


@pytest.mark.parametrize(("queries", "dim", "factor"), [(512, 64, 1), (512, 64, 0.25), (512, 128, 0.25), (512, 128, 0.5)])
def test_attention_is_within_its_stated_constant_of_the_optimum_on_small_chips(queries: int, dim: int, factor: float) -> None:
    words = int(factor * dim * dim)
    assert moved(queries, dim, words, causal=False) * sqrt(words) / (queries**2 * dim) <= SCORED


def test_below_d_squared_scores_in_memory_move_fewer_words_than_streaming_would() -> None:
    """d = 128 and S = 8192 words: d^2 / S = 2 against d / sqrt(S) = 1.41, in units of N^2. Streaming finds no room at all here."""
    compiled = compile_graph(attention(1, 1, 1, 512, 0, 128, causal=False, role="activation"), npu(8192))
    assert compiled.kernels[0].plan.mapping.family == "scored"
