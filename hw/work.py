"""What one unit is asked to do: `Gemm` tiles and `Vector` work. Every closed-form cost is a function of these."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Gemm:
    """A product of [m, k] by [k, n] in `format`, as one unit executes it; of unlike operands in `<left>x<right>` (see `sides`).

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


def sides(number_format: str) -> tuple[str, str]:
    """The formats of the left and the right operand of products in `number_format`, which is `<left>x<right>` where they differ.

    >>> sides("fp16xint4"), sides("int8"), sides("mxfp4")
    (('fp16', 'int4'), ('int8', 'int8'), ('mxfp4', 'mxfp4'))
    """
    left, cross, right = number_format.partition("x")
    unlike = cross and left[-1:].isdigit() and right  # in mxfp4 and its like no format ends before the x
    return (left, right) if unlike else (number_format, number_format)


@dataclass(frozen=True, slots=True, eq=False)
class Case:
    """One piece of work together with its operands: the arguments of a unit's `golden`, numpy arrays of codes or integers."""

    work: Work
    operands: tuple[Any, ...]
