from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from dovetail.cli import main
from tests.explore.cases import ROOT, SPEC


@dataclass(frozen=True)
class Run:
    status: int
    out: str
    err: str


Command = Callable[..., Run]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], spec: Path, monkeypatch: pytest.MonkeyPatch) -> Command:
    """Runs `dovetail sweep` beside the study `small.yaml`."""
    monkeypatch.chdir(spec.parent)

    def command(*arguments: str) -> Run:
        capsys.readouterr()
        status = main(["sweep", *arguments])
        captured = capsys.readouterr()
        return Run(status, captured.out, captured.err)

    return command


def test_a_sweep_prints_its_front_and_writes_what_was_asked_for(run: Command, tmp_path: Path) -> None:
    result = run("small.yaml", "--workers", "0", "--report", "r.html", "--parquet", "t.parquet", "--sensitivity")
    assert result.status == 0
    assert result.out.startswith("small: 9 designs, ")
    assert "sensitivity of latency:" in result.out
    assert "report: r.html" in result.err
    assert {"r.html", "r-points", "t.parquet", "small.sqlite"} <= {p.name for p in tmp_path.iterdir()}


def test_json_is_one_document_and_the_second_run_evaluates_nothing(run: Command) -> None:
    first = run("small.yaml", "--workers", "0", "--json")
    document = json.loads(first.out)
    assert len(document["points"]) == 9
    assert document["pareto"]
    again = run("small.yaml", "--workers", "0", "--resume")
    assert again.status == 0
    assert "0 evaluations had to be run" in again.err


def test_a_script_is_a_study_too(run: Command, tmp_path: Path) -> None:
    (tmp_path / "study.py").write_text(
        "from dovetail.explore import Exploration, Space, Workload\nfrom hw.devices import load\n\n\n"
        "def design(rows):\n    return load('systolic-32').with_settings({'units.array.rows': rows})\n\n\n"
        "study = Exploration.of(design, space=Space.of({'rows': [8, 16, 32]}), workloads=[Workload('gemm:64x64x64:int8')], name='script')\n"
        "search = {'method': 'random', 'evaluations': 2}\n"
    )
    result = run("study.py", "--workers", "0", "--json")
    assert result.status == 0, result.err
    assert len(json.loads(result.out)["points"]) == 2


def test_two_studies_are_compared(run: Command, tmp_path: Path) -> None:
    (tmp_path / "other.yaml").write_text(SPEC.replace("name: small", "name: other").replace("[8, 16, 32]", "[4, 8]"))
    result = run("small.yaml", "--compare", "other.yaml", "--workers", "0", "--report", "r.html")
    assert "small against other:" in result.out
    assert "small against other:" in (tmp_path / "r.html").read_text()


def test_proposals_of_a_fitted_model_are_estimated(run: Command, tmp_path: Path) -> None:
    text = SPEC.replace("[8, 16, 32]", "{from: 4, to: 40, step: 4}") + "search: {method: random, evaluations: 12}\n"
    (tmp_path / "small.yaml").write_text(text)
    result = run("small.yaml", "--workers", "0", "--surrogate", "5")
    assert result.out.startswith("small: 17 designs")
    assert "error on held-out points" in result.out


