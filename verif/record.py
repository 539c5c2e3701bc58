"""Records what the torch kernels compute on this machine, so that every other machine can hold its goldens against it.

    python -m verif.record --device cuda --out verif/vectors     needs torch and numpy alone

For each unit: small cases with inputs and outputs, and the SHA-256 of the outputs of a large set whose inputs are drawn again
from the seed. `provenance.json` says for each unit on which device, with which versions, when and from which seed.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import platform
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from verif.errors import VerificationError
from verif.kernels import Kernel, Operands, Parameters, kernels

SCHEMA = 1
SEED = 11
FOLDER = Path(__file__).parent / "vectors"
SMALL = ((1, 1, 1), (2, 3, 5), (5, 4, 33))
"""(m, n, k) of the small cases."""


@dataclass(frozen=True, slots=True)
class Vector:
    """One small recorded case."""

    parameters: Parameters
    operands: Operands
    result: np.ndarray[Any, np.dtype[np.int64]]


def digest(array: np.ndarray[Any, Any]) -> str:
    """SHA-256 of a result as little-endian 64-bit integers."""
    return hashlib.sha256(np.ascontiguousarray(array, "<i8").tobytes()).hexdigest()


def seeded(kind: str, number: int) -> np.random.Generator:
    """The generator of set `number` of a kind; Philox draws the same on every machine."""
    return np.random.Generator(np.random.Philox([SEED, number, int.from_bytes(kind.encode()[:7], "big")]))


def bulk_operands(kind: str, kernel: Kernel, number: int) -> Operands:
    """Operands of the large set of a kind's configuration `number`."""
    return kernel.draw(kernel.parameters[number], seeded(kind, 1000 + number), *kernel.bulk)


def record(out: Path, device: str = "cpu", kinds: Iterable[str] = ()) -> dict[str, Any]:
    """Writes one `.npz` per unit and `provenance.json` to `out`; returns the provenance.

    Raises `VerificationError` for an unknown unit or a device that is not there.
    """
    import torch

    if device.startswith("cuda") and not torch.cuda.is_available():
        raise VerificationError("no CUDA device here; record on a machine with one, or with --device cpu")
    known = kernels()
    chosen = list(kinds) or sorted(known)
    if unknown := [kind for kind in chosen if kind not in known]:
        raise VerificationError(f"unknown unit {unknown[0]!r}, expected one of {', '.join(sorted(known))}")
    out.mkdir(parents=True, exist_ok=True)
    path = out / "provenance.json"
    origin: dict[str, Any] = {"schema": SCHEMA, "units": {}}
    if path.is_file():
        origin = json.loads(path.read_text(encoding="utf-8"))

    def run(kernel: Kernel, parameters: Parameters, operands: Operands) -> np.ndarray[Any, np.dtype[np.int64]]:
        tensors = (torch.from_numpy(np.ascontiguousarray(x, np.int64)).to(device) for x in operands)
        found: np.ndarray[Any, np.dtype[np.int64]] = kernel.compute(parameters, *tensors).cpu().numpy()
        return found

    for kind in chosen:
        kernel, sets = known[kind], []
        arrays: dict[str, Any] = {}
        for number, parameters in enumerate(kernel.parameters):
            rng = seeded(kind, number)
            for case, (m, n, k) in enumerate(SMALL):
                operands = kernel.draw(parameters, rng, m, n, k)
                arrays |= {f"{number}.{case}.in{i}": np.asarray(x, np.int64) for i, x in enumerate(operands)}
                arrays[f"{number}.{case}.out"] = run(kernel, parameters, operands)
            large = bulk_operands(kind, kernel, number)
            sets.append({"parameters": parameters, "bulk": list(kernel.bulk), "bulk_sha256": digest(run(kernel, parameters, large))})
        np.savez_compressed(out / f"{kind}.npz", **arrays)
        origin["units"][kind] = {**_origin(device), "seed": SEED, "sets": sets, "sha256": file_digest(out / f"{kind}.npz")}
    path.write_text(json.dumps(origin, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    return origin


def file_digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _origin(device: str) -> dict[str, Any]:
    import torch

    cuda = device.startswith("cuda")
    return {
        "device": "gpu" if cuda else "cpu",
        "card": torch.cuda.get_device_name() if cuda else platform.machine(),
        "cuda": torch.version.cuda if cuda else None,
        "capability": ".".join(map(str, torch.cuda.get_device_capability())) if cuda else None,
        "torch": torch.__version__,
        "numpy": np.__version__,
        "python": platform.python_version(),
        "date": datetime.now(UTC).date().isoformat(),
    }


def provenance(kind: str, folder: Path = FOLDER) -> dict[str, Any] | None:
    """Where a unit's vectors come from; None when there are none."""
    path = folder / "provenance.json"
    if not path.is_file():
        return None
    found: dict[str, Any] | None = json.loads(path.read_text(encoding="utf-8"))["units"].get(kind)
    return found


def load(kind: str, folder: Path = FOLDER) -> list[Vector]:
    """The small recorded cases of a unit. Raises `VerificationError` when they are missing or not the ones that were recorded."""
    origin, path = provenance(kind, folder), folder / f"{kind}.npz"
    if origin is None or not path.is_file():
        raise VerificationError(f"{kind}: no vectors in {folder}; record them with: dovetail record vectors --out {folder}")
    if file_digest(path) != origin["sha256"]:
        raise VerificationError(f"{path}: not the recorded file, its SHA-256 differs from that in provenance.json; record it again")
    vectors = []
    with np.load(path) as arrays:
        for number, group in enumerate(origin["sets"]):
            for case in range(len(SMALL)):
                count = sum(name.startswith(f"{number}.{case}.in") for name in arrays.files)
                operands = tuple(arrays[f"{number}.{case}.in{i}"] for i in range(count))
                vectors.append(Vector(group["parameters"], operands, arrays[f"{number}.{case}.out"]))
    return vectors


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", type=Path, default=FOLDER)
    parser.add_argument("units", nargs="*")
    options = parser.parse_args()
    record(options.out, options.device, options.units)
