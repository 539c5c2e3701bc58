"""SK hynix GDDR6-AiM (Lee et al., ISSCC 2022) and CENT, which builds on it (Gu et al., ASPLOS 2025): rates and command counts."""

from __future__ import annotations

from hw.pim.aim import Aim
from hw.pim.channel import AIM
from studies.row import StudyRow

ISSCC = "Lee et al., A 1ynm 1.25V 8Gb, 16Gb/s/pin GDDR6-based Accelerator-in-Memory supporting 1TFLOPS MAC Operation, ISSCC 2022"
CENT = "Gu et al., PIM Is All You Need: A CXL-Enabled GPU-Free System for Large Language Model Inference, ASPLOS 2025"
SIMULATOR = "AiM simulator, github.com/arkhadem/aim_simulator"


def refresh_share(outputs: int = 4096, inputs: int = 4096) -> float:
    """Share of a kernel's time that refresh takes."""
    with_, without = (Aim(refresh=refresh).product(outputs, inputs).clocks for refresh in (True, False))
    return 1 - without / with_


def rows() -> list[StudyRow]:
    device = Aim(channels=2)
    outside = float(AIM.peak) * device.channels
    kernel = device.product(4096, 4096)
    return [
        StudyRow(
            "aim", "peak of a device", 1.0, device.internal_peak * 1e-12, "TFLOP/s", 0.05, "certain", ISSCC, note="a MAC per 16-bit weight"
        ),
        StudyRow("aim", "bandwidth inside a channel", 512.0, Aim(channels=1).internal_peak * 1e-9, "GB/s", 0.02, "certain", SIMULATOR),
        StudyRow(
            "aim",
            "bandwidth inside 32 devices of 32 channels",
            512.0,
            32 * Aim(channels=32).internal_peak * 1e-12,
            "TB/s",
            0.05,
            "certain",
            CENT,
        ),
        StudyRow(
            "aim",
            "MAC_ABK beats of a 4096 x 4096 product in a device",
            4096 * 4096 / (device.channels * device.banks * device.lanes),
            kernel.counts["MAC_ABK"],
            "commands",
            0.0,
            "certain",
            SIMULATOR,
        ),
        StudyRow(
            "aim",
            "time lost to refresh in a 4096 x 4096 product",
            100 * AIM.n_rfc / AIM.n_refi,
            100 * refresh_share(),
            "%",
            None,
            "certain",
            SIMULATOR,
            note="the published value is the least that nRFC / nREFI allows; closing and opening rows comes on top, and that "
            "simulator issues no refresh while AiM commands run",
        ),
        StudyRow(
            "aim",
            "selected operations over the memory's interface",
            16.0,
            float(kernel.bandwidth) / outside,
            "x",
            None,
            "probable",
            "SK hynix, press release of GDDR6-AiM, 2022",
            note="the ratio of the peaks; ours is what a 4096 x 4096 product sustains: opening a row takes longer than reading it",
        ),
    ]
