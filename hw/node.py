"""A node: equal chips that hold a share of every layer each, and what joins them."""

from __future__ import annotations

from functools import cached_property

from pydantic import model_validator

from hw.collectives import Fabric, closed_form, nvlink_fabric
from hw.errors import HardwareError
from hw.part import Part
from hw.quantity import FS_PER_S, Bandwidth, Count, Duration

WAYS = {"all-reduce": ("ring", "tree", "star"), "all-gather": ("ring",)}
"""Algorithms of which the fastest is taken, by collective."""


class Node(Part):
    """`chips` equal chips; units and memories of the device are those of one.

    The chips are joined by `links` of an NVLink generation with a collective library of known constants, or by links of `bandwidth`
    per chip and direction, `step` from chip to chip and `launch` per collective, in the best textbook algorithm.
    """

    chips: Count
    nvlink: Count | None = None
    links: Count | None = None
    bandwidth: Bandwidth | None = None
    step: Duration = 0
    launch: Duration = 0

    @model_validator(mode="after")
    def _one_kind(self) -> Node:
        if (self.nvlink is None) == (self.bandwidth is None) or (self.nvlink is None) != (self.links is None):
            raise HardwareError("expected either nvlink and links, or a bandwidth")
        if self.nvlink is not None and (self.step or self.launch):
            raise HardwareError("step and launch belong to links with a bandwidth; those of NVLink are known")
        return self

    @cached_property
    def fabric(self) -> Fabric | None:
        return nvlink_fabric(self.nvlink, self.links) if self.nvlink is not None and self.links is not None else None

    def collective_fs(self, operation: str, size_bytes: int) -> int:
        """Femtoseconds of a collective among all chips over a vector of `size_bytes` in all, rounded up.

        >>> Node(chips=4, bandwidth="1 GB/s").collective_fs("all-reduce", 4_000_000)
        6000000000000
        """
        if self.fabric is not None:
            seconds = self.fabric.seconds(operation, self.chips, size_bytes)
        else:
            assert self.bandwidth is not None
            step = self.step / FS_PER_S
            seconds = min(closed_form(operation, way, self.chips, size_bytes, self.bandwidth, step) for way in WAYS[operation])
        return self.launch + round(seconds * FS_PER_S)
