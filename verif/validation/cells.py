"""Rows and cells of measured files: CSV, compressed or not, and Parquet with pyarrow. Mistakes name the row and the column."""

from __future__ import annotations

import csv
import gzip
import importlib
import math
import zlib
from collections.abc import Collection, Iterator, Mapping
from itertools import islice
from pathlib import Path

from hw.errors import nearest
from verif.validation.errors import MeasurementError

UNITS = {"latency_s": 1.0, "latency_ms": 1e-3, "latency_us": 1e-6}

PLAUSIBLE_S = (1e-7, 1e3)
"""No kernel is launched in less than 100 ns, and none of a single operator takes a quarter of an hour."""

LARGEST = 1 << 40
"""No size of an operator is larger."""

ENDINGS = (".csv", ".csv.gz", ".parquet")

Row = Mapping[str, str]


def _open(path: Path) -> Iterator[str]:
    try:
        if path.name.endswith(".gz"):
            with gzip.open(path, "rt", encoding="utf-8-sig", newline="") as file:
                yield from file
        else:
            with path.open(encoding="utf-8-sig", newline="") as file:
                yield from file
    except (OSError, EOFError, UnicodeDecodeError, zlib.error) as error:
        what = error.strerror if isinstance(error, OSError) and error.strerror else error
        raise MeasurementError(f"{path}: cannot be read ({what})") from None


def _lines(path: Path) -> Iterator[tuple[int, list[str]]]:
    """The number and the cells of every row, the header's first; those without any cell are left out."""
    if path.name.endswith(".parquet"):
        yield from enumerate(_parquet(path), 1)
        return
    try:
        yield from ((number, cells) for number, cells in enumerate(csv.reader(_open(path)), 1) if cells)
    except csv.Error as error:
        raise MeasurementError(f"{path}: cannot be read ({error})") from None


def _parquet(path: Path) -> Iterator[list[str]]:
    try:
        parquet = importlib.import_module("pyarrow.parquet")
    except ImportError:
        raise MeasurementError(f"{path}: reading Parquet needs pyarrow; install it, or convert the file to CSV") from None
    try:
        table = parquet.read_table(path)
    except (OSError, ValueError) as error:  # pyarrow's own errors are among these
        raise MeasurementError(f"{path}: cannot be read ({error})") from None
    yield list(table.column_names)
    for row in zip(*(column.to_pylist() for column in table.columns), strict=True):
        yield ["" if value is None else str(value) for value in row]


def header(path: Path) -> list[str]:
    """The names of the columns. Raises `MeasurementError` for an empty file and for one that cannot be read."""
    _, first = next(_lines(path), (0, []))
    if not first:
        raise MeasurementError(f"{path}: row 1: expected a header, found an empty file")
    return [name.strip() for name in first]


def rows(path: Path, columns: Collection[str] = ()) -> Iterator[tuple[str, Row]]:
    """Rows with their place. Raises `MeasurementError` for a missing or repeated column and for a row of another length."""
    names = header(path)
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise MeasurementError(f"{path}: row 1: column {twice!r} is there {names.count(twice)} times")
    for column in columns:
        if column not in names:
            raise MeasurementError(f"{path}: row 1: column {column!r} is missing, found {', '.join(names)}{nearest(column, names)}")
    for number, cells in islice(_lines(path), 1, None):
        if len(cells) != len(names):
            raise MeasurementError(f"{path}: row {number}: expected {len(names)} cells, found {len(cells)}")
        yield f"{path}: row {number}", {name: cell.strip() for name, cell in zip(names, cells, strict=True)}


def seconds(place: str, row: Row, column: str, factor: float = 1.0) -> float:
    """A latency. Raises `MeasurementError` for anything but a finite number above 0 that some operator may take."""
    try:
        value = float(row[column])
    except ValueError:
        raise MeasurementError(f"{place}: column {column}: expected a number, found {row[column]!r}") from None
    if not math.isfinite(value) or value <= 0:
        raise MeasurementError(f"{place}: column {column}: expected a latency above 0, found {row[column]}")
    if not PLAUSIBLE_S[0] <= value * factor <= PLAUSIBLE_S[1]:
        raise MeasurementError(
            f"{place}: column {column}: {value * factor:.3g} s is no latency of one operator; is the unit right? "
            f"Columns are named {', '.join(UNITS)}"
        )
    return value * factor


def size(place: str, row: Row, column: str, least: int = 1, most: int = LARGEST) -> int:
    """A size. Raises `MeasurementError` for anything but a whole number from `least` to `most`."""
    text = row[column]
    try:
        value = int(text)
    except ValueError:
        try:
            real = float(text)
        except ValueError:
            real = math.nan
        if not math.isfinite(real) or real != int(real):
            raise MeasurementError(f"{place}: column {column}: expected a whole number, found {text!r}") from None
        value = int(real)  # 128.0, as tables with missing cells write it
    if value < least:
        raise MeasurementError(f"{place}: column {column}: expected at least {least}, found {text}")
    if value > most:
        raise MeasurementError(f"{place}: column {column}: expected at most {most}, found {text}")
    return value


def known(place: str, column: str, value: str, names: Collection[str]) -> str:
    """A name among `names`. Raises `MeasurementError` with the nearest one."""
    if value not in names:
        raise MeasurementError(
            f"{place}: column {column}: unknown {column} {value!r}, expected one of {', '.join(names)}{nearest(value, tuple(names))}"
        )
    return value
