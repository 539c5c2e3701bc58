"""`dovetail study`: one row per published value, with its status and reason."""

import json

import pytest

from dovetail.cli import main

KEYS = ["system", "experiment", "published", "ours", "unit", "error", "tolerance", "status", "certainty", "source", "note"]


def test_rows_carry_the_documented_keys_and_a_status_that_follows_from_them(capsys):
    assert main(["study", "llm-in-a-flash", "sn40l", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)["rows"]
    assert {row["system"] for row in rows} >= {"llm-in-a-flash"}
    for row in rows:
        assert sorted(row) == sorted(KEYS)
        assert row["error"] == pytest.approx(row["ours"] / row["published"] - 1)
        if row["tolerance"] is not None:
            assert row["status"] == ("reproduced" if abs(row["error"]) <= row["tolerance"] else "not reproduced")


def test_the_table_shows_published_and_ours_side_by_side(capsys):
    assert main(["study", "llm_in_a_flash"]) == 0
    assert "2 196" in capsys.readouterr().out.replace(",", " ")


def test_an_unknown_study_is_refused_with_the_nearest_name(capsys):
    assert main(["study", "sn40"]) == 2
    assert "did you mean `sn40l`" in capsys.readouterr().err
