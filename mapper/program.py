"""Programs: per-resource instruction queues of tasks with wait/release tokens.

The semantics is exact and engine-independent. A queue executes its tasks in order. A task starts at
max(the end of the task before it in its queue, the time of every token it waits for), lasts `cycles` of its queue's clock
(rounded up to whole femtoseconds) and at its end puts one token into each channel it releases. A channel is a FIFO of
tokens: the n-th wait takes the n-th token. Each channel has one releasing queue and one waiting queue, so that a program
is a marked graph: its times do not depend on the order in which an engine looks at tasks, and making any task shorter never
makes the program longer. `tokens` lists channels that start with credits (free buffers).

`Repeat(count, body)` stands for `count` copies of `body` in a row, nothing else: engines may fold it, never change it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from types import MappingProxyType
from typing import Any

from hw.quantity import FS_PER_S, cycles_to_fs
from mapper.errors import MappingError

SCHEMA = 1


@dataclass(frozen=True, slots=True)
class Move:
    """Bytes read from and written to a memory by a task."""

    memory: str
    read: Fraction | int = 0
    written: Fraction | int = 0


@dataclass(frozen=True, slots=True)
class Task:
    """One instruction: it occupies resource `on` for `cycles` of that queue's clock. `moves`, `macs` and `operations` are
    what it does, for accounting; they do not change its time."""

    name: str
    on: str
    cycles: int = 0
    waits: tuple[str, ...] = ()
    releases: tuple[str, ...] = ()
    moves: tuple[Move, ...] = ()
    macs: Fraction | int = 0
    operations: Fraction | int = 0


@dataclass(frozen=True, slots=True)
class Repeat:
    """`count` copies of `body` in a row."""

    count: int
    body: tuple[Task | Repeat, ...]


Item = Task | Repeat


def flatten(body: Iterable[Item]) -> Iterator[Task]:
    """The tasks of a body with every repetition written out."""
    for item in body:
        if isinstance(item, Task):
            yield item
        else:
            for _ in range(item.count):
                yield from flatten(item.body)


def stored(body: Iterable[Item]) -> Iterator[tuple[Task, int]]:
    """Each stored task with the number of times it runs."""
    for item in body:
        if isinstance(item, Task):
            yield item, 1
        else:
            for task, count in stored(item.body):
                yield task, count * item.count


@dataclass(frozen=True)
class Program:
    """Queues with their clocks in hertz, a body of tasks and repetitions, and channels with initial credits.

    Raises `MappingError` for an unknown queue, a negative duration or count, or a channel shared by several queues.
    """

    queues: Mapping[str, int]
    body: tuple[Item, ...]
    tokens: Mapping[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "queues", MappingProxyType(dict(self.queues)))
        object.__setattr__(self, "tokens", MappingProxyType(dict(self.tokens)))
        waiting: dict[str, str] = {}
        releasing: dict[str, str] = {}
        self._check(self.body, waiting, releasing)
        for channel, credits in self.tokens.items():
            if credits < 0:
                raise MappingError(f"channel {channel!r}: initial credits must be at least 0, found {credits}")

    def _check(self, body: tuple[Item, ...], waiting: dict[str, str], releasing: dict[str, str]) -> None:
        for item in body:
            if isinstance(item, Repeat):
                if item.count < 1:
                    raise MappingError(f"repeat: count must be at least 1, found {item.count}")
                self._check(item.body, waiting, releasing)
                continue
            if item.on not in self.queues:
                raise MappingError(f"task {item.name!r}: unknown queue {item.on!r}, expected one of {', '.join(self.queues)}")
            if item.cycles < 0:
                raise MappingError(f"task {item.name!r}: cycles must be at least 0, found {item.cycles}")
            for owners, channels, verb in ((waiting, item.waits, "waits for"), (releasing, item.releases, "releases")):
                for channel in channels:
                    if owners.setdefault(channel, item.on) != item.on:
                        raise MappingError(
                            f"task {item.name!r} on {item.on!r} {verb} {channel!r}, which belongs to queue {owners[channel]!r}; "
                            "a channel has one releasing and one waiting queue: use one channel per pair"
                        )

    @classmethod
    def of(cls, tasks: Iterable[Item], tokens: Mapping[str, int] | None = None) -> Program:
        """A program whose queues are those its tasks name, each with a clock of one cycle per femtosecond."""
        body = tuple(tasks)
        return cls({task.on: FS_PER_S for task, _ in stored(body)}, body, tokens or {})

    def duration(self, task: Task) -> int:
        """Femtoseconds that a task lasts."""
        return cycles_to_fs(task.cycles, self.queues[task.on])

    def tasks(self) -> int:
        """Number of tasks that run."""
        return sum(count for _, count in stored(self.body))

    def traffic(self) -> dict[str, tuple[Fraction, Fraction]]:
        """Bytes read from and written to each memory."""
        totals: dict[str, tuple[Fraction, Fraction]] = {}
        for task, count in stored(self.body):
            for move in task.moves:
                read, written = totals.get(move.memory, (Fraction(0), Fraction(0)))
                totals[move.memory] = (read + move.read * count, written + move.written * count)
        return totals

    def to_json(self) -> dict[str, Any]:
        def plain(item: Item) -> Any:
            if isinstance(item, Repeat):
                return {"repeat": item.count, "body": [plain(i) for i in item.body]}
            moves = [[m.memory, str(m.read), str(m.written)] for m in item.moves]
            effort = [str(item.macs), str(item.operations)]
            return [item.name, item.on, item.cycles, list(item.waits), list(item.releases), moves, *effort]

        body = [plain(item) for item in self.body]
        return {"schema": SCHEMA, "type": "program", "queues": dict(self.queues), "tokens": dict(self.tokens), "body": body}

    @classmethod
    def from_json(cls, document: Any, where: str = "program") -> Program:
        if not isinstance(document, dict) or document.get("type") != "program" or document.get("schema") != SCHEMA:
            raise MappingError(f"{where}: expected a saved program of schema {SCHEMA}")

        def item(entry: Any) -> Item:
            if isinstance(entry, dict):
                return Repeat(entry["repeat"], tuple(item(i) for i in entry["body"]))
            name, on, cycles, waits, releases, moves, macs, operations = entry
            parsed = tuple(Move(m, Fraction(r), Fraction(w)) for m, r, w in moves)
            return Task(name, on, cycles, tuple(waits), tuple(releases), parsed, Fraction(macs), Fraction(operations))

        try:
            return cls(document["queues"], tuple(item(entry) for entry in document["body"]), document["tokens"])
        except (KeyError, TypeError, ValueError) as error:
            if isinstance(error, MappingError):
                raise
            raise MappingError(f"{where}: not a complete saved program ({error})") from error

    def __repr__(self) -> str:
        return f"Program({', '.join(self.queues)}; {sum(1 for _ in stored(self.body))} tasks stored, {self.tasks()} run)"
