"""NeuPIMs (Heo et al., ASPLOS 2024): an NPU and dual-row-buffer PIM that take turns on two sub-batches.

Per device of four (tensor parallel) a decoding step of GPT-3 7B: products on the NPU take the longer of their arithmetic at
its peak and their weights at the memory's bandwidth, attention in memory is timed by its commands, attention on the NPU by
the bandwidth its keys and values need.
"""

from __future__ import annotations

from dataclasses import dataclass

import workloads
from dovetail.serving.costs import decoding, sides
from dovetail.serving.front import step_costs
from hw.device import Device
from hw.devices import load
from hw.pim.neupims import NeuPims, interleaved
from studies.row import StudyRow

PAPER = "Heo et al., NeuPIMs: NPU-PIM Heterogeneous Acceleration for Batched LLM Inferencing, ASPLOS 2024"
SIMULATOR = "NeuPIMs simulator, github.com/casys-kaist/NeuPIMs"
DEVICES = 4
LAYERS, WIDTH, HEADS, HEAD = 32, 4096, 32, 128
"""GPT-3 7B as the paper runs it."""


@dataclass(frozen=True)
class Step:
    """Femtoseconds of one layer of a decoding step on one device."""

    products: int
    in_memory: int
    on_npu: int


def layer(device: Device, batch: int, context: int, *, dual: bool = True) -> Step:
    """One layer for `batch` sequences that attend to `context` tokens each; without `dual` PIM blocks the memory's channels."""
    weights = 12 * WIDTH**2 // DEVICES  # 4 WIDTH^2 of attention, 8 WIDTH^2 of the feed-forward network
    arithmetic = 2 * weights * batch * 10**15 // device.peak_flops("array", "fp16")
    products = max(arithmetic, device.dram.least_fs(2 * weights))
    heads = batch * HEADS // DEVICES
    kv = 2 * 2 * heads * HEAD * context
    return Step(products, NeuPims(dual=dual).attention(heads, context, HEAD).fs, device.dram.least_fs(kv))


def speedups(batch: int = 256, context: int = 80 + 296 // 2) -> tuple[float, float]:
    """Throughput over the NPU alone and over an NPU and PIM that take turns on the whole batch. The default is ShareGPT's mean
    prompt and half of its mean answer."""
    device = load("neupims")
    whole, half = layer(device, batch, context), layer(device, batch // 2, context)
    ours = min(interleaved(half.products, half.in_memory, LAYERS), LAYERS * (whole.products + whole.in_memory))
    naive = layer(device, batch, context, dual=False)
    return LAYERS * (whole.products + whole.on_npu) / ours, LAYERS * (naive.products + naive.in_memory) / ours


def served(batch: int = 256, context: int = 80 + 296 // 2) -> float:
    """Throughput over the NPU alone, of mapped decode steps of the request layer: OPT-6.7B has the dimensions of GPT-3 7B."""
    graph = workloads.load("opt-6.7b", phase="decode", batch=1, context=2048)
    device, step = load("neupims"), decoding([context] * batch)
    alone = step_costs(graph, sides(device)[0], devices=DEVICES).step(step)
    together = step_costs(graph, device, devices=DEVICES, sub_batches=True).step(step)
    return alone.fs / together.fs


def rows() -> list[StudyRow]:
    design = NeuPims()
    outside = float(design.channel.preset.peak) * design.channels
    over_npu, over_naive = speedups()
    note = "batch 256 of ShareGPT's mean lengths; the published value is a mean over models, batches and data sets. "
    note += "Row openings bind our PIM: eight four-bank activates under tFAW for every row of all banks"
    mapped = "a decode step of the request layer at the same batch and lengths, collectives and vector work included; two halves of the "
    mapped += "batch taking turns gain nothing there: half a batch reads the same weights, which bind the NPU"
    return [
        StudyRow("neupims", "bandwidth inside over outside", 16.0, design.internal_peak / outside, "x", 0.01, "certain", SIMULATOR),
        StudyRow(
            "neupims",
            "activates of all banks of a channel, four at a time",
            8,
            design.product(32, 512).counts["ACT"],
            "commands",
            0.0,
            "certain",
            SIMULATOR,
        ),
        StudyRow("neupims", "GPT-3 7B over the NPU alone", 2.4, over_npu, "x", None, "probable", PAPER, note=note),
        StudyRow("neupims", "GPT-3 7B over the NPU alone, mapped steps", 2.4, served(), "x", None, "probable", PAPER, note=mapped),
        StudyRow("neupims", "GPT-3 7B over NPU and PIM in turns", 1.6, over_naive, "x", None, "probable", PAPER, note=note),
    ]
