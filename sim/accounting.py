"""Busy and idle time per resource, by reason: the same rules for every engine.

When a task has to wait beyond the end of its predecessor, the idle time is charged to the resource that released the last
token it waited for, as far back as that resource was at work on it, and before that to what that resource was waiting for.
A task of no duration passes on the reason it waited for itself, so that a controller in between never hides who was late.
The first of several tokens with the same time counts.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple

from mapper.program import Task


class Token(NamedTuple):
    """When a token was released, the resource that decided this time by being at work `since` then, and what it waited for
    `before` that."""

    time: int
    cause: str
    since: int
    before: str


INITIAL = Token(0, "start", 0, "start")
"""A credit that is there from the beginning."""


class Ledger:
    """Accumulates busy time and stalls of the resources of one program."""

    def __init__(self, queues: Iterable[str]) -> None:
        self.last: dict[str, Token] = {q: Token(0, q, 0, q) for q in queues}
        self.busy: dict[str, int] = dict.fromkeys(self.last, 0)
        self.stalls: dict[str, dict[str, int]] = {q: {} for q in self.last}

    def start(self, queue: str, tokens: Iterable[Token]) -> Token:
        """What decides when a task whose awaited tokens are given starts, and its time. Charges the idle time."""
        last = binding = self.last[queue]
        for token in tokens:
            if token.time > binding.time:
                binding = token
        if binding is not last:
            reasons = self.stalls[queue]
            split = max(last.time, binding.since)
            for reason, span in ((binding.before, split - last.time), (binding.cause, binding.time - split)):
                if span:
                    reasons[reason] = reasons.get(reason, 0) + span
        return binding

    def finish(self, queue: str, binding: Token, duration: int) -> Token:
        """Record the task's end; the token that it releases."""
        token = binding
        if duration:
            self.busy[queue] += duration
            token = Token(binding.time + duration, queue, binding.time, binding.cause)
        self.last[queue] = token
        return token

    def close(self) -> tuple[int, Mapping[str, int], Mapping[str, Mapping[str, int]]]:
        """Makespan, busy time and stalls; time after a resource's last task is `drained`."""
        makespan = max((token.time for token in self.last.values()), default=0)
        for queue, token in self.last.items():
            if makespan > token.time:
                self.stalls[queue]["drained"] = makespan - token.time
        return makespan, self.busy, self.stalls


def deadlock(blocked: dict[str, Task]) -> str:
    """The message for a program that cannot finish."""
    heads = "; ".join(f"{task.name!r} on {queue!r} waits for {', '.join(task.waits)}" for queue, task in sorted(blocked.items()))
    return f"the program cannot finish, no queue can go on: {heads}. Every wait needs a matching release or an initial credit"
