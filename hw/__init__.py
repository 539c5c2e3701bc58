"""What it runs on: devices, units, memories, links and the closed-form costs of the work they are given."""

from hw.area import Area
from hw.device import Constant, Device, Link, json_schema
from hw.errors import HardwareError
from hw.memory import Cache, Dram, Hbm, Memory, Scratchpad
from hw.unit import UNITS, Unit
from hw.units import Systolic, TensorCore, VectorUnit
from hw.work import Case, Gemm, Vector, Work

__all__ = [
    "UNITS",
    "Area",
    "Cache",
    "Case",
    "Constant",
    "Device",
    "Dram",
    "Gemm",
    "HardwareError",
    "Hbm",
    "Link",
    "Memory",
    "Scratchpad",
    "Systolic",
    "TensorCore",
    "Unit",
    "Vector",
    "VectorUnit",
    "Work",
    "json_schema",
]
