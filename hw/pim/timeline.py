"""When the commands of a stream are issued on a channel that serves nothing else: an exact recurrence over runs, in clocks.

The rules are those of the command-level engine (`sim.pim`), which issues every command by itself and shares the channel with
ordinary traffic; without traffic both agree to the clock.

- A column command waits for the one before on its path (its `gap`), for turnarounds between reads and writes, and for its row.
- Rows open on demand: precharge (if another row of the set is open), activate, n_rcd. While a run goes, the controller opens
  the row of the next run if that lies in another set.
- All-bank refresh is due every n_refi: no new array or row command, rows closed, refresh, rows opened again as needed.
- Data and unit paths wait neither for rows nor for refresh. Their commands take slots of the column bus between those of the
  array, which are at least two clocks apart.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import chain, pairwise

from hw.pim.channel import PimChannel
from hw.pim.stream import ARRAY, NO_ROW, PATHS, UNIT, Kind, Run, Stream

FAR = 1 << 60
FOLD = 1 << 14
"""Runs of a part that are followed one by one; a longer part goes on at the rate of the second half of them."""


@dataclass(frozen=True)
class Timed:
    """Clocks from the first command to the end of the last, and what the controller added to the stream: activated banks,
    activate and precharge commands, refreshes. `waits` is what delayed array commands, in clocks by reason; `followed` the
    share of the runs that were followed one by one."""

    clocks: int
    activates: int
    opens: int
    closes: int
    refreshes: int
    waits: dict[str, int] = field(default_factory=dict)
    followed: float = 1.0


class Timeline:
    """The state of one channel while a stream runs through it."""

    def __init__(self, channel: PimChannel, *, refresh: bool = True) -> None:
        self.rules, self.sets = channel.rules, channel.sets
        count = len(channel.sets)
        self.row: list[int] = [NO_ROW] * count
        self.may_act, self.may_pre = [0] * count, [0] * count
        self.ready_read, self.ready_write = [0] * count, [0] * count
        self.next_act = self.row_free = self.may_refresh = 0
        self.next = [0] * PATHS
        self.next_read = self.next_write = self.last = self.fence = 0
        self.due = self.rules.refi if refresh else FAR
        self.counters = {"activates": 0, "opens": 0, "closes": 0, "refreshes": 0}
        self.waits: dict[str, int] = {}

    def _shut(self, index: int, start: int) -> bool:
        """Precharge of a set at or after `start`; False when refresh comes first."""
        at = max(start, self.may_pre[index], self.row_free)
        if at >= self.due:
            return False
        self.row_free = at + self.rules.pre
        self.may_act[index] = max(self.may_act[index], at + self.rules.rp)
        self.may_refresh = max(self.may_refresh, at + self.rules.rp_ref)
        self.row[index] = NO_ROW
        self.counters["closes"] += 1
        return True

    def _open(self, run: Run, start: int) -> bool:
        """The row of a run open, by commands at or after `start`; False when refresh comes first."""
        index, rules = run.bank_set, self.rules
        if self.row[index] == run.row:
            return True
        if self.row[index] != NO_ROW and not self._shut(index, start):
            return False
        at = max(start, self.may_act[index], self.next_act, self.row_free)
        if at >= self.due:
            return False
        part = self.sets[index]
        last = at + (part.activates - 1) * part.spacing
        self.row_free = last + rules.act
        self.next_act = last + rules.rrd
        self.may_act[index] = last + rules.rc
        self.may_pre[index] = last + rules.ras
        self.ready_read[index] = last + rules.read_after_act(run.rcd)
        self.ready_write[index] = last + rules.write_after_act
        self.row[index] = run.row
        self.counters["activates"] += part.banks
        self.counters["opens"] += part.activates
        return True

    def _refresh(self) -> None:
        rules = self.rules
        at = max(self.due, self.row_free)
        opened = [i for i, row in enumerate(self.row) if row != NO_ROW]
        if opened:
            at = max([at, *(self.may_pre[i] for i in opened)])
            self.row_free = at + rules.pre
            self.may_refresh = max(self.may_refresh, at + rules.rp_ref)
            for index in opened:
                self.row[index] = NO_ROW
                self.may_act[index] = max(self.may_act[index], at + rules.rp)
            self.counters["closes"] += 1
        at = max(at, self.row_free, self.may_refresh)
        self.row_free = at + rules.refresh
        last = at + rules.refresh - rules.refresh_one
        self.may_act = [max(time, last + rules.rfc) for time in self.may_act]
        self.counters["refreshes"] += 1
        self.due += rules.refi

    def _wait(self, reason: str, clocks: int) -> None:
        if clocks > 0:
            self.waits[reason] = self.waits.get(reason, 0) + clocks

    def array(self, run: Run, following: Run | None) -> None:
        """A run on the array path; `following` is the next one there."""
        rules, index = self.rules, run.bank_set
        left, first = run.count, -1
        floor = self.last
        refreshed = False
        while left:
            before = max(self.next[ARRAY], self.fence)
            if run.kind is not Kind.HOLD:
                if not self._open(run, floor):
                    self._refresh()
                    refreshed = True
                    continue
                turn = self.next_read if run.kind is Kind.READ else self.next_write
                ready = self.ready_read[index] if run.kind is Kind.READ else self.ready_write[index]
            else:
                turn = ready = 0
            at = max(before, turn, ready)
            if at >= self.due:
                self._refresh()
                refreshed = True
                continue
            self._wait("fence", self.fence - self.next[ARRAY])
            self._wait("turnaround", max(before, turn) - before)
            self._wait("refresh" if refreshed else "row", at - max(before, turn))
            refreshed = False
            count = min(left, -(-(self.due - at) // run.gap)) if run.gap else left
            last = at + (count - 1) * run.gap
            self.next[ARRAY] = last + run.gap
            if first < 0:
                first = at
            if run.kind is Kind.READ:
                self.next_write = max(self.next_write, last + rules.read_to_write)
                self.may_pre[index] = max(self.may_pre[index], last + rules.read_to_pre)
            elif run.kind is Kind.WRITE:
                self.next_read = max(self.next_read, last + rules.write_to_read)
                self.may_pre[index] = max(self.may_pre[index], last + rules.write_to_pre)
            left -= count
            floor = last
            if following is not None and following.bank_set not in (index, -1):
                self._open(following, first)
        self.last = floor

    def other(self, run: Run) -> None:
        """A run on the data or unit path."""
        path = run.path
        at = max(self.next[path], self.fence, self.next[UNIT] if run.joins else 0)
        self.next[path] = at + run.count * run.gap

    def pieces(self, runs: tuple[Run, ...], following: Run | None = None) -> None:
        """Runs in order; `following` is the array run that comes after them."""
        arrays = [run for run in runs if run.path == ARRAY]
        ahead = dict(enumerate(after for _, after in pairwise(chain(arrays, (following,)))))
        seen = 0
        for run in runs:
            if run.fence:
                self.fence = max(self.next)
            if run.path == ARRAY:
                self.array(run, ahead.get(seen))
                seen += 1
            else:
                self.other(run)

    def skip(self, times: int, clocks: int, before: dict[str, int], waits: dict[str, int], pieces: int) -> None:
        """Goes on by `times` pieces at the rate of the last `pieces` of them, which took `clocks`."""
        shift = times * clocks // pieces
        for name, value in before.items():
            self.counters[name] += (self.counters[name] - value) * times // pieces
        for reason, value in list(self.waits.items()):
            self.waits[reason] += (value - waits.get(reason, 0)) * times // pieces
        for name in ("may_act", "may_pre", "ready_read", "ready_write", "next"):
            setattr(self, name, [time + shift for time in getattr(self, name)])
        for name in ("next_act", "row_free", "may_refresh", "next_read", "next_write", "last", "fence", "due"):
            setattr(self, name, getattr(self, name) + shift)


def follow(channel: PimChannel, stream: Stream, *, refresh: bool = True, exact: bool = False) -> Timed:
    """The times of a stream on a channel of its own.

    Parts of more than `FOLD` runs are followed for so many, then extrapolated, unless `exact`. Extrapolation keeps the rate of
    whole pieces and leaves the phase of refresh as it is.
    """
    line = Timeline(channel, refresh=refresh)
    total = followed = 0
    starts = [_first_array(part.make(0)) if part.count else None for part in stream.parts]
    for number, part in enumerate(stream.parts):
        if not part.count:
            continue
        after = next((run for run in starts[number + 1 :] if run is not None), None)
        size = len(part.make(0))
        limit = part.count if exact else max(16, FOLD // max(1, size))
        middle, mark, counters, waits = limit // 2, 0, {}, {}
        total += part.count * size
        piece = part.make(0)
        for index in range(min(part.count, limit)):
            if limit < part.count and index == middle:
                mark, counters, waits = max(line.next), dict(line.counters), dict(line.waits)
            coming = part.make(index + 1) if index + 1 < part.count else ()
            line.pieces(piece, _first_array(coming) or after)
            piece = coming
            followed += size
        if part.count > limit:
            line.skip(part.count - limit, max(line.next) - mark, counters, waits, limit - middle)
    return Timed(max(line.next), waits=line.waits, followed=followed / total if total else 1.0, **line.counters)


def _first_array(runs: tuple[Run, ...]) -> Run | None:
    return next((run for run in runs if run.path == ARRAY), None)
