"""Areas of units from our synthesis beside the published ones, each as a ratio of two designs made by the same tool.

Generic two-input gates and flip-flops of Yosys for both sides of each ratio. The published ratios are of square micrometres in
the technology named, so they are comparable in kind and not in the last digit: reported as found. A core is the sum of its
parts: tables, each shared by all columns, and elements.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from hw.area import characterisation
from studies.row import StudyRow

Part = tuple[str, dict[str, Any], int]
"""(kind, parameters that identify the record, copies of it)."""


@dataclass(frozen=True)
class Ratio:
    """The parts of `left` over those of `right`, the published figure as it is given, and its value where it is one."""

    name: str
    left: tuple[Part, ...]
    right: tuple[Part, ...]
    published: str
    source: str
    value: float | None = None

    @property
    def ours(self) -> float | None:
        """None where a part was not synthesised."""
        left, right = cells(self.left), cells(self.right)
        return left / right if left and right else None


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
        180.88 / 545.03,
    ),
    Ratio(
        "look-up / fp16 MAC core, 1-bit, fp16 tables",
        lookups("lookup_table_fp16", "lookup_element_fp16", 1),
        multipliers("fp16_dot4"),
        "0.17 to 0.25",
        f"{LUT_PAPER}: 4 to 6 times less area than a core of multipliers",
        1 / 5,
    ),
    Ratio(
        "look-up / fp16 MAC core, 1-bit, int8 tables",
        lookups("lookup_table_fp16", "lookup_element_int8", 1),
        multipliers("fp16_dot4"),
        "0.055",
        f"{LUT_PAPER}: 3.39 over 61.55 TFLOP/s/mm2 of dot products; ours leaves out the quantiser of the tables",
        3.39 / 61.55,
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
        17.73 / 61.84,
    ),
    Ratio(
        "look-up / fp16 adders, 1-bit, fp16 tables",
        lookups("lookup_table_fp16", "lookup_element_fp16", 1),
        multipliers("fp16_adders4"),
        "0.33",
        f"{LUT_PAPER}: about 20 over 61.55 TFLOP/s/mm2 of dot products by addition; whether its table is of fp16 or int8 is not said",
        20 / 61.55,
    ),
    Ratio(
        "look-up / fp16 adders, 1-bit, int8 tables",
        lookups("lookup_table_fp16", "lookup_element_int8", 1),
        multipliers("fp16_adders4"),
        "0.33",
        "the same; ours leaves out the quantiser of the tables",
        20 / 61.55,
    ),
    Ratio(
        "lut_tensor_core / int8 MAC core, 1-bit",
        (("lut_tensor_core", {"rows": ROWS, "columns": COLUMNS}, 1),),
        multipliers("int8_dot4"),
        "none",
        "our unit as a whole, which takes a cycle per bit, beside multipliers of the same activations",
    ),
    Ratio(
        "lut_tensor_core / signed int8 adders, 1-bit",
        (("lut_tensor_core", {"rows": ROWS, "columns": COLUMNS}, 1),),
        (reference("mac_core_2x8_w1", 8),),
        "none",
        "our unit beside adders that know the weights have one bit: three int8 additions are cheap beside the 32-bit sum of both",
    ),
    Ratio(
        "BitMoD PE / fp16 MAC PE",
        (("bitmod_pe", {"weights": "fp4"}, 1),),
        (reference("fp16_mac"),),
        "0.76",
        "BitMoD, arXiv:2411.11745, 28 nm: 97090 / 64 over 95498 / 48 um2; its PE has four lanes and a dequantiser, the other one lane",
        97090 / 64 / (95498 / 48),
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


def rows() -> list[StudyRow]:
    """Of the ratios that were published as figures."""
    found = []
    for ratio in RATIOS:
        ours = ratio.ours
        if ratio.value is not None and ours is not None:
            note = f"published as {ratio.published}; cells of Yosys against areas in silicon"
            found.append(StudyRow("unit-areas", ratio.name, ratio.value, ours, "x", None, "probable", ratio.source, note))
    return found
