"""Which attention kernels the frameworks in NVIDIA's aiconfigurator run, into how many parts these split the keys, and what runs around
them.

The choices are read off open code: vLLM and its FlashAttention 2, TensorRT-LLM's dispatch to its XQA and masked multi-head kernels
(`cpp/tensorrt_llm/kernels/decoderMaskedMultiheadAttention`), and the set's collectors. Which launches are hidden is inferred from the
latency of the smallest calls, the half of the shapes called fitted.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from math import ceil, sqrt

from hw.devices import load
from hw.units.tensor_core import TensorCore
from verif.validation.measurement import WINDOW

XQA_HEADS = 32
"""Query heads of one key head that TensorRT-LLM's XQA kernels take together; with more of them each head reads its own keys."""

_WITHOUT_XQA = ("blackwell",)
"""Generations for which TensorRT-LLM has other kernels (trtllm-gen), whose choices are not open."""

_XQA_PART = 128
"""Keys of a part of theirs, at least."""

_XQA_WAVES = 8
"""Thread blocks per SM up to which they split."""

_XQA_FEWEST = 4
"""So many times their thread blocks must reach the number of SMs, or a 16-bit cache is left to the kernel without matrix instructions."""

_FLASH_KEYS = 32 * 1024
"""Bytes of a block of keys of FlashAttention 2 with pages."""

_FLASH_PARTS = 128
"""Parts into which it splits the keys, at most."""

_FLASH_GOOD = 0.85
"""Share of the best filling of the SMs that its number of parts reaches at least."""


@lru_cache
def _core(device: str) -> TensorCore | None:
    """The device's matrix unit, if it is that of a GPU."""
    found = load(device)
    units = [found.units[name] for name in found.units_for("gemm")]
    return next((unit for unit in units if isinstance(unit, TensorCore)), None)


def attention_protocol(
    device: str, dtype: str, shape: Mapping[str, int], *, vllm: bool, prefill: bool
) -> tuple[dict[str, int], tuple[str, ...]]:
    """What to add to a measurement's shape, and the kernels of one call before attention itself.

    `prompt`: TensorRT-LLM has kernels of their own for prompts, of one token too. `aliased`: its collector asks for a cache of keys
    alone (SELFKONLY), so that values lie where keys do. `splits` parts of the keys; `packed` heads of a thread block: all that share
    keys, or one by itself, without matrix instructions. vLLM writes new keys and values to the cache by a kernel of its own; a group's
    queries become rows of one product, transposed before and after, which moves nothing for one sequence or one group (SGLang is taken
    to do as vLLM). TensorRT-LLM rotates and writes in one kernel, which also rearranges the queries of a prompt.
    """
    core = _core(device)
    grouped = shape["heads"] > shape["kv_heads"]
    if vllm:
        added: dict[str, int] = {}
        if not prefill and not grouped:
            added["splits"] = 1  # FlashAttention 2 splits keys only where queries of a group are packed
        elif not prefill and core is not None and core.cluster == 1:
            added["splits"] = flash_parts(shape, core.count)
        transposed = shape["queries"] == 1 and shape["batch"] > 1 and shape["kv_heads"] > 1 and grouped
        return added, ("append", "pack", "pack") if transposed else ("append",)
    added = {"aliased": 1, **({"prompt": 1} if prefill else {})}
    if prefill:
        before: tuple[str, ...] = ("rearrange", *("overlapped",) * {"bf16": 2, "fp8": 3}.get(dtype, 4))
    else:
        if load(device).generation not in _WITHOUT_XQA:
            added |= xqa(shape, dtype, core.count if core else 1)
        alone = added.get("packed") == 1  # a head by itself: the kernel without matrix instructions
        before = ("overlapped", "early") if dtype != "bf16" else ("empty", "overlapped") if alone else ("overlapped",)
    if core is not None and core.cluster == 1:  # launches overlap since Hopper (programmatic dependent launch)
        before = tuple("empty" if name == "overlapped" else name for name in before if name != "early")
    return added, before


def xqa(shape: Mapping[str, int], dtype: str, sms: int) -> dict[str, int]:
    """Which of its kernels for decoding TensorRT-LLM takes on so many SMs, and into how many parts it splits the keys: parts of 128, no
    more of them than the square root of eight times their number, nor than eight thread blocks per SM.

    >>> xqa({"batch": 64, "heads": 32, "kv_heads": 4, "keys": 2048}, "bf16", 132)
    {'packed': 8, 'splits': 4}
    >>> xqa({"batch": 1, "heads": 32, "kv_heads": 4, "keys": 512}, "bf16", 132)
    {'packed': 1}
    """
    keys = min(shape["keys"], shape.get(WINDOW) or shape["keys"])
    streams, group = shape["batch"] * shape["kv_heads"], shape["heads"] // shape["kv_heads"]
    parts = max(1, keys // _XQA_PART)
    if group == 1 or group > XQA_HEADS or (dtype == "bf16" and _XQA_FEWEST * streams * parts < sms):
        return {"packed": 1}
    parts = min(parts, round(sqrt(_XQA_WAVES * parts)))
    return {"packed": group, "splits": max(1, min(parts, _XQA_WAVES * sms // streams))}


def flash_parts(shape: Mapping[str, int], sms: int) -> int:
    """Parts into which FlashAttention 2 splits the keys of a decoding step on so many SMs with two thread blocks each: none where these
    are nearly filled without, else the least number that fills them nearly as well as any.

    >>> flash_parts({"batch": 1, "kv_heads": 8, "keys": 4096, "head_dim": 128}, 108)
    16
    >>> flash_parts({"batch": 64, "kv_heads": 8, "keys": 4096, "head_dim": 128}, 108)
    1
    """
    slots, streams = 2 * sms, shape["batch"] * shape["kv_heads"]
    if streams >= 0.8 * slots:
        return 1
    keys = 1 << (_FLASH_KEYS // (2 * shape["head_dim"])).bit_length() - 1
    blocks = ceil(min(shape["keys"], shape.get(WINDOW) or shape["keys"]) / keys)
    filled = {}
    for parts in range(1, min(_FLASH_PARTS, slots, blocks) + 1):
        if parts == 1 or ceil(blocks / parts) < ceil(blocks / (parts - 1)):
            waves = streams * parts / slots
            filled[parts] = waves / ceil(waves)
    return next(parts for parts, share in filled.items() if share >= _FLASH_GOOD * max(filled.values()))
