"""OliVe (Guo et al., ISCA 2023): speed-ups over ANT, int8, GOBO and OLAccel, decoder overheads, and how often outliers meet.

The runs behind the published geometric means are not fully described: batch size, sequence lengths, the GPU simulator's settings
and the share of layers that ANT keeps at 8 bits are open. What the statements of the papers imply is computed and reported, not claimed:

- on the accelerator, arrays of equal area run the matrix products of a prefill at their peak rate or wait for memory (1024 bits
  per cycle at 500 MHz), whichever is longer; four 4-bit cells make an 8-bit one;
- on the GPU (RTX 2080 Ti), tensor cores run int4 at twice the rate of int8 and four times that of fp16, with 616 GB/s of memory.

GOBO compresses weights only (3 bits and 0.1 % outliers in fp32 with an index) and computes in fp16.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from statistics import geometric_mean

import numpy as np

from studies.row import StudyRow
from workloads.format import parse_format
from workloads.quantisers.olive import PairStatistics, pair_statistics

SOURCE = "Guo et al., OliVe: Accelerating Large Language Models via Hardware-friendly Outlier-Victim Pair Quantization, ISCA 2023"
BATCH = 1
"""Sequences at once; not stated."""


@dataclass(frozen=True)
class Transformer:
    """Layers of width `hidden` with a feed-forward of `ffn` and a sequence of `tokens`; `blocks` attention blocks per layer and
    `matrices` of hidden x ffn."""

    name: str
    layers: int
    hidden: int
    ffn: int
    tokens: int
    blocks: int = 1

    def products(self) -> Iterator[tuple[int, int, int, bool]]:
        """(M, N, K, weights) of the linear layers and of attention, over all layers."""
        rows = self.tokens * BATCH
        for _ in range(self.layers):
            for _ in range(self.blocks):
                yield from ((rows, self.hidden, self.hidden, True),) * 4
                yield rows, self.tokens, self.hidden, False
                yield rows, self.hidden, self.tokens, False
            yield rows, self.ffn, self.hidden, True
            yield rows, self.hidden, self.ffn, True


MODELS = (
    Transformer("bert-base", 12, 768, 3072, 384),
    Transformer("bert-large", 24, 1024, 4096, 384),
    Transformer("bart-base", 12, 768, 3072, 384),
    Transformer("gpt2-xl", 48, 1600, 6400, 1024),
    Transformer("bloom-7b1", 30, 4096, 16384, 1024),
)
"""Released configurations; sequence lengths are ours (384 for encoders, 1024 for decoders). BART's cross attention is left out."""


@dataclass(frozen=True)
class Machine:
    """Multiply-accumulates per second and bytes per second; stored bits of a weight and of an activation."""

    name: str
    macs_per_s: float
    bytes_per_s: float
    weight_bits: float
    activation_bits: float

    def seconds(self, model: Transformer) -> float:
        """Every product as long as the slower of computation and memory."""
        total = 0.0
        for m, n, k, weights in model.products():
            moved = m * k * self.activation_bits + m * n * self.activation_bits
            moved += n * k * (self.weight_bits if weights else self.activation_bits)
            total += max(m * n * k / self.macs_per_s, moved / 8 / self.bytes_per_s)
        return total


# Arrays: 64 x 64 4-bit cells at 500 MHz, from the simulator of ANT that the authors built on (32 x 32 8-bit cells)
CLOCK = 500e6
CELLS = 4096
MEMORY = 1024 / 8 * CLOCK
OLIVE = Machine("OliVe", CELLS * CLOCK, MEMORY, 4, 4)
ANT_8 = Machine("ANT at 8 bits", CELLS / 4 * CLOCK, MEMORY, 8, 8)
OLACCEL_CELLS = 16 * 18 * 4
OLACCEL_BITS = float(parse_format("olaccel4").bits)
OLACCEL = Machine("OLAccel", OLACCEL_CELLS * CLOCK, MEMORY, OLACCEL_BITS, OLACCEL_BITS)
"""16 x 18 8-bit cells in the same area; 3 % of the values are outliers of 8 bits with 8-bit places."""
# RTX 2080 Ti: 68 SMs x 8 tensor cores x 64 fp16 multiply-accumulates at 1.545 GHz (NVIDIA Turing whitepaper)
TENSOR = 68 * 8 * 64 * 1.545e9
BANDWIDTH = 616e9
GPU_OLIVE = Machine("OliVe", 4 * TENSOR, BANDWIDTH, 4, 4)
GPU_INT8 = Machine("int8", 2 * TENSOR, BANDWIDTH, 8, 8)
GPU_GOBO = Machine("GOBO", TENSOR, BANDWIDTH, float(parse_format("gobo3").bits), 16)

