"""SAIL (arXiv:2509.25853): look-up tables in the last-level cache of Neoverse-N1 cores against the cores alone.

Only headlines of the paper were at hand; array sizes, table sizes and cycles are our own statement (`hw/devices/sail-neoverse.yaml`,
`hw/units/sail.py`), so that no row is called reproduced.
"""

from __future__ import annotations

from fractions import Fraction
from functools import cache

import numpy as np
from numpy.typing import NDArray

from dovetail import estimate
from hw.device import Device
from hw.devices import load
from hw.units.sail import SailSlices
from hw.work import Gemm
from studies.row import StudyRow

SOURCE = "SAIL: SRAM-Accelerated LLM Inference System with Lookup-Table-based GEMV, arXiv:2509.25853, abstract"
MODEL = "llama-2-7b"
BATCHES = (1, 2, 4, 8, 16, 32)
WEIGHTS = ("int2-g128", "int4-g128", "int8-g128")
CONTEXT = 128
SCALE = 4.0
"""The largest activation of a tensor over its standard deviation."""


def cores_alone() -> Device:
    """The same cores without compute arrays."""
    device = load("sail-neoverse")
    units = {name: unit for name, unit in device.units.items() if name != "sram"}
    links = tuple(link for link in device.links if "sram" not in (link.source, link.sink))
    return device.model_copy(update={"name": "neoverse", "units": units, "links": links})


@cache
def rate(batch: int, weights: str, arrays: bool) -> float:
    """Tokens per second of decode."""
    device = load("sail-neoverse") if arrays else cores_alone()
    return batch / estimate(MODEL, device=device, phase="decode", batch=batch, context=CONTEXT, weights=weights, acts="int8").latency_s


def speedups() -> dict[tuple[str, int], float]:
    return {(w, b): rate(b, w, True) / rate(b, w, False) for w in WEIGHTS for b in BATCHES}


def patterns(activations: NDArray[np.int64], group: int, bits: int) -> NDArray[np.int64]:
    """The index of every look-up, [groups, planes], of signed activations whose number is a multiple of `group`."""
    planes = activations.reshape(-1, group, 1) >> np.arange(bits) & 1
    return np.asarray((planes << np.arange(group)[:, None]).sum(axis=1))


def merged(index: NDArray[np.int64]) -> list[list[tuple[int, int, int]]]:
    """Look-ups of each group as (pattern, plane, sign), with the sign plane merged into equal planes right below it:
    -2^7 T + 2^6 T = -2^6 T."""
    groups = []
    for row in index.tolist():
        top = len(row) - 1
        first = top
        while first > 0 and row[first - 1] == row[top]:
            first -= 1
        groups.append([(row[top], first, -1), *((row[plane], plane, 1) for plane in range(first))])
    return groups


def saved(group: int = 4, bits: int = 8, count: int = 1 << 16, seed: int = 0) -> float:
    """Share of look-ups that merging saves for Gaussian activations, quantised so that `SCALE` deviations are the largest value."""
    limit = (1 << (bits - 1)) - 1
    values = np.random.default_rng(seed).normal(0, limit / SCALE, count)
    index = patterns(np.clip(np.rint(values), -limit, limit).astype(np.int64), group, bits)
    looks = sum(len(row) for row in merged(index))
    return 1 - looks / index.size


def cycles_cut() -> float:
    """Share of the cycles of a 4096 x 4096 product for 8 rows that repeated patterns save."""
    unit = load("sail-neoverse").units["sram"]
    assert isinstance(unit, SailSlices)
    work = Gemm(8, 4096, 4096, "int8xint4")
    with_, without = (unit.model_copy(update={"reuse": share}).cycles(work) for share in (Fraction(str(round(saved(), 4))), Fraction(0)))
    return 1 - with_ / without


def rows() -> list[StudyRow]:
    """Headlines of the abstract beside our model."""
    gains = speedups()
    best = max(gains, key=lambda key: gains[key])
    unknown = "geometry, tables, clocks and the simulated cores of the paper were not at hand, ours are stated in the device file"
    where = f"{best[0]} at batch {best[1]}"
    four = ", ".join(f"{gains['int4-g128', b]:.1f}" for b in BATCHES)
    return [
        StudyRow(
            "sail",
            "largest speed-up over the cores alone",
            10.7,
            gains[best],
            "x",
            None,
            "certain",
            SOURCE,
            f"{unknown}; ours is {MODEL} with {where}; with 4 bits and batches {', '.join(map(str, BATCHES))}: {four}",
        ),
        StudyRow(
            "sail",
            "compute cycles saved by repeated patterns",
            13.8,
            100 * cycles_cut(),
            "%",
            None,
            "certain",
            SOURCE,
            f"how the paper reuses patterns is not known to us; ours merges the sign plane of int8 activations (Gaussian, largest value "
            f"{SCALE:g} deviations) with equal planes below it, which saves {100 * saved():.1f} % of the look-ups",
        ),
        StudyRow(
            "sail",
            "tokens per dollar over the cores alone",
            19.9,
            gains[best] / 1.02,
            "x",
            None,
            "certain",
            SOURCE,
            "the prices behind the figure were not at hand; ours is the speed-up over 2 % more hardware, so it stays below the speed-up",
        ),
    ]
