"""SN40L (Prabhakar et al., MICRO 2024): switching between experts held in the DDR tier, against GPUs that hold them in host memory.

The experts are read only, so an eviction from HBM drops them and a switch costs one transfer.
"""

from __future__ import annotations

from hw.links import LinkSpec
from sim.tiers import Stored, Tier, moving_fs
from studies.row import StudyRow

SOURCE = "Prabhakar et al., SambaNova SN40L: Scaling the AI Memory Wall with Dataflow and Composition of Experts, MICRO 2024"
EXPERT_BYTES = 13_480_000_000  # Llama-2-7B in BF16: 6.74e9 parameters
GIB = 2**30

# Rates as the paper states them for the comparison, without packet overheads.
PATHS = {
    "SN40L node, DDR to HBM": (LinkSpec(name="ddr-hbm", bandwidth=1_000_000_000_000, latency=0, source=SOURCE), 8 * 64 * GIB, 13.5),
    "DGX A100, host to GPU": (LinkSpec(name="a100-host", bandwidth=32_000_000_000, latency=0, source=SOURCE), 8 * 80 * 10**9, 421.0),
    "DGX H100, host to GPU": (LinkSpec(name="h100-host", bandwidth=64_000_000_000, latency=0, source=SOURCE), 8 * 80 * 10**9, 211.0),
}
EXPERTS = 150


def switch_ms(link: LinkSpec, capacity: int) -> float:
    """Milliseconds to switch to an expert that is not resident, with the fast tier already full of others."""
    tier = Tier("hbm", capacity)
    experts = [Stored(f"expert{i}", EXPERT_BYTES) for i in range(EXPERTS)]
    for expert in experts:
        tier.touch(expert)
    return moving_fs(tier.touch(experts[0]), link.transfer_fs, link.transfer_fs) * 1e-12


def rows() -> list[StudyRow]:
    """Switching times and their ratios to the SN40L."""
    times = {name: switch_ms(link, capacity) for name, (link, capacity, _) in PATHS.items()}
    found = [
        StudyRow("sn40l", f"model switch, {name}", published, times[name], "ms", 0.05, "certain", SOURCE)
        for name, (*_, published) in PATHS.items()
    ]
    base = times["SN40L node, DDR to HBM"]
    for name, published in (("DGX A100, host to GPU", 31.0), ("DGX H100, host to GPU", 15.0)):
        found.append(StudyRow("sn40l", f"switch of {name} over SN40L", published, times[name] / base, "x", 0.05, "certain", SOURCE))
    return found
