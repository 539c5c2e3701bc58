"""The timeline of a report as Chrome-trace JSON, the format that Perfetto and chrome://tracing open.

One process per device, one thread per resource, one complete event per span. Times are microseconds with nine decimal
places, which is exact: a span's femtoseconds are kept. The output depends on the report's trace alone, byte for byte.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dovetail.files import atomic_writer
from dovetail.text import subject
from sim.trace import Entries, Span, count_spans, expand

if TYPE_CHECKING:
    from dovetail.report import Report

LIMIT = 200_000
"""Spans written by default; a trace that has more is shortened fold by fold."""


def operator_of(task: str, operators: frozenset[str]) -> str:
    """The operator that a task belongs to: the longest of `operators` that its name starts with, up to a separator.

    >>> operator_of("layer.q_proj[3].load", frozenset({"layer.q_proj", "layer"}))
    'layer.q_proj'
    >>> operator_of("refresh", frozenset({"layer"}))
    ''
    """
    end = len(task)
    while end > 0:
        if task[:end] in operators:
            return task[:end]
        end -= 1
        while end > 0 and (task[end].isalnum() or task[end] == "_"):
            end -= 1
    return ""


def microseconds(time_fs: int) -> str:
    """Femtoseconds as exact decimal microseconds.

    >>> microseconds(1_234_567_890_123)
    '1234.567890123'
    """
    whole, part = divmod(time_fs, 10**9)
    return f"{whole}.{part:09d}"


def events(report: Report, limit: int = LIMIT) -> Iterator[str]:
    """Every event as one line of JSON: names first, then spans in the order of the recording.

    A trace of more than `limit` spans keeps the first and the last iteration of each fold; the iterations between them
    become one event that says how many they were.
    """
    entries = report.trace.entries
    tracks = {name: number for number, name in enumerate(resources(report), 1)}
    yield _line(ph="M", pid=1, name="process_name", args={"name": report.device})
    yield _line(ph="M", pid=1, name="process_labels", args={"labels": subject(report)})
    for name, number in tracks.items():
        yield _line(ph="M", pid=1, tid=number, name="thread_name", args={"name": name})
        yield _line(ph="M", pid=1, tid=number, name="thread_sort_index", args={"sort_index": number})
    operators = frozenset(o.name for o in report.operators)
    ends: dict[tuple[str, int], str] = {}  # what follows the start: few tasks differ in name and duration
    announced = False
    for item in shortened(entries) if count_spans(entries) > limit else expand(entries):
        if isinstance(item, Span):
            on, name, begin, close = item
            length = close - begin
            tail = ends.get((name, length))
            if tail is None:
                label = _label(name, operator_of(name, operators))
                tail = ends[name, length] = f',"dur":{microseconds(length)},{label}}}'
            whole, part = divmod(begin, 10**9)
            yield f'{{"ph":"X","pid":1,"tid":{tracks[on]},"ts":{whole}.{part:09d}{tail}'
        else:
            start, end, folded, spans = item
            if not announced:
                announced = True
                yield _line(ph="M", pid=1, tid=0, name="thread_name", args={"name": "folded repeats"})
                yield _line(ph="M", pid=1, tid=0, name="thread_sort_index", args={"sort_index": 0})
            label = _line(name=f"{folded} repeats folded", args={"repeats": folded, "spans": spans})[1:-1]
            yield f'{{"ph":"X","pid":1,"tid":0,"ts":{microseconds(start)},"dur":{microseconds(end - start)},{label}}}'


def _label(task: str, operator: str) -> str:
    return _line(name=task, args={"operator": operator})[1:-1] if operator else _line(name=task)[1:-1]


Folded = tuple[int, int, int, int]
"""Start and end (femtoseconds) of the iterations left out, how many they are, how many spans they hold."""


def shortened(entries: Entries, shift: int = 0) -> Iterator[Span | Folded]:
    """Spans with each fold reduced to its first and last iteration, and a `Folded` for what lies between them."""
    for entry in entries:
        if isinstance(entry, Span):
            yield Span(entry.on, entry.name, entry.start + shift, entry.end + shift)
            continue
        yield from shortened(entry.body, shift)
        if entry.count > 2:
            start = first_start(entry.body) + shift + entry.period
            left_out = entry.count - 2
            yield (start, start + left_out * entry.period, left_out, left_out * count_spans(entry.body))
        if entry.count > 1:
            yield from shortened(entry.body, shift + (entry.count - 1) * entry.period)


def first_start(entries: Entries) -> int:
    """When the earliest span of a recording starts; a fold starts with its first iteration."""
    return min(entry.start if isinstance(entry, Span) else first_start(entry.body) for entry in entries)


def resources(report: Report) -> list[str]:
    """Resources in the order of the report's utilisation, then those that only the trace names, in order of appearance."""
    seen = dict.fromkeys(report.utilization)

    def visit(entries: Entries) -> None:
        for entry in entries:
            if isinstance(entry, Span):
                seen.setdefault(entry.on)
            else:
                visit(entry.body)

    visit(report.trace.entries)
    return list(seen)


def write_timeline(report: Report, path: str | Path, limit: int = LIMIT) -> None:
    """Writes the timeline to `path`, event by event. Raises `OSError` when it cannot be written; nothing half-written stays."""
    with atomic_writer(path) as file:
        file.write('{"displayTimeUnit":"ns","traceEvents":[\n')
        written = events(report, limit)
        file.write(next(written))
        while lines := list(islice(written, 4096)):
            file.write(",\n" + ",\n".join(lines))
        file.write("\n]}\n")


def _line(**fields: Any) -> str:
    return json.dumps(fields, separators=(",", ":"))
