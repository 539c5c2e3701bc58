"""The identity of the model: a point is only as good as the code that computed it."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from functools import lru_cache
from importlib import metadata
from pathlib import Path

_ROOT = Path(__file__).parents[2]
_MODEL = ("workloads", "hw", "mapper", "sim")
_FRONT = ("dovetail/estimate.py", "dovetail/report.py", "dovetail/explore/evaluate.py", "dovetail/explore/workload.py")


def _digest(files: Iterable[Path]) -> str:
    total = hashlib.sha256(package_version().encode())
    for path in sorted(files):
        total.update(str(path.relative_to(_ROOT)).encode())
        total.update(path.read_bytes())
    return total.hexdigest()


@lru_cache(maxsize=1)
def package_version() -> str:
    """The installed version, or `source` where the tree is run without installation."""
    try:
        return metadata.version("dovetail")
    except metadata.PackageNotFoundError:
        return "source"


@lru_cache(maxsize=1)
def model_version() -> str:
    """SHA-256 of the package version and of every source file that a point's result follows from."""
    files = [path for room in _MODEL for path in (_ROOT / room).rglob("*.py")]
    return _digest([*files, *(_ROOT / name for name in _FRONT)])
