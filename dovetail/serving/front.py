"""One call from a model's name to what a server achieves with it."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

import numpy as np

from dovetail.serving.arrivals import Lengths, Requests, draw
from dovetail.serving.errors import ServingError

if TYPE_CHECKING:
    from dovetail.serving.costs import StepCosts
    from dovetail.serving.report import ServingReport
    from hw.device import Device
    from workloads.graph import Graph

TEMPLATE_CONTEXT = 2048
"""Tokens that the traced decode step attends to: iterations have contexts of their own."""


def serve(
    model: str | Graph,
    *,
    device: str | Device,
    devices: int = 1,
    requests: int = 1000,
    max_batch: int = 64,
    inputs: str | Lengths = "512",
    outputs: str | Lengths = "512",
    arrivals: str | Requests = "closed",
    routing: str = "uniform",
    experts: str = "split",
    slice_experts: bool = False,
    co_processing: bool = True,
    sub_batches: bool = False,
    chunk: int | None = None,
    seed: int = 0,
    weights: str | None = None,
    acts: str | None = None,
    kv: str | None = None,
    settings: Mapping[str, object] | None = None,
    memo: bool = True,
    costs: StepCosts | None = None,
    progress: Callable[[str], None] | None = None,
) -> ServingReport:
    """Throughput, latencies and energy of `devices` devices that serve a model with continuous batching.

    `model` is a catalogue name, a `config.json`, or a decode step of one sequence (a `Graph`). `arrivals` is `closed` (as many clients as
    `max_batch`, each of which sends a request when its last one is answered), `poisson:RATE` per second or a trace (CSV with
    arrival_s,input_tokens,output_tokens); `inputs` and `outputs` are Gaussian lengths, `MEAN` or `MEAN:DEVIATION` tokens, where the
    trace does not state them. `routing` says which experts tokens go to: `uniform`, `zipf:S` or a trace. `experts` is how units of a
    device and units near its memory share them: `single` (one kind at a time), `split` (the rule of Duplex) or `optimum`.
    `slice_experts` cuts every expert over the devices instead of spreading experts; with `sub_batches` two halves of the sequences
    alternate between dense layers and attention near memory. `chunk` is the most tokens of prompts per
    iteration. `costs` of an earlier call (with the same model, devices and strategy) keep what they have timed.

    Raises `ServingError`, `WorkloadError`, `HardwareError` or `MappingError` (all `ValueError`s) with one message for each mistake.
    """
    from dovetail.serving import routing as routes
    from dovetail.serving.report import ServingReport
    from dovetail.serving.server import WHOLE_PROMPTS
    from dovetail.serving.server import serve as run

    for name, value in (("--requests", requests), ("--max-batch", max_batch), ("--chunk", 1 if chunk is None else chunk)):
        if value < 1:
            raise ServingError(f"{name}: expected at least 1, found {value}")
    sizes = [
        size if isinstance(size, Lengths) else Lengths.parse(size, option) for size, option in ((inputs, "--input"), (outputs, "--output"))
    ]
    streams = np.random.default_rng(seed).spawn(2)
    start = time.perf_counter()
    wanted = arrivals if isinstance(arrivals, Requests) else draw(arrivals, requests, sizes[0], sizes[1], streams[0])
    if costs is None:
        costs = step_costs(
            model, device, devices=devices, experts=experts, slice_experts=slice_experts, co_processing=co_processing,
            sub_batches=sub_batches, weights=weights,
            acts=acts, kv=kv, settings=settings, memo=memo, progress=progress,
        )  # fmt: skip
    route = routes.parse(routing, costs.expert_layers, costs.experts, costs.top_k, streams[1]) if costs.experts else None
    if route is None and routing != "uniform":
        raise ServingError(f"--routing: {costs.model.name} has no experts to route to")
    ready = time.perf_counter()
    served = run(costs, wanted, max_batch, route, chunk, progress)
    notes = (
        *costs.notes,
        "a request joins when keys and values of all its tokens fit beside those of the others; activations are not reserved",
        "nothing is preempted",
        f"prompts are processed {'whole, together' if chunk is None else 'in chunks,'} up to {chunk or WHOLE_PROMPTS} tokens per iteration",
        *((f"experts are routed {routing}",) if costs.experts else ()),
    )
    return ServingReport(
        model=costs.model.name,
        device=costs.device.name,
        devices=costs.devices,
        settings={
            "arrivals": wanted.source, "max_batch": max_batch, "chunk": chunk, "routing": routing if costs.experts else None,
            "experts": costs.strategy if costs.experts else None, "slice_experts": costs.slice_experts, "seed": seed,
        },
        requests=wanted,
        served=served,
        capacity={
            "tokens": costs.tokens_held, "bytes": costs.room, "weight_bytes": costs.weight_bytes, "bytes_per_token": costs.cache_bytes,
        },
        notes=notes,
        elapsed_s={"load": ready - start, "serve": time.perf_counter() - ready},
        mapped=costs.compiled,
    )  # fmt: skip


def step_costs(
    model: str | Graph,
    device: str | Device,
    *,
    devices: int = 1,
    experts: str = "split",
    slice_experts: bool = False,
    co_processing: bool = True,
    sub_batches: bool = False,
    weights: str | None = None,
    acts: str | None = None,
    kv: str | None = None,
    settings: Mapping[str, object] | None = None,
    memo: bool = True,
    progress: Callable[[str], None] | None = None,
) -> StepCosts:
    """Costs of iterations of a model on devices, for one or several runs of `serve`. Raises as `serve` does."""
    import workloads
    from dovetail.serving.costs import StepCosts
    from hw.devices import load

    target = load(device) if isinstance(device, str) else device
    if settings:
        target = target.with_settings(settings)
    graph = workloads.load(model, phase="decode", batch=1, context=TEMPLATE_CONTEXT, progress=progress) if isinstance(model, str) else model
    if graph.phase != "decode" or graph.batch != 1 or graph.tokens != 1:
        raise ServingError(
            f"{graph.name}: expected a model, or the decode step of one sequence, found {graph.phase} of batch {graph.batch}"
        )
    if weights or acts or kv:
        graph = workloads.quantise(graph, weights=weights, acts=acts, kv=kv)
    return StepCosts(graph, target, devices, experts, slice_experts, memo, co_processing, sub_batches, progress)
