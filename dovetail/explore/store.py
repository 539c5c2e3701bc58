"""Where evaluations are kept: an SQLite file by default, any SQL server by URL.

A row is one evaluation under the hash of everything it follows from, so that it is never wrong, only missing, and two sweeps
may share a store. Rows are written as soon as they are known; killing a sweep at any moment loses only what was in flight.
SQLite runs in write-ahead mode: several processes read and write at once, and a killed one leaves the file whole.
"""

from __future__ import annotations

import json
import os
import sqlite3
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import sqlalchemy as sql
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError, DBAPIError, IntegrityError, NoSuchModuleError

from dovetail.explore.errors import StoreError
from dovetail.explore.evaluate import Outcome, Status

SCHEMA = 1
BUSY_S = 60
"""Seconds to wait for another process that is writing."""

_BATCH = 500
_ATTEMPTS = 5

_tables = sql.MetaData()
_meta = sql.Table(
    "dovetail_meta", _tables, sql.Column("name", sql.String(64), primary_key=True), sql.Column("value", sql.Text, nullable=False)
)
_evaluations = sql.Table(
    "dovetail_evaluations",
    _tables,
    sql.Column("key", sql.String(64), primary_key=True),
    sql.Column("version", sql.String(64), nullable=False, index=True),
    sql.Column("status", sql.String(16), nullable=False),
    sql.Column("reason", sql.Text, nullable=False),
    sql.Column("metrics", sql.Text, nullable=False),
    sql.Column("report", sql.LargeBinary(2**24 - 1), nullable=False),
    sql.Column("elapsed_s", sql.Float, nullable=False),
    sql.Column("created", sql.Float, nullable=False),
)
_studies = sql.Table(
    "dovetail_studies",
    _tables,
    sql.Column("name", sql.String(200), primary_key=True),
    sql.Column("digest", sql.String(64), nullable=False),
    sql.Column("created", sql.Float, nullable=False),
)

MIGRATIONS: dict[int, Callable[[sql.Connection], None]] = {}
"""For each older schema what turns its tables into those of the next one."""


