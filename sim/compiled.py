"""The compiled engine: programs of millions of tasks, with exact folding of repeated bodies.

One function executes tasks, in the order of the text while every wait finds its token and every memory service sees its
transfers in order of arrival, else task by task wherever a queue can go on (the flow). Both give the spans of the reference
engine, because the times of a program depend on neither order.

Folding. At the end of an iteration the state of the machine that the body touches (queues, tokens, memory services) is compared with that
at the end of an earlier one. When all its times are later by one and the same period and all else is equal, the iterations
between the two happen again and again: whole periods are skipped, a period may span several iterations. The earlier one is the one before
at first, then that of the last power of two, so that any period is found within twice the iterations that it takes to settle and come
round. In the flow a body counts as come round when all its queues stand at the same places of it, equally many iterations later.

Times are checked for overflow wherever they grow; a program beyond 64 bits raises `TooLongError`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any
from zlib import crc32

import numpy as np
from numba import njit
from numpy.typing import NDArray

from sim import services
from sim.lowered import END, LARGEST, LOOP, RUN, STOP

Ints = NDArray[np.int64]

# Why `advance` returns
(DONE, PAUSED, RECORD_FULL, STALLS_FULL, FOLDS_FULL, CHANNEL_FULL, STATE_FULL, OUT_OF_ORDER, OVERFLOW, BLOCKED) = range(10)

# Registers: place in the text, tasks of the run it is in, lengths of the outputs, counters, what is full and how much it needs
(PLACE, NEXT, LAST, RECORDS, STALLS, FOLDS, SIMULATED, SKIPPED, REPETITIONS, WHICH, NEEDED, WORK, TURNED) = range(13)
REGISTERS = 13

# A channel: where its tokens lie, how many have room, the oldest, how many there are; credits that are there from the beginning
(BASE, ROOM, HEAD, HELD, CREDITS) = range(5)

# A loop: iterations done, the one compared with (-1: none), how long the outputs were then, where its state lies and has room, folded
(DONE_COUNT, ANCHOR, ANCHOR_RECORDS, ANCHOR_STALLS, STATE_AT, STATE_ROOM, FOLDED, PLACES) = range(8)
LOOP_WIDTH = 8

EAGER = 16
"""Iterations that are compared with the one before; later ones with that of the last power of two."""


@njit(cache=True, nogil=True)
def state_size(loop: int, lq_at: Ints, lc_at: Ints, lc: Ints, ls_at: Ints, ls: Ints, channels: Ints, s_at: Ints) -> int:
    """Numbers in the state that a loop touches."""
    size = 4 * int(lq_at[loop + 1] - lq_at[loop])
    for j in range(lc_at[loop], lc_at[loop + 1]):
        size += 2 + 4 * channels[lc[j], HELD]
    for j in range(ls_at[loop], ls_at[loop + 1]):
        size += 2 + s_at[ls[j] + 1] - s_at[ls[j]]
    return size


@njit(cache=True, nogil=True)
def store_state(
    at: int, loop: int, state: Ints, lq_at: Ints, lq: Ints, lc_at: Ints, lc: Ints, ls_at: Ints, ls: Ints, queues: Ints, channels: Ints,
    tokens: Ints, s_at: Ints, s_state: Ints, s_last: Ints,
) -> None:  # fmt: skip
    """Writes the state that a loop touches."""
    for j in range(lq_at[loop], lq_at[loop + 1]):
        for w in range(4):
            state[at + w] = queues[lq[j], w]
        at += 4
    for j in range(lc_at[loop], lc_at[loop + 1]):
        c = lc[j]
        held = channels[c, HELD]
        state[at] = held
        state[at + 1] = channels[c, CREDITS]
        at += 2
        for k in range(held):
            row = channels[c, BASE] + (channels[c, HEAD] + k) % channels[c, ROOM]
            for w in range(4):
                state[at + w] = tokens[row, w]
            at += 4
    for j in range(ls_at[loop], ls_at[loop + 1]):
        s = ls[j]
        state[at] = s_last[s, 0]
        state[at + 1] = s_last[s, 1]
        at += 2
        for k in range(s_at[s], s_at[s + 1]):
            state[at] = s_state[k]
            at += 1


@njit(cache=True, nogil=True)
def shifted_by(
    at: int, loop: int, state: Ints, lq_at: Ints, lq: Ints, lc_at: Ints, lc: Ints, ls_at: Ints, ls: Ints, queues: Ints, channels: Ints,
    tokens: Ints, s_at: Ints, s_state: Ints, s_last: Ints,
) -> int:  # fmt: skip
    """How much later the state that a loop touches is than the one written at `at`; -1 when it is another."""
    period = int(queues[lq[lq_at[loop]], 0] - state[at])
    for j in range(lq_at[loop], lq_at[loop + 1]):
        q = lq[j]
        if (
            queues[q, 0] - state[at] != period
            or queues[q, 2] - state[at + 2] != period
            or queues[q, 1] != state[at + 1]
            or queues[q, 3] != state[at + 3]
        ):
            return -1
        at += 4
    for j in range(lc_at[loop], lc_at[loop + 1]):
        c = lc[j]
        held = channels[c, HELD]
        if held != state[at] or channels[c, CREDITS] != state[at + 1]:
            return -1
        at += 2
        for k in range(held):
            row = channels[c, BASE] + (channels[c, HEAD] + k) % channels[c, ROOM]
            if (
                tokens[row, 0] - state[at] != period
                or tokens[row, 2] - state[at + 2] != period
                or tokens[row, 1] != state[at + 1]
                or tokens[row, 3] != state[at + 3]
            ):
                return -1
            at += 4
    for j in range(ls_at[loop], ls_at[loop + 1]):
        s = ls[j]
        if s_last[s, 0] - state[at] != period or s_last[s, 1] != state[at + 1]:
            return -1
        at += 2
        for k in range(s_at[s], s_at[s + 1]):
            if s_state[k] - state[at] != (period if k == s_at[s] else 0):
                return -1
            at += 1
    return period


@njit(cache=True, nogil=True)
def shift(
    by: int, loop: int, lq_at: Ints, lq: Ints, lc_at: Ints, lc: Ints, ls_at: Ints, ls: Ints, queues: Ints, channels: Ints, tokens: Ints,
    s_at: Ints, s_state: Ints, s_last: Ints,
) -> None:  # fmt: skip
    """Makes the state that a loop touches later."""
    for j in range(lq_at[loop], lq_at[loop + 1]):
        queues[lq[j], 0] += by
        queues[lq[j], 2] += by
    for j in range(lc_at[loop], lc_at[loop + 1]):
        c = lc[j]
        for k in range(channels[c, HELD]):
            row = channels[c, BASE] + (channels[c, HEAD] + k) % channels[c, ROOM]
            tokens[row, 0] += by
            tokens[row, 2] += by
    for j in range(ls_at[loop], ls_at[loop + 1]):
        s_last[ls[j], 0] += by
        s_state[s_at[ls[j]]] += by


@njit(cache=True, nogil=True)
def latest(loop: int, lq_at: Ints, lq: Ints, ls_at: Ints, ls: Ints, queues: Ints, s_at: Ints, s_state: Ints) -> int:
    """The latest time in the state that a loop touches: no token is later than the queue that released it."""
    time = 0
    for j in range(lq_at[loop], lq_at[loop + 1]):
        time = max(time, queues[lq[j], 0])
    for j in range(ls_at[loop], ls_at[loop + 1]):
        time = max(time, s_state[s_at[ls[j]]])
    return time


@njit(cache=True, nogil=True)
def settle(q: int, flow: Ints, place: Ints, iterations: Ints, count: Ints, lead: Ints, loops: Ints, turned: Ints, registers: Ints) -> None:
    """Moves a queue over the beginnings and ends of its loops to its next task, or to its end; notes the loops it leads that turned."""
    at = place[q]
    while True:
        operation, loop = flow[at, 0], flow[at, 1]
        if operation == LOOP:
            iterations[at] = 0
            if lead[loop] == q:
                loops[loop, ANCHOR], loops[loop, FOLDED] = -1, 0
            at += 1
        elif operation == END:
            begin = flow[at, 2]
            iterations[begin] += 1
            at += 1
            if iterations[begin] < count[loop]:
                at = begin + 1
                if lead[loop] == q and registers[TURNED] < turned.size:
                    turned[registers[TURNED]] = loop
                    registers[TURNED] += 1
        else:
            break
    place[q] = at


@njit(cache=True, nogil=True)
def store_places(
    at: int, loop: int, state: Ints, lq_at: Ints, lq: Ints, begins: Ints, place: Ints, parent: Ints, iterations: Ints, done: Ints, now: int
) -> None:
    """Writes where the queues stand: place and iterations of the loops around it, those of `loop` from the leading queue's `now` on."""
    for j in range(lq_at[loop], lq_at[loop + 1]):
        state[at] = place[lq[j]]
        at += 1
        above = parent[place[lq[j]]]
        while above >= 0:
            state[at] = iterations[above] - (now if above == begins[j] else 0)
            at += 1
            above = parent[above]
    for q in range(done.size):
        state[at + q] = done[q]


