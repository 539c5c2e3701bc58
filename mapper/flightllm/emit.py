"""Layers as instructions: tiles, buffer addresses, and the tokens that keep queues in step.

Every layer starts when the layer before has stored its result (a SYS instruction passes the token on). Within a layer, loads run
ahead of products as far as the weight and index buffers reach. The order of instructions, the tiles along K, and which loads
are made at all follow the generator in the authors' released test demo (github.com/FlightLLM/flightllm_test_demo,
`profile/inst_gen`), so that the profile there can be compared instruction by instruction; `Options` says where it can differ.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import gcd
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from hw.units.flightllm import FlightCore
from mapper.errors import CapacityError, MappingError
from mapper.flightllm import isa
from mapper.flightllm.isa import LD, MISC, MM, MV, ST, SYS
from mapper.flightllm.layers import Attention, Concatenate, Layer, Linear, Rows
from mapper.flightllm.memory import MemoryMap, Region

Counts = NDArray[np.int64]
"""How many weights of 16 each block keeps, by block row (K) and block column (N)."""

_MODE = {name: i for i, name in enumerate(isa.MODES)}
_OPERATION = {name: i for i, name in enumerate(isa.OPERATIONS)}
LAYOUT = 64
"""Rows and columns of a block of the attention mask."""


@dataclass(frozen=True)
class Options:
    """What the compiler does beyond the products.

    `boundary`: `hbm` stores each layer's result and loads it again for the next, as the released generator does;
    `on_chip` hands vectors over in the buffers (decode only).
    `fuse`: elementwise operators join the linear layer before them; otherwise each is a layer with loads and stores of its own.
    `index`: how the 4-bit indices of sparse weights come on chip. `streamed`: from the side channel, as the instruction set has it;
    `interleaved`: next to each weight, in the channels of the weights, with only the counts from the side channel; `omitted`: not at
    all, as in the released generator.
    `concatenate`: `reload` charges a read of the whole cache when a token joins it, as the released generator does; `append` does not.
    `attention_bias`: the four projections of attention load int32 biases even where the model has none: offsets of asymmetric
    activations, as in the released intermediate representation.
    `sparse`: zeros are skipped in the chains; otherwise sparse weights are expanded to dense ones before they are multiplied.
    """

    boundary: Literal["hbm", "on_chip"] = "hbm"
    fuse: bool = True
    index: Literal["streamed", "interleaved", "omitted"] = "streamed"
    concatenate: Literal["reload", "append"] = "append"
    attention_bias: bool = False
    sparse: bool = True


AS_RELEASED = Options(index="omitted", concatenate="reload", attention_bias=True)
"""The choices behind the authors' published profile."""


@dataclass(frozen=True)
class Weights:
    """A weight matrix as compiled: `counts` of its blocks (None: dense), bits per value, and bits of the index beside it."""

    counts: Counts | None
    bits: int
    index_bits: int = 0

    @property
    def stored(self) -> int:
        """Bits per value in memory."""
        return self.bits + self.index_bits


