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
from collections import OrderedDict
from collections.abc import Hashable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dovetail.explore.version import mapper_version
from dovetail.explore.workload import digest_of
from hw.device import Device
from hw.memory import Scratchpad
from mapper.compile import compile_graph, workload_name
from mapper.errors import MappingError
from mapper.mapping import Mapping, OperatorMapping
from mapper.memo import Shelf
from mapper.search import Choice, Space, Tabled, search
from workloads.sources import cache_folder

if TYPE_CHECKING:
    from mapper.plan import Plan
    from workloads.graph import Graph

KEPT_KERNELS = 24
"""Kernels whose candidates one process remembers, those of about two designs: a prefill has thousands of candidates each."""

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


class _KnownTable(_Known):
    """The same for a space whose costs are arrays, which remember themselves."""

    def __init__(self, space: Tabled) -> None:
        super().__init__(space)
        self.table = space.table
        self.mapping = space.mapping


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


class _Remembering:
    """A search that starts from what is known of a design's kernels."""

    def __init__(self, known: OrderedDict[Any, _Known], design: str) -> None:
        self._known, self._design = known, design

    def choose(self, space: Space, name: str, key: Hashable) -> Choice:
        known = self._known.pop((self._design, key), None) or (_KnownTable(space) if isinstance(space, Tabled) else _Known(space))
        known.target = space.target
        self._known[self._design, key] = known
        while len(self._known) > KEPT_KERNELS:
            self._known.popitem(last=False)
        return search(known, name)


class Mappings:
    """The mappings of one process: remembered costs, and whole mappings on disk under `folder` (none where it is None)."""

    def __init__(self, folder: Path | None, limit_bytes: int | None = None) -> None:
        self._shelf = Shelf(folder, limit_bytes) if folder is not None else None
        self._known: OrderedDict[Any, _Known] = OrderedDict()

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
        if self._shelf is not None:
            self._shelf.write(key, json.dumps(mapping.to_json(), separators=(",", ":")))
        return mapping

    def search(self, graph: Graph, device: Device) -> Mapping:
        """The mapping found by searching every kernel, with the costs that are known from before."""
        return compile_graph(graph, device, strategy=_Remembering(self._known, digest_of(timing(device, capacities=False)))).mapping

    def _read(self, key: str) -> Mapping | None:
        if self._shelf is None or (text := self._shelf.read(key)) is None:
            return None
        try:
            return Mapping.loads(text, str(self._shelf.path(key)))
        except MappingError as error:
            _LOG.warning("a damaged mapping is searched again: %s", error)
            return None
