"""Compute units, one file each; importing this package registers them all."""

from hw.units.lmul import Lmul, LmulDot8
from hw.units.systolic import Systolic
from hw.units.tensor_core import TensorCore
from hw.units.vector import VectorUnit

__all__ = ["Lmul", "LmulDot8", "Systolic", "TensorCore", "VectorUnit"]
