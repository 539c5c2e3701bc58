"""The verbs `verify` and `units`, through typer as the command line runs them."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

pytest.importorskip("bitwuzla", reason="proofs need the extra `rtl`")

from dovetail.units import units
from dovetail.verify import verify
from verif.conformance import units_with_rtl
from verif.errors import VerificationError

EXAMPLE = Path(__file__).parents[2] / "examples" / "new_unit.py"

app = typer.Typer()
app.command()(verify)
app.command()(units)


def run(*arguments: str) -> Any:
    result = CliRunner().invoke(app, arguments, standalone_mode=False)
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


@pytest.fixture
def registry():
    """Leaves no unit of an example behind."""
    from hw import UNITS

    before = dict(UNITS)
    yield
    UNITS.clear()
    UNITS.update(before)


def test_verify_reports_exact_cycles_and_proofs_as_json():
    result = run("verify", "ternary_row", "--simulator", "pysim", "--formal", "--json")
    (row,) = json.loads(result.stdout)["units"]
    assert (row["name"], row["status"], row["simulator"], row["synth"]) == ("ternary_row", "pass", "pysim", None)
    assert row["cycles_exact"] == row["cycles_checked"] >= 200
    assert row["rtl_cycles"] == row["model_cycles"] > 0
    assert row["formal"] == dict.fromkeys(("sum_of_signed_activations", "stable_while_stalled", "stalled_units_stand_still"), "proved")
    assert result.return_value == 0


def test_a_failing_unit_ends_with_status_one_and_says_where(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    from hw.units import TernaryRow

    original = TernaryRow.cycles
    monkeypatch.setattr(TernaryRow, "cycles", lambda self, work: original(self, work) + 1)
    result = run("verify", "ternary_row", "--simulator", "pysim", "--shapes", "4", "--junit", str(tmp_path / "out.xml"), "--json")
    (row,) = json.loads(result.stdout)["units"]
    assert (result.return_value, row["status"], row["cycles_exact"]) == (1, "fail", 0)
    assert "the model says" in row["failures"][0]
    suite = ElementTree.parse(tmp_path / "out.xml").getroot()
    assert (suite.get("tests"), suite.get("failures")) == ("1", "1")


def test_the_example_of_a_unit_outside_the_tree_passes_all_checks(registry: None):
    assert len(EXAMPLE.read_text().splitlines()) <= 120
    result = run("verify", "--load", str(EXAMPLE), "my_unit", "--simulator", "pysim", "--formal", "--json")
    (row,) = json.loads(result.stdout)["units"]
    assert row["status"] == "pass"
    assert row["cycles_exact"] == row["cycles_checked"] >= 200
    assert row["formal"]["largest_of_all"] == "proved"


def test_units_lists_every_face_as_it_is():
    rows = {row["name"]: row for row in json.loads(run("units", "--json").stdout)["units"]}
    keys = {"name", "cost", "golden", "vectors", "rtl", "cycles_verified", "proved", "synthesised"}
    assert all(set(row) == keys for row in rows.values())
    assert all(rows[kind]["rtl"] and rows[kind]["golden"] and rows[kind]["cost"] and rows[kind]["vectors"] for kind in units_with_rtl())
    assert rows["tensor_core"] == {**dict.fromkeys(keys, False), "name": "tensor_core", "cost": True, "vectors": None}
    text = run("units").stdout
    assert all(kind in text for kind in rows)


def test_an_outcome_of_other_sources_is_no_outcome(tmp_path: Path):
    from verif.status import FILE, fingerprint, verified

    document = json.loads(FILE.read_text())
    document["units"]["lmul"]["fingerprint"] = fingerprint("lmul")
    (tmp_path / "same.json").write_text(json.dumps(document))
    document["units"]["lmul"]["fingerprint"] = "0" * 64
    (tmp_path / "other.json").write_text(json.dumps(document))
    assert verified("lmul", tmp_path / "same.json") is not None
    assert verified("lmul", tmp_path / "other.json") is None
    assert verified("lmul", tmp_path / "missing.json") is None


def test_mistakes_are_named():
    with pytest.raises(VerificationError, match=r"unknown unit 'lmull', .*did you mean `lmul`"):
        run("verify", "lmull")
    with pytest.raises(VerificationError, match="expected one of icarus, verilator, pysim, not 'icarsu'; did you mean `icarus`"):
        run("verify", "lmul", "--simulator", "icarsu")
