"""KIVI: keys quantised per channel, values per token, the newest tokens kept in fp16; and the Walsh-Hadamard rotation.

Liu et al., "KIVI: A Tuning-Free Asymmetric 2bit Quantization for KV Cache", ICML 2024, arXiv:2402.02750.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Literal

import numpy as np

from workloads.errors import WorkloadError
from workloads.format import Format
from workloads.quantisers.base import LARGEST_HALF, Array, Field, Fields, Quantiser, Shape, blocks, float_field, floats

Role = Literal["keys", "values"]


class Kivi(Quantiser):
    """A cache [..., tokens, channels]: groups of 32 consecutive tokens of a channel (keys) or of 32 channels of a token (values).

    mn = min and s = (max - min) / (2^b - 1) are fp16; code = round(clip((x - mn) / s, 0, 2^b - 1)); x' = code s + mn in fp16; a group of
    equal values has s = 0 and codes 0. `kivi2-r128` keeps the newest 128 tokens in fp16, and those that do not fill a group.
    Keys are packed along tokens, values along channels.
    """

    def __init__(self, format: Format, role: Role = "keys") -> None:
        super().__init__(format)
        self.role = role
        match = re.search(r"-r([0-9]+)", format.name)
        self.newest = int(match[1]) if match else 0

    def encode(self, values: Array) -> Fields:
        if values.ndim < 2:
            raise WorkloadError(f"format {self.format}: expected a cache [..., tokens, channels], found shape {values.shape}")
        old, recent = self._split(np.clip(values, -LARGEST_HALF, LARGEST_HALF))
        rows, top = self._groups(old), np.float32((1 << self.format.element_bits) - 1)
        low = np.concatenate([part.min(axis=1) for part in blocks(rows)] or [np.empty(0)]).astype(np.float16)
        high = np.concatenate([part.max(axis=1) for part in blocks(rows)] or [np.empty(0)])
        scale = np.minimum((high - low.astype(np.float32)) / top, LARGEST_HALF).astype(np.float16)
        codes = np.empty(rows.shape, np.uint8)
        own_low, own_scale = low.astype(np.float32)[:, None], scale.astype(np.float32)[:, None]
        start = 0
        for part in blocks(rows):
            here = slice(start, start + len(part))
            step = own_scale[here]
            ratio = (part - own_low[here]) / np.where(step > 0, step, np.inf)
            codes[here] = np.rint(np.clip(ratio, 0, top))
            start += len(part)
        return {
            "code": Field(codes, self.format.element_bits, "value"),
            "scale": float_field(scale, 16, "group"),
            "low": float_field(low, 16, "group"),
            "recent": float_field(recent, 16, "value"),
        }

    def _quantised_tokens(self, tokens: int) -> int:
        if not self.newest:
            return tokens
        return max(0, tokens - self.newest) // self.format.group * self.format.group

    def _split(self, values: Array) -> tuple[Array, Array]:
        old = self._quantised_tokens(values.shape[-2])
        return values[..., :old, :], values[..., old:, :]

    def _groups(self, old: Array) -> Array:
        """[groups, 32] of the quantised part."""
        along = old.swapaxes(-1, -2) if self.role == "keys" else old
        size, group = along.shape[-1], self.format.group
        if size % group:
            what = "tokens" if self.role == "keys" else "channels"
            fix = "keep a remainder in fp16 with a residual window such as kivi2-r128" if self.role == "keys" else "pad the channels"
            raise WorkloadError(f"format {self.format}: groups of {group} do not divide the {size} {what} of the {self.role}; {fix}")
        return np.ascontiguousarray(along).reshape(-1, group)

    def decode(self, fields: Mapping[str, Field], shape: Shape) -> Array:
        rows = fields["code"].values
        scale, low = floats(fields["scale"])[:, None], floats(fields["low"])[:, None]
        values = np.empty(rows.shape, np.float16)
        start = 0
        for part in blocks(rows):
            here = slice(start, start + len(part))
            values[here] = np.clip(part * scale[here] + low[here], -LARGEST_HALF, LARGEST_HALF)
            start += len(part)
        old = (*shape[:-2], self._quantised_tokens(shape[-2]), shape[-1])
        along = (*old[:-2], old[-1], old[-2]) if self.role == "keys" else old
        restored = values.reshape(along)
        restored = restored.swapaxes(-1, -2) if self.role == "keys" else restored
        recent = floats(fields["recent"]).reshape(*shape[:-2], shape[-2] - old[-2], shape[-1])
        return np.concatenate([restored.astype(np.float32), recent], axis=-2)


def hadamard(values: Array) -> Array:
    """Values [..., d] times the unnormalised Walsh-Hadamard matrix, d a power of two; integers stay exact, in d log2 d additions.

    >>> hadamard(np.array([1, 2, 3, 4])).tolist()
    [10, -2, -4, 0]
    """
    size = values.shape[-1]
    if size & (size - 1):
        raise WorkloadError(f"Walsh-Hadamard transform: expected a last dimension that is a power of two, found {size}")
    out, half = np.array(values), 1
    while half < size:
        pairs = out.reshape(*out.shape[:-1], -1, 2, half)
        out = np.stack([pairs[..., 0, :] + pairs[..., 1, :], pairs[..., 0, :] - pairs[..., 1, :]], axis=-2).reshape(out.shape)
        half *= 2
    return out
