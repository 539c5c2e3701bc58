"""Kernels that go over rows of 16-bit elements: how long thread blocks wait for their own loads, whatever memory could deliver.

Library kernels of this kind give a thread block to each row. A block goes over its row in turns of as many elements as it has
threads, and each turn waits for loads that depend on the turn before; kernels that load one element at a time also need issue
slots for each. The cycles below are those of the kernels named in `Rows.source`, fitted on published measurements (the half of the
shapes called fitted, both generations together: as cycles they agree within a tenth) - they are not constants of a device.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

from mapper.kernels import Kernel

RESIDENT = 2048
"""Threads that an SM holds at most (CUDA programming guide, compute capabilities 7.0, 8.0 and 9.0)."""

_VIDUR = "vLLM kernels in fp16 on A100 and H100 (microsoft/vidur)"
_TRTLLM = "quantisation before fp8 products on H100 (NVIDIA aiconfigurator, TensorRT-LLM 1.3.0rc10)"
_COMPASS = "PyTorch kernels in fp16 on A100 (LLMCompass)"


@dataclass(frozen=True)
class Rows:
    """A kernel with `threads` per row, of which each takes `vector` elements a turn: `start` cycles of a block and `turn` cycles of
    each of its turns; at most `rate` elements per cycle and SM for rows of more than `beyond` elements, where there is such a limit."""

    threads: int
    start: int
    turn: int
    source: str
    vector: int = 1
    rate: Fraction | None = None
    beyond: int = 0

    def cycles(self, rows: int, width: int, sms: int) -> tuple[int, int, int]:
        """Of the SM with most rows: cycles that its elements take at least, cycles that its thread blocks wait for their loads where
        these come from the cache, and how many of these loads follow each other."""
        blocks = -(-rows // (sms * max(1, RESIDENT // self.threads)))
        turns = -(-width // (self.threads * self.vector)) if self.turn else 0
        waiting = blocks * (self.start + turns * self.turn)
        least = int(rows * width / (self.rate * sms)) if self.rate is not None and width > self.beyond else 0
        return least, waiting, blocks * turns


KERNELS = {
    "rmsnorm": Rows(threads=1024, start=0, turn=800, source=_VIDUR, rate=Fraction(7, 5)),
    "rope": Rows(threads=512, start=0, turn=330, source=_VIDUR, rate=Fraction(31, 20)),
    "silu-mul": Rows(threads=1024, start=0, turn=650, source=_VIDUR, rate=Fraction(5, 4)),
    "layernorm": Rows(threads=128, start=2450, turn=520, source=_COMPASS, vector=4, rate=Fraction(8, 5), beyond=8192),
    "softmax": Rows(threads=1024, start=0, turn=0, source=_COMPASS, rate=Fraction(8, 5), beyond=1024),
    "short softmax": Rows(threads=128, start=0, turn=0, source=_COMPASS, rate=Fraction(9, 4)),
    "quantise": Rows(threads=256, start=0, turn=0, source=_TRTLLM, rate=Fraction(14, 5)),
    "embedding": Rows(threads=128, start=0, turn=0, source=_VIDUR, rate=Fraction(1, 2)),
}

FEW_ROWS = 16
"""Rows up to which PyTorch gathers with a kernel whose blocks go through all rows one after the other."""

FEW_ROWS_TURN = 1050
"""Cycles of each of these: the index, then the row."""


def row_cycles(kernel: Kernel, sms: int) -> tuple[int, int, int]:
    """What `Rows.cycles` says of a kernel; zeros for kernels that are not row by row."""
    op = kernel.operator
    if op.kind == "elementwise" and op.function in KERNELS and op.attributes.get("width"):
        width = op["width"]
        return KERNELS[op.function].cycles(op["elements"] // width, width, sms)
    if op.kind == "norm":
        return KERNELS["layernorm" if "layer" in op.function else "rmsnorm"].cycles(op["rows"], op["width"], sms)
    if op.kind == "softmax":
        return KERNELS["softmax" if op["width"] > KERNELS["softmax"].beyond else "short softmax"].cycles(op["rows"], op["width"], sms)
    if op.kind == "embedding":
        if op["rows"] <= FEW_ROWS:
            return op["rows"] * FEW_ROWS_TURN, 0, 0
        return KERNELS["embedding"].cycles(op["rows"], op["width"], sms)
    return 0, 0, 0
