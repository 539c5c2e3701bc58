"""Where tensors lie and for how long: at every level, without overlap, within capacity, and the same bytes on every replay."""

import itertools
import json

import pytest

from hw.devices import load as device_called
from mapper import Mapping, compile_graph
from tests.mapper.cases import near_memory
from tests.mapper.test_placement import chain, linked, two_products
from workloads import load

CASES = {
    "gpu": lambda: (load("llama-2-7b", phase="decode", batch=2, context=512), device_called("a100-80g")),
    "prefill": lambda: (load("opt-1.3b", phase="prefill", seq=64), device_called("edge-npu")),
    "banks": lambda: (load("llama-2-7b", phase="decode", context=256), device_called("attacc")),
    "chain": lambda: (chain(64, count=5), linked()),
    "two": lambda: (two_products(16, shared=False), near_memory()),
}


@pytest.fixture(scope="module", params=list(CASES))
def compiled(request):
    return compile_graph(*CASES[request.param]())


def lifetimes(compiled):
    """Every allocation that has an offset: memory, first and last kernel by number, first and last byte."""
    names = [placed.kernel.name for placed in compiled.kernels]
    found = []
    for one in compiled.mapping.allocation:
        if one.offset_bytes is not None:
            first, last = (names.index(one.first), names.index(one.last)) if one.first else (0, len(names) - 1)
            found.append((one, first, last, one.offset_bytes, one.offset_bytes + one.size_bytes * one.copies))
    return found


def test_nothing_that_lives_at_the_same_time_overlaps(compiled):
    for (one, *a), (other, *b) in itertools.combinations(lifetimes(compiled), 2):
        at_once = a[0] <= b[1] and b[0] <= a[1]
        apart = a[3] <= b[2] or b[3] <= a[2]
        assert one.memory != other.memory or not at_once or apart, (one, other)


def test_everything_lies_within_its_memory(compiled):
    for one, _, _, begin, end in lifetimes(compiled):
        memory = compiled.device.memories[one.memory]
        assert 0 <= begin <= end <= (memory.total if one.memory == compiled.device.main_memory else max(memory.capacity, memory.total))


def test_every_operand_of_every_kernel_has_a_place_while_the_kernel_runs(compiled):
    names = [placed.kernel.name for placed in compiled.kernels]
    alive = {}
    for one, first, last, *_ in lifetimes(compiled):
        alive.setdefault(one.tensor, []).append((first, last))
    for index, placed in enumerate(compiled.kernels):
        for operand in (*placed.kernel.reads, *placed.kernel.writes):
            for tensor in operand.tensor.split("+"):
                assert any(first <= index <= last for first, last in alive[tensor]), (names[index], tensor)


def test_weights_and_caches_take_what_they_are(compiled):
    graph = compiled.graph
    for role in ("weight", "kv_cache"):
        wanted = sum(t.bytes * graph.multiplicity.get(n, 1) for n, t in graph.tensors.items() if t.role == role)
        held = sum(
            a.size_bytes * a.copies
            for a in compiled.mapping.allocation
            if a.tensor in graph.tensors and graph.tensors[a.tensor].role == role
        )
        assert held == wanted


def test_a_saved_allocation_is_read_back_and_worked_out_again(compiled):
    text = compiled.mapping.dumps()
    assert Mapping.loads(text).dumps() == text
    document = json.loads(text)
    document["allocation"] = document["allocation"][:1]
    again = compile_graph(compiled.graph, compiled.device, Mapping.loads(json.dumps(document)))
    assert again.mapping.dumps() == text


def test_what_stays_on_the_chip_lies_at_the_end_of_its_scratchpad_and_not_in_main_memory():
    result = compile_graph(chain(64), linked())
    places = {a.tensor: a for a in result.mapping.allocation}
    assert [(places[name].memory, places[name].first, places[name].last) for name in ("x1", "x2")] == [
        ("activations", "p0", "p1"),
        ("activations", "p1", "p2"),
    ]
    size = 64 * 512 * 2
    assert places["x1"].offset_bytes == result.device.memories["activations"].capacity - size
    assert places["x0"].memory == places["x3"].memory == "dram"


def test_the_cache_of_keys_and_values_lies_where_the_banks_compute_on_it():
    result = compile_graph(*CASES["banks"]())
    homes = {a.memory for a in result.mapping.allocation if a.tensor.endswith(("k_cache", "v_cache"))}
    assert homes == {"stacks"}


def test_a_cache_says_which_share_of_a_tensor_a_kernel_finds():
    result = compile_graph(*CASES["gpu"]())
    cached = [a for a in result.mapping.allocation if a.memory == "l2"]
    assert cached
    assert all(0 < a.share <= 1 and a.first == a.last and a.offset_bytes is None for a in cached)
