"""Runs programs on the compiled engine: lays out its state, makes room when something is full, and turns its output into a trace.

Compiled code comes back after every `PAUSE` tasks, so that progress is shown and Ctrl-C ends a long run.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from mapper.errors import MappingError
from mapper.program import Program, Task
from sim import compiled as c
from sim import services
from sim.accounting import Progress, deadlock, too_long
from sim.columns import Columns, Record
from sim.lowered import END, LOOP, RUN, STOP, Lowered, TooLongError, lower
from sim.trace import Trace

Ints = NDArray[np.int64]

PAUSE = 1 << 20
"""Tasks between two looks at the outside world."""


def simulate(program: Program, progress: Progress | None = None, *, in_flow: bool = False) -> Trace:
    """Run a program in the order of its text, or, where that is impossible or `in_flow` says so, wherever a queue can go on.

    Raises `MappingError` naming the blocked tasks when it cannot finish, `TooLongError` when its times do not fit 64 bits and it has no
    memory services; with them that is a `MappingError` too."""
    try:
        lowered = lower(program)
        run = _Run(lowered, progress, in_flow=in_flow)
        ended = run.go()
        if ended == c.OUT_OF_ORDER:
            run = _Run(lowered, progress, in_flow=True)
            ended = run.go()
        if ended == c.BLOCKED:
            raise MappingError(deadlock(run.blocked()))
    except TooLongError:
        if program.services:
            raise MappingError(too_long()) from None
        raise
    return run.trace()


class _Run:
    """The state of one run."""

    def __init__(self, lowered: Lowered, progress: Progress | None, *, in_flow: bool) -> None:
        self.lowered, self.progress, self.in_flow = lowered, progress, in_flow
        program = lowered.program
        number, loops = len(program.queues), lowered.count.size
        self.registers = np.zeros(c.REGISTERS, np.int64)
        self.queues = np.zeros((number, 4), np.int64)
        self.queues[:, 1] = self.queues[:, 3] = np.arange(number)
        self._lay_out_channels()
        self.loops = np.zeros((loops, c.LOOP_WIDTH), np.int64)
        self.loops[:, c.ANCHOR] = -1
        self.state = np.zeros(0, np.int64)
        self._lay_out_services()
        stored = lowered.kind.size
        self.record = np.empty((stored + 64, 3), np.int64)
        self.stalls = np.empty((2 * stored + 2 * number + 64, 3), np.int64)
        self.folds = np.empty((loops + 64, 6), np.int64)
        self.flow = _Flow(lowered) if in_flow else _Flow.empty()
        if in_flow:
            self.registers[c.WORK] = number
            for queue in range(number):
                c.settle(
                    queue, self.flow.rows, self.flow.place, self.flow.iterations, lowered.count, self.flow.lead, self.loops,
                    self.flow.turned, self.registers,
                )  # fmt: skip

    def _lay_out_channels(self) -> None:
        lowered = self.lowered
        number = lowered.credits.size
        released = np.bincount(lowered.releases[1][:, 0], minlength=number)
        self.channels = np.zeros((number, 5), np.int64)
        self.channels[:, c.ROOM] = np.clip(released, 1, 8)
        self.channels[:, c.BASE] = np.cumsum(self.channels[:, c.ROOM]) - self.channels[:, c.ROOM]
        self.channels[:, c.CREDITS] = lowered.credits
        self.tokens = np.zeros((int(self.channels[:, c.ROOM].sum()), 4), np.int64)

    def _lay_out_services(self) -> None:
        program = self.lowered.program
        configurations = [services.configuration(channels) for channels in program.services.values()]
        states = [services.initial(channels) for channels in program.services.values()]
        self.config_at, self.config = _joined(configurations)
        self.state_at, self.service_state = _joined(states)
        self.last = np.full((len(states), 2), -1, np.int64)
        rows = [services.request(program.services[transfer.service], transfer) for transfer in self.lowered.transfers]
        self.requests = np.array(rows, np.int64).reshape(len(rows), services.WIDTH)

    def go(self) -> int:
        """Runs to the end; why it ended."""
        low, flow = self.lowered, self.flow
        total = self.lowered.program.tasks() if self.progress else 0
        while True:
            reason = int(c.advance(
                self.in_flow, PAUSE, self.registers,
                low.operations, low.kind, low.fs,
                *low.queues, *low.waits, *low.releases, low.service, low.request,
                self.queues, self.channels, low.waiting, self.tokens,
                low.count, low.size, *low.loop_queues, *low.loop_channels, *low.loop_services, self.loops, self.state,
                self.config_at, self.config, self.state_at, self.service_state, self.last, self.requests,
                flow.rows, flow.place, flow.parent, flow.iterations, flow.begins, flow.lead, flow.turned, flow.depth,
                flow.work, flow.listed, flow.arrival, flow.done,
                self.record, self.stalls, self.folds,
            ))  # fmt: skip
            if reason == c.PAUSED:
                if self.progress:
                    self.progress(int(self.registers[c.SIMULATED] + self.registers[c.SKIPPED]), total)
            elif reason == c.RECORD_FULL:
                self.record = _doubled(self.record)
            elif reason == c.STALLS_FULL:
                self.stalls = _doubled(self.stalls)
            elif reason == c.FOLDS_FULL:
                self.folds = _doubled(self.folds)
            elif reason == c.CHANNEL_FULL:
                self.tokens = c.make_room(self.channels, self.tokens, self.registers[c.WHICH])
            elif reason == c.STATE_FULL:
                room = 2 * int(self.registers[c.NEEDED])
                self.loops[self.registers[c.WHICH], c.STATE_AT : c.STATE_ROOM + 1] = self.state.size, room
                self.loops[self.registers[c.WHICH], c.ANCHOR] = -1
                self.state = np.concatenate([self.state, np.zeros(room, np.int64)])
            elif reason == c.OVERFLOW:
                raise TooLongError
            else:
                return reason

    def blocked(self) -> dict[str, Task]:
        """The task that each unfinished queue stands at."""
        numbers = {
            queue: int(self.flow.rows[place, 1])
            for queue, place in zip(self.lowered.program.queues, self.flow.place.tolist(), strict=True)
            if self.flow.rows[place, 0] == RUN
        }
        return {queue: self.lowered.task(number) for queue, number in numbers.items()}

    def trace(self) -> Trace:
        """What happened."""
        registers = self.registers.tolist()
        names = tuple(self.lowered.program.queues)
        record, stalls = self.record[: registers[c.RECORDS]], self.stalls[: registers[c.STALLS]]
        if 2 * len(record) < len(self.record):
            record = record.copy()
        folds = self.folds[: registers[c.FOLDS]]
        none = np.empty(0, np.int64)
        times = [c.multiplied(rows.shape[0], folds, side) if len(folds) else none for rows, side in ((record, 0), (stalls, 2))]
        busy = np.zeros(len(names), np.int64)
        spans = c.add_busy(record, times[0], self.lowered.kind, *self.lowered.queues, busy)
        reasons = _stalls(stalls, times[1], names)
        ends = self.queues[:, 0].tolist()
        makespan = max(ends, default=0)
        for queue, end in zip(names, ends, strict=True):
            if makespan > end:
                reasons[queue]["drained"] = makespan - end
        entries = Columns.of(Record(self.lowered, record, folds, spans))
        occupied = dict(zip(names, busy.tolist(), strict=True))
        counts = registers[c.SIMULATED], registers[c.SKIPPED], registers[c.REPETITIONS]
        return Trace(entries, makespan, occupied, reasons, *counts)


class _Flow:
    """The text queue by queue: rows (operation, task or loop, begin of the loop), and where each queue stands."""

    def __init__(self, lowered: Lowered) -> None:
        number = len(lowered.program.queues)
        rows: list[tuple[Ints, ...]] = []
        lq_at, lq = lowered.loop_queues
        offsets, entries = lowered.queues
        # every task on each of its queues, every operation on each queue that its loop touches; text order is (next task, operation)
        tasks = np.arange(lowered.kind.size)
        widths = (offsets[1:] - offsets[:-1])[lowered.kind]
        owner = np.repeat(tasks, widths)
        first = np.repeat(np.cumsum(widths) - widths, widths)
        on = entries[np.repeat(offsets[lowered.kind], widths) + np.arange(owner.size) - first]
        last = np.full(owner.size, len(lowered.operations))
        rows.append((on, owner, last, np.full(owner.size, RUN), owner))
        following = 0
        for position, (operation, a, b) in enumerate(lowered.operations.tolist()):
            if operation == RUN:
                following = b
            elif operation in (LOOP, END):
                touched = lq[lq_at[a] : lq_at[a + 1]]
                rows.append(tuple(np.broadcast_to(v, touched.shape) for v in (touched, following, position, operation, a)))
        every = np.arange(number)
        rows.append(tuple(np.broadcast_to(v, every.shape) for v in (every, lowered.kind.size, len(lowered.operations), STOP, 0)))
        queue, task, position_, operation_, argument = (np.concatenate(column) for column in zip(*rows, strict=True))
        order = np.lexsort((position_, task, queue))
        self.rows = np.zeros((order.size, 3), np.int64)
        self.rows[:, 0], self.rows[:, 1] = operation_[order], argument[order]
        self.place = np.searchsorted(queue[order], every).astype(np.int64)
        self.parent = np.full(order.size, -1, np.int64)
        self.begins = np.zeros(lq.size, np.int64)
        self.depth = self._nest(lq_at, lq, queue[order])
        self.iterations = np.zeros(order.size, np.int64)
        self.lead = np.full(lowered.count.size, -1, np.int64)
        self._choose_leads(lowered)
        self.turned = np.zeros(lowered.count.size + 1, np.int64)
        self.work, self.listed = np.arange(number)[::-1].copy(), np.ones(number, np.int64)
        self.arrival, self.done = np.full(number, -1, np.int64), np.zeros(number, np.int64)

    def _nest(self, lq_at: Ints, lq: Ints, queue: Ints) -> int:
        """Finds the loops around every place; how deep they go."""
        depth, around = 0, []
        for row in np.flatnonzero((self.rows[:, 0] == LOOP) | (self.rows[:, 0] == END)).tolist():
            loop = int(self.rows[row, 1])
            if self.rows[row, 0] == LOOP:
                around.append(row)
                depth = max(depth, len(around))
                self.begins[lq_at[loop] + np.searchsorted(lq[lq_at[loop] : lq_at[loop + 1]], queue[row])] = row
            else:
                begin = around.pop()
                self.rows[row, 2] = begin
                inside = self.parent[begin + 1 : row]
                inside[inside < 0] = begin
                self.parent[begin] = around[-1] if around else -1
        return depth

    def _choose_leads(self, lowered: Lowered) -> None:
        """The queue of each loop's first transfer: the loop is looked at when that queue begins it anew."""
        transfers = np.flatnonzero(lowered.service[lowered.kind] >= 0)
        on = lowered.queues[1][lowered.queues[0][lowered.kind[transfers]]]
        begin, following = {}, 0
        for operation, a, b in lowered.operations.tolist():
            if operation == RUN:
                following = b
            elif operation == LOOP:
                begin[a] = following
            elif operation == END:
                first = int(np.searchsorted(transfers, begin[a]))
                if first < transfers.size and transfers[first] < following:
                    self.lead[a] = on[first]

    @classmethod
    def empty(cls) -> _Flow:
        """Stands in where the text is run in order."""
        flow = cls.__new__(cls)
        none = np.zeros(0, np.int64)
        flow.rows, flow.depth = np.zeros((0, 3), np.int64), 0
        flow.place = flow.parent = flow.iterations = flow.begins = flow.lead = flow.turned = none
        flow.work = flow.listed = flow.arrival = flow.done = none
        return flow


