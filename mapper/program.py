"""Programs: per-resource instruction queues of tasks with wait/release tokens.

The semantics is exact and engine-independent. A queue executes its tasks in order. A task starts at
max(the end of the task before it in its queue, the time of every token it waits for), lasts `cycles` of its queue's clock
(rounded up to whole femtoseconds) and at its end puts one token into each channel it releases. A channel is a FIFO of
tokens: the n-th wait takes the n-th token. Each channel has one releasing queue and one waiting queue, so that a program
is a marked graph: its times do not depend on the order in which an engine looks at tasks, and making any task shorter never
makes the program longer. `tokens` lists channels that start with credits (free buffers).

A task may occupy several queues at once, the one it is `on` and those in `also`: it starts when its turn has come on each of
them and every token is there, and holds them all to its end. Its tokens are those of the queue that it is `on`.

A task with a `transfer` lasts as long as a memory service takes: it arrives there when it starts and ends when the service is
through with it. A service handles transfers in the order of (arrival, position of the task's queue), one after the other, and
keeps its state (open rows, direction of the bus) from one to the next, so that queues contend. Only with services do times
depend on more than the tokens.

`Repeat(count, body)` stands for `count` copies of `body` in a row, nothing else: engines may fold it, never change it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from fractions import Fraction
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from hw.channels import Channels
from hw.errors import nearest
from hw.quantity import FS_PER_S, cycles_to_fs
from mapper.errors import MappingError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

SCHEMA = 1


@dataclass(frozen=True, slots=True)
class Move:
    """Bytes read from and written to a memory by a task."""

    memory: str
    read: Fraction | int = 0
    written: Fraction | int = 0


@dataclass(frozen=True, slots=True)
class Transfer:
    """What a task asks of a memory service: bytes read, then bytes written, in contiguous pieces of `piece` bytes (0: in one).

    `address` is where its first byte lies; -1 is a place of its own, whose rows no other transfer has open.
    """

    service: str
    read: int = 0
    written: int = 0
    piece: int = 0
    address: int = -1


@dataclass(frozen=True, slots=True)
class Task:
    """One instruction: it occupies resource `on` for `cycles` of that queue's clock, or, with a `transfer`, for as long as a
    memory service takes. It occupies the queues `also` for just as long: it starts when its turn has come on every one of them,
    so that a copy, say, can hold its engine and a port at once. `moves`, `macs` and `operations` are what it does, for
    accounting; they do not change its time."""

    name: str
    on: str
    cycles: int = 0
    waits: tuple[str, ...] = ()
    releases: tuple[str, ...] = ()
    moves: tuple[Move, ...] = ()
    macs: Fraction | int = 0
    operations: Fraction | int = 0
    transfer: Transfer | None = None
    also: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Repeat:
    """`count` copies of `body` in a row."""

    count: int
    body: tuple[Task | Repeat | Table, ...]


@dataclass(frozen=True, eq=False)
class Table:
    """Tasks in a row as columns, for programs of millions of tasks: task i is `kinds[order[i]]`.

    `cycles`, where given, holds the durations of the tasks instead of those of their kinds. Both columns are integers, copied
    and read-only. Raises `MappingError` for columns of different lengths, a kind that is not there, a negative duration, or
    durations beside a transfer.

    >>> len(Table((Task("load", "dma", 4), Task("compute", "mxu", 9)), [0, 1, 0, 1]))
    4
    """

    kinds: tuple[Task, ...]
    order: NDArray[np.int64]
    cycles: NDArray[np.int64] | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "kinds", tuple(self.kinds))
        for name in ("order", "cycles"):
            if (column := getattr(self, name)) is not None:
                object.__setattr__(self, name, _column(column, name))
        order, cycles = self.order, self.cycles
        if order.size and not (order.min() >= 0 and order.max() < len(self.kinds)):
            wrong = order[(order < 0) | (order >= len(self.kinds))][0]
            raise MappingError(f"table: kind {wrong} is not there, expected 0 to {len(self.kinds) - 1}")
        if cycles is None:
            return
        if cycles.size != order.size:
            raise MappingError(f"table: expected {order.size} durations, one for each task, found {cycles.size}")
        if cycles.size and cycles.min() < 0:
            raise MappingError(f"table: cycles must be at least 0, found {cycles.min()}")
        if served := [kind.name for kind in self.kinds if kind.transfer is not None]:
            raise MappingError(f"table: {served[0]!r} is a transfer, which takes as long as its service does; leave `cycles` out")

    def __len__(self) -> int:
        return int(self.order.size)

    def __iter__(self) -> Iterator[Task]:
        if self.cycles is None:
            return (self.kinds[kind] for kind in self.order.tolist())
        pairs = zip(self.order.tolist(), self.cycles.tolist(), strict=True)
        return (replace(self.kinds[kind], cycles=cycles) for kind, cycles in pairs)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Table) and self._key() == other._key()

    def __hash__(self) -> int:
        return hash(self._key())

    def _key(self) -> tuple[object, ...]:
        return self.kinds, self.order.tobytes(), None if self.cycles is None else self.cycles.tobytes()

    def __repr__(self) -> str:
        return f"Table({len(self)} tasks of {len(self.kinds)} kinds)"


def _column(values: Any, name: str) -> NDArray[np.int64]:
    import numpy as np

    given = np.asarray(values)
    if given.ndim != 1 or (given.size and not np.issubdtype(given.dtype, np.integer)):
        raise MappingError(f"table: {name} must be a row of integers, found shape {given.shape} of {given.dtype}")
    if given.dtype == np.uint64 and given.size and given.max() > np.iinfo(np.int64).max:
        raise MappingError(f"table: {name} must fit 64 bits with a sign, found {given.max()}")
    column: NDArray[np.int64] = given.astype(np.int64)
    column.setflags(write=False)
    return column


Item = Task | Repeat | Table


def flatten(body: Iterable[Item]) -> Iterator[Task]:
    """The tasks of a body with every repetition written out."""
    for item in body:
        if isinstance(item, Task):
            yield item
        elif isinstance(item, Table):
            yield from item
        else:
            for _ in range(item.count):
                yield from flatten(item.body)


def stored(body: Iterable[Item]) -> Iterator[tuple[Task, int]]:
    """Each stored task with the number of times it runs; of a table, each kind that it uses, whose `cycles` may not be the tasks'."""
    for item in body:
        if isinstance(item, Task):
            yield item, 1
        elif isinstance(item, Table):
            import numpy as np

            uses = np.bincount(item.order, minlength=len(item.kinds)).tolist()
            yield from ((kind, count) for kind, count in zip(item.kinds, uses, strict=True) if count)
        else:
            for task, count in stored(item.body):
                yield task, count * item.count


