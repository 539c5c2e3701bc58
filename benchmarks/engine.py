"""Tasks per CPU second of the fast engine beside SimPy: `python benchmarks/engine.py [--tasks N] [--quick]`.

Every row is a flat program of a million tasks with two resources each, run after compiled code has been loaded:

- `held`: a task occupies two of eight queues at once (`Task.also`), one of four engines and one of four ports;
- `handed over`: loads and products on four pairs of queues, which hand two buffers to and fro: a queue and a token for each task;
- `distinct channels`: every task waits for a channel of its own and releases another, so that no two tasks are alike.

`objects` starts from a tuple of `Task`, and what it takes to make arrays of them counts; `columns` starts from a `Table`. SimPy runs the
first tenth of the same tasks. The spans of both engines are compared on that tenth. Then folding: the same layer repeated from
one to 10^12 times, and the models. CPU seconds (`time.process_time`), one process, two shared cores, numba 0.68.1:

    program                         SimPy        objects   ratio        columns   ratio
    held                         34,502/s    2,778,346/s    81x  23,576,290/s    683x
    handed over                  83,130/s    2,622,933/s    32x  14,915,321/s    179x
    distinct channels            40,346/s      434,608/s    11x

A layer of 150 tasks takes 0.25 ms whether it comes a thousand or 10^12 times (42 tasks simulated). The prefill of llama-2-7b with 2,048
tokens takes 0.015 s on edge-npu (265,722 tasks, 2,833 simulated; written out 0.16 s, same spans) and 0.001 s on a100-80g.

The exit status is 1 when a budget is missed: two million tasks per second on the first two rows, one second for a model.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TypeVar

import numpy as np

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).parents[1])  # `mapper.py` in this folder would hide the package of that name

from mapper.program import Program, Repeat, Table, Task
from sim import compiled_engine, fast_engine, simpy_engine
from sim.trace import Trace

T = TypeVar("T")

RATE = 2_000_000
MODEL_S = 1.0
GHZ = 10**9
LANES = 4
QUEUES = {f"{kind}{lane}": GHZ for kind in ("dma", "mxu") for lane in range(LANES)}


def held(cycles: list[int]) -> Program:
    """Tasks that occupy an engine and a port at once."""
    tasks = tuple(Task("copy", f"dma{i % LANES}", c, also=(f"mxu{i // LANES % LANES}",)) for i, c in enumerate(cycles))
    return Program(QUEUES, tasks)


def handed_over(cycles: list[int]) -> Program:
    """Loads and products of four pairs of queues with two buffers each."""
    tasks = []
    for i, c in enumerate(cycles):
        lane = i // 2 % LANES
        if i % 2:
            tasks.append(Task("product", f"mxu{lane}", c, (f"full{lane}",), (f"empty{lane}",)))
        else:
            tasks.append(Task("load", f"dma{lane}", c, (f"empty{lane}",), (f"full{lane}",)))
    return Program(QUEUES, tuple(tasks), {f"empty{lane}": 2 for lane in range(LANES)})


def distinct(cycles: list[int]) -> Program:
    """A chain through four queues in which every link is a channel of its own."""
    links = [f"c{i}" for i in range(len(cycles))]
    tasks = (Task(f"t{i}", f"dma{i % LANES}", c, (links[i - 1],) if i else (), (links[i],)) for i, c in enumerate(cycles))
    return Program(QUEUES, tuple(tasks))


def columns(program: Program) -> Program:
    """The same tasks as one table."""
    kinds: dict[tuple[object, ...], int] = {}
    tasks = [task for task in program.body if isinstance(task, Task)]
    order = [kinds.setdefault((t.name, t.on, t.also, t.waits, t.releases), len(kinds)) for t in tasks]
    first = dict(zip(reversed(order), reversed(tasks), strict=True))
    table = Table(tuple(first[kind] for kind in range(len(kinds))), np.array(order), np.array([t.cycles for t in tasks]))
    return Program(program.queues, (table,), program.tokens)


def timed(run: Callable[[], T]) -> tuple[T, float]:
    """What `run` returns, and its CPU seconds."""
    start = time.process_time()
    result = run()
    return result, time.process_time() - start


def best(program: Program, repeats: int = 3) -> tuple[Trace, float]:
    """The trace of the fast engine and its best CPU seconds."""
    runs = [timed(lambda: fast_engine.simulate(program)) for _ in range(repeats)]
    return min(runs, key=lambda run: run[1])


def flat(tasks: int) -> bool:
    """Prints the rates of flat programs; whether the budget is kept."""
    cycles = np.random.default_rng(1).integers(1, 100, tasks).tolist()
    print(f"{'program':22s} {'SimPy':>12s} {'objects':>14s} {'ratio':>7s} {'columns':>14s} {'ratio':>7s}")
    kept = True
    for name, build in (("held", held), ("handed over", handed_over), ("distinct channels", distinct)):
        program, part = build(cycles), build(cycles[: tasks // 10])
        reference, slow_s = timed(partial(simpy_engine.simulate, part))
        if sorted(reference.spans()) != sorted(fast_engine.simulate(part).spans()):
            print(f"{name}: the engines disagree", file=sys.stderr)
            return False
        slow = tasks // 10 / slow_s
        fast = tasks / best(program)[1]
        line = f"{name:22s} {slow:10,.0f}/s {fast:12,.0f}/s {fast / slow:6.0f}x"
        if name != "distinct channels":
            table = tasks / best(columns(program))[1]
            line += f" {table:12,.0f}/s {table / slow:6.0f}x"
            kept &= fast >= RATE
        print(line, flush=True)
    return kept


def layers() -> None:
    """Prints what identical layers cost."""
    tile = (Task("load", "dma", 10, ("e",), ("f",)), Task("work", "mxu", 14, ("f",), ("e",)))
    layer = (Task("norm", "mxu", 5), Repeat(64, tile), Repeat(7, (*tile, Task("add", "mxu", 1))))
    for count in (1, 10**3, 10**6, 10**12):
        program = Program({"dma": GHZ, "mxu": GHZ}, (Repeat(count, layer),), {"e": 2})
        trace, cpu_s = best(program)
        print(f"{count:>17,} layers, {program.tasks():>19,} tasks: {trace.simulated} simulated, {cpu_s * 1e3:.2f} ms")


def models() -> bool:
    """Prints the engine's share of a prefill of 2,048 tokens; whether the budget is kept."""
    import workloads
    from hw.devices import load
    from mapper.compile import compile_graph

    kept = True
    for device in ("edge-npu", "a100-80g"):
        graph = workloads.load("llama-2-7b", phase="prefill", batch=1, seq=2048)
        program = compile_graph(graph, load(device)).program
        folded, cpu_s = best(program)
        unfolded_trace, unfolded_s = timed(partial(compiled_engine.simulate, spelled_out(program)))
        same = folded.makespan == unfolded_trace.makespan and sorted(folded.spans()) == sorted(unfolded_trace.spans())
        print(
            f"llama-2-7b prefill, {device}: {program.tasks():,} tasks, {folded.simulated:,} simulated, {folded.repetitions:,} repetitions "
            f"skipped, {cpu_s:.3f} s; written out {unfolded_s:.3f} s, {'identical spans' if same else 'DIFFERENT SPANS'}"
        )
        kept &= cpu_s <= MODEL_S and same
    return kept


def spelled_out(program: Program) -> Program:
    """The program without repetitions."""
    from mapper.program import flatten

    return Program(program.queues, tuple(flatten(program.body)), program.tokens, program.services)


def main() -> int:
    parser = argparse.ArgumentParser(description="tasks per CPU second of the fast engine beside SimPy")
    parser.add_argument("--tasks", type=int, default=1_000_000, help="tasks of the flat programs, at least 100,000")
    parser.add_argument("--quick", action="store_true", help="flat programs and layers only, no model")
    chosen = parser.parse_args()
    if chosen.tasks < 100_000:
        parser.error(f"--tasks: expected at least 100000, found {chosen.tasks}")
    compiled_engine.simulate(Program.of([Task("load compiled code", "x", 1)]))
    kept = flat(chosen.tasks)
    layers()
    if not chosen.quick:
        kept &= models()
    return 0 if kept else 1


if __name__ == "__main__":
    sys.exit(main())
