"""InstInfer (arXiv:2409.04992): decode attention in computational SSDs, dense and sparse, one drive and twenty.

OPT-13B with 1024 tokens in and out on an A6000; a step of decode is taken at the mean context of 1536 tokens.
"""

from __future__ import annotations

from functools import cache

from dovetail import estimate
from dovetail.report import Report
from hw.devices import load
from hw.quantity import transfer_fs
from studies.row import StudyRow

SOURCE = (
    "Pan et al., InstInfer: In-Storage Attention Offloading for Cost-Effective Long-Context LLM Inference, arXiv:2409.04992 (HPCA 2025)"
)
MODEL = "opt-13b"
TOKENS_IN = TOKENS_OUT = 1024
MEAN = TOKENS_IN + TOKENS_OUT // 2
READ_GB = 1085.65
"""Read in decode per layer at batch 64, as published."""
DRIVE = 7_000_000_000
"""Bytes per second of the baseline's SSD (Samsung 980 Pro, PCIe 4.0 x4, data sheet)."""


def layer_token_bytes() -> int:
    """Keys and values of a token in one layer, fp16."""
    return 2 * 5120 * 2


def dense_read_gb(batch: int = 64) -> float:
    """What dense attention reads of a layer in all steps of decode, in GB."""
    return batch * layer_token_bytes() * sum(range(TOKENS_IN, TOKENS_IN + TOKENS_OUT)) * 1e-9


def kept() -> float:
    """Share of the pages that sparse attention reads: published volume over what dense attention reads."""
    return READ_GB / dense_read_gb()


@cache
def step(batch: int, sparse: bool = False, drives: int = 1) -> Report:
    """A step of decode."""
    settings: dict[str, object] = {"memories.flash.count": drives}
    if sparse:
        settings["units.csd.kept"] = str(round(kept(), 4))
    device = load("instinfer").with_settings(settings)
    return estimate(MODEL, device=device, phase="decode", batch=batch, context=MEAN, weights="fp16", acts="fp16", kv="fp16")


def attention_share(batch: int, sparse: bool = False, drives: int = 1) -> float:
    """Share of a step in which pages are read."""
    return step(batch, sparse, drives).utilization["flash"]


def gain(batch: int) -> float:
    return step(batch).latency_s / step(batch, sparse=True).latency_s


def scaling(sparse: bool, drives: int = 20, batch: int = 256) -> float:
    return step(batch, sparse).latency_s / step(batch, sparse, drives).latency_s


def over_host_offload(batch: int = 64) -> float:
    """Time of a step that reads the cache from an SSD through the host at the drive's own rate, over ours."""
    report = step(batch)
    flash = next(use for use in report.memories if use.name == "flash")
    host = transfer_fs(flash.read, DRIVE) * 1e-15
    beside = report.latency_s * (1 - report.utilization["flash"])
    return (host + beside) / report.latency_s


def rows() -> list[StudyRow]:
    """Sparse over dense, more drives, volumes, and the baseline with the cache on an SSD."""
    beside = step(256).latency_s * (1 - attention_share(256))
    implied = step(256).latency_s * (1 / 8.99 - 1 / 20) / (1 - 1 / 20)
    alike = step(64).latency_s * attention_share(64) * (1 / 0.807 - 1)
    serial = (
        f"ours takes {beside:.2f} s of a step at batch 256 beside the drives (products on the GPU, the link); the published scaling "
        f"implies {implied:.1f} s there and the published share {alike:.1f} s at batch 64: a time that hardly depends on the batch, as if "
        "the 26 GB of weights came from host memory at 14 GB/s in every step; where the authors keep them is not known to us"
    )
    kept_note = f"pages read are {kept():.3f} of dense attention, from the published volume of decode reads; nothing else is taken over"
    volume = layer_token_bytes() * 64 * 1e-9
    found = [
        _row("sparse over dense attention, batch 256", 2.08, gain(256), "x", 0.15, kept_note),
        _row("20 drives over one, dense, batch 256", 8.99, scaling(sparse=False), "x", 0.15, serial),
        _row("20 drives over one, sparse, batch 256", 7.29, scaling(sparse=True), "x", 0.15, serial),
        _row("written per layer in prefill, batch 64", 1.34, volume * TOKENS_IN, "GB", 0.01, ""),
        _row(
            "written per layer in decode, batch 64",
            1.93,
            volume * TOKENS_OUT * 1.5,
            "GB",
            0.05,
            "keys are stored by token and by channel; groups of 16 tokens that are not full stay in the drive's buffer",
        ),
    ]
    for drives, published in ((1, 80.7), (2, 76.4)):
        what = f"share of a step that reads keys and values, {drives} drive{'s' if drives > 1 else ''}, batch 64"
        found.append(_row(what, published, 100 * attention_share(64, drives=drives), "%", 0.15, serial))
    found.append(
        _row(
            "dense attention in storage over a cache on an SSD behind the host, batch 64",
            6.85,
            over_host_offload(),
            "x",
            None,
            f"ours reads at the drive's {DRIVE * 1e-9:g} GB/s; the published ratio implies about 1.6 GB/s through file system and host, "
            "whose rates are not stated",
        )
    )
    return found


def _row(what: str, published: float, ours: float, unit: str, tolerance: float | None, note: str) -> StudyRow:
    return StudyRow("instinfer", f"{MODEL}: {what}", published, ours, unit, tolerance, "certain", SOURCE, note)