@dataclass(frozen=True)
class Program:
    """Queues with their clocks in hertz, a body of tasks and repetitions, channels with initial credits, and memory services.

    Raises `MappingError` for an unknown queue or service, a negative duration or count, a transfer of nothing or beyond its
    memory, or a channel shared by several queues.
    """

    queues: Mapping[str, int]
    body: tuple[Item, ...]
    tokens: Mapping[str, int] = field(default_factory=dict)
    services: Mapping[str, Channels] = field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "queues", MappingProxyType(dict(self.queues)))
        object.__setattr__(self, "tokens", MappingProxyType(dict(self.tokens)))
        object.__setattr__(self, "services", MappingProxyType(dict(self.services)))
        waiting: dict[str, str] = {}
        releasing: dict[str, str] = {}
        self._check(self.body, waiting, releasing)
        for channel, credits in self.tokens.items():
            if credits < 0:
                raise MappingError(f"channel {channel!r}: initial credits must be at least 0, found {credits}")

    def _check(self, body: Iterable[Item], waiting: dict[str, str], releasing: dict[str, str]) -> None:
        known: set[tuple[object, ...]] = set()
        for item in body:
            if isinstance(item, Repeat):
                if item.count < 1:
                    raise MappingError(f"repeat: count must be at least 1, found {item.count}")
                self._check(item.body, waiting, releasing)
                continue
            if isinstance(item, Table):
                self._check(item.kinds, waiting, releasing)
                continue
            if item.cycles < 0:
                raise MappingError(f"task {item.name!r}: cycles must be at least 0, found {item.cycles}")
            if (alike := (item.on, item.waits, item.releases, item.also, item.transfer)) in known:
                continue
            known.add(alike)
            for position, queue in enumerate((item.on, *item.also)):
                if queue not in self.queues:
                    expected = ", ".join(self.queues) + nearest(queue, self.queues)
                    raise MappingError(f"task {item.name!r}: unknown queue {queue!r}, expected one of {expected}")
                if queue in (item.on, *item.also)[:position]:
                    raise MappingError(f"task {item.name!r}: occupies queue {queue!r} twice; name it once")
            if item.transfer is not None:
                self._check_transfer(item, item.transfer)
            for owners, channels, verb in ((waiting, item.waits, "waits for"), (releasing, item.releases, "releases")):
                for channel in channels:
                    if owners.setdefault(channel, item.on) != item.on:
                        raise MappingError(
                            f"task {item.name!r} on {item.on!r} {verb} {channel!r}, which belongs to queue {owners[channel]!r}; "
                            "a channel has one releasing and one waiting queue: use one channel per pair"
                        )

    def _check_transfer(self, task: Task, wanted: Transfer) -> None:
        if wanted.service not in self.services:
            known = ", ".join(self.services) or "none"
            hint = nearest(wanted.service, self.services)
            raise MappingError(f"task {task.name!r}: unknown memory service {wanted.service!r}, expected one of {known}{hint}")
        if task.cycles:
            raise MappingError(f"task {task.name!r}: a transfer takes as long as its service does, expected no cycles, found {task.cycles}")
        if min(wanted.read, wanted.written, wanted.piece) < 0 or not wanted.read + wanted.written:
            raise MappingError(
                f"task {task.name!r}: expected at least one byte and no negative size, found {wanted.read} B read, "
                f"{wanted.written} B written, pieces of {wanted.piece} B"
            )
        room, size = self.services[wanted.service].capacity, max(wanted.read, wanted.written)
        if wanted.address < -1 or max(wanted.address, 0) + size > room:
            where = "" if wanted.address < 0 else f" at address {wanted.address}"
            raise MappingError(f"task {task.name!r}: {size} B{where} lie beyond the {room} B of memory service {wanted.service!r}")

    @classmethod
    def of(
        cls, tasks: Iterable[Item], tokens: Mapping[str, int] | None = None, services: Mapping[str, Channels] | None = None
    ) -> Program:
        """A program whose queues are those its tasks name, each with a clock of one cycle per femtosecond."""
        body = tuple(tasks)
        queues = {queue: FS_PER_S for task, _ in stored(body) for queue in (task.on, *task.also)}
        return cls(queues, body, tokens or {}, services or {})

    def duration(self, task: Task) -> int:
        """Femtoseconds that a task without a transfer lasts."""
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
            if isinstance(item, Table):
                cycles = None if item.cycles is None else item.cycles.tolist()
                return {"table": [plain(kind) for kind in item.kinds], "order": item.order.tolist(), "cycles": cycles}
            moves = [[m.memory, str(m.read), str(m.written)] for m in item.moves]
            effort = [str(item.macs), str(item.operations)]
            asked = item.transfer
            wanted: list[Any] = [] if asked is None else [[asked.service, asked.read, asked.written, asked.piece, asked.address]]
            if item.also:
                wanted.append({"also": list(item.also)})
            return [item.name, item.on, item.cycles, list(item.waits), list(item.releases), moves, *effort, *wanted]

        body = [plain(item) for item in self.body]
        document = {"schema": SCHEMA, "type": "program", "queues": dict(self.queues), "tokens": dict(self.tokens), "body": body}
        if self.services:
            document["services"] = {name: channels.model_dump() for name, channels in self.services.items()}
        return document

    @classmethod
    def from_json(cls, document: Any, where: str = "program") -> Program:
        if not isinstance(document, dict) or document.get("type") != "program" or document.get("schema") != SCHEMA:
            raise MappingError(f"{where}: expected a saved program of schema {SCHEMA}")

        def item(entry: Any) -> Item:
            if isinstance(entry, dict) and "table" in entry:
                return Table(tuple(task(kind) for kind in entry["table"]), entry["order"], entry["cycles"])
            if isinstance(entry, dict):
                return Repeat(entry["repeat"], tuple(item(i) for i in entry["body"]))
            return task(entry)

        def task(entry: Any) -> Task:
            name, on, cycles, waits, releases, moves, macs, operations, *wanted = entry
            parsed = tuple(Move(m, Fraction(r), Fraction(w)) for m, r, w in moves)
            transfer = next((Transfer(*extra) for extra in wanted if isinstance(extra, list)), None)
            also = next((tuple(extra["also"]) for extra in wanted if isinstance(extra, dict)), ())
            return Task(name, on, cycles, tuple(waits), tuple(releases), parsed, Fraction(macs), Fraction(operations), transfer, also)

        try:
            services = {name: Channels(**fields) for name, fields in document.get("services", {}).items()}
            return cls(document["queues"], tuple(item(entry) for entry in document["body"]), document["tokens"], services)
        except (KeyError, TypeError, ValueError) as error:
            if isinstance(error, MappingError):
                raise
            raise MappingError(f"{where}: not a complete saved program ({error})") from error

    def __repr__(self) -> str:
        return f"Program({', '.join(self.queues)}; {sum(1 for _ in stored(self.body))} tasks stored, {self.tasks()} run)"
