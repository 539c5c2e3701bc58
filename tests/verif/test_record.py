"""Recorded vectors: their origin is stated, and a file that is not the recorded one is refused."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from verif.conformance import units_with_rtl
from verif.errors import VerificationError
from verif.kernels import kernels
from verif.kernels.combinations import count, dot_steps, pairs, sums_and_pairs
from verif.record import FOLDER, combinations, load, provenance, record, seeded, write_atomically

torch = pytest.importorskip("torch")


@pytest.mark.parametrize("kind", units_with_rtl())
def test_every_unit_has_vectors_that_say_where_they_come_from(kind: str):
    origin = provenance(kind)
    assert origin is not None
    assert set(origin) >= {"device", "card", "torch", "numpy", "seed", "date", "sha256", "sets"}
    assert (origin["device"] == "gpu") == (origin["cuda"] is not None)
    assert origin["device"] == "gpu" or origin["driver"] is None


def test_recording_again_gives_the_same_vectors(tmp_path: Path):
    found = record(tmp_path, "cpu", ["olive_mac"])["units"]["olive_mac"]
    committed = provenance("olive_mac")
    assert committed is not None
    assert found["sets"] == committed["sets"]
    for ours, theirs in zip(load("olive_mac", tmp_path), load("olive_mac"), strict=True):
        assert np.array_equal(ours.result, theirs.result)


def test_kernels_and_recorder_need_torch_and_numpy_alone():
    code = (
        "import sys, verif.record, verif.kernels.integers, verif.kernels.floats, verif.kernels.coding;"
        "print([m for m in ('hw', 'dovetail', 'pydantic', 'typer', 'rich', 'yaml', 'amaranth', 'cocotb', 'ml_dtypes') if m in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"


def test_a_changed_file_of_vectors_is_refused(tmp_path: Path):
    shutil.copytree(FOLDER, tmp_path / "vectors")
    path = tmp_path / "vectors" / "lmul.npz"
    path.write_bytes(path.read_bytes() + b"\0")
    with pytest.raises(VerificationError, match=r"lmul.npz: not the recorded file.*record it again"):
        load("lmul", tmp_path / "vectors")


def test_missing_vectors_and_devices_are_named(tmp_path: Path):
    with pytest.raises(VerificationError, match=r"systolic: no vectors in .*dovetail record vectors"):
        load("systolic", tmp_path)
    with pytest.raises(VerificationError, match=r"unknown unit 'systolc'.*; did you mean `systolic`"):
        record(tmp_path, "cpu", ["systolc"])
    with pytest.raises(VerificationError, match="--device: expected cpu, cuda or cuda:N, not 'gpu'"):
        record(tmp_path, "gpu")
    if not torch.cuda.is_available():
        with pytest.raises(VerificationError, match="no CUDA device here"):
            record(tmp_path, "cuda")


def test_operands_are_drawn_alike_everywhere():
    """Philox of the seed, the unit's name and the number of the set: three numbers pinned."""
    assert seeded("lmul", 0).integers(0, 1000, 3).tolist() == seeded("lmul", 0).integers(0, 1000, 3).tolist()
    assert seeded("lmul", 0).integers(0, 1 << 40) != seeded("lmul", 1).integers(0, 1 << 40)


def test_provenance_is_plain_json():
    document = json.loads((FOLDER / "provenance.json").read_text())
    assert document["schema"] == 1


def test_the_recorder_runs_by_itself_and_ends_with_a_message_for_a_mistake(tmp_path: Path):
    command = [sys.executable, "-m", "verif.record", "--out", str(tmp_path)]
    done = subprocess.run([*command, "lmull"], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("record: unknown unit 'lmull'")
    assert list(tmp_path.iterdir()) == []


def test_a_provenance_that_is_not_ours_is_not_overwritten(tmp_path: Path):
    (tmp_path / "provenance.json").write_text("[1, 2]")
    with pytest.raises(VerificationError, match="expected a provenance of schema 1; remove it"):
        record(tmp_path, "cpu", ["olive_mac"])
    assert (tmp_path / "provenance.json").read_text() == "[1, 2]"
    (tmp_path / "file").write_text("")
    with pytest.raises(VerificationError, match="is a file, expected a folder"):
        record(tmp_path / "file", "cpu", ["olive_mac"])


def test_an_interrupted_recording_leaves_no_file_half_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    import verif.record as recorder

    def interrupted(*arguments: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(recorder.os, "replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_atomically(tmp_path / "vectors.npz", b"data")
    assert list(tmp_path.iterdir()) == []


# What is counted --------------------------------------------------------------------------------------------------------------
def test_combinations_are_counted_as_sets_of_tuples_count_them():
    rng = np.random.default_rng(0)
    left, right = rng.integers(-2, 2, (5, 7)), rng.integers(0, 3, (7, 4))
    steps = set()
    padded_left, padded_right = np.pad(left, ((0, 0), (0, 2))), np.pad(right, ((0, 2), (0, 0)))
    for m in range(5):
        for n in range(4):
            for k in (0, 3, 6):
                steps.add((*padded_left[m, k : k + 3].tolist(), *padded_right[k : k + 3, n].tolist()))
    assert count([dot_steps(left, right, 3)]) == len(steps)
    assert count([pairs(left, right)]) == len({(int(left[m, k]), int(right[k, n])) for m in range(5) for n in range(4) for k in range(7)})
    triples = {
        (int(left[m, k]), int(right[k, n]), int(left[m, :k] @ right[:k, n]) % 16) for m in range(5) for n in range(4) for k in range(7)
    }
    assert count([sums_and_pairs(left, right, 4)]) == len(triples)
    assert count([pairs(left, right), pairs(left, right)]) == count([pairs(left, right)])


def test_scaled_codes_of_a_large_set_are_all_there_are():
    kernel = kernels()["dequant_stream"]
    for number in range(3):
        found = combinations("dequant_stream", kernel, number)
        assert found.exhaustive
        assert found.space == 1 << (3 + number + 8)
