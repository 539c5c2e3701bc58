"""Requests: when they arrive, how long their prompts are and how many tokens they ask for.

Arrivals are `closed` (a population of clients, each of which sends its next request when it has its answer), `poisson:RATE` per
second, or a trace: a CSV file whose first line names the columns `arrival_s`, `input_tokens` and `output_tokens` (or those of the
Azure LLM inference traces, `TIMESTAMP,ContextTokens,GeneratedTokens`). Lengths are Gaussian around a mean, whole and at least 1.
"""

from __future__ import annotations

import csv
import math
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np

from dovetail.serving.errors import ServingError

NS = 1_000_000_000
COLUMNS = {
    "arrival_s": ("arrival_s", "timestamp"),
    "input_tokens": ("input_tokens", "contexttokens"),
    "output_tokens": ("output_tokens", "generatedtokens"),
}
MOST_TOKENS = 1 << 24


@dataclass(frozen=True)
class Requests:
    """Requests in order of arrival. `arrivals_ns` is None for a closed population: then a request arrives when another is done."""

    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    arrivals_ns: tuple[int, ...] | None = None
    source: str = "closed"

    def __len__(self) -> int:
        return len(self.inputs)


@dataclass(frozen=True)
class Lengths:
    """Gaussian lengths: `mean` and `deviation` in tokens."""

    mean: float
    deviation: float = 0.0

    @classmethod
    def parse(cls, text: str, option: str) -> Lengths:
        """`MEAN` or `MEAN:DEVIATION`. Raises `ServingError`."""
        mean, colon, deviation = text.partition(":")
        try:
            found = cls(float(mean), float(deviation) if colon else 0.0)
        except ValueError:
            raise ServingError(f"{option}: expected MEAN or MEAN:DEVIATION in tokens such as 512 or 512:64, not {text!r}") from None
        if not (1 <= found.mean <= MOST_TOKENS and 0 <= found.deviation <= found.mean):
            raise ServingError(f"{option}: expected a mean of 1 to {MOST_TOKENS} tokens and a deviation of 0 to the mean, not {text!r}")
        return found

    def draw(self, count: int, rng: np.random.Generator) -> tuple[int, ...]:
        if not self.deviation:
            return (round(self.mean),) * count
        return tuple(int(v) for v in np.maximum(1, np.rint(rng.normal(self.mean, self.deviation, count))))


def draw(text: str, count: int, inputs: Lengths, outputs: Lengths, rng: np.random.Generator) -> Requests:
    """`count` requests of an arrival process: `closed`, `poisson:RATE`, or the path of a trace. Raises `ServingError`."""
    if text == "closed":
        return Requests(inputs.draw(count, rng), outputs.draw(count, rng))
    name, colon, rate = text.partition(":")
    if name == "poisson":
        try:
            per_s = float(rate) if colon else math.nan
        except ValueError:
            per_s = math.nan
        if not 0 < per_s < math.inf:
            raise ServingError(f"--arrivals: expected poisson:RATE with requests per second above 0, such as poisson:4, not {text!r}")
        gaps = rng.exponential(NS / per_s, count)
        times = tuple(int(t) for t in np.cumsum(gaps))
        return Requests(inputs.draw(count, rng), outputs.draw(count, rng), times, text)
    path = Path(text)
    if not path.is_file():
        raise ServingError(f"--arrivals: expected closed, poisson:RATE or a trace file; {text!r} is neither and there is no such file")
    return read_trace(path, count)


def read_trace(path: Path, most: int | None = None) -> Requests:
    """The requests of a trace, `most` at most; times count from the first. Raises `ServingError` naming the line."""
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ServingError(f"{path}: cannot be read ({getattr(error, 'strerror', None) or 'not a text file'})") from None
    rows = csv.reader(lines)
    header = [cell.strip().lower() for cell in next(rows, [])]
    places = {}
    for column, known in COLUMNS.items():
        place = next((i for i, cell in enumerate(header) if cell in known), None)
        if place is None:
            raise ServingError(
                f"{path}:1: expected a line that names the columns {', '.join(COLUMNS)}, found {','.join(header) or 'nothing'}; {column} "
                "is missing"
            )
        places[column] = place
    times: list[int] = []
    sizes: dict[str, list[int]] = {"input_tokens": [], "output_tokens": []}
    for number, row in enumerate(rows, 2):
        if not any(cell.strip() for cell in row):
            continue
        if most is not None and len(times) == most:
            break
        if len(row) != len(header):
            raise ServingError(f"{path}:{number}: expected {len(header)} values, found {len(row)}")
        time = _time(row[places["arrival_s"]], f"{path}:{number}")
        if times and time < times[-1]:
            raise ServingError(
                f"{path}:{number}: arrives {(times[-1] - time) / NS:g} s before the request of the line before; sort the trace by time"
            )
        times.append(time)
        for column, values in sizes.items():
            values.append(_tokens(row[places[column]], f"{path}:{number}: {column}"))
    if not times:
        raise ServingError(f"{path}: has no requests, expected a line for each after the names of the columns")
    first = times[0]
    return Requests(tuple(sizes["input_tokens"]), tuple(sizes["output_tokens"]), tuple(t - first for t in times), str(path))


def _time(text: str, where: str) -> int:
    text = text.strip()
    try:
        seconds = float(text)
    except ValueError:
        try:
            seconds = datetime.fromisoformat(text[:26]).timestamp()
        except ValueError:
            raise ServingError(f"{where}: arrival_s: expected seconds or a date and time, not {text!r}") from None
    if not (math.isfinite(seconds) and seconds >= 0):
        raise ServingError(f"{where}: arrival_s: expected a time of at least 0 s, not {text!r}")
    return round(seconds * NS)


def _tokens(text: str, where: str) -> int:
    try:
        value = int(text.strip())
    except ValueError:
        raise ServingError(f"{where}: expected a whole number of tokens, not {text.strip()!r}") from None
    if not 1 <= value <= MOST_TOKENS:
        raise ServingError(f"{where}: expected 1 to {MOST_TOKENS} tokens, not {value}")
    return value


def as_rows(requests: Requests) -> list[dict[str, Any]]:
    """Requests as a trace has them."""
    times = requests.arrivals_ns or (0,) * len(requests)
    return [
        {"arrival_s": t / NS, "input_tokens": i, "output_tokens": o}
        for t, i, o in zip(times, requests.inputs, requests.outputs, strict=True)
    ]
