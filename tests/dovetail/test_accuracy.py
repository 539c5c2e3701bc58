"""`dovetail show` of weights: the error table, its JSON, and mistakes."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from dovetail.cli import main

safetensors = pytest.importorskip("safetensors.numpy")


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    path = tmp_path / "w.safetensors"
    values = {f"layers.{i}.{name}.weight": rng.normal(0, 0.02, (64, 256)).astype(np.float32) for i in range(2) for name in ("q", "down")}
    safetensors.save_file({**values, "norm.weight": np.ones(64, np.float32)}, path)
    return path


def rows(capsys: pytest.CaptureFixture[str], *arguments: str) -> list[dict]:
    assert main(["show", *arguments, "--json"]) == 0
    return json.loads(capsys.readouterr().out)["rows"]


def test_every_weight_has_a_row_per_format(weights: Path, capsys):
    found = rows(capsys, str(weights), "--weights", "bitmod3,int4-g128", "--weights", "fp8")
    assert len(found) == 4 * 3  # the norm is a vector and keeps its format
    first = found[0]
    assert (first["tensor"], first["format"], first["shape"]) == ("layers.0.down.weight", "bitmod3", [64, 256])
    assert first["bits_per_value"] == first["charged_bits"] == 3 + 10 / 128
    assert first["size_bytes"] == 64 * 256 * (3 + 10 / 128) / 8
    assert 13 < first["sqnr_db"] < 15


def test_error_is_that_of_the_python_interface(weights: Path, capsys):
    from workloads.quantisers import errors, quantiser
    from workloads.weights import WeightFile

    values = WeightFile(weights).load("layers.1.q.weight")
    expected = errors(values, quantiser("olive4").round_trip(values))
    (found,) = rows(capsys, str(weights), "--weights", "olive4", "--tensor", "*1.q*")
    assert (found["sqnr_db"], found["max_abs_error"], found["cosine"]) == (expected.sqnr_db, expected.max_abs_error, expected.cosine)


def test_the_table_and_the_list_of_tensors_are_printed(weights: Path, capsys):
    assert main(["show", str(weights)]) == 0
    assert "norm.weight" in capsys.readouterr().out
    assert main(["show", str(weights), "--weights", "dfloat11"]) == 0
    assert "exact" not in capsys.readouterr().err
    assert main(["show", str(weights), "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)["tensors"]) == 5


def test_random_tensors_are_the_same_for_the_same_seed(capsys):
    one, two, other = (rows(capsys, "student-t:64x256", "--weights", "kivi2", "--seed", seed) for seed in ("1", "1", "2"))
    assert one == two != other
    assert [row["format"] for row in one] == ["kivi2 keys", "kivi2 values"]


def test_all_formats_at_once(capsys):
    from workloads.quantisers import quantisable

    assert {row["format"].split()[0] for row in rows(capsys, "gaussian:32x128", "--weights", "all")} == set(quantisable())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["gaussian:64x64"], "name at least one format with --weights"),
        (["gaussian:64x64", "--weights", "bitmod5"], "did you mean `bitmod"),
        (["gaussian:64x64", "--weights", "bitmod3"], "groups of 128 do not divide"),
        (["gaussian:64x64", "--weights", "int64"], "no quantiser makes it"),
        (["gaussian:64", "--weights", "kivi2"], "expected a cache"),
        (["gaussian:0x4", "--weights", "fp8"], "expected sizes such as"),
        (["gaussian:4x4", "--weights", "fp8", "--tensor", "*"], "has no name to match"),
        (["devices", "--weights", "fp8"], "are for safetensors files and random tensors"),
        (["missing.safetensors"], "cannot be read"),
    ],
)
def test_mistakes_are_one_message_and_status_2(arguments: list[str], message: str, capsys):
    assert main(["show", *arguments]) == 2
    captured = capsys.readouterr()
    assert message in captured.err
    assert captured.err.count("\n") == 1
    assert captured.out == ""


def test_mistakes_in_files_name_the_tensor(weights: Path, tmp_path: Path, capsys):
    assert main(["show", str(weights), "--weights", "fp8", "--tensor", "*k*"]) == 2
    assert "matches '*k*'" in capsys.readouterr().err
    assert main(["show", str(weights), "--weights", "fp8", "--seed", "1"]) == 2
    assert "--seed is for random tensors" in capsys.readouterr().err
    bad = tmp_path / "bad.safetensors"
    safetensors.save_file({"w.weight": np.full((2, 32), np.inf, np.float32)}, bad)
    assert main(["show", str(bad), "--weights", "fp8"]) == 2
    assert "w.weight: format fp8: 64 of 64 values are NaN or infinite" in capsys.readouterr().err
    bad.write_bytes(bad.read_bytes()[:-3])
    assert main(["show", str(bad), "--weights", "fp8"]) == 2
    assert "damaged or cut off" in capsys.readouterr().err
    safetensors.save_file({"norm": np.ones(4, np.float32)}, bad)
    assert main(["show", str(bad), "--weights", "fp8"]) == 2
    assert "no weights to quantise" in capsys.readouterr().err
