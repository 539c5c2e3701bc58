"""Caches: exact LRU against a plain model, and the analytic model against the exact one."""

from __future__ import annotations

from collections import OrderedDict

import numpy as np
import pytest

from hw.errors import HardwareError
from sim.cache import LruCache, hit_rate, reuse_distances, survival


def plain_lru(addresses: list[int], writes: list[bool], capacity: int, line: int, ways: int) -> tuple[int, int, int]:
    sets: list[OrderedDict[int, bool]] = [OrderedDict() for _ in range(capacity // (line * ways))]
    hits = misses = back = 0
    for address, write in zip(addresses, writes, strict=True):
        tag = address // line
        held = sets[tag % len(sets)]
        if tag in held:
            hits += 1
            held[tag] |= write
            held.move_to_end(tag)
        else:
            misses += 1
            if len(held) == ways:
                back += held.popitem(last=False)[1]
            held[tag] = write
    return hits, misses, back


@pytest.mark.parametrize(("capacity", "line", "ways"), [(4096, 64, 1), (4096, 64, 4), (8192, 128, 16), (4096, 64, 64)])
def test_the_cache_is_lru_and_counts_what_it_writes_back(capacity: int, line: int, ways: int) -> None:
    rng = np.random.default_rng(11)
    addresses, writes = rng.integers(0, 3 * capacity, 4000), rng.random(4000) < 0.3
    count = LruCache(capacity, line, ways).access(addresses, writes)
    assert (count.hits, count.misses, count.writebacks) == plain_lru(addresses.tolist(), writes.tolist(), capacity, line, ways)


def test_state_stays_between_calls_and_flush_empties() -> None:
    cache = LruCache(4096, 64, 4)
    addresses = np.arange(0, 4096, 64)
    assert cache.access(addresses, True).misses == 64
    assert cache.access(addresses).hit_rate == 1
    assert cache.flush() == 64
    assert cache.access(addresses).hits == 0
    assert cache.flush() == 0


def test_a_loop_one_line_larger_than_a_full_lru_cache_never_hits() -> None:
    loop = np.tile(np.arange(65) * 64, 10)
    assert LruCache(4096, 64, 64).access(loop).hits == 0
    assert hit_rate(reuse_distances(loop, 64), 1, 64) == 0
    fits = np.tile(np.arange(64) * 64, 10)
    assert hit_rate(reuse_distances(fits, 64), 1, 64) == LruCache(4096, 64, 64).access(fits).hit_rate == 0.9


def test_reuse_distances_count_distinct_lines_in_between() -> None:
    assert reuse_distances(np.array([0, 64, 128, 64, 0, 0, 4]), 64).tolist() == [-1, -1, -1, 1, 2, 0, 0]


@pytest.mark.parametrize("skew", [0.0, 0.8, 1.2])
def test_one_set_is_exact_for_the_analytic_model(skew: float) -> None:
    rng = np.random.default_rng(5)
    weights = np.arange(1, 513) ** -skew
    addresses = rng.choice(512, 20_000, p=weights / weights.sum()) * 64
    cache = LruCache(128 * 64, 64, 128)
    assert hit_rate(reuse_distances(addresses, 64), 1, 128) == pytest.approx(cache.access(addresses).hit_rate, abs=1e-12)


@pytest.mark.parametrize("ways", [1, 2, 8, 16])
@pytest.mark.parametrize("skew", [0.0, 0.8, 1.2])
def test_the_analytic_model_is_within_two_points_of_set_associative_caches(ways: int, skew: float) -> None:
    """Lines at random places: popular ones too, as the model assumes."""
    rng = np.random.default_rng(7)
    weights = np.arange(1, 4097) ** -skew
    places = rng.permutation(1 << 20)[:4096]
    addresses = places[rng.choice(4096, 100_000, p=weights / weights.sum())] * 64
    cache = LruCache(1024 * 64, 64, ways)
    assert hit_rate(reuse_distances(addresses, 64), cache.sets, ways) == pytest.approx(cache.access(addresses).hit_rate, abs=0.02)


def test_survival_falls_with_distance_and_grows_with_ways() -> None:
    curve = [survival(d, 64, 8) for d in range(0, 2000, 50)]
    assert curve[0] == 1
    assert curve == sorted(curve, reverse=True)
    assert survival(600, 64, 16) > survival(600, 64, 8) > survival(600, 64, 4)
    assert survival(-1, 64, 8) == 0
    assert survival(1, 2, 1) == pytest.approx(0.5)  # one other line, one of two sets


@pytest.mark.parametrize(("capacity", "line", "ways", "message"), [
    (4096, 48, 4, "line_bytes: expected a power of two, found 48"),
    (4000, 64, 4, "a multiple of line x ways = 256 B, found 4000 B"),
    (768, 64, 4, "are 3 sets, expected a power of two"),
    (4096, 64, 0, "expected a multiple of line x ways"),
])  # fmt: skip
def test_a_geometry_of_no_whole_sets_is_refused(capacity: int, line: int, ways: int, message: str) -> None:
    with pytest.raises(HardwareError, match=message):
        LruCache(capacity, line, ways)


def test_bad_accesses_are_refused() -> None:
    with pytest.raises(HardwareError, match="addresses of at least 0, found -64"):
        LruCache(4096, 64, 4).access(np.array([-64]))
    with pytest.raises(HardwareError, match="no access"):
        hit_rate(np.array([], np.int64), 1, 1)
