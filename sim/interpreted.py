"""The interpreted engine: one pass over the program in Python integers, with exact folding of repeated bodies.

A program is a marked graph, so its times follow from one evaluation in program order. When an iteration of a repetition
leaves the machine in the state the iteration before left, later by one period, every further iteration does the same: its
times are those plus the period, and it is skipped. State is the end of every touched queue and the tokens left in every
touched channel, with the resources that decided them, and what the touched memory services remember. Skipped iterations are
recorded as a `Fold`, never approximated. A program whose text lists a wait before its release is evaluated in dependency order
instead, without folding; so is one in which a memory service would see a transfer later than one that arrives after it.

Times of any length are exact. Small programs run here, because loading compiled code costs more than they do.
"""

from __future__ import annotations

import gc
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from mapper.errors import MappingError
from mapper.program import Item, Program, Repeat, Table, Task, Transfer, flatten, stored
from sim.accounting import INITIAL, LIMIT, Ledger, Token, deadlock, too_long
from sim.trace import Fold, Span, Trace

if TYPE_CHECKING:
    from sim.services import Memory


class _OutOfOrderError(Exception):
    """A task waits for a token that an earlier one in the text has not released, or comes too late to a memory service."""


class TooManyTasksError(Exception):
    """More tasks had to be evaluated than the caller allowed."""


def _memories(program: Program) -> dict[str, Memory]:
    if not program.services:
        return {}
    from sim.services import memories

    return memories(program)


class _Machine:
    def __init__(self, program: Program, limit: int | None) -> None:
        self.program = program
        self.limit = limit
        self.ledger = Ledger(program.queues)
        self.channels: dict[str, deque[Token]] = {}
        for task, _ in stored(program.body):
            for name in (*task.waits, *task.releases):
                if name not in self.channels:
                    self.channels[name] = deque([INITIAL] * program.tokens.get(name, 0))
        self.simulated = 0
        self.skipped = 0
        self.repetitions = 0
        self.memories = _memories(program)
        self.arrived = dict.fromkeys(self.memories, (-1, -1))
        self._order = {queue: index for index, queue in enumerate(program.queues)}
        self._touched: dict[int, tuple[list[str], list[str], list[str], int]] = {}
        self._durations: dict[tuple[str, int], int] = {}

    def ready(self, task: Task) -> bool:
        waits = task.waits
        if len(waits) < 2:
            return not waits or bool(self.channels[waits[0]])
        return all(len(self.channels[name]) >= waits.count(name) for name in waits)

    def arrival(self, task: Task) -> int:
        """When a task whose tokens are there starts."""
        free = (self.ledger.last[queue].time for queue in (task.on, *task.also))
        return max(*free, *(self.channels[name][task.waits[:i].count(name)].time for i, name in enumerate(task.waits)), 0)

    def execute(self, task: Task, record: list[Span | Fold]) -> None:
        channels, ledger = self.channels, self.ledger
        if self.simulated == self.limit:
            raise TooManyTasksError
        queues = (task.on, *task.also) if task.also else (task.on,)
        binding = ledger.start(queues, [channels[name].popleft() for name in task.waits])
        if task.transfer is not None:
            duration = self.serve(task.on, task.transfer, binding.time) - binding.time
        else:
            key = (task.on, task.cycles)
            known = self._durations.get(key)
            duration = self._durations[key] = self.program.duration(task) if known is None else known
        if duration:
            start = binding[0]
            for queue in queues:
                record.append(Span(queue, task.name, start, start + duration))
        token = ledger.finish(queues, binding, duration)
        for name in task.releases:
            channels[name].append(token)
        self.simulated += 1

    def serve(self, queue: str, wanted: Transfer, now_fs: int) -> int:
        arrival = (now_fs, self._order[queue])
        if arrival < self.arrived[wanted.service]:
            raise _OutOfOrderError
        self.arrived[wanted.service] = arrival
        end = self.memories[wanted.service].serve(wanted, now_fs) if now_fs <= LIMIT else now_fs
        if end <= now_fs:
            raise MappingError(too_long())
        return end

    def run(self, body: tuple[Item, ...], record: list[Span | Fold]) -> None:
        for item in body:
            if isinstance(item, Repeat):
                self.repeat(item, record)
                continue
            for task in item if isinstance(item, Table) else (item,):
                if not self.ready(task):
                    raise _OutOfOrderError
                self.execute(task, record)

    def repeat(self, loop: Repeat, record: list[Span | Fold]) -> None:
        queues, names, services, size = self.touched(loop)
        before = self.state(queues, names, services)
        for iteration in range(loop.count):
            base = self.totals(queues)
            spans: list[Span | Fold] = []
            self.run(loop.body, spans)
            after = self.state(queues, names, services)
            left = loop.count - iteration - 1
            period = _period(before, after) if left else None
            if period is None:
                record += spans
                before = after
                continue
            if spans:
                record.append(Fold(left + 1, period, tuple(spans)))
            self.skip(left, period, queues, names, base)
            self.skip_services(left * period, services)
            self.skipped += left * size
            self.repetitions += left
            return

    def touched(self, loop: Repeat) -> tuple[list[str], list[str], list[str], int]:
        """Queues, channels and memory services that a body uses, and its number of tasks."""
        key = id(loop)
        if key not in self._touched:
            queues: dict[str, None] = {}
            names: dict[str, None] = {}
            services: dict[str, None] = {}
            size = 0
            for task, count in stored(loop.body):
                queues.update(dict.fromkeys((task.on, *task.also)))
                names.update(dict.fromkeys((*task.waits, *task.releases)))
                if task.transfer is not None:
                    services[task.transfer.service] = None
                size += count
            self._touched[key] = (list(queues), list(names), list(services), size)
        return self._touched[key]

    def state(self, queues: list[str], names: list[str], services: list[str]) -> tuple[list[int], list[object]]:
        """Times, and everything else that the future depends on."""
        times: list[int] = []
        rest: list[object] = []
        for tokens in ([self.ledger.last[q] for q in queues], *(self.channels[name] for name in names)):
            rest.append(len(tokens))
            for time, cause, since, before in tokens:
                times += (time, since)
                rest += (cause, before)
        for service in services:
            time, others = self.memories[service].snapshot()
            arrival, queue = self.arrived[service]
            times += (time, arrival)
            rest += (others, queue)
        return times, rest

    def totals(self, queues: list[str]) -> dict[str, tuple[int, dict[str, int]]]:
        return {q: (self.ledger.busy[q], dict(self.ledger.stalls[q])) for q in queues}

    def skip(self, count: int, period: int, queues: list[str], names: list[str], base: dict[str, tuple[int, dict[str, int]]]) -> None:
        """Advance by `count` periods and charge what the last iteration charged, that many times."""
        ledger, shift = self.ledger, count * period
        for queue in queues:
            busy, stalls = base[queue]
            ledger.busy[queue] += count * (ledger.busy[queue] - busy)
            current = ledger.stalls[queue]
            for reason, total in current.items():
                current[reason] = total + count * (total - stalls.get(reason, 0))
            ledger.last[queue] = _later(ledger.last[queue], shift)
        for name in names:
            self.channels[name] = deque(_later(token, shift) for token in self.channels[name])

    def skip_services(self, shift: int, services: list[str]) -> None:
        for service in services:
            if self.memories[service].snapshot()[0] + shift > LIMIT:
                raise MappingError(too_long())
            self.memories[service].later(shift)
            arrival, queue = self.arrived[service]
            self.arrived[service] = (arrival + shift, queue)