def _joined(rows: list[Ints]) -> tuple[Ints, Ints]:
    offsets = np.zeros(len(rows) + 1, np.int64)
    np.cumsum([row.size for row in rows], out=offsets[1:])
    return offsets, np.concatenate([*rows, np.zeros(0, np.int64)])


def _doubled(rows: Ints) -> Ints:
    return np.concatenate([rows, np.empty_like(rows)])


DENSE = 2_000_000
"""Pairs of queue and reason up to which idle time is added up in one array."""


def _stalls(stalls: Ints, times: Ints, names: tuple[str, ...]) -> dict[str, dict[str, int]]:
    """Idle time by queue and reason."""
    number = len(names)
    if number * number <= DENSE:
        totals = np.zeros((number, number), np.int64)
        c.add_stalls(stalls, times, totals)
        queues, reasons = np.nonzero(totals)
        amounts = totals[queues, reasons]
    else:
        pairs, place = np.unique(stalls[:, 0] * number + stalls[:, 1], return_inverse=True)
        amounts = np.zeros(pairs.size, np.int64)
        np.add.at(amounts, place, stalls[:, 2] * times if times.size else stalls[:, 2])
        queues, reasons = pairs // number, pairs % number
    out: dict[str, dict[str, int]] = {name: {} for name in names}
    for queue, reason, amount in zip(queues.tolist(), reasons.tolist(), amounts.tolist(), strict=True):
        out[names[queue]][names[reason]] = amount
    return out
