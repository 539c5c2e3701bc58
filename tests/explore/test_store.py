from __future__ import annotations

import multiprocessing
import sqlite3
from pathlib import Path

import pytest
import sqlalchemy as sql

from dovetail.explore import store as module
from dovetail.explore.errors import StoreError
from dovetail.explore.evaluate import Outcome
from dovetail.explore.store import Store

VERSION = "v" * 64


def outcome(number: int, status: str = "ok") -> Outcome:
    return Outcome(f"{number:064d}", status, "", {"latency_fs": number}, b"report", 0.5)  # type: ignore[arg-type]


def add_many(place: str, start: int, count: int) -> None:
    """What one of several processes does: write, one row at a time, half of which others write, too."""
    with Store(place) as store:
        for number in range(start, start + count):
            store.add([outcome(number)], VERSION)


def test_what_is_written_is_found_again_by_another_store(tmp_path: Path) -> None:
    with Store(tmp_path / "s.sqlite") as store:
        store.add([outcome(1), outcome(2, "infeasible")], VERSION)
    with Store(tmp_path / "s.sqlite") as again:
        found = again.find([outcome(n).key for n in (1, 2, 3)])
        assert {o.status for o in found.values()} == {"ok", "infeasible"}
        assert found[outcome(1).key].metrics == {"latency_fs": 1}
        assert again.report(outcome(1).key) == b"report"
        assert again.report(outcome(3).key) == b""


def test_a_failure_gives_way_to_a_later_outcome_and_nothing_else_does(tmp_path: Path) -> None:
    with Store(tmp_path / "s.sqlite") as store:
        store.add([outcome(1, "failed"), outcome(2)], VERSION)
        assert list(store.find([outcome(1).key, outcome(2).key], failed=False)) == [outcome(2).key]
        store.add([outcome(1), outcome(2, "failed")], VERSION)
        assert {o.status for o in store.find([outcome(1).key, outcome(2).key]).values()} == {"ok"}


def test_processes_that_write_the_same_rows_at_once_lose_none(tmp_path: Path) -> None:
    place = str(tmp_path / "shared.sqlite")
    context = multiprocessing.get_context("spawn")
    writers = [context.Process(target=add_many, args=(place, start, 60)) for start in (0, 30, 60)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join(60)
    assert [writer.exitcode for writer in writers] == [0, 0, 0]
    with Store(place) as store:
        assert store.count() == 120  # 0..59, 30..89 and 60..119 together
        assert store.count(VERSION) == 120


def test_a_store_by_url_is_the_same_store(tmp_path: Path) -> None:
    with Store(f"sqlite:///{tmp_path / 's.sqlite'}") as store:
        store.add([outcome(1)], VERSION)
    with Store(tmp_path / "s.sqlite") as again:
        assert again.count() == 1


def test_evaluations_of_other_model_versions_can_be_removed(tmp_path: Path) -> None:
    with Store(tmp_path / "s.sqlite") as store:
        store.add([outcome(1)], VERSION)
        store.add([outcome(2)], "w" * 64)
        assert store.remove_other_versions(VERSION) == 1
        assert list(store.find([outcome(1).key, outcome(2).key])) == [outcome(1).key]


def test_an_older_schema_is_migrated_with_a_copy_and_nothing_is_lost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = tmp_path / "s.sqlite"
    with Store(place) as store:
        store.add([outcome(n) for n in range(10)], VERSION)

    def add_column(connection: sql.Connection) -> None:
        connection.execute(sql.text("ALTER TABLE dovetail_evaluations ADD COLUMN host VARCHAR(64) NOT NULL DEFAULT ''"))

    monkeypatch.setattr(module, "SCHEMA", 2)
    monkeypatch.setattr(module, "MIGRATIONS", {1: add_column})
    with Store(place) as store:
        assert "schema 1 was migrated to 2; the old one is" in store.migrated
        assert len(store.find([outcome(n).key for n in range(10)])) == 10
    with Store(place) as again:
        assert again.migrated == ""
    with sqlite3.connect(f"{place}.schema-1") as copy:
        assert copy.execute("SELECT count(*) FROM dovetail_evaluations").fetchone() == (10,)


def test_a_schema_without_a_way_up_and_a_newer_one_are_refused_and_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = tmp_path / "s.sqlite"
    with Store(place) as store:
        store.add([outcome(1)], VERSION)
    monkeypatch.setattr(module, "SCHEMA", 3)
    with pytest.raises(StoreError, match=r"has schema 1, which cannot be turned into 3 \(no step from 1\).*left as it is"):
        Store(place)
    monkeypatch.setattr(module, "SCHEMA", 0)
    with pytest.raises(StoreError, match="has schema 1, this version reads up to 0; use a newer dovetail"):
        Store(place)
    monkeypatch.undo()
    with Store(place) as store:
        assert store.count() == 1


def test_places_that_are_no_store_are_refused(tmp_path: Path) -> None:
    (tmp_path / "text.sqlite").write_text("not a database, but a long enough text")
    with pytest.raises(StoreError, match="is not an SQLite file"):
        Store(tmp_path / "text.sqlite")
    with sqlite3.connect(tmp_path / "other.sqlite") as other:
        other.execute("CREATE TABLE customers (id INTEGER)")
    with pytest.raises(StoreError, match=r"holds other tables \(customers\)"):
        Store(tmp_path / "other.sqlite")
    with pytest.raises(StoreError, match="is a folder"):
        Store(tmp_path)
    with pytest.raises(StoreError, match="there is no folder"):
        Store(tmp_path / "missing" / "s.sqlite")
    with pytest.raises(StoreError, match="expected a file or a URL"):
        Store("nosuchdatabase://host/name")


def test_a_full_disk_is_said_and_what_was_written_before_is_safe(tmp_path: Path) -> None:
    place = tmp_path / "s.sqlite"
    store = Store(place)
    store.add([outcome(n) for n in range(5)], VERSION)

    @sql.event.listens_for(store._engine, "begin")
    def limit(connection: sql.Connection) -> None:
        connection.exec_driver_sql("PRAGMA max_page_count = 12")  # SQLite then answers like a full disk

    big = [Outcome(f"{n:064d}", "ok", "", {}, bytes(20_000)) for n in range(100, 110)]
    with pytest.raises(StoreError, match=r"full.*everything written before is safe, free some space and run again with --resume"):
        store.add(big, VERSION)
    store.close()
    with Store(place) as again:
        assert again.count() == 5


def test_a_password_in_a_url_is_never_shown() -> None:
    assert "secret" not in module._hidden("postgresql://user:secret@host/name")
