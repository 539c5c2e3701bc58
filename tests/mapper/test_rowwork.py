"""Kernels over rows and elementwise ones on a GPU: what thread blocks wait for, against closed forms; what never gets faster."""

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
from mapper.rowwork import FEW_ROWS, KERNELS, MOVED, RESIDENT, Rows, row_work
from mapper.search import search
from mapper.target import Target
from workloads.format import parse_format
from workloads.graph import Graph, Operator, Segment, Tensor

GHZ = 10**9  # of a clock at which a cycle is a nanosecond, a million femtoseconds
NS = 10**6
TARGETS = {name: Target(load(name)) for name in ("a100-80g", "h100-sxm")}


def kernel(kind, sizes, tensors, function=""):
    made = [Tensor(name, shape, parse_format("fp16"), role) for name, shape, role in tensors]
    op = Operator(kind, kind, tuple(t.name for t in made[:-1]), (made[-1].name,), sizes, function=function)
    entering = tuple(t.name for t in made[:-1] if t.role == "activation")
    graph = Graph(kind, "single", 1, 1, 1, {t.name: t for t in made}, (Segment(kind, 1, (op,)),), entering, (made[-1].name,))
    ((_, (found,)),) = fuse(graph)
    return found


def add(elements):
    tensors = [(name, (elements,), "activation") for name in ("x", "z", "y")]
    return kernel("elementwise", {"elements": elements, "operations": 1, "specials": 0}, tensors)


def norm(rows, width):
    tensors = [("x", (rows, width), "activation"), ("w", (width,), "weight"), ("y", (rows, width), "activation")]
    return kernel("norm", {"rows": rows, "width": width}, tensors, "rmsnorm")


def gated(rows, width):
    tensors = [(name, (rows, width), "activation") for name in ("x", "z", "y")]
    return kernel("elementwise", {"elements": rows * width, "operations": 3, "specials": 1, "width": width}, tensors, "silu-mul")


def time_fs(target, found, resident=()):
    return search(choose_space(target, found, Found(dict(resident)))[0], "k").plan.latency_fs


def test_a_row_takes_its_turns_one_after_the_other():
    rows = Rows(threads=1024, start=7, turn=100, source="")
    assert rows.work(1, 4096, 100, GHZ).waiting_fs == (7 + 4 * 100) * NS
    assert rows.work(1, 4097, 100, GHZ).waiting_fs == (7 + 5 * 100) * NS  # a turn for one element
    assert Rows(threads=1024, vector=4, turn=100, source="").work(1, 4096, 100, GHZ).waiting_fs == 100 * NS


def test_blocks_that_are_side_by_side_share_issue_slots_and_wait_together():
    """2,048 threads: two blocks of 1,024. Five rows on the busiest of 100 SMs are two rounds of two blocks and one of one."""
    rows = Rows(threads=1024, turn=100, issue=30, source="")
    assert rows.work(500, 1024, 100, GHZ).waiting_fs == (3 * 100 + 5 * 30) * NS
    assert rows.work(401, 1024, 100, GHZ).waiting_fs == rows.work(500, 1024, 100, GHZ).waiting_fs  # one row more starts the round
    assert rows.work(400, 1024, 100, GHZ).waiting_fs == (2 * 100 + 4 * 30) * NS


def test_what_the_launch_holds_is_taken_off_once_and_never_more_than_there_is():
    plain, early = (Rows(threads=1024, turn=100, early_fs=fs * NS, source="") for fs in (0, 150))
    for count in (200, 2000, 20000):
        assert plain.work(count, 4096, 100, GHZ).waiting_fs - early.work(count, 4096, 100, GHZ).waiting_fs == 150 * NS
    assert early.work(1, 1024, 100, GHZ).waiting_fs == 0


def test_latencies_are_times_and_turns_are_cycles():
    rows = Rows(threads=1024, begin_fs=500 * NS, turn=100, source="")
    slow, fast = (rows.work(1, 1024, 100, clock).waiting_fs for clock in (GHZ, 2 * GHZ))
    assert (slow, fast) == (600 * NS, 550 * NS)


def test_only_exposed_turns_wait_for_main_memory():
    hidden, exposed = (Rows(threads=1024, turn=100, exposed=value, source="").work(300, 2048, 100, GHZ).waits for value in (False, True))
    assert (hidden, exposed) == (0, 2 * 2)  # two rounds of two turns


