"""Tiles through a software pipeline: what a mapping means in time.

A mapping turns one kernel into a stream of tiles, folded where it repeats. Each tile passes through stages (load, compute,
post-process, store); stage s works on a tile `lags[s]` steps after the first stage did. All stages of one step run at the
same time and hand their buffers over when the step ends (double buffering): a step lasts as long as its busiest resource.
`makespan` is therefore a closed form of the stream, and the lowered program takes exactly that long: the mapper and the
simulator cannot disagree.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import partial
from typing import Any, Generic, TypeVar

from mapper.program import Item, Move, Repeat, Task

T = TypeVar("T")

LAUNCH = "launch"
"""The queue of the device's sequencer: it launches kernels and starts each step when the step before has finished."""


@dataclass(frozen=True, slots=True)
class Job:
    """A tile's work on one resource: `cycles` of its clock, which take `fs` femtoseconds."""

    name: str
    on: str
    cycles: int
    fs: int
    moves: tuple[Move, ...] = ()
    macs: Fraction | int = 0
    operations: Fraction | int = 0


Tile = tuple[tuple[Job, ...], ...]
"""The jobs of one tile, stage by stage."""

Step = tuple[Job, ...]
"""Jobs that run at the same time."""


@dataclass(frozen=True, slots=True)
class Loop(Generic[T]):
    """`count` repetitions of a stream of tiles or of steps."""

    count: int
    body: tuple[T | Loop[T], ...]


Tiles = tuple["Tile | Loop[Tile]", ...]
Steps = tuple["Step | Loop[Step]", ...]
History = tuple["Tile | None", ...]


def length(stream: tuple[Any, ...]) -> int:
    """Number of tiles or steps, repetitions written out."""
    return sum(item.count * length(item.body) if isinstance(item, Loop) else 1 for item in stream)


def pipeline(tiles: Tiles, lags: Sequence[int]) -> Steps:
    """The steps of a stream of tiles whose stage s works `lags[s]` tiles behind the first.

    The first iterations of a repetition still see tiles from before it and are written out; the rest stays folded.
    """
    history: History = (None,) * max(lags)
    made: dict[tuple[int, ...], Step] = {}
    steps, history = _pipe(tiles, history, lags, made)
    for _ in range(len(history)):  # drain
        step, history = _advance(None, history, lags, made)
        steps += (step,)
    return tuple(step for step in steps if step)


def _advance(tile: Tile | None, history: History, lags: Sequence[int], made: dict[tuple[int, ...], Step]) -> tuple[Step, History]:
    """The step in which a tile enters; one object for the same tiles in the same places."""
    window = (tile, *history)
    key = tuple(map(id, window))
    if (step := made.get(key)) is None:
        step = made[key] = tuple(
            job for stage, lag in enumerate(lags) if (source := window[lag]) is not None for job in source[stage]
        )
    return step, window[: len(history)]


