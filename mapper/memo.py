"""Choices kept on disk, so that the same operator on the same unit and memories is searched once.

A file is named after the digest of everything its content follows from: shape and formats of the operator, the description of
the device (names, prices and sources left out), the objective, and the sources of the mapper. Files appear whole or not at all,
several processes may use one folder, and a damaged file counts as absent. `DOVETAIL_MEMO=off` turns it off,
`DOVETAIL_CACHE_BYTES` limits its size.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import sys
import tempfile
from collections import OrderedDict
from collections.abc import Hashable
from contextlib import suppress
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from hw.device import Device
from hw.memory import Scratchpad
from mapper.errors import CapacityError, MappingError
from mapper.mapping import OperatorMapping
from mapper.search import Choice, Explored, Space, replay
from mapper.target import Site, Target
from workloads.sources import cache_folder

CACHE_BYTES = 256 * 2**20
"""Size of what is kept on disk beyond which the least recently used files go; `DOVETAIL_CACHE_BYTES` overrides it."""

SCHEMA = 1

IRRELEVANT = frozenset({"name", "title", "source", "power", "price", "process_nm", "constants"})
"""Fields of a description that no mapping depends on."""

_ROOT = Path(__file__).parents[1]
_LOG = logging.getLogger(__name__)


def _limit() -> int:
    text = os.environ.get("DOVETAIL_CACHE_BYTES", str(CACHE_BYTES))
    if not text.isdecimal():
        raise MappingError(f"DOVETAIL_CACHE_BYTES: expected a number of bytes such as {CACHE_BYTES}, found {text!r}")
    return int(text)


class Shelf:
    """Texts under their digests, as files below `folder`, least recently used first out."""

    def __init__(self, folder: Path, limit_bytes: int | None = None) -> None:
        self._folder: Path | None = folder
        self._limit = limit_bytes if limit_bytes is not None else _limit()
        self._written = 0

    def path(self, digest: str) -> Path | None:
        """Where the text of a digest lies; None once writing has failed."""
        return self._folder / digest[:2] / f"{digest}.json" if self._folder is not None else None

    def read(self, digest: str) -> str | None:
        """The text kept under a digest, None where there is none. It counts as used now."""
        if (path := self.path(digest)) is None:
            return None
        try:
            text = path.read_text(encoding="utf-8")
            os.utime(path)
        except FileNotFoundError:
            return None
        except (OSError, UnicodeDecodeError) as error:
            _LOG.warning("%s is ignored: %s", path, error)
            return None
        return text

    def write(self, digest: str, text: str) -> None:
        """Keeps a text: all of it or, where the folder cannot be written, nothing from then on."""
        if (path := self.path(digest)) is None:
            return
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            handle, temporary = tempfile.mkstemp(prefix=".", dir=path.parent)
            try:
                with os.fdopen(handle, "w", encoding="utf-8") as file:
                    file.write(text)
                os.replace(temporary, path)
            except BaseException:
                with suppress(OSError):
                    os.unlink(temporary)
                raise
        except OSError as error:
            _LOG.warning("nothing is kept in %s: %s", self._folder, error)
            self._folder = None
            return
        self._written += len(text)
        if self._folder is not None and self._written > self._limit // 8:
            self._written = 0
            prune(self._folder, self._limit)


def prune(folder: Path, limit_bytes: int) -> None:
    """Removes the least recently used files below `folder` until they take at most `limit_bytes`. Other processes may do the
    same at the same time: a file that is gone is no error."""
    entries: list[tuple[float, int, Path]] = []
    for path in folder.glob("*/*.json"):
        with suppress(OSError):
            status = path.stat()
            entries.append((status.st_mtime, status.st_size, path))
    total = sum(size for _, size, _ in entries)
    for _, size, path in sorted(entries, key=lambda entry: entry[0]):
        if total <= limit_bytes:
            return
        with suppress(OSError):
            path.unlink()
        total -= size


class Memo:
    """Proven choices by operator, unit, memories and objective."""

    def __init__(self, shelf: Shelf) -> None:
        self._shelf = shelf

    @classmethod
    def default(cls) -> Memo | None:
        """That of this user; None where `DOVETAIL_MEMO` says `off`."""
        if os.environ.get("DOVETAIL_MEMO", "on").lower() in ("off", "0", "no"):
            return None
        return cls(Shelf(cache_folder() / "operators"))

    def digest(self, target: Target, key: Hashable, objective: str) -> str:
        """What names the choice of a kernel; `key` is everything that it depends on beside the device."""
        parts = [sources(), _described(target), repr(target.site), repr(key), objective]
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()

    def read(self, digest: str, space: Space) -> Choice | None:
        """The choice kept under a digest; None where there is none, or one that does not say what its plan takes."""
        if (text := self._shelf.read(digest)) is None:
            return None
        try:
            kept = json.loads(text)
            mapping = OperatorMapping("", kept["unit"], kept["family"], kept["parameters"])
            plan = replay(space, mapping)
            if kept["schema"] != SCHEMA or plan.latency_fs != kept["latency_fs"] or not 0 <= int(kept["bound_fs"]) <= plan.latency_fs:
                raise ValueError("it is of another version or damaged")
            return Choice(plan, int(kept["bound_fs"]), True, int(kept["examined"]), int(kept["space"]))
        except (ValueError, KeyError, TypeError, AttributeError, ArithmeticError, MappingError, CapacityError) as error:
            _LOG.warning("a kept mapping is searched again: %s (%s)", error, self._shelf.path(digest))
            return None

    def write(self, digest: str, choice: Choice) -> None:
        """Keeps a choice."""
        mapping = choice.plan.mapping
        entry = {
            "schema": SCHEMA,
            "unit": mapping.unit,
            "family": mapping.family,
            "parameters": dict(mapping.parameters),
            "latency_fs": choice.plan.latency_fs,
            "bound_fs": choice.bound_fs,
            "examined": choice.examined,
            "space": choice.space,
        }
        self._shelf.write(digest, json.dumps(entry, separators=(",", ":")) + "\n")


class Spaces:
    """What searches of this process have found of the spaces of kernels, the most recently used `limit` of them.

    Which mappings a kernel has and what they take does not depend on how large scratchpads are, only which of them fit does. So
    a device that differs from an earlier one in that alone, or has less room because results stay on the chip, finds the costs
    known.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._known: OrderedDict[Hashable, Explored] = OrderedDict()

    def recall(self, space: Space, key: Hashable) -> Explored:
        """What is known of a space; `key` is everything that it depends on beside the device."""
        target = space.target
        parts = key if isinstance(key, tuple) else (key,)
        full = (_described(target, capacities=False), *(replace(p, reserved=()) if isinstance(p, Site) else p for p in parts))
        explored = self._known.pop(full, None) or Explored(space)
        self._known[full] = explored
        while len(self._known) > self._limit:
            self._known.popitem(last=False)
        return explored


