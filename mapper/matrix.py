"""What every family of mappings of a kernel with products shares: the unit it runs on and the format it multiplies in."""

from __future__ import annotations

from abc import ABC, abstractmethod
from functools import cached_property
from typing import TYPE_CHECKING

from hw.units.tensor_core import TensorCore
from mapper.kernels import Kernel
from workloads.format import Format

if TYPE_CHECKING:
    from mapper.target import Target


class OnMatrixUnit(ABC):
    """A kernel with products on a target."""

    target: Target
    kernel: Kernel

    @property
    @abstractmethod
    def multiplied(self) -> tuple[Format, Format]:
        """The formats of the left and the right operand as they are stored."""

    @cached_property
    def placement(self) -> tuple[str, str]:
        """The unit and the format it multiplies in. Raises `MappingError` when no unit takes the operands."""
        return self.target.matrix_unit(self.kernel.name, *self.multiplied)

    @property
    def unit(self) -> str:
        return self.placement[0]

    @property
    def tensor_core(self) -> TensorCore:
        """The unit of a kernel in thread blocks."""
        core = self.target.unit(self.unit)
        assert isinstance(core, TensorCore)
        return core
