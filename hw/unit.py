"""The unit form: one class with all its faces, found by its `kind`.

A unit states its parameters as fields and answers `cycles(work)`; `energy(work)`, `area()`, `golden`, `rtl()` and
`cases(rng)` are further faces. A face that a unit does not have is `None` ("not modelled"), never 0.

RTL has one ready/valid stream in, `operands`, and one out, `result`. Cycles are counted from the one that accepts the first
word of a piece of work to the one in which its last result can be taken, with neither stream stalled.
"""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction
from typing import Any, ClassVar, Self

from pydantic import Field

from hw.area import Area, characterised
from hw.errors import HardwareError, nearest
from hw.part import Part
from hw.quantity import Count, Energy, Frequency
from hw.work import Case, Gemm, Vector, Work

UNITS: dict[str, type[Unit]] = {}
"""Every unit class by its kind."""


class Unit(Part):
    """A compute unit. `count` identical copies work in lockstep groups; `clock` defaults to the device's.

    `mac_energy` and `operation_energy` are the energies of one multiply-accumulate (by number format) and of one vector
    operation; None means that the energy of this unit is not modelled.
    """

    kind: ClassVar[str] = ""
    title: ClassVar[str] = ""
    """The name that lists and verification use, where it says more than the kind in a device file."""
    executes: ClassVar[frozenset[str]] = frozenset()
    execution: ClassVar[str] = "tiles"
    """How the mapper uses the unit: `tiles` from software-managed scratchpads, or `waves` of thread blocks behind a cache."""

    count: Count = 1
    clock: Frequency | None = None
    mac_energy: dict[str, Energy] = Field(default_factory=dict)
    operation_energy: Energy | None = None

    def __init_subclass__(cls, kind: str = "", executes: set[str] | None = None, known_as: str = "", **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if kind:
            cls.kind, cls.title = kind, known_as or kind
            cls.executes = frozenset(executes or ())
            UNITS[kind] = cls

    # Faces ------------------------------------------------------------------------------------------------------------
    def cycles(self, work: Work) -> int:
        """Cycles of the unit's clock for `work` on one copy of the unit."""
        raise HardwareError(f"unit kind {self.kind!r} has no cost for {type(work).__name__} work")

    def energy(self, work: Work) -> Fraction | None:
        """Picojoules of switching for `work`; None where it is not modelled."""
        match work:
            case Gemm():
                per_mac = self.mac_energy.get(work.format)
                return None if per_mac is None else per_mac * work.macs
            case Vector():
                per_op = self.operation_energy
                return None if per_op is None else per_op * work.elements * (work.operations + work.specials)

    def area(self) -> Area | None:
        """Cells and FPGA resources from synthesis of exactly these parameters; None where nothing was synthesised."""
        return characterised(self)

    def golden(self, *operands: Any) -> Any | None:
        """Bit-exact reference arithmetic in numpy; None where it is not modelled."""
        return None

    def rtl(self) -> Any | None:
        """An Amaranth component; None where there is none."""
        return None

    def cases(self, rng: Any) -> Iterator[Case]:
        """Work with operands that exercise the golden function and the RTL; endless, corner cases first. `rng` is numpy's."""
        return iter(())

    def whole_space(self) -> Iterator[Case]:
        """Cases that between them bring every operand combination to each of the unit's multipliers or decoders, where those are
        few enough to list; nothing otherwise."""
        return iter(())

    @classmethod
    def samples(cls) -> tuple[Self, ...]:
        """Small units of this kind that the conformance suite builds and checks; none for a kind without RTL."""
        return ()

    def encode(self, *operands: Any) -> list[int]:
        """The words of the stream `operands` for the arguments of `golden`, in the order in which the RTL takes them."""
        raise HardwareError(f"unit kind {self.kind!r} has no RTL, so its operands have no stream words")

    def results(self, work: Work) -> int:
        """Words of the stream `result` that `work` produces."""
        raise HardwareError(f"unit kind {self.kind!r} has no RTL, so it produces no result words")

    def decode(self, words: list[int], work: Work) -> Any:
        """What `golden` returns, from the words of the stream `result`."""
        raise HardwareError(f"unit kind {self.kind!r} has no RTL, so there are no result words to read")

    def proofs(self) -> dict[str, Any]:
        """Theorems about the arithmetic by name, each a `hw.rtl.proof.Theorem` at a size a solver can decide."""
        return {}

    # What the mapper asks ------------------------------------------------------------------------------------------------
    def formats(self) -> frozenset[str]:
        """Number formats that the unit multiplies natively."""
        return frozenset()

    def macs_per_cycle(self, number_format: str) -> int:
        """Peak multiply-accumulates per cycle of one copy in a format; 0 when the format is not supported."""
        return 0

    def operations_per_cycle(self) -> int:
        """Peak vector operations per cycle of one copy."""
        return 0

    def least_cycles(self, work: Vector) -> Fraction:
        """Cycles that vector work takes at the peak rate of one copy, not rounded."""
        return Fraction(work.elements * (work.operations + work.specials), max(1, self.operations_per_cycle()))

    def granularity(self) -> tuple[int, int, int]:
        """The (m, n, k) in whole multiples of which a product runs best."""
        return 1, 1, 1

    def stationary(self) -> str:
        """The operand of a product that stays in the unit: `outputs` or `weights`."""
        return "outputs"

    def accumulator_bytes(self) -> int:
        """Bytes of one partial sum."""
        return 4

    def operand_elements(self, work: Gemm) -> tuple[int, int, int]:
        """Elements of the left operand, of the right operand and of partial sums that cross the unit's edge for `work`."""
        return work.m * work.k, work.k * work.n, work.m * work.n


def unit_class(kind: object) -> type[Unit]:
    """The class of a unit kind. Raises `HardwareError` with the nearest kind."""
    if not isinstance(kind, str) or kind not in UNITS:
        hint = nearest(kind, UNITS) if isinstance(kind, str) else ""
        raise HardwareError(f"unknown unit kind {kind!r}, expected one of {', '.join(sorted(UNITS))}{hint}")
    return UNITS[kind]
