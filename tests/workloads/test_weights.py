"""Safetensors files: what is whole is read as the format's own writer wrote it, what is not is refused with its reason."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from workloads.errors import WorkloadError
from workloads.weights import WeightFile

safetensors = pytest.importorskip("safetensors.numpy")


def write(path: Path, header: Any, data: bytes = b"", length: int | None = None) -> WeightFile:
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes((len(raw) if length is None else length).to_bytes(8, "little") + raw + data)
    return WeightFile(path)


def test_tensors_are_those_that_the_released_writer_wrote(tmp_path: Path):
    tensors = {
        "a.weight": np.random.default_rng(0).normal(size=(3, 5)).astype(np.float32),
        "b.weight": np.arange(6, dtype=np.float16).reshape(2, 3),
        "c": np.arange(4, dtype=np.int64),
        "empty": np.zeros((0, 7), np.float32),
    }
    safetensors.save_file(tensors, tmp_path / "w.safetensors", metadata={"format": "pt"})
    file = WeightFile(tmp_path / "w.safetensors")
    assert file.tensors.keys() == tensors.keys()
    for name, values in tensors.items():
        assert np.array_equal(file.load(name), values)
        assert file.load(name).dtype == values.dtype
    assert [t.name for t in file.matching(())] == ["a.weight", "b.weight"]
    assert [t.name for t in file.matching(("b*",))] == ["b.weight"]


@pytest.mark.parametrize(("name", "kind"), [("BF16", ml_dtypes.bfloat16), ("F8_E4M3", ml_dtypes.float8_e4m3fn)])
def test_the_types_of_weights_that_numpy_lacks_are_read(tmp_path: Path, name: str, kind: Any):
    values = np.linspace(-3, 3, 8).astype(kind).reshape(2, 4)
    size = values.nbytes
    file = write(tmp_path / "w", {"w": {"dtype": name, "shape": [2, 4], "data_offsets": [0, size]}}, values.tobytes())
    assert np.array_equal(file.load("w").astype(np.float32), values.astype(np.float32))


GOOD = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}


@pytest.mark.parametrize(
    ("header", "data", "message"),
    [
        (b"{", b"", "not valid JSON"),
        (b"\xff\xfe", b"", "not valid JSON"),
        ([1], b"", "the header is list, expected an object of tensors"),
        ({"w": 5}, b"", "expected dtype, shape and two data_offsets, found 5"),
        ({"w": {"dtype": "F32", "shape": [2]}}, b"", "expected dtype, shape and two data_offsets"),
        ({"w": {**GOOD, "dtype": "Q4"}}, b"\0" * 8, "unknown type 'Q4', expected one of F64, F32"),
        ({"w": {**GOOD, "shape": [3]}}, b"\0" * 8, r"F32 \[3\] needs 12 bytes, has 8"),
        ({"w": {**GOOD, "shape": [-2]}}, b"\0" * 8, "whole numbers of at least 0"),
        ({"w": {**GOOD, "shape": [True, 2]}}, b"\0" * 8, "whole numbers"),
        ({"w": {**GOOD, "data_offsets": [8, 0]}}, b"\0" * 8, "has -8"),
        ({"w": {**GOOD, "data_offsets": [4, 12]}}, b"\0" * 12, "leaves 4 bytes before it unused"),
        ({"w": GOOD, "v": {**GOOD, "data_offsets": [4, 12]}}, b"\0" * 12, "overlaps the one before"),
        ({"w": GOOD}, b"\0" * 4, "the tensors take 8 bytes, the file has 4: it is damaged or cut off"),
        ({"w": GOOD}, b"\0" * 12, "the file has 12"),
    ],
)
def test_damaged_files_are_refused_with_the_reason(tmp_path: Path, header: Any, data: bytes, message: str):
    with pytest.raises(WorkloadError, match=message):
        _ = write(tmp_path / "w.safetensors", header, data).tensors


def test_a_cut_header_and_a_missing_file_are_refused(tmp_path: Path):
    with pytest.raises(WorkloadError, match=r"cut off: a header of 5000 bytes in a file of 10"):
        _ = write(tmp_path / "w", b"{}", length=5000).tensors
    (tmp_path / "short").write_bytes(b"abc")
    with pytest.raises(WorkloadError, match="3 bytes are too few"):
        _ = WeightFile(tmp_path / "short").tensors
    with pytest.raises(WorkloadError, match="cannot be read"):
        _ = WeightFile(tmp_path / "none").tensors
    with pytest.raises(WorkloadError, match="cannot be read"):
        _ = WeightFile(tmp_path).tensors


def test_unknown_names_and_patterns_are_refused(tmp_path: Path):
    file = write(tmp_path / "w", {"q.weight": {**GOOD, "shape": [1, 2]}}, b"\0" * 8)
    with pytest.raises(WorkloadError, match=r"no tensor 'q_weight'; did you mean `q.weight`"):
        file.load("q_weight")
    with pytest.raises(WorkloadError, match=r"no weight .* matches 'k.weight'"):
        list(file.matching(("k.weight",)))
