"""What happens when: program semantics, engines, accounting and traces."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from mapper.errors import MappingError
from mapper.program import Item, Program
from sim import fast_engine
from sim.accounting import Progress
from sim.trace import Fold, Span, Trace

if TYPE_CHECKING:
    from sim.simpy_engine import Process

ENGINES = ("simpy", "fast")

__all__ = ["ENGINES", "Fold", "Span", "Trace", "simulate"]


def simulate(
    program: Program | Iterable[Item], engine: str = "simpy", processes: Sequence[Process] = (), progress: Progress | None = None
) -> Trace:
    """Run a program (or a list of tasks) on the reference engine `simpy` or the `fast` one; their spans are identical.

    `processes` are SimPy processes of the user's own that run beside the program; only `simpy` takes them. `progress` is called
    now and then, on long programs, with the tasks done so far and the tasks of the program.
    """
    if engine not in ENGINES:
        raise MappingError(f"engine {engine!r}: unknown, expected one of {', '.join(ENGINES)}")
    program = program if isinstance(program, Program) else Program.of(program)
    if engine == "fast":
        if processes:
            raise MappingError("engine 'fast' takes no processes of the user's own; use engine 'simpy'")
        return fast_engine.simulate(program, progress)
    from sim import simpy_engine

    return simpy_engine.simulate(program, processes, progress)
