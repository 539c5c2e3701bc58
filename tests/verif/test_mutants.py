"""Mutated RTL: single operators of every unit's Verilog are changed, and the comparison with the golden notices."""

from __future__ import annotations

import pytest

pytest.importorskip("amaranth", reason="RTL needs the extra `rtl`")

from verif.conformance import draw, samples, units_with_rtl
from verif.mutate import SWAPS, mutants, survivors
from verif.tools import missing_simulator

reason = missing_simulator()  # None where Icarus Verilog and cocotb are both installed

TEXT = """module dut(a, b, c);
  input [3:0] a, b;
  output [4:0] c;
  assign c = a + b;
  wire d = a < b;
endmodule
"""


def test_a_mutant_differs_from_its_source_in_one_operator_of_an_assignment():
    (mutant,) = mutants(TEXT, 5)
    assert (mutant.before, mutant.after) == ("assign c = a + b;", "assign c = a - b;")
    assert mutant.text == TEXT.replace("+", "-").rstrip("\n")


def test_every_operator_is_replaced_by_another():
    assert all(old != new for old, new in SWAPS.items())


@pytest.mark.rtl
@pytest.mark.slow
@pytest.mark.skipif(bool(reason), reason=str(reason))
@pytest.mark.parametrize("kind", units_with_rtl())
def test_mutated_rtl_of_every_unit_is_noticed(kind: str):
    """Not every mutant: some change nothing that random operands show, as sticky bits of a rounding, which the proofs cover."""
    unit = samples(kind)[0]
    count = 4
    assert len(survivors(unit, draw(unit, 40), count, seed=1)) < count
