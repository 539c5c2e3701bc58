"""CPU seconds of serving: a decode step of Mixtral on `duplex`, cold and remembered, and ten thousand requests.

python benchmarks/serving.py            all of it; exit status 1 when a budget is missed
python benchmarks/serving.py --quick    the steps alone
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).parents[1])  # `mapper.py` in this folder would hide the package of that name

import numpy as np

from dovetail.serving import routing, serve
from dovetail.serving.costs import Counts, decoding
from dovetail.serving.front import step_costs

MODEL, DEVICES = "mixtral-8x7b", 4
COLD_S, REMEMBERED_S, REQUESTS_S = 2.0, 0.020, 60.0
BATCHES = (1, 32, 64, 128)


def steps(device: str = "duplex") -> bool:
    """One decode step by batch: the first time, and again with other tokens per expert."""
    fine = True
    for batch in BATCHES:
        start = time.process_time()
        costs = step_costs(MODEL, device, devices=DEVICES)
        route = routing.parse("uniform", costs.expert_layers, costs.experts, costs.top_k, np.random.default_rng(0))
        histograms: list[Counts] = [route.draw(batch) for _ in range(3)]
        spent = costs.step(decoding([1024] * batch, histograms[0]))
        cold = time.process_time() - start
        start = time.process_time()
        costs.step(decoding([1024] * batch, histograms[0]))
        remembered = time.process_time() - start
        start = time.process_time()
        for histogram in histograms[1:]:
            costs.step(decoding([1025] * batch, histogram))
        others = (time.process_time() - start) / 2
        print(
            f"decode step, batch {batch:4} on {DEVICES} x {device}: {spent.fs * 1e-12:7.3f} ms; cold {cold:.3f} s, again "
            f"{remembered * 1e3:.3f} ms, another routing {others * 1e3:.2f} ms of CPU"
        )
        fine = fine and cold <= COLD_S and remembered <= REMEMBERED_S
    return fine


def requests(count: int = 10_000, device: str = "duplex") -> bool:
    """Ten thousand requests, closed and Poisson."""
    fine = True
    for arrivals, most in (("closed", 64), ("poisson:20", 128)):
        start = time.process_time()
        options = {"max_batch": most, "inputs": "512:64", "outputs": "512:64", "arrivals": arrivals}
        report = serve(MODEL, device=device, devices=DEVICES, requests=count, **options)  # type: ignore[arg-type]
        took = time.process_time() - start
        iterations = len(report.served.lasts)
        rate = report.to_json()["throughput"]["requests_per_s"]
        print(f"{count} requests, {arrivals}: {rate:.2f} requests/s simulated, {iterations} iterations, {took:.1f} s of CPU")
        fine = fine and took <= REQUESTS_S
    return fine


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--quick", action="store_true", help="the steps alone")
    quick = parser.parse_args().quick
    fine = steps()
    if not quick:
        fine = requests() and fine
    return 0 if fine else 1


if __name__ == "__main__":
    raise SystemExit(main())
