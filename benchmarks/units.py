"""Areas from our synthesis beside the published ones: `python benchmarks/units.py`.

Generic two-input gates and flip-flops of Yosys for both sides of each ratio. The published ratios are of square micrometres in
the technology named, so they are comparable in kind and not in the last digit; both are reported as found. A core is the sum of
its parts: tables, each shared by all columns, and elements.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).parents[1])  # `mapper.py` in this folder would hide the package of that name

from hw.area import characterisation

Part = tuple[str, dict[str, Any], int]
"""(kind, parameters that identify the record, copies of it)."""


@dataclass(frozen=True)
class Ratio:
    """The parts of `left` over those of `right`, and the published figure."""

    name: str
    left: tuple[Part, ...]
    right: tuple[Part, ...]
    published: str
    source: str


def reference(name: str, copies: int = 1) -> Part:
    return "references", {"name": name}, copies


ROWS, COLUMNS = 2, 64
"""The paper's best core: two tables, each shared by 64 multiplexers of four activations."""


def lookups(table: str, element: str, bits: int) -> tuple[Part, ...]:
    """A look-up core needs `bits` cycles per step where multipliers need one: as many elements for the same rate, on the same tables."""
    return reference(table, ROWS), reference(element, bits * ROWS * COLUMNS)


def multipliers(element: str) -> tuple[Part, ...]:
    return (reference(element, ROWS * COLUMNS),)


LUT_PAPER = "LUT Tensor Core, arXiv:2408.06003, 28 nm"
RATIOS = (
    Ratio(
        "bf16 L-Mul / bf16 multiplier",
        (reference("lmul_bf16_multiplier"),),
        (reference("ieee_bf16_multiplier"),),
        "0.33",
        "a public synthesis, 45 nm: 180.88 / 545.03 um2",
    ),
    Ratio(
        "look-up / fp16 MAC core, 1-bit, fp16 tables",
        lookups("lookup_table_fp16", "lookup_element_fp16", 1),
        multipliers("fp16_dot4"),
        "0.17 to 0.25",
        f"{LUT_PAPER}: 4 to 6 times less area than a core of multipliers",
    ),
    Ratio(
        "look-up / fp16 MAC core, 1-bit, int8 tables",
        lookups("lookup_table_fp16", "lookup_element_int8", 1),
        multipliers("fp16_dot4"),
        "0.055",
        f"{LUT_PAPER}: 3.39 over 61.55 TFLOP/s/mm2 of dot products; ours leaves out the quantiser of the tables",
    ),
    Ratio(
        "look-up / fp16 MAC core, 4-bit, fp16 tables",
        lookups("lookup_table_fp16", "lookup_element_fp16", 4),
        multipliers("fp16_dot4"),
        "below 1",
        f"{LUT_PAPER}: below a core of multipliers up to about 6 bits",
    ),
    Ratio(
        "look-up / int8 MAC core, 1-bit, int8 activations",
        lookups("lookup_table_int", "lookup_element_int", 1),
        multipliers("int8_dot4"),
        "none",
        "our unit's arithmetic beside multipliers of the same activations",
    ),
    Ratio(
        "look-up / int8 MAC core, 2-bit, int8 activations",
        lookups("lookup_table_int", "lookup_element_int", 2),
        multipliers("int8_dot4"),
        "0.29",
        f"{LUT_PAPER}: 17.73 over 61.84 TOPS/mm2 of whole tensor cores, whose accumulators and widths are not known",
    ),
    Ratio(
        "lut_tensor_core / signed adders, 1-bit",
        (("lut_tensor_core", {"rows": ROWS, "columns": COLUMNS}, 1),),
        (reference("mac_core_2x8_w1", 8),),
        "0.3",
        f"{LUT_PAPER}: about 20 over 61.55 TFLOP/s/mm2 of bit-serial adders of fp16; adding int8 numbers is cheap beside the 32-bit sums",
    ),
    Ratio(
        "BitMoD PE / fp16 MAC PE",
        (("bitmod_pe", {"weights": "fp4"}, 1),),
        (reference("fp16_mac"),),
        "0.76",
        "BitMoD, arXiv:2411.11745, 28 nm: 97090 / 64 over 95498 / 48 um2; its PE has four lanes and a dequantiser, the other one lane",
    ),
)


def cells(parts: tuple[Part, ...]) -> int | None:
    """Cells of the first record of each part with its parameters, times copies; None when one was not synthesised."""
    total = 0
    for kind, wanted, copies in parts:
        found = (r for r in characterisation(kind) if all(r["parameters"].get(name) == value for name, value in wanted.items()))
        record = next(found, None)
        if record is None:
            return None
        total += copies * int(record["cells"])
    return total


def main() -> None:
    print(f"{'ratio':52}{'cells':>10}{'over':>10}{'ours':>8}   published")
    for ratio in RATIOS:
        left, right = cells(ratio.left), cells(ratio.right)
        ours = f"{left / right:.2f}" if left and right else "not synthesised"
        print(f"{ratio.name:52}{left or '-':>10}{right or '-':>10}{ours:>8}   {ratio.published} ({ratio.source})")


if __name__ == "__main__":
    main()
