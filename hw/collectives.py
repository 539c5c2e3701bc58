"""Collective operations between devices: what a library's kernels take, from links, steps and protocols.

`closed_form` is the textbook time of an algorithm over links that nothing shares. `Fabric.seconds` is what a library such as
NCCL takes on one node or over a network: it starts kernels on all ranks, chooses between a protocol with little latency and one
with full bandwidth, and between ring, tree and reduction in the switch, whichever takes least.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import ceil, log2

from hw.errors import HardwareError, nearest
from hw.links import LinkSpec, nvlink

FS_PER_S = 10**15

OPERATIONS = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "send-recv")

ALGORITHMS = ("ring", "tree", "star")


def closed_form(operation: str, algorithm: str, ranks: int, size_bytes: int, rate: float, step_s: float) -> float:
    """Seconds over idle links of `rate` bytes per second and direction, `step_s` from one rank to the next.

    `size_bytes` is the whole vector: what every rank ends with (all-reduce, all-gather), starts with (reduce-scatter, all-to-all),
    or what is sent. `star` collects at a master and sends back. Raises `HardwareError` for a combination that there is not.

    >>> closed_form("all-reduce", "ring", 4, 4_000_000, 1e9, 0.0)
    0.006
    """
    _check(operation, ranks, size_bytes)
    n, m = ranks, size_bytes
    if n == 1:
        return 0.0
    forms: dict[tuple[str, str], Callable[[], float]] = {
        ("all-reduce", "ring"): lambda: 2 * (n - 1) * (step_s + m / n / rate),
        ("all-reduce", "tree"): lambda: 2 * ceil(log2(n)) * (step_s + m / rate),
        ("all-reduce", "star"): lambda: 2 * (step_s + (n - 1) * m / rate),
        ("all-gather", "ring"): lambda: (n - 1) * (step_s + m / n / rate),
        ("reduce-scatter", "ring"): lambda: (n - 1) * (step_s + m / n / rate),
        ("all-to-all", "ring"): lambda: (n - 1) * (step_s + m / n / rate),
        ("send-recv", "ring"): lambda: step_s + m / rate,
    }
    if (operation, algorithm) not in forms:
        known = ", ".join(a for o, a in forms if o == operation)
        raise HardwareError(f"{operation} has no {algorithm!r} algorithm, expected one of {known}{nearest(algorithm, known.split(', '))}")
    return forms[operation, algorithm]()


def _check(operation: str, ranks: int, size_bytes: int) -> None:
    if operation not in OPERATIONS:
        raise HardwareError(f"unknown collective {operation!r}, expected one of {', '.join(OPERATIONS)}{nearest(operation, OPERATIONS)}")
    if ranks < 1 or size_bytes < 1:
        raise HardwareError(f"{operation}: expected at least one rank and one byte, found {ranks} ranks and {size_bytes} B")


@dataclass(frozen=True)
class Fabric:
    """Links between the ranks of one domain, all alike, and what a library's kernels add on them.

    `launch_s` until all ranks are at work, `step_s` from rank to rank; `share` of the links' rate that large messages reach, `pair`
    of that between two ranks alone, `quick` that of the protocol of small messages, with no `fill_s` (`step_fill_s` per step) until its
    buffers are full; `switch`, where the switch reduces, the share of the rate at which it does. `source` says where they come from.
    """

    link: LinkSpec
    launch_s: float
    step_s: float
    share: float
    pair: float
    quick: float
    fill_s: float
    step_fill_s: float
    switch: float = 0.0
    switch_fill_s: float = 0.0
    source: str = ""

    def seconds(self, operation: str, ranks: int, size_bytes: int) -> float:
        """Seconds of a collective, as `closed_form` counts `size_bytes`. Raises `HardwareError` for an unknown operation."""
        return min(self.choices(operation, ranks, size_bytes).values())

    def choices(self, operation: str, ranks: int, size_bytes: int) -> dict[str, float]:
        """Seconds by algorithm and protocol."""
        _check(operation, ranks, size_bytes)
        if ranks == 1:
            return {"none": 0.0}
        steps = {"all-reduce": 2 * (ranks - 1), "send-recv": 1, "all-to-all": 1}.get(operation, ranks - 1)
        ways = {"all-reduce": 2 * (ranks - 1) / ranks, "send-recv": 1.0}.get(operation, (ranks - 1) / ranks)
        rate = float(self.link.rate)
        full = self.share * (self.pair if ranks == 2 and operation not in ("all-reduce", "send-recv") else 1.0)
        moved = ways * size_bytes
        start = self.launch_s + steps * self.step_s
        found = {
            "ring, quick": start + moved / (self.quick * rate),
            "ring, full": start + (0.0 if operation == "send-recv" else self.fill_s + steps * self.step_fill_s) + moved / (full * rate),
        }
        if operation == "all-reduce" and ranks > 2:
            depth = 2 * ceil(log2(ranks))
            found["tree, quick"] = self.launch_s + depth * self.step_s + 2 * size_bytes / (self.quick * rate)
            if self.switch:
                found["switch"] = start + self.switch_fill_s + size_bytes / (self.switch * rate)
        return found


_NCCL = "read off NCCL 2.27.3 in CUDA graphs on 2, 4 and 8 {} (NVIDIA aiconfigurator), all sizes: nothing was held out"


def nvlink_fabric(generation: int, links: int) -> Fabric:
    """NVLink through a switch. Generations 3 and 4 have constants of their own, others those of the next older one, and say so."""
    link = nvlink(generation, links, latency=0)
    if generation < 4:
        source = _NCCL.format("A100 SXM") + ("; taken over from NVLink 3" if generation < 3 else "")
        return Fabric(link, 8e-6, 1.05e-6, 0.70, 0.75, 0.30, 30e-6, 2.3e-6, source=source)
    source = _NCCL.format("H100 SXM") + ("; taken over from NVLink 4" if generation > 4 else "")
    return Fabric(link, 4.7e-6, 0.8e-6, 0.75, 0.80, 0.30, 20e-6, 0.5e-6, 0.58, 45e-6, source=source)


def network_fabric(link: LinkSpec) -> Fabric:
    """Ranks behind one network adapter each: 33 us from rank to rank as libraries bypass the host's kernel, and the link's own rate."""
    source = "round trips of 33 us over 400 Gb/s InfiniBand, Chen et al., arXiv:2405.01814; nothing is fitted on it"
    return Fabric(link, 10e-6, 16.5e-6, 0.9, 1.0, 0.45, 0.0, 0.0, source=source)


NVLINKS = {"a100-40g": (3, 12), "a100-80g": (3, 12), "h100-sxm": (4, 18), "h200-sxm": (4, 18), "b200": (5, 18)}
"""NVLink generation and links of devices on boards with a switch (NVIDIA data sheets)."""


def fabric_of(device: str) -> Fabric:
    """The links between devices of one node. Raises `HardwareError` for a device whose links are not known."""
    if device not in NVLINKS:
        raise HardwareError(f"{device}: links between devices are known for {', '.join(NVLINKS)} only{nearest(device, NVLINKS)}")
    return nvlink_fabric(*NVLINKS[device])