@njit(cache=True, nogil=True)
def same_places(
    at: int, loop: int, state: Ints, lq_at: Ints, lq: Ints, begins: Ints, place: Ints, parent: Ints, iterations: Ints, done: Ints,
    arrival: Ints, now: int,
) -> bool:  # fmt: skip
    """Whether all queues of a loop stand in it where they stood, and all others have not moved and want nothing."""
    moves = np.ones(done.size, np.bool_)
    for j in range(lq_at[loop], lq_at[loop + 1]):
        moves[lq[j]] = False
        if state[at] != place[lq[j]]:
            return False
        at += 1
        above, inside = parent[place[lq[j]]], False
        while above >= 0:
            if state[at] != iterations[above] - (now if above == begins[j] else 0):
                return False
            inside |= above == begins[j]
            at += 1
            above = parent[above]
        if not inside:
            return False
    for q in range(done.size):  # noqa: SIM110 - compiled code has no generators
        if moves[q] and (state[at + q] != done[q] or arrival[q] >= 0):
            return False
    return True


def _make(stamp: int) -> Any:
    """The function that runs. Its compiled form is kept on disk for this file as it is and `stamp`, which stands for the services."""

    @njit(cache=True, nogil=True)
    def advance(
        in_flow: bool, budget: int, registers: Ints,
        operations: Ints, kind: Ints, fs: Ints,
        kq_at: Ints, kq: Ints, kw_at: Ints, kw: Ints, kr_at: Ints, kr: Ints, service: Ints, request: Ints,
        queues: Ints, channels: Ints, waiting: Ints, tokens: Ints,
        count: Ints, size: Ints, lq_at: Ints, lq: Ints, lc_at: Ints, lc: Ints, ls_at: Ints, ls: Ints, loops: Ints, state: Ints,
        s_config_at: Ints, s_config: Ints, s_at: Ints, s_state: Ints, s_last: Ints, requests: Ints,
        flow: Ints, place: Ints, parent: Ints, iterations: Ints, begins: Ints, lead: Ints, turned: Ints, depth: int,
        work: Ints, listed: Ints, arrival: Ints, done: Ints,
        record: Ints, stalls: Ints, folds: Ints,
    ) -> int:  # fmt: skip
        """Executes up to `budget` tasks; why it returns. Whatever is full may be made larger and the run go on."""
        if stamp < 0:
            return BLOCKED
        number_of_queues = queues.shape[0]
        while True:
            chosen = -1
            if in_flow:
                while registers[WORK] > 0 and chosen < 0:
                    q = work[registers[WORK] - 1]
                    task = -1
                    if flow[place[q], 0] == RUN:
                        task = flow[place[q], 1]
                        k = kind[task]
                        if kq[kq_at[k]] != q:
                            task = -1
                        else:
                            for j in range(kq_at[k] + 1, kq_at[k + 1]):
                                other = kq[j]
                                if flow[place[other], 0] != RUN or flow[place[other], 1] != task:
                                    task = -1
                                    break
                            if task >= 0:
                                for j in range(kw_at[k], kw_at[k + 1]):
                                    if channels[kw[j, 0], HELD] + channels[kw[j, 0], CREDITS] <= kw[j, 1]:
                                        task = -1
                                        break
                    if task >= 0 and service[kind[task]] >= 0:
                        k = kind[task]
                        time = 0
                        for j in range(kq_at[k], kq_at[k + 1]):
                            time = max(time, queues[kq[j], 0])
                        for j in range(kw_at[k], kw_at[k + 1]):
                            c = kw[j, 0]
                            later = kw[j, 1] - channels[c, CREDITS]
                            if later >= 0:
                                time = max(time, tokens[channels[c, BASE] + (channels[c, HEAD] + later) % channels[c, ROOM], 0])
                        arrival[q] = time
                        task = -1
                    if task < 0:
                        registers[WORK] -= 1
                        listed[q] = 0
                    else:
                        chosen = task
                if chosen < 0:
                    while registers[TURNED] > 0:
                        loop = turned[registers[TURNED] - 1]
                        begin = -1
                        for j in range(lq_at[loop], lq_at[loop + 1]):
                            if lq[j] == lead[loop]:
                                begin = begins[j]
                        now = iterations[begin]
                        inside, above = False, parent[place[lead[loop]]]
                        while above >= 0:
                            inside |= above == begin
                            above = parent[above]
                        folded = False
                        if inside and loops[loop, FOLDED] == 0:
                            length = state_size(loop, lq_at, lc_at, lc, ls_at, ls, channels, s_at)
                            at = loops[loop, STATE_AT]
                            if loops[loop, ANCHOR] >= 0 and same_places(
                                at, loop, state, lq_at, lq, begins, place, parent, iterations, done, arrival, now
                            ):
                                period = shifted_by(
                                    at + loops[loop, PLACES], loop, state, lq_at, lq, lc_at, lc, ls_at, ls, queues, channels, tokens,
                                    s_at, s_state, s_last,
                                )  # fmt: skip
                                turns = now - loops[loop, ANCHOR]
                                times = count[loop]
                                for j in range(lq_at[loop], lq_at[loop + 1]):
                                    times = min(times, (count[loop] - 1 - iterations[begins[j]]) // turns)
                                if period >= 0 and times > 0:
                                    if registers[FOLDS] == folds.shape[0]:
                                        return FOLDS_FULL
                                    top = latest(loop, lq_at, lq, ls_at, ls, queues, s_at, s_state)
                                    if period > 0 and times > (LARGEST - top) // period:
                                        return OVERFLOW
                                    shift(
                                        times * period, loop, lq_at, lq, lc_at, lc, ls_at, ls, queues, channels, tokens, s_at, s_state,
                                        s_last,
                                    )  # fmt: skip
                                    for j in range(lq_at[loop], lq_at[loop + 1]):
                                        iterations[begins[j]] += times * turns
                                        if arrival[lq[j]] >= 0:
                                            arrival[lq[j]] += times * period
                                    f = registers[FOLDS]
                                    folds[f, 0], folds[f, 1] = loops[loop, ANCHOR_RECORDS], registers[RECORDS]
                                    folds[f, 2], folds[f, 3] = loops[loop, ANCHOR_STALLS], registers[STALLS]
                                    folds[f, 4], folds[f, 5] = times + 1, period
                                    registers[FOLDS] += 1
                                    registers[SKIPPED] += times * turns * size[loop]
                                    registers[REPETITIONS] += times * turns
                                    loops[loop, FOLDED] = 1
                                    folded = True
                            if not folded and (now <= EAGER or now & (now - 1) == 0):
                                places = (lq_at[loop + 1] - lq_at[loop]) * (1 + depth) + number_of_queues
                                if places + length > loops[loop, STATE_ROOM]:
                                    registers[WHICH], registers[NEEDED] = loop, places + length
                                    return STATE_FULL
                                store_places(at, loop, state, lq_at, lq, begins, place, parent, iterations, done, now)
                                store_state(
                                    at + places, loop, state, lq_at, lq, lc_at, lc, ls_at, ls, queues, channels, tokens, s_at, s_state,
                                    s_last,
                                )  # fmt: skip
                                loops[loop, ANCHOR], loops[loop, PLACES] = now, places
                                loops[loop, ANCHOR_RECORDS], loops[loop, ANCHOR_STALLS] = registers[RECORDS], registers[STALLS]
                        registers[TURNED] -= 1
                    best = -1
                    for q in range(number_of_queues):
                        if arrival[q] >= 0 and (best < 0 or arrival[q] < arrival[best]):
                            best = q
                    if best < 0:
                        for q in range(number_of_queues):
                            if flow[place[q], 0] != STOP:
                                return BLOCKED
                        return DONE
                    chosen = flow[place[best], 1]
            else:
                while registers[NEXT] == registers[LAST]:
                    row = registers[PLACE]
                    operation, loop = operations[row, 0], operations[row, 1]
                    if operation == RUN:
                        registers[NEXT], registers[LAST] = operations[row, 1], operations[row, 2]
                        registers[PLACE] += 1
                    elif operation == LOOP:
                        loops[loop, DONE_COUNT], loops[loop, ANCHOR], loops[loop, FOLDED] = 0, -1, 0
                        registers[PLACE] += 1
                    elif operation == STOP:
                        return DONE
                    else:
                        now = loops[loop, DONE_COUNT] + 1
                        if now < count[loop] and loops[loop, FOLDED] == 0:
                            at, anchor = loops[loop, STATE_AT], loops[loop, ANCHOR]
                            period, times = -1, 0
                            if anchor >= 0:
                                times = (count[loop] - now) // (now - anchor)
                                period = shifted_by(
                                    at, loop, state, lq_at, lq, lc_at, lc, ls_at, ls, queues, channels, tokens, s_at, s_state, s_last
                                )
                            if period >= 0 and times > 0:
                                if registers[FOLDS] == folds.shape[0]:
                                    return FOLDS_FULL
                                top = latest(loop, lq_at, lq, ls_at, ls, queues, s_at, s_state)
                                if period > 0 and times > (LARGEST - top) // period:
                                    return OVERFLOW
                                shift(
                                    times * period, loop, lq_at, lq, lc_at, lc, ls_at, ls, queues, channels, tokens, s_at, s_state, s_last
                                )
                                f = registers[FOLDS]
                                folds[f, 0], folds[f, 1] = loops[loop, ANCHOR_RECORDS], registers[RECORDS]
                                folds[f, 2], folds[f, 3] = loops[loop, ANCHOR_STALLS], registers[STALLS]
                                folds[f, 4], folds[f, 5] = times + 1, period
                                registers[FOLDS] += 1
                                turns = times * (now - anchor)
                                registers[SKIPPED] += turns * size[loop]
                                registers[REPETITIONS] += turns
                                now += turns
                                loops[loop, FOLDED] = 1
                            elif now <= EAGER or now & (now - 1) == 0:
                                length = state_size(loop, lq_at, lc_at, lc, ls_at, ls, channels, s_at)
                                if length > loops[loop, STATE_ROOM]:
                                    registers[WHICH], registers[NEEDED] = loop, length
                                    return STATE_FULL
                                store_state(
                                    at, loop, state, lq_at, lq, lc_at, lc, ls_at, ls, queues, channels, tokens, s_at, s_state, s_last
                                )
                                loops[loop, ANCHOR] = now
                                loops[loop, ANCHOR_RECORDS], loops[loop, ANCHOR_STALLS] = registers[RECORDS], registers[STALLS]
                        loops[loop, DONE_COUNT] = now
                        registers[PLACE] = operations[row, 2] if now < count[loop] else row + 1
                chosen = registers[NEXT]
                k = kind[chosen]
                for j in range(kw_at[k], kw_at[k + 1]):
                    if channels[kw[j, 0], HELD] + channels[kw[j, 0], CREDITS] <= kw[j, 1]:
                        return OUT_OF_ORDER

            # room for what the task leaves behind
            if budget == 0:
                return PAUSED
            k = kind[chosen]
            first, end_of_queues = kq_at[k], kq_at[k + 1]
            if registers[RECORDS] == record.shape[0]:
                return RECORD_FULL
            if registers[STALLS] + 2 * (end_of_queues - first) > stalls.shape[0]:
                return STALLS_FULL
            for j in range(kr_at[k], kr_at[k + 1]):
                if channels[kr[j, 0], HELD] + kr[j, 1] >= channels[kr[j, 0], ROOM]:
                    registers[WHICH] = kr[j, 0]
                    return CHANNEL_FULL

            # what decides its start
            on = kq[first]
            time, cause, since, before = queues[on, 0], queues[on, 1], queues[on, 2], queues[on, 3]
            for j in range(first + 1, end_of_queues):
                q = kq[j]
                if queues[q, 0] > time:
                    time, cause, since, before = queues[q, 0], queues[q, 1], queues[q, 2], queues[q, 3]
            for j in range(kw_at[k], kw_at[k + 1]):
                c = kw[j, 0]
                if channels[c, CREDITS] > 0:
                    channels[c, CREDITS] -= 1
                    continue
                row = channels[c, BASE] + channels[c, HEAD]
                if tokens[row, 0] > time:
                    time, cause, since, before = tokens[row, 0], tokens[row, 1], tokens[row, 2], tokens[row, 3]
                channels[c, HELD] -= 1
                channels[c, HEAD] += 1
                if channels[c, HEAD] == channels[c, ROOM]:
                    channels[c, HEAD] = 0

            # its end
            s = service[k]
            if s >= 0:
                if not in_flow and (time < s_last[s, 0] or (time == s_last[s, 0] and on < s_last[s, 1])):
                    return OUT_OF_ORDER
                s_last[s, 0], s_last[s, 1] = time, on
                end = services.serve(
                    s_config[s_config_at[s] : s_config_at[s + 1]], s_state[s_at[s] : s_at[s + 1]], requests[request[k]], time
                )
                if end <= time:
                    return OVERFLOW
            else:
                if fs[chosen] > LARGEST - time:
                    return OVERFLOW
                end = time + fs[chosen]
            for j in range(first, end_of_queues):
                q = kq[j]
                free = queues[q, 0]
                if free < time:
                    split = max(free, since)
                    row = registers[STALLS]
                    if split > free:
                        stalls[row, 0], stalls[row, 1], stalls[row, 2] = q, before, split - free
                        row += 1
                    if time > split:
                        stalls[row, 0], stalls[row, 1], stalls[row, 2] = q, cause, time - split
                        row += 1
                    registers[STALLS] = row
            if end > time:
                row = registers[RECORDS]
                record[row, 0], record[row, 1], record[row, 2] = chosen, time, end
                registers[RECORDS] = row + 1
                for j in range(first, end_of_queues):
                    q = kq[j]
                    queues[q, 0], queues[q, 1], queues[q, 2], queues[q, 3] = end, q, time, cause
                cause, since, before = on, time, cause
            else:
                for j in range(first, end_of_queues):
                    q = kq[j]
                    queues[q, 0], queues[q, 1], queues[q, 2], queues[q, 3] = time, cause, since, before
            for j in range(kr_at[k], kr_at[k + 1]):
                c = kr[j, 0]
                row = channels[c, HEAD] + channels[c, HELD]
                if row >= channels[c, ROOM]:
                    row -= channels[c, ROOM]
                row += channels[c, BASE]
                tokens[row, 0], tokens[row, 1], tokens[row, 2], tokens[row, 3] = end, cause, since, before
                channels[c, HELD] += 1
            registers[SIMULATED] += 1
            budget -= 1

            # who can go on
            if not in_flow:
                registers[NEXT] += 1
                continue
            arrival[on] = -1
            for j in range(first, end_of_queues):
                q = kq[j]
                done[q] += 1
                place[q] += 1
                settle(q, flow, place, iterations, count, lead, loops, turned, registers)
            for j in range(first, end_of_queues):
                q = kq[j]
                if flow[place[q], 0] == RUN:
                    q = kq[kq_at[kind[flow[place[q], 1]]]]
                    if listed[q] == 0:
                        listed[q] = 1
                        work[registers[WORK]] = q
                        registers[WORK] += 1
            for j in range(kr_at[k], kr_at[k + 1]):
                q = waiting[kr[j, 0]]
                if listed[q] == 0 and arrival[q] < 0:
                    listed[q] = 1
                    work[registers[WORK]] = q
                    registers[WORK] += 1

    return advance


advance = _make(crc32(Path(services.__file__).read_bytes()))


@njit(cache=True, nogil=True)
def make_room(channels: Ints, tokens: Ints, full: int) -> Ints:
    """Tokens laid out anew, with twice the room for channel `full` and for all that are full."""
    rooms = np.empty(channels.shape[0], np.int64)
    for c in range(rooms.size):
        rooms[c] = channels[c, ROOM] * (2 if c == full or channels[c, HELD] == channels[c, ROOM] else 1)
    out = np.empty((rooms.sum(), 4), np.int64)
    base = 0
    for c in range(rooms.size):
        for k in range(channels[c, HELD]):
            row = channels[c, BASE] + (channels[c, HEAD] + k) % channels[c, ROOM]
            for w in range(4):
                out[base + k, w] = tokens[row, w]
        channels[c, BASE], channels[c, ROOM], channels[c, HEAD] = base, rooms[c], 0
        base += rooms[c]
    return out


@njit(cache=True, nogil=True)
def multiplied(length: int, folds: Ints, side: int) -> Ints:
    """How often each row of an output happens: once for every iteration of every fold around it. Side 0: records, 2: stalls."""
    times = np.ones(length, np.int64)
    for f in range(folds.shape[0]):
        for row in range(folds[f, side], folds[f, side + 1]):
            times[row] *= folds[f, 4]
    return times


@njit(cache=True, nogil=True)
def add_busy(record: Ints, times: Ints, kind: Ints, kq_at: Ints, kq: Ints, busy: Ints) -> int:
    """Adds the occupied time of every queue to `busy`; the number of spans."""
    spans = 0
    for row in range(record.shape[0]):
        k = kind[record[row, 0]]
        n = times[row] if times.size else 1
        spent = n * (record[row, 2] - record[row, 1])
        spans += n * (kq_at[k + 1] - kq_at[k])
        for j in range(kq_at[k], kq_at[k + 1]):
            busy[kq[j]] += spent
    return spans


@njit(cache=True, nogil=True)
def add_stalls(stalls: Ints, times: Ints, totals: Ints) -> None:
    """Adds the idle time by queue and reason to `totals`."""
    for row in range(stalls.shape[0]):
        totals[stalls[row, 0], stalls[row, 1]] += stalls[row, 2] * (times[row] if times.size else 1)
