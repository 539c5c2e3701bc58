"""Which measurements are physical."""

from __future__ import annotations

from hw.device import Device
from hw.memory import Cache
from verif.validation.measurement import COLLECTIVES, DTYPES, Measurement

BEYOND_THE_CACHE = 2
"""A working set of so many times the cache must come from main memory."""

RULE = (
    "a row is left out when it beats the data sheet's peak rate, or its peak bandwidth with a working set of more than "
    f"{BEYOND_THE_CACHE} times the cache"
)


def peaks(device: Device, dtype: str) -> tuple[float, float, int]:
    """FLOP/s of the matrix unit for a data type's activations, bytes per second of main memory, bytes of the cache."""
    acts = DTYPES[dtype][0]
    rates = [device.peak_flops(name, acts) for name in device.units_for("gemm") if device.units[name].macs_per_cycle(acts)]
    cache = next((m.total for m in device.memories.values() if isinstance(m, Cache)), 0)
    return float(max(rates, default=0)), float(device.dram.bandwidth), cache


def unphysical(measurement: Measurement, device: Device) -> str | None:
    """Why a row cannot be, or None."""
    if measurement.operator in COLLECTIVES:
        return None  # they are bounded by links, not by the memory or the cache
    if measurement.clock == "request":
        return None  # the time of a request is not that of its work alone
    flops, size = measurement.work
    rate, bandwidth, cache = peaks(device, measurement.dtype)
    # keys and values of 8 bits may be multiplied at the rate of 8 bits
    rate *= 2 if measurement.dtype == "bf16-kv8" else 1
    if rate and flops / measurement.latency_s > rate:
        return f"{flops / measurement.latency_s / 1e12:.0f} TFLOP/s of at most {rate / 1e12:.0f}"
    if size > BEYOND_THE_CACHE * cache and size / measurement.latency_s > bandwidth:
        return f"{size / measurement.latency_s / 1e12:.2f} TB/s of at most {bandwidth / 1e12:.2f}, with {size / 2**20:.0f} MiB"
    return None
