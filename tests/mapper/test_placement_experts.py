"""Experts divided between units, and memory whose sections serve one side at a time."""

import itertools
import json
import random

import pytest

from hw import Device, HardwareError
from hw.devices import load as device_called
from mapper import Mapping, MappingError, compile_graph
from mapper.cut import with_experts
from mapper.divide import by_rule, cuts, groups, optimum
from mapper.kernels import fuse
from tests.mapper.cases import attention, checked, experts, near_memory, only, product
from workloads import WorkloadError, cost
from workloads.experts import tokens_of, with_tokens

HISTOGRAM = (1, 1, 2, 2, 3, 5, 8, 42)


def routed(tokens=HISTOGRAM, k=1024, n=2048):
    return with_tokens(experts(sum(tokens), len(tokens), len(tokens), k, n), tokens)


def in_sections(count, base=None):
    """A device (by default a GPU with units near its memory) whose memory serves both sides from so many sections."""
    description = (base or device_called("duplex")).to_dict()
    (way,) = (link for link in description["links"] if link.get("access") == "concurrent")
    way["sections"] = count
    return Device.from_dict(description)


# Histograms -------------------------------------------------------------------------------------------------------------------
def test_a_histogram_changes_which_expert_has_the_rows_and_nothing_else():
    even, uneven = experts(64, 8, 8, 1024, 2048), routed()
    (before,), (after,) = (graph.segments[0].operators for graph in (even, uneven))
    assert tokens_of(before) == (8,) * 8
    assert tokens_of(after) == HISTOGRAM
    assert cost.macs(before) == cost.macs(after)
    ((_, (kernel,)),) = fuse(routed((0, 0, 64, 0)))
    weights = kernel.input(1)
    assert weights.elements * 4 == weights.total  # one expert of four is read


@pytest.mark.parametrize(
    ("tokens", "message"),
    [
        ((1, 2), "expected at most 8 numbers that add up to 64 rows .*found 2 that add up to 3"),
        ((1,) * 64, "expected at most 8 numbers"),
        ((-1, 65), "expected numbers of at least 0"),
        ((), "expected numbers of at least 0 and one above, found"),
    ],
)
def test_a_histogram_of_another_size_is_refused(tokens, message):
    with pytest.raises(WorkloadError, match=message):
        with_tokens(experts(64, 8, 8, 16, 16), tokens)


def test_a_graph_without_experts_takes_no_histogram():
    with pytest.raises(WorkloadError, match="has no mixture of experts"):
        with_tokens(product(8, 8, 8), (1, 2))


def test_a_damaged_histogram_is_refused():
    (operator,) = routed().segments[0].operators
    damaged = {**operator.attributes, "tokens_7": 43}
    with pytest.raises(WorkloadError, match="expected 8 numbers that add up to 64 rows, found 8 that add up to 65"):
        tokens_of(type(operator)(operator.name, operator.kind, operator.inputs, operator.outputs, damaged))


@pytest.mark.parametrize("mine", [(1, 1), (42,), (2, 3, 8), HISTOGRAM[:7]])
def test_two_divisions_of_experts_are_the_whole(mine):
    ((_, (kernel,)),) = fuse(routed())
    rest = list(HISTOGRAM)
    for count in mine:
        rest.remove(count)
    first, second = with_experts(kernel, mine), with_experts(kernel, rest)
    halves = [(*part.reads, *part.writes) for part in (first, second, kernel)]
    assert tokens_of(first.operator) == mine
    assert cost.macs(first.operator) + cost.macs(second.operator) == cost.macs(kernel.operator)
    for one, other, whole in zip(*halves, strict=True):
        assert one.size + other.size == whole.size


# Rule and optimum ---------------------------------------------------------------------------------------------------------------
def far(count):
    return 100 + count


def near(count):
    return 20 + 12 * count


def time(division):
    return max(sum(map(far, division[0])), sum(map(near, division[1])))


def test_the_rule_moves_the_smallest_experts_for_as_long_as_that_helps():
    items = groups(HISTOGRAM, 1)
    found = by_rule(items, far, near)
    prefixes = [(HISTOGRAM[count:], HISTOGRAM[:count]) for count in range(9)]
    assert time(found) == min(map(time, prefixes))
    assert found in prefixes


@pytest.mark.parametrize("seed", range(20))
def test_the_optimum_is_that_of_all_divisions(seed):
    rng = random.Random(seed)
    tokens = tuple(sorted(rng.randint(1, 40) for _ in range(rng.randint(1, 9))))
    costs = [{count: rng.randint(1, 500) for count in set(tokens)} for _ in range(2)]
    first, second = (table.__getitem__ for table in costs)
    there, here = optimum(groups(tokens, 1), first, second)
    assert tuple(sorted(there + here)) == tokens
    every = []
    for sides in itertools.product((0, 1), repeat=len(tokens)):
        sums = [0, 0]
        for count, side in zip(tokens, sides, strict=True):
            sums[side] += costs[side][count]
        every.append(max(sums))
    assert max(sum(map(first, there)), sum(map(second, here))) == min(every)
    a, b = by_rule(groups(tokens, 1), first, second)
    assert max(sum(map(first, there)), sum(map(second, here))) <= max(sum(map(first, a)), sum(map(second, b)))


