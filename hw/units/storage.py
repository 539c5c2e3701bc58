"""A drive that computes: flash channels behind a controller with attention kernels, as in InstInfer.

Pan et al., "InstInfer: In-Storage Attention Offloading for Cost-Effective Long-Context LLM Inference", arXiv:2409.04992 (HPCA 2025). A page
holds the keys or the values of a head for as many tokens as fit; pages of a head are striped over the channels of a drive, heads over
drives. Sparse attention reads the pages that hold wanted channels of the keys, then those that hold wanted tokens.
"""

from __future__ import annotations

from collections.abc import Mapping
from fractions import Fraction
from math import ceil
from typing import Any

from pydantic import model_validator

from hw.errors import HardwareError
from hw.memory import Memory, Share
from hw.quantity import BANDWIDTH, FS_PER_S, Bandwidth, Capacity, Count, Duration, parse
from hw.unit import Unit
from hw.work import Gemm, Work


class FlashArray(Memory, kind="flash_array"):
    """`count` drives of `capacity` with `channels` flash channels of `channel_bandwidth` each; their product is the `bandwidth`.

    Data is read in pages; the first takes `read_time` from its cells. Writes of whole pages reach `write_bandwidth` per drive.
    """

    bandwidth: Bandwidth = 1  # of all channels, always computed
    channels: Count = 8
    channel_bandwidth: Bandwidth
    page: Capacity = 4096
    read_time: Duration = 0
    write_bandwidth: Bandwidth

    @model_validator(mode="before")
    @classmethod
    def _sum(cls, fields: Any) -> Any:
        if isinstance(fields, Mapping) and "channel_bandwidth" in fields:
            each = int(parse(fields["channel_bandwidth"], BANDWIDTH))
            count, channels = (int(fields.get(name, default)) for name, default in (("count", 1), ("channels", 8)))
            return {**fields, "bandwidth": each * channels * count}
        return fields

    def read_fs(self, pages: int, busy: int) -> int:
        """Femtoseconds to read so many pages from `busy` drives, each of which has as many of them."""
        if not pages:
            return 0
        lines = self.channels * max(1, busy)
        return self.read_time + -(-ceil(Fraction(pages, lines)) * self.page * FS_PER_S // self.channel_bandwidth)

    def write_fs(self, size: int, busy: int) -> int:
        """Femtoseconds to write so many bytes, in whole pages, to `busy` drives."""
        return -(-ceil(Fraction(size, self.page)) * self.page * FS_PER_S // (self.write_bandwidth * max(1, busy)))


class StorageAttention(Unit, kind="storage_attention", executes={"attention"}):
    """`kernels` attention kernels in each drive of `memory`: one multiplies a page of keys or values by a vector in `page_cycles`.

    Dense attention reads everything. With `kept` below 1, the share of the pages that sparse attention reads, keys are stored twice (by
    token and by channel), and products are left of `compression` of the channels and of the tokens.
    """

    execution = "storage"

    memory: str
    kernels: Count = 2
    page_cycles: Count = 91
    kept: Share = Fraction(1)
    compression: Share = Fraction(1, 8)

    def formats(self) -> frozenset[str]:
        return frozenset({"fp16"})

    def macs_per_cycle(self, number_format: str) -> int:
        """Of one drive, for pages of 4 KiB of fp16."""
        return ceil(self.kernels * 2048 / self.page_cycles) if number_format == "fp16" else 0

    def cycles(self, work: Work) -> int:
        """Cycles of one drive for vectors times a matrix of keys or values."""
        if not isinstance(work, Gemm):
            raise HardwareError(f"storage_attention multiplies keys and values; it has no cost for {type(work).__name__} work")
        return work.m * ceil(Fraction(ceil(Fraction(work.k * work.n, 2048)), self.kernels)) * self.page_cycles

    @property
    def stored(self) -> Fraction:
        """Bytes stored per byte of keys and values."""
        return Fraction(3, 2) if self.kept < 1 else Fraction(1)

    @property
    def products(self) -> Fraction:
        """Share of the products of dense attention: approximate scores of some channels, then scores and context of some tokens."""
        return min(Fraction(1), Fraction(3, 2) * self.compression) if self.kept < 1 else Fraction(1)