class Emitter:
    """Collects rows of an instruction table. `local` marks those whose address moves with the repetition of the body."""

    def __init__(
        self, core: FlightCore, memory: MemoryMap, weights: Mapping[str, Weights], options: Options, masks: Mapping[str, NDArray[np.bool_]]
    ) -> None:
        self.core = core
        self.memory = memory
        self.weights = weights
        self.options = options
        self.masks = masks
        self.table: list[list[int]] = []
        self.steps: list[int] = []  # per row: bytes by which its address moves per repetition
        self.layers: list[tuple[str, int]] = []  # name and first row of each layer
        self.barrier: list[int] | None = None  # the SYS of the layer before

    # Instructions -----------------------------------------------------------------------------------------------------
    def load(
        self,
        mode: str,
        region: Region | None,
        offset: int,
        length: int,
        bank: int,
        channel: int = 0,
        loop: tuple[int, int] = (1, 0),
        *,
        zero: bool = False,
    ) -> list[int]:
        address = region.start + offset if region else 0
        row = [LD, 0, 0, _MODE[mode], channel, bank, loop[1], 0, 0, address, loop[0], 1, 1, int(zero), 1, length]
        if length >= 1 << 23:
            raise CapacityError(f"a load of {length} B exceeds the 23-bit length of LD; the layer is too large for this machine")
        self._add(row, region)
        return row

    def store(self, region: Region | None, offset: int, length: int, bank: int, channel: int = 0, *, column: bool = False) -> list[int]:
        address = region.start + offset if region else 0
        row = [ST, 0, 0, bank, 1, int(column), address, 1, channel, length] + [0] * (isa.COLUMNS - 10)
        self._add(row, region)
        return row

    def multiply(
        self, queue: int, k: int, a: int, b: int, out: int, *, last: bool, linear: Linear | None = None, biased: bool = False,
        bias: int = 0, sparse: bool = False, meta: int = 0, mask: int = 0,
    ) -> list[int]:  # fmt: skip
        relu = bool(linear and linear.relu)
        row = [queue, 0, 0, k, int(last), int(biased), int(relu), int(sparse), bias, meta, mask, a, b, out] + [0] * (isa.COLUMNS - 14)
        self._add(row, None)
        return row

    def misc(self, operation: str, k: int, a: int, b: int = 0, out: int | None = None, *, mask: bool = False) -> list[int]:
        row = [MISC, 0, 0, a, int(mask), _OPERATION[operation], b, a if out is None else out, k] + [0] * (isa.COLUMNS - 9)
        self._add(row, None)
        return row

    def _add(self, row: list[int], region: Region | None) -> None:
        self.table.append(row)
        self.steps.append(region.size if region and region.count > 1 else 0)

    @staticmethod
    def link(producer: list[int], consumer: list[int]) -> None:
        """One token from an instruction to a later one."""
        producer[2] |= isa.mask(producer[0], [consumer[0]])
        consumer[1] |= isa.mask(consumer[0], [producer[0]])

    # Layers -----------------------------------------------------------------------------------------------------------
    def layer(self, layer: Layer) -> None:
        """One layer. Its first instruction waits for the SYS of the layer before; its last one releases its own SYS."""
        first = len(self.table)
        self.layers.append((layer.name, first))
        match layer:
            case Linear(rows=1):
                last = self.linear_mv(layer)
            case Linear():
                last = self.linear_mm(layer)
            case Rows():
                last = self.rows(layer)
            case Concatenate():
                last = self.concatenate(layer)
            case Attention(rows=1):
                last = self.attention_mv(layer)
            case Attention():
                last = self.attention_mm(layer)
        if self.barrier is not None:
            self.link(self.barrier, self.table[first])
        self.barrier = [SYS] + [0] * (isa.COLUMNS - 1)
        self._add(self.barrier, None)
        self.link(last, self.barrier)

    def vector(self, name: str) -> Region:
        return self.memory[name]

    def on_chip(self) -> bool:
        return self.options.boundary == "on_chip"

    # One row: MV ------------------------------------------------------------------------------------------------------
    def linear_mv(self, layer: Linear) -> list[int]:
        core = self.core
        blocks, wide = layer.k // core.tile, core.mv_start // core.tile
        self._whole(layer)
        weight, region = self.weights[layer.weight], self.memory[layer.weight]
        groups = -(-layer.n // core.mv_start)
        tiles, slots = mv_tiles(core, blocks)
        counts = padded(weight.counts, blocks, groups * wide)
        chosen = weight.counts is not None
        self._sequence(layer.source, layer.k, "B")
        biased = self._bias(layer)
        loops = wide // core.channels
        entry = -(-max(end - start for start, end in tiles) * loops * core.tile**2 // core.a_width)
        pointers = [0] * core.channels
        meta_pointer = mask_pointer = 0
        products: list[list[int]] = []
        used = min(layer.n // core.tile, wide)
        meta_size, mask_size = core.meta_depth // slots, core.mask_depth // slots
        results: list[list[int]] = []
        for group in range(groups):
            for start, end in tiles:
                index = len(products)
                slot = index % slots
                opening = len(self.table)
                parts: list[tuple[int, int, int]] = []  # channel, blocks, buffer bytes
                for channel in range(core.channels):
                    columns = [
                        group * wide + loop * core.channels + channel for loop in range(loops) if loop * core.channels + channel < used
                    ]
                    kept = int(counts[start:end, columns].sum()) * core.tile if chosen else (end - start) * core.tile**2 * len(columns)
                    if columns:
                        parts.append((channel, (end - start) * len(columns), kept))
                if chosen and self.options.index != "omitted":
                    for channel, size, _ in parts:
                        self.load("mask", self.memory[f"{layer.weight}.counts"], mask_pointer, size, slot * mask_size, channel)
                        mask_pointer += size
                if chosen and self.options.index == "streamed":
                    for channel, kept in ((channel, kept) for channel, _, kept in parts if kept):
                        self.load("meta", self.memory[f"{layer.weight}.index"], meta_pointer, kept // 2, slot * meta_size, channel)
                        meta_pointer += kept // 2
                for channel, kept in ((channel, kept) for channel, _, kept in parts if kept):
                    self.load("A", region, pointers[channel], kept, slot * entry, channel)
                    pointers[channel] += kept * weight.stored // 8
                if len(self.table) == opening:
                    raise MappingError(
                        f"layer {layer.name!r}: blocks {start} to {end} of K keep no weight in outputs from {group * core.mv_start} on; "
                        "prune less"
                    )
                product = self.multiply(
                    MV, end - start, slot * entry, start, 2 * group, last=end == blocks, linear=layer, biased=biased,
                    bias=group * core.mv_start * 4 // core.bias_width, sparse=chosen and self.options.sparse,
                    meta=slot * meta_size if chosen else 0, mask=slot * mask_size if chosen else 0,
                )  # fmt: skip
                self.link(self.table[-2], product)
                if index >= slots:
                    self.link(products[index - slots], self.table[opening])
                products.append(product)
            results.append(self._fused_mv(layer, group, groups, products[-1]) or products[-1])
        return self._result(layer, results[-1], layer.n)

    def _whole(self, layer: Linear) -> None:
        for what, size in (("inputs", layer.k), ("outputs", layer.n)):
            if size % self.core.tile:
                raise MappingError(
                    f"layer {layer.name!r}: {size} {what} are not a multiple of the {self.core.tile} of a block; pad the model"
                )

    def _sequence(self, name: str, size: int, mode: str) -> None:
        """The input vector, unless it is on chip already."""
        if not self.on_chip():
            if size > self.core.b_depth * self.core.tile:
                raise CapacityError(f"value {name!r}: {size} B do not fit buffer B ({self.core.b_depth * self.core.tile} B)")
            region = self.vector(name)
            rows = region.size * region.channels // region.width if region.channels > 1 else 1
            channel, offset = self._row(rows - 1, region.width)  # the last row of a matrix: the next token follows from it
            self.load(mode, region, offset, size, 0, channel)

    def _bias(self, layer: Linear) -> bool:
        name = f"{layer.weight}.bias"
        if name not in self.memory.regions:
            return False
        if layer.n * 4 > self.core.bias_depth * self.core.bias_width:
            raise CapacityError(
                f"layer {layer.name!r}: {layer.n * 4} B of biases exceed the bias buffer ({self.core.bias_depth * self.core.bias_width} B)"
            )
        self.load("bias", self.memory[name], 0, layer.n * 4, 0)
        return True

    def _operand(self, name: str, group: int, size: int, bank: int) -> list[int]:
        """The second operand of a MISC operation: a copy of the group's elements in the banks of every channel."""
        last: list[int] = []
        if not self.on_chip():
            for channel in range(self.core.channels):
                last = self.load("global", self.vector(name), group * size, size, bank, channel)
        return last

    def _fused_mv(self, layer: Linear, group: int, groups: int, product: list[int]) -> list[int] | None:
        if not layer.fused:
            return None
        core = self.core
        size, here = core.mv_start, 2 * group
        copies = [operand for _, operand in layer.fused if operand]
        height = size // core.global_width
        base = 2 * groups
        extra = 2 * groups if len(layer.fused) == 3 else 0
        bank = base + extra + group * len(copies) * height
        if base + extra + groups * len(copies) * height > core.global_depth:
            if base + extra + 4 * len(copies) * height > core.global_depth:
                raise CapacityError(
                    f"layer {layer.name!r}: its results and operands exceed the global buffer ({core.global_depth} entries)"
                )
            ring = (core.global_depth - base - extra) // (len(copies) * height)
            bank = base + extra + group % ring * len(copies) * height
        arrived = [self._operand(name, group, size, bank + i * height) for i, name in enumerate(copies)]
        count = size // core.tile
        if len(layer.fused) == 3:
            scratch = base + 2 * group
            steps = [self.misc("mul", count, here, bank, scratch), self.misc("mul", count, here, bank + height, here)]
            steps.append(self.misc("add", count, here, scratch, here, mask=True))
        else:
            steps = [self.misc(operation, count, here, bank if operand else 0, here) for operation, operand in layer.fused]
        self.link(product, steps[0])
        for load, step in zip(arrived, steps, strict=False):
            if load:
                self.link(load, step)
        return steps[-1]

    def _result(self, layer: Linear, last: list[int], size: int) -> list[int]:
        if self.on_chip() and not layer.cache:
            return last
        region = self.memory[layer.cache or layer.result]
        store = self.store(region, 0, size, 0, column=bool(layer.cache))
        self.link(last, store)
        return store

    def attention_mv(self, layer: Attention) -> list[int]:
        core = self.core
        scores = layer.part == "scores"
        k, n = (layer.width, layer.tokens) if scores else (layer.tokens, layer.width)
        if layer.width % core.tile or layer.tokens % core.tile:
            raise MappingError(
                f"layer {layer.name!r}: {layer.tokens} tokens of width {layer.width} are not multiples of {core.tile}; align the context"
            )
        blocks, wide = k // core.tile, core.mv_start // core.tile
        region, steps = self.memory[layer.cache], -(-n // core.mv_start)
        loops = wide // core.channels
        entry = -(-blocks * loops * core.tile**2 // core.a_width)
        slots = core.a_depth // entry
        if slots < 2:
            raise CapacityError(f"layer {layer.name!r}: {k} rows of a head do not fit buffer A twice; use a shorter context")
        if layer.heads * blocks > core.b_depth:
            raise CapacityError(f"layer {layer.name!r}: {layer.heads} x {k} B do not fit buffer B; use a shorter context")
        if 2 * steps * layer.heads > core.global_depth:
            raise CapacityError(
                f"layer {layer.name!r}: the results of {layer.heads} heads do not fit the global buffer; use a shorter context"
            )
        self._sequence(layer.source, k * layer.heads, "B")
        used = min(n // core.tile, wide)
        products: list[list[int]] = []
        last: list[int] = []
        for head in range(layer.heads):
            base = head * layer.kv_heads // layer.heads * region.pitch
            first = 2 * steps * head
            for step in range(steps):
                slot = len(products) % slots
                opening = len(self.table)
                for channel in range(core.channels):
                    count = len(range(channel, used, core.channels))
                    if not count:
                        continue
                    if scores:  # blocks of 16 tokens, one channel after the other; every group loads as much as the first
                        self.load("A", region, base + step * loops * core.tile * k, core.tile * k * count, slot * entry, channel)
                    else:  # 16 elements of each token
                        loop = (count, self._lane(region)) if count > 1 else (1, 0)
                        self.load("A", region, base, core.tile * k, slot * entry, channel, loop)
                product = self.multiply(MV, blocks, slot * entry, head * blocks, first + 2 * step, last=True)
                self.link(self.table[-2], product)
                if len(products) >= slots:
                    self.link(products[-slots], self.table[opening])
                products.append(product)
            last = products[-1]
            if scores:
                last = self.misc("softmax", n // core.tile, first, mask=True)
                self.link(products[-1], last)
        if self.on_chip():
            return last
        store = self.store(self.vector(layer.result), 0, n * layer.heads, 0)
        self.link(last, store)
        return store

    def concatenate(self, layer: Concatenate) -> list[int]:
        """Reads what the cache holds already, in every channel, and stores nothing: the token's own store has happened."""
        region = self.memory[layer.cache]
        held = -(-(layer.tokens - 1) * layer.heads * layer.width // self.core.channels)
        for channel in range(self.core.channels):
            self.load("global", region, 0, held, 0, channel)
        return self.store(None, 0, 0, 0)

    # Row by row: MISC -------------------------------------------------------------------------------------------------
    def rows(self, layer: Rows) -> list[int]:
        core = self.core
        if layer.width % core.tile:
            raise MappingError(f"layer {layer.name!r}: rows of {layer.width} are not a multiple of {core.tile}")
        capacity = core.global_depth * core.global_width * core.channels
        height = -(-layer.width // (core.global_width * core.channels))
        slots = capacity // ((4 if layer.operand else 2) * layer.width)
        if slots < 2 and layer.rows > 1:
            raise CapacityError(f"layer {layer.name!r}: rows of {layer.width} do not fit the global buffer twice")
        done: list[list[int]] = []
        stores: list[list[int]] = []
        half = core.global_depth // 2
        if self.on_chip():
            return self.misc(layer.operation, layer.width // core.tile, 0, half if layer.operand else 0, mask=layer.exchange)
        source, result = self.vector(layer.source), self.vector(layer.result)
        for number in range(layer.rows):
            bank = number % max(slots, 1) * height
            channel, offset = self._row(number, layer.width)
            opening = self.load("global", source, offset, layer.width, bank, channel)
            if layer.operand:
                region = self.vector(layer.operand)
                self.load("global", region, self._row(number, region.width)[1], layer.width, half + bank, channel)
            loaded = self.table[-1]
            step = self.misc(layer.operation, layer.width // core.tile, bank, half + bank if layer.operand else 0, mask=layer.exchange)
            self.link(loaded, step)
            if number >= slots:
                self.link(done[number - slots], opening)
                self.link(stores[number - slots], step)
            target = self.memory[layer.cache] if layer.cache else result
            if layer.cache and layer.rows > 1:  # the place of the row in the first head
                channel, offset = self._row(number, target.width) if target.kind == "keys" else (0, number * core.tile)
            elif layer.cache:
                offset = 0
            store = self.store(target, offset, layer.width, bank, channel, column=bool(layer.cache))
            self.link(step, store)
            done.append(step)
            stores.append(store)
        return stores[-1]

    def _row(self, number: int, width: int) -> tuple[int, int]:
        """Channel and offset of a row of a matrix: blocks of 16 rows go to the channels in turn."""
        block, row = divmod(number, self.core.tile)
        return block % self.core.channels, (block // self.core.channels * self.core.tile + row) * width

    # Many rows: MM ----------------------------------------------------------------------------------------------------
    def linear_mm(self, layer: Linear) -> list[int]:
        core, tile = self.core, self.core.tile
        self._whole(layer)
        blocks, columns = layer.k // tile, layer.n // tile
        if blocks > core.a_depth:
            raise CapacityError(f"layer {layer.name!r}: {layer.k} inputs exceed buffer A")
        weight, region = self.weights[layer.weight], self.memory[layer.weight]
        tiles, slots = mm_tiles(core, blocks)
        counts, chosen = padded(weight.counts, blocks, columns), weight.counts is not None
        biased = self._bias(layer)
        copies = [operand for _, operand in layer.fused if operand]
        ring = 64 if copies else 0  # entries of the global buffer for operands
        depth = core.global_depth - ring
        if depth < self._stored_together(layer):
            raise CapacityError(
                f"layer {layer.name!r}: operands take {ring} entries of the global buffer, and the {core.global_depth} leave no room for "
                "results"
            )
        row_blocks = layer.rows // tile
        if layer.rows % core.start_rows:
            raise MappingError(f"layer {layer.name!r}: {layer.rows} rows are not a multiple of {core.start_rows}; align the prompt")
        last: list[int] = []
        previous: list[int] | None = None
        freed: list[list[int] | None] = []  # for each output of MM so far, the instruction that frees its place and those after it
        combined: list[list[int]] = []  # for each output so far, the last MISC that reads its operands
        together = self._stored_together(layer)
        for top in range(0, row_blocks, core.start_rows // tile):
            mine = range(top, min(top + core.start_rows // tile, row_blocks))
            opening = len(self.table)
            for block in mine:
                channel, offset = self._row(block * tile, layer.k)
                self.load("A", self.vector(layer.source), offset, tile * layer.k, 0, channel)
            if previous is not None:
                self.link(previous, self.table[opening])
            products: list[list[int]] = []
            pointers = [0] * core.channels
            meta_pointer = mask_pointer = 0
            for column in range(columns):
                channel = column % core.channels
                for start, end in tiles:
                    slot = len(products) % slots
                    opening = len(self.table)
                    kept = int(counts[start:end, column].sum()) * tile if chosen else (end - start) * tile**2
                    if chosen and self.options.index != "omitted":
                        self.load(
                            "mask", self.memory[f"{layer.weight}.counts"], mask_pointer, end - start, slot * (core.mask_depth // slots)
                        )
                        mask_pointer += end - start
                    if chosen and self.options.index == "streamed":
                        self.load("meta", self.memory[f"{layer.weight}.index"], meta_pointer, kept // 2, slot * (core.meta_depth // slots))
                        meta_pointer += kept // 2
                    bank = slot * (core.b_depth // slots)
                    self.load("B", region, pointers[channel], kept, bank, channel)
                    pointers[channel] += kept * weight.stored // 8
                    product = self.multiply(
                        MM, end - start, start, bank, len(freed) % depth, last=end == blocks, linear=layer, biased=biased,
                        bias=column * tile * 4 // core.bias_width, sparse=chosen and self.options.sparse,
                        meta=slot * (core.meta_depth // slots) if chosen else 0, mask=slot * (core.mask_depth // slots) if chosen else 0,
                    )  # fmt: skip
                    self.link(self.table[-2], product)
                    if len(products) >= slots:
                        self.link(products[-slots], self.table[opening])
                    products.append(product)
                serial = len(freed)
                if serial >= depth and (free := freed[serial - depth]) is not None:
                    self.link(free, products[-1])
                ready = products[-1]
                if layer.fused:
                    ready = self._fused_mm(layer, copies, column, mine, depth, ready, combined)
                freed.append(None)
                if (column + 1) % together:
                    continue
                opening = len(self.table)
                for part in range(column + 1 - together, column + 1):
                    for block in mine:
                        last = self._block(layer, block, part, (serial - column + part) % depth)
                self.link(ready, self.table[opening])
                freed[serial + 1 - together] = last
            previous = products[-1]
        return last

    def _stored_together(self, layer: Linear) -> int:
        """How many block columns are stored at a time: values of a token lie in as many channels as a head has blocks."""
        if not layer.cache or self.memory[layer.cache].kind == "keys":
            return 1
        return gcd(self.core.channels, self.memory[layer.cache].width // self.core.tile)

    def _block(self, layer: Linear, row_block: int, column: int, bank: int) -> list[int]:
        """Stores a block of 16 x 16 results."""
        core, tile = self.core, self.core.tile
        if not layer.cache:
            channel, offset = self._row(row_block * tile, layer.n)
            return self.store(self.vector(layer.result), offset + column * tile, tile**2, bank, channel, column=True)
        region = self.memory[layer.cache]
        head, inside = divmod(column, region.width // tile)
        if region.kind == "keys":  # rows of a head's width
            channel, offset = self._row(row_block * tile, region.width)
            offset += inside * tile
        else:  # one block column after the other
            channel = inside % core.channels
            offset = inside // core.channels * self._lane(region) + row_block * tile**2
        return self.store(region, head * region.pitch + offset, tile**2, bank, channel, column=True)

    def _lane(self, region: Region) -> int:
        """Bytes between the block columns of a head's values that share a channel."""
        return region.pitch // -(-blocks_of(region.width, self.core) // self.core.channels)

    def _fused_mm(
        self, layer: Linear, copies: Sequence[str], column: int, mine: range, depth: int, product: list[int], combined: list[list[int]]
    ) -> list[int]:
        tile = self.core.tile
        serial = len(combined)
        here = serial % depth
        arrived = []
        places = 64 // max(len(copies), 1)
        slot = depth + serial % places * len(copies)
        for number, name in enumerate(copies):
            opening = len(self.table)
            region = self.vector(name)
            for block in mine:
                channel, offset = self._row(block * tile, region.pitch)
                self.load("global", region, offset + column * tile, tile, slot + number, channel, (tile, region.pitch))
            if number == 0 and serial >= places:
                self.link(combined[serial - places], self.table[opening])
            arrived.append(self.table[-1])
        count = len(mine)
        if len(layer.fused) == 3:
            steps = [
                self.misc("mul", count, here, slot, slot),
                self.misc("mul", count, here, slot + 1),
                self.misc("add", count, here, slot, mask=True),
            ]
        else:
            steps = [self.misc(operation, count, here, slot if operand else 0) for operation, operand in layer.fused]
        self.link(product, steps[0])
        for load, step in zip(arrived, steps, strict=False):
            self.link(load, step)
        combined.append(steps[-1])
        return steps[-1]

    def attention_mm(self, layer: Attention) -> list[int]:
        core, tile = self.core, self.core.tile
        if layer.rows != layer.tokens or layer.rows % core.start_rows:
            raise MappingError(
                f"layer {layer.name!r}: a prefill of {layer.rows} rows on {layer.tokens} tokens needs both equal and a multiple of "
                f"{core.start_rows}; align the prompt"
            )
        emit: Callable[[Attention, int, range, NDArray[np.bool_]], list[int]] = (
            self._scores_mm if layer.part == "scores" else self._values_mm
        )
        layout = self.masks[layer.name]
        per = LAYOUT // tile
        blocks = layer.rows // tile
        last: list[int] = []
        depth, columns = (layer.width // tile, blocks) if layer.part == "scores" else (blocks, layer.width // tile)
        self._run = _HeadsRun(core, depth, columns)
        if not self._run.places:
            raise CapacityError(f"layer {layer.name!r}: {columns * tile} results per row exceed the global buffer")
        for head in range(layer.heads):
            kept = np.repeat(np.repeat(layout[head], per, axis=0), per, axis=1)[:blocks, :blocks]
            for top in range(0, blocks, core.start_rows // tile):
                last = emit(layer, head, range(top, top + core.start_rows // tile), kept)
                self._run.stored.append(last)
            self._run.ends.append(len(self._run.products))
        return last

    def _stream(self, layer: Attention, head: int, columns: Sequence[int], opening: int, first_tile: bool) -> list[int]:
        """Loads of B and products for block columns of a head; the product of column c goes to entry c of this tile's place.

        Returns the last product.
        """
        core, tile, run = self.core, self.core.tile, self._run
        region = self.memory[layer.cache]
        base = head * layer.kv_heads // layer.heads * region.pitch
        k = run.blocks * tile
        slots = core.b_depth // (run.blocks * tile**2 // core.b_width)
        if slots < 2 or run.blocks > core.a_depth:
            raise CapacityError(f"layer {layer.name!r}: {k} rows of a head do not fit buffer B twice; use a shorter prompt")
        if first_tile:
            self._await(self.table[opening], run.ends[head - run.banks] - 1 if head >= run.banks else -1)
        else:
            self._await(self.table[opening], len(run.products) - 1)
        for number, column in enumerate(columns):
            serial = len(run.products)
            bank = serial % slots * (core.b_depth // slots)
            apart = tile * k if layer.part == "scores" else self._lane(region)
            load = self.load("B", region, base + column // core.channels * apart, tile * k, bank, column % core.channels)
            self._await(load, serial - slots)
            product = self.multiply(MM, run.blocks, run.bank(head), bank, run.place + column, last=True)
            self.link(load, product)
            if number == 0 and len(run.stored) >= run.places:
                self.link(run.stored[-run.places], product)
            run.products.append(product)
        return run.products[-1]

    def _await(self, load: list[int], index: int) -> None:
        """A load waits for the product of this layer with an index, unless a load before it has waited for that or a later one."""
        if index > self._run.awaited:
            self._run.awaited = index
            self.link(self._run.products[index], load)

    def _scores_mm(self, layer: Attention, head: int, mine: range, kept: NDArray[np.bool_]) -> list[int]:
        tile, place = self.core.tile, self._run.place
        source, result = self.vector(layer.source), self.vector(layer.result)
        opening = len(self.table)
        for block in mine:
            channel, offset = self._row(block * tile, layer.heads * layer.width)
            where = offset + head * layer.width
            self.load("A", source, where, layer.width, self._run.bank(head), channel, (tile, layer.heads * layer.width))
        columns = np.flatnonzero(kept[mine.start : mine.stop].any(axis=0)).tolist()
        product = self._stream(layer, head, columns, opening, mine.start == 0)
        last: list[int] = []
        for number, block in enumerate(mine):
            steps = [self.misc("softmax", int(kept[block].sum()), place + columns[0], mask=True) for _ in range(tile)]
            if number == 0:
                self.link(product, steps[0])
            channel, offset = self._row(block * tile, layer.tokens)
            opening = len(self.table)
            for start, end in runs(kept[block]):
                where = head * result.pitch + offset + start * tile
                last = self.store(result, where, (end - start) * tile**2, place + start, channel, column=True)
            self.link(steps[-1], self.table[opening])
        return last

    def _values_mm(self, layer: Attention, head: int, mine: range, kept: NDArray[np.bool_]) -> list[int]:
        tile, place, bank = self.core.tile, self._run.place, self._run.bank(head)
        source, result = self.vector(layer.source), self.vector(layer.result)
        opening = len(self.table)
        for block in mine:
            channel, offset = self._row(block * tile, layer.tokens)
            for start, end in runs(~kept[block]):
                self.load("A", None, 0, (end - start) * tile**2, bank + start, channel, zero=True)
            for start, end in runs(kept[block]):
                where = head * source.pitch + offset + start * tile
                self.load("A", source, where, (end - start) * tile, bank + start, channel, (tile, layer.tokens))
        columns = range(layer.width // tile)
        product = self._stream(layer, head, columns, opening, mine.start == 0)
        last: list[int] = []
        for number, block in enumerate(mine):
            channel, offset = self._row(block * tile, layer.heads * layer.width)
            last = self.store(result, offset + head * layer.width, len(columns) * tile**2, place, channel, column=True)
            if number == 0:
                self.link(product, last)
        return last


class _HeadsRun:
    """Where the tiles of an attention layer of many rows lie in the buffers, and the instructions that free them.

    `blocks` of K per product, up to `columns` products per tile. Heads take `banks` places in buffer A in turn, tiles of 128
    rows `places` in the global buffer.
    """

    def __init__(self, core: FlightCore, blocks: int, columns: int) -> None:
        self.blocks, self.columns = blocks, columns
        self.banks = max(core.a_depth // blocks, 1)
        self.places = core.global_depth // columns
        self.products: list[list[int]] = []
        self.stored: list[list[int]] = []  # the last store of each tile
        self.ends: list[int] = []  # the number of products up to the end of each head
        self.awaited = -1  # the last product that a load has waited for

    @property
    def place(self) -> int:
        """The entry of the global buffer at which the present tile starts."""
        return len(self.stored) % self.places * self.columns

    def bank(self, head: int) -> int:
        return head % self.banks * self.blocks


# Tiles ----------------------------------------------------------------------------------------------------------------------
def blocks_of(width: int, core: FlightCore) -> int:
    return -(-width // core.tile)


def split(blocks: int, parts: int) -> list[tuple[int, int]]:
    """`blocks` in chunks of `blocks` // `parts`; the rest is one chunk more.

    >>> split(688, 6)[-2:]
    [(570, 684), (684, 688)]
    """
    size = blocks // parts
    return [(start, min(start + size, blocks)) for start in range(0, blocks, size)]


def mv_tiles(core: FlightCore, blocks: int) -> tuple[list[tuple[int, int]], int]:
    """Tiles of K for MV in blocks, and how many of them the buffers hold.

    A tile fills at most half of buffer A at the width that MV reads it, and all buffers hold two tiles.
    """
    limit = core.a_depth * core.a_mv_width * core.channels // (2 * core.tile * core.mv_start)
    parts = -(-blocks // limit)
    while True:
        tiles = split(blocks, parts)
        largest = max(end - start for start, end in tiles)
        a = core.a_depth * core.a_width * core.channels // (largest * core.tile * core.mv_start)
        slots = min(a, *_indices(core, largest))
        if slots >= 2:
            return tiles, slots
        parts += 1


def mm_tiles(core: FlightCore, blocks: int) -> tuple[list[tuple[int, int]], int]:
    """Tiles of K for MM in blocks, and how many of them the buffers hold (at least two)."""
    parts = -(-blocks * core.tile**2 * 2 // (core.b_depth * core.b_width))
    while True:
        tiles = split(blocks, parts)
        largest = max(end - start for start, end in tiles)
        slots = min(core.b_depth * core.b_width // (largest * core.tile**2), *_indices(core, largest))
        if slots >= 2:
            return tiles, slots
        parts += 1


def _indices(core: FlightCore, largest: int) -> tuple[int, int]:
    """Dense tiles whose 4-bit indices fit a bank of the meta buffer, and whose counts fit one of the mask buffer."""
    return core.meta_depth * core.meta_width * 2 // (largest * core.tile**2), core.mask_depth // largest


def padded(counts: Counts | None, rows: int, columns: int) -> Counts:
    """Counts for `columns` block columns; those beyond the matrix repeat it from the start (they are loaded and ignored)."""
    if counts is None:
        return np.zeros((0, 0), np.int64)
    if counts.shape[0] != rows:
        raise MappingError(f"sparsity: expected counts of {rows} block rows, found {counts.shape[0]}")
    if counts.shape[1] >= columns:
        return counts[:, :columns]
    return np.concatenate([counts, np.full((rows, columns - counts.shape[1]), int(counts.max()))], axis=1)


def runs(flags: NDArray[np.bool_]) -> list[tuple[int, int]]:
    """Maximal runs of true values.

    >>> runs(np.array([False, True, True, False, True]))
    [(1, 3), (4, 5)]
    """
    edges = np.flatnonzero(np.diff(np.concatenate([[False], flags, [False]]).astype(np.int8)))
    return [(int(a), int(b)) for a, b in zip(edges[::2], edges[1::2], strict=True)]
