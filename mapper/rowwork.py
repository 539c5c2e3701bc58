"""Kernels that go over rows of 16-bit elements, and elementwise ones: how long thread blocks wait for their own loads, whatever memory
could deliver.

Library kernels of this kind give a thread block to each row. A block goes over its row in turns of as many elements as it has
threads, and each turn waits for loads that depend on the turn before; kernels that load one element at a time also need issue
slots for each, which the blocks side by side on an SM share. The cycles below are those of the kernels named in `Rows.source`,
fitted on published measurements (the half of the shapes called fitted, both generations together: as cycles they agree within a
tenth) - they are not constants of a device.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

from hw.quantity import FS_PER_S, cycles_to_fs
from mapper.kernels import Kernel

RESIDENT = 2048
"""Threads that an SM holds at most (CUDA programming guide, compute capabilities 7.0, 8.0 and 9.0)."""

NS = FS_PER_S // 10**9

_VIDUR = "vLLM kernels in fp16 on A100 and H100 (microsoft/vidur)"
_TRTLLM = "quantisation before fp8 products on H100 (NVIDIA aiconfigurator, TensorRT-LLM 1.3.0rc10)"
_PAGES = "writes to the paged cache in bf16 on A100 (NVIDIA aiconfigurator, vLLM 0.14.0)"
_PACKED = "rotation and writes to the paged cache on H100 (NVIDIA aiconfigurator, TensorRT-LLM 1.3.0rc10)"
_COMPASS = "PyTorch kernels in fp16 on A100 (LLMCompass)"


@dataclass(frozen=True)
class Work:
    """Of the SM with most rows: `least_fs` that its elements take at least, `waiting_fs` that its thread blocks wait for loads which the
    cache serves, and how many of these `waits` follow each other and take a latency of main memory longer where it must serve them."""

    least_fs: int = 0
    waiting_fs: int = 0
    waits: int = 0


@dataclass(frozen=True)
class Rows:
    """A kernel with `threads` per row, of which each takes `vector` elements a turn.

    A block takes `start` cycles and `begin_fs` before its first turn (barriers, and loads that no block has asked for before); a
    turn takes `turn` cycles, and `issue` more for every block that is on the SM. `early_fs` of the first blocks' turns pass within
    what is called the launch: its length is that of products, which load their first slabs in it. Where it is `exposed`, a turn takes
    main memory's latency longer for what misses the cache; where nothing holds warps together, those that run ahead hide it. At most
    `rate` elements per cycle and SM for rows of more than `beyond` elements, where there is such a limit.
    """

    threads: int
    source: str
    start: int = 0
    begin_fs: int = 0
    turn: int = 0
    issue: int = 0
    early_fs: int = 0
    exposed: bool = True
    vector: int = 1
    rate: Fraction | None = None
    beyond: int = 0

    def work(self, rows: int, width: int, sms: int, clock: int) -> Work:
        """The time of so many rows of `width` elements on so many SMs at `clock` Hz."""
        beside = max(1, RESIDENT // self.threads)
        waits = self.turn or self.issue
        turns = -(-width // (self.threads * self.vector)) if waits else 0
        full, rest = divmod(-(-rows // sms), beside)
        rounds = full + (rest > 0)
        cycles = rounds * (self.start + turns * self.turn) + turns * self.issue * (full * beside + rest)
        waiting = max(0, cycles_to_fs(cycles, clock) + rounds * self.begin_fs - self.early_fs)
        least = int(rows * width / (self.rate * sms)) if self.rate is not None and width > self.beyond else 0
        return Work(cycles_to_fs(least, clock), waiting, rounds * turns if self.exposed else 0)


KERNELS = {
    "rmsnorm": Rows(threads=1024, begin_fs=740 * NS, turn=830, source=_VIDUR),
    "rope": Rows(threads=512, begin_fs=210 * NS, turn=210, issue=370, vector=2, source=_VIDUR),
    "silu-mul": Rows(threads=1024, turn=560, issue=510, early_fs=1180 * NS, exposed=False, source=_VIDUR),
    "layernorm": Rows(threads=128, start=2450, turn=520, source=_COMPASS, vector=4, rate=Fraction(8, 5), beyond=8192),
    "softmax": Rows(threads=1024, source=_COMPASS, rate=Fraction(8, 5), beyond=1024),
    "short softmax": Rows(threads=128, source=_COMPASS, rate=Fraction(9, 4)),
    "quantise": Rows(threads=256, source=_TRTLLM, rate=Fraction(14, 5)),
    "embedding": Rows(threads=128, source=_VIDUR, rate=Fraction(27, 50)),
    "append": Rows(threads=512, source=_PAGES, rate=Fraction(3, 5)),
    "rearrange": Rows(threads=512, source=_PACKED, rate=Fraction(3, 2)),
}

MOVED = 20
"""Bytes per cycle that an SM reads and writes in elementwise kernels of PyTorch, of which a thread loads 8 B of each operand before
it stores any: what 2,048 threads have on its way over the time that it takes. Fitted on additions in fp16 of A100 and H100
(microsoft/vidur), the half of the shapes called fitted."""

FEW_ROWS = 16
"""Rows up to which PyTorch gathers with a kernel whose blocks go through all rows one after the other."""

FEW_ROWS_TURN = 1050
"""Cycles of each of these: the index, then the row."""


def row_work(kernel: Kernel, sms: int, clock: int) -> Work:
    """What `Rows.work` says of a kernel, or the time that an elementwise one takes to move its operands; nothing for others."""
    op = kernel.operator
    if op.kind == "elementwise":
        if op.function in KERNELS and op.attributes.get("width"):
            width = op["width"]
            counted = op.attributes.get("counted", width)  # elements of a row by which its threads are counted
            return KERNELS[op.function].work(op["elements"] // width, counted, sms, clock)
        size = sum(o.size for o in (*kernel.reads, *kernel.writes))
        return Work(cycles_to_fs(int(size / (MOVED * sms)), clock))
    if op.kind == "norm":
        return KERNELS["layernorm" if "layer" in op.function else "rmsnorm"].work(op["rows"], op["width"], sms, clock)
    if op.kind == "softmax":
        name = "softmax" if op["width"] > KERNELS["softmax"].beyond else "short softmax"
        return KERNELS[name].work(op["rows"], op["width"], sms, clock)
    if op.kind == "embedding":
        if op["rows"] <= FEW_ROWS:
            return Work(cycles_to_fs(op["rows"] * FEW_ROWS_TURN, clock))
        return KERNELS["embedding"].work(op["rows"], op["width"], sms, clock)
    return Work()
