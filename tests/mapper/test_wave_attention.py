"""Attention on a GPU: what thread blocks cost in closed form, in which order they are handed out, and that more work takes longer."""

from dataclasses import replace
from fractions import Fraction
from itertools import pairwise
from math import ceil

import pytest

from hw.devices import load
from hw.quantity import cycles_to_fs
from hw.work import Vector
from mapper.compile import choose_space
from mapper.kernels import fuse
from mapper.mapping import OperatorMapping
from mapper.search import search
from mapper.target import Target
from mapper.wave_attention import ROW_CYCLES, SOFTMAX_OPERATIONS
from tests.mapper.cases import attention

CARDS = ("a100-80g", "h100-sxm", "h200-sxm", "b200", "l40s", "a6000", "t4", "mi300x")
TARGETS = {name: Target(load(name)) for name in CARDS}
FAST = {"memories.hbm.bandwidth": "1000 TB/s", "memories.hbm.ramp": "0 ns", "memories.l2.bandwidth": "1000 TB/s"}
"""Memories that never limit, so that thread blocks do."""


def space(target, batch, kv_heads, group, queries, past, dim=128, **attributes):
    workload = attention(batch, kv_heads, group, queries, past, dim)
    (segment,) = workload.segments
    (operator,) = segment.operators
    stated = replace(operator, attributes={**operator.attributes, **attributes})
    ((_, (kernel,)),) = fuse(replace(workload, segments=(replace(segment, operators=(stated,)),)))
    return choose_space(target, kernel)[0]


def fs(target, *sizes, **attributes):
    return search(space(target, *sizes, **attributes), "attention").plan.latency_fs


def fast(name):
    return Target(load(name).with_settings(FAST))


def block_fs(target, rows, keys, dim=128):
    """Femtoseconds of both products and of the softmax of one block of keys, one after the other, and the shorter of the two."""
    core, device = target.unit("tensor"), target.device
    matrix = core.tile_cycles(rows, keys, dim, "fp16", full=True) + core.tile_cycles(rows, dim, keys, "fp16", full=True)
    unit = target.unit("vector")
    vector = unit.cycles(Vector(rows * keys, SOFTMAX_OPERATIONS, 1)) + unit.cycles(Vector(rows * dim, 2))
    parts = cycles_to_fs(matrix, device.unit_clock("tensor")), cycles_to_fs(vector, device.unit_clock("vector"))
    return sum(parts), min(parts)


def between_fs(target):
    """Between two thread blocks: cycles of their own, where the keys and queries are and the first keys."""
    return cycles_to_fs(target.unit("tensor").attention_overhead, target.device.unit_clock("tensor")) + 2 * target.memory.latency


def test_a_prompt_with_fewer_blocks_than_sms_takes_as_long_as_its_longest_block():
    """1,024 tokens of 4 heads on an A100: 64 blocks of 64 rows on 108 SMs, the last of which goes over 8 blocks of 128 keys alone."""
    target = fast("a100-80g")
    found = space(target, 1, 4, 1, 1024, 0)
    (mapping,) = found.candidates()
    assert (mapping.integer("q"), mapping.integer("k")) == (64, 128)
    assert found.bound(mapping) == sum(wait for _, wait in found.setup) + 8 * block_fs(target, 64, 128)[0] + between_fs(target)


def test_full_sms_run_at_the_rate_of_two_blocks_that_take_turns():
    """16,384 tokens of 64 heads on an A100: so many that a mean SM's work is all that counts, within the tail of one longest block."""
    target = fast("a100-80g")
    found = space(target, 1, 64, 1, 16384, 0)
    (mapping,) = found.candidates()
    both, shorter = block_fs(target, 64, 128)
    keys = sum(ceil(64 * (i + 1) / 128) for i in range(256))
    least = 64 * keys * (both - shorter * Fraction(1, 10)) / 108
    longest = 128 * both
    assert least < found.bound(mapping) < least * Fraction(101, 100) + 64 * 256 * between_fs(target) / 108 + 2 * longest


def test_blocks_handed_out_as_they_lie_end_with_a_long_one():
    """Twice as many heads of a prompt on a full H100 add the work of the SMs, not the tail again."""
    target = fast("h100-sxm")
    one, two, three = (search(space(target, 1, heads, 1, 4096, 0), "attention").plan.latency_fs for heads in (64, 128, 192))
    assert three - two == pytest.approx(two - one, rel=1e-3)
    tail = one - (two - one)
    both, shorter = block_fs(target, 128, 128)
    longest = 32 * (both - shorter / 10) + between_fs(target)
    setup = sum(wait for _, wait in space(target, 1, 64, 1, 4096, 0).setup)
    assert tail - setup == pytest.approx(longest / 2, rel=0.02)


@pytest.mark.parametrize("group", [1, 2, 8, 64])
def test_few_rows_take_as_long_as_those_that_four_warps_multiply(group):
    """On an A100 the heads of a group, 64 at most, are rows of one block: those that are missing are computed all the same."""
    target = fast("a100-80g")
    times = [space(target, 64, 8, g, 1, 4095, splits=1) for g in (group, 64)]
    bounds = [found.bound(next(found.candidates())) - sum(wait for _, wait in found.setup) for found in times]
    assert bounds[0] == bounds[1]


