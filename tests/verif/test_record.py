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
from verif.record import FOLDER, load, provenance, record, seeded

torch = pytest.importorskip("torch")


@pytest.mark.parametrize("kind", units_with_rtl())
def test_every_unit_has_vectors_that_say_where_they_come_from(kind: str):
    origin = provenance(kind)
    assert origin is not None
    assert set(origin) >= {"device", "card", "torch", "numpy", "seed", "date", "sha256", "sets"}
    assert (origin["device"] == "gpu") == (origin["cuda"] is not None)


def test_recording_again_gives_the_same_vectors(tmp_path: Path):
    found = record(tmp_path, "cpu", ["ternary_row"])["units"]["ternary_row"]
    committed = provenance("ternary_row")
    assert committed is not None
    assert found["sets"] == committed["sets"]
    for ours, theirs in zip(load("ternary_row", tmp_path), load("ternary_row"), strict=True):
        assert np.array_equal(ours.result, theirs.result)


def test_kernels_and_recorder_need_torch_and_numpy_alone():
    code = (
        "import sys, verif.record, verif.kernels.integers, verif.kernels.floats, verif.kernels.coding;"
        "print([m for m in ('hw', 'pydantic', 'yaml', 'amaranth', 'cocotb', 'ml_dtypes') if m in sys.modules])"
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
    with pytest.raises(VerificationError, match="unknown unit 'systolc'"):
        record(tmp_path, "cpu", ["systolc"])
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
