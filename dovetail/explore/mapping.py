"""Mappings that designs share: a search is not repeated where only what it does not depend on has changed.

The candidates of a kernel, their costs and their footprints do not depend on how large the scratchpads are, only which of
them fit does. So the costs found for one design are kept for the next that differs in scratchpad capacities alone, and the
search itself then picks among known costs; its result is the same. Whole mappings are kept on disk under a digest of the
workload, the timing of the device and the sources of the mapper, so that a change of energies, prices, the simulator or the
store never searches again.
"""

from __future__ import annotations

import json
import logging
import os
import tempfile
from collections import OrderedDict
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dovetail.explore.version import mapper_version
from dovetail.explore.workload import digest_of
from hw.device import Device
from hw.memory import Scratchpad
from mapper.compile import _signature, check_capacity, choose_space, workload_name
from mapper.errors import MappingError
from mapper.kernels import fuse
from mapper.mapping import Mapping, OperatorMapping
from mapper.residency import residents
from mapper.search import Space, search
from mapper.target import Target
from workloads.sources import cache_folder

if TYPE_CHECKING:
    from mapper.plan import Plan
    from workloads.graph import Graph

KEPT_KERNELS = 24
"""Kernels whose candidates one process remembers, those of about two designs: a prefill has thousands of candidates each."""

CACHE_BYTES = 256 * 2**20
"""Size of the mappings on disk beyond which the least recently used go; `DOVETAIL_CACHE_BYTES` overrides it."""

_UNTIMED = frozenset({"name", "title", "source", "power", "price", "process_nm", "constants", "mac_energy", "operation_energy", "energy"})
_LOG = logging.getLogger(__name__)


class _Known:
    """A kernel's space with the costs of its candidates remembered; `target` is that of the design at hand."""

    def __init__(self, space: Space) -> None:
        self.target = space.target
        self._space = space
        self._candidates: tuple[OperatorMapping, ...] | None = None
        self._footprints: dict[int, dict[str, int]] = {}
        self._bounds: dict[int, int] = {}
        self._plans: dict[int, Plan] = {}

    def candidates(self) -> Iterable[OperatorMapping]:
        if self._candidates is None:
            self._candidates = tuple(self._space.candidates())
        return self._candidates

    def footprint(self, mapping: OperatorMapping) -> dict[str, int]:
        if id(mapping) not in self._footprints:
            self._footprints[id(mapping)] = self._space.footprint(mapping)
        return self._footprints[id(mapping)]

    def bound(self, mapping: OperatorMapping) -> int:
        if id(mapping) not in self._bounds:
            self._bounds[id(mapping)] = self._space.bound(mapping)
        return self._bounds[id(mapping)]

    def plan(self, mapping: OperatorMapping) -> Plan:
        if id(mapping) not in self._plans:
            self._plans[id(mapping)] = self._space.plan(mapping)
        return self._plans[id(mapping)]


def timing(device: Device, capacities: bool = True) -> dict[str, Any]:
    """The part of a description that decides times; without `capacities`, without the sizes of scratchpads."""
    data: dict[str, Any] = _without(device.to_dict(), _UNTIMED)
    if not capacities:
        for name, memory in device.memories.items():
            if isinstance(memory, Scratchpad):
                data["memories"][name].pop("capacity")
    return data


def _without(value: Any, left_out: frozenset[str]) -> Any:
    if isinstance(value, dict):
        return {key: _without(item, left_out) for key, item in value.items() if key not in left_out}
    return [_without(item, left_out) for item in value] if isinstance(value, list) else value


class Mappings:
    """The mappings of one process: remembered costs, and whole mappings on disk under `folder` (none where it is None)."""

    def __init__(self, folder: Path | None, limit_bytes: int | None = None) -> None:
        self._folder = folder
        self._limit = limit_bytes if limit_bytes is not None else int(os.environ.get("DOVETAIL_CACHE_BYTES", CACHE_BYTES))
        self._known: OrderedDict[Any, _Known] = OrderedDict()
        self._written = 0

    @classmethod
    def default(cls) -> Mappings:
        """Those in the cache folder of this user."""
        return cls(cache_folder() / "mappings")

    def choose(self, graph: Graph, device: Device) -> Mapping:
        """The mapping that a search finds. Raises what the search raises: `CapacityError`, `MappingError`."""
        key = digest_of(["mapping", mapper_version(), graph.digest, timing(device)])
        if (kept := self._read(key)) is not None:
            return Mapping(device.name, workload_name(graph), kept.operators)
        mapping = self.search(graph, device)
        self._write(key, mapping)
        return mapping

    def search(self, graph: Graph, device: Device) -> Mapping:
        """The mapping found by searching every kernel, with the costs that are known from before."""
        target = Target(device)
        check_capacity(graph, target)
        design = digest_of(timing(device, capacities=False))
        bodies = [(segment.count, kernels) for segment, kernels in fuse(graph)]
        found = residents(bodies, target.cache[1] if target.cache else None)
        chosen: dict[Any, OperatorMapping] = {}
        operators: list[OperatorMapping] = []
        for (_, kernels), hits in zip(bodies, found, strict=True):
            for kernel, resident in zip(kernels, hits, strict=True):
                key = _signature(kernel, resident)
                if key not in chosen:
                    known = self._known.pop((design, key), None) or _Known(choose_space(target, kernel, resident)[0])
                    known.target = target
                    self._known[design, key] = known
                    while len(self._known) > KEPT_KERNELS:
                        self._known.popitem(last=False)
                    chosen[key] = search(known, kernel.name).mapping
                like = chosen[key]
                operators.append(OperatorMapping(kernel.name, like.unit, like.family, like.parameters))
        return Mapping(device.name, workload_name(graph), tuple(operators))

    # On disk -----------------------------------------------------------------------------------------------------------
    def _path(self, key: str) -> Path:
        assert self._folder is not None
        return self._folder / key[:2] / f"{key}.json"

    def _read(self, key: str) -> Mapping | None:
        if self._folder is None:
            return None
        path = self._path(key)
        try:
            text = path.read_text(encoding="utf-8")
            mapping = Mapping.loads(text, str(path))
        except FileNotFoundError:
            return None
        except (OSError, UnicodeDecodeError, MappingError) as error:
            _LOG.warning("a damaged mapping is searched again: %s", error)
            return None
        with suppress(OSError):
            os.utime(path)  # used now: the least recently used go first
        return mapping

    def _write(self, key: str, mapping: Mapping) -> None:
        if self._folder is None:
            return
        path = self._path(key)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            handle, temporary = tempfile.mkstemp(prefix=".", dir=path.parent)
            try:
                with os.fdopen(handle, "w", encoding="utf-8") as file:
                    file.write(json.dumps(mapping.to_json(), separators=(",", ":")))
                self._written += os.path.getsize(temporary)
                os.replace(temporary, path)
            except BaseException:
                with suppress(OSError):
                    os.unlink(temporary)
                raise
        except OSError as error:
            _LOG.warning("mappings are not kept: %s", error)
            self._folder = None
            return
        if self._written > self._limit // 8:
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