def _pipe(tiles: Tiles, history: History, lags: Sequence[int], made: dict[tuple[int, ...], Step]) -> tuple[Steps, History]:
    steps: list[Step | Loop[Step]] = []
    for item in tiles:
        if isinstance(item, Loop):
            peeled = min(item.count, len(history) // length(item.body) + 1)
            for _ in range(peeled):
                body, history = _pipe(item.body, history, lags, made)
                steps += body
            if item.count > peeled:
                body, history = _pipe(item.body, history, lags, made)
                steps.append(Loop(item.count - peeled, body))
        else:
            step, history = _advance(item, history, lags, made)
            steps.append(step)
    return tuple(steps), history


def step_fs(step: Step) -> int:
    """Femtoseconds of one step: the total of its busiest resource."""
    if len(step) == 1:
        return step[0].fs
    totals: dict[str, int] = {}
    for job in step:
        totals[job.on] = totals.get(job.on, 0) + job.fs
    return max(totals.values(), default=0)


def makespan(steps: Steps) -> int:
    """Femtoseconds of a whole kernel."""
    return sum(item.count * makespan(item.body) if isinstance(item, Loop) else step_fs(item) for item in steps)


def exclude_exposed(steps: Steps, memory: str) -> Steps:
    """The same steps without the time of those that only move data: the first fill and the last write-back."""

    def untimed(item: Step | Loop[Step]) -> Step | Loop[Step]:
        if isinstance(item, Loop) or any(job.on.split(".")[0] != memory for job in item):
            return item
        return tuple(replace(job, cycles=0, fs=0) for job in item)

    return tuple(untimed(item) for item in steps)


class Lowering:
    """Writes kernels as tasks, one after the other, on queues that hand over through tokens.

    The sequencer's queue starts every step: it waits until all resources of the step before have finished, takes its own time
    (a kernel launch, a memory latency) and releases the resources of the next step. Kernels that run at the same time on
    different resources have a sequencer each (`fork`).
    """

    def __init__(self, sequencer: str = LAUNCH) -> None:
        self.sequencer = sequencer
        self.active: tuple[str, ...] = ()
        self._written: dict[tuple[str, int, tuple[str, ...]], tuple[Step, list[Item], tuple[str, ...]]] = {}

    def fork(self, name: str, branches: Sequence[tuple[str, Callable[[Lowering], list[Item]]]]) -> list[Item]:
        """What several sequencers write, at the same time: all start together, and what follows waits for all of them.

        Branches must not use the same queues; the name of a branch becomes that of its sequencer.
        """
        sequencers = tuple(f"{self.sequencer}.{branch}" for branch, _ in branches)
        items: list[Item] = [self._go(f"{name}: fork", 0, sequencers)]
        for sequencer, (_, write) in zip(sequencers, branches, strict=True):
            lowering = Lowering(sequencer)
            items.append(Task(f"{name}: begin", sequencer, 0, (f"{sequencer}.go",)))
            items += write(lowering)
            done = tuple(lowering._channel(queue, "done") for queue in lowering.active)
            items.append(Task(f"{name}: end", sequencer, 0, done, (f"{sequencer}.done",)))
        return items

    def _channel(self, queue: str, event: str) -> str:
        """A channel between this sequencer and a queue."""
        return f"{queue}.{event}" if self.sequencer == LAUNCH else f"{queue}.{event}@{self.sequencer}"

    def kernel(self, name: str, steps: Steps, setup: tuple[tuple[str, int], ...] = ()) -> list[Item]:
        """Tasks of one kernel. `setup` are (reason, femtoseconds) that the launch queue spends before the first step."""
        items: list[Item] = []
        if setup:
            reasons = ", ".join(reason for reason, _ in setup)
            items.append(self._go(f"{name}: {reasons}", sum(fs for _, fs in setup), ()))
        return items + self._steps(name, steps)

    def repeat(self, count: int, write: Callable[[], list[Item]]) -> list[Item]:
        """`count` copies of what `write` emits. Queues must hand over alike in every copy, so the first stands alone if needed."""
        entry = self.active
        items = write()
        if count == 1:
            return items
        if self.active == entry:
            return [Repeat(count, tuple(items))]
        body = write()
        return [*items, Repeat(count - 1, tuple(body))]

    def _steps(self, name: str, steps: Steps) -> list[Item]:
        items: list[Item] = []
        for item in steps:
            if isinstance(item, Loop):
                items += self.repeat(item.count, partial(self._steps, name, item.body))
            else:
                items += self._step(name, item)
        return items

    def _step(self, name: str, step: Step) -> list[Item]:
        """The tasks of a step, the same ones for the same step behind the same queues."""
        key = name, id(step), self.active
        if key not in self._written:
            items = self._write(name, step)
            self._written[key] = step, items, self.active
        _, items, self.active = self._written[key]
        return items

    def _write(self, name: str, step: Step) -> list[Item]:
        queues = tuple(sorted({job.on for job in step}))
        items: list[Item] = [self._go(f"{name}: step", 0, queues)]
        for queue in queues:
            jobs = [job for job in step if job.on == queue]
            for index, job in enumerate(jobs):
                waits = (self._channel(queue, "go"),) if index == 0 else ()
                releases = (self._channel(queue, "done"),) if index == len(jobs) - 1 else ()
                items.append(Task(f"{name}: {job.name}", queue, job.cycles, waits, releases, job.moves, job.macs, job.operations))
        return items

    def _go(self, name: str, fs: int, starts: tuple[str, ...]) -> Task:
        waits = tuple(self._channel(queue, "done") for queue in self.active)
        self.active = starts
        return Task(name, self.sequencer, fs, waits, tuple(self._channel(queue, "go") for queue in starts))
