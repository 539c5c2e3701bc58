"""The studies that rest on the memory hierarchy reproduce what was published."""

from __future__ import annotations

import pytest

from studies import flexgen, llm_in_a_flash, sn40l
from studies.row import StudyRow

ROWS = [*llm_in_a_flash.rows(), *flexgen.rows(), *sn40l.switching()]


@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{row.system}: {row.experiment}")
def test_claimed_rows_are_reproduced(row: StudyRow) -> None:
    assert row.status == ("reported" if row.tolerance is None else "reproduced")


def test_the_five_rows_of_llm_in_a_flash_are_within_ten_percent() -> None:
    assert [row.published for row in llm_in_a_flash.rows()] == [2196, 1090, 738, 164, 87]
    assert all(abs(row.error) < 0.10 for row in llm_in_a_flash.rows())


def test_the_cost_model_of_flexgen_gives_its_closed_form() -> None:
    rate, prefill, decode = flexgen.throughput(
        **flexgen.OPT_30B, prompt=512, generated=32, policy=flexgen.Policy((0.2, 0.8), (0, 1), (0, 1), 48, 3), host=flexgen.Host()
    )
    assert rate == pytest.approx(7.136, abs=0.001)
    assert (prefill, decode) == pytest.approx((210.67, 435.09), abs=0.01)


def test_switching_an_expert_is_one_transfer_over_the_ddr_path() -> None:
    assert sn40l.switching()[0].ours == pytest.approx(sn40l.EXPERT_BYTES / 1e12 * 1e3)


def test_a_row_is_reproduced_within_its_tolerance_only() -> None:
    def row(ours: float, tolerance: float | None) -> StudyRow:
        return StudyRow("s", "e", 10.0, ours, "ms", tolerance, "certain", "source")

    assert row(10.4, 0.05).status == "reproduced"
    assert row(10.6, 0.05).status == "not reproduced"
    assert row(99, None).status == "reported"
    assert row(10.4, 0.05).to_json().keys() == {
        "system", "experiment", "published", "ours", "unit", "error", "tolerance", "status", "certainty", "source", "note",
    }  # fmt: skip