class Store:
    """Evaluations by key. Opens `place` (a file, or an SQLAlchemy URL), makes what is missing and migrates an older schema.

    Raises `StoreError` for a place that cannot be opened, is no store, or belongs to a newer version.
    """

    def __init__(self, place: str | Path) -> None:
        self.place = str(place)
        self.is_file = "://" not in self.place
        self.migrated = ""
        url = f"sqlite:///{os.path.abspath(self.place)}" if self.is_file else self.place
        if self.is_file:
            self._check_file(Path(self.place))
        try:
            self._sqlite = make_url(url).get_backend_name() == "sqlite"
            options: dict[str, Any] = {"connect_args": {"timeout": BUSY_S}} if self._sqlite else {"pool_pre_ping": True}
            self._engine = sql.create_engine(url, **options)
        except (ArgumentError, NoSuchModuleError, ImportError) as error:
            raise StoreError(
                f"store {self.place!r}: expected a file or a URL such as postgresql://user@host/name whose driver is installed ({error})"
            ) from None
        if self._sqlite:
            sql.event.listen(self._engine, "connect", _prepare)
            sql.event.listen(self._engine, "begin", _begin)
        with self._guarded("cannot be opened"):
            try:
                self._open()
            except DBAPIError:  # another process may have made the tables in this moment, on a server without locks for that
                self._open()

    def _check_file(self, path: Path) -> None:
        if path.is_dir():
            raise StoreError(f"store {self.place!r}: is a folder, expected the name of a file")
        if not path.absolute().parent.is_dir():
            raise StoreError(f"store {self.place!r}: there is no folder {str(path.parent)!r}; create it first")
        if path.exists() and path.stat().st_size:
            with path.open("rb") as file:
                if file.read(16) != b"SQLite format 3\0":
                    raise StoreError(f"store {self.place!r}: is not an SQLite file; name another one, this one was left as it is")

    def _open(self) -> None:
        with self._engine.begin() as connection:
            present = set(sql.inspect(connection).get_table_names())
            ours = set(_tables.tables)
            foreign = present and not present & ours and self._sqlite
            if foreign and not {"studies", "trials"} <= present:  # Optuna's tables may share a store
                held = ", ".join(sorted(present)[:3])
                raise StoreError(f"store {self.place!r}: holds other tables ({held}) and no study; name another file")
            if _meta.name not in present:
                _tables.create_all(connection, checkfirst=True)
                connection.execute(_meta.insert().values(name="schema", value=str(SCHEMA)))
                return
            found = int(connection.execute(sql.select(_meta.c.value).where(_meta.c.name == "schema")).scalar_one())
        if found > SCHEMA:
            raise StoreError(
                f"store {self.place!r}: has schema {found}, this version reads up to {SCHEMA}; use a newer dovetail or another store. "
                "It was left as it is"
            )
        if found < SCHEMA:
            self._migrate(found)

    def _migrate(self, found: int) -> None:
        if missing := [step for step in range(found, SCHEMA) if step not in MIGRATIONS]:
            raise StoreError(
                f"store {self.place!r}: has schema {found}, which cannot be turned into {SCHEMA} (no step from {missing[0]}); "
                "use another store. It was left as it is"
            )
        backup = self._backup(found)
        with self._engine.begin() as connection:
            for step in range(found, SCHEMA):
                MIGRATIONS[step](connection)
            connection.execute(_meta.update().where(_meta.c.name == "schema").values(value=str(SCHEMA)))
        self.migrated = f"store {self.place}: schema {found} was migrated to {SCHEMA}{f'; the old one is {backup}' if backup else ''}"

    def _backup(self, schema: int) -> str:
        """A copy of an SQLite file, made before it is changed; servers have their own."""
        if not (self._sqlite and self.is_file):
            return ""
        target = f"{self.place}.schema-{schema}"
        with sqlite3.connect(self.place) as source, sqlite3.connect(target) as copy:
            source.backup(copy)
        return target

    # Evaluations ---------------------------------------------------------------------------------------------------------
    def find(self, keys: Iterable[str], *, failed: bool = True) -> dict[str, Outcome]:
        """The outcomes that are stored for `keys`, without their reports; without the failed ones if those are to be tried again."""
        wanted = list(dict.fromkeys(keys))
        out: dict[str, Outcome] = {}
        t = _evaluations.c
        with self._guarded("cannot be read"), self._reading() as connection:
            for start in range(0, len(wanted), _BATCH):
                query = sql.select(t.key, t.status, t.reason, t.metrics, t.elapsed_s).where(t.key.in_(wanted[start : start + _BATCH]))
                for key, status, reason, metrics, elapsed in connection.execute(query):
                    if failed or status != "failed":
                        out[key] = Outcome(key, _status(status), reason, json.loads(metrics), b"", elapsed)
        return out

    def report(self, key: str) -> bytes:
        """The packed report of one evaluation; empty where there is none."""
        with self._guarded("cannot be read"), self._reading() as connection:
            found = connection.execute(sql.select(_evaluations.c.report).where(_evaluations.c.key == key)).scalar()
        return bytes(found or b"")

    def add(self, outcomes: Sequence[Outcome], version: str) -> None:
        """Writes outcomes; one that another process has written in the meantime stays, unless it had failed.

        Raises `StoreError` when the place is full or gone; what was written before is safe.
        """
        if not outcomes:
            return
        rows = [
            {
                "key": o.key,
                "version": version,
                "status": o.status,
                "reason": o.reason,
                "metrics": json.dumps(o.metrics, sort_keys=True, separators=(",", ":")),
                "report": o.report,
                "elapsed_s": o.elapsed_s,
                "created": time.time(),
            }
            for o in outcomes
        ]
        t = _evaluations.c
        same = t.key.in_([o.key for o in outcomes])
        with self._guarded("cannot be written"):
            for attempt in range(_ATTEMPTS):
                try:
                    with self._engine.begin() as connection:
                        connection.execute(_evaluations.delete().where(same, t.status == "failed"))
                        present = set(connection.execute(sql.select(t.key).where(same)).scalars())
                        if new := [row for row in rows if row["key"] not in present]:
                            connection.execute(_evaluations.insert(), new)
                    return
                except IntegrityError:  # another machine was faster with one of them: look again
                    if attempt == _ATTEMPTS - 1:
                        raise

    def count(self, version: str | None = None) -> int:
        """Number of stored evaluations, of one model version if given."""
        query = sql.select(sql.func.count()).select_from(_evaluations)
        if version is not None:
            query = query.where(_evaluations.c.version == version)
        with self._guarded("cannot be read"), self._reading() as connection:
            return int(connection.execute(query).scalar_one())

    def remove_other_versions(self, version: str) -> int:
        """Deletes evaluations of other model versions; how many there were."""
        with self._guarded("cannot be written"), self._engine.begin() as connection:
            return int(connection.execute(_evaluations.delete().where(_evaluations.c.version != version)).rowcount)

    # Studies -------------------------------------------------------------------------------------------------------------
    def begin(self, name: str, digest: str) -> bool:
        """Notes that the study `name` with this definition is run; whether the same one was begun before."""
        with self._guarded("cannot be written"), self._engine.begin() as connection:
            known = connection.execute(sql.select(_studies.c.digest).where(_studies.c.name == name)).scalar()
            if known is None:
                connection.execute(_studies.insert().values(name=name, digest=digest, created=time.time()))
            elif known != digest:
                connection.execute(_studies.update().where(_studies.c.name == name).values(digest=digest, created=time.time()))
        return known == digest

    def studies(self) -> list[str]:
        """Names of the studies that were begun in this store, oldest first."""
        with self._guarded("cannot be read"), self._reading() as connection:
            return list(connection.execute(sql.select(_studies.c.name).order_by(_studies.c.created)).scalars())

    def close(self) -> None:
        self._engine.dispose()

    def _reading(self) -> sql.Connection:
        return self._engine.connect().execution_options(dovetail_reading=True)

    def __enter__(self) -> Store:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"Store({_hidden(self.place)})"

    @contextmanager
    def _guarded(self, what: str) -> Iterator[None]:
        try:
            yield
        except DBAPIError as error:
            reason = " ".join(str(error.orig).split())
            full = "full" in reason or "No space" in reason
            hint = "free some space and run again with --resume" if full else "check the place and run again with --resume"
            raise StoreError(f"store {_hidden(self.place)}: {what} ({reason}); everything written before is safe, {hint}") from None


