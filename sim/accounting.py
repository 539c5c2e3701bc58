"""Busy and idle time per resource, by reason: the same rules for every engine.

When a task has to wait beyond the end of its predecessor, the idle time is charged to the resource that released the last
token it waited for. A task of no duration passes on the reason it waited for itself, so that a controller in between never
hides who was late. The first of several tokens with the same time counts.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from mapper.program import Task

Token = tuple[int, str]
"""When a token was released, and the resource that decided this time."""


class Ledger:
    """Accumulates busy time and stalls of the resources of one program."""

    def __init__(self, queues: Iterable[str]) -> None:
        self.free: dict[str, int] = dict.fromkeys(queues, 0)
        self.cause: dict[str, str] = {q: q for q in self.free}
        self.busy: dict[str, int] = dict.fromkeys(self.free, 0)
        self.stalls: dict[str, dict[str, int]] = {q: {} for q in self.free}

    def start(self, queue: str, tokens: Iterable[Token]) -> tuple[int, str]:
        """When a task whose awaited tokens are given starts, and the resource that decided it. Charges the idle time."""
        free = self.free[queue]
        start, cause = free, self.cause[queue]
        for time, reason in tokens:
            if time > start:
                start, cause = time, reason
        if start > free:
            reasons = self.stalls[queue]
            reasons[cause] = reasons.get(cause, 0) + start - free
        return start, cause

    def finish(self, queue: str, start: int, duration: int, cause: str) -> Token:
        """Record the task's end; the token that it releases."""
        end = start + duration
        if duration:
            self.busy[queue] += duration
            cause = queue
        self.free[queue] = end
        self.cause[queue] = cause
        return end, cause

    def close(self) -> tuple[int, Mapping[str, int], Mapping[str, Mapping[str, int]]]:
        """Makespan, busy time and stalls; time after a resource's last task is `drained`."""
        makespan = max(self.free.values(), default=0)
        for queue, free in self.free.items():
            if makespan > free:
                self.stalls[queue]["drained"] = makespan - free
        return makespan, self.busy, self.stalls


def deadlock(blocked: dict[str, Task]) -> str:
    """The message for a program that cannot finish."""
    heads = "; ".join(f"{task.name!r} on {queue!r} waits for {', '.join(task.waits)}" for queue, task in sorted(blocked.items()))
    return f"the program cannot finish, no queue can go on: {heads}. Every wait needs a matching release or an initial credit"