def described(device: Device, capacities: bool = True) -> dict[str, Any]:
    """The description of a device without the fields that no mapping depends on; without `capacities`, without those of scratchpads."""

    def without(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: without(item) for key, item in value.items() if key not in IRRELEVANT}
        return [without(item) for item in value] if isinstance(value, list) else value

    data: dict[str, Any] = without(device.to_dict())
    if not capacities:
        for name, memory in device.memories.items():
            if isinstance(memory, Scratchpad):
                data["memories"][name].pop("capacity")
    return data


def _described(target: Target, capacities: bool = True) -> str:
    """The description of a device without what no mapping depends on; with the files of units that are defined elsewhere."""
    if (known := _DESCRIBED.get((id(target.device), capacities))) is not None and known[0] is target.device:
        return known[1]
    foreign = []
    for unit in target.device.units.values():
        file = getattr(sys.modules.get(type(unit).__module__), "__file__", None)
        if file and not Path(file).is_relative_to(_ROOT / "hw"):
            with suppress(OSError):
                foreign.append(hashlib.sha256(Path(file).read_bytes()).hexdigest())
    text = json.dumps([described(target.device, capacities), foreign], sort_keys=True)
    if len(_DESCRIBED) > 64:
        _DESCRIBED.clear()
    _DESCRIBED[id(target.device), capacities] = (target.device, text)
    return text


_DESCRIBED: dict[tuple[int, bool], tuple[Any, str]] = {}


@lru_cache(maxsize=1)
def sources() -> str:
    """SHA-256 of every source file that a mapping follows from."""
    total = hashlib.sha256()
    for room in ("hw", "mapper", "workloads"):
        for path in sorted((_ROOT / room).rglob("*.py")):
            total.update(str(path.relative_to(_ROOT)).encode())
            total.update(path.read_bytes())
    return total.hexdigest()
