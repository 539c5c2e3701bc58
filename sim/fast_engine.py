"""The fast engine: one pass over the program, with exact folding of repeated bodies.

A program is a marked graph, so its times follow from one evaluation in program order. When an iteration of a repetition
leaves the machine in the state the iteration before left, later by one period, every further iteration does the same: its
times are those plus the period, and it is skipped. State is the end of every touched queue and the tokens left in every
touched channel, with the resources that decided them. Skipped iterations are recorded as a `Fold`, never approximated.
A program whose text lists a wait before its release is evaluated in dependency order instead, without folding.
"""

from __future__ import annotations

from collections import deque

from mapper.errors import MappingError
from mapper.program import Item, Program, Repeat, Task, flatten, stored
from sim.accounting import INITIAL, Ledger, Token, deadlock
from sim.trace import Fold, Span, Trace


class _OutOfOrderError(Exception):
    """A task waits for a token that an earlier one in the text has not released."""


class _Machine:
    def __init__(self, program: Program) -> None:
        self.program = program
        self.ledger = Ledger(program.queues)
        self.channels: dict[str, deque[Token]] = {}
        for task, _ in stored(program.body):
            for name in (*task.waits, *task.releases):
                if name not in self.channels:
                    self.channels[name] = deque([INITIAL] * program.tokens.get(name, 0))
        self.simulated = 0
        self.skipped = 0
        self._touched: dict[int, tuple[list[str], list[str], int]] = {}
        self._durations: dict[tuple[str, int], int] = {}

    def ready(self, task: Task) -> bool:
        return all(self.channels[name] for name in task.waits)

    def execute(self, task: Task, record: list[Span | Fold]) -> None:
        channels, ledger = self.channels, self.ledger
        binding = ledger.start(task.on, [channels[name].popleft() for name in task.waits])
        key = (task.on, task.cycles)
        duration = self._durations.get(key)
        if duration is None:
            duration = self._durations[key] = self.program.duration(task)
        if duration:
            record.append(Span(task.on, task.name, binding.time, binding.time + duration))
        token = ledger.finish(task.on, binding, duration)
        for name in task.releases:
            channels[name].append(token)
        self.simulated += 1

    def run(self, body: tuple[Item, ...], record: list[Span | Fold]) -> None:
        for item in body:
            if isinstance(item, Task):
                if not self.ready(item):
                    raise _OutOfOrderError
                self.execute(item, record)
            else:
                self.repeat(item, record)

    def repeat(self, loop: Repeat, record: list[Span | Fold]) -> None:
        queues, names, size = self.touched(loop)
        before = self.state(queues, names)
        for iteration in range(loop.count):
            base = self.totals(queues)
            spans: list[Span | Fold] = []
            self.run(loop.body, spans)
            after = self.state(queues, names)
            left = loop.count - iteration - 1
            period = _period(before, after) if left else None
            if period is None:
                record += spans
                before = after
                continue
            if spans:
                record.append(Fold(left + 1, period, tuple(spans)))
            self.skip(left, period, queues, names, base)
            self.skipped += left * size
            return

    def touched(self, loop: Repeat) -> tuple[list[str], list[str], int]:
        """Queues and channels that a body uses, and its number of tasks."""
        key = id(loop)
        if key not in self._touched:
            queues: dict[str, None] = {}
            names: dict[str, None] = {}
            size = 0
            for task, count in stored(loop.body):
                queues[task.on] = None
                names.update(dict.fromkeys((*task.waits, *task.releases)))
                size += count
            self._touched[key] = (list(queues), list(names), size)
        return self._touched[key]

    def state(self, queues: list[str], names: list[str]) -> tuple[list[int], list[object]]:
        """Times, and everything else that the future depends on."""
        times: list[int] = []
        rest: list[object] = []
        for tokens in ([self.ledger.last[q] for q in queues], *(self.channels[name] for name in names)):
            rest.append(len(tokens))
            for time, cause, since, before in tokens:
                times += (time, since)
                rest += (cause, before)
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


def _later(token: Token, shift: int) -> Token:
    return Token(token.time + shift, token.cause, token.since + shift, token.before)


def _period(before: tuple[list[int], list[object]], after: tuple[list[int], list[object]]) -> int | None:
    """The time by which `after` is `before` shifted, if it is."""
    times, rest = after
    if rest != before[1] or not times:
        return None
    period = times[0] - before[0][0]
    return period if all(b - a == period for a, b in zip(before[0], times, strict=True)) else None


def simulate(program: Program) -> Trace:
    """Run a program. Raises `MappingError` naming the blocked tasks when it cannot finish."""
    machine = _Machine(program)
    record: list[Span | Fold] = []
    try:
        machine.run(program.body, record)
    except _OutOfOrderError:
        machine = _Machine(program)
        record = _in_dependency_order(machine)
    makespan, busy, stalls = machine.ledger.close()
    return Trace(tuple(record), makespan, busy, stalls, machine.simulated, machine.skipped)


def _in_dependency_order(machine: _Machine) -> list[Span | Fold]:
    queues: dict[str, deque[Task]] = {queue: deque() for queue in machine.program.queues}
    for task in flatten(machine.program.body):
        queues[task.on].append(task)
    record: list[Span | Fold] = []
    moved = True
    while moved:
        moved = False
        for tasks in queues.values():
            while tasks and machine.ready(tasks[0]):
                machine.execute(tasks.popleft(), record)
                moved = True
    if blocked := {queue: tasks[0] for queue, tasks in queues.items() if tasks}:
        raise MappingError(deadlock(blocked))
    return record
