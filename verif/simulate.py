"""Runs of a unit's RTL in the Amaranth simulator: words in, words out, with the cycle of each."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from numpy.random import Generator, default_rng

from verif.errors import VerificationError
from verif.stalls import Stall, never

PATIENCE = 2000
"""Cycles without any transfer, nobody stalling, after which a run is called stuck."""


@dataclass(frozen=True, slots=True)
class Run:
    """Result words of one batch with the cycle in which each batch's first word was accepted and its last result taken."""

    results: tuple[tuple[int, ...], ...]
    cycles: tuple[int, ...]
    breaches: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Batch:
    """Operand words that belong together and how many result words they cause."""

    words: Sequence[int]
    results: int


def simulate(
    component: Any,
    batches: Iterable[Batch],
    *,
    offer: Stall = never,
    take: Stall = never,
    apart: bool = False,
    rng: Generator | None = None,
    waves: Path | None = None,
) -> Run:
    """Sends every batch through `component` in one simulation.

    `offer` and `take` stall the operand and the result stream. `apart` waits for the results of a batch before offering
    the next, so that its cycles are its own. Breaches of the stream protocol (a result that changes or vanishes while it
    waits, a result that no operand asked for) are reported in words. Raises `VerificationError` when the unit is stuck.
    """
    from amaranth.hdl import Value
    from amaranth.sim import Simulator

    batches = list(batches)
    rng = rng or default_rng(0)
    offers, takes = offer(rng), take(rng)
    operands, result = component.operands, component.result
    payload_in, payload_out = Value.cast(operands.payload), Value.cast(result.payload).as_unsigned()
    mask = (1 << len(payload_in)) - 1
    flat = [(number, word) for number, batch in enumerate(batches) for word in batch.words]
    taken: list[list[int]] = [[] for _ in batches]
    first: list[int | None] = [None] * len(batches)
    last = [0] * len(batches)
    breaches: list[str] = []

    async def bench(ctx: Any) -> None:
        position, receiving, cycle, idle = 0, 0, 0, 0
        waiting: int | None = None
        loaded = -1
        while receiving < len(batches) and not batches[receiving].results:
            receiving += 1
        while position < len(flat) or receiving < len(batches):
            held = apart and position < len(flat) and flat[position][0] > receiving
            stall_in, stall_out = next(offers), next(takes)
            offering = position < len(flat) and not stall_in and not held
            if offering and loaded != position:
                ctx.set(payload_in, flat[position][1])
                loaded = position
            elif not offering and loaded >= 0 and not held:  # what is not offered must not matter
                ctx.set(payload_in, ~flat[min(position, len(flat) - 1)][1] & mask)
                loaded = -1
            ctx.set(operands.valid, offering)
            ctx.set(result.ready, not stall_out)
            _, _, accepts, valid, payload = await ctx.tick().sample(operands.ready, result.valid, payload_out)
            if waiting is not None and (not valid or payload != waiting):
                breaches.append(f"cycle {cycle}: the result {'vanished' if not valid else 'changed'} while it waited to be taken")
            waiting = payload if valid and stall_out else None
            if offering and accepts:
                number = flat[position][0]
                first[number] = cycle if first[number] is None else first[number]
                position += 1
            if valid and not stall_out:
                if receiving == len(batches):
                    breaches.append(f"cycle {cycle}: a result that no operand asked for")
                    return
                taken[receiving].append(payload)
                last[receiving] = cycle
                while receiving < len(batches) and len(taken[receiving]) >= batches[receiving].results:
                    receiving += 1
            moved = (offering and accepts) or (valid and not stall_out)
            idle = 0 if moved else idle + 1
            if idle > PATIENCE:
                raise VerificationError(
                    f"stuck: no word moved for {PATIENCE} cycles after word {position} of {len(flat)} and "
                    f"{sum(map(len, taken))} of {sum(b.results for b in batches)} results"
                )
            cycle += 1
        for _ in range(64):  # nothing may follow
            ctx.set(operands.valid, 0)
            ctx.set(result.ready, 1)
            _, _, valid = await ctx.tick().sample(result.valid)
            if valid:
                breaches.append("a result that no operand asked for after the last one")
                return

    simulator = Simulator(component)
    simulator.add_clock(1e-9)
    simulator.add_testbench(bench)
    if waves:
        waves.parent.mkdir(parents=True, exist_ok=True)
        with simulator.write_vcd(str(waves)):
            simulator.run()
    else:
        simulator.run()
    cycles = tuple(end - start if start is not None else 0 for start, end in zip(first, last, strict=True))
    return Run(tuple(map(tuple, taken)), cycles, tuple(breaches))
