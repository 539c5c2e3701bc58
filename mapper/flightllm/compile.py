"""The compiler: from a traced graph to an instruction stream and the memory map it refers to.

A model's layers are emitted once per repeated body; the other repetitions are the same instructions with their weights and
caches further on. Streams are made per token length, in steps: a stream for `context` serves every shorter context down to the
next step, because the number of valid tokens is a register of the machine and not part of an instruction (length-adaptive
compilation).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from hw.device import Device
from hw.units.flightllm import FlightCore
from mapper.errors import CapacityError, MappingError
from mapper.flightllm import isa
from mapper.flightllm.emit import LAYOUT, Counts, Emitter, Options, Weights
from mapper.flightllm.isa import Words
from mapper.flightllm.layers import Attention, Body, Concatenate, Layer, Linear, Rows, bodies
from mapper.flightllm.memory import MemoryMap
from workloads.format import Format, kept_of
from workloads.graph import Graph
from workloads.prune import KEPT, WINDOW, spread

DECODE_STEP = 16
PREFILL_STEP = 128
"""Tokens by which the contexts of streams differ (the released profiler's `align_token_length`)."""
MAX_TOKENS = 2048
INDEX_BITS = 4
"""Of the index that selects one of 16 activations."""
LABELS = {
    "weight": "weights",
    "index": "indices",
    "counts": "counts",
    "bias": "biases",
    "keys": "keys",
    "values": "values",
    "value": "activations",
}

Masks = Mapping[str, NDArray[np.bool_]]
"""Kept blocks of 64 x 64 per attention layer: [heads, tokens / 64, tokens / 64]."""


@dataclass(frozen=True)
class Stream:
    """Instruction words, in chunks of one repetition of a body each, and the memory map they refer to.

    `tokens` new tokens attend to `context`; `layers` names the layers of each chunk with their first instruction.
    """

    name: str
    phase: str
    tokens: int
    context: int
    chunks: tuple[Words, ...]
    memory: MemoryMap
    layers: tuple[tuple[tuple[str, int], ...], ...] = ()
    notes: tuple[str, ...] = ()

    @cached_property
    def words(self) -> Words:
        return np.concatenate(self.chunks) if self.chunks else np.zeros(0, np.uint32)

    @property
    def size(self) -> int:
        """Bytes of instructions."""
        return 4 * sum(len(chunk) for chunk in self.chunks)

    def __repr__(self) -> str:
        return f"Stream({self.name} {self.phase}, {self.tokens} tokens, context {self.context}, {self.size} B)"


def aligned(tokens: int, step: int) -> int:
    """The context of the stream that serves `tokens`.

    >>> aligned(129, DECODE_STEP)
    144
    """
    return -(-tokens // step) * step


def core_of(device: Device) -> FlightCore:
    """The core of a device. Raises `MappingError` for a device of another kind."""
    for unit in device.units.values():
        if isinstance(unit, FlightCore):
            return unit
    raise MappingError(
        f"device {device.name!r} has no unit of kind 'flightllm_core'; instruction streams are for flightllm-u280 and its kin"
    )


@dataclass
class Compiler:
    """Compiles one model for one device.

    `counts` gives the kept weights per block of a weight by name ([K / 16, N / 16]); where a pruned weight has none, the mean of
    its format is spread evenly over its blocks. `bits` overrides the stored width of weights by name, 1 to 8. `masks` are the kept
    blocks of a prefill's attention; without one, all blocks at or below the diagonal are kept. `shifts` are requantisation shifts
    by region. Raises `CapacityError` when the model does not fit the device's memory.
    """

    graph: Graph
    device: Device
    options: Options = field(default_factory=Options)
    counts: Mapping[str, Counts] = field(default_factory=dict)
    bits: Mapping[str, int] = field(default_factory=dict)
    masks: Masks = field(default_factory=dict)
    shifts: Mapping[str, int] = field(default_factory=dict)
    max_tokens: int = MAX_TOKENS

    def __post_init__(self) -> None:
        if self.graph.phase not in ("prefill", "decode"):
            raise MappingError(f"{self.graph.name}: expected a prefill or decode graph, found phase {self.graph.phase!r}")
        if self.options.boundary == "on_chip" and (self.graph.phase != "decode" or not self.options.fuse):
            raise MappingError("boundary 'on_chip' is for decode with fused layers: vectors of a prefill do not fit on chip")
        self.core = core_of(self.device)
        self.bodies = bodies(self.graph, self.options.fuse)
        self.weights = {name: self._weights(name) for name in self._linear()}

    def _linear(self) -> dict[str, tuple[Linear, int]]:
        return {layer.weight: (layer, body.count) for body in self.bodies for layer in body.layers if isinstance(layer, Linear)}

    def _weights(self, name: str) -> Weights:
        layer, _ = self._linear()[name]
        tensor = self.graph.tensors[name]
        bits = self.bits.get(name) or _bits(tensor.format, name)
        rows, columns = layer.k // self.core.tile, layer.n // self.core.tile
        counts = self.counts.get(name)
        pruned = kept_of(tensor.format)
        if counts is None and pruned is not None:
            if pruned[1] != WINDOW:
                raise MappingError(f"weight {name!r}: {tensor.format} is not supported, the chains select among {WINDOW} values")
            if pruned[0] == int(pruned[0]) and pruned[0] not in KEPT:
                raise MappingError(
                    f"weight {name!r}: {pruned[0]}:{WINDOW} is not supported, expected N of {', '.join(map(str, KEPT))}, or a mean"
                )
            counts = spread(pruned[0], rows, columns)
        if counts is not None:
            if counts.shape != (rows, columns):
                raise MappingError(
                    f"weight {name!r}: expected counts of {rows} x {columns} blocks, found {' x '.join(map(str, counts.shape))}"
                )
            if wrong := sorted(set(np.unique(counts).tolist()) - set(KEPT)):
                raise MappingError(f"weight {name!r}: {wrong[0]}:{WINDOW} is not supported, expected N of {', '.join(map(str, KEPT))}")
            counts = np.where(counts > 0, np.maximum(counts, min(self.core.group, WINDOW)), 0)
        return Weights(counts, bits, INDEX_BITS if counts is not None and self.options.index == "interleaved" else 0)

    # Streams --------------------------------------------------------------------------------------------------------------
    def compile(self, context: int | None = None) -> Stream:
        """The stream for a context: of one token in decode, of the whole prompt in prefill. It is rounded up to the next step."""
        prefill = self.graph.phase == "prefill"
        step = PREFILL_STEP if prefill else DECODE_STEP
        context = aligned(context or self.graph.context, step)
        if context > self.max_tokens:
            raise CapacityError(
                f"{self.graph.name}: a context of {context} tokens exceeds the {self.max_tokens} that caches are allocated for"
            )
        model = self._model(context)
        memory = self.memory(model if prefill else self._model(aligned(self.max_tokens, step)))  # one map for all decode streams
        self._check_capacity(memory)
        chunks: list[Words] = []
        names: list[tuple[tuple[str, int], ...]] = []
        tables = [self._emit(body, memory) for body in model]
        runs = [(index, repetition) for index, body in enumerate(model) for repetition in range(body.count)]
        for position, (index, repetition) in enumerate(runs):
            table, steps, layers = tables[index]
            table = table.copy()
            self._join(table, tables[runs[position + 1][0]][0] if position + 1 < len(runs) else None, position == 0)
            for queue in (isa.LD, isa.ST):
                chosen = table[:, 0] == queue
                table[chosen, isa.SPECS[queue].column("address")] += steps[chosen] * repetition
            chunks.append(isa.encode(table))
            names.append(layers)
        tokens = context if prefill else 1
        return Stream(self.graph.name, self.graph.phase, tokens, context, tuple(chunks), memory, tuple(names), self.notes)

    def size(self, context: int | None = None) -> int:
        """Bytes of the stream for a context, without making it."""
        prefill = self.graph.phase == "prefill"
        step = PREFILL_STEP if prefill else DECODE_STEP
        model = self._model(aligned(context or self.graph.context, step))
        memory = self.memory(model if prefill else self._model(aligned(self.max_tokens, step)))
        lengths = np.array([spec.length for spec in isa.SPECS])
        return sum(4 * int(lengths[self._emit(body, memory)[0][:, 0]].sum()) * body.count for body in model)

    def _model(self, context: int) -> tuple[Body, ...]:
        """The bodies for a context."""
        left_out = (Concatenate,) if self.options.concatenate == "append" else ()
        return tuple(replace(b, layers=tuple(self._at(x, context) for x in b.layers if not isinstance(x, left_out))) for b in self.bodies)

    def _at(self, layer: Layer, context: int) -> Layer:
        prefill = self.graph.phase == "prefill"
        match layer:
            case Attention():
                return replace(layer, tokens=context, rows=context if prefill else 1)
            case Concatenate():
                return replace(layer, tokens=context)
            case Linear() | Rows() if prefill and layer.rows > 1:
                return replace(layer, rows=context)
        return layer

    def _emit(self, body: Body, memory: MemoryMap) -> tuple[NDArray[np.int64], NDArray[np.int64], tuple[tuple[str, int], ...]]:
        masks = {layer.name: self._mask(layer) for layer in body.layers if isinstance(layer, Attention) and layer.rows > 1}
        emitter = Emitter(self.core, memory, self.weights, self.options, masks)
        for layer in body.layers:
            emitter.layer(layer)
        return np.array(emitter.table, np.int64), np.array(emitter.steps, np.int64), tuple(emitter.layers)

    @staticmethod
    def _join(table: NDArray[np.int64], following: NDArray[np.int64] | None, first: bool) -> None:
        """The tokens that pass from one body to the next."""
        if not first:
            table[0, 1] |= isa.mask(int(table[0, 0]), [isa.SYS])
        if following is not None:
            table[-1, 2] |= isa.mask(isa.SYS, [int(following[0, 0])])

    def _mask(self, layer: Attention) -> NDArray[np.bool_]:
        blocks = -(-layer.tokens // LAYOUT)
        given = self.masks.get(layer.name.removesuffix(".scores"))
        if given is None:
            return np.broadcast_to(np.tri(blocks, dtype=np.bool_), (layer.heads, blocks, blocks))
        if given.ndim != 3 or given.shape[0] != layer.heads or min(given.shape[1:]) < blocks:
            raise MappingError(f"mask of {layer.name!r}: expected [{layer.heads}, {blocks}, {blocks}] or more, found {list(given.shape)}")
        given = given[:, :blocks, :blocks]
        if not given.any(axis=2).all():
            raise MappingError(f"mask of {layer.name!r}: some row keeps no block at all; keep at least the diagonal")
        return given

    # Memory ---------------------------------------------------------------------------------------------------------------
    def memory(self, model: tuple[Body, ...]) -> MemoryMap:
        """Where everything lies, for caches of up to `max_tokens`."""
        memory = MemoryMap()
        for body in model:
            for layer in body.layers:
                if isinstance(layer, Linear):
                    self._place_weight(memory, layer, body.count)
        for body in model:
            for layer in body.layers:
                if isinstance(layer, Attention):
                    self._place_cache(memory, layer, body.count)
        carried = {old: new for body in model for old, new in self._carried(body)}
        for name, (size, channels, pitch, width) in self._values(model).items():
            if name not in carried:
                memory.add(name, "value", size, channels, pitch=pitch, width=width)
        for old, new in carried.items():
            memory.regions[old] = replace(memory[new], name=old)
        return memory

    def _place_weight(self, memory: MemoryMap, layer: Linear, count: int) -> None:
        if layer.weight in memory.regions:
            return
        core, weight = self.core, self.weights[layer.weight]
        rows, columns = layer.k // core.tile, layer.n // core.tile
        if layer.rows == 1:  # MV reads whole groups of outputs
            wide = core.mv_start // core.tile
            columns = -(-columns // wide) * wide
        kept = padded_counts(weight.counts, rows, columns)
        per_channel = [int(kept[:, channel :: core.channels].sum()) for channel in range(core.channels)]
        shift = self.shifts.get(layer.weight, 0)
        size = max(per_channel) * core.tile * weight.stored // 8
        memory.add(layer.weight, "weight", size, core.channels, bits=weight.bits, index_bits=weight.index_bits, shift=shift, count=count)
        if weight.counts is not None and self.options.index != "omitted":
            memory.add(f"{layer.weight}.counts", "counts", rows * columns, 1, count=count)
        if weight.counts is not None and self.options.index == "streamed":
            memory.add(f"{layer.weight}.index", "index", int(kept.sum()) * core.tile // 2, 1, count=count)
        attention = any(part in layer.name for part in ("q_proj", "k_proj", "v_proj", "o_proj", "out_proj"))
        if layer.bias or (self.options.attention_bias and attention):
            memory.add(f"{layer.weight}.bias", "bias", layer.n * 4, 1, count=count)

    def _place_cache(self, memory: MemoryMap, layer: Attention, count: int) -> None:
        core = self.core
        blocks = aligned(self.max_tokens, core.mv_start) // core.tile
        tokens = blocks * core.tile
        if layer.part == "scores":
            pitch = -(-blocks // core.channels) * core.tile * layer.width
        else:
            pitch = -(-layer.width // core.tile // core.channels) * tokens * core.tile
        shift = self.shifts.get(layer.cache, 0)
        kind = "keys" if layer.part == "scores" else "values"
        memory.add(layer.cache, kind, pitch * layer.kv_heads, core.channels, pitch=pitch, width=layer.width, shift=shift, count=count)

    def _values(self, model: tuple[Body, ...]) -> dict[str, tuple[int, int, int, int]]:
        """Bytes per channel, channels, pitch and elements of a row of every vector and matrix between layers."""
        found: dict[str, tuple[int, int, int, int]] = {}
        for layer in (layer for body in model for layer in body.layers):
            for name, heads, rows, width in _shapes(layer):
                if rows == 1:
                    size, channels, pitch = aligned(heads * width, self.core.mv_start), 1, width  # operands are loaded in whole groups
                else:  # blocks of 16 rows go to the channels in turn
                    local = -(-rows // self.core.tile // self.core.channels) * self.core.tile * width
                    size, channels, pitch = heads * local, self.core.channels, local if heads > 1 else width
                if name not in found or size > found[name][0]:
                    found[name] = (size, channels, pitch, width)
        return found

    def _carried(self, body: Body) -> Iterable[tuple[str, str]]:
        """(value that the first repetition reads from outside, value of the repetition before that takes its place)."""
        if body.count == 1:
            return ()
        made = {layer.result for layer in body.layers if not isinstance(layer, Concatenate)}
        read = {v for layer in body.layers for v in _reads(layer)}
        outside = sorted(v for v in read - made if not v.startswith("rope."))
        later = {v for other in self.bodies if other.name != body.name for layer in other.layers for v in _reads(layer)}
        out = sorted(made & later) or sorted(made - read)
        if len(outside) != 1 or len(out) != 1:
            raise MappingError(f"{body.name}: expected one value from layer to layer, found {outside} in and {out} out")
        return ((outside[0], out[0]),)

    def _check_capacity(self, memory: MemoryMap) -> None:
        have = self.device.dram.total
        need = memory.total
        if need > have:
            parts = ", ".join(f"{LABELS[kind]} {size / 2**30:.2f} GiB" for kind, size in memory.by_kind().items() if size > 2**24)
            raise CapacityError(
                f"{self.graph.name}: needs {need / 2**30:.2f} GiB in {self.device.main_memory!r} of {self.device.name}, which holds "
                f"{have / 2**30:.2f} GiB: {need - have} B short ({parts} for up to {self.max_tokens} tokens). Use fewer bits per "
                "weight, prune, or lower max_tokens"
            )

    @property
    def notes(self) -> tuple[str, ...]:
        notes = [*self.graph.notes, "embedding and rotary tables are prepared by the host"]
        if self.options.concatenate == "reload":
            notes.append("joining a token to a cache is charged as a read of the whole cache, as in the released profiler")
        if self.options.index == "omitted" and any(w.counts is not None for w in self.weights.values()):
            notes.append("indices of sparse weights are not loaded, as in the released profiler")
        if self.graph.phase == "prefill":
            notes.append("the prefill stream has an order of weights of its own (block column by block column)")
        return tuple(notes)


def padded_counts(counts: Counts | None, rows: int, columns: int) -> Counts:
    """Counts of a matrix with `columns` block columns, dense where there are none."""
    from mapper.flightllm.emit import padded

    return np.full((rows, columns), WINDOW) if counts is None else padded(counts, rows, columns)


def _shapes(layer: Layer) -> list[tuple[str, int, int, int]]:
    """(value, heads, rows, width) of what a layer reads and writes."""
    match layer:
        case Linear():
            operands = [(name, 1, layer.rows, layer.n) for _, name in layer.fused if name]
            return [(layer.source, 1, layer.rows, layer.k), (layer.result, 1, layer.rows, layer.n), *operands]
        case Rows():
            return [(name, 1, layer.rows, layer.width) for name in (layer.source, layer.result, layer.operand) if name]
        case Attention():
            wide, scores = (1, layer.rows, layer.heads * layer.width), (layer.heads, layer.rows, layer.tokens)
            first, second = (wide, scores) if layer.part == "scores" else (scores, wide)
            return [(layer.source, *first), (layer.result, *second)]
    return []


def _reads(layer: Layer) -> tuple[str, ...]:
    match layer:
        case Linear():
            return (layer.source, *(operand for _, operand in layer.fused if operand))
        case Rows():
            return (layer.source, layer.operand) if layer.operand else (layer.source,)
        case Attention():
            return (layer.source,)
    return ()


def _bits(format: Format, name: str) -> int:
    if format.family not in ("int", "ternary") or format.element_bits > 8:
        raise MappingError(
            f"weight {name!r}: is {format}, but the machine stores integers of up to 8 bits; quantise it first "
            '(`workloads.quantise(graph, weights="int4")`) or name its width in `bits`'
        )
    return format.element_bits
