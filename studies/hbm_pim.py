"""Samsung HBM-PIM (Aquabolt-XL; Kwon et al., ISSCC 2021; Lee et al., ISCA 2021): rates of the device and of its matrix-vector kernel."""

from __future__ import annotations

from dovetail import estimate
from hw.devices import load
from hw.pim.channel import HBM_PIM
from hw.pim.hbm_pim import HbmPim
from studies.row import StudyRow

ISSCC = "Kwon et al., A 20nm 6GB Function-In-Memory DRAM Based on HBM2 with a 1.2TFLOPS Programmable Computing Unit, ISSCC 2021"
ISCA = "Lee et al., Hardware Architecture and Software Stack for PIM Based on Commercial DRAM Technology, ISCA 2021"
PRESS = "Samsung's presentation of the four-stack system: 4.92 TB/s inside, 1.23 TB/s outside at 2.4 Gb/s"


def flop_per_clock(outputs: int = 4096, inputs: int = 4096) -> float:
    """FLOP of a pseudo channel per clock of its units (a column access of all banks), whole kernel included."""
    kernel = HbmPim().product(outputs, inputs)
    return 2 * kernel.macs / kernel.channels / (kernel.clocks / HBM_PIM.n_ccd_l)


def speedup(outputs: int, inputs: int) -> float:
    """Time of a matrix-vector product on the host alone over that with units in the banks, weights in memory."""
    device = load("hbm-pim")
    host = device.model_copy(update={"name": "host", "units": {name: unit for name, unit in device.units.items() if name != "pim"}})
    name = f"gemm:1x{outputs}x{inputs}"
    return estimate(name, device=host).latency_s / estimate(name, device=device).latency_s


def rows() -> list[StudyRow]:
    design = HbmPim()
    outside = float(HBM_PIM.peak) * design.channels
    units = 16 * design.blocks  # a stack of 16 pseudo channels
    return [
        StudyRow("hbm-pim", "bandwidth inside over outside", 4.92 / 1.23, design.internal_peak / outside, "x", 0.02, "certain", PRESS),
        StudyRow(
            "hbm-pim",
            "peak of a 6 GB stack at 300 MHz",
            1.2,
            units * design.lanes * 2 * 0.3e9 * 1e-12,
            "TFLOP/s",
            0.05,
            "certain",
            ISSCC,
        ),
        StudyRow(
            "hbm-pim",
            "MAC commands of a tile of 64 outputs x 128 inputs in a pseudo channel",
            64,
            HbmPim(channels=1).product(64, 128).counts["MAC"],
            "commands",
            0.0,
            "certain",
            "Samsung PIMSimulator, github.com/SAITPublic/PIMSimulator",
        ),
        StudyRow(
            "hbm-pim",
            "tiled matrix product in a pseudo channel, per clock of its units",
            59.4,
            flop_per_clock(),
            "FLOP/clock",
            None,
            "certain",
            "AME-PIM, 2026, abstract: 14.9 GFLOP/s per pseudo channel",
            note="another mapping (tiles of both operands from the banks); ours is the vendor's matrix-vector kernel of 4096 x 4096",
        ),
        StudyRow(
            "hbm-pim",
            "matrix-vector product of 4096 x 4096 against the host",
            11.2,
            speedup(4096, 4096),
            "x",
            None,
            "probable",
            ISCA,
            note="not a target: sizes and what the host's library reached are not known to us; our host streams the weights at the rate of "
            "its memory",
        ),
    ]
