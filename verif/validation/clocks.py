"""What a host adds to its device: kernels that it issues one after the other while the device works through them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Launched:
    """Kernels issued without waiting.

    `total_s`: from the first issue to the end of the last kernel. `queued_s`: the sum over kernels of the time from issue to start (total
    kernel launch and queue time, TKLQT). `host_bound`: whether the device waits for the host at the last kernel.
    """

    total_s: float
    queued_s: float
    host_bound: bool


def launched(kernels_s: Sequence[float], issue_s: float, latency_s: float = 0.0) -> Launched:
    """Kernels of so many seconds each, of which the host issues one every `issue_s`; each reaches the device `latency_s` after its issue.

    The device runs them in order, one at a time. While the queue is not empty the sum of waiting times grows with each kernel: that
    is how TKLQT tells a device-bound sequence from a host-bound one (Vellaisamy et al., "Characterizing and Optimizing LLM Inference
    Workloads on CPU-GPU Coupled Architectures", ISPASS 2025). Raises `ValueError` for a sequence without kernels and for negative times.

    >>> launched([2.0, 2.0, 2.0], 1.0)
    Launched(total_s=7.0, queued_s=3.0, host_bound=False)
    >>> launched([1.0, 1.0], 3.0)
    Launched(total_s=7.0, queued_s=0.0, host_bound=True)
    """
    if not kernels_s or issue_s < 0 or latency_s < 0 or min(kernels_s) < 0:
        raise ValueError("expected at least one kernel, and no negative times")
    end = queued = 0.0
    host_bound = False
    for number, kernel_s in enumerate(kernels_s, 1):
        issued = number * issue_s
        start = max(issued + latency_s, end)
        host_bound = end < issued + latency_s
        queued += start - issued
        end = start + kernel_s
    return Launched(end, queued, host_bound)