def _hidden(place: str) -> str:
    """A URL without its password."""
    return make_url(place).render_as_string(hide_password=True) if "://" in place else place


def _prepare(connection: Any, _: object) -> None:
    connection.isolation_level = None  # transactions are begun below, not by the driver
    cursor = connection.cursor()
    cursor.execute(f"PRAGMA busy_timeout={BUSY_S * 1000}")
    cursor.execute("PRAGMA journal_mode=WAL")
    cursor.execute("PRAGMA synchronous=NORMAL")  # a killed process loses nothing; a power cut may lose the last commits
    cursor.close()


def _begin(connection: sql.Connection) -> None:
    """A transaction that writes takes the lock at its start: one that takes it later can be refused instead of waiting."""
    reading = connection.get_execution_options().get("dovetail_reading", False)
    connection.exec_driver_sql("BEGIN" if reading else "BEGIN IMMEDIATE")


def _status(text: str) -> Status:
    match text:
        case "ok":
            return "ok"
        case "infeasible":
            return "infeasible"
        case _:
            return "failed"


class Memory:
    """The interface of `Store` in this process alone."""

    place = ""
    migrated = ""

    def __init__(self) -> None:
        self.known: dict[str, Outcome] = {}
        self.begun: dict[str, str] = {}

    def find(self, keys: Iterable[str], *, failed: bool = True) -> dict[str, Outcome]:
        return {k: self.known[k] for k in keys if k in self.known and (failed or self.known[k].status != "failed")}

    def report(self, key: str) -> bytes:
        return self.known[key].report if key in self.known else b""

    def add(self, outcomes: Sequence[Outcome], version: str) -> None:
        self.known.update({o.key: o for o in outcomes})

    def begin(self, name: str, digest: str) -> bool:
        known = self.begun.get(name)
        self.begun[name] = digest
        return known == digest

    def close(self) -> None:
        return None
