"""Planted bugs: Verilog with one operator, constant or condition changed, to see whether the checks notice."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from hw import Case, Unit
from verif.conformance import verilog
from verif.errors import VerificationError
from verif.harness import run_long

SWAPS = {
    " + ": " - ",
    " - ": " + ",
    " & ": " | ",
    " | ": " & ",
    " ^ ": " & ",
    " == ": " != ",
    " < ": " >= ",
    " > ": " <= ",
    " << ": " >> ",
    " ? ": " ? 0 & ",
}
"""Operators of Amaranth's Verilog, each with what takes its place. In the last one a choice loses the value it would take."""
OPERATOR = re.compile("|".join(map(re.escape, SWAPS)))


@dataclass(frozen=True, slots=True)
class Mutant:
    """`line` of the unit's Verilog as it was and as it is in `text`."""

    before: str
    after: str
    text: str


def mutants(text: str, count: int, seed: int = 0) -> list[Mutant]:
    """`count` different single changes to assignments of a module, drawn at random; fewer where there are fewer places."""
    lines = text.splitlines()
    places = [
        (number, match.start())
        for number, line in enumerate(lines)
        if re.match(r"\s*assign ", line) or "<=" in line
        for match in OPERATOR.finditer(line)
    ]
    chosen = np.random.default_rng(seed).permutation(len(places))[:count]
    found = []
    for number, start in (places[int(i)] for i in chosen):
        line = lines[number]
        old = OPERATOR.match(line, start)
        assert old is not None
        changed = line[:start] + SWAPS[old[0]] + line[old.end() :]
        found.append(Mutant(line.strip(), changed.strip(), "\n".join([*lines[:number], changed, *lines[number + 1 :]])))
    return found


def survivors(unit: Unit, cases: Sequence[Case], count: int, seed: int = 0) -> list[Mutant]:
    """Those of `count` mutants of a unit's RTL that pass a long run of `cases` in Icarus Verilog.

    Some change nothing that can be seen: half of a multiplexer whose other half is never taken, say.
    """
    found = []
    for mutant in mutants(verilog(unit), count, seed):
        try:
            passed = not run_long(unit, cases, source=mutant.text).failures
        except VerificationError:  # it never ends, or does not compile
            passed = False
        if passed:
            found.append(mutant)
    return found
