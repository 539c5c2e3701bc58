"""CPU seconds to quantise and restore a 4096 x 4096 tensor, by format: `python benchmarks/quantise.py [FORMAT ...]`."""

from __future__ import annotations

import itertools
import sys
import time
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).parents[1])  # `mapper.py` in this folder would hide the package of that name

from workloads.quantisers import distribution, pack, quantisable, quantiser

LIMIT_S = 2.0


def main(names: list[str]) -> int:
    values = distribution("gaussian:4096x4096")
    slow = []
    print(f"{'format':18}{'quantise':>10}{'restore':>10}{'pack':>10}{'bits':>10}")
    for name in names or quantisable():
        own = quantiser(name)
        times = [time.process_time()]
        quantised = own.quantise(values)
        times.append(time.process_time())
        own.dequantise(quantised)
        times.append(time.process_time())
        bits = pack(quantised).bits_per_value
        times.append(time.process_time())
        took = [b - a for a, b in itertools.pairwise(times)]
        print(f"{name:18}" + "".join(f"{t:9.3f}s" for t in took) + f"{bits:10.4f}")
        slow += [name] if took[0] > LIMIT_S else []
    print(f"above {LIMIT_S} s: {', '.join(slow) or 'none'}")
    return 1 if slow else 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
