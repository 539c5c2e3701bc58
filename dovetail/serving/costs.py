"""What an iteration of a server costs: its parts, each mapped and timed like any workload, remembered by shape.

An iteration runs the products and vector work of all tokens (`dense`), the head of the model for every sequence that gets a
token, attention of the decoding sequences and of the prompts, the experts with the tokens that reached them, and the collectives
between devices. A part is timed for its exact number of tokens up to `EXACT` and for its exact batch; longer ones lie between two
sizes that are (a sixteenth of an octave apart): on the straight line, experts at the upper one, because their tiles are whole.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any

import numpy as np

from dovetail.serving.errors import ServingError
from dovetail.serving.shares import attention_graph, expert_graph, expert_span, per_token, resized, tensor_parallel, without
from hw.collectives import NVLINKS, closed_form, fabric_of
from hw.device import Device
from hw.memory import Scratchpad
from hw.pim.neupims import interleaved
from hw.units.near_pim import NearUnit
from hw.units.pim import BankUnit
from workloads import cost
from workloads.graph import Graph, Operator, Segment

if TYPE_CHECKING:
    from mapper.search import Choice, Space

EXACT = 256
"""Tokens up to which every number is timed by itself."""
STRATEGIES = ("single", "split", "optimum")
"""How experts are given to two kinds of units: all to the better one, by the rule of Duplex, or the best of all assignments."""
LINK_BYTES_PER_S, LINK_STEP_S = 450e9, 0.8e-6
"""One direction of an NVLink 4 domain and a step over it, of the Duplex authors' simulator; devices with measured links have those."""
SECTIONS_OF_CACHE = 3
"""Memory sections of bundles that hold keys and values; the other one is for those of prompts in work (Duplex, MICRO 2024)."""
FS = 1e-15

Counts = np.ndarray[Any, np.dtype[np.int64]]


@dataclass(frozen=True, slots=True)
class Cost:
    """Femtoseconds, and joules of all devices (None where the description states too few energies)."""

    fs: int
    joules: float | None

    def __add__(self, other: Cost) -> Cost:
        return Cost(self.fs + other.fs, None if self.joules is None or other.joules is None else self.joules + other.joules)

    def times(self, count: int) -> Cost:
        return Cost(self.fs * count, None if self.joules is None else self.joules * count)


NOTHING = Cost(0, 0.0)


@dataclass(frozen=True, slots=True)
class Iteration:
    """What one iteration does: `decoding` sequences that attend to `keys` tokens in all, prompts as (new tokens, tokens attended to),
    and `sequences` that get a token. `experts` are the rows of every expert, [layers with experts, experts]."""

    decoding: int
    keys: int
    prompts: tuple[tuple[int, int], ...]
    sequences: int
    experts: Counts | None = None

    @property
    def context(self) -> int:
        """Tokens that a decoding sequence attends to, on average."""
        return max(1, round(self.keys / self.decoding)) if self.decoding else 0

    @property
    def tokens(self) -> int:
        return self.decoding + sum(new for new, _ in self.prompts)


@dataclass(frozen=True, slots=True)
class Spent:
    """An iteration's time by part, in femtoseconds, and its energy in joules."""

    fs: int
    joules: float | None
    parts: dict[str, int]


def sides(device: Device) -> tuple[Device, Device | None]:
    """The device without its matrix units in or near memory, and with those alone; None where there are none."""
    near = {name for name, unit in device.units.items() if isinstance(unit, BankUnit) or device.own_way(name) is not None}
    if not any("gemm" in device.units[name].executes for name in near):
        return device, None
    hosts = {name for name, unit in device.units.items() if "gemm" in unit.executes and name not in near}
    return _without(device, near), _without(device, hosts)


def _without(device: Device, names: set[str]) -> Device:
    units = {name: unit for name, unit in device.units.items() if name not in names}
    lost = {end for link in device.links for end in (link.source, link.sink) if {link.source, link.sink} & names} - names
    kept = {end for link in device.links for end in (link.source, link.sink) if {link.source, link.sink} & set(units)}
    pads = {name for name in lost if name in device.memories and name not in kept and isinstance(device.memories[name], Scratchpad)}
    memories = {name: memory for name, memory in device.memories.items() if name not in pads}
    gone = names | pads
    links = tuple(link for link in device.links if not {link.source, link.sink} & gone)
    return device.model_copy(update={"units": units, "memories": memories, "links": links})


