"""What a prefill stream computes: blocks of 128 rows, products of MM, softmax row by row.

Buffer A holds 16 rows per channel, so that the channels together hold the 128 rows of a tile; an entry of the global buffer is what
one MM leaves: 128 rows of 16 columns. Instructions name no rows: the unit for row operations counts its softmax rows from the
start of a layer, and where a block of a tile lies in memory says which one a store takes. The kept blocks of block-sparse
attention are known to the scheduler, which issues no instruction for the others; here they are an argument, causal by default.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from hw.device import Device
from mapper.errors import MappingError
from mapper.flightllm import isa
from mapper.flightllm.compile import Stream
from mapper.flightllm.emit import LAYOUT
from mapper.flightllm.memory import Region
from sim import flightllm_arithmetic as arithmetic
from sim.flightllm_interpreter import Integers, Interpreter, Memory, _Loaded, signed, unpack


class PrefillInterpreter(Interpreter):
    """Executes a prefill stream on a memory. `masks` are the kept blocks that it was compiled with, by attention layer."""

    phase = "prefill"
    engines = frozenset({isa.MM, isa.MV})

    def __init__(self, stream: Stream, device: Device, memory: Memory, masks: Mapping[str, NDArray[np.bool_]] | None = None) -> None:
        super().__init__(stream, device, memory)
        core = self.core
        if core.start_rows != core.tile * core.channels:
            raise MappingError(
                f"{stream.name}: a tile of {core.start_rows} rows is interpreted with 16 rows in each of {core.start_rows // core.tile} "
                f"channels, found {core.channels} channels"
            )
        self.names = [name for names in stream.layers for name, _ in names]
        self.masks = masks or {}
        self.rows = np.zeros((core.start_rows, core.a_depth * core.tile), np.int64)  # buffer A
        self.right: dict[int, _Loaded] = {}  # buffer B, by bank
        self.blocks: dict[int, Integers] = {}  # what MM left in the global buffer, by entry: [rows, 16]
        self.tile_sums = np.zeros((core.start_rows, core.tile), np.int64)
        self.softmaxes = (-1, 0)  # the layer of the last softmax, and how many it has had
        self.present = 0  # the layer of the instruction being executed
        self.one_row = set(self.layer[self.table[:, 0] == isa.MV].tolist())
        """Layers of a single row (the logits of the last token), which run as in a decode."""

    def run(self, position: int = 0, scheduled: bool = False) -> None:
        """The whole prompt; `scheduled` uses the machine's order instead of the program's."""
        if position:
            raise MappingError(f"a prefill starts at position 0, found {position}")
        self._run(scheduled)

    def _execute(self, index: int, row: list[int]) -> None:
        self.present = int(self.layer[index])
        super()._execute(index, row)

    # Memory to buffers ------------------------------------------------------------------------------------------------
    def _load(self, index: int, f: dict[str, int]) -> None:
        mode, tile, channel, bank = isa.MODES[f["mode"]], self.core.tile, f["channel"], f["bank"]
        block = slice(channel * tile, (channel + 1) * tile)
        if mode == "A" and f["zero"]:
            self.rows[block, bank * tile : bank * tile + f["length"] // tile] = 0
            return
        if mode in ("meta", "mask", "bias") or self.present in self.one_row:
            super()._load(index, f)
            return
        region = self.memory.plan.find(f["address"], False)
        raw = np.concatenate(
            [
                self.memory.read(channel if region.channels > 1 else 0, f["address"] + n * f["stride1"], f["length"] * region.stored // 8)
                for n in range(f["loop1"])
            ]
        )
        if mode == "A":
            values = raw.view(np.int8).reshape(tile, -1)
            self.rows[block, bank * tile : bank * tile + values.shape[1]] = values
        elif mode == "B":
            codes = unpack(raw, region.stored, f["length"])
            self.right[bank] = _Loaded(signed(codes, region.bits), region, codes >> region.bits & 15)
        elif f["loop1"] > 1:  # an operand of MISC: the block of each channel
            self.copies.setdefault(bank, {})[channel] = raw.view(np.int8).astype(np.int64)
            self.blocks.pop(bank, None)
        else:
            self.blocks.clear()
            self._keep(bank, raw.view(np.int8).astype(np.int64))

    # Products -----------------------------------------------------------------------------------------------------------
    def _multiply(self, layer: int, f: dict[str, int]) -> None:
        if layer in self.one_row:
            self.blocks.clear()
            super()._multiply(layer, f)
            return
        tile, loaded = self.core.tile, self.right[f["b_addr"]]
        matrix = self._expanded(layer, loaded, f) if f["sparse"] else self._plain(loaded, f["k"])
        self.tile_sums += self.rows[:, f["a_addr"] * tile : (f["a_addr"] + f["k"]) * tile] @ matrix
        if not f["output"]:
            return
        sums = self.tile_sums
        self.tile_sums = np.zeros_like(sums)
        if f["bias"]:
            start = f["bias_addr"] * self.core.bias_width // 4
            sums = sums + self.bias[start : start + tile]
        self.results.clear()
        self.copies.pop(f["out_addr"], None)
        self.blocks[f["out_addr"]] = arithmetic.requantise(sums, loaded.region.shift, bool(f["relu"]))

    def _plain(self, loaded: _Loaded, k: int) -> Integers:
        """[K, 16]: the block column in buffer B; keys are stored token by token."""
        tile = self.core.tile
        return loaded.values.reshape(tile, k * tile).T if loaded.region.kind == "keys" else loaded.values.reshape(k * tile, tile)

    def _expanded(self, layer: int, loaded: _Loaded, f: dict[str, int]) -> Integers:
        counts = self.mask.get((layer, 0, f["mask_addr"]))
        if counts is None:
            raise MappingError(
                "a sparse product without counts and indices: this stream was compiled with index='omitted'; it can be timed, not run"
            )
        tile = self.core.tile
        out = np.zeros((f["k"], tile, tile), np.int64)
        if not counts.any():
            return out.reshape(-1, tile)
        index = loaded.index if loaded.region.index_bits else self.meta[layer, 0, f["meta_addr"]]
        at = 0
        for number, kept in enumerate(counts.tolist()):
            values, rows = (part[at : at + kept * tile].reshape(kept, tile) for part in (loaded.values, index))
            np.put_along_axis(out[number], rows, values, axis=0)
            at += kept * tile
        return out.reshape(-1, tile)

    # Rows ---------------------------------------------------------------------------------------------------------------
    def _misc(self, f: dict[str, int]) -> None:
        name = isa.OPERATIONS[f["operation"]]
        if f["a_addr"] not in self.blocks:
            super()._misc(f)
        elif name == "softmax":
            self._softmax(f)
        else:
            a = self.blocks[f["a_addr"]]
            if name in arithmetic.PAIRS:
                b = self._block_operand(f["b_addr"])
                a = arithmetic.PAIRS[name](a, arithmetic.exchange(b) if f["mask"] else b)
            else:
                a = arithmetic.ROWS[name](a)
            self.blocks[f["out_addr"]] = a
            self.copies.pop(f["out_addr"], None)

    def _block_operand(self, entry: int) -> Integers:
        copies = self.copies.get(entry)
        if copies is None:
            return self.blocks[entry]
        tile = self.core.tile
        return np.concatenate([copies[channel].reshape(tile, tile) for channel in range(self.core.channels)])

    def _softmax(self, f: dict[str, int]) -> None:
        tile, high = self.core.tile, self.core.start_rows
        layer, count = self.softmaxes
        number = count if layer == self.present else 0
        self.softmaxes = (self.present, number + 1)
        step, row = divmod(number, high)
        head, top = divmod(step, self.stream.tokens // high)
        kept = self._kept(head)
        first = int(np.flatnonzero(kept[top * high // LAYOUT : (top + 1) * high // LAYOUT].any(axis=0))[0]) * LAYOUT // tile
        absolute = top * high + row
        columns = [c for c in range(kept.shape[1] * LAYOUT // tile) if kept[absolute // LAYOUT, c * tile // LAYOUT]]
        places = [f["a_addr"] - first + c for c in columns]
        valid = sum(min(max(absolute + 1 - c * tile, 0), tile) for c in columns)
        weights = arithmetic.softmax(np.concatenate([self.blocks[place][row] for place in places]), valid)
        for place, part in zip(places, weights.reshape(-1, tile), strict=True):
            self.blocks[place][row] = part

    def _kept(self, head: int) -> NDArray[np.bool_]:
        """Which 64 x 64 blocks of a head the present layer keeps."""
        size = -(-self.stream.tokens // LAYOUT)
        given = self.masks.get(self.names[self.present].removesuffix(".scores"))
        return np.tri(size, dtype=np.bool_) if given is None else given[head, :size, :size]

    # Buffers to memory --------------------------------------------------------------------------------------------------
    def _store(self, f: dict[str, int]) -> None:
        region = self.memory.plan.find(f["address"], False)
        if f["bank"] in self.blocks:
            self._store_blocks(region, f)
        elif f["column"]:
            self._store_row(region, f)
        else:
            super()._store(f)

    def _store_blocks(self, region: Region, f: dict[str, int]) -> None:
        """One or more blocks of 16 x 16, side by side; in memory their rows lie a row, a token of a head, or 16 elements apart."""
        tile = self.core.tile
        columns = f["length"] // tile**2
        number = f["channel"]
        if region.kind == "values":
            number = self._token(region, f["address"]) // tile % self.core.channels
        entries = [self.blocks[f["bank"] + n][number * tile : (number + 1) * tile] for n in range(columns)]
        data = np.concatenate(entries, axis=1).astype(np.int8).view(np.uint8)
        pitch = tile if region.kind == "values" else region.width
        for row in range(tile):
            self.memory.write(f["channel"], f["address"] + row * pitch, data[row])

    def _token(self, region: Region, address: int) -> int:
        """The token at an address of a cache of values."""
        lane = region.pitch // -(-region.width // self.core.tile // self.core.channels)
        return (address - region.start) % region.size % region.pitch % lane // self.core.tile

    def _store_row(self, region: Region, f: dict[str, int]) -> None:
        """One row of a tile into a cache: a piece for each head."""
        tile, channels, width = self.core.tile, self.core.channels, region.width
        values = self._elements(f["bank"], f["length"]).astype(np.int8).view(np.uint8)
        for head, part in enumerate(values.reshape(-1, width)):
            base = f["address"] + head * region.pitch
            if region.kind == "keys":
                self.memory.write(f["channel"], base, part)
                continue
            lane = region.pitch // -(-width // tile // channels)
            for j in range(width // tile):
                self.memory.write(j % channels, base + j // channels * lane, part[j * tile : (j + 1) * tile])


def move_caches(source: Memory, target: Memory) -> None:
    """The caches that a prefill left, at their places in the memory of a decode stream of the same model."""
    for name, region in source.plan.regions.items():
        if region.kind in ("keys", "values"):
            there = target.plan[name]
            for channel in range(region.channels):
                target.write(channel, there.start, source.read(channel, region.start, region.size * region.count))
