"""Studies of PIM designs: what is claimed is reproduced, what is not says why."""

from __future__ import annotations

import pytest

from studies import aim, attacc, hbm_pim, neupims
from studies.row import StudyRow

ROWS = [row for study in (attacc, hbm_pim, aim, neupims) for row in study.rows()]


@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{row.system}: {row.experiment}")
def test_rows_that_are_not_reproduced_or_only_reported_say_why(row: StudyRow) -> None:
    assert row.status == "reproduced" or row.note
    assert row.source


def test_the_clocks_of_the_published_simulator_are_met_within_five_percent() -> None:
    clocks = [row for row in attacc.rows() if row.source == attacc.RESULTS and row.published in [c for *_, c in attacc.CLOCKS]]
    assert len(clocks) == len(attacc.CLOCKS) == 18
    assert all(row.status == "reproduced" for row in clocks)
    assert sum(abs(row.error) for row in clocks) / len(clocks) < 0.015


def test_every_command_count_is_met_exactly() -> None:
    counts = [row for row in ROWS if row.unit == "commands"]
    assert len(counts) == 4
    assert all(row.error == 0 for row in counts)


def test_energy_per_bit_is_the_activate_spread_over_a_row_and_the_stages_passed() -> None:
    """0.909 nJ over 1024 B, then cells, column multiplexer, bank-group multiplexer and through-silicon via."""
    stages = (909 / 8192 + 0.44, 1.01, 1.23 + 0.50)
    places = ("bank", "bank group", "buffer")
    for index, place in enumerate(places):
        assert attacc.energy_per_bit(place) == pytest.approx(sum(stages[: index + 1]), rel=0.01)


def test_neupims_needs_a_large_batch_to_gain_from_two_sub_batches() -> None:
    """Weights are read once per sub-batch: taking turns pays once products are bound by arithmetic."""
    over_npu, over_naive = zip(*(neupims.speedups(batch) for batch in (64, 256, 512)), strict=True)
    assert over_npu == tuple(sorted(over_npu))
    assert over_naive[0] == 1.0 < over_naive[2]


def test_refresh_takes_more_than_its_least_share_on_aim() -> None:
    assert aim.refresh_share() > 210 / 3333
