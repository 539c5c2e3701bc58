"""The clocks: of kernels in a graph, of calls in a row from the host, and of one call that the host waits for."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from verif.latency.cases import Call

WARM_UP = 3

LEAST_REPEATS, MOST_REPEATS = 6, 30

SPAN_S = 0.002
"""One timed span takes about so long: far above the resolution of events, half a microsecond."""

WHOLE_S = 0.08
"""All spans of a case together, about."""

MOST_CALLS = 256
"""Calls in one span, at most."""


@dataclass(frozen=True)
class Timing:
    """Seconds of one call: median, and the tenth and ninetieth percentile of the spans; `calls` in each of `spans`."""

    median_s: float
    p10_s: float
    p90_s: float
    calls: int
    spans: int

    @classmethod
    def of(cls, seconds: Sequence[float], calls: int) -> Timing:
        low, middle, high = (float(q) for q in np.percentile(np.asarray(seconds) / calls, (10, 50, 90)))
        return cls(middle, low, high, calls, len(seconds))


def spans_for(call_s: float, sets: int) -> tuple[int, int]:
    """Calls in a span, a whole number of rounds over the sets of operands, and the number of spans, for calls of about `call_s`.

    >>> spans_for(100e-6, 3), spans_for(1.0, 2)
    ((21, 30), (2, 6))
    """
    wanted = min(MOST_CALLS, max(1, round(SPAN_S / max(call_s, 1e-7))))
    calls = -(-wanted // sets) * sets
    repeats = round(WHOLE_S / max(calls * call_s, 1e-7))
    return calls, min(MOST_REPEATS, max(LEAST_REPEATS, repeats))


def once(torch: Any, cuda: bool, sets: Sequence[Call]) -> float:
    """Seconds of a call after warming up, roughly."""
    for _ in range(WARM_UP):
        sets[0]()
    wait(torch, cuda)
    started = time.perf_counter()
    for call in sets:
        call()
    wait(torch, cuda)
    return (time.perf_counter() - started) / len(sets)


def wait(torch: Any, cuda: bool) -> None:
    if cuda:
        torch.cuda.synchronize()


def kernel(torch: Any, sets: Sequence[Call]) -> Timing:
    """Device time of calls in a CUDA graph, which takes turns among the sets of operands: no time of the host, the gap between two
    kernels included."""
    rough = once(torch, True, sets)
    calls, spans = spans_for(rough, len(sets))
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):  # libraries set themselves up on the stream that is captured
        for call in sets:
            call()
    torch.cuda.current_stream().wait_stream(side)
    wait(torch, True)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=side):
        for index in range(calls):
            sets[index % len(sets)]()
    for _ in range(WARM_UP):
        graph.replay()
    wait(torch, True)
    found = _events(torch, spans, graph.replay)
    del graph
    return Timing.of(found, calls)


def launch(torch: Any, cuda: bool, sets: Sequence[Call]) -> Timing:
    """Time per call of calls in a row that the host issues without waiting: the longer of what it takes to issue them and what they
    take."""
    calls, spans = spans_for(once(torch, cuda, sets), len(sets))

    def span() -> None:
        for index in range(calls):
            sets[index % len(sets)]()

    span()
    wait(torch, cuda)
    return Timing.of(_events(torch, spans, span) if cuda else _walls(torch, cuda, spans, span), calls)


def host(torch: Any, cuda: bool, sets: Sequence[Call]) -> Timing:
    """Wall-clock time of one call that the host waits for."""
    rough = once(torch, cuda, sets)
    spans = min(4 * MOST_REPEATS, max(LEAST_REPEATS, round(WHOLE_S / max(rough, 1e-7))))
    found: list[float] = []
    for index in range(spans):
        found += _walls(torch, cuda, 1, sets[index % len(sets)])
    return Timing.of(found, 1)


def _events(torch: Any, spans: int, run: Call) -> list[float]:
    """Seconds of each span by the device's own clock."""
    pairs = [tuple(torch.cuda.Event(enable_timing=True) for _ in range(2)) for _ in range(spans)]
    for start, stop in pairs:
        start.record()
        run()
        stop.record()
    torch.cuda.synchronize()
    return [start.elapsed_time(stop) * 1e-3 for start, stop in pairs]


def _walls(torch: Any, cuda: bool, spans: int, run: Call) -> list[float]:
    found = []
    for _ in range(spans):
        wait(torch, cuda)
        started = time.perf_counter()
        run()
        wait(torch, cuda)
        found.append(time.perf_counter() - started)
    return found
