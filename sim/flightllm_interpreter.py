"""What an instruction stream computes: streams of small integer models, instruction by instruction (prefill: `flightllm_prefill`).

The interpreter knows buffers, memory and the words, nothing of the model. Weights are put into memory in the order in which the
compiler loads them. Two registers are set per token and no part of an instruction: the position, at which a store in column
mode appends to a cache, and the number of valid tokens, to which a masked softmax confines itself (length-adaptive compilation).

It runs in program order, or in the order of the machine's schedule with every load taking effect when it starts and every
reader reading when it ends: the worst that the tokens allow.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hw.device import Device
from hw.units.flightllm import FlightCore
from mapper.errors import MappingError
from mapper.flightllm import isa
from mapper.flightllm.compile import Compiler, Stream, core_of
from mapper.flightllm.emit import mm_tiles, mv_tiles
from mapper.flightllm.isa import LD, SYS
from mapper.flightllm.layers import Linear
from mapper.flightllm.memory import MemoryMap, Region
from sim import flightllm_arithmetic as arithmetic
from sim.flightllm import bursts, timing

Bytes = NDArray[np.uint8]
Integers = NDArray[np.int64]
SIDE = -1
BLOCK = 16
"""Rows of a matrix between layers that lie in one channel."""


def pack(values: Integers, bits: int) -> Bytes:
    """Two's complement values of `bits`, low bits first, as bytes; the inverse of `unpack`."""
    flags = (values[:, None] >> np.arange(bits)) & 1
    return np.packbits(flags.astype(np.uint8).reshape(-1), bitorder="little")


def unpack(data: Bytes, bits: int, count: int) -> Integers:
    flags = np.unpackbits(data, bitorder="little")[: bits * count].reshape(count, bits).astype(np.int64)
    values: Integers = flags @ (1 << np.arange(bits))
    return values - (flags[:, -1] << bits)


def signed(codes: Integers, bits: int) -> Integers:
    """The low `bits` of each code as a two's complement number."""
    low = codes & ((1 << bits) - 1)
    return low - ((low >> (bits - 1)) << bits)


