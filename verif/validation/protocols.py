"""How the frameworks in NVIDIA's aiconfigurator measure, and what that set calls devices and data types.

Its collectors are open: which weights take turns, which kernels a call runs before its product, and which names stand for which
formats are read off their code (ai-dynamo/aiconfigurator, `collector/`). Nothing here follows from a latency.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from math import ceil

from hw.devices import load, names
from hw.memory import Cache
from verif.validation.measurement import DTYPES
from workloads.format import parse_format

SYSTEMS = {"a100_sxm": "a100-80g", "a100": "a100-80g", "h100": "h100-sxm", "h200": "h200-sxm"}
"""Devices that the set calls by another name than ours, hyphens and the socket aside."""

_CARDS = (
    (r"A100-SXM4-40GB", "a100-40g"),
    (r"A100-SXM4-80GB", "a100-80g"),
    (r"H100 PCIe", "h100-pcie"),
    (r"H100( 80GB HBM3)?", "h100-sxm"),
    (r"Tesla V100S-PCIE-32GB", "v100s"),
    (r"Tesla T4", "t4"),
    (r"RTX A6000", "a6000"),
    (r"GeForce RTX 4090", "rtx-4090"),
    (r"Intel\(R\) Arc\(TM\) Pro B60( Graphics)?", "b60"),
    (r"Instinct (MI\w+)", r"\1"),
)
"""What a driver calls a card, the vendor's name aside."""


@lru_cache
def device_of(name: str) -> str | None:
    """The device that a set, or a card's driver, calls `name`; None where none is described.

    >>> device_of("h100_sxm"), device_of("NVIDIA H200"), device_of("NVIDIA L40S"), device_of("l40s"), device_of("gb300")
    ('h100-sxm', 'h200-sxm', 'l40s', 'l40s', None)
    """
    known = names()
    plain = re.sub(r"^(NVIDIA|AMD|Intel) (?=\S)", "", name.strip())
    for pattern, device in _CARDS:
        if found := re.fullmatch(pattern, plain):
            plain = found.expand(device)
            break
    key = plain.lower().replace(" ", "_")
    spelled = key.replace("_", "-")
    found_names = (SYSTEMS.get(key, ""), spelled, spelled.removesuffix("-sxm"), f"{spelled}-sxm")
    return next((found for found in found_names if found in known), None)


FRAMEWORKS = ("trtllm", "vllm", "sglang")

NEWEST = (99,)
"""Stands for a version that is not stated."""


@dataclass(frozen=True)
class Framework:
    """Whose kernels were measured, one of `FRAMEWORKS` or another, in lower case, and its `version`."""

    name: str
    version: str = ""

    @property
    def numbers(self) -> tuple[int, ...]:
        """The version as numbers, for comparing.

        >>> Framework("trtllm", "1.3.0rc10").numbers
        (1, 3, 0)
        """
        return tuple(int(part) for part in re.findall(r"(?:^|\.)(\d+)", self.version))


def framework_of(text: str) -> Framework:
    """From the end of a file's name or a column.

    >>> framework_of("trtllm-1.3.0rc10"), framework_of("VLLM")
    (Framework(name='trtllm', version='1.3.0rc10'), Framework(name='vllm', version=''))
    """
    name, _, version = text.strip().partition("-")
    name = name.lower()
    return Framework({"tensorrt_llm": "trtllm", "tensorrtllm": "trtllm"}.get(name, name), version)


GEMM_DTYPES = {
    "bfloat16": "bf16",
    "float16": "bf16",
    "fp8": "fp8",
    "fp8_static": "fp8_static",
    "fp8_block": "fp8_block",
    "nvfp4": "nvfp4",
    "mxfp4": "mxfp4",
    "int8_wo": "w8a16",
    "int4_wo": "w4a16",
    "sq": "int8",
    "w4afp8": "w4a8",
    "w4a16_mxfp4": "w4a16_mxfp4",
}
"""Data types of products and experts. Earlier collectors write `float16` for the bf16 that they run (SGLang's run fp16). Not predicted:
`fp8_ootb`, whose kernels the library chooses by itself, and `w4a8_mxfp4_mxfp8`, for which no device here states a rate."""

_WIDE = ("bfloat16", "float16")


def attention_dtype(framework: Framework, queries: str, cache: str) -> str | None:
    """Data type of attention by the set's types of queries and of the cache; None for what is not described. The collectors of vLLM and
    SGLang call queries 16 bits wide that they have converted to the cache's 8 bits beforehand.

    >>> attention_dtype(Framework("trtllm"), "bfloat16", "fp8"), attention_dtype(Framework("vllm"), "bfloat16", "fp8")
    ('bf16-kv8', 'fp8')
    """
    if queries in _WIDE and cache in _WIDE:
        return "bf16"
    if cache != "fp8" or queries not in (*_WIDE, "fp8"):
        return None
    return "fp8" if queries == "fp8" or framework.name in ("vllm", "sglang") else "bf16-kv8"


_MOST_COPIES = 5
_QUANTISED = ("quantise",)
_DYNAMIC = ("maximum", "empty", "quantise")


def gemm_protocol(framework: Framework, device: str, name: str, shape: Mapping[str, int]) -> tuple[str, int, tuple[str, ...]] | str:
    """Data type, weights that take turns and kernels before a product of the set's type `name`; or why it is not predicted.

    TensorRT-LLM: five layers, since 1.3 as many (of at most five) as fill the L2; until 1.0 every call between two events of its own.
    vLLM: six layers, one in nvfp4; its `fp8_block` runs without a graph since 0.14. SGLang: six sets of operands, one before 0.5. Others
    count as TensorRT-LLM's newest. Activations of 16 bits are quantised in each call: by one kernel with a known scale or one per row,
    block or group; by three where TensorRT-LLM finds the scale of the whole tensor. `fp8_static` is a product alone, and so are SGLang's
    before 0.5.
    """
    dtype = GEMM_DTYPES.get(name)
    if dtype is None:
        return f"products in {name}, which is not described"
    trtllm, vllm, sglang = (framework.name == known for known in FRAMEWORKS)
    version = framework.numbers[:2] or NEWEST
    if sglang and name == "int8_wo":
        return "SGLang's int8_wo, which quantises its activations by separate operators"
    if vllm and name == "fp8_block" and version >= (0, 14):
        return "vLLM's fp8_block, which was not measured in a graph"
    if sglang and name == "float16":
        dtype = "fp16"
    alone = parse_format(DTYPES[dtype][0]).element_bits == 16 or dtype in ("int8", "fp8_static") or (sglang and version < (0, 5))
    before = () if alone else _DYNAMIC if dtype == "fp8" and not vllm and not sglang else _QUANTISED
    if vllm:
        return dtype, 1 if dtype == "nvfp4" else 6, before
    if sglang:
        return dtype, 6 if version >= (0, 5) else 1, before
    if trtllm and version < (1, 3):
        return dtype, _MOST_COPIES, (*before, "empty", "empty") if version < (1, 1) else before
    width = parse_format(DTYPES[dtype][1]).element_bits / 8
    return dtype, max(1, min(_MOST_COPIES, ceil(_cache_of(device) / (shape["n"] * shape["k"] * width)))), before


@lru_cache
def _cache_of(device: str) -> int:
    """Bytes of the cache; 0 for a device without one."""
    return next((memory.total for memory in load(device).memories.values() if isinstance(memory, Cache)), 0)
