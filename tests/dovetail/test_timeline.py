import dataclasses
import json
import os
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import pytest

from dovetail.files import atomic_writer, check_writable
from dovetail.report import Report
from dovetail.timeline import events, operator_of, write_timeline
from sim.trace import Fold, Span, Trace


def load(report: Report, path: Path, limit: int = 200_000) -> list[dict[str, object]]:
    write_timeline(report, path, limit)
    document = json.loads(path.read_text(), parse_float=Fraction)
    found: list[dict[str, object]] = document["traceEvents"]
    return found


def times(found: list[dict[str, object]], thread: int) -> list[tuple[Fraction, Fraction]]:
    return [(e["ts"], e["ts"] + e["dur"]) for e in found if e["ph"] == "X" and e["tid"] == thread]  # type: ignore[operator, misc]


def test_every_span_is_there_with_its_exact_time(report: Report, out: Callable[[str], Path]) -> None:
    found = load(report, out("t.json"))
    threads = {e["args"]["name"]: e["tid"] for e in found if e["name"] == "thread_name"}  # type: ignore[index]
    for resource, thread in threads.items():
        expected = [(Fraction(s.start, 10**9), Fraction(s.end, 10**9)) for s in report.trace.spans() if s.on == resource]
        assert times(found, thread) == expected  # type: ignore[arg-type]


def test_process_is_the_device_and_threads_are_resources_in_order(report: Report, out: Callable[[str], Path]) -> None:
    found = load(report, out("t.json"))
    assert next(e["args"] for e in found if e["name"] == "process_name") == {"name": "a100-80g"}
    order = [e["args"]["sort_index"] for e in found if e["name"] == "thread_sort_index"]  # type: ignore[index]
    assert order == list(range(1, len(report.utilization) + 1))


def test_events_name_their_operator(report: Report, out: Callable[[str], Path]) -> None:
    found = load(report, out("t.json"))
    loads = [e for e in found if e["name"] == "layer.q_proj/load"]
    assert len(loads) == 32
    assert {e["args"]["operator"] for e in loads} == {"layer.q_proj"}  # type: ignore[index]


def test_the_same_report_gives_the_same_bytes(report: Report, out: Callable[[str], Path]) -> None:
    write_timeline(report, out("a.json"))
    write_timeline(dataclasses.replace(report, elapsed_s={"trace": 9.0}), out("b.json"))
    assert out("a.json").read_bytes() == out("b.json").read_bytes()


def test_beyond_the_limit_a_fold_keeps_its_first_and_last_iteration(report: Report, out: Callable[[str], Path]) -> None:
    fold = Fold(10, 100, (Span("mxu", "a", 5, 50), Span("mxu", "b", 60, 105)))
    trace = Trace((Span("mxu", "in", 0, 5), fold, Span("mxu", "out", 1005, 1010)), 1010)
    small = dataclasses.replace(report, trace=trace, utilization={"mxu": 0.9}, operators=())
    found = load(small, out("t.json"), limit=10)
    kept = ((0, 5), (5, 50), (60, 105), (905, 950), (960, 1005), (1005, 1010))
    assert times(found, 1) == [(Fraction(start, 10**9), Fraction(end, 10**9)) for start, end in kept]
    (folded,) = (e for e in found if e["ph"] == "X" and e["tid"] == 0)
    assert folded["args"] == {"repeats": 8, "spans": 16}
    assert (folded["ts"], folded["dur"]) == (Fraction(105, 10**9), Fraction(800, 10**9))  # iterations 2 to 9


def test_nested_folds_are_shortened_at_every_level(report: Report) -> None:
    inner = Fold(5, 10, (Span("mxu", "a", 0, 10),))
    small = dataclasses.replace(report, trace=Trace((Fold(4, 50, (inner,)),), 200), utilization={"mxu": 1.0}, operators=())
    spans = [json.loads(e) for e in events(small, limit=1)]
    starts = [round(e["ts"] * 10**9) for e in spans if e["ph"] == "X" and e["tid"] == 1]
    assert starts == [0, 40, 150, 190]  # first and last of five, in the first and last of four
    repeats = [e["args"] for e in spans if e["ph"] == "X" and e["tid"] == 0]
    assert repeats == [{"repeats": 3, "spans": 3}, {"repeats": 2, "spans": 10}, {"repeats": 3, "spans": 3}]


def test_below_the_limit_every_repeat_is_written_out(report: Report) -> None:
    small = dataclasses.replace(report, trace=Trace((Fold(7, 10, (Span("mxu", "a", 0, 10),)),), 70), utilization={"mxu": 1.0})
    assert sum(json.loads(e)["ph"] == "X" for e in events(small, limit=7)) == 7


def test_operator_is_the_longest_name_up_to_a_separator() -> None:
    operators = frozenset({"layer", "layer.q_proj", "layer.q"})
    assert operator_of("layer.q_proj: tile", operators) == "layer.q_proj"
    assert operator_of("layer.q[2]", operators) == "layer.q"
    assert operator_of("layer.k_proj", operators) == "layer"
    assert operator_of("layers", operators) == ""


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "t.json"
    path.write_text("old")

    def fail() -> None:
        with atomic_writer(path) as file:
            file.write("new")
            raise RuntimeError("half way")

    with pytest.raises(RuntimeError, match="half way"):
        fail()
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["t.json"]


def test_a_written_file_has_the_usual_permissions(tmp_path: Path) -> None:
    with atomic_writer(tmp_path / "a") as file:
        file.write("x")
    (tmp_path / "b").write_text("x")
    assert (tmp_path / "a").stat().st_mode == (tmp_path / "b").stat().st_mode


@pytest.mark.parametrize(
    ("place", "message"), [("no/such/r.html", "no folder"), (".", "is a directory"), ("file/r.html", "is not a folder")]
)
def test_a_path_that_cannot_be_written_is_refused_with_the_reason(tmp_path: Path, place: str, message: str) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match=message):
        check_writable(tmp_path / place)
    assert os.listdir(tmp_path) == ["file"]
