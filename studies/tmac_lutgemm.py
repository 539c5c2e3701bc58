"""T-MAC (Wei et al., EuroSys 2025) and LUT-GEMM (Park et al., ICLR 2024): lookups on CPUs and on a GPU.

- T-MAC: decoding Llama-2-7B and BitNet-3B on four machines, from the cores' SIMD ports and the instructions that the algorithm needs for a
  lookup; nothing is fitted. Published are tokens per second of one thread and of several.
- The line through 2 and 4 bits, which the paper's scaling suggests, is fitted on two published figures and only reported.
- LUT-GEMM: the largest product of OPT-175B on an A100: memory, shared memory with its bank conflicts, additions.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from dovetail import estimate
from hw.lowbit.lookup import tmac
from studies.row import StudyRow
from workloads.catalogue import describe

SOURCE = "Wei et al., T-MAC, EuroSys 2025, arXiv:2407.00088; table of the released repository"
LUT_SOURCE = "Park et al., LUT-GEMM, ICLR 2024, arXiv:2206.09557"
CONTEXT = 128
"""Tokens of context; not stated with the table."""
LIMIT = 5e-4
"""Largest normalised mean square error that the repository's own tests accept."""

MODELS = {"BitNet-3B": ("bitnet-3b", "ternary"), "Llama-2-7B W2": ("llama-2-7b", "int2-g128"), "Llama-2-7B W4": ("llama-2-7b", "int4-g128")}


@dataclass(frozen=True)
class Machine:
    """Published tokens per second by model: of one thread and of `threads`."""

    device: str
    one: tuple[float, float, float]
    threads: tuple[int, int, int]
    several: tuple[float, float, float]


MACHINES = (
    Machine("t-mac-m2-ultra", (22.08, 16.68, 8.97), (4, 8, 8), (54.46, 51.01, 35.65)),
    Machine("t-mac-agx-orin", (8.18, 4.36, 2.46), (12, 12, 12), (26.02, 15.62, 8.09)),
    Machine("t-mac-raspberry-pi-5", (8.03, 4.40, 2.42), (2, 2, 2), (11.09, 5.92, 3.35)),
    Machine("t-mac-surface-book-3", (12.65, 6.77, 3.74), (4, 4, 4), (28.60, 16.82, 9.34)),
)
TOLERANCE = 0.15
REASONS = {
    "t-mac-m2-ultra": "the runtime's share of a token (graph, norms, an LM head of unknown format) is not in the cores' arithmetic",
    "t-mac-agx-orin": "dependent instructions, cache misses and the runtime outside of products are not modelled",
    "t-mac-raspberry-pi-5": "dependent instructions, cache misses and the runtime outside of products are not modelled",
    "t-mac-surface-book-3": "the published rates are about 12 GB/s at every width: what one core can draw from memory, not modelled",
}
SEVERAL = "threads wait for each other at every operator and share caches and power; neither is modelled, so this is an upper bound"


def tokens_per_s(device: str, model: str, threads: int) -> float:
    """Decoded tokens per second."""
    name, weights = MODELS[model]
    settings = {"units.simd.count": threads, "units.vector.count": threads}
    return 1 / estimate(name, device=device, phase="decode", context=CONTEXT, weights=weights, settings=settings).latency_s


