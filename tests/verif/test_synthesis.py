"""Characterisation: committed figures are those of the units they name, and synthesis finds them again."""

from __future__ import annotations

import json

import pytest

from hw import Systolic
from hw.area import FOLDER, characterisation
from hw.units import CsdChain, Lmul, TernaryRow
from verif.conformance import samples, units_with_rtl


@pytest.mark.parametrize("kind", units_with_rtl())
def test_every_unit_with_rtl_has_the_area_of_its_first_sample(kind: str):
    area = samples(kind)[0].area()
    assert area is not None
    assert area.cells > area.flip_flops > 0
    assert area.depth > 0
    assert set(area.targets) == {"xcup", "xc7", "ecp5"}
    assert area.tool.startswith("Yosys")


def test_the_area_of_a_configuration_that_was_not_synthesised_is_not_modelled():
    assert Systolic(rows=77, columns=3).area() is None


def test_names_and_clocks_do_not_change_the_area():
    assert TernaryRow(source="a paper", count=7, clock="1 GHz").area() == TernaryRow().area() is not None  # type: ignore[arg-type]


def test_two_products_share_a_dsp_block():
    """The chain of 8 groups has 16 multipliers that make 32 products per cycle: 16 DSP48E2, not 32."""
    unit = CsdChain()
    area = unit.area()
    assert area is not None
    assert area.targets["xcup"]["dsp"] == 2 * unit.groups
    assert 2 * 2 * unit.groups == 32


def reference(name: str) -> int:
    return next(r["cells"] for r in characterisation("references") if r["parameters"]["name"] == name)


def test_published_area_relations_hold_in_our_synthesis():
    """L-Mul below a third of the bf16 multiplier; the 1-bit look-up core below multipliers of the same rate."""
    assert 3 * reference("lmul_bf16_multiplier") < reference("ieee_bf16_multiplier")
    lookup = next(r for r in characterisation("lut_tensor_core") if r["parameters"]["columns"] == 8)
    assert lookup["parameters"]["rows"] == 2
    assert lookup["cells"] < reference("mac_core_2x8_w1")


def test_a_look_up_core_is_a_fourth_to_a_sixth_of_fp16_multipliers_at_one_bit():
    """The published comparison: fp16 activations and tables, two tables for 128 elements of four activations each."""
    core = 2 * reference("lookup_table_fp16") + 128 * reference("lookup_element_fp16")
    assert 1 / 6 < core / (128 * reference("fp16_dot4")) < 1 / 4


def test_characterisation_files_are_records_of_known_units():
    for path in FOLDER.glob("*.json"):
        document = json.loads(path.read_text())
        assert document["schema"] == 1
        assert path.stem == "references" or path.stem in units_with_rtl()


@pytest.mark.slow
def test_synthesis_finds_the_committed_figures_again():
    from verif.conformance import verilog
    from verif.synthesis import synthesise

    found = synthesise(verilog(Lmul()))
    area = Lmul().area()
    assert area is not None
    assert (found["cells"], found["flip_flops"], found["depth"]) == (area.cells, area.flip_flops, area.depth)
    assert found["targets"] == area.targets
