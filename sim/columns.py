"""A recording as columns, whose spans are made when they are looked at."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cached_property, partial
from typing import overload

import numpy as np
from numpy.typing import NDArray

from sim.lowered import Lowered
from sim.trace import Fold, Span, count_spans

Ints = NDArray[np.int64]

_span = partial(tuple.__new__, Span)
"""`Span._make` without its check of the length: four times as fast."""


class Record:
    """What the compiled engine wrote down: rows (stored task, start, end), and folds in the order begin, outer before inner.

    A fold is a row (first record, end, first stall, end, times, period).
    """

    def __init__(self, lowered: Lowered, rows: Ints, folds: Ints, spans: int) -> None:
        self.rows = rows
        order = np.lexsort((-np.arange(folds.shape[0]), -folds[:, 1], folds[:, 0]))
        self.folds = folds[order][folds[order, 1] > folds[order, 0]]
        self.spans = spans
        self.kind, self.queues = lowered.kind, lowered.queues
        self.queue_names = tuple(lowered.program.queues)
        self._names = lowered.names

    @cached_property
    def names(self) -> Sequence[str]:
        """Names of the stored tasks."""
        return self._names()

    def spans_of(self, begin: int, end: int) -> Iterator[Span]:
        """Spans of records in a row; a task on several queues has one on each."""
        rows = self.rows[begin:end]
        offsets, entries = self.queues
        kind = self.kind[rows[:, 0]]
        widths = offsets[kind + 1] - offsets[kind]
        on = entries[offsets[kind]]
        if widths.size and widths.max() > 1:
            rows = np.repeat(rows, widths, axis=0)
            starts = np.repeat(np.cumsum(widths) - widths, widths)
            on = entries[np.repeat(offsets[kind], widths) + np.arange(starts.size) - starts]
        names, queue_names = self.names, self.queue_names
        called = map(names.__getitem__, rows[:, 0].tolist())
        fields = zip(map(queue_names.__getitem__, on.tolist()), called, rows[:, 1].tolist(), rows[:, 2].tolist(), strict=True)
        return map(_span, fields)

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "names": self.names, "_names": None}


class Columns(Sequence["Span | Fold"]):
    """A part of a record: records from `begin` to `end` with the folds from `first` to `last` in them."""

    def __init__(self, record: Record, begin: int, end: int, first: int, last: int) -> None:
        self._record = record
        self._bounds = (begin, end, first, last)

    @classmethod
    def of(cls, record: Record) -> Columns:
        """All of a record."""
        return cls(record, 0, record.rows.shape[0], 0, record.folds.shape[0])

    @cached_property
    def _entries(self) -> tuple[Span | Fold, ...]:
        record, (at, end, fold, last) = self._record, self._bounds
        made: list[Span | Fold] = []
        while fold < last:
            begin, close, _, _, times, period = record.folds[fold].tolist()
            made += record.spans_of(at, begin)
            inner = fold + 1
            fold = inner + int(np.searchsorted(record.folds[inner:last, 0], close))
            made.append(Fold(times, period, Columns(record, begin, close, inner, fold)))
            at = close
        made += record.spans_of(at, end)
        return tuple(made)

    @overload
    def __getitem__(self, index: int) -> Span | Fold: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Span | Fold]: ...
    def __getitem__(self, index: int | slice) -> Span | Fold | Sequence[Span | Fold]:
        return self._entries[index]

    def __iter__(self) -> Iterator[Span | Fold]:
        _, _, first, last = self._bounds
        if first < last or "_entries" in self.__dict__:
            return iter(self._entries)
        return self._record.spans_of(*self._bounds[:2])

    def __len__(self) -> int:
        return len(self._entries)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and self._entries == tuple(other)

    def __hash__(self) -> int:
        return hash(self._entries)

    def __repr__(self) -> str:
        begin, end, first, last = self._bounds
        return f"Columns({end - begin} records, {last - first} folds)"

    def count_spans(self) -> int:
        """Number of spans after expansion."""
        if self._bounds == (0, self._record.rows.shape[0], 0, self._record.folds.shape[0]):
            return self._record.spans
        return sum(1 if isinstance(entry, Span) else entry.count * count_spans(entry.body) for entry in self._entries)
