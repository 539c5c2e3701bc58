"""The reference engine: one SimPy process per queue, every repetition written out, open to processes of the user's own."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from typing import Any

import simpy

from mapper.errors import MappingError
from mapper.program import Program, Task, flatten
from sim.accounting import INITIAL, Ledger, Token, deadlock
from sim.trace import Span, Trace

Process = Callable[[simpy.Environment, dict[str, simpy.Store]], Generator[Any, Any, Any]]
"""A user's process: it gets the environment and the token channels by name."""


def simulate(program: Program, processes: Sequence[Process] = ()) -> Trace:
    """Run a program. Raises `MappingError` naming the blocked tasks when it cannot finish."""
    env = simpy.Environment()
    ledger = Ledger(program.queues)
    channels: dict[str, simpy.Store] = {}
    spans: list[Span] = []
    blocked: dict[str, Task] = {}
    queues: dict[str, list[Task]] = {queue: [] for queue in program.queues}
    for task in flatten(program.body):
        queues[task.on].append(task)

    def channel(name: str) -> simpy.Store:
        if name not in channels:
            channels[name] = simpy.Store(env)
            for _ in range(program.tokens.get(name, 0)):
                channels[name].put(INITIAL)
        return channels[name]

    def run(queue: str, tasks: list[Task]) -> Generator[simpy.Event, Token, None]:
        for task in tasks:
            blocked[queue] = task
            tokens = []
            for name in task.waits:
                tokens.append((yield channel(name).get()))
            binding = ledger.start(queue, tokens)
            duration = program.duration(task)
            if duration:
                begin = int(env.now)
                yield env.timeout(duration)
                spans.append(Span(queue, task.name, begin, int(env.now)))
            token = ledger.finish(queue, binding, duration)
            for name in task.releases:
                channel(name).put(token)
        blocked.pop(queue, None)

    for queue, tasks in queues.items():
        env.process(run(queue, tasks))
    for process in processes:
        env.process(process(env, channels))
    env.run()
    if blocked:
        raise MappingError(deadlock(blocked))
    makespan, busy, stalls = ledger.close()
    order = {queue: index for index, queue in enumerate(program.queues)}
    spans.sort(key=lambda span: (order[span.on], span.start))
    return Trace(tuple(spans), makespan, busy, stalls, simulated=sum(map(len, queues.values())))
