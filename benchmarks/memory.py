"""CPU seconds of the DRAM engines, chunk mode against burst mode, and the table of stream rates.

python benchmarks/memory.py             speed of both modes
python benchmarks/memory.py --errors    bandwidth of chunk mode against burst mode, per preset and pattern
python benchmarks/memory.py --streams   the steady rates that `STREAMS` and `SCATTERED` of `hw.dram` hold
"""

from __future__ import annotations

import argparse
import sys
import time
from fractions import Fraction
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).parents[1])  # `mapper.py` in this folder would hide the package of that name

from hw.dram import MAPPINGS, PRESETS, SCATTER_SIZES, DramPreset
from sim.dram import serve, simulate
from sim.patterns import requests

MIB = 1 << 20
SCATTERED = (("random", 0), ("stride", 0), ("mixed", 0), ("triad", 0), ("chunks", 256), ("chunks", 1024), ("chunks", 4096))


def speed() -> None:
    """Million bursts per CPU second of the burst engine, and CPU seconds of a 1 GiB stream in chunk mode."""
    serve(PRESETS["DDR4-3200"], requests(PRESETS["DDR4-3200"], "mixed", 1 << 12))  # compile, or load what was compiled before
    print(
        f"{'preset':13}"
        + "".join(f"{name:>10}" for name in ("stream", "row", "random", "mixed", "4 KiB"))
        + "   million bursts per CPU second"
    )
    for name, preset in PRESETS.items():
        rates = []
        for pattern, mapping in (
            ("stream", "interleaved"),
            ("stream", "row"),
            ("random", "interleaved"),
            ("mixed", "interleaved"),
            ("chunks", "row"),
        ):
            wanted = requests(preset, pattern, 16 * MIB, chunk_bytes=4096)
            start = time.process_time()
            serve(preset, wanted, mapping=mapping)
            rates.append(len(wanted) * preset.bursts_per_request / (time.process_time() - start) * 1e-6)
        print(f"{name:13}" + "".join(f"{rate:10.2f}" for rate in rates))
    preset = PRESETS["HBM3-6.4-CH"]
    start = time.process_time()
    result = simulate(preset, "stream", 1 << 30, mode="chunk")
    print(f"\n1 GiB stream in chunk mode: {(time.process_time() - start) * 1e3:.2f} ms CPU ({result.bandwidth_gbps:.2f} GB/s)")


def errors() -> None:
    """Chunk over burst bandwidth, in percent, at 24 MiB."""
    for name, preset in PRESETS.items():
        for mapping in MAPPINGS:
            row = []
            for pattern, chunk in (("stream", 0), *SCATTERED):
                burst, bulk = (
                    simulate(preset, pattern, 24 * MIB, chunk_bytes=chunk, mapping=mapping, mode=mode) for mode in ("burst", "chunk")
                )
                row.append(f"{pattern}{chunk or ''} {100 * (bulk.bandwidth_gbps / burst.bandwidth_gbps - 1):+.2f}")
            print(f"{name:13}{mapping:13}" + "  ".join(row), flush=True)


def steady(preset: DramPreset, mapping: str, *, write: bool, refresh: bool) -> float:
    """Fraction of the peak of the second 24 MiB of a stream."""
    ends = [
        serve(preset, requests(preset, "stream", size, write=write), mapping=mapping, refresh=refresh).end_ticks
        for size in (24 * MIB, 48 * MIB)
    ]
    return float(Fraction(24 * MIB * 10**15, (ends[1] - ends[0]) * preset.tick_fs) / preset.peak)


def scattered(preset: DramPreset, mapping: str, chunk_bytes: int) -> float:
    """Fraction of the peak of random chunks between 4 and 16 MiB, refresh on."""
    ends = []
    for size in (4 * MIB, 16 * MIB):
        wanted = requests(preset, "chunks", size, chunk_bytes=chunk_bytes, mapping=mapping, seed=3)
        ends.append(serve(preset, wanted, mapping=mapping).end_ticks)
    return float(Fraction(12 * MIB * 10**15, (ends[1] - ends[0]) * preset.tick_fs) / preset.peak)


def streams() -> None:
    """The entries of `STREAMS`, then those of `SCATTERED`."""
    for name, preset in PRESETS.items():
        table = {
            mapping: tuple(
                round(steady(preset, mapping, write=write, refresh=refresh), 4) for write in (False, True) for refresh in (False, True)
            )
            for mapping in reversed(MAPPINGS)
        }
        print(f'    "{name}": {table},', flush=True)
    for name, preset in PRESETS.items():
        chunks = {mapping: tuple(round(scattered(preset, mapping, size), 3) for size in SCATTER_SIZES) for mapping in reversed(MAPPINGS)}
        print(f'    "{name}": {chunks},', flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--errors", action="store_true")
    parser.add_argument("--streams", action="store_true")
    given = parser.parse_args()
    if given.errors:
        errors()
    elif given.streams:
        streams()
    else:
        speed()