@pytest.mark.parametrize("tokens", [HISTOGRAM, (8,) * 8, (1,) * 7 + (200,), (64,)])
@pytest.mark.parametrize("ways", [1, 4])
def test_the_best_division_is_no_slower_than_the_rule_and_that_no_slower_than_one_unit(tokens, ways):
    device = in_sections(ways)
    results = [compile_graph(routed(tokens), device, co_processing=how) for how in (True, "rule", False)]
    best, rule, alone = map(checked, results)
    assert best <= rule <= alone
    for result in results:
        again = compile_graph(routed(tokens), device, Mapping.loads(result.mapping.dumps()))
        assert again.mapping.dumps() == result.mapping.dumps()
        assert json.dumps(again.program.to_json()) == json.dumps(result.program.to_json())


def test_by_the_rule_the_unit_near_memory_has_the_experts_with_fewest_tokens():
    result = compile_graph(routed((1,) * 7 + (200,)), in_sections(1), co_processing="rule")
    parts = {part.unit: [int(count) for count in part.placement["tokens"].split()] for part in only(result).plan.mapping.parts}
    assert max(parts["near"]) <= min(parts["tensor"])
    assert sorted(parts["near"] + parts["tensor"]) == [1] * 7 + [200]


# Sections of memory ---------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("ways", [2, 4, 8])
@pytest.mark.parametrize(
    "workload",
    [product(12, 1024, 4096), attention(16, 4, 2, 1, 1000, 128), routed()],
    ids=["product", "attention", "experts"],
)
def test_units_that_share_a_kernel_use_whole_sections(ways, workload):
    result = compile_graph(workload, in_sections(ways))
    free = checked(compile_graph(workload, in_sections(1)))
    assert checked(result) >= free
    mapping = only(result).plan.mapping
    if not mapping.parts:
        return
    dimension, sizes = mapping.parameters["split"], [part.placement["size"] for part in mapping.parts]
    assert dimension != "m"  # all rows meet the same weights, wherever they lie
    if dimension == "experts":
        dealt = [HISTOGRAM[section::ways] for section in range(ways)]
        mine = tuple(map(int, mapping.parts[0].placement["tokens"].split()))
        chosen = itertools.chain.from_iterable(itertools.combinations(dealt, n) for n in range(1, ways))
        assert mine in {tuple(sorted(itertools.chain.from_iterable(some))) for some in chosen}
    else:
        assert sizes[0] * ways % sum(sizes) == 0


def test_a_cut_inside_a_section_is_refused_with_the_places_there_are():
    document = json.loads(compile_graph(product(12, 1024, 4096), in_sections(1)).mapping.dumps())
    for part, size in zip(document["operators"][0]["parts"], (1000, 3096), strict=True):
        part["placement"]["size"] = size
    with pytest.raises(MappingError, match=r"from 4 sections of their own: cut n at 1024, 2048, 3072, found 1000"):
        compile_graph(product(12, 1024, 4096), in_sections(4), Mapping.loads(json.dumps(document)))
    compile_graph(product(12, 1024, 4096), in_sections(1), Mapping.loads(json.dumps(document)))


@pytest.mark.parametrize(
    ("first", "second", "message"),
    [
        ("1 1", "2 2 3 5 8 42 42", r"expected those of the experts of each part, 1 1 2 2 3 5 8 42 in all, found 1 1 \| 2 2 3 5 8 42 42"),
        ("1 1 2 2 3 5 8", "x", "expected those of the experts of each part"),
        ("1 2 3 5 8 42", "1 2", r"expected experts of whole sections, 1 3 \| 1 5 \| 2 8 \| 2 42"),
    ],
)
def test_experts_that_a_kernel_does_not_have_or_that_share_a_section_are_refused(first, second, message):
    device = in_sections(4)
    result = compile_graph(routed(), device, co_processing="rule")
    document = json.loads(result.mapping.dumps())
    for part, tokens in zip(document["operators"][0]["parts"], (first, second), strict=True):
        part["placement"] |= {"tokens": tokens, "size": len(tokens.split())}
    if sum(len(t.split()) for t in (first, second)) != 8:
        document["operators"][0]["parts"][0]["placement"]["size"] = 1
        document["operators"][0]["parts"][1]["placement"]["size"] = 7
    with pytest.raises(MappingError, match=message):
        compile_graph(routed(), device, Mapping.loads(json.dumps(document)))


def test_positions_of_cuts_are_those_between_sections():
    ((_, (kernel,)),) = fuse(product(12, 64, 100))
    assert cuts(kernel, "n", 100, 1) is None
    assert cuts(kernel, "n", 100, 4) == [25, 50, 75]
    assert cuts(kernel, "n", 3, 4) == [1, 2]
    assert cuts(kernel, "m", 12, 4) == []


def test_sections_need_a_concurrent_way():
    description = near_memory("exclusive").to_dict()
    (way,) = (link for link in description["links"] if "bandwidth" in link)
    way["sections"] = 4
    with pytest.raises(HardwareError, match="sections belong to a way with concurrent access"):
        Device.from_dict(description)
