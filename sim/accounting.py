"""Busy and idle time per resource, by reason: the same rules for every engine.

When a task has to wait beyond the end of its predecessor, the idle time is charged to the resource that released the last
token it waited for, as far back as that resource was at work on it, and before that to what that resource was waiting for.
A task of no duration passes on the reason it waited for itself, so that a controller in between never hides who was late.
A task on several queues waits for each of them as it does for a token: the queues in the order in which it names them, then the
tokens in the order of its waits; the first of several with the same time counts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

from mapper.program import Task


class Token(NamedTuple):
    """When a token was released, the resource that decided this time by being at work `since` then, and what it waited for
    `before` that."""

    time: int
    cause: str
    since: int
    before: str


Progress = Callable[[int, int], None]
"""Called now and then with the tasks done so far and the tasks of the program."""

LIMIT = 2**63 - 1
"""The last femtosecond that 64 bits with a sign can count."""

INITIAL = Token(0, "start", 0, "start")
"""A credit that is there from the beginning."""


class Ledger:
    """Accumulates busy time and stalls of the resources of one program."""

    def __init__(self, queues: Iterable[str]) -> None:
        self.last: dict[str, Token] = {q: Token(0, q, 0, q) for q in queues}
        self.busy: dict[str, int] = dict.fromkeys(self.last, 0)
        self.stalls: dict[str, dict[str, int]] = {q: {} for q in self.last}

    def start(self, queues: Sequence[str], tokens: Iterable[Token]) -> Token:
        """What decides when a task on `queues` whose awaited tokens are given starts, and its time. Charges the idle time."""
        last = self.last
        binding = last[queues[0]]
        if len(queues) > 1:
            tokens = (*(last[queue] for queue in queues[1:]), *tokens)
        for token in tokens:
            if token[0] > binding[0]:
                binding = token
        for queue in queues:
            free = last[queue][0]
            if free < binding[0]:
                reasons = self.stalls[queue]
                split = max(free, binding.since)
                for reason, span in ((binding.before, split - free), (binding.cause, binding.time - split)):
                    if span:
                        reasons[reason] = reasons.get(reason, 0) + span
        return binding

    def finish(self, queues: Sequence[str], binding: Token, duration: int) -> Token:
        """Record the task's end; the token that it releases."""
        if not duration:
            for queue in queues:
                self.last[queue] = binding
            return binding
        time, cause = binding[:2]
        for queue in queues:
            self.busy[queue] += duration
            self.last[queue] = Token(time + duration, queue, time, cause)
        return self.last[queues[0]]

    def close(self) -> tuple[int, Mapping[str, int], Mapping[str, Mapping[str, int]]]:
        """Makespan, busy time and stalls; time after a resource's last task is `drained`."""
        makespan = max((token.time for token in self.last.values()), default=0)
        for queue, token in self.last.items():
            if makespan > token.time:
                self.stalls[queue]["drained"] = makespan - token.time
        return makespan, self.busy, self.stalls


def deadlock(blocked: Mapping[str, Task]) -> str:
    """The message for a program that cannot finish, from the task that each unfinished queue stands at."""
    heads = "; ".join(f"{task.name!r} on {queue!r} waits for {_needs(queue, task)}" for queue, task in sorted(blocked.items()))
    return f"the program cannot finish, no queue can go on: {heads}. Every wait needs a matching release or an initial credit"


def _needs(queue: str, task: Task) -> str:
    turns = [f"its turn on {other!r}" for other in (task.on, *task.also) if other != queue]
    return ", ".join((*task.waits, *turns))


def too_long() -> str:
    """The message for a program with memory services whose time leaves 64 bits."""
    return (
        f"the program lasts longer than {LIMIT / 3.6e18:.2f} hours ({LIMIT} fs), the most that memory services can count in 64 bits: "
        "simulate a part of it (fewer tokens or layers), or leave the state of the memory out"
    )
