"""Areas beside published ones: each ratio is of designs that were synthesised, and the shapes of the comparison are the paper's."""

from __future__ import annotations

import pytest

from hw.area import characterisation
from studies.unit_areas import COLUMNS, RATIOS, ROWS, Ratio, cells, rows


@pytest.mark.parametrize("ratio", RATIOS, ids=lambda ratio: ratio.name)
def test_every_part_of_a_ratio_was_synthesised(ratio: Ratio):
    assert ratio.ours is not None
    assert ratio.ours > 0
    assert ratio.source


def test_a_core_is_its_tables_and_its_elements():
    size = {r["parameters"]["name"]: r["cells"] for r in characterisation("references")}
    ratio = next(r for r in RATIOS if r.name == "look-up / fp16 MAC core, 1-bit, fp16 tables")
    assert cells(ratio.left) == ROWS * size["lookup_table_fp16"] + ROWS * COLUMNS * size["lookup_element_fp16"]
    assert cells(ratio.right) == ROWS * COLUMNS * size["fp16_dot4"]


def test_an_area_that_was_not_synthesised_gives_no_ratio():
    assert cells((("references", {"name": "nothing"}, 1),)) is None
    assert Ratio("x", (("references", {"name": "nothing"}, 1),), RATIOS[0].right, "1", "").ours is None


def test_ratios_are_reported_as_found_and_never_called_reproduced():
    found = rows()
    assert {row.status for row in found} == {"reported"}
    assert len(found) == sum(ratio.value is not None for ratio in RATIOS) >= 6
