"""SK hynix GDDR6-AiM (Lee et al., ISSCC 2022) and CENT, which builds on it (Gu et al., ASPLOS 2025): rates and command counts."""

from __future__ import annotations

from dovetail import estimate
from hw.devices import load
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


# Llama-2-70B: outputs and inputs of a layer's products, heads of keys and values, queries that share them.
PRODUCTS = ((10240, 8192), (8192, 8192), (2 * 28672, 8192), (8192, 28672))
LAYERS, KV_HEADS, QUERIES, WIDTH, VOCABULARY, HIDDEN = 80, 8, 8, 128, 32000, 8192
DEVICES, GPUS, GPU_BATCH = 32, 4, 128
TOKENS = 512 + 3584 // 2
"""The mean context of 512 tokens in and 3584 out."""


def cent_rate() -> float:
    """Tokens per second of 32 devices of 32 channels that hold the layers of Llama-2-70B in turn, as many sequences under way as keep
    all of them busy."""
    device = Aim(channels=32)
    layer = sum(device.product(*shape).fs for shape in PRODUCTS) + device.attention(KV_HEADS, TOKENS, WIDTH, WIDTH, QUERIES).fs
    return DEVICES / ((LAYERS * layer + device.product(VOCABULARY, HIDDEN).fs) * 1e-15)


def gpu_rate() -> float:
    """Tokens per second of decode on four A100 of a node at their largest batch."""
    gpus = load("dgx-a100").with_settings({"node.chips": GPUS})
    return GPU_BATCH / estimate("llama-2-70b", device=gpus, phase="decode", batch=GPU_BATCH, context=TOKENS).latency_s


def rows() -> list[StudyRow]:
    """Rates, command counts, refresh, and the system built on it."""
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
        _cent(),
    ]


def _cent() -> StudyRow:
    ours, gpus = cent_rate(), gpu_rate()
    return StudyRow(
        "aim",
        "CENT, Llama-2-70B on 32 devices over four A100",
        2.3,
        ours / gpus,
        "x",
        None,
        "probable",
        CENT,
        note="the published ratio is over three models against measured vLLM runs with prefill, whose rates were not at hand; ours is "
        f"decode of one model at its mean context, {ours:.0f} against {gpus:.0f} tokens/s, both at their best: the GPUs' estimate has no "
        "server around it",
    )
