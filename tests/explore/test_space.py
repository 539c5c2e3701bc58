from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dovetail.explore.errors import ExploreError
from dovetail.explore.expression import evaluate, fill, names
from dovetail.explore.space import Parameter, Space, magnitudes, span


def test_the_grid_has_every_combination_once_with_the_last_parameter_fastest() -> None:
    space = Space.of({"a": [1, 2], "b": ["x", "y", "z"]})
    assert [tuple(p.values()) for p in space.grid()] == [(1, "x"), (1, "y"), (1, "z"), (2, "x"), (2, "y"), (2, "z")]


def test_a_parameter_exists_only_where_its_condition_holds() -> None:
    space = Space(
        (Parameter("flow", ("os", "ws")), Parameter("preload", (0, 1), when="flow == 'ws'"), Parameter("deep", (5,), when="preload == 1"))
    )
    assert list(space.grid()) == [
        {"flow": "os"},
        {"flow": "ws", "preload": 0},
        {"flow": "ws", "preload": 1, "deep": 5},
    ]


@pytest.mark.parametrize(
    ("low", "high", "how", "values"),
    [
        (32, 256, {"factor": 2}, (32, 64, 128, 256)),
        (1, 10, {"step": 4}, (1, 5, 9)),
        ("256 KiB", "1 MiB", {"factor": 2}, ("256 KiB", "0.5 MiB", "1 MiB")),
        ("10 GB/s", "30 GB/s", {"step": "10 GB/s"}, ("10 GB/s", "20 GB/s", "30 GB/s")),
        (1, 64, {"count": 3}, (1, 8, 64)),
        (0.5, 2, {"factor": 2}, (0.5, 1, 2)),
        (7, 7, {"factor": 2}, (7,)),
    ],
)
def test_a_range_lists_its_values(low: object, high: object, how: dict[str, object], values: tuple[object, ...]) -> None:
    assert span(low, high, **how) == values  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("low", "high", "how", "message"),
    [
        (64, 32, {"factor": 2}, "the range is empty"),
        (1, 8, {}, "exactly one of factor, step and count"),
        (1, 8, {"factor": 1}, "factor: expected more than 1"),
        (1, 8, {"step": 0}, "step: expected more than 0"),
        (1, 8, {"count": 0}, "count: expected a whole number"),
        ("1 KiB", 8, {"factor": 2}, "not of the same kind"),
        ("x", "y", {"factor": 2}, "expected a number or a quantity"),
        (float("nan"), 8, {"factor": 2}, "expected a number"),
    ],
)
def test_a_range_that_makes_no_sense_is_refused(low: object, high: object, how: dict[str, object], message: str) -> None:
    with pytest.raises(ExploreError, match=message):
        span(low, high, **how)  # type: ignore[arg-type]


def test_empty_repeated_and_impossible_values_are_refused() -> None:
    with pytest.raises(ExploreError, match="parameter 'a': the range is empty"):
        Parameter("a", ())
    with pytest.raises(ExploreError, match="1 is listed twice"):
        Parameter("a", (1, 2, 1))
    with pytest.raises(ExploreError, match="found nan"):
        Parameter("a", (float("nan"),))
    with pytest.raises(ExploreError, match=r"refers to 'rowz'.*did you mean `rows`"):
        Space((Parameter("rows", (1,)), Parameter("b", (1,), when="rowz > 1")))
    with pytest.raises(ExploreError, match="more than 1000000; search it instead"):
        next(Space.of({f"p{i}": range(10) for i in range(7)}).grid())


def test_a_point_that_is_not_in_the_space_is_refused_with_the_nearest_name() -> None:
    space = Space.of({"rows": [1, 2]})
    with pytest.raises(ExploreError, match=r"unknown parameter 'row'.*did you mean `rows`"):
        space.check({"row": 1})
    with pytest.raises(ExploreError, match=r"3 is none of its values \(1, 2\)"):
        space.check({"rows": 3})


def test_quantities_are_ordered_by_size_and_names_are_not() -> None:
    assert magnitudes(("1 MiB", "256 KiB")) == [2**20, 2**18]
    assert magnitudes((1, 2.5)) == [1.0, 2.5]
    assert magnitudes(("serial", "hidden")) is None
    assert magnitudes((True, False)) is None


@given(st.integers(1, 40), st.integers(0, 5))
def test_samples_are_different_points_of_the_space_and_the_same_for_the_same_seed(count: int, seed: int) -> None:
    space = Space((Parameter("a", tuple(range(6))), Parameter("b", (0, 1), when="a > 2")))
    everything = [tuple(p.items()) for p in space.grid()]
    drawn = [tuple(p.items()) for p in space.sample(count, seed)]
    assert len(set(drawn)) == len(drawn)
    assert set(drawn) <= set(everything)
    assert drawn == [tuple(p.items()) for p in space.sample(count, seed)]


def test_neighbours_are_one_step_away() -> None:
    space = Space((Parameter("n", (1, 2, 4, 8)), Parameter("kind", ("a", "b", "c"))))
    near = space.neighbours({"n": 2, "kind": "a"})
    assert near == [
        ("n", {"n": 1, "kind": "a"}),
        ("n", {"n": 4, "kind": "a"}),
        ("kind", {"n": 2, "kind": "b"}),
        ("kind", {"n": 2, "kind": "c"}),
    ]


# Expressions ---------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("rows * 2 + 1", 9),
        ("rows > 3 and kind == 'a'", True),
        ("1 if rows < 3 else 2", 2),
        ("max(rows, 7) // 2", 3),
        ("units.array.rows * 2", 10),
        ("kind in ['a', 'b']", True),
        ("not rows == 4", False),
        ("2 < rows <= 4", True),
    ],
)
def test_an_expression_has_its_value(text: str, value: object) -> None:
    assert evaluate(text, {"rows": 4, "kind": "a", "units.array.rows": 5}) == value


def test_names_of_an_expression_are_whole_paths() -> None:
    assert names("units.array.rows * max(a, 2)") == {"units.array.rows", "a"}


def test_templates_keep_types_and_round_away_binary_fractions() -> None:
    assert fill("{rows * 4}", {"rows": 2}) == 8
    assert fill("{rows * 4} KiB", {"rows": 2}) == "8 KiB"
    assert fill("{1228.8 * n} GB/s", {"n": 24}) == "29491.2 GB/s"  # 1228.8 * 24 is 29491.199999999997 in binary
    assert fill(["as it is"], {}) == ["as it is"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("rowz", r"unknown name 'rowz'.*did you mean `rows`"),
        ("rows +", "not an expression"),
        ("__import__('os')", "unknown function '__import__'"),
        ("rows.__class__", "unknown name 'rows.__class__'"),
        ("(lambda: 1)()", "only arithmetic"),
        ("rows / 0", "division by zero"),
        ("9 ** 99999999", "expected at most 64"),
        ("'a' * 9999999999", "arithmetic needs numbers"),
        ("max()", "at least 1 argument"),
    ],
)
def test_an_expression_that_cannot_be_evaluated_is_quoted(text: str, message: str) -> None:
    with pytest.raises(ExploreError, match=message):
        evaluate(text, {"rows": 4})
