"""What the mappings share that are made for the one unit that their target's site names."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from mapper.kernels import Kernel
from mapper.residency import NOTHING, Found
from mapper.target import Target


@dataclass(frozen=True)
class Sited:
    """A kernel on the unit of its site. `resident`: bytes of its inputs that are on the chip already."""

    target: Target
    kernel: Kernel
    resident: Found = NOTHING

    @cached_property
    def name(self) -> str:
        """Name of the unit."""
        return self.target.sited.unit

    @cached_property
    def format(self) -> str:
        """What the unit multiplies there."""
        return self.target.sited.format
