"""A sweep of 1,000 systolic arrays on one layer of Llama-2-7B: cold, unchanged, and on one worker against two.

python benchmarks/explore.py                        decode; the three runs
python benchmarks/explore.py --phase prefill        the same for a prompt of 2,048 tokens
python benchmarks/explore.py --mappings             what remembered costs and mappings on disk save (CPU seconds)

Wall time depends on what else the machine does, so processor time of all workers stands beside it. Each run has a store and a
cache of mappings of its own.
"""

from __future__ import annotations

import argparse
import os
import resource
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).parents[1])  # `mapper.py` in this folder would hide the package of that name

from dovetail import estimate, sweep
from dovetail.explore import Study, Workload
from hw.device import Device
from hw.devices import load
from mapper.memo import Memo, Shelf
from mapper.strategies import Search

ROWS = [16, 24, 32, 48, 64, 96, 128, 160, 192, 256]
COLUMNS = [16, 32, 64, 128, 256]
SRAM = {"activations": [256, 512, 1024, 2048, 4096], "weights": [512, 4096], "outputs": [512, 4096]}  # KiB
BASE = load("edge-npu")


def design(rows: int, columns: int, activations: int, weights: int, outputs: int) -> Device:
    """One of 10 x 5 arrays with one of 5 x 2 x 2 sets of scratchpads."""
    pads = {"activations": activations, "weights": weights, "outputs": outputs}
    settings: dict[str, object] = {f"memories.{name}.capacity": f"{size} KiB" for name, size in pads.items()}
    return BASE.with_settings({"units.array.rows": rows, "units.array.columns": columns, **settings})


def run(phase: str, store: Path, workers: int) -> Study:
    return sweep(
        design, workload=Workload("llama-2-7b", phase=phase, layers=1, weights="int8", acts="int8"), rows=ROWS, columns=COLUMNS, **SRAM,
        objectives=("latency", "energy"), store=store, workers=workers,
    )  # fmt: skip


@contextmanager
def own_folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as folder:
        os.environ["DOVETAIL_CACHE"] = folder
        yield Path(folder)


def timed(what: str, phase: str, store: Path, workers: int) -> float:
    spent = _processor_s()
    start = time.perf_counter()
    study = run(phase, store, workers)
    wall = time.perf_counter() - start
    rate = len(study) / wall
    print(
        f"{what:28} {len(study)} points, {study.evaluated:4} evaluated: {wall:6.1f} s wall, {_processor_s() - spent:6.1f} s processor, "
        f"{rate:6.1f} points/s, {len(study.infeasible)} infeasible"
    )
    return wall


def _processor_s() -> float:
    return sum(u.ru_utime + u.ru_stime for u in (resource.getrusage(w) for w in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)))


def scaling(phase: str) -> None:
    with own_folder() as folder:
        two = timed(f"{phase}, cold, 2 workers", phase, folder / "two.sqlite", 2)
        timed(f"{phase}, unchanged", phase, folder / "two.sqlite", 2)
    with own_folder() as folder:
        one = timed(f"{phase}, cold, 1 worker", phase, folder / "one.sqlite", 1)
    print(f"one worker takes {one / two:.2f} times as long as two")


def mappings(phase: str) -> None:
    """Processor time of the search for twenty designs of one array, with and without what is known from before."""
    graph = Workload("llama-2-7b", phase=phase, layers=1, weights="int8", acts="int8").graph()
    devices = [design(64, 64, a, w, o) for a in SRAM["activations"] for w in SRAM["weights"] for o in SRAM["outputs"]]

    def spent(what: str, chosen: Any) -> None:
        start = time.process_time()
        for device in devices:
            chosen(device)
        print(f"{what:44} {time.process_time() - start:6.2f} s processor for {len(devices)} designs")

    spent(f"{phase}: estimate, nothing remembered", lambda device: estimate(graph, device=device, strategy=Search()))
    known = Search()
    spent(f"{phase}: estimate with remembered costs", lambda device: estimate(graph, device=device, strategy=known))
    with tempfile.TemporaryDirectory() as folder:
        for what in ("kept on disk", "found on disk"):
            disk = Search(memo=Memo(Shelf(Path(folder))))
            spent(f"{phase}: estimate, mappings {what}", lambda device, disk=disk: estimate(graph, device=device, strategy=disk))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--phase", choices=("decode", "prefill"), default="decode")
    parser.add_argument("--mappings", action="store_true")
    options: Any = parser.parse_args()
    (mappings if options.mappings else scaling)(options.phase)


if __name__ == "__main__":
    main()
