"""A report derived by hand: one decode step of Llama-2-7B at batch 1 and context 2048 in fp16 on an A100-80G.

Kernels run one after the other, 3 us apart. Each takes the longer of its time at the HBM and its time on its unit, so every
number below can be checked with a pencil.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from fractions import Fraction
from math import ceil
from pathlib import Path

import pytest

from dovetail.report import Constant, MemoryUse, OperatorRow, Report, Roof
from sim.trace import Fold, Span, Trace

FS = 10**15
LAUNCH = 3 * 10**9  # 3 us in femtoseconds
HBM = 2_039_000_000_000  # B/s, NVIDIA A100 data sheet, 80 GB SXM
TENSOR = 312_000_000_000_000  # FLOP/s dense fp16, same data sheet
VECTOR = 78_000_000_000_000  # FLOP/s fp16 non-tensor, same data sheet
LAYERS, WIDTH, HIDDEN, VOCABULARY, CONTEXT = 32, 4096, 11008, 32000, 2048

# name, kind, unit, FLOPs, bytes at the HBM, mapping, fused
Kernel = tuple[str, str, str, int, int, str, tuple[str, ...]]


def linear(name: str, k: int, n: int, fused: tuple[str, ...] = ()) -> Kernel:
    return (name, "matmul", "tensor", 2 * k * n, 2 * (k * n + k + n), f"tile 1x128x64, split-K {k // 512}", fused)


LAYER: tuple[Kernel, ...] = (
    ("layer.input_norm", "norm", "vector", 5 * WIDTH, 2 * 3 * WIDTH, "1 row per SM", ()),
    linear("layer.q_proj", WIDTH, WIDTH, ("layer.rope_q",)),
    linear("layer.k_proj", WIDTH, WIDTH, ("layer.rope_k", "layer.append_k")),
    linear("layer.v_proj", WIDTH, WIDTH, ("layer.append_v",)),
    ("layer.attention", "attention", "tensor", 4 * WIDTH * CONTEXT, 2 * 2 * WIDTH * CONTEXT + 4 * WIDTH, "flash, split-K 8", ()),
    linear("layer.o_proj", WIDTH, WIDTH, ("layer.residual",)),
    ("layer.post_norm", "norm", "vector", 5 * WIDTH, 2 * 3 * WIDTH, "1 row per SM", ()),
    linear("layer.gate_proj", WIDTH, HIDDEN, ("layer.silu",)),
    linear("layer.up_proj", WIDTH, HIDDEN, ("layer.mul",)),
    linear("layer.down_proj", HIDDEN, WIDTH, ("layer.residual_2",)),
)
HEAD: tuple[Kernel, ...] = (
    ("norm", "norm", "vector", 5 * WIDTH, 2 * 3 * WIDTH, "1 row per SM", ()),
    linear("lm_head", WIDTH, VOCABULARY),
)
EMBED: Kernel = ("embed_tokens", "embedding", "vector", 0, 2 * 2 * WIDTH, "gather", ())


def times(kernel: Kernel) -> tuple[int, int]:
    """Femtoseconds at the HBM and on the unit."""
    _, _, unit, flops, size, _, _ = kernel
    return ceil(Fraction(size * FS, HBM)), ceil(Fraction(flops * FS, TENSOR if unit == "tensor" else VECTOR))


def spans(kernels: tuple[Kernel, ...], start: int) -> tuple[tuple[Span, ...], int]:
    """The kernels back to back from `start`: a launch, then both resources at once; and the end of the last."""
    out = []
    for kernel in kernels:
        name, _, unit, _, _, _, _ = kernel
        out.append(Span("launch", name, start, start + LAUNCH))
        start += LAUNCH
        at_hbm, on_unit = times(kernel)
        out.append(Span("hbm", f"{name}/load", start, start + at_hbm))
        if on_unit:
            out.append(Span(unit, f"{name}/compute", start, start + on_unit))
        start += max(at_hbm, on_unit)
    return tuple(out), start


def llama_decode() -> Report:
    first, begin = spans((EMBED,), 0)
    body, end = spans(LAYER, begin)
    period = end - begin
    last, makespan = spans(HEAD, begin + LAYERS * period)
    counted = [(EMBED, 1), *((k, LAYERS) for k in LAYER), *((k, 1) for k in HEAD)]
    busy = {
        "hbm": sum(times(k)[0] * n for k, n in counted),
        "tensor": sum(times(k)[1] * n for k, n in counted if k[2] == "tensor"),
        "vector": sum(times(k)[1] * n for k, n in counted if k[2] == "vector"),
        "launch": sum(LAUNCH * n for _, n in counted),
    }
    stalls = {
        "hbm": {"launch": makespan - busy["hbm"]},
        "tensor": {"launch": busy["launch"], "hbm": makespan - busy["launch"] - busy["tensor"]},
        "vector": {"launch": busy["launch"], "hbm": makespan - busy["launch"] - busy["vector"]},
        "launch": {"hbm": makespan - busy["launch"]},
    }
    operators = tuple(
        OperatorRow(
            name=k[0],
            kind=k[1],
            unit=k[2],
            count=n,
            latency_fs=LAUNCH + max(times(k)),
            lower_bound_fs=max(times(k)),
            flops=k[3],
            bytes=k[4],
            bound="hbm" if k[4] > 10**6 else "launch",
            mapping=k[5],
            fused=k[6],
        )
        for k, n in counted
    )
    moved = sum(k[4] * n for k, n in counted)
    written = 2 * (2 * LAYERS * WIDTH + VOCABULARY)  # new keys and values, logits
    weights = 2 * (LAYERS * (4 * WIDTH * WIDTH + 3 * WIDTH * HIDDEN + 2 * WIDTH) + 2 * VOCABULARY * WIDTH + WIDTH)
    cache = 2 * 2 * LAYERS * WIDTH * CONTEXT
    flops = sum(k[3] * n for k, n in counted if k[2] == "tensor")
    return Report(
        workload="llama-2-7b",
        phase="decode",
        batch=1,
        tokens=1,
        context=CONTEXT,
        formats={"weights": "fp16", "acts": "fp16", "kv": "fp16"},
        device="a100-80g",
        clock_hz=1_410_000_000,
        engine="simpy",
        latency_fs=makespan,
        lower_bound_fs=busy["hbm"],
        bound_resource="hbm",
        bound_utilization=busy["hbm"] / makespan,
        utilization={name: time / makespan for name, time in busy.items()},
        peak_fraction={"hbm": moved * FS / HBM / makespan, "tensor": flops * FS / TENSOR / makespan, "vector": busy["vector"] / makespan},
        stalls={name: {reason: time / makespan for reason, time in reasons.items()} for name, reasons in stalls.items()},
        memories=(
            MemoryUse("hbm", 80 * 2**30, weights + cache + 2**20, moved - written, written, {
                "weights": weights, "kv cache": cache, "activations": 2**20,
            }),
            MemoryUse("l2", 40 * 2**20, 9 * 2**20, moved, written, {"tiles": 9 * 2**20}),
        ),
        energy_j=moved * 8 * 3.9e-12 + flops * 0.5e-12,  # 3.9 pJ/bit at the HBM; 0.5 pJ per FLOP
        energy_parts={"hbm": moved * 8 * 3.9e-12, "tensor": flops * 0.5e-12, "leakage": None},
        tasks=3 * sum(n for _, n in counted),
        operators=operators,
        roofs=(Roof("tensor", "fp16", float(TENSOR), "hbm", float(HBM)), Roof("vector", "fp16", float(VECTOR), "hbm", float(HBM))),
        assumptions=(
            "one of 32 identical layers simulated, the others repeat it",
            "weights are read from the HBM once per step",
            "kernels do not overlap and start 3 us apart",
            "refresh not modelled",
            "the L2 holds activations between kernels",
        ),
        constants=(
            Constant("launch", "3 us", "time between dependent kernels in a CUDA graph, vendor documentation"),
            Constant("hbm energy", "3.9 pJ/bit", "O'Connor et al., Fine-Grained DRAM, MICRO 2017"),
        ),
        elapsed_s={"trace": 0.02, "map": 0.11, "simulate": 0.34},
        trace=Trace(
            (*first, Fold(LAYERS, period, body), *last),
            makespan,
            busy,
            stalls,
            simulated=3 * (1 + len(LAYER) + len(HEAD)),
            skipped=3 * len(LAYER) * (LAYERS - 1),
        ),
    )  # fmt: skip


@pytest.fixture
def report() -> Report:
    return llama_decode()


@pytest.fixture
def hostile(report: Report) -> Report:
    """The same report with names that are markup, or that a page or a script could trip over."""
    bad = '<script>alert("x")</script>&amp;'
    operators = (dataclasses.replace(report.operators[0], name=bad, mapping="</table>", fused=("<b>",)), *report.operators[1:])
    return dataclasses.replace(report, workload="</title><img src=x>", operators=operators, assumptions=("<i>none</i>",))


@pytest.fixture
def out(tmp_path: Path) -> Callable[[str], Path]:
    return lambda name: tmp_path / name
