"""Continuous batching on one clock, in whole nanoseconds: requests join and leave between iterations.

A request joins when a place in the batch is free and its keys and values, to its last token, fit beside those of the others. Its
prompt is processed in the iteration it joins, or in chunks of a budget of tokens per iteration; with the end of its prompt comes its
first token, then one in every iteration.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from dovetail.serving.arrivals import NS, Requests
from dovetail.serving.costs import Iteration, StepCosts
from dovetail.serving.errors import ServingError
from dovetail.serving.routing import Routing
from mapper.stop import Stop, interruptible

FS_PER_NS = 1_000_000
STRETCH = 64
"""Iterations in a row, at most, that are costed at once where nobody can join or leave."""
WHOLE_PROMPTS = 16384
"""Tokens up to which several whole prompts are processed in one iteration; a longer one has an iteration to itself."""


@dataclass
class Served:
    """What happened. Times are in nanoseconds from the start; per request -1 where it did not happen."""

    arrived: list[int]
    first: list[int]
    done: list[int]
    starts: list[int] = field(default_factory=list)  # of every iteration
    lasts: list[int] = field(default_factory=list)
    decoding: list[int] = field(default_factory=list)  # sequences that decoded in it
    prompts: list[int] = field(default_factory=list)  # tokens of prompts in it
    emitted: list[int] = field(default_factory=list)  # tokens that it gave to requests
    held: list[int] = field(default_factory=list)  # tokens whose keys and values were reserved
    parts: dict[str, int] = field(default_factory=dict)  # femtoseconds by part of an iteration
    joules: float | None = 0.0
    ended: str = "finished"  # or "interrupted"


def check_fit(costs: StepCosts, requests: Requests) -> None:
    """Refuses requests whose keys and values never fit. Raises `ServingError` with the first of them and the numbers."""
    most = costs.tokens_held
    for number, (prompt, output) in enumerate(zip(requests.inputs, requests.outputs, strict=True), 1):
        if prompt + output > most:
            need = (prompt + output) * costs.cache_bytes
            raise ServingError(
                f"request {number} ({prompt} + {output} tokens) needs {need / 2**30:.2f} GiB of keys and values on each of "
                f"{costs.devices} x {costs.device.name}, which have {costs.room / 2**30:.2f} GiB for them beside weights: "
                f"{need - costs.room} B short, {most} tokens fit; use more devices, shorter requests or a narrower cache (--kv)"
            )


def serve(
    costs: StepCosts,
    requests: Requests,
    max_batch: int,
    routing: Routing | None = None,
    chunk: int | None = None,
    progress: Callable[[str], None] | None = None,
) -> Served:
    """Serves all requests; Ctrl-C ends it with the iteration that runs, a second one at once.

    `chunk` is the most tokens of prompts in an iteration (None: whole prompts, several of them up to `WHOLE_PROMPTS`). Raises
    `ServingError` for requests that never fit.
    """
    check_fit(costs, requests)
    total, closed = len(requests), requests.arrivals_ns is None
    arrivals = list(requests.arrivals_ns or ())
    served = Served([-1] * total, [-1] * total, [-1] * total)
    inputs, outputs, most = requests.inputs, requests.outputs, costs.tokens_held
    waiting: deque[int] = deque()
    prompting: deque[list[int]] = deque()  # request, tokens of its prompt that are done
    ends: dict[int, list[int]] = {}  # iteration -> requests that get their last token in it
    now = upcoming = finished = batch = decoding = keys = held = iteration = 0
    told = time.monotonic()

    def arrive(at: int) -> None:
        nonlocal upcoming
        served.arrived[upcoming] = at
        waiting.append(upcoming)
        upcoming += 1

    if closed:
        for _ in range(min(max_batch, total)):
            arrive(0)
    stop = Stop()
    with interruptible(stop):
        while finished < total and not stop.reached():
            while not closed and upcoming < total and arrivals[upcoming] <= now:
                arrive(arrivals[upcoming])
            while waiting and batch < max_batch and held + inputs[waiting[0]] + outputs[waiting[0]] <= most:
                request = waiting.popleft()
                batch += 1
                held += inputs[request] + outputs[request]
                prompting.append([request, 0])
            if not batch:
                now = arrivals[upcoming]
                continue
            times = 1
            if not prompting and (closed or upcoming == total or batch == max_batch):  # nobody joins before somebody leaves
                times = min(STRETCH, min(ends) - iteration + 1)
            pieces, through = _prompts(prompting, inputs, chunk)
            tokens = decoding + sum(new for new, _ in pieces)
            routes = routing.several(tokens, times) if routing is not None else [None] * times
            if pieces:
                done = [costs.step(Iteration(decoding, keys, pieces, decoding + len(through), routes[0]))]
            else:
                done = costs.stretch(decoding, keys, routes)
            for spent in done:
                for name, fs in spent.parts.items():
                    served.parts[name] = served.parts.get(name, 0) + fs
                served.joules = None if served.joules is None or spent.joules is None else served.joules + spent.joules
                served.starts.append(now)
                now += max(1, round(spent.fs / FS_PER_NS))
                served.lasts.append(now)
            served.decoding += [decoding] * times
            served.prompts += [tokens - decoding] * times
            served.emitted += [decoding + len(through)] * times
            served.held += [held] * times
            keys += decoding * times
            iteration += times
            leaving = ends.pop(iteration - 1, [])
            for request in leaving:
                decoding -= 1
                keys -= inputs[request] + outputs[request]
            for request in through:
                served.first[request] = now
                if outputs[request] == 1:
                    leaving.append(request)
                else:
                    decoding += 1
                    keys += inputs[request] + 1
                    ends.setdefault(iteration + outputs[request] - 2, []).append(request)
            for request in leaving:
                served.done[request] = now
                batch -= 1
                held -= inputs[request] + outputs[request]
                finished += 1
                if closed and upcoming < total:
                    arrive(now)
            if progress and time.monotonic() - told > 0.5:
                told = time.monotonic()
                progress(f"serving: {finished} of {total} requests, {now / NS:.1f} s simulated")
    if stop.interrupted:
        served.ended = "interrupted"
    return served


def _prompts(prompting: deque[list[int]], inputs: tuple[int, ...], chunk: int | None) -> tuple[tuple[tuple[int, int], ...], list[int]]:
    """Pieces of prompts of this iteration as (new tokens, tokens attended to), and the requests whose prompt is then done."""
    pieces: list[tuple[int, int]] = []
    through: list[int] = []
    left = chunk
    while prompting and (left is None or left):
        entry = prompting[0]
        request, done = entry
        if left is None and pieces and sum(new for new, _ in pieces) + inputs[request] > WHOLE_PROMPTS:
            break
        new = inputs[request] - done if left is None else min(left, inputs[request] - done)
        pieces.append((new, done + new))
        left = None if left is None else left - new
        if done + new == inputs[request]:
            through.append(request)
            prompting.popleft()
        else:
            entry[1] += new
    return tuple(pieces), through


def population_ns(served: Served) -> int:
    """The sum over time of the number of requests in the system, in request-nanoseconds, from its changes alone."""
    changes = [(t, 1) for t in served.arrived if t >= 0] + [(t, -1) for t in served.done if t >= 0]
    changes.sort()
    area = level = last = 0
    for at, change in changes:
        area += level * (at - last)
        level, last = level + change, at
    return area


def weighted_percentiles(
    values: np.ndarray[tuple[int], np.dtype[np.int64]], weights: np.ndarray[tuple[int], np.dtype[np.int64]], at: tuple[float, ...]
) -> list[float]:
    """The smallest of `values`, each of which counts `weights` times, that at least each share `at` of them does not exceed."""
    order = np.argsort(values, kind="stable")
    sums = np.cumsum(weights[order])
    return [float(values[order[min(len(order) - 1, int(np.searchsorted(sums, share * sums[-1])))]]) for share in at]
