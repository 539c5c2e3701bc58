"""What happened when: spans of tasks on resources, with repeated parts kept folded.

All times are integer femtoseconds.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, TypeAlias


class Span(NamedTuple):
    """Task `name` occupied resource `on` from `start` to `end` (femtoseconds)."""

    on: str
    name: str
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class Fold:
    """`body` happened `count` times in a row, each time `period` femtoseconds after the time before; `body` holds the first."""

    count: int
    period: int
    body: Entries


Entries: TypeAlias = "Sequence[Span | Fold]"
"""A folded recording: a tuple, or `sim.columns.Columns`, which makes its spans when they are looked at."""


def expand(entries: Iterable[Span | Fold], shift: int = 0) -> Iterator[Span]:
    """Every span of a folded recording, shifted by `shift`."""
    for entry in entries:
        if isinstance(entry, Span):
            yield Span(entry.on, entry.name, entry.start + shift, entry.end + shift) if shift else entry
        else:
            for i in range(entry.count):
                yield from expand(entry.body, shift + i * entry.period)


def count_spans(entries: Entries) -> int:
    """Number of spans after expansion."""
    counted = getattr(entries, "count_spans", None)
    return int(counted()) if counted else sum(1 if isinstance(e, Span) else e.count * count_spans(e.body) for e in entries)


@dataclass(frozen=True)
class Trace:
    """The outcome of a simulation.

    `entries` is the folded recording, `makespan` the end of the last task, `busy` the occupied time of each resource and
    `stalls` its idle time by reason (the resource waited for, or `drained` after its last task); for each resource
    busy + sum(stalls) = makespan exactly. `simulated` and `skipped` count tasks evaluated and tasks covered by folding,
    `repetitions` the iterations of repeated bodies that were skipped.
    """

    entries: Entries
    makespan: int
    busy: Mapping[str, int] = field(default_factory=dict)
    stalls: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    simulated: int = 0
    skipped: int = 0
    repetitions: int = 0

    def spans(self) -> Iterator[Span]:
        """All spans, expanded; the order within one resource is the order of its queue."""
        return expand(self.entries)

    def __len__(self) -> int:
        return count_spans(self.entries)

    def end(self, name: str) -> int:
        """When the last task called `name` ended."""
        ends = [span.end for span in self.spans() if span.name == name]
        if not ends:
            raise KeyError(f"no task called {name!r} in this trace")
        return max(ends)

    def __repr__(self) -> str:
        return f"Trace({len(self)} spans, makespan {self.makespan} fs)"