class _Table:
    """Costs of an expert by its number of rows; -1 where not yet known."""

    def __init__(self) -> None:
        self.fs: Counts = np.full(1, -1, dtype=np.int64)
        self.joules: np.ndarray[Any, np.dtype[np.float64]] = np.zeros(1)

    def grow(self, size: int) -> None:
        """Room for fewer than `size` rows."""
        if size > len(self.fs):
            more = max(size, 2 * len(self.fs)) - len(self.fs)
            self.fs = np.concatenate([self.fs, np.full(more, -1, dtype=np.int64)])
            self.joules = np.concatenate([self.joules, np.zeros(more)])


_NEVER = np.iinfo(np.int64).max


class _Direct:
    """Searches the space of a kernel and remembers nothing: parts of iterations are remembered whole."""

    def choose(self, space: Space, name: str, key: Hashable) -> Choice:
        from mapper.search import search

        return search(space, name)


@dataclass
class StepCosts:
    """Costs of iterations of `model` (a decode step of one sequence) on `devices` devices of one kind.

    Attention and dense layers are cut over the devices; experts are spread over them, or sliced with `slice_experts`. `strategy`
    says how units of the device and units near its memory share experts. With `sub_batches` two halves of the decoding sequences take
    turns on both: while one half is in its dense layers, attention of the other runs near memory (NeuPIMs). With `memo` off
    every part is mapped again each time.

    Raises `ServingError` where the model cannot be cut so or does not fit.
    """

    model: Graph
    device: Device
    devices: int = 1
    strategy: str = "split"
    slice_experts: bool = False
    memo: bool = True
    co_processing: bool = True
    sub_batches: bool = False
    progress: Callable[[str], None] | None = None
    _known: dict[Hashable, Any] = field(default_factory=dict, repr=False)
    compiled: int = 0

    def __post_init__(self) -> None:
        if self.strategy not in STRATEGIES:
            raise ServingError(f"experts: expected one of {', '.join(STRATEGIES)}, not {self.strategy!r}")
        if self.devices < 1:
            raise ServingError(f"devices: expected at least 1, found {self.devices}")
        self._shared = tensor_parallel(_one_token_cache(self.model), self.devices)
        self.host, self.near = sides(self.device)
        if self.sub_batches and (self.experts or not self._concurrent):
            why = (
                "has experts, whose weights each half would read again"
                if self.experts
                else "has no units near memory that work beside the others"
            )
            raise ServingError(f"--sub-batches: {self.model.name if self.experts else self.device.name} {why}; leave the option out")
        last = max(
            (i for i, s in enumerate(self._graph.segments) if any(op.kind in ("attention", "scan") for op in s.operators)), default=0
        )
        self._body, self._tail = self._graph.segments[: last + 1], self._graph.segments[last + 1 :]
        if self.experts and not self.slice_experts and self.experts % self.devices:
            raise ServingError(
                f"{self.model.name}: {self.experts} experts cannot be spread evenly over {self.devices} devices; slice each of them "
                "instead (--slice-experts), or use a number of devices that divides them"
            )
        if self.room < self.cache_bytes:
            gib = 2**30
            raise ServingError(
                f"{self.model.name}: {self.devices} x {self.device.name} cannot hold it: weights take {self.weight_bytes / gib:.2f} GiB of "
                f"{self._capacity / gib:.2f} GiB of each device, so that {max(0, self.room) / gib:.2f} GiB are left for keys and values; "
                "use more devices or a narrower format (--weights)"
            )

    def alike(self, strategy: str | None = None, slice_experts: bool | None = None, co_processing: bool | None = None) -> StepCosts:
        """The same model and devices, otherwise shared; what is remembered serves both."""
        return replace(
            self,
            strategy=self.strategy if strategy is None else strategy,
            slice_experts=self.slice_experts if slice_experts is None else slice_experts,
            co_processing=self.co_processing if co_processing is None else co_processing,
        )

    @property
    def _graph(self) -> Graph:
        return self._shared.graph

    # What the model is ------------------------------------------------------------------------------------------------------
    @cached_property
    def _routed(self) -> Operator | None:
        return next((op for op, _ in self.model.operators() if op.kind == "grouped_matmul"), None)

    @property
    def experts(self) -> int:
        """Experts of a layer; 0 for a dense model."""
        return self._routed["experts"] if self._routed else 0

    @property
    def top_k(self) -> int:
        return self._routed["top_k"] if self._routed else 0

    @cached_property
    def expert_layers(self) -> int:
        """Layers with experts."""
        return sum(s.count for s in self._body if expert_span(s))

    # What a device holds ----------------------------------------------------------------------------------------------------
    @cached_property
    def weight_bytes(self) -> int:
        """Bytes of weights and constants of one device."""
        routed = sum(
            self._graph.tensors[op.inputs[1]].bytes * count for op, count in self._graph.operators() if op.kind == "grouped_matmul"
        )
        return cost.role_bytes(self._graph, "weight") + cost.role_bytes(self._graph, "constant") - routed + -(-routed // self.devices)

    @cached_property
    def cache_bytes(self) -> int:
        """Bytes of keys and values of one token on one device, all layers (recurrent state counts as that of one token)."""
        return cost.role_bytes(self._graph, "kv_cache")

    @cached_property
    def _apart(self) -> int | None:
        """Bytes of a memory of its own for keys and values."""
        for unit in self.device.units.values():
            if isinstance(unit, BankUnit) and "kv_cache" in unit.holds and unit.memory != self.device.main_memory:
                return self.device.memories[unit.memory].total
        return None

    @property
    def _capacity(self) -> int:
        return self.device.dram.total

    @cached_property
    def bundles(self) -> int:
        """Memory sections that two kinds of units can use at the same time; 1 where they cannot."""
        unit = self._near_unit
        if unit is None or not self._concurrent:
            return 1
        return unit.path.bundles

    @cached_property
    def room(self) -> int:
        """Bytes for keys and values on one device: what weights leave, in the sections that are for it. Negative where weights do not
        fit."""
        left = self._capacity - self.weight_bytes
        if left < 0:
            return left
        if self._apart is not None:
            return self._apart
        return left * SECTIONS_OF_CACHE // self.bundles if self.bundles > 1 else left

    @cached_property
    def tokens_held(self) -> int:
        """Tokens whose keys and values fit."""
        return self.room // max(1, self.cache_bytes)

    # Units near memory ------------------------------------------------------------------------------------------------------
    @cached_property
    def _near_unit(self) -> NearUnit | None:
        return next((u for u in self.device.units.values() if isinstance(u, NearUnit)), None)

    @cached_property
    def _concurrent(self) -> bool:
        """Whether units near memory and the others can work at the same time."""
        if self.near is None or not self.co_processing:
            return False
        for name, unit in self.near.units.items():
            if "gemm" not in unit.executes:
                continue
            if isinstance(unit, BankUnit):
                return unit.memory != self.device.main_memory or unit.design.channel.scope == "none"
            way = self.device.own_way(name)
            return way is not None and way.access == "concurrent"
        return False

    @cached_property
    def _one_bundle(self) -> Device | None:
        """The near side when it streams from a single bundle: no other one is read while a row opens."""
        unit = self._near_unit
        if self.near is None or unit is None or unit.path.bundles == 1:
            return self.near
        share = round(unit.path.efficiency(1), 4)
        links = tuple(link.model_copy(update={"efficiency": share}) if link.bandwidth is not None else link for link in self.near.links)
        return Device.from_dict(self.near.model_copy(update={"links": links}).to_dict(), where=self.near.name)

    # Parts ------------------------------------------------------------------------------------------------------------------
    def _remember(self, key: Hashable, make: Callable[[], Any]) -> Any:
        if not self.memo:
            return make()
        if key not in self._known:
            self._known[key] = make()
        return self._known[key]

    def _map(self, graph: Graph, device: Device) -> Cost:
        """A graph on a device, as the simulator has it: kernels one after the other."""
        from mapper.compile import compile_graph
        from sim.energy import joules

        self.compiled += 1
        if self.progress and self.compiled % 20 == 0:
            self.progress(f"timing parts of iterations: {self.compiled}")
        compiled = compile_graph(graph, device, strategy=_Direct(), co_processing=False)
        fs = sum(part.plan.latency_fs * part.count for part in compiled.kernels)
        return Cost(fs, joules(compiled)[0])

    def _between(self, key: tuple[Hashable, ...], size: int, make: Callable[[int], Cost], tiles: bool = False) -> Cost:
        """The cost at `size`, exact up to `EXACT`, else on the line between the two sizes around it that are; the next one's where
        whole `tiles` count."""
        if size <= 0:
            return NOTHING
        if size <= EXACT:
            return self._cost((*key, size), lambda: make(size))
        step = 1 << (size.bit_length() - 5)
        low = size // step * step
        one = self._cost((*key, low), lambda: make(low))
        if low == size:
            return one
        two = self._cost((*key, low + step), lambda: make(low + step))
        if tiles:
            return two
        far = size - low
        joules = None if one.joules is None or two.joules is None else one.joules + (two.joules - one.joules) * far / step
        return Cost(one.fs + (two.fs - one.fs) * far // step, joules)

    def _cost(self, key: Hashable, make: Callable[[], Cost]) -> Cost:
        found: Cost = self._remember(key, make)
        return found

    def dense(self, tokens: int) -> Cost:
        """Everything of all layers but attention and experts, for so many tokens, on one device."""
        return self._between(("dense",), tokens, lambda n: self._map(resized(self._dense_graph, n), self.device))

    def head(self, sequences: int) -> Cost:
        """What follows the layers, for the last token of so many sequences."""
        if not self._tail:
            return NOTHING
        return self._between(("head",), sequences, lambda n: self._map(resized(self._tail_graph, n), self.device))

    @cached_property
    def _dense_graph(self) -> Graph:
        segments = []
        for segment in self._body:
            span = expert_span(segment) or (0, 0)
            kept = tuple(op for i, op in enumerate(segment.operators) if op.kind != "attention" and not span[0] <= i < span[1])
            segments.append(replace(segment, operators=kept))
        return without(self._graph, segments)

    @cached_property
    def _tail_graph(self) -> Graph:
        return without(self._graph, self._tail)

    @cached_property
    def _attentions(self) -> list[tuple[Operator, int]]:
        """Kinds of attention with their numbers of layers."""
        kinds: dict[tuple[tuple[str, int], ...], tuple[Operator, int]] = {}
        for segment in self._body:
            for op in segment.operators:
                if op.kind == "attention":
                    key = tuple(sorted((k, v) for k, v in op.attributes.items() if k not in ("keys", "batch")))
                    known = kinds.get(key, (op, 0))
                    kinds[key] = (known[0], known[1] + segment.count)
        return list(kinds.values())

    def attention(self, side: Device, name: str, op: Operator, batch: int, queries: int, keys: int) -> Cost:
        """Attention of one layer on one side of a device, for `batch` sequences with `queries` new tokens each."""
        if queries == 1:
            make = lambda n: self._map(attention_graph(self._graph, op, batch, 1, n), side)  # noqa: E731
            return self._between(("attention", name, op.name, batch), keys, make)
        ahead = keys - queries
        make = lambda n: self._map(attention_graph(self._graph, op, batch, n, n + ahead), side)  # noqa: E731
        return self._between(("prompt", name, op.name, batch, ahead), queries, make)

    def _layer_attention(self, op: Operator, work: Iteration) -> Cost:
        """Attention of one layer: decoding sequences where they are fastest, prompts beside them where two kinds of units can."""
        prompts = NOTHING
        for new, keys in work.prompts:
            prompts += self.attention(self.host, "host", op, 1, new, keys)
        if self.bundles > 1 and work.prompts:
            prompts += self._migrated(op, sum(new for new, _ in work.prompts))
        if not work.decoding:
            return prompts
        keys = work.context
        here = self.attention(self.host, "host", op, work.decoding, 1, keys)
        best = here + prompts
        if self.near is not None:
            there = self.attention(self.near, "near", op, work.decoding, 1, keys)
            both = there + prompts
            both = replace(both, fs=max(there.fs, prompts.fs)) if self._concurrent else both
            best = min(best, both, key=lambda found: found.fs)
        return best

    def _interleaved(self, work: Iteration) -> int:
        """Femtoseconds of all layers when two halves of the sequences alternate between dense layers and attention near memory."""
        assert self.near is not None
        half = -(-work.decoding // 2)
        keys = work.context
        layers = sum(count for _, count in self._attentions)
        attention = sum(self.attention(self.near, "near", op, half, 1, keys).fs * count for op, count in self._attentions)
        return interleaved(self.dense(half).fs // layers, attention // layers, layers)

    def _migrated(self, op: Operator, tokens: int) -> Cost:
        """Keys and values of prompts read and written once more, to the sections that decoding reads."""
        names = op.inputs[1:3]
        size = sum(self._graph.tensors[name].bytes for name in names) * tokens // op["batch"]
        memory = self.device.dram
        energy = None if memory.energy is None else float(memory.energy) * 1e-12 * 16 * size
        return Cost(memory.occupied_fs(size, size), energy)

    # Experts ----------------------------------------------------------------------------------------------------------------
    @cached_property
    def _expert_template(self) -> Graph:
        segment = next(s for s in self._body if expert_span(s))
        return expert_graph(self._graph, segment, self.devices if self.slice_experts else 1)

    def expert(self, side: str, tokens: int) -> Cost:
        """One expert for `tokens` rows on one device: by the `host` units, the units `near` memory, or those from one `bundle` alone."""
        device = {"host": self.host, "near": self.near, "bundle": self._one_bundle}[side]
        assert device is not None
        return self._between(
            ("expert", side, self.slice_experts), tokens, lambda n: self._map(resized(self._expert_template, n), device), True
        )

    def _table(self, side: str, counts: Counts) -> tuple[Counts, np.ndarray[Any, np.dtype[np.float64]]]:
        """Femtoseconds and joules (nan where unknown) of experts with these numbers of rows."""
        size = int(counts.max(initial=0)) + 1
        table: _Table = self._known.setdefault(("table", side, self.slice_experts), _Table()) if self.memo else _Table()
        table.grow(size)
        fs = table.fs[counts]
        if fs.min(initial=0) < 0:
            for rows in np.unique(counts[fs < 0]).tolist():
                found = self.expert(side, rows)
                table.fs[rows] = found.fs
                table.joules[rows] = np.nan if found.joules is None else found.joules
            fs = table.fs[counts]
        return fs, table.joules[counts]

    def experts_cost(self, counts: Counts) -> tuple[Cost, float]:
        """All layers with experts, and the share of rows that units near memory take.

        `counts` are rows of every expert, [layers, experts]. Each device has a part of the experts (or a slice of every one); a
        layer ends when the last device does.
        """
        fs, joules, near_rows = self._expert_layers(counts)
        energy = float(joules.sum())
        cost = Cost(int(fs.sum()), None if np.isnan(energy) else energy)
        return cost, float(near_rows.sum()) / max(1, int(counts.sum()))

    def _expert_layers(self, counts: Counts) -> tuple[Counts, np.ndarray[Any, np.dtype[np.float64]], Counts]:
        """Femtoseconds, joules of all devices and rows at units near memory, for every layer."""
        mine = counts.reshape(counts.shape[0], 1 if self.slice_experts else self.devices, -1)
        ranks = self.devices if self.slice_experts else 1
        host, host_joules = self._table("host", mine)
        if self.near is None or self._near_unit is None:
            return host.sum(axis=2).max(axis=1), host_joules.sum(axis=(1, 2)) * ranks, np.zeros(len(counts), dtype=np.int64)
        near, near_joules = self._table("near", mine)
        bundle, _ = self._table("bundle", mine)
        into, taken = self._sections(mine.shape[2])
        rows = mine @ into
        here, there, alone = (host @ into) @ ~taken, (near @ into) @ taken, (bundle @ into) @ taken
        busy = (rows > 0).astype(np.int64) @ taken
        fs = np.maximum(here, np.where(busy > 1, there, alone))  # one section alone streams at the rate of a single bundle
        if self.strategy == "split" and self._concurrent:
            fs = np.where(self._prefixes(rows, taken), fs, _NEVER)
        chosen = fs.argmin(axis=-1)
        at_near = taken.T[chosen]
        joules = np.where(at_near, near_joules @ into, host_joules @ into).sum(axis=(1, 2)) * ranks
        return fs.min(axis=-1).max(axis=1), joules, (rows * at_near).sum(axis=(1, 2))

    def _sections(self, experts: int) -> tuple[Counts, np.ndarray[Any, np.dtype[np.bool_]]]:
        """Which section every expert of a device lies in, [experts, sections], in turns, and the ways to give sections to units near
        memory, [sections, ways]: all or none, or any of them, where both kinds of units can work at a time."""
        assert self._near_unit is not None
        count = max(1, min(self._near_unit.path.bundles, experts))
        into = (np.arange(experts)[:, None] % count == np.arange(count)).astype(np.int64)
        if self.strategy == "single" or not self._concurrent:
            return into, np.array([[False, True]] * count)
        return into, (np.arange(1 << count)[None, :] >> np.arange(count)[:, None]) & 1 == 1

    @staticmethod
    def _prefixes(rows: Counts, taken: Any) -> Any:
        """The ways that Duplex looks at: sections go to the units near memory one by one, those with fewest rows first."""
        rank = np.argsort(np.argsort(rows, axis=-1, kind="stable"), axis=-1)
        weights = 1 << np.arange(taken.shape[0])
        first = np.where(rank[..., None] < np.arange(taken.shape[0] + 1), weights[:, None], 0).sum(axis=-2)  # a set for each size
        allowed = np.zeros((*rows.shape[:-1], taken.shape[1]), dtype=bool)
        np.put_along_axis(allowed, first, True, axis=-1)
        return allowed

    # Collectives ------------------------------------------------------------------------------------------------------------
    def collectives(self, tokens: int, sequences: int) -> int:
        """Femtoseconds of all-reduces in the layers and of gathering logits."""
        if self.devices == 1:
            return 0
        found: int = self._remember(("collectives", tokens, sequences), lambda: self._collectives(tokens, sequences))
        return found

    def _collectives(self, tokens: int, sequences: int) -> int:
        seconds = 0.0
        body = {s.name for s in self._body}
        for what, sizes in (("all-reduce", self._shared.reduced), ("all-gather", self._shared.gathered)):
            for segment in self._graph.segments:
                rows = tokens if segment.name in body else sequences
                seconds += segment.count * sum(self._collective(what, size * rows) for size in sizes.get(segment.name, ()) if rows)
        return round(seconds / FS)

    def _collective(self, what: str, size: int) -> float:
        if self.device.name in NVLINKS:
            return fabric_of(self.device.name).seconds(what, self.devices, size)
        return closed_form(what, "ring", self.devices, size, LINK_BYTES_PER_S, LINK_STEP_S)

    # An iteration -----------------------------------------------------------------------------------------------------------
    def step(self, work: Iteration) -> Spent:
        """Time and energy of an iteration."""
        parts, rest = self._step(work)
        joules: float | None = rest
        parts = dict(parts)
        if self.experts and work.experts is not None:
            found, _ = self.experts_cost(work.experts)
            parts["experts"] = found.fs
            joules = None if joules is None or found.joules is None else joules + found.joules
        return Spent(sum(parts.values()), joules, parts)

    def stretch(self, decoding: int, keys: int, experts: Sequence[Counts | None]) -> list[Spent]:
        """Iterations in a row that only decode the same sequences, one for each entry of `experts`: the same as `step` for each."""
        if self.experts and len(experts) > 1:
            each = [np.asarray(counts) for counts in experts]
            fs, joules, _ = self._expert_layers(np.concatenate(each))
            layers = len(each[0])
            times, energies = fs.reshape(-1, layers).sum(axis=1).tolist(), joules.reshape(-1, layers).sum(axis=1).tolist()
        found = []
        for number, counts in enumerate(experts):
            work = Iteration(decoding, keys + number * decoding, (), decoding, counts)
            if not self.experts or len(experts) == 1:
                found.append(self.step(work))
                continue
            parts, rest = self._step(work)
            parts = {**parts, "experts": times[number]}
            energy = energies[number]
            found.append(Spent(sum(parts.values()), None if rest is None or np.isnan(energy) else rest + energy, parts))
        return found

    def _step(self, work: Iteration) -> tuple[dict[str, int], float | None]:
        """All but experts of an iteration."""
        key = ("step", self.co_processing, self.sub_batches, work.decoding, work.context, work.prompts, work.sequences)
        found: tuple[dict[str, int], float | None] = self._remember(key, partial(self._parts, work))
        return found

    def _parts(self, work: Iteration) -> tuple[dict[str, int], float | None]:
        dense, head = self.dense(work.tokens), self.head(work.sequences)
        attention = NOTHING
        for op, layers in self._attentions:
            attention += self._layer_attention(op, work).times(layers)
        parts = {"dense": dense.fs, "attention": attention.fs, "head": head.fs}
        if self.sub_batches and not work.prompts and work.decoding > 1:
            halves = self._interleaved(work)
            if halves < dense.fs + attention.fs:
                parts = {"interleaved": halves, "head": head.fs}
        if self.devices > 1:
            parts["collectives"] = self.collectives(work.tokens, work.sequences)
        joules = (dense + attention + head).joules
        return parts, None if joules is None else joules * self.devices

    @property
    def notes(self) -> tuple[str, ...]:
        """What the costs assume."""
        found = [
            f"parts of an iteration are mapped onto {self.device.name} and timed like any workload, one after the other; beyond {EXACT} "
            "tokens between two sizes a sixteenth of an octave apart",
            "decoding sequences share their attention evenly: its cost is that of their mean context",
        ]
        if self.devices > 1:
            what = (
                "measured NCCL times"
                if self.device.name in NVLINKS
                else f"rings of {LINK_BYTES_PER_S / 1e9:g} GB/s a direction and {LINK_STEP_S * 1e6:g} us a step"
            )
            found.append(
                f"{self.devices} devices cut attention and dense layers; collectives take {what} and do not overlap with other work"
            )
        if self.experts:
            how = "sliced over all devices" if self.slice_experts else "spread over the devices"
            found.append(f"experts are {how}; a layer ends when its last device does")
        if self.near is not None:
            found.append(
                "units near memory and the others share experts by memory sections, and prompts run beside decoding attention"
                if self._concurrent
                else "units in or near memory and the others take turns"
            )
        if self.sub_batches:
            found.append("two halves of the decoding sequences take turns: one in dense layers, the other in attention near memory")
        if self.bundles > 1:
            found.append(
                f"keys and values lie in {SECTIONS_OF_CACHE} of {self.bundles} memory sections, those of prompts in the other one until "
                "their prompt is done; experts lie in all of them in turns"
            )
        return tuple(found)


def _one_token_cache(graph: Graph) -> Graph:
    """A template whose caches hold one token: contexts are those of iterations, not its own."""
    mine = per_token(graph)
    tensors = {}
    for name, tensor in graph.tensors.items():
        if tensor.role == "kv_cache" and name in mine:
            tensor = replace(tensor, shape=tuple(1 if i and s == graph.context else s for i, s in enumerate(tensor.shape)))
        tensors[name] = tensor

    def shorter(op: Operator) -> Operator:
        return replace(op, attributes={**op.attributes, "keys": 1}) if op.kind == "attention" else op

    segments = tuple(Segment(s.name, s.count, tuple(shorter(op) for op in s.operators)) for s in graph.segments)
    return replace(graph, tensors=tensors, segments=segments, context=1)


def decoding(lengths: Sequence[int], experts: Counts | None = None) -> Iteration:
    """A decode-only iteration of sequences that attend to so many tokens each."""
    return Iteration(len(lengths), sum(lengths), (), len(lengths), experts)
