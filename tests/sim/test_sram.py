"""Scratchpads: bank conflicts in cycles, and an allocator that refuses with the missing bytes."""

from __future__ import annotations

import numpy as np
import pytest

from hw.errors import HardwareError
from sim.sram import Allocator, SramBanks


@pytest.mark.parametrize(("stride_words", "cycles"), [(0, 1), (1, 1), (2, 2), (4, 4), (3, 1), (32, 32), (33, 1), (8, 8)])
def test_a_stride_of_32_lanes_over_32_banks_conflicts_by_its_common_divisor(stride_words: int, cycles: int) -> None:
    sram = SramBanks(banks=32, word_bytes=4)
    assert sram.cycles(np.arange(32) * stride_words * 4) == cycles  # gcd(stride, 32), broadcast for stride 0
    assert sram.strided_cycles(32, stride_words * 4) == cycles


@pytest.mark.parametrize("ports", [1, 2, 4])
def test_ports_divide_conflicts(ports: int) -> None:
    assert SramBanks(banks=8, word_bytes=8, read_ports=ports).cycles(np.arange(8) * 64) == 8 // ports


def test_random_accesses_agree_with_counting_by_hand() -> None:
    rng = np.random.default_rng(3)
    sram = SramBanks(banks=16, word_bytes=8, read_ports=2)
    for _ in range(50):
        addresses = rng.integers(0, 4096, 24)
        words = {int(a) // 8 for a in addresses}
        assert sram.cycles(addresses) == max(-(-sum(w % 16 == b for w in words) // 2) for b in range(16))


def test_reads_and_writes_take_turns_only_on_shared_ports() -> None:
    reads, writes = np.array([0, 128]), np.array([256, 384, 512])
    assert SramBanks(banks=16, word_bytes=8).cycles(reads, writes) == 3
    assert SramBanks(banks=16, word_bytes=8, shared_ports=True).cycles(reads, writes) == 5
    assert SramBanks(banks=16, word_bytes=8).cycles(np.array([], np.int64)) == 0


def test_writes_of_one_word_take_turns_and_reads_of_it_do_not() -> None:
    sram = SramBanks(banks=4, word_bytes=4)
    same = np.zeros(5, np.int64)
    assert sram.cycles(same) == 1
    assert sram.cycles(np.array([], np.int64), same) == 5


def test_bytes_are_conserved_over_allocations() -> None:
    memory = Allocator("sram", 1024, align=64)
    assert memory.allocate("a", 100) == 0
    assert memory.allocate("b", 64) == 128
    assert (memory.used, memory.free_bytes) == (192, 832)
    memory.free("a")
    assert memory.allocate("c", 128) == 0
    assert memory.address("c") == 0
    assert memory.peak == 192
    memory.free("b")
    memory.free("c")
    assert memory.free_bytes == 1024


def test_what_does_not_fit_is_refused_with_the_missing_bytes() -> None:
    memory = Allocator("sram", 1024)
    memory.allocate("weights", 900)
    with pytest.raises(
        HardwareError, match=r"sram: 'kv' needs 200 B, 124 B of 1024 B are free: 76 B missing; largest holders: weights \(900 B\)"
    ):
        memory.allocate("kv", 200)


def test_free_pieces_that_are_too_small_are_told_apart_from_a_full_memory() -> None:
    memory = Allocator("sram", 300)
    for key in "abc":
        memory.allocate(key, 100)
    memory.free("a")
    memory.free("c")
    with pytest.raises(HardwareError, match="needs 150 B in one piece; 200 B are free, but the largest piece is 100 B: 50 B missing"):
        memory.allocate("d", 150)


def test_misuse_is_named() -> None:
    memory = Allocator("sram", 300)
    memory.allocate("a", 10)
    with pytest.raises(HardwareError, match="'a' is held already"):
        memory.allocate("a", 10)
    with pytest.raises(HardwareError, match="'b' holds nothing; held: a"):
        memory.free("b")
    with pytest.raises(HardwareError, match="'b' holds nothing"):
        memory.address("b")
    with pytest.raises(HardwareError, match="asks for 0 B"):
        memory.allocate("b", 0)
    with pytest.raises(HardwareError, match="capacity and an alignment"):
        Allocator("sram", 0)
    with pytest.raises(HardwareError, match="banks: expected a power of two, found 3"):
        SramBanks(banks=3, word_bytes=4)
    with pytest.raises(HardwareError, match="at least one read and one write port"):
        SramBanks(banks=2, word_bytes=4, read_ports=0)
    with pytest.raises(HardwareError, match=r"stride: expected a multiple of the word \(4 B\), found 6 B"):
        SramBanks(banks=2, word_bytes=4).strided_cycles(4, 6)