@pytest.mark.parametrize("name", sorted(TARGETS))
def test_a_norm_of_one_row_that_nothing_holds_waits_a_latency_of_main_memory_longer_in_each_turn(name):
    """Apart from the first access and the stream's ramp, which both depend on what is missing as well."""
    target = TARGETS[name]
    width = 8 * KERNELS["rmsnorm"].threads
    found = norm(1, width)
    cold, warm = (time_fs(target, found, held) for held in ({}, dict.fromkeys(("x", "w", "y"), Fraction(1))))
    first, ramp = target.memory.latency, min(target.memory.ramp, target.memory.occupied_fs(2 * 2 * width))
    assert cold - warm - first - ramp == pytest.approx(8 * target.memory.latency, rel=0.02)


@pytest.mark.parametrize("name", sorted(TARGETS))
def test_an_addition_within_the_cache_takes_what_its_sms_can_move(name):
    target = TARGETS[name]
    elements = 2**21
    found = add(elements)
    unit = target.unit(target.vector_unit("k"))
    clock = target.device.unit_clock(target.vector_unit("k"))
    moved = 3 * 2 * elements / (MOVED * unit.count * clock) * 1e15
    assert row_work(found, unit.count, clock).least_fs == pytest.approx(moved, rel=1e-3)
    before = target.device.launch + target.cache[1].latency
    taken = time_fs(target, found, dict.fromkeys("xzy", Fraction(1))) - before
    lanes = unit.cycles(add_work(elements, unit.count)) / clock * 1e15
    feed = 3 * 2 * elements / target.cache[1].bandwidth * 1e15
    stretch = (1 + (lanes / moved) ** 4 + (feed / moved) ** 4) ** 0.25  # the norm of order 4 of what works at the same time
    assert taken == pytest.approx(moved * stretch, rel=1e-3)


def add_work(elements, count):
    from hw.work import Vector

    return Vector(-(-elements // count), 1)


@pytest.mark.parametrize("name", sorted(TARGETS))
def test_an_addition_far_beyond_the_cache_takes_what_main_memory_streams(name):
    target = TARGETS[name]
    elements = 2**26
    streamed = target.memory.occupied_fs(2 * 2 * elements, 2 * elements) * target.memory.efficiency
    assert streamed < time_fs(target, add(elements)) < 1.08 * streamed


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from(sorted(TARGETS)),
    st.sampled_from([norm, gated]),
    st.integers(1, 3000),
    st.sampled_from([64, 1000, 1024, 1376, 4096, 11008]),
    st.integers(1, 300),
)
def test_more_rows_or_wider_ones_never_take_less(name, make, rows, width, more):
    target = TARGETS[name]
    held = dict.fromkeys(("x", "z", "w", "y"), Fraction(1, 2))
    time = time_fs(target, make(rows, width), held)
    assert time <= time_fs(target, make(rows + more, width), held)
    assert time <= time_fs(target, make(rows, width + more), held)


def test_a_block_is_never_larger_than_an_sm():
    assert all(rows.threads <= RESIDENT for rows in KERNELS.values())
    alone = Rows(threads=2 * RESIDENT, turn=10, source="")  # counted as one block on an SM
    assert alone.work(200, 2 * RESIDENT, 100, GHZ).waiting_fs == 2 * 10 * NS


def test_few_rows_are_gathered_one_after_the_other():
    target = TARGETS["h100-sxm"]
    clock = target.device.unit_clock(target.vector_unit("k"))

    def gather(rows):
        return kernel("embedding", {"rows": rows, "width": 4096}, [("t", (rows, 4096), "weight"), ("y", (rows, 4096), "activation")])

    times = [row_work(gather(rows), 132, clock).least_fs for rows in (1, 2, 4, FEW_ROWS)]
    assert [round(time / times[0], 6) for time in times] == [1, 2, 4, FEW_ROWS]
    assert row_work(gather(FEW_ROWS + 1), 132, clock).least_fs < times[-1]  # all SMs take part


@pytest.mark.parametrize(("reuse", "held"), [(None, "0"), ("0.4", "0"), ("1", "0"), ("0.8", "0.3")])
@pytest.mark.parametrize("touched", [0, 1, 300, 1000, 1001, 5000])
def test_what_a_kernel_leaves_in_the_cache_is_the_average_of_what_is_found(reuse, held, touched):
    cache = Cache(capacity=1000, bandwidth=1, reuse=reuse, held=held)
    steps = 4000
    average = sum(cache.found(Fraction(touched * (2 * i + 1), 2 * steps)) for i in range(steps)) / steps
    assert float(cache.kept(touched)) == pytest.approx(float(average), abs=2e-3)


def test_the_share_kept_falls_and_the_bytes_kept_do_not():
    cache = Cache(capacity=1000, bandwidth=1, reuse="0.5")
    sizes = [1, 10, 100, 400, 500, 501, 1000, 10000]
    kept = [cache.kept(size) for size in sizes]
    assert all(a > b for a, b in pairwise(kept))
    assert all(a * x <= b * y for (a, x), (b, y) in pairwise(zip(kept, sizes, strict=True)))
