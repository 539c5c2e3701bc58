"""Address patterns for one memory channel: requests of 64 bytes as byte addresses, write flags and, if wanted, arrivals."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hw.dram import REQUEST_BYTES, DramPreset, Mapping, address_fields
from hw.errors import HardwareError, nearest

PATTERNS = ("stream", "random", "stride", "mixed", "chunks", "triad")


@dataclass(frozen=True)
class Requests:
    """`addresses` in bytes (multiples of 64) and `writes`, one entry per request of 64 bytes, in order of arrival.

    `contiguous` says that the requests are one run of ascending addresses in one direction.
    """

    addresses: NDArray[np.int64]
    writes: NDArray[np.bool_]
    contiguous: bool = False

    def __len__(self) -> int:
        return len(self.addresses)


def same_bank_stride(preset: DramPreset, mapping: Mapping = "interleaved") -> int:
    """Bytes from one row of a bank to the next row of the same bank under `mapping`: the value of the lowest row bit."""
    shift = preset.burst_bytes.bit_length() - 1
    for field, bits in address_fields(preset, mapping):
        if field == "row":
            return 1 << shift
        shift += bits
    raise HardwareError(f"{preset.name} has one row per bank: there is no stride within a bank")


def requests(
    preset: DramPreset,
    pattern: str,
    size_bytes: int,
    *,
    chunk_bytes: int = 0,
    stride_bytes: int = 0,
    mapping: Mapping = "interleaved",
    write: bool = False,
    seed: int = 0,
) -> Requests:
    """The requests of a pattern that moves `size_bytes` in all.

    - `stream`: ascending addresses; - `random`: uniform over the channel;
    - `stride`: every `stride_bytes` (by default the next row of the same bank), wrapping at the end of the channel;
    - `mixed`: random, two reads then one write; - `triad`: a[i] = b[i] + s c[i] over three arrays, two reads then one write;
    - `chunks`: contiguous chunks of `chunk_bytes` at random multiples of it.
    `write` turns the reads of the one-directional patterns into writes.
    Raises `HardwareError` for an unknown pattern, a size that is not whole requests, or a footprint beyond the channel.
    """
    if pattern not in PATTERNS:
        raise HardwareError(f"unknown pattern {pattern!r}, expected one of {', '.join(PATTERNS)}{nearest(pattern, PATTERNS)}")
    if size_bytes < REQUEST_BYTES or size_bytes % REQUEST_BYTES:
        raise HardwareError(f"pattern {pattern}: expected a size of whole {REQUEST_BYTES} B requests, found {size_bytes} B")
    footprint = {"stream": size_bytes, "triad": size_bytes, "chunks": chunk_bytes}.get(pattern, REQUEST_BYTES)
    if footprint > preset.capacity:
        raise HardwareError(
            f"pattern {pattern} spans {footprint} B, but one channel of {preset.name} holds {preset.capacity} B "
            f"({footprint - preset.capacity} B missing): lower the size or spread it over more channels"
        )
    count = size_bytes // REQUEST_BYTES
    places = preset.capacity // REQUEST_BYTES
    rng = np.random.default_rng(seed)
    writes = np.full(count, write)
    if pattern == "stream":
        return Requests(np.arange(count, dtype=np.int64) * REQUEST_BYTES, writes, contiguous=True)
    if pattern == "random":
        return Requests(rng.integers(0, places, count) * REQUEST_BYTES, writes)
    if pattern == "stride":
        step = stride_bytes or same_bank_stride(preset, mapping)
        if step % REQUEST_BYTES or step < 0:
            raise HardwareError(f"pattern stride: expected a multiple of {REQUEST_BYTES} B, found {step} B")
        return Requests(np.arange(count, dtype=np.int64) * step % preset.capacity, writes)
    if pattern == "chunks":
        if chunk_bytes < REQUEST_BYTES or chunk_bytes % REQUEST_BYTES or size_bytes % chunk_bytes:
            raise HardwareError(
                f"pattern chunks: expected a chunk of whole {REQUEST_BYTES} B requests that divides {size_bytes} B, found {chunk_bytes} B"
            )
        per = chunk_bytes // REQUEST_BYTES
        first = rng.integers(0, places // per, count // per) * per
        return Requests(((first[:, None] + np.arange(per)) * REQUEST_BYTES).reshape(-1), writes)
    writes = np.arange(count) % 3 == 2
    if pattern == "mixed":
        return Requests(rng.integers(0, places, count) * REQUEST_BYTES, writes)
    array = preset.capacity // 4  # the three arrays start a quarter of the channel apart, each at the first bank
    index = np.arange(count, dtype=np.int64)
    if -(-count // 3) * REQUEST_BYTES > array:
        raise HardwareError(
            f"pattern triad: each of its three arrays may span a quarter of {preset.name} ({array} B), "
            f"found {-(-count // 3) * REQUEST_BYTES} B"
        )
    return Requests((index % 3) * array + (index // 3) * REQUEST_BYTES, writes)
