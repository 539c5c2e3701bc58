"""Streamed products: data is there before it is used, buffers hold what they are said to, and the time is the simulated one."""

from __future__ import annotations

from fractions import Fraction
from math import ceil

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

import workloads
from hw.devices import load
from mapper.compile import compile_graph, workload_name
from mapper.errors import MappingError
from mapper.kernels import fuse
from mapper.mapping import Mapping, OperatorMapping
from mapper.nest import Nest
from mapper.streamed import KEEPS, Block, Line, Shape, Streamed, _Emission, cut, even
from mapper.target import Target
from sim import simulate

SMALL = load("systolic-32").with_settings({"units.array.rows": 4, "units.array.columns": 4})


def streamed(m: int, k: int, n: int, device=SMALL) -> Streamed:
    return Nest(Target(device), fuse(workloads.load(f"gemm:{m}x{k}x{n}:int8"))[0][1][0]).others[0]


shapes = st.builds(
    Shape,
    st.just("mnk"),
    st.integers(1, 6),
    st.just(1),
    st.just(1),
    st.just(1),
    st.sampled_from([0, 1, 2, 3, 8]),
    st.booleans(),
)


def elements(line: Line) -> list[Fraction]:
    """Elements that each step moves."""
    return [Fraction(numerator, line[1]) for numerator in line[0]]


def arrivals(line: list[Fraction], sizes: list[int]) -> list[tuple[int, int]]:
    """For each of consecutive pieces of `sizes` the steps in which its first and its last part move."""
    out, step, moved, before = [], 0, Fraction(0), Fraction(0)
    for size in sizes:
        while moved + line[step] <= before:
            moved += line[step]
            step += 1
        first = step
        before += size
        while moved + line[step] < before:
            moved += line[step]
            step += 1
        out.append((first, step))
    return out


@settings(max_examples=120, deadline=None)
@given(shape=shapes, old=st.integers(1, 6), new=st.integers(1, 6), slabs=st.integers(1, 40), slab=st.integers(1, 5), last=st.integers(1, 5))
def test_a_block_arrives_in_time_and_only_over_slabs_that_were_used(
    shape: Shape, old: int, new: int, slabs: int, slab: int, last: int
) -> None:
    """Tile u is computed in step u + 1, what moves in step u is there from then on. The buffer holds the old block's standing slabs
    and one more while the new one arrives."""
    assume(new <= old and shape.keep != 1 and (shape.keep == 0 or shape.keep < slabs))
    depth = (slab,) * (slabs - 1) + (min(last, slab),)
    before, after = Block((4,) * old, (4, 4), depth, True), Block((4,) * new, (4, 4), depth, True)
    emission = _Emission(streamed(64, 64, 64), shape)
    kept = [j for j in range(slabs) if shape.stands(j)]
    line = elements(emission._change(before, after))
    assert len(line) == before.steps + after.steps
    assert sum(line) == sum(emission._standing_line(after))
    moves = arrivals(line, emission._standing_line(after))
    uses = [i * slabs + j for i in range(new) for j in kept]
    freed = [i * slabs + j for i in range(old) for j in kept]
    for (_, there), use in zip(moves, uses, strict=True):
        assert there <= before.steps + use
    for step in range(before.steps + after.steps):
        standing = sum(use >= step - 1 for use in freed)  # computed in step use + 1
        arriving = sum(first <= step for first, _ in moves)
        assert standing + arriving <= len(freed) + 1


@settings(max_examples=120, deadline=None)
@given(rows=st.integers(1, 8), slabs=st.integers(1, 40), slab=st.integers(1, 5), last=st.integers(1, 5))
def test_a_panel_arrives_in_time_and_fits_into_the_stated_buffer(rows: int, slabs: int, slab: int, last: int) -> None:
    emission = _Emission(streamed(64, 64, 64), Shape("mnk", rows, slab, slab, 1, 0, False))
    depth = [slab] * (slabs - 1) + [min(last, slab)]
    line = elements(emission._panel(rows, slabs, 1, depth))
    moves = arrivals(line, depth)
    begins = (rows - 1) * slabs  # steps from the second fold of a panel to the first of the next one
    for j, (_, there) in enumerate(moves):
        assert there <= begins + j
    room = min(2, slabs * 2) if rows == 1 else slabs + ((rows - 2) * slabs + 1) // rows + 1
    for step in range(begins + slabs):
        old = sum((rows - 2) * slabs + j >= step - 1 for j in range(slabs)) if rows > 1 else (step == 0)
        new = sum(first <= step and (step < begins or begins + j >= step - 1) for j, (first, _) in enumerate(moves))
        assert old + new <= room