def test_each_row_of_a_group_costs_time_in_kernels_that_keep_few_rows():
    target = fast("h100-sxm")
    busy = []
    for group in (8, 16):
        found = space(target, 1, 8, group, 1, 63, splits=1)
        busy.append(found.bound(next(found.candidates())) - sum(wait for _, wait in found.setup))
    assert busy[1] - busy[0] >= cycles_to_fs(8 * ROW_CYCLES, target.device.unit_clock("tensor")) * 0.99


def test_an_8_bit_cache_is_loaded_by_bulk_copies_and_a_group_with_a_16_bit_one_in_parts_on_hopper_alone():
    """A thread block waits for each of the four 64 B parts of a key of 128 x 16 bits: for 256 keys four latencies of main memory."""
    waits = {}
    for name in ("h100-sxm", "b200"):
        found = space(TARGETS[name], 1, 8, 8, 1, 255, splits=1)
        waits[name] = found.style.loads
    assert waits == {"h100-sxm": 4, "b200": 0}
    assert space(TARGETS["h100-sxm"], 1, 8, 1, 1, 255).style.loads == 0  # a head by itself


@pytest.mark.parametrize("name", ["a100-80g", "h100-sxm"])
def test_each_part_of_a_split_is_waited_for_when_parts_are_merged(name):
    """Twice as many parts than there are blocks of keys leave each thread block one: what is left are the parts themselves."""
    target = fast(name)
    times = [fs(target, 1, 1, 8, 1, 255, splits=parts) for parts in (16, 32)]
    assert times[1] - times[0] >= 16 * target.device.memories["l2"].latency
    assert times[1] - times[0] <= 2 * 16 * target.device.memories["l2"].latency


def test_a_head_by_itself_leaves_the_matrix_unit_alone():
    found = space(TARGETS["h100-sxm"], 8, 8, 1, 1, 1023, packed=1)
    plan = search(found, "attention").plan
    jobs = {job.name: job for tile in plan.tiles for stage in tile for job in stage}
    assert jobs["q k, p v"].cycles == 0
    assert jobs["softmax"].cycles > 0


def test_keys_and_values_in_the_same_place_are_read_once():
    queries, cached = 64 * 8 * 128 * 2, 64 * 8 * 8192 * 2 * 128 * 2  # bytes of 64 sequences of 8 heads
    for stated, expected in (({}, cached), ({"aliased": 1}, cached // 2)):
        found = space(TARGETS["h100-sxm"], 64, 8, 1, 1, 8191, splits=1, **stated)
        plan = found.plan(next(found.candidates()))
        read = sum(move.read for tile in plan.tiles for stage in tile for job in stage for move in job.moves if move.memory == "hbm")
        assert read == expected + queries


# More is never faster -----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", CARDS)
@pytest.mark.parametrize("dim", [64, 96, 128, 192, 256])
def test_a_longer_context_is_never_faster(name, dim):
    target = TARGETS[name]
    for batch, kv_heads, group in ((1, 32, 1), (1, 8, 4), (16, 2, 16)):
        decode = [fs(target, batch, kv_heads, group, 1, keys - 1, dim) for keys in (2, 64, 100, 129, 300, 1000, 1024, 4096, 32768, 100000)]
        prompt = [fs(target, batch, kv_heads, group, tokens, 0, dim) for tokens in (16, 64, 65, 128, 129, 300, 1000, 2048, 4096)]
        for times in (decode, prompt):
            assert all(less <= more for less, more in pairwise(times))


@pytest.mark.parametrize("name", CARDS)
def test_more_sequences_and_more_heads_are_never_faster(name):
    target = TARGETS[name]
    for queries, past in ((1, 4095), (1024, 0)):
        by_batch = [fs(target, batch, 8, 4, queries, past) for batch in (1, 2, 3, 16, 50)]
        by_group = [fs(target, 4, 8, group, queries, past) for group in (1, 2, 4, 8, 16)]
        for times in (by_batch, by_group[1:]):  # a group of one is no group: another kernel
            assert all(less <= more for less, more in pairwise(times))


@pytest.mark.parametrize("name", CARDS)
def test_more_bandwidth_and_more_shared_memory_are_never_slower(name):
    device = load(name)
    main = device.main_memory
    for path, values in (
        (f"memories.{main}.bandwidth", ["100 GB/s", "300 GB/s", "1 TB/s", "3 TB/s", "8 TB/s"]),
        ("memories.shared.capacity", ["48 KiB", "64 KiB", "96 KiB", "128 KiB", "164 KiB", "228 KiB"]),
    ):
        targets = [Target(device.with_settings({path: value})) for value in values]
        for sizes in ((1, 8, 4, 1, 4095), (16, 32, 1, 1, 1023), (2, 8, 4, 1500, 0)):
            times = [fs(target, *sizes) for target in targets]
            assert all(more <= less for less, more in pairwise(times)), (path, sizes)


def test_a_mapping_of_other_sizes_is_planned_as_it_says():
    found = space(TARGETS["a100-80g"], 2, 8, 4, 1000, 0)
    for k in (16, 64, 128, 256):
        mapping = OperatorMapping("attention", "tensor", "wave", {"q": 128, "heads": 1, "k": k, "split": 1})
        assert found.bound(mapping) <= found.plan(mapping).latency_fs
