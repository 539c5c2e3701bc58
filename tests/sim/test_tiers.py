"""Residency in a fast tier: policies, pinning, write-back only of what was written, and conservation of bytes."""

from __future__ import annotations

import numpy as np
import pytest

from hw.errors import HardwareError
from sim.tiers import Move, Stored, Tier, balanced_lock, moving_fs


def item(name: str, size: int = 10, *, read_only: bool = True) -> Stored:
    return Stored(name, size, read_only)


def loads(tier: Tier, names: str) -> str:
    return "".join(name for name in names if any(move.kind == "load" for move in tier.touch(item(name))))


def test_lru_evicts_what_was_used_longest_ago() -> None:
    tier = Tier("hbm", 30)
    assert loads(tier, "abcad") == "abcd"
    assert tier.resident == ("c", "a", "d")


def test_lfu_keeps_what_is_used_often() -> None:
    tier = Tier("hbm", 30, policy="lfu")
    assert loads(tier, "aaabbcd") == "abcd"  # c, used once, makes room for d
    assert set(tier.resident) == {"a", "b", "d"}


def test_a_window_drops_what_was_not_used_in_its_steps() -> None:
    tier = Tier("dram", 100, policy="window", window=2)
    for names in ("ab", "bc", "cd"):
        for name in names:
            tier.touch(item(name))
        dropped = [move.name for move in tier.advance()]
        assert dropped == {"ab": [], "bc": [], "cd": ["a"]}[names]
    assert set(tier.resident) == {"b", "c", "d"}


def test_what_is_read_only_is_dropped_and_what_was_written_goes_home() -> None:
    tier = Tier("hbm", 20)
    cache = item("kv", read_only=False)
    tier.touch(item("w"))
    tier.touch(cache, write=True)
    assert tier.touch(item("x")) == [Move("drop", "w", 10), Move("load", "x", 10)]
    assert tier.touch(item("y")) == [Move("write_back", "kv", 10), Move("load", "y", 10)]
    tier.touch(cache)  # read back, not written since
    assert tier.touch(item("z"))[0].kind == "drop"
    with pytest.raises(HardwareError, match="'w' is read only"):
        tier.touch(item("w"), write=True)


def test_flush_writes_back_once_and_keeps_all() -> None:
    tier = Tier("hbm", 20)
    tier.touch(item("kv", read_only=False), write=True)
    assert tier.flush() == [Move("write_back", "kv", 10)]
    assert tier.flush() == []
    assert tier.resident == ("kv",)


def test_pinned_objects_stay_and_what_cannot_fit_beside_them_is_refused() -> None:
    tier = Tier("hbm", 30)
    tier.pin(item("router", 15))
    assert loads(tier, "abcabc") == "abcabc"  # one at a time beside the router
    assert "router" in tier.resident
    with pytest.raises(HardwareError, match=r"hbm: 'big' needs 20 B; 15 B of 30 B are pinned: 5 B missing"):
        tier.touch(item("big", 20))


@pytest.mark.parametrize("policy", ["lru", "lfu"])
def test_bytes_in_equal_bytes_out_plus_bytes_held(policy: str) -> None:
    rng = np.random.default_rng(2)
    tier = Tier("hbm", 1000, policy=policy)
    sizes = rng.integers(1, 200, 50)
    moved = {"load": 0, "drop": 0, "write_back": 0}
    for i in rng.integers(0, 50, 2000).tolist():
        for move in tier.touch(item(f"o{i}", int(sizes[i]), read_only=i % 2 == 0), write=i % 2 == 1 and i % 3 == 0):
            moved[move.kind] += move.size_bytes
        assert tier.used <= tier.capacity
    assert moved["load"] == moved["drop"] + moved["write_back"] + tier.used


def test_loads_and_write_backs_overlap_only_on_a_duplex_link() -> None:
    moves = [Move("write_back", "a", 10), Move("drop", "b", 99), Move("load", "c", 30)]
    assert moving_fs(moves, lambda size: size, lambda size: 2 * size) == 30
    assert moving_fs(moves, lambda size: size, lambda size: 2 * size, duplex=False) == 50


def test_balanced_locking_beats_locking_whole_layers() -> None:
    """32 layers of 400 MB at 2 GB/s, 80 ms of compute each, 40 % of all bytes locked: 3840 ms instead of 4864 ms a token."""
    size, compute, bandwidth = 400_000_000, 80 * 10**12, 2 * 10**9
    budget = 32 * size * 4 // 10
    locked = balanced_lock([size] * 32, budget, [compute] * 32, bandwidth)
    assert sum(locked) == budget

    def token_ms(kept: list[int]) -> float:
        return sum(max(compute, (size - k) * 10**15 // bandwidth) for k in kept) * 1e-12

    assert token_ms(locked) == pytest.approx(32 * 120)
    whole = [size] * 12 + [budget - 12 * size] + [0] * 19
    assert token_ms(whole) > token_ms(locked) * 1.2
    assert balanced_lock([size] * 2, 10**12, [compute] * 2, bandwidth) == [size - 160_000_000] * 2  # more would not help


@pytest.mark.parametrize(("fields", "message"), [
    ({"policy": "lur"}, "unknown policy 'lur'.*did you mean `lru`"),
    ({"policy": "window"}, "a window of at least 1 step"),
    ({"capacity": 0}, "a capacity of at least 1 B"),
])  # fmt: skip
def test_a_bad_tier_is_refused(fields: dict[str, object], message: str) -> None:
    with pytest.raises(HardwareError, match=message):
        Tier(**{"name": "t", "capacity": 10, **fields})  # type: ignore[arg-type]


def test_a_negative_budget_is_refused() -> None:
    with pytest.raises(HardwareError, match="no negative budget"):
        balanced_lock([1], -1, [0], 1)
