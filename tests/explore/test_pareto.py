from __future__ import annotations

from itertools import product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dovetail.explore.pareto import front, hypervolume, normalised, ranks

vectors = st.integers(1, 4).flatmap(lambda n: st.lists(st.tuples(*[st.integers(0, 6)] * n), min_size=1, max_size=25))


def dominates(a: tuple[int, ...], b: tuple[int, ...]) -> bool:
    return all(x <= y for x, y in zip(a, b, strict=True)) and a != b


@given(vectors)
def test_the_front_is_what_nothing_dominates(points: list[tuple[int, ...]]) -> None:
    assert front(points) == [i for i, p in enumerate(points) if not any(dominates(q, p) for q in points)]


@given(vectors)
def test_every_rank_is_the_front_of_what_is_left(points: list[tuple[int, ...]]) -> None:
    found = ranks(points)
    for rank in range(max(found) + 1):
        left = [i for i, r in enumerate(found) if r >= rank]
        assert [left[i] for i in front([points[i] for i in left])] == [i for i, r in enumerate(found) if r == rank]


@settings(deadline=None)
@given(vectors)
def test_the_hypervolume_of_integers_is_the_number_of_unit_cubes_that_are_dominated(points: list[tuple[int, ...]]) -> None:
    size = len(points[0])
    cubes = sum(any(all(p <= c for p, c in zip(point, cube, strict=True)) for point in points) for cube in product(range(7), repeat=size))
    assert hypervolume(points, [7] * size) == pytest.approx(cubes)


def test_points_beyond_the_reference_count_nothing() -> None:
    assert hypervolume([(5, 1)], (3, 3)) == 0
    assert hypervolume([(5, 1), (1, 1)], (3, 3)) == 4


def test_no_points_have_no_front() -> None:
    assert front([]) == []


def test_costs_are_scaled_to_their_extent_and_a_constant_one_stays_at_zero() -> None:
    assert normalised([(10, 7), (20, 7)]) == ([[0, 0], [1, 0]], [1.1, 1.1])
