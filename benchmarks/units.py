"""Areas from our synthesis beside the published ones: `python benchmarks/units.py`.

Generic two-input gates and flip-flops of Yosys for both sides of each ratio. The published ratios are of square micrometres in
the technology named, so they are comparable in kind and not in the last digit; both are reported as found.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from hw.area import characterisation


@dataclass(frozen=True)
class Ratio:
    """`left` over `right`, each (kind, parameters that identify the record, copies of it), and the published figure."""

    name: str
    left: tuple[str, dict[str, Any], int]
    right: tuple[str, dict[str, Any], int]
    published: str
    source: str


def reference(name: str, copies: int = 1) -> tuple[str, dict[str, Any], int]:
    return "references", {"name": name}, copies


def lut_core(bits: int) -> tuple[str, dict[str, Any], int]:
    """The look-up core needs `bits` cycles per step where the multipliers need one: as many copies for the same rate."""
    return "lut_tensor_core", {"rows": 2, "columns": 64}, bits


LUT_PAPER = "LUT Tensor Core, arXiv:2408.06003, 28 nm, fp16 activations"
RATIOS = (
    Ratio(
        "bf16 L-Mul / bf16 multiplier",
        reference("lmul_bf16_multiplier"),
        reference("ieee_bf16_multiplier"),
        "0.33",
        "a public synthesis, 45 nm: 180.88 / 545.03 um2",
    ),
    Ratio("LUT core / MAC core, 1-bit weights", lut_core(1), reference("mac_core_2x8_w1", 8), "0.17 to 0.25", LUT_PAPER),
    Ratio("LUT core / MAC core, 2-bit weights", lut_core(2), reference("mac_core_2x8_w2", 8), "below 1", LUT_PAPER),
    Ratio("LUT core / MAC core, 4-bit weights", lut_core(4), reference("mac_core_2x8_w4", 8), "below 1", LUT_PAPER),
    Ratio(
        "BitMoD PE / fp16 MAC PE",
        ("bitmod_pe", {"weights": "fp4"}, 1),
        reference("fp16_mac"),
        "0.76",
        "BitMoD, arXiv:2411.11745, 28 nm: 97090 / 64 over 95498 / 48 um2",
    ),
)


def cells(kind: str, wanted: dict[str, Any], copies: int) -> int | None:
    """Cells of the first record with these parameters, times copies; None when there is none."""
    for record in characterisation(kind):
        if all(record["parameters"].get(name) == value for name, value in wanted.items()):
            return copies * int(record["cells"])
    return None


def main() -> None:
    print(f"{'ratio':38}{'cells':>10}{'over':>10}{'ours':>8}   published")
    for ratio in RATIOS:
        left, right = cells(*ratio.left), cells(*ratio.right)
        ours = f"{left / right:.2f}" if left and right else "not synthesised"
        print(f"{ratio.name:38}{left or '-':>10}{right or '-':>10}{ours:>8}   {ratio.published} ({ratio.source})")


if __name__ == "__main__":
    main()
