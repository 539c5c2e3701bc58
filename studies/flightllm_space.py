"""A design space that the FlightLLM paper leaves open: length of the sparse chains, size of their groups, and N:M.

    python -m studies.flightllm_space picture.svg

Llama-2-7B decodes at context 512 on variants of the U280: chains of 8 to 32 multipliers, cut every 2, 4 or 8 of them, all linear
layers of the decoder pruned to N:16. Tokens per second come from the instruction streams, multipliers (DSP blocks) from synthesis
of the chain's RTL, energy from the bytes and products of a token. Indices stand beside the weights that they belong to.

A chain yields the sums of several outputs when it is cut, but not of fewer multipliers than a group has, so coarse groups store
and multiply zeros of sparse blocks. What pruning costs in accuracy is not modelled: each N:16 has a front of its own.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

from hw import devices
from hw.errors import HardwareError
from mapper.flightllm.compile import Compiler, core_of
from mapper.flightllm.emit import Options
from sim.flightllm import run
from workloads import load, quantise
from workloads.prune import prune

DSP_PER_MULTIPLIER = Fraction(1)
"""DSP blocks of a chain over its multipliers, each of which serves two rows: `csd_chain` of 1, 2, 4, 8 and 16 groups of two
synthesised for UltraScale+ with Yosys 0.70 (2026-11-21) takes 2, 4, 8, 16 and 32."""
HBM_PJ_PER_BIT = 3.92
"""O'Connor et al., Fine-Grained DRAM, MICRO 2017."""
MAC_PJ = 0.3
"""8-bit multiply (0.2) and 32-bit add (0.1): Horowitz, ISSCC 2014, 45 nm. An ASIC's: the fabric around a DSP block is not in it."""
BOARD_DSP = 9024
"""DSP blocks of the U280 (AMD DS963)."""
CHAINS = (4, 8, 16)
GROUPS = (2, 4, 8)
KEPT = (2, 4, 8, 16)
CONTEXT = 512
LAYERS = (r"_proj$",)


@dataclass(frozen=True)
class Point:
    """A design and what it reaches: `multipliers` per chain, `group` between cuts, `kept` of 16 weights."""

    multipliers: int
    group: int
    kept: int
    tokens_per_s: float
    dsp: int
    energy_mj: float
    pareto: bool = False


def points(chains: Iterable[int] = CHAINS, groups: Iterable[int] = GROUPS, kept: Iterable[int] = KEPT) -> list[Point]:
    """Every design, with those marked that no other of the same N:16 beats in tokens per second, DSP blocks and energy.

    `chains` are lengths in pairs of multipliers. Raises `HardwareError` for a chain that is not whole groups.
    """
    graph = quantise(load("llama-2-7b", phase="decode", batch=1, context=CONTEXT), weights="int4", acts="int8", kv="int8")
    board = devices.load("flightllm-u280")
    found: list[Point] = []
    for number in kept:
        pruned = prune(graph, number, LAYERS)
        for pairs in chains:
            for group in groups:
                multipliers = 2 * pairs
                if multipliers % group:
                    raise HardwareError(f"a chain of {multipliers} multipliers is not a whole number of groups of {group}")
                device = board.with_settings({"units.core.chain": multipliers // group, "units.core.group": group})
                got = run(Compiler(pruned, device, Options(boundary="on_chip", index="interleaved")).compile(), device)
                core = core_of(device)
                dsp = core.count * core.mm_rows // 2 * core.mm_columns * multipliers * DSP_PER_MULTIPLIER
                energy = (got.read + got.written) * 8 * HBM_PJ_PER_BIT + got.macs * MAC_PJ
                found.append(Point(multipliers, group, number, 1 / got.seconds, int(dsp), energy * 1e-9))
    return [Point(*_key(p), p.tokens_per_s, p.dsp, p.energy_mj, not any(_beats(q, p) for q in found if q.kept == p.kept)) for p in found]


def _key(point: Point) -> tuple[int, int, int]:
    return point.multipliers, point.group, point.kept


def _beats(a: Point, b: Point) -> bool:
    """At least as good everywhere and better somewhere."""
    goals = [(a.tokens_per_s, b.tokens_per_s), (-a.dsp, -b.dsp), (-a.energy_mj, -b.energy_mj)]
    return all(x >= y for x, y in goals) and any(x > y for x, y in goals)


def draw(found: list[Point], path: str | Path) -> None:
    """Writes the picture: tokens per second against DSP blocks and against energy, one colour per N:16, fronts filled."""
    import matplotlib
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    with matplotlib.rc_context({"svg.hashsalt": "dovetail", "font.size": 9}):
        figure = Figure(figsize=(9.5, 4.2), layout="constrained")
        left, right = figure.subplots(1, 2, sharey=True)
        colours = dict(zip(KEPT, ("#0072b2", "#009e73", "#d55e00", "#555555"), strict=True))
        marks = dict(zip(GROUPS, ("o", "s", "^"), strict=True))
        for axes, name in ((left, "dsp"), (right, "energy_mj")):
            for point in found:
                colour = colours[point.kept]
                axes.plot(
                    getattr(point, name),
                    point.tokens_per_s,
                    marks[point.group],
                    color=colour,
                    markersize=4 + point.group,
                    fillstyle="full" if point.pareto else "none",
                )
            axes.grid(True, linewidth=0.4, alpha=0.6)
        for kept in KEPT:
            front = sorted((p.dsp, p.tokens_per_s) for p in found if p.kept == kept and p.pareto)
            left.plot([x for x, _ in front], [y for _, y in front], color=colours[kept], linewidth=0.8)
        left.axvline(BOARD_DSP, color="black", linewidth=0.8, linestyle=":")
        left.annotate(f"{BOARD_DSP} on the board", (BOARD_DSP, 0.02), xycoords=("data", "axes fraction"), ha="right", fontsize=8)
        left.set_xlabel("DSP blocks of the matrix engines (synthesis)")
        right.set_xlabel("energy of HBM and products per token (mJ)")
        left.set_ylabel("tokens per second")
        handles = [Line2D([], [], color=colours[k], marker="o", linestyle="", label=f"{k}:16" if k < 16 else "dense") for k in KEPT]
        handles += [Line2D([], [], color="black", marker=marks[g], linestyle="", fillstyle="none", label=f"cut every {g}") for g in GROUPS]
        right.legend(handles=handles, frameon=False, loc="upper right")
        figure.suptitle(f"Llama-2-7B decode at context {CONTEXT} on U280 variants; filled: not beaten at the same N:16")
        figure.savefig(path)


def main(arguments: list[str]) -> int:
    """Prints the points and writes the picture named on the command line."""
    if len(arguments) != 1 or not arguments[0].endswith((".svg", ".png")):
        print("usage: python -m studies.flightllm_space PICTURE.svg|png", file=sys.stderr)
        return 2
    found = points()
    for p in sorted(found, key=lambda p: (p.kept, p.dsp, p.group)):
        print(
            f"{p.kept:2d}:16  chain {p.multipliers:2d}  group {p.group}  {p.tokens_per_s:6.1f} tokens/s  {p.dsp:5d} DSP"
            f"  {p.energy_mj:6.1f} mJ{'  pareto' if p.pareto else ''}"
        )
    draw(found, arguments[0])
    print(f"picture: {arguments[0]}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
