"""The fast engine: small programs are interpreted, large ones run compiled; both fold repeated bodies exactly.

A program starts on the interpreted engine and moves to the compiled one when more than `INTERPRETED` tasks have to be evaluated,
which is about what loading compiled code costs. Programs beyond 64 bits of femtoseconds (2.56 hours) run on Python's integers.
"""

from __future__ import annotations

from hw.quantity import FS_PER_S
from mapper.program import Program, Repeat, Table, Task, stored
from sim import interpreted
from sim.accounting import LIMIT, Progress
from sim.trace import Trace

INTERPRETED = 50_000
"""Tasks that are evaluated in Python at most before compiled code is loaded."""


def simulate(program: Program, progress: Progress | None = None) -> Trace:
    """Run a program. Raises `MappingError` naming the blocked tasks when it cannot finish."""
    if _stored(program.body, INTERPRETED) < INTERPRETED:
        try:
            return interpreted.simulate(program, INTERPRETED)
        except interpreted.TooManyTasksError:
            pass
    if not program.services and _long(program):
        return interpreted.simulate(program)
    from sim import compiled_engine
    from sim.lowered import TooLongError

    try:
        return compiled_engine.simulate(program, progress)
    except TooLongError:
        return interpreted.simulate(program)


LOOKED_THROUGH = 1_000_000
"""Stored tasks of a program up to which it is looked through for one whose times may not fit 64 bits."""


def _long(program: Program) -> bool:
    """Whether some queue is busy for more than half of the time that 64 bits count: such a program may well last longer than that,
    and loading compiled code to find that out takes longer than Python's integers."""
    if _stored(program.body, LOOKED_THROUGH) >= LOOKED_THROUGH or Repeat not in set(map(type, program.body)):
        return False
    busy: dict[str, int] = {}
    for task, count in stored(program.body):
        busy[task.on] = busy.get(task.on, 0) + count * task.cycles
    return any(2 * cycles * FS_PER_S > LIMIT * program.queues[queue] for queue, cycles in busy.items())


def _stored(body: tuple[Task | Repeat | Table, ...], enough: int) -> int:
    """Stored tasks of a body, counted up to `enough`: a program that has more is not looked through."""
    count = len(body)
    for item in body if count < enough else ():
        if isinstance(item, Repeat):
            count += _stored(item.body, enough) - 1
        elif isinstance(item, Table):
            count += len(item) - 1
        if count >= enough:
            break
    return count
