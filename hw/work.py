"""What one unit is asked to do: `Gemm` tiles and `Vector` work. Every closed-form cost is a function of these."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Gemm:
    """A product of [m, k] by [k, n] in `format`, as one unit executes it.

    A tile may be part of a longer run on the same unit: `opens` and `closes` say that its accumulation (or, for stationary
    weights, its stream of rows) begins or ends here; `cold` and `final` that it is the first or last tile of the operator,
    where fill and drain cannot hide behind a neighbour. A tile by itself has all four. `accumulated` is the part of the
    contraction that earlier tiles of the same run have added up already; only a tile that does not open a run has any.
    """

    m: int
    n: int
    k: int
    format: str
    opens: bool = True
    closes: bool = True
    cold: bool = True
    final: bool = True
    accumulated: int = 0

    @property
    def macs(self) -> int:
        return self.m * self.n * self.k


@dataclass(frozen=True, slots=True)
class Vector:
    """`elements` values, each with `operations` arithmetic operations and `specials` transcendental functions."""

    elements: int
    operations: int = 1
    specials: int = 0


Work = Gemm | Vector


@dataclass(frozen=True, slots=True, eq=False)
class Case:
    """One piece of work together with its operands: the arguments of a unit's `golden`, numpy arrays of codes or integers."""

    work: Work
    operands: tuple[Any, ...]
