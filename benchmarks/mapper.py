"""How good the mapper's mappings are, and what finding them costs in CPU seconds.

python benchmarks/mapper.py            products on the two arrays: against the stall-free cycles, cold and warm
python benchmarks/mapper.py --speed    GPU products, a layer, a whole model and a million tokens
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
import time
from math import ceil
from pathlib import Path

sys.path[0] = str(Path(__file__).parents[1])  # this file is named like a package: look for that beside this folder, not in it

import workloads  # noqa: E402
from hw.device import Device  # noqa: E402
from hw.devices import load  # noqa: E402
from mapper.compile import choose_space, compile_graph  # noqa: E402
from mapper.kernels import fuse  # noqa: E402
from mapper.memo import Memo, Shelf  # noqa: E402
from mapper.strategies import Search  # noqa: E402
from mapper.target import Target  # noqa: E402
from sim import simulate  # noqa: E402

SHAPES = ("512x4096x4096", "512x4096x11008", "512x11008x4096", "4096x4096x4096")  # M x K x N


def stall_free(device: Device, shape: str) -> int:
    """Cycles of the folds alone: ceil(M / R) ceil(N / C) (K + R + C - 2), Samajdar et al., ISPASS 2020."""
    m, k, n = map(int, shape.split("x"))
    array = device.units["array"]
    rows, columns, _ = array.granularity()
    return ceil(m / rows) * ceil(n / columns) * (k + rows + columns - 2)


def first_folds(device: Device, shape: str) -> int:
    """Cycles by which a first fold waits for its operands, beyond its own, when all of K is added up in the array: it ends no sooner
    than its rows and columns have arrived, at the interface's rate."""
    _, k, _ = map(int, shape.split("x"))
    rows, columns, _ = device.units["array"].granularity()
    arrives = ceil(max(rows, columns) * k * device.clock / device.dram.bandwidth)
    return max(0, arrives - k)


def products() -> None:
    print(
        f"{'device':13}{'M x K x N':17}{'cycles':>12}{'of stall-free':>15}{'of its space':>14}{'first fold':>12}{'no cold fill':>14}"
        f"{'DRAM bytes':>13}{'cold':>9}{'warm':>10}  mapping"
    )
    for name in ("systolic-32", "systolic-128"):
        device = load(name)
        warm_fill = device.with_settings({"memories.dram.cold_fill": "excluded"})
        for shape in SHAPES:
            graph = workloads.load(f"gemm:{shape}:int8")
            with tempfile.TemporaryDirectory() as folder:
                memo = Memo(Shelf(Path(folder)))
                start = time.process_time()
                compiled = compile_graph(graph, device, strategy=Search(memo=memo))
                cold = time.process_time() - start
                start = time.process_time()
                again = compile_graph(graph, device, strategy=Search(memo=memo))
                warm = time.process_time() - start
            placed = compiled.kernels[0]
            assert placed.choice is not None
            assert simulate(compiled.program, "fast").makespan == placed.plan.latency_fs == again.kernels[0].plan.latency_fs
            cycles, least = placed.plan.latency_fs // 10**6, stall_free(device, shape)
            excluded = compile_graph(graph, warm_fill).kernels[0].plan.latency_fs // 10**6
            first = first_folds(device, shape) / least
            proven = f"{placed.plan.latency_fs / placed.choice.bound_fs:.2f}{' proven' if placed.choice.proven else ''}"
            print(
                f"{name:13}{shape:17}{cycles:12,}{cycles / least:15.4f}{proven:>14}{first:12.4f}{excluded / least:14.4f}"
                f"{placed.plan.traffic('dram'):13,}{cold:8.2f}s{warm * 1e3:8.1f}ms  {placed.plan.mapping}"
            )


def speed() -> None:
    generator, device = random.Random(1), load("a100-80g")
    kernels = []
    for _ in range(1000):
        m, k, n = (int(2 ** generator.uniform(4, 14)) for _ in range(3))
        kernels.append(fuse(workloads.load(f"gemm:{m}x{k}x{n}"))[0][1][0])
    target, chooser = Target(device), Search()
    start = time.process_time()
    for kernel in kernels:
        chooser.choose(choose_space(target, kernel)[0], kernel.name, None)
    print(f"GPU product, mean of 1,000 shapes: {time.process_time() - start:.2f} ms CPU")
    for name, model, phase, length in (
        ("edge-npu", "llama-2-7b", "prefill", 2048),
        ("edge-npu", "llama-2-7b", "decode", 2048),
        ("a100-80g", "llama-2-7b", "prefill", 2048),
        ("a100-80g", "llama-3-8b", "prefill", 1_000_000),
        ("edge-npu", "llama-3-8b", "prefill", 1_000_000),
    ):
        graph = workloads.load(model, phase=phase, **({"seq": length} if phase == "prefill" else {"context": length}))
        roomy = load(name)
        roomy = roomy.with_settings({f"memories.{roomy.main_memory}.capacity": "900 GiB"})
        start = time.process_time()
        compiled = compile_graph(graph, roomy)
        mapped = time.process_time()
        simulate(compiled.program, "fast")
        print(f"{model} {phase} {length} on {name}: {mapped - start:.2f} s to map, {time.process_time() - mapped:.2f} s to simulate (CPU)")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--speed", action="store_true", help="time of mapping GPU products and whole models")
    speed() if parser.parse_args().speed else products()
