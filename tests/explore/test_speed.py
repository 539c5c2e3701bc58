from __future__ import annotations

import resource
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from benchmarks.explore import run
from dovetail.explore.study import Study


def spent(work: Callable[[], Study]) -> tuple[Study, float, float]:
    """The study, and seconds of wall and of processor time, workers included."""

    def processor() -> float:
        return sum(u.ru_utime + u.ru_stime for u in map(resource.getrusage, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)))

    wall, before = time.perf_counter(), processor()
    study = work()
    return study, time.perf_counter() - wall, processor() - before


@pytest.mark.slow
def test_a_thousand_arrays_take_two_minutes_on_two_workers_and_ten_seconds_when_nothing_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DOVETAIL_CACHE", str(tmp_path / "cache-2"))
    cold, wall, two = spent(lambda: run("decode", tmp_path / "two.sqlite", 2))
    assert (len(cold), cold.evaluated) == (1000, 1000)
    assert wall <= 120
    unchanged, again, _ = spent(lambda: run("decode", tmp_path / "two.sqlite", 2))
    assert unchanged.evaluated == 0
    assert again <= 10
    assert unchanged.columns() == cold.columns()
    # wall time on one worker over that on two follows the load of the machine; what two workers spend in all does not:
    # two free processors are 1.7 times as fast as one when the work of both together is at most 2 / 1.7 of that of one
    monkeypatch.setenv("DOVETAIL_CACHE", str(tmp_path / "cache-1"))
    one, _, alone = spent(lambda: run("decode", tmp_path / "one.sqlite", 1))
    assert one.columns() == cold.columns()
    assert two <= alone * 2 / 1.7
