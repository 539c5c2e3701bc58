"""MatMul-free language models (Zhu et al., 2024) on ternary rows in FPGAs: the published projection, and TerEffic's HBM version.

- The D5005 core is projected at 23.8 tokens per second for the 1.3B model, with all 512 bits of a memory beat in use. At the reported clock
  of about 60 MHz this is less than 1.1 bits per weight: no packing of ternary values does that, so the row is not reproduced; what
  would close the gap stands beside it.
- TerEffic streams 2.7B weights from 460 GB/s of HBM. Weights five to a byte and the memory's own timing predict its rate; nothing is
  fitted.
"""

from __future__ import annotations

from dovetail import estimate
from studies.row import StudyRow
from workloads.catalogue import describe
from workloads.matmul_free import macs_per_token

SOURCE = "Zhu et al., Scalable MatMul-free Language Modeling, arXiv:2406.02528"
TEREFFIC = "TerEffic: Highly Efficient Ternary LLM Inference on FPGA, abstract"
CONTEXT = 64
"""Of no effect: the models' state does not grow."""
SIZES = {"matmul-free-370m": 0.37, "matmul-free-1.3b": 1.3, "matmul-free-2.7b": 2.7}


def tokens_per_s(model: str, device: str, weights: str, **settings: object) -> float:
    """Decoded tokens per second; `settings` are paths of the device description with their dots as two underscores."""
    paths = {name.replace("__", "."): value for name, value in settings.items()}
    report = estimate(model, device=device, phase="decode", context=CONTEXT, weights=weights, settings=paths)
    return 1 / report.latency_s


def bits_per_weight(tokens_per_second: float, bytes_per_s: float, model: str = "matmul-free-1.3b") -> float:
    """Bits of memory traffic that a rate leaves for each weight of the blocks."""
    row = describe(model)
    return 8 * bytes_per_s / tokens_per_second / macs_per_token(row.layers, row.hidden, row.ffn)


def rows() -> list[StudyRow]:
    """Sizes (claimed), the D5005 projection (not reproduced, with what would), TerEffic (claimed)."""
    return [*_sizes(), *_projection(), *_tereffic()]


def _row(
    experiment: str, published: float, ours: float, unit: str, tolerance: float | None, note: str, source: str = SOURCE, sure: bool = True
) -> StudyRow:
    return StudyRow("matmul_free", experiment, published, ours, unit, tolerance, "certain" if sure else "probable", source, note)


def _sizes() -> list[StudyRow]:
    note = "closed form: embedding and head apart; published sizes have two digits"
    return [_row(f"{name}: parameters", size, describe(name).parameters / 1e9, "1e9", 0.05, note) for name, size in SIZES.items()]


def _projection() -> list[StudyRow]:
    model, device, published = "matmul-free-1.3b", "matmul-free-d5005", 23.8
    what = "1.3B on D5005, one 512-bit port, {}"
    left = bits_per_weight(published, 3.84e9)
    why = (
        f"the projection leaves {left:.2f} bits per weight at 60 MHz and 512 bits: fewer than the 1.58 of a ternary value; a faster clock "
        "or a second port is not stated"
    )
    plain = tokens_per_s(model, device, "ternary")
    dense = tokens_per_s(model, device, "ternary-dense")
    fast = tokens_per_s(model, device, "ternary-dense", clock="120 MHz", memories__ddr__bandwidth="7.68 GB/s")
    head = "LM head included"
    return [
        _row(what.format("two-bit codes"), published, plain, "tokens/s", 0.1, why, sure=False),
        _row(what.format("five weights to a byte"), published, dense, "tokens/s", None, f"{head}; {why}", sure=False),
        _row("1.3B on D5005 at 120 MHz, five to a byte", published, fast, "tokens/s", None, f"{head}; twice the clock does", sure=False),
    ]


def _tereffic() -> list[StudyRow]:
    model, device, published = "matmul-free-2.7b", "tereffic-hbm", 727.0
    dense = tokens_per_s(model, device, "ternary-dense")
    plain = tokens_per_s(model, device, "ternary")
    note = "five weights to a byte; HBM at its command-level rate, rows as wide as the memory: assumed, and not the limit"
    moved = macs_per_token(*(getattr(describe(model), name) for name in ("layers", "hidden", "ffn"))) * 0.2
    share = "weights of the blocks at 1.6 bits, over 460.8 GB/s; 727 tokens/s of all 2.7B values would be 85 %"
    return [
        _row("2.7B on HBM at 460 GB/s", published, dense, "tokens/s", 0.15, note, TEREFFIC),
        _row("2.7B on HBM at 460 GB/s, two-bit codes", published, plain, "tokens/s", None, "the same, four weights to a byte", TEREFFIC),
        _row("share of the memory's rate", published * moved / 460.8e9, dense * moved / 460.8e9, "", None, share, TEREFFIC),
    ]
