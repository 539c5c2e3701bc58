"""What the common runs cost, against their budgets: `python benchmarks/run.py [NAME ...]`.

CPU seconds of a fresh process and its peak resident memory, as the kernel counts them (`os.wait4`): the number of cores and what
else runs on the machine matter little. Each benchmark runs once to warm the caches of traces and compiled code and then
`REPEATS` times; the best counts. The exit status is 1 when a budget is missed.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
REPEATS = 3


@dataclass(frozen=True)
class Cost:
    """CPU seconds (user and system) and peak resident memory of one process."""

    cpu_s: float
    peak_bytes: int
    printed: str


@dataclass(frozen=True)
class Benchmark:
    """A Python program as `code`, or `dovetail` with `arguments`.

    `cpu_s` is its budget. With `itself` the program prints the CPU seconds to count, for what follows its imports.
    """

    name: str
    cpu_s: float
    arguments: Sequence[str] = ()
    code: str = ""
    peak_bytes: int | None = None
    itself: bool = False


TRACE = """
import time
from workloads import catalogue, tracer
config = catalogue.describe("llama-2-7b").hf_config()
start = time.process_time()
graph = tracer.trace(config, name="llama-2-7b", where="llama-2-7b", phase="prefill", batch=1, length=2048)
print(time.process_time() - start)
assert {segment.count for segment in graph.segments} >= {32}
"""

VALIDATE = """
import random, time
from verif.validation import Measurement, evaluate
rng = random.Random(1)
def product():
    m, n, k = (2 ** rng.randrange(low, high) * rng.choice((2, 3)) for low, high in ((0, 12), (6, 15), (6, 15)))
    return Measurement("h100-sxm", "gemm", rng.choice(("bf16", "fp8")), {"m": m, "n": n, "k": k}, 1.0, copies=5)
products = [product() for _ in range(2000)]
start = time.process_time()
score = evaluate(products)
print(time.process_time() - start)
assert len(score.predicted) == len(products)
"""
"""Predicting and scoring products, of which ten thousand are to take no longer than 60 s and each 2 ms on average."""

BENCHMARKS = (
    Benchmark("import dovetail", 0.5, code="import dovetail"),
    Benchmark("trace 32 layers (after imports)", 2.0, code=TRACE, itself=True),
    Benchmark("estimate llama-2-7b prefill, a100-80g", 3.0, ("estimate", "llama-2-7b", "--device", "a100-80g")),
    Benchmark("estimate llama-2-7b decode, a100-80g", 3.0, ("estimate", "llama-2-7b", "--device", "a100-80g", "--phase", "decode")),
    Benchmark("estimate llama-2-7b prefill, edge-npu", 3.0, ("estimate", "llama-2-7b", "--device", "edge-npu")),
    Benchmark("estimate llama-2-7b decode, edge-npu", 3.0, ("estimate", "llama-2-7b", "--device", "edge-npu", "--phase", "decode")),
    Benchmark(
        "estimate gemm 4096^3, systolic-32",
        1.0,
        ("estimate", "gemm:4096x4096x4096:int8", "--device", "systolic-32"),
        peak_bytes=500 * 10**6,
    ),
    Benchmark("validate 2,000 products, h100-sxm", 4.0, code=VALIDATE, itself=True),
)

RATIO = 1.5
"""How much more an estimate of a 70B model may cost than one of a 7B model: layers are folded, so depth is nearly free."""
LARGE = ("--device", "a100-80g", "--phase", "decode", "--weights", "int4-g128")
"""Weights of 4 bits, so that both models fit the device."""


def cost(command: Sequence[str]) -> Cost:
    """Runs a command once. Raises `RuntimeError` with its messages when it fails."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    child = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert child.stdout is not None
    printed = child.stdout.read()
    child.stdout.close()
    _, status, usage = os.wait4(child.pid, 0)
    child.returncode = os.waitstatus_to_exitcode(status)
    if child.returncode:
        raise RuntimeError(f"{' '.join(command)} ended with status {child.returncode}:\n{printed}")
    return Cost(usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024, printed)


def best(command: Sequence[str]) -> Cost:
    """The cheapest of `REPEATS` runs after one that warms the caches."""
    cost(command)
    return min((cost(command) for _ in range(REPEATS)), key=lambda run: run.cpu_s)


def dovetail(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "dovetail", *arguments]


def main(names: Sequence[str]) -> int:
    """Runs the benchmarks whose name contains one of `names` (all without names) and prints a line for each."""
    missed = 0

    def line(name: str, measured: str, budget: str, kept: bool) -> None:
        nonlocal missed
        missed += not kept
        print(f"{name:42} {measured:>22} {budget:>22}  {'ok' if kept else 'MISSED'}", flush=True)

    print(f"{'benchmark':42} {'CPU s (peak MB)':>22} {'budget':>22}")
    for benchmark in BENCHMARKS:
        if names and not any(name in benchmark.name for name in names):
            continue
        run = best([sys.executable, "-c", benchmark.code] if benchmark.code else dovetail(*benchmark.arguments))
        seconds = float(run.printed) if benchmark.itself else run.cpu_s
        limit = benchmark.peak_bytes
        line(
            benchmark.name,
            f"{seconds:.2f} ({run.peak_bytes / 1e6:.0f})",
            f"{benchmark.cpu_s:.2f}" + (f" ({limit / 1e6:.0f})" if limit else ""),
            seconds <= benchmark.cpu_s and (limit is None or run.peak_bytes <= limit),
        )
    name = "llama-2-70b over llama-2-7b"
    if not names or any(wanted in name for wanted in names):
        small, large = (best(dovetail("estimate", model, *LARGE)).cpu_s for model in ("llama-2-7b", "llama-2-70b"))
        line(name, f"{large:.2f} / {small:.2f} = {large / small:.2f}x", f"{RATIO}x", large <= RATIO * small)
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
