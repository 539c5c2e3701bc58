"""A small family of designs on which an evaluation takes milliseconds, so that tests can sweep it."""

from __future__ import annotations

from pathlib import Path

from hw.device import Device
from hw.devices import load

ROOT = Path(__file__).parents[2]
GEMM = "gemm:256x512x256:int8"


def array(rows: int = 32, columns: int = 32, sram: int = 256, bandwidth: str = "16 GB/s") -> Device:
    """`systolic-32` with another array, scratchpads of `sram` KiB each and another main memory."""
    settings: dict[str, object] = {"units.array.rows": rows, "units.array.columns": columns, "memories.dram.bandwidth": bandwidth}
    settings |= {f"memories.{name}.capacity": f"{sram} KiB" for name in ("ifmap", "filter", "ofmap")}
    return load("systolic-32").with_settings(settings)


SPEC = """
name: small
device: systolic-32
parameters:
  size: [8, 16, 32]
  sram: {from: 16 KiB, to: 64 KiB, factor: 2}
settings:
  units.array.rows: "{size}"
  units.array.columns: "{size}"
  memories.ifmap.capacity: "{sram}"
  memories.filter.capacity: "{sram}"
  memories.ofmap.capacity: "{sram}"
workloads: [{workload: "gemm:256x512x256:int8", label: product}]
objectives: [latency, area]
"""