class Memory:
    """The HBM channels of one core and its side channel, as far as the map reaches."""

    def __init__(self, plan: MemoryMap, channels: int) -> None:
        self.plan = plan
        ends = {side: max((r.end for r in plan.ordered(side)), default=0) for side in (False, True)}
        self.main = np.zeros((channels, ends[False]), np.uint8)
        self.side = np.zeros(ends[True], np.uint8)

    def space(self, channel: int) -> Bytes:
        data: Bytes = self.side if channel == SIDE else self.main[channel]
        return data

    def write(self, channel: int, address: int, data: Bytes) -> None:
        space = self.space(channel)
        if address + len(data) > len(space):
            raise MappingError(f"a store of {len(data)} B at {address:#x} leaves the memory map ({len(space):#x})")
        space[address : address + len(data)] = data

    def read(self, channel: int, address: int, size: int) -> Bytes:
        space = self.space(channel)
        if address + size > len(space):
            raise MappingError(f"a load of {size} B at {address:#x} leaves the memory map ({len(space):#x})")
        return space[address : address + size]

    def put_vector(self, name: str, values: Integers) -> None:
        self.write(0, self.plan[name].start, values.astype(np.int8).view(np.uint8))

    def vector(self, name: str, size: int) -> Integers:
        return self.read(0, self.plan[name].start, size).view(np.int8).astype(np.int64)

    def put_weight(self, core: FlightCore, layer: Linear, repetition: int, matrix: Integers, counts: Integers | None) -> None:
        """A [K, N] matrix in the order of the MV loads: by group of outputs, tile of K, block column and block."""
        region, tile = self.plan[layer.weight], core.tile
        self._fits(layer, matrix)
        wide = core.mv_start // tile
        rows, columns = layer.k // tile, -(-layer.n // core.mv_start) * wide
        used = min(layer.n // tile, wide)
        grid = np.zeros((rows, tile, columns, tile), np.int64)
        grid[:, :, : layer.n // tile] = matrix.reshape(rows, tile, -1, tile)
        kept = np.full((rows, columns), tile)
        if counts is not None:
            kept[:, : counts.shape[1]] = counts
            kept[:, counts.shape[1] :] = int(counts.max())
        tiles, _ = mv_tiles(core, rows)
        pointers = [region.start + repetition * region.size] * core.channels
        index_at = count_at = 0
        index = self.plan.regions.get(f"{layer.weight}.index")
        amount = self.plan.regions.get(f"{layer.weight}.counts")
        for group in range(columns // wide):
            for start, end in tiles:
                for channel in range(core.channels):
                    mine = [group * wide + c for c in range(channel, used, core.channels)]
                    values: list[Integers] = []
                    indices: list[Integers] = []
                    for column in mine:
                        for row in range(start, end):
                            chosen, which = keep(grid[row, :, column], int(kept[row, column]))
                            values.append(chosen.reshape(-1))
                            indices.append(which.reshape(-1))
                    if not mine:
                        continue
                    codes = np.concatenate(values) & ((1 << region.bits) - 1)
                    if region.index_bits:
                        codes |= np.concatenate(indices) << region.bits
                    stored = pack(codes, region.stored)
                    self.write(channel, pointers[channel], stored)
                    pointers[channel] += len(stored)
                    if index is not None:
                        nibbles = pack(np.concatenate(indices), 4)
                        self.write(SIDE, index.start + repetition * index.size + index_at, nibbles)
                        index_at += len(nibbles)
                    if amount is not None:
                        numbers = kept[start:end, mine].T.reshape(-1).astype(np.uint8)
                        self.write(SIDE, amount.start + repetition * amount.size + count_at, numbers)
                        count_at += len(numbers)

    def put_weight_columns(self, core: FlightCore, layer: Linear, repetition: int, matrix: Integers, counts: Integers | None) -> None:
        """A [K, N] matrix in the order of the MM loads: by block column and tile of K; columns go to the channels in turn."""
        region, tile = self.plan[layer.weight], core.tile
        self._fits(layer, matrix)
        grid = matrix.reshape(layer.k // tile, tile, layer.n // tile, tile)
        kept = np.full((grid.shape[0], grid.shape[2]), tile) if counts is None else counts
        tiles, _ = mm_tiles(core, grid.shape[0])
        pointers = [region.start + repetition * region.size] * core.channels
        sides = {part: self.plan.regions.get(f"{layer.weight}.{part}") for part in ("index", "counts")}
        written = dict.fromkeys(sides, 0)
        for column in range(grid.shape[2]):
            channel = column % core.channels
            for start, end in tiles:
                pairs = [keep(grid[row, :, column], int(kept[row, column])) for row in range(start, end)]
                codes = np.concatenate([values.reshape(-1) for values, _ in pairs]) & ((1 << region.bits) - 1)
                indices = np.concatenate([rows.reshape(-1) for _, rows in pairs])
                if region.index_bits:
                    codes |= indices << region.bits
                stored = pack(codes, region.stored)
                self.write(channel, pointers[channel], stored)
                pointers[channel] += len(stored)
                parts = {"index": pack(indices, 4), "counts": kept[start:end, column].astype(np.uint8)}
                for part, side in sides.items():
                    if side is not None:
                        self.write(SIDE, side.start + repetition * side.size + written[part], parts[part])
                        written[part] += len(parts[part])

    def put_matrix(self, name: str, values: Integers) -> None:
        """[rows, width] values between layers of a prefill: blocks of 16 rows go to the channels in turn."""
        region = self.plan[name]
        for number, row in enumerate(values.astype(np.int8).view(np.uint8)):
            self.write(*self._row(region, number), row)

    def matrix(self, name: str, rows: int) -> Integers:
        region = self.plan[name]
        found = [self.read(*self._row(region, number), region.width) for number in range(rows)]
        return np.stack(found).view(np.int8).astype(np.int64)

    @staticmethod
    def _row(region: Region, number: int) -> tuple[int, int]:
        block, row = divmod(number, BLOCK)
        return block % region.channels, region.start + (block // region.channels * BLOCK + row) * region.width

    def _fits(self, layer: Linear, matrix: Integers) -> None:
        bits = self.plan[layer.weight].bits
        limit = 1 << bits - 1
        if matrix.min() < -limit or matrix.max() >= limit:
            raise MappingError(f"weight {layer.weight!r}: values do not fit {bits} bits")

    def put_bias(self, name: str, repetition: int, values: Integers) -> None:
        region = self.plan[name]
        self.write(SIDE, region.start + repetition * region.size, values.astype("<i4").view(np.uint8))


def keep(block: Integers, count: int) -> tuple[Integers, Integers]:
    """The `count` weights of each column of a 16 x 16 block that are stored, in order of their rows, and their rows.

    Those that are not zero come first in the choice. Raises `MappingError` when a column has more of them than `count`.
    """
    if (block != 0).sum(axis=0).max(initial=0) > count:
        raise MappingError(
            f"a block keeps {int((block != 0).sum(axis=0).max())} of {len(block)} weights in a column, but is stored with {count}; "
            "prune it first"
        )
    order = np.sort(np.argsort(block == 0, axis=0, kind="stable")[:count], axis=0)
    return np.take_along_axis(block, order, axis=0), order


@dataclass
class _Loaded:
    """What a load left in a buffer."""

    values: Integers
    region: Region
    index: Integers


class Interpreter:
    """Executes decode streams of one compiler on a memory.

    Raises `MappingError` for streams that keep vectors on chip, whose vectors no instruction moves, and for streams of another phase.
    """

    phase = "decode"
    engines = frozenset({isa.MV})

    def __init__(self, stream: Stream, device: Device, memory: Memory) -> None:
        if stream.phase != self.phase:
            raise MappingError(f"{stream.name}: this interpreter runs {self.phase} streams, found a {stream.phase} stream")
        self.core = core_of(device)
        self.stream = stream
        self.device = device
        self.memory = memory
        self.table = isa.decode(stream.words)
        loads = np.flatnonzero(self.table[:, 0] == LD)
        self.spread = dict(zip(loads.tolist(), bursts(self.table[loads]).tolist(), strict=True))
        self.layer = np.cumsum(self.table[:, 0] == SYS) - (self.table[:, 0] == SYS)
        self.position = 0
        self.a: dict[tuple[int, int, int], _Loaded] = {}  # by layer, channel and entry, like the next two
        self.b_values = np.zeros(self.core.b_depth * self.core.tile, np.int64)
        self.meta: dict[tuple[int, int, int], Integers] = {}
        self.mask: dict[tuple[int, int, int], Integers] = {}
        self.bias = np.zeros(0, np.int64)
        self.results: dict[int, Integers] = {}
        self.copies: dict[int, dict[int, Integers]] = {}
        self.sums = np.zeros(self.core.mv_start, np.int64)

    def run(self, position: int, scheduled: bool = False) -> None:
        """One token at `position` (0 for the first); `scheduled` uses the machine's order instead of the program's."""
        if not 0 <= position < self.stream.context:
            raise MappingError(f"position {position} is outside the {self.stream.context} tokens that this stream serves")
        self.position = position
        self._run(scheduled)

    def _run(self, scheduled: bool) -> None:
        rows = self.table.tolist()
        order = self._worst_order() if scheduled else range(len(rows))
        for index in order:
            self._execute(index, rows[index])

    def _worst_order(self) -> list[int]:
        """Loads when they start, everything else when it ends; what ends goes before what starts at the same time."""
        spans = schedule(self.table, timing(self.table, self.stream, self.device).duration)
        keys = [
            (start if row[0] == LD else end, row[0] == LD, index)
            for index, (row, (start, end)) in enumerate(zip(self.table.tolist(), spans, strict=True))
        ]
        return [index for _, _, index in sorted(keys)]

    def _execute(self, index: int, row: list[int]) -> None:
        fields = dict(zip((f.name for f in isa.SPECS[row[0]].fields), row[3:], strict=False))
        match row[0]:
            case isa.LD:
                self._load(index, fields)
            case isa.ST:
                self._store(fields)
            case isa.MV | isa.MM if row[0] in self.engines:
                self._multiply(int(self.layer[index]), fields)
            case isa.MISC:
                self._misc(fields)
            case isa.SYS:
                pass
            case _:
                raise MappingError(f"instruction {index}: {isa.QUEUES[row[0]]} in a {self.phase} stream")

    # Memory to buffers ------------------------------------------------------------------------------------------------
    def _load(self, index: int, f: dict[str, int]) -> None:
        mode = isa.MODES[f["mode"]]
        side = mode in ("meta", "mask", "bias")
        region = self.memory.plan.find(f["address"], side)
        pieces = []
        channel = SIDE if side else f["channel"] if region.channels > 1 else 0
        for loop in range(f["loop1"]):
            size = f["length"] * region.stored // 8
            pieces.append(self.memory.read(channel, f["address"] + loop * f["stride1"], size))
        raw = np.concatenate(pieces)
        count = f["length"] * f["loop1"]
        key = (int(self.layer[index]), f["channel"], f["bank"])
        if mode == "A":
            codes = unpack(raw, region.stored, count)
            self.a[key] = _Loaded(signed(codes, region.bits), region, codes >> region.bits & 15)
        elif mode == "B":
            start = f["bank"] * self.core.tile
            self.b_values[start : start + count] = raw.view(np.int8)
        elif mode == "meta":
            self.meta[key] = unpack(raw, 4, 2 * len(raw)) & 15
        elif mode == "mask":
            self.mask[key] = raw.astype(np.int64)
        elif mode == "bias":
            self.bias = raw.view("<i4").astype(np.int64)
        elif self.spread[index] > 1:
            if region.channels == 1:  # what a concatenation reads again goes nowhere
                self.copies.setdefault(f["bank"], {})[f["channel"]] = raw.view(np.int8).astype(np.int64)
        elif region.kind == "value":
            self._keep(f["bank"], raw.view(np.int8).astype(np.int64))

    def _keep(self, entry: int, values: Integers) -> None:
        """Results in the global buffer from `entry` on; what was there is gone."""
        height = -(-len(values) // (self.core.global_width * self.core.channels))
        for other in [e for e in self.results if entry <= e < entry + height]:
            del self.results[other]
        for other in [e for e in self.copies if entry <= e < entry + height]:
            del self.copies[other]
        self.results[entry] = values

    # Products -----------------------------------------------------------------------------------------------------------
    def _multiply(self, layer: int, f: dict[str, int]) -> None:
        core, tile = self.core, self.core.tile
        x = self.b_values[f["b_addr"] * tile : (f["b_addr"] + f["k"]) * tile]
        valid = 0
        shift = 0
        for channel in range(core.channels):
            loaded = self.a.get((layer, channel, f["a_addr"]))
            blocks = self._sparse(layer, channel, f) if f["sparse"] else self._dense(loaded, f)
            shift = loaded.region.shift if loaded is not None else shift
            for loop, block in enumerate(blocks):
                column = (loop * core.channels + channel) * tile
                self.sums[column : column + tile] += x @ block
                valid = max(valid, column + tile)
        if not f["output"]:
            return
        sums = self.sums[:valid].copy()
        self.sums[:] = 0
        if f["bias"]:
            start = f["bias_addr"] * core.bias_width // 4
            part = self.bias[start : start + valid]
            sums[: len(part)] += part
        self._keep(f["out_addr"], arithmetic.requantise(sums, shift, bool(f["relu"])))

    def _dense(self, loaded: _Loaded | None, f: dict[str, int]) -> list[Integers]:
        """The [K, 16] matrices that a channel's part of buffer A holds, one per block column."""
        tile, k = self.core.tile, f["k"]
        if loaded is None:
            return []
        if loaded.region.kind == "keys":  # 16 tokens after the other: transposed
            return [m.T for m in loaded.values.reshape(-1, tile, k * tile)]
        return list(loaded.values.reshape(-1, k * tile, tile))

    def _sparse(self, layer: int, channel: int, f: dict[str, int]) -> list[Integers]:
        """The same from kept weights, their counts and indices."""
        tile, k = self.core.tile, f["k"]
        counts = self.mask.get((layer, channel, f["mask_addr"]))
        if counts is None:
            if self.a.get((layer, channel, f["a_addr"])) is None:
                return []
            raise MappingError(
                "a sparse product without counts and indices: this stream was compiled with index='omitted'; it can be timed, not run"
            )
        out = np.zeros((len(counts) // k, k, tile, tile), np.int64)
        if not counts.any():
            return list(out.reshape(-1, k * tile, tile))
        loaded = self.a[layer, channel, f["a_addr"]]
        kept_weights, index = loaded.values, loaded.index
        if not loaded.region.index_bits:
            index = self.meta[layer, channel, f["meta_addr"]]
        at = 0
        for number, kept in enumerate(counts.tolist()):
            values = kept_weights[at : at + kept * tile].reshape(kept, tile)
            rows = index[at : at + kept * tile].reshape(kept, tile)
            np.put_along_axis(out[number // k, number % k], rows, values, axis=0)
            at += kept * tile
        return list(out.reshape(-1, k * tile, tile))

    # Rows ---------------------------------------------------------------------------------------------------------------
    def _elements(self, entry: int, size: int) -> Integers:
        """`size` elements of results in a row from `entry` on."""
        parts: list[Integers] = []
        have = 0
        for key in sorted(e for e in self.results if e >= entry):
            parts.append(self.results[key])
            have += len(parts[-1])
            if have >= size:
                break
        return np.concatenate(parts)[:size] if have >= size else np.concatenate([*parts, np.zeros(size - have, np.int64)])

    def _operand(self, entry: int, size: int) -> Integers:
        """The second operand: a copy in every channel's banks, or results."""
        if copies := self.copies.get(entry):
            tile, channels = self.core.tile, self.core.channels
            whole = np.stack([copies[c] for c in range(channels)])
            count = min(size, whole.shape[1]) // tile
            return np.concatenate([whole[i % channels, i * tile : (i + 1) * tile] for i in range(count)])
        return self._elements(entry, size)

    def _misc(self, f: dict[str, int]) -> None:
        name, size = isa.OPERATIONS[f["operation"]], f["k"] * self.core.tile
        a = self._elements(f["a_addr"], size)
        if name in arithmetic.PAIRS:
            b = self._operand(f["b_addr"], size)
            out = arithmetic.PAIRS[name](a[: len(b)], arithmetic.exchange(b) if f["mask"] else b)
        elif name == "softmax":
            out = arithmetic.softmax(a, self.position + 1 if f["mask"] else size)
            height = -(-len(a) // (self.core.global_width * self.core.channels))
            for other in [e for e in self.results if f["a_addr"] <= e < f["a_addr"] + max(height, 1)]:
                del self.results[other]
        else:
            out = arithmetic.ROWS[name](a)
        self._keep(f["out_addr"], out)

    # Buffers to memory --------------------------------------------------------------------------------------------------
    def _store(self, f: dict[str, int]) -> None:
        size = f["length"] * f["loop1"]
        if not size:
            return
        values = self._elements(f["bank"], size).astype(np.int8).view(np.uint8)
        region = self.memory.plan.find(f["address"], False)
        if not f["column"]:
            self.memory.write(f["channel"] if region.channels > 1 else 0, f["address"], values)
            return
        core, tile, width, p = self.core, self.core.tile, region.width, self.position
        for head in range(size // width):
            part = values[head * width : (head + 1) * width]
            base = f["address"] + head * region.pitch
            if region.kind == "keys":
                block = p // tile
                self.memory.write(block % core.channels, base + (block // core.channels * tile + p % tile) * width, part)
                continue
            lane = region.pitch // -(-width // tile // core.channels)
            for j in range(width // tile):
                self.memory.write(j % core.channels, base + j // core.channels * lane + p * tile, part[j * tile : (j + 1) * tile])


def schedule(table: isa.Table, duration: NDArray[np.int64]) -> list[tuple[int, int]]:
    """Start and end of every instruction by the rule of the program semantics, for a stream whose waits follow their releases."""
    free = [0] * 6
    tokens: dict[tuple[int, int], list[int]] = {}
    spans: list[tuple[int, int]] = []
    for row, lasts in zip(table.tolist(), duration.tolist(), strict=True):
        queue = row[0]
        start = free[queue]
        for other in isa.partners(queue, row[1]):
            arrived = tokens.get((other, queue))
            if not arrived:
                raise MappingError(
                    f"instruction {len(spans)} on {isa.QUEUES[queue]} waits for {isa.QUEUES[other]}, which has released nothing"
                )
            start = max(start, arrived.pop(0))
        free[queue] = end = start + lasts
        for other in isa.partners(queue, row[2]):
            tokens.setdefault((queue, other), []).append(end)
        spans.append((start, end))
    return spans


def load_model(compiler: Compiler, stream: Stream, weights: Mapping[str, Any], biases: Mapping[str, Any] | None = None) -> Memory:
    """A memory with the weights of a model: by name, one [K, N] matrix per repetition; biases likewise, by the weight's name."""
    memory = Memory(stream.memory, compiler.core.channels)
    for body in compiler.bodies:
        for layer in body.layers:
            if not isinstance(layer, Linear):
                continue
            for repetition in range(body.count):
                matrix = np.asarray(weights[layer.weight][repetition], np.int64)
                put = memory.put_weight if layer.rows == 1 else memory.put_weight_columns
                put(compiler.core, layer, repetition, matrix, compiler.weights[layer.weight].counts)
                name = f"{layer.weight}.bias"
                if name in stream.memory.regions:
                    given = (biases or {}).get(layer.weight)
                    values = np.zeros(layer.n, np.int64) if given is None else np.asarray(given[repetition], np.int64)
                    memory.put_bias(name, repetition, values)
    return memory
