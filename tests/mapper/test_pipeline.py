"""The makespan of a stream of tiles is a closed form, and the lowered program takes exactly that long."""

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hw.quantity import FS_PER_S
from mapper.pipeline import LAUNCH, Job, Loop, Lowering, exclude_exposed, length, makespan, pipeline
from mapper.program import Program
from sim import simulate


def tile(load, compute, store):
    def job(name, on, fs):
        return (Job(name, on, fs, fs),) if fs else ()

    return (job("load", "dram", load), job("compute", "array", compute), job("store", "dram", store))


def program(steps, setup=()):
    queues = {LAUNCH: FS_PER_S, "dram": FS_PER_S, "array": FS_PER_S, "vector": FS_PER_S}
    return Program(queues, tuple(Lowering().kernel("k", steps, setup)))


def test_compute_hides_all_transfers_but_the_first_load_and_the_last_store():
    tiles = (Loop(10, (tile(3, 20, 4),)),)
    assert makespan(pipeline(tiles, (0, 1, 2))) == 3 + 10 * 20 + 4


def test_a_memory_bound_kernel_lasts_as_long_as_its_transfers_and_the_last_computation():
    tiles = (Loop(10, (tile(30, 20, 4),)),)
    # loads: 30, 30 (first compute hides behind it), 8 x (30+4), then compute 20 over store 4, then store 4
    assert makespan(pipeline(tiles, (0, 1, 2))) == 30 + 30 + 8 * 34 + 20 + 4


def test_cold_fill_excluded_leaves_out_only_the_first_load_and_the_last_store():
    tiles = (Loop(10, (tile(3, 20, 4),)),)
    assert makespan(exclude_exposed(pipeline(tiles, (0, 1, 2)), "dram")) == 10 * 20


streams = st.recursive(
    st.lists(st.builds(tile, st.integers(0, 9), st.integers(1, 9), st.integers(0, 9)), min_size=1, max_size=3).map(tuple),
    lambda inner: st.lists(
        st.one_of(st.builds(Loop, st.integers(1, 9), inner), inner.map(lambda s: s[0])), min_size=1, max_size=3).map(tuple),
    max_leaves=6,
)


def unfold(stream):
    for item in stream:
        if isinstance(item, Loop):
            for _ in range(item.count):
                yield from unfold(item.body)
        else:
            yield item


@settings(max_examples=200, deadline=None)
@given(streams, st.sampled_from([(0, 0, 0), (0, 1, 2), (0, 1, 4)]))
def test_folded_streams_pipeline_like_unfolded_ones(stream, lags):
    folded = pipeline(stream, lags)
    unfolded = pipeline(tuple(unfold(stream)), lags)
    assert [s for s in unfold(folded) if s] == [s for s in unfolded if s]
    assert length(unfolded) <= length(tuple(unfold(stream))) + max(lags)


@settings(max_examples=200, deadline=None)
@given(streams, st.sampled_from([(0, 0, 0), (0, 1, 2), (0, 1, 4)]), st.integers(0, 50))
def test_the_lowered_program_takes_the_predicted_time(stream, lags, launch):
    steps = pipeline(stream, lags)
    setup = (("launch", launch),)
    for engine in ("fast", "simpy"):
        assert simulate(program(steps, setup), engine).makespan == launch + makespan(steps)


@pytest.mark.parametrize("count", [1, 2, 3, 7])
def test_repeated_kernels_with_different_last_resources_hand_over(count):
    lowering = Lowering()
    first, last = (tile(3, 0, 0)[0],), (tile(0, 5, 0)[1],)
    items = lowering.repeat(count, lambda: [*lowering.kernel("a", first), *lowering.kernel("b", last)])
    queues = {LAUNCH: FS_PER_S, "dram": FS_PER_S, "array": FS_PER_S}
    for engine in ("fast", "simpy"):
        assert simulate(Program(queues, tuple(items)), engine).makespan == count * 8


def test_long_repetitions_stay_folded():
    tiles = (Loop(1000, (Loop(1000, (tile(3, 20, 4),)), tile(1, 1, 1))),)
    trace = simulate(program(pipeline(tiles, (0, 1, 2))), "fast")
    assert trace.simulated < 200
    assert trace.makespan == makespan(pipeline(tiles, (0, 1, 2)))
    assert sum(1 for _ in itertools.islice(trace.spans(), 10_000)) == 10_000
