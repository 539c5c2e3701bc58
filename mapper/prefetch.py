"""Weights loaded ahead: a kernel's first tiles of its right operand move in while the kernel before still computes.

They fill time that main memory has left in the last steps of the kernel before, in scratchpad room that this one leaves. No step
becomes longer, so that what a kernel gains is gained by the whole.
"""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction

from mapper.kernels import Kernel
from mapper.pipeline import Job, Loop, Step, Steps, step_fs
from mapper.plan import Plan
from mapper.program import Move

RIGHT = "load b"
"""The job that loads a tile of the right operand."""

UNFOLDED = 8
"""Repetitions at the end of a kernel that are written out so that their idle time can be used."""


def independent(before: Kernel, after: Kernel) -> bool:
    """Whether the right operand of a product is there while the kernel before it runs, and which part of it is needed is known."""
    if after.kind not in ("matmul", "grouped_matmul") or after.operator.inputs[0] == after.operator.inputs[1]:
        return False
    written = {operand.tensor for operand in before.writes}
    needed = after.operator.inputs[1].split("+") if after.kind == "matmul" else after.operator.inputs[1:]
    return not written & {after.operator.inputs[1], *needed}


def first_tiles(plan: Plan) -> list[tuple[int, Job]]:
    """The loads of the right operand in the steps before the first repetition, by their step."""
    found = []
    for index, step in enumerate(plan.steps):
        if isinstance(step, Loop):
            break
        found += [(index, job) for job in step if job.name == RIGHT and job.fs]
    return found


def hand_over(before: Plan, after: Plan, title: str, room: int, wanted: int | None = None) -> tuple[Plan, Plan, int]:
    """Both plans with as much of the right operand of `after` loaded during `before` as `room` bytes and idle memory allow, but no
    more than its first tiles (or than `wanted` bytes); and how many bytes that is."""
    loads = first_tiles(after)
    if not loads:
        return before, after, 0
    queue = loads[0][1].on
    left = min(room, sum(int(job.moves[0].read) for _, job in loads), *([] if wanted is None else [wanted]))
    tail, head = _unfolded(before.steps)
    late: Steps = after.steps
    total = 0
    for index, job in loads:
        size = int(job.moves[0].read)
        early = 0  # bytes of this load that move ahead
        spent = 0
        for number in range(len(tail) - 1, -1, -1):
            step = tail[number]
            idle = step_fs(step) - sum(other.fs for other in step if other.on == queue)
            part = min(left, size - early, size * idle // job.fs)
            if part <= 0:
                continue
            fs = -(-job.fs * (early + part) // size) - spent
            if fs > idle:
                continue
            move = replace(job.moves[0], read=part)
            tail[number] = (*step, replace(job, name=f"prefetch for {title}", cycles=fs, fs=fs, moves=(move, *_nothing(job.moves[1:]))))
            early, spent, left = early + part, spent + fs, left - part
        if not early:
            break
        total += early
        rest = replace(job, cycles=job.fs - spent, fs=job.fs - spent, moves=(_less(job.moves[0], early), *job.moves[1:]))
        late = _with(late, index, job, rest)
    if not total:
        return before, after, 0
    return replace(before, revised=(*head, *tail)), replace(after, revised=late), total


def _nothing(moves: tuple[Move, ...]) -> tuple[Move, ...]:
    return tuple(replace(move, read=0, written=0) for move in moves)


def _less(move: Move, size: int) -> Move:
    read = Fraction(move.read) - size
    return replace(move, read=int(read) if read.denominator == 1 else read)


def _with(steps: Steps, index: int, old: Job, new: Job) -> Steps:
    """The steps with one job of step `index` replaced."""
    step = steps[index]
    assert not isinstance(step, Loop)
    at = next(number for number, job in enumerate(step) if job is old or job == old)
    return (*steps[:index], (*step[:at], new, *step[at + 1 :]), *steps[index + 1 :])


def _unfolded(steps: Steps) -> tuple[list[Step], Steps]:
    """The last steps, repetitions written out, and everything before them."""
    tail: list[Step] = []
    head = list(steps)
    while head and len(tail) < UNFOLDED:
        item = head.pop()
        if isinstance(item, Loop):
            if item.count > 1:
                head.append(Loop(item.count - 1, item.body))
            head += item.body
        else:
            tail.insert(0, item)
    return tail, tuple(head)