def _later(token: Token, shift: int) -> Token:
    return Token(token.time + shift, token.cause, token.since + shift, token.before)


def _period(before: tuple[list[int], list[object]], after: tuple[list[int], list[object]]) -> int | None:
    """The time by which `after` is `before` shifted, if it is."""
    times, rest = after
    if rest != before[1] or not times:
        return None
    period = times[0] - before[0][0]
    return period if all(b - a == period for a, b in zip(before[0], times, strict=True)) else None


@contextmanager
def _without_cycles() -> Iterator[None]:
    """Without looking for garbage in cycles: there is none among the spans of a run, and looking at all of them takes longer than
    making them."""
    if not gc.isenabled():
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def simulate(program: Program, limit: int | None = None) -> Trace:
    """Run a program. Raises `MappingError` naming the blocked tasks when it cannot finish, and `TooManyTasksError` when more
    than `limit` tasks have to be evaluated."""
    machine = _Machine(program, limit)
    record: list[Span | Fold] = []
    with _without_cycles():
        try:
            machine.run(program.body, record)
        except _OutOfOrderError:
            machine = _Machine(program, limit)
            record = _in_dependency_order(machine)
    makespan, busy, stalls = machine.ledger.close()
    if program.services and makespan > LIMIT:
        raise MappingError(too_long())
    return Trace(tuple(record), makespan, busy, stalls, machine.simulated, machine.skipped, machine.repetitions)


def _in_dependency_order(machine: _Machine) -> list[Span | Fold]:
    """Every task as soon as its tokens are there; a transfer only when nothing else can go on and none arrives before it."""
    if machine.limit is not None and machine.program.tasks() > machine.limit:
        raise TooManyTasksError
    queues: dict[str, deque[Task]] = {queue: deque() for queue in machine.program.queues}
    for task in flatten(machine.program.body):
        for queue in (task.on, *task.also):
            queues[queue].append(task)
    record: list[Span | Fold] = []

    def execute(task: Task) -> None:
        machine.execute(task, record)
        for queue in (task.on, *task.also):
            queues[queue].popleft()

    moved = True
    while moved:
        moved = False
        transfers: list[tuple[int, int, Task]] = []
        for index, (queue, tasks) in enumerate(queues.items()):
            while tasks and (task := tasks[0]).on == queue and machine.ready(task) and all(_at(queues[q], task) for q in task.also):
                if task.transfer is not None:
                    transfers.append((machine.arrival(task), index, task))
                    break
                execute(task)
                moved = True
        if not moved and transfers:
            execute(min(transfers, key=lambda transfer: transfer[:2])[2])
            moved = True
    if blocked := {queue: tasks[0] for queue, tasks in queues.items() if tasks}:
        raise MappingError(deadlock(blocked))
    return record


def _at(tasks: deque[Task], task: Task) -> bool:
    return bool(tasks) and tasks[0] is task
