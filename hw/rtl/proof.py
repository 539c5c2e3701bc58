"""Theorems about RTL: a design, the signals they speak of, and a claim that a solver decides for every input."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Theorem:
    """`claim` holds in every state and for every input of `design`.

    `ports` names the inputs and outputs of `design`. `claim` is an SMT-LIB term in which `{name}` stands for the bit vector
    of a port; when it is empty, the assertions inside the design are the claim.

    With `cycles`, the claim is about so many clock cycles, the first of them in the state after reset and none with reset:
    `{name_0}`, `{name_1}` ... stand for a port in each, and every sequence of inputs is covered.
    """

    design: Any
    ports: Mapping[str, Any]
    claim: str = ""
    cycles: int = 0
