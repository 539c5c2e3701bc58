"""The reference engine: one SimPy process per queue, every repetition written out, open to processes of the user's own.

A task on several queues is the business of the queue that it names first: the others report when its turn has come on them
and go on when it has ended. A transfer asks its memory service when it starts; the service answers when nothing else happens
at that time any more, the queue named first in the program first, so that the order of arrival is (time, position of queue).
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from typing import TYPE_CHECKING, Any

import simpy
from simpy.events import NORMAL, EventPriority

from mapper.errors import MappingError
from mapper.program import Program, Task, Transfer, flatten
from sim.accounting import INITIAL, LIMIT, Ledger, Progress, Token, deadlock, too_long
from sim.trace import Span, Trace

if TYPE_CHECKING:
    from sim.services import Ints

Process = Callable[[simpy.Environment, dict[str, simpy.Store]], Generator[Any, Any, Any]]
"""A user's process: it gets the environment and the token channels by name."""

PAUSE = 1 << 16
"""Tasks between two calls of `progress`."""


class _Services:
    """The memory services of a program, each serving in order of arrival."""

    def __init__(self, env: simpy.Environment, program: Program) -> None:
        from sim import services

        self.env = env
        self.serve, self.request = services.serve, services.request
        self.channels = program.services
        self.configurations = {name: services.configuration(channels) for name, channels in program.services.items()}
        self.states = {name: services.initial(channels) for name, channels in program.services.items()}
        self.requests: dict[Transfer, Ints] = {}
        self.arrived: list[tuple[int, Transfer, simpy.Event]] = []

    def arrive(self, position: int, transfer: Transfer) -> simpy.Event:
        """An event that happens when the transfer, which arrives now, has ended."""
        done = self.env.event()
        if not self.arrived:
            self._later()
        self.arrived.append((position, transfer, done))
        return done

    def _later(self) -> None:
        answer = simpy.Event(self.env)
        answer._ok, answer._value = True, None
        answer.callbacks.append(self._answer)
        self.env.schedule(answer, priority=EventPriority(NORMAL + 1))

    def _answer(self, event: simpy.Event) -> None:
        first = min(range(len(self.arrived)), key=lambda index: self.arrived[index][0])
        transfer, done = self.arrived.pop(first)[1:]
        if transfer not in self.requests:
            self.requests[transfer] = self.request(self.channels[transfer.service], transfer)
        now = int(self.env.now)
        name = transfer.service
        end = int(self.serve(self.configurations[name], self.states[name], self.requests[transfer], now)) if now <= LIMIT else -1
        if end <= now:
            raise MappingError(too_long())
        done._ok, done._value = True, None
        self.env.schedule(done, delay=end - now)
        if self.arrived:
            self._later()


def simulate(program: Program, processes: Sequence[Process] = (), progress: Progress | None = None) -> Trace:
    """Run a program. Raises `MappingError` naming the blocked tasks when it cannot finish."""
    env = simpy.Environment()
    ledger = Ledger(program.queues)
    channels: dict[str, simpy.Store] = {}
    turns: dict[tuple[str, str], simpy.Store] = {}
    spans: list[Span] = []
    blocked: dict[str, Task] = {}
    queues: dict[str, list[Task]] = {queue: [] for queue in program.queues}
    position = {queue: index for index, queue in enumerate(program.queues)}
    for task in flatten(program.body):
        for queue in (task.on, *task.also):
            queues[queue].append(task)
    done, total = 0, program.tasks()
    services = _Services(env, program) if program.services else None

    def channel(name: str) -> simpy.Store:
        if name not in channels:
            channels[name] = simpy.Store(env)
            for _ in range(program.tokens.get(name, 0)):
                channels[name].put(INITIAL)
        return channels[name]

    def turn(source: str, sink: str) -> simpy.Store:
        return turns.setdefault((source, sink), simpy.Store(env))

    def execute(task: Task) -> Generator[simpy.Event, Token, None]:
        for other in task.also:
            yield turn(other, task.on).get()
        tokens = []
        for name in task.waits:
            tokens.append((yield channel(name).get()))
        occupied = (task.on, *task.also)
        binding = ledger.start(occupied, tokens)
        begin = int(env.now)
        if task.transfer is not None and services is not None:
            yield services.arrive(position[task.on], task.transfer)
        elif duration := program.duration(task):
            yield env.timeout(duration)
        end = int(env.now)
        if end > begin:
            spans.extend(Span(queue, task.name, begin, end) for queue in occupied)
        token = ledger.finish(occupied, binding, end - begin)
        for name in task.releases:
            channel(name).put(token)
        for other in task.also:
            turn(task.on, other).put(None)

    def finished() -> None:
        nonlocal done
        done += 1
        if progress is not None and done % PAUSE == 0:
            progress(done, total)

    def run(queue: str, tasks: list[Task]) -> Generator[simpy.Event, Any, None]:
        for task in tasks:
            blocked[queue] = task
            if task.on == queue:
                yield from execute(task)
                finished()
            else:
                turn(queue, task.on).put(None)
                yield turn(task.on, queue).get()
        blocked.pop(queue, None)

    for queue, tasks in queues.items():
        env.process(run(queue, tasks))
    for process in processes:
        env.process(process(env, channels))
    env.run()
    if blocked:
        raise MappingError(deadlock(blocked))
    makespan, busy, stalls = ledger.close()
    if services is not None and makespan > LIMIT:
        raise MappingError(too_long())
    spans.sort(key=lambda span: (position[span.on], span.start))
    return Trace(tuple(spans), makespan, busy, stalls, simulated=total)