def error(bits: int, outputs: int = 64, inputs: int = 4096, seed: int = 0) -> float:
    """Normalised mean square error of T-MAC's int8 tables against the same weights times fp64 activations."""
    rng = np.random.default_rng(seed)
    codes, acts = rng.integers(0, 1 << bits, (outputs, inputs)), rng.standard_normal(inputs).astype(np.float32)
    scales = rng.uniform(0.5, 1.5, (outputs, inputs // 128)).astype(np.float32)
    weights = (codes - (1 << (bits - 1))) * np.repeat(scales.astype(np.float64), 128, axis=1)
    exact = weights @ acts.astype(np.float64)
    return float(((tmac(codes, bits, scales, acts) - exact) ** 2).sum() / (exact**2).sum())


def rows() -> list[StudyRow]:
    """One thread (claimed), several (reported), the fitted line (reported), errors, and LUT-GEMM's kernels (claimed)."""
    return [*_threads(), *_line(), *_errors(), *_kernels()]


def _row(experiment: str, published: float, ours: float, unit: str, tolerance: float | None, note: str, source: str = SOURCE) -> StudyRow:
    certain = source == SOURCE
    return StudyRow(
        "tmac_lutgemm", experiment, published, ours, unit, tolerance, "certain" if certain else "probable", source, note
    )


def _threads() -> list[StudyRow]:
    out = []
    for machine in MACHINES:
        short = machine.device.removeprefix("t-mac-")
        for number, model in enumerate(MODELS):
            ours = tokens_per_s(machine.device, model, 1)
            missed = abs(ours / machine.one[number] - 1) > TOLERANCE
            note = REASONS[machine.device] if missed else "SIMD ports times instructions per lookup; nothing fitted"
            out.append(_row(f"{short}, {model}, one thread", machine.one[number], ours, "tokens/s", TOLERANCE, note))
            threads = machine.threads[number]
            ours = tokens_per_s(machine.device, model, threads)
            what = f"{short}, {model}, {threads} threads"
            out.append(_row(what, machine.several[number], ours, "tokens/s", None, SEVERAL))
    return out


def line(machine: Machine) -> float:
    """Tokens per second of BitNet-3B (two planes) from c0 + c1 bits through the published W2 and W4, scaled by stored values."""
    two, four = 1 / machine.one[1], 1 / machine.one[2]
    slope = (four - two) / 2
    seconds = (two - 2 * slope) + slope * 2
    return 1 / (seconds * describe("bitnet-3b").parameters / describe("llama-2-7b").parameters)


def _line() -> list[StudyRow]:
    note = "constants fitted on the published W2 and W4 of the same machine; BitNet-3B held out, scaled by parameters"
    return [
        _row(f"{m.device.removeprefix('t-mac-')}, BitNet-3B from the line through 2 and 4 bits", m.one[0], line(m), "tokens/s", None, note)
        for m in MACHINES
    ]


def _errors() -> list[StudyRow]:
    note = "published: at most this (the limit of the repository's tests); int8 tables per 64 activations, weights in groups of 128"
    return [_row(f"error of int8 tables, {bits} bits", LIMIT, error(bits), "of the energy", None, note) for bits in (1, 2, 3, 4)]


def _kernels() -> list[StudyRow]:
    workload = "gemm:1x12288x49152"

    def milliseconds(device: str, **options: str) -> float:
        return 1e3 * estimate(workload, device=device, **options).latency_s  # type: ignore[arg-type]

    dense = milliseconds("a100-80g")
    what = "12288 x 49152 on A100, {}"
    note = "80 GB card (2039 GB/s): the published time means 1.66 TB/s"
    out = [_row(what.format("cuBLAS fp16"), 0.7256, dense, "ms", TOLERANCE, note, LUT_SOURCE)]
    why = "memory, bank conflicts and additions; extracting indices and adding across thread blocks are not modelled; groups assumed, 128"
    for bits, published in ((4, 0.2688), (3, 0.2250)):
        ours = milliseconds("lut-gemm-a100", weights=f"bcq{bits}-g128")
        out.append(_row(what.format(f"LUT-GEMM {bits} bits"), published, ours, "ms", TOLERANCE, why, LUT_SOURCE))
        implied = 12288 * 49152 * bits / 8 / published / 1e6
        own = 12288 * 49152 * bits / 8 / ours / 1e6
        rate = what.format(f"rate of LUT-GEMM's weights, {bits} bits")
        out.append(_row(rate, implied, own, "GB/s", None, "the same as bytes per second", LUT_SOURCE))
        gain = "over its own fp16 time; the published ratio is of the two times above"
        out.append(_row(what.format(f"speed-up of {bits} bits over fp16"), 0.7256 / published, dense / ours, "x", None, gain, LUT_SOURCE))
    dequantised = milliseconds("a100-80g", weights="int4-g128")
    note = "AWQ dequantises for tensor cores; our kernel is a vendor's best, without its overheads"
    out.append(_row(what.format("AWQ 4 bits"), 0.3238, dequantised, "ms", None, note, LUT_SOURCE))
    return out
