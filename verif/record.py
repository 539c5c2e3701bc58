"""Records what the torch kernels compute on this machine, so that every other machine can hold its goldens against it.

    python -m verif.record --device cuda --out verif/vectors [UNIT ...]     needs torch and numpy alone

For each unit: small cases with inputs and outputs, and the SHA-256 of the outputs of a large set whose inputs are drawn again
from the seed. `provenance.json` says for each unit on which device, with which versions, when and from which seed.
"""

from __future__ import annotations

import argparse
import difflib
import hashlib
import io
import json
import os
import platform
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from verif.errors import VerificationError
from verif.kernels import Kernel, Operands, Parameters, kernels
from verif.kernels.combinations import count

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


def digest(arrays: Iterable[np.ndarray[Any, Any]]) -> str:
    """SHA-256 of results, one after the other, as little-endian 64-bit integers."""
    found = hashlib.sha256()
    for array in arrays:
        found.update(np.ascontiguousarray(array, "<i8").tobytes())
    return found.hexdigest()


def seeded(kind: str, number: int) -> np.random.Generator:
    """The generator of set `number` of a kind; Philox draws the same on every machine."""
    return np.random.Generator(np.random.Philox([SEED, number, int.from_bytes(kind.encode()[:7], "big")]))


def large_set(kind: str, kernel: Kernel, number: int) -> Iterator[Operands]:
    """Operands of the large set of a kind's configuration `number`, round by round."""
    return kernel.large(number, seeded(kind, 1000 + number))


@dataclass(frozen=True, slots=True)
class Combinations:
    """Distinct operand combinations of an arithmetic core, and how many there are at all (None: more than can be listed)."""

    distinct: int
    space: int | None

    @property
    def exhaustive(self) -> bool:
        return self.distinct == self.space


def combinations(kind: str, kernel: Kernel, number: int) -> Combinations:
    """Those of the large set of a kind's configuration `number`."""
    parameters = kernel.parameters[number]
    found = [kernel.identities(parameters, *operands) for operands in large_set(kind, kernel, number)]
    return Combinations(count(found), kernel.space(parameters))


def check_device(device: str) -> None:
    """Raises `VerificationError` for a device that torch does not know or that is not there."""
    import torch

    if not re.fullmatch(r"cpu|cuda(:\d+)?", device):
        raise VerificationError(f"--device: expected cpu, cuda or cuda:N, not {device!r}")
    if device.startswith("cuda"):
        if not torch.cuda.is_available():
            build = "this torch is built without CUDA" if torch.version.cuda is None else "torch finds no GPU or no driver"
            raise VerificationError(f"--device {device}: no CUDA device here ({build}); record where there is one, or with --device cpu")
        number, count = int(device.partition(":")[2] or 0), torch.cuda.device_count()
        if number >= count:
            raise VerificationError(f"--device {device}: torch finds {count} CUDA device{'s' if count != 1 else ''}, numbered from 0")


def record(
    out: Path, device: str = "cpu", kinds: Iterable[str] = (), progress: Callable[[str], None] = lambda text: None
) -> dict[str, Any]:
    """Writes one `.npz` per unit and `provenance.json` to `out`; returns the provenance of what is in the folder.

    A file takes its place when it is complete, and is named in `provenance.json` only then. `progress` is told what is being
    computed. Raises `VerificationError` for an unknown unit or a device that is not there.
    """
    import torch

    check_device(device)
    known = kernels()
    chosen = list(dict.fromkeys(kinds)) or sorted(known)
    if unknown := [kind for kind in chosen if kind not in known]:
        close = difflib.get_close_matches(unknown[0], known, 1)
        hint = f"; did you mean `{close[0]}`?" if close else ""
        raise VerificationError(f"unknown unit {unknown[0]!r}, expected one of {', '.join(sorted(known))}{hint}")
    if out.exists() and not out.is_dir():
        raise VerificationError(f"--out: {out} is a file, expected a folder")
    path = out / "provenance.json"
    document = _document(path)
    out.mkdir(parents=True, exist_ok=True)
    where = origin(device)

    def run(kernel: Kernel, parameters: Parameters, operands: Operands) -> np.ndarray[Any, np.dtype[np.int64]]:
        tensors = (torch.from_numpy(np.ascontiguousarray(x, np.int64)).to(device) for x in operands)
        found: np.ndarray[Any, np.dtype[np.int64]] = kernel.compute(parameters, *tensors).cpu().numpy()
        return found

    for done, kind in enumerate(chosen):
        kernel, sets = known[kind], []
        arrays: dict[str, Any] = {}
        for number, parameters in enumerate(kernel.parameters):
            progress(f"{kind} ({done + 1} of {len(chosen)}), configuration {number + 1} of {len(kernel.parameters)}")
            rng = seeded(kind, number)
            for case, (m, n, k) in enumerate(SMALL):
                operands = kernel.draw(parameters, rng, m, n, k)
                arrays |= {f"{number}.{case}.in{i}": np.asarray(x, np.int64) for i, x in enumerate(operands)}
                arrays[f"{number}.{case}.out"] = run(kernel, parameters, operands)
            outputs = (run(kernel, parameters, large) for large in large_set(kind, kernel, number))
            found = {"parameters": parameters, "bulk": list(kernel.bulk), "bulk_sha256": digest(outputs)}
            sets.append(found | {"combinations": asdict(combinations(kind, kernel, number))})
        packed = io.BytesIO()
        np.savez_compressed(packed, **arrays)
        write_atomically(out / f"{kind}.npz", packed.getvalue())
        document["units"][kind] = {**where, "seed": SEED, "sets": sets, "sha256": file_digest(out / f"{kind}.npz")}
        write_atomically(path, (json.dumps(document, indent=1, sort_keys=True) + "\n").encode())
    return document


