"""Multiply-accumulate types: the energy of a step from a table of operations, the area of their multipliers from synthesis.

The energies are those that the L-Mul paper and many others compute with; they are for 45 nm and leave out registers and wires.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

from hw.area import characterisation
from hw.errors import HardwareError, nearest

SOURCE = "Horowitz, Computing's Energy Problem (and what we can do about it), ISSCC 2014, 45 nm at 0.9 V"
# picojoules by operand width in bits
INTEGER_ADD = {8: Fraction("0.03"), 16: Fraction("0.05"), 32: Fraction("0.1")}
INTEGER_MULTIPLY = {8: Fraction("0.2"), 32: Fraction("3.1")}
FLOAT_ADD = {16: Fraction("0.4"), 32: Fraction("0.9")}
FLOAT_MULTIPLY = {16: Fraction("1.1"), 32: Fraction("3.7")}


@dataclass(frozen=True, slots=True)
class MacType:
    """One product and one addition to a running sum.

    `multiply_pj` and `accumulate_pj` are in picojoules at 45 nm; `multiplier` names the synthesised design of the product alone,
    empty where none was synthesised.
    """

    name: str
    multiply_pj: Fraction
    accumulate_pj: Fraction
    multiplier: str = ""

    @property
    def step_pj(self) -> Fraction:
        """Picojoules of one multiply-accumulate."""
        return self.multiply_pj + self.accumulate_pj

    @property
    def cells(self) -> int | None:
        """Two-input gates, multiplexers and flip-flops of the multiplier; None where it was not synthesised."""
        return reference_cells(self.multiplier) if self.multiplier else None


MACS: dict[str, MacType] = {
    m.name: m
    for m in (
        MacType("ieee-fp32", FLOAT_MULTIPLY[32], FLOAT_ADD[32]),
        MacType("ieee-fp16", FLOAT_MULTIPLY[16], FLOAT_ADD[16], "ieee_fp16_multiplier"),
        MacType("ieee-bf16", FLOAT_MULTIPLY[16], FLOAT_ADD[32], "ieee_bf16_multiplier"),
        # the constant of L-Mul is the third operand of the one adder
        MacType("lmul-fp32", INTEGER_ADD[32], FLOAT_ADD[32]),
        MacType("lmul-fp16", INTEGER_ADD[16], FLOAT_ADD[16]),
        MacType("lmul-bf16", INTEGER_ADD[16], FLOAT_ADD[32], "lmul_bf16_multiplier"),
        MacType("lmul-fp8", INTEGER_ADD[8], FLOAT_ADD[32], "lmul_fp8_e4m3_multiplier"),
        MacType("int8", INTEGER_MULTIPLY[8], INTEGER_ADD[32]),
        MacType("ternary", Fraction(0), INTEGER_ADD[32]),
    )
}
"""`lmul-bf16` and `ieee-bf16` add in fp32, as their units do; an fp16 sum of the published comparison is `lmul-fp16`."""


def mac_type(name: str) -> MacType:
    """The multiply-accumulate type called `name`. Raises `HardwareError` with the nearest name.

    >>> float(mac_type("lmul-fp32").step_pj)
    1.0
    """
    if name not in MACS:
        raise HardwareError(f"unknown multiply-accumulate type {name!r}, expected one of {', '.join(MACS)}{nearest(name, MACS)}")
    return MACS[name]


def saving(own: Fraction, base: Fraction) -> float:
    """Share of an energy that another one saves, in percent.

    >>> round(saving(Fraction(1), Fraction(4)), 1)
    75.0
    """
    if base <= 0:
        raise HardwareError(f"a saving needs an energy above 0 to compare with, not {float(base):g} pJ")
    return float(100 * (1 - own / base))


def reference_cells(name: str) -> int:
    """Cells of a synthesised design that units are compared with. Raises `HardwareError` with the nearest name."""
    records = {record["parameters"]["name"]: record for record in characterisation("references")}
    if name not in records:
        raise HardwareError(f"no synthesis of {name!r}, expected one of {', '.join(records)}{nearest(name, records)}")
    return int(records[name]["cells"])
