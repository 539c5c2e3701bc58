"""The fast engine: small programs are interpreted, large ones run compiled; both fold repeated bodies exactly.

A program starts on the interpreted engine and moves to the compiled one when more than `INTERPRETED` tasks have to be evaluated,
which is about what loading compiled code costs. Programs beyond 64 bits of femtoseconds (2.56 hours) go back to Python's integers.
"""

from __future__ import annotations

from mapper.program import Program, Repeat, Table, Task
from sim import interpreted
from sim.accounting import Progress
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
    from sim import compiled_engine
    from sim.lowered import TooLongError

    try:
        return compiled_engine.simulate(program, progress)
    except TooLongError:
        return interpreted.simulate(program)


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