GAP = "configuration not published: batch, sequence lengths{}; geometric mean over five models at one sequence"

# Decoders: square micrometres each, how many, millimetres of the chip; GPU at 12 nm, accelerator at 22 nm
GPU_AREA_MM2 = 754
DECODER_4, DECODER_8 = 13.53, 18.00
DECODERS_4, DECODERS_8 = 139264, 69632
CELL_4, ARRAY_DECODER_4, ARRAY_DECODER_8 = 50.01, 37.22, 49.50


def speedup(base: Machine, own: Machine = OLIVE) -> float:
    """Geometric mean over the models."""
    return geometric_mean(base.seconds(model) / own.seconds(model) for model in MODELS)


def pairs(values: int = 1 << 22, seed: int = 0) -> PairStatistics:
    """Pairs of a normal tensor with elements beyond 3 sigma."""
    return pair_statistics(np.random.default_rng(seed).standard_normal(values))


def rows() -> list[StudyRow]:
    """Speed-ups (reported), decoder areas (reproduced), pair statistics (reported)."""
    out = [
        _row("accelerator, speed-up over ANT", 3.7, speedup(ANT_8), GAP.format(", which layers ANT keeps at 8 bits (here all)")),
        _row("accelerator, speed-up over OLAccel", 3.8, speedup(OLACCEL), GAP.format(", OLAccel's outlier cells (here as fast as needed)")),
        _row("GPU, speed-up over GOBO", 4.5, speedup(GPU_GOBO, GPU_OLIVE), GAP.format(", GPU simulator")),
        _row("GPU, speed-up over int8", 2.7, speedup(GPU_INT8, GPU_OLIVE), GAP.format(", GPU simulator")),
        _row(
            "GPU, speed-up over ANT",
            2.4,
            speedup(GPU_INT8, GPU_OLIVE),
            GAP.format(", GPU simulator, which layers ANT keeps at 8 bits (here all)"),
        ),
    ]
    for bits, size, number, share in ((4, DECODER_4, DECODERS_4, 0.250), (8, DECODER_8, DECODERS_8, 0.166)):
        area = size * number * 1e-6
        out.append(
            _row(f"GPU, share of {bits}-bit decoders", share, 100 * area / GPU_AREA_MM2, f"{area:.3f} mm2 of {GPU_AREA_MM2}", "%", 0.01)
        )
    array = CELLS * CELL_4
    note = "{} decoders over the cells alone; the core's buffers and control are not in the published breakdown"
    out.append(_row("accelerator, share of 4-bit decoders", 2.2, 100 * 128 * ARRAY_DECODER_4 / array, note.format(128), "%", None))
    out.append(_row("accelerator, share of 8-bit decoders", 1.5, 100 * 64 * ARRAY_DECODER_8 / array, note.format(64), "%", None))
    normal, least = pairs(), (0.0003, 0.0064)
    tails = "a normal tensor; those of the models have heavier tails (published: 0.64 to 1.14 %)"
    out.append(_row("outlier-normal pairs", 100 * least[1], 100 * normal.outlier_normal, tails, "%"))
    alone = ((least[1] + 2 * least[0]) / 2) ** 2
    cluster = "outliers as often as published but independent of each other; those of the models cluster (published: 0.03 to 0.06 %)"
    out.append(_row("outlier-outlier pairs", 100 * least[0], 100 * alone, cluster, "%"))
    return out


def _row(experiment: str, published: float, ours: float, note: str, unit: str = "x", tolerance: float | None = None) -> StudyRow:
    return StudyRow("olive", experiment, published, ours, unit, tolerance, "certain", SOURCE, note)