def _document(path: Path) -> dict[str, Any]:
    """The provenance in a folder, which units recorded now are added to. Raises `VerificationError` when it cannot be read."""
    if not path.is_file():
        return {"schema": SCHEMA, "units": {}}
    try:
        found: Any = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise VerificationError(f"{path}: not JSON ({error}); remove it to record into this folder") from None
    if not isinstance(found, dict) or found.get("schema") != SCHEMA or not isinstance(found.get("units"), dict):
        raise VerificationError(f"{path}: expected a provenance of schema {SCHEMA}; remove it to record into this folder")
    return dict(found)


def write_atomically(path: Path, data: bytes) -> None:
    """`data` as the file `path`, whole or not at all."""
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
        mask = os.umask(0)
        os.umask(mask)
        os.chmod(temporary, 0o666 & ~mask)  # what open() would have given
        os.replace(temporary, path)
    except BaseException:
        with suppress(FileNotFoundError):
            os.unlink(temporary)
        raise


def file_digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def origin(device: str) -> dict[str, Any]:
    """Where and with what something is recorded: device, card, driver, versions, date."""
    import torch

    cuda = device.startswith("cuda")
    return {
        "device": "gpu" if cuda else "cpu",
        "card": torch.cuda.get_device_name(device) if cuda else platform.machine(),
        "driver": _driver() if cuda else None,
        "cuda": torch.version.cuda if cuda else None,
        "capability": ".".join(map(str, torch.cuda.get_device_capability(device))) if cuda else None,
        "torch": torch.__version__,
        "numpy": np.__version__,
        "python": platform.python_version(),
        "date": datetime.now(UTC).date().isoformat(),
    }


def _driver() -> str | None:
    """Version of the NVIDIA driver; None where its tool is missing."""
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=30)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.split("\n")[0].strip() or None


def provenance(kind: str, folder: Path = FOLDER) -> dict[str, Any] | None:
    """Where a unit's vectors come from; None when there are none."""
    path = folder / "provenance.json"
    if not path.is_file():
        return None
    found: dict[str, Any] | None = json.loads(path.read_text(encoding="utf-8"))["units"].get(kind)
    return found


def recorded_combinations(kind: str) -> Combinations | None:
    """Those of all recorded configurations of a unit together; `space` is known when every configuration's is. None without vectors."""
    found = provenance(kind)
    if found is None:
        return None
    sets = [each["combinations"] for each in found["sets"]]
    spaces = [each["space"] for each in sets]
    return Combinations(sum(each["distinct"] for each in sets), None if None in spaces else sum(spaces))


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


def main() -> int:
    """The recorder without the command line of Dovetail, for a machine that has torch and numpy alone."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", type=Path, default=FOLDER)
    parser.add_argument("units", nargs="*")
    options = parser.parse_args()
    try:
        record(options.out, options.device, options.units, lambda text: print(text, file=sys.stderr))
    except VerificationError as error:
        print(f"record: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("record: interrupted; the units recorded so far are complete, no file was left half-written", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