@settings(max_examples=20, deadline=None)
@given(m=st.integers(1, 60), k=st.integers(1, 200), n=st.integers(1, 60), pick=st.integers(0, 10**6))
def test_predicted_and_simulated_times_are_equal_and_every_byte_moves(m: int, k: int, n: int, pick: int) -> None:
    space = streamed(m, k, n)
    candidates = list(space.candidates())
    assume(candidates)
    mapping = candidates[pick % len(candidates)]
    graph = workloads.load(f"gemm:{m}x{k}x{n}:int8")
    plan = space.plan(mapping)
    assert space.bound(mapping) <= plan.latency_fs
    compiled = compile_graph(graph, SMALL, Mapping(SMALL.name, workload_name(graph), (mapping,)))
    for engine in ("fast", "simpy"):
        assert simulate(compiled.program, engine).makespan == plan.latency_fs
    assert plan.effort["array"].macs == m * k * n
    _, stands, moves = space._totals(space.shape(mapping))
    assert plan.effort["dram"].read == stands + moves
    assert plan.effort["dram"].written == m * n


def test_a_schedule_without_stalls_takes_the_stall_free_cycles_and_one_late_first_block() -> None:
    """K = 512 on 4 x 4 with interfaces of half what a fold consumes: 2 rows stand, so that every operand comes in just in time. The
    first pass waits for the standing block, 2 folds at 2 bytes per cycle; then nothing waits."""
    device = SMALL.with_settings(
        {"memories.dram.bandwidth": "2 GB/s", "memories.ifmap.capacity": "1 MiB", "memories.filter.capacity": "1 MiB"}
    )
    space = streamed(8, 512, 256, device)
    parameters = {"order": "mnk", "rows": 2, "slab": 8, "chunk": 512, "across": 64, "keep": "all", "fill": "late"}
    plan = space.plan(OperatorMapping("gemm", "array", "streamed", parameters))
    folds = 2 * 64
    stall_free = folds * (512 + 4 + 4 - 2)
    first_pass = 2 * (512 * 4 // 2) - 2 * 512  # what loading two folds of rows takes longer than computing on them
    fill, last = 8 * 4 // 2, 4 * 4 // 2  # the first slab, and the results of the last fold
    closing = 6  # the first fold drains while the next slab, which takes longer, arrives
    assert stall_free < plan.latency_fs // 10**6 <= stall_free + first_pass + fill + last
    assert plan.latency_fs // 10**6 >= stall_free + first_pass + fill + last - 2 * closing - 8


def test_even_and_cut_divide_without_rest() -> None:
    assert even(10, 4) == [3, 3, 2, 2]
    assert cut(10, 4) == [4, 4, 2]
    assert sum(even(1000, 7)) == sum(cut(1000, 7)) == 1000


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"keep": "5"}, "keep: expected one of"),
        ({"rows": 0}, "rows: expected an integer of at least 1"),
        ({"chunk": 60, "slab": 20}, "has fewer slabs"),
        ({"across": 4}, "across: belongs to several chunks"),
    ],
)
def test_impossible_parameters_are_refused_with_the_reason(changes: dict[str, object], reason: str) -> None:
    parameters = {"order": "mnk", "rows": 2, "slab": 8, "chunk": 64, "across": 16, "keep": "all", "fill": "late", **changes}
    with pytest.raises(MappingError, match=reason):
        streamed(64, 64, 64).plan(OperatorMapping("gemm", "array", "streamed", parameters))  # type: ignore[arg-type]


def test_keeps_name_what_stands() -> None:
    assert {"all", "none"} <= set(KEEPS)
    assert ceil(Fraction(7, 2)) == 4
