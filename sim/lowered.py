"""A program as arrays of 64-bit integers, for compiled code.

Stored tasks are numbered in the order of the text. Tasks alike in queues, waits, releases and transfer are of one kind; a task is
its kind and its femtoseconds. Tables of variable length are pairs of offsets and entries: those of kind k are
`entries[offsets[k]:offsets[k + 1]]`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import chain, groupby, islice, repeat
from math import gcd
from operator import attrgetter
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hw.quantity import FS_PER_S, cycles_to_fs
from mapper.program import Item, Program, Repeat, Table, Task, Transfer

Ints = NDArray[np.int64]
Ragged = tuple[Ints, Ints]

RUN, LOOP, END, STOP = range(4)
"""Operations of the text: tasks a to b, begin of loop a, end of loop a, the end."""

LARGEST = int(np.iinfo(np.int64).max)

_SIGNATURE = ("on", "also", "waits", "releases", "transfer")
_signature = attrgetter(*_SIGNATURE)


class TooLongError(Exception):
    """A duration or a count does not fit 64 bits."""


class _Numbering(dict[Any, int]):
    """Numbers things in the order in which they are first seen."""

    def __missing__(self, key: Any) -> int:
        number = self[key] = len(self)
        return number


@dataclass(frozen=True, eq=False)
class Lowered:
    """The arrays of one program.

    `operations` are rows (operation, a, b). `kind` and `fs` belong to the stored tasks. `queues` (the first is the one that the task
    is `on`), `waits` and `releases` belong to the kinds; the last two hold rows (channel, how often the channel came before in the
    row). `service` and `request` of a kind are -1 without a transfer. `count` and `size` (tasks in one iteration), `loop_queues`,
    `loop_channels` and `loop_services` belong to the loops. `waiting` is the queue that a channel's tokens go to.
    """

    program: Program
    task: Callable[[int], Task]
    names: Callable[[], Sequence[str]]
    operations: Ints
    kind: Ints
    fs: Ints
    queues: Ragged
    waits: Ragged
    releases: Ragged
    service: Ints
    request: Ints
    transfers: tuple[Transfer, ...]
    credits: Ints
    waiting: Ints
    count: Ints
    size: Ints
    loop_queues: Ragged
    loop_channels: Ragged
    loop_services: Ragged


class _Text:
    """The text of a body: its parts of tasks in a row, and the operations over them."""

    def __init__(self, body: tuple[Item, ...]) -> None:
        self.parts: list[Sequence[Task] | Table] = []
        self.operations: list[tuple[int, int, int]] = []
        self.loops: list[tuple[int, int, int, int]] = []  # count, first task, end, tasks in one iteration
        self.stored = 0
        self.read(body)
        self.operations.append((STOP, 0, 0))

    def read(self, body: tuple[Item, ...]) -> int:
        """Adds a body; how many tasks it runs."""
        tasks = 0
        for row, items in [(Task, body)] if set(map(type, body)) == {Task} else groupby(body, type):
            if row is Task:
                tasks += self._run(items if isinstance(items, tuple) else tuple(items))  # type: ignore[arg-type]
                continue
            for item in items:
                if isinstance(item, Table):
                    tasks += self._run(item)
                elif isinstance(item, Repeat):
                    tasks += self._loop(item)
        return tasks

    def _run(self, part: Sequence[Task] | Table) -> int:
        if size := len(part):
            self.parts.append(part)
            self.operations.append((RUN, self.stored, self.stored + size))
            self.stored += size
        return size

    def _loop(self, loop: Repeat) -> int:
        number, begin, place = len(self.loops), self.stored, len(self.operations)
        self.loops.append((0, 0, 0, 0))
        self.operations.append((LOOP, number, 0))
        size = self.read(loop.body)
        if not size:
            del self.operations[place:]
            self.loops[number] = (1, begin, begin, 0)
            return 0
        self.operations.append((END, number, place + 1))
        self.loops[number] = (loop.count, begin, self.stored, size)
        return size * loop.count

    def task(self, number: int) -> Task:
        """A stored task by its number."""
        for part in self.parts:
            if number < len(part):
                return next(islice(iter(part), number, None)) if isinstance(part, Table) else part[number]
            number -= len(part)
        raise IndexError(number)


def lower(program: Program) -> Lowered:
    """The arrays of a program. Raises `TooLongError` when a duration or the number of tasks does not fit 64 bits."""
    try:
        return _lower(program)
    except OverflowError as error:
        raise TooLongError from error


def _lower(program: Program) -> Lowered:
    text = _Text(program.body)
    if sum(count * size for count, _, _, size in text.loops) + text.stored >= LARGEST:
        raise TooLongError
    kind, kinds = _kinds(text.parts)
    queue = {name: number for number, name in enumerate(program.queues)}
    ons, alsos, waiteds, releaseds, asked = (list(map(attrgetter(name), kinds)) for name in _SIGNATURE)
    on = _numbers(ons, queue)
    fs = _femtoseconds(on, kind, _cycles(text.parts), tuple(program.queues.values()))

    names = dict.fromkeys(chain.from_iterable(waiteds))  # nothing depends on a token that nobody awaits
    channels = dict(zip(names, range(len(names)), strict=True))
    offsets, entries = _ragged(waiteds, channels)
    waits = offsets, _occurrences(offsets, entries)
    releases = _known(*_ragged(releaseds, channels))
    waiting = np.zeros(len(channels), np.int64)
    waiting[waits[1][:, 0]] = np.repeat(on, np.diff(waits[0]))

    services = {name: number for number, name in enumerate(program.services)}
    transfers = _Numbering()
    service = request = np.full(len(kinds), -1, np.int64)
    if services:
        service = np.array([-1 if t is None else services[t.service] for t in asked], np.int64)
        request = np.array([-1 if t is None else transfers[t] for t in asked], np.int64)
    queues = np.arange(len(kinds) + 1), on
    if any(alsos):
        queues = _ragged([(first, *others) for first, others in zip(ons, alsos, strict=True)], queue)
    used = [np.unique(kind[begin:end]) for _, begin, end, _ in text.loops]
    return Lowered(
        program,
        text.task,
        _namer(text.parts),
        np.array(text.operations, np.int64).reshape(-1, 3),
        kind,
        fs,
        queues,
        waits,
        releases,
        service,
        request,
        tuple(transfers),
        _numbers(channels, dict(program.tokens), 0),
        waiting,
        np.array([count for count, _, _, _ in text.loops], np.int64),
        np.array([size for _, _, _, size in text.loops], np.int64),
        _join([np.unique(_gather(queues[0], queues[1], kinds)) for kinds in used]),
        _join([np.unique(np.concatenate([_gather(*side, kinds)[:, 0] for side in (waits, releases)])) for kinds in used]),
        _join([np.unique(service[kinds][service[kinds] >= 0]) for kinds in used]),
    )


def _numbers(keys: Iterable[str], numbering: dict[str, int], other: int = -1) -> Ints:
    """The numbers of names, `other` for those that have none."""
    return np.fromiter(map(numbering.get, keys, repeat(other)), np.int64)


SAMPLE = 4096
"""Tasks that are looked at to see whether tasks are alike."""


def _kinds(parts: list[Sequence[Task] | Table]) -> tuple[Ints, Sequence[Task]]:
    """The kind of every stored task, and a task of each kind.

    Where a sample of the tasks has no two alike (each waits for channels of its own) every task is taken for a kind of its own.
    """
    if len(parts) == 1 and not isinstance(parts[0], Table) and len(parts[0]) > SAMPLE:
        sample = parts[0][:SAMPLE]
        if 2 * len(set(map(_signature, sample))) > SAMPLE:
            return np.arange(len(parts[0])), parts[0]
    numbering = _Numbering()
    kinds: list[Ints] = []
    for part in parts:
        if isinstance(part, Table):
            kinds.append(np.fromiter(map(numbering.__getitem__, map(_signature, part.kinds)), np.int64)[part.order])
        else:
            kinds.append(np.fromiter(map(numbering.__getitem__, map(_signature, part)), np.int64, len(part)))
    made = [Task("", on, 0, waits, releases, transfer=transfer, also=also) for on, also, waits, releases, transfer in numbering]
    return np.concatenate(kinds) if kinds else np.empty(0, np.int64), made


def _cycles(parts: list[Sequence[Task] | Table]) -> Ints:
    """The cycles of every stored task."""
    columns: list[Ints] = []
    for part in parts:
        if not isinstance(part, Table):
            columns.append(np.fromiter(map(attrgetter("cycles"), part), np.int64, len(part)))
        elif part.cycles is None:
            columns.append(np.fromiter(map(attrgetter("cycles"), part.kinds), np.int64, len(part.kinds))[part.order])
        else:
            columns.append(part.cycles)
    return np.concatenate(columns) if columns else np.empty(0, np.int64)


def _known(offsets: Ints, entries: Ints) -> Ragged:
    """The table without the entries that have no number."""
    known = entries >= 0
    kept = np.concatenate(([0], np.cumsum(known)))[offsets]
    return kept, _occurrences(kept, entries[known])


def _ragged(rows: Sequence[tuple[str, ...]], numbering: dict[str, int]) -> Ragged:
    offsets = np.zeros(len(rows) + 1, np.int64)
    np.cumsum(np.fromiter(map(len, rows), np.int64, len(rows)), out=offsets[1:])
    return offsets, _numbers(chain.from_iterable(rows), numbering)


def _occurrences(offsets: Ints, entries: Ints) -> Ints:
    """Rows (entry, how often it came before in its row of the table)."""
    out = np.zeros((entries.size, 2), np.int64)
    out[:, 0] = entries
    if offsets.size and np.diff(offsets).max(initial=0) < 2:
        return out
    rows = np.repeat(np.arange(offsets.size - 1), np.diff(offsets))
    order = np.lexsort((entries, rows))
    same = np.flatnonzero((np.diff(rows[order]) == 0) & (np.diff(entries[order]) == 0))
    for index in same.tolist():
        out[order[index + 1], 1] = out[order[index], 1] + 1
    return out


def _gather(offsets: Ints, entries: Ints, rows: Ints) -> Ints:
    """The entries of several rows of a table."""
    sizes = offsets[rows + 1] - offsets[rows]
    starts = np.repeat(offsets[rows] - np.concatenate(([0], np.cumsum(sizes)[:-1])), sizes)
    taken: Ints = entries[starts + np.arange(sizes.sum())]
    return taken


def _join(rows: list[Ints]) -> Ragged:
    offsets = np.zeros(len(rows) + 1, np.int64)
    np.cumsum([row.size for row in rows], out=offsets[1:])
    return offsets, np.concatenate(rows) if rows else np.empty(0, np.int64)


def _femtoseconds(on: Ints, kind: Ints, cycles: Ints, clocks: tuple[int, ...]) -> Ints:
    """Durations, rounded up, as `cycles_to_fs` has them."""
    up = [FS_PER_S // gcd(FS_PER_S, clock) for clock in clocks]
    down = [clock // gcd(FS_PER_S, clock) for clock in clocks]
    if set(up) | set(down) <= {1}:
        return cycles
    fits = LARGEST // max(up) - 1
    if cycles.max(initial=0) <= fits:
        fs: Ints = cycles * (up[0] if len(set(up)) == 1 else np.array(up)[on][kind])
        return fs if set(down) == {1} else -(-fs // np.array(down)[on][kind])
    exact = [cycles_to_fs(c, clocks[q]) for c, q in zip(cycles.tolist(), on[kind].tolist(), strict=True)]
    return np.array(exact, np.int64)


def _namer(parts: list[Sequence[Task] | Table]) -> Callable[[], Sequence[str]]:
    """Makes the names of the stored tasks when they are asked for."""

    def names() -> list[str]:
        made: list[str] = []
        for part in parts:
            if isinstance(part, Table):
                own = [kind.name for kind in part.kinds]
                made += [own[kind] for kind in part.order.tolist()]
            else:
                made += map(attrgetter("name"), part)
        return made

    return names