def test_dotted_parameters_are_settings(run: Command, tmp_path: Path) -> None:
    (tmp_path / "small.yaml").write_text(
        "name: small\ndevice: systolic-32\nparameters: {units.array.rows: [8, 16]}\nworkloads: {workload: 'gemm:64x64x64:int8'}\n"
    )
    document = json.loads(run("small.yaml", "--workers", "0", "--json").out)
    assert [p["parameters"] for p in document["points"]] == [{"units.array.rows": 8}, {"units.array.rows": 16}]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("[8, 16, 32]", "[]"), "parameter 'size': the range is empty"),
        (("from: 16 KiB", "from: 1 MiB"), "parameters.sram: the range is empty, from 1 MiB is above to 64 KiB"),
        (("factor: 2", "factr: 2"), "parameters.sram: unknown field 'factr'"),
        (('"{size}"', '"{sizes}"'), "unknown parameter 'sizes', expected one of size, sram; did you mean `size`"),
        (("  size: [8, 16, 32]", "  size: [8]\n  unused: [1, 2]"), "parameters.unused: changes nothing"),
        (("latency, area", "latency, aera"), "unknown objective 'aera'"),
        (("latency, area", "latency, price"), "price of systolic-32 is not modelled: its description states no `price`"),
        (("latency, area", "latency, energy"), "energy of systolic-32 is not modelled"),
        (("device: systolic-32", "device: systolic-33"), "did you mean `systolic-32`"),
        (("gemm:256x512x256:int8", "llama-2-7"), "did you mean `llama-2-7b`"),
        (("label: product", "lable: product"), "workloads.0: unknown field 'lable'"),
        (("name: small", "nmae: small"), "a study: unknown field 'nmae'"),
        (("units.array.rows:", "units.array.rowz:"), "units.array has no 'rowz'"),
        (("workloads:", "search: {method: nsga3}\nworkloads:"), "search.method: expected one of grid"),
        (("workloads:", "search: {seed: 3}\nworkloads:"), "a grid takes no seed"),
        (("workloads:", "schema: 7\nworkloads:"), "schema 7 cannot be read, expected 1"),
        (("workloads:", "constraints: [area < 3]\nworkloads:"), "use <= "),
        (("device: systolic-32\n", ""), "missing field 'device'"),
        (("[8, 16, 32]", "[8, 16"), "not valid YAML"),
    ],
)
def test_a_mistake_in_a_study_ends_with_status_2_and_one_message(
    run: Command, tmp_path: Path, change: tuple[str, str], message: str
) -> None:
    assert change[0] in SPEC
    (tmp_path / "small.yaml").write_text(SPEC.replace(*change))
    result = run("small.yaml", "--workers", "0")
    # a device path or a device that does not exist is a reason of every point, for it may exist for others
    said = result.out + result.err
    assert message in said
    assert "Traceback" not in said
    if result.status != 0:
        assert result.status == 2
        assert result.out == ""


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("missing.yaml",), "missing.yaml: no such file; expected a study"),
        (("small.txt",), "no such file"),
        (("small.yaml", "--resume"), "--resume: there is no store 'small.sqlite'"),
        (("small.yaml", "--workers", "-1"), "workers: expected a whole number of at least 0"),
        (("small.yaml", "--workers", "2", "--scheduler", "tcp://x"), "either workers or a scheduler"),
        (("small.yaml", "--store", "missing/s.sqlite"), "there is no folder"),
        (("small.yaml", "--report", "missing/r.html"), "--report: missing/r.html: cannot be written"),
        (("small.yaml", "--parquet", "missing/t"), "--parquet: missing/t: cannot be written"),
        (("small.yaml", "--surrogate", "0"), "--surrogate: expected a whole number of at least 1"),
        (("small.yaml", "--load", "nothing.py"), "--load: nothing.py: no such file"),
        (("small.yaml", "--resum"), "--resume"),
    ],
)
def test_a_mistake_on_the_command_line_ends_with_status_2_and_one_message(run: Command, arguments: tuple[str, ...], message: str) -> None:
    result = run(*arguments)
    assert result.status == 2
    assert result.out == ""
    assert message in result.err
    assert "Traceback" not in result.err


def test_resuming_a_study_that_was_not_begun_names_those_that_were(run: Command, tmp_path: Path) -> None:
    run("small.yaml", "--workers", "0", "--store", "s.sqlite")
    (tmp_path / "other.yaml").write_text(SPEC.replace("name: small", "name: other"))
    result = run("other.yaml", "--resume", "--store", "s.sqlite")
    assert result.status == 2
    assert "study 'other' was not begun in s.sqlite (begun there: small)" in result.err


@pytest.mark.parametrize("text", ["study = 3\n", "raise ValueError('no')\n", "def (\n"])
def test_a_script_without_a_study_is_refused_with_its_line(run: Command, tmp_path: Path, text: str) -> None:
    (tmp_path / "s.py").write_text(text)
    result = run("s.py")
    assert result.status == 2
    assert "s.py" in result.err


def test_help_and_other_verbs_do_not_load_the_libraries_of_exploration() -> None:
    code = "import sys, dovetail.cli; print([m for m in ('optuna', 'sqlalchemy', 'distributed', 'pyarrow', 'torch') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_sweep_and_optimise_are_names_of_the_front_door() -> None:
    import dovetail

    names: Any = dovetail.__all__
    assert {"sweep", "optimise"} <= set(names)
    assert callable(dovetail.sweep)
    assert callable(dovetail.optimise)
