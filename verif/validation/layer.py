"""A transformer layer as the kernels that run it: operator by operator as torch does, or fused as inference frameworks do."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from math import ceil

Part = tuple[str, dict[str, int], int]
"""Operator, sizes, and weights that take turns with its own: the layer's other weights, in units of them (0: never found again)."""


def eager(s: Mapping[str, int]) -> Iterator[Part]:
    """The kernels of one Llama layer in plain torch: the rotary embedding is a negation, a concatenation, two products and a sum for
    queries and for keys, and what is written to the cache is copied."""
    hidden, inter, heads, groups = s["hidden"], s["inter"], s["heads"], s["kv_heads"]
    head = hidden // heads
    rows = s["batch"] * s["queries"]
    q, k = rows * heads * head, rows * groups * head
    weights = hidden * (2 * heads + 2 * groups) * head + 3 * hidden * inter

    def product(n: int, width: int) -> Part:
        return "gemm", {"m": rows, "n": n, "k": width}, ceil(weights / (n * width))

    yield "rmsnorm", {"rows": rows, "columns": hidden}, 1
    yield product((heads + 2 * groups) * head, hidden)
    for elements in (k, q):
        yield from (("copy", {"elements": max(1, elements // 2)}, 1), ("copy", {"elements": elements}, 1))
        yield from (("add", {"elements": elements}, 1) for _ in range(3))
    yield from (("copy", {"elements": k}, 1) for _ in range(2))
    yield _attention(s, heads, groups, head)
    yield "copy", {"elements": q}, 1
    yield product(hidden, heads * head)
    yield "add", {"elements": rows * hidden}, 1
    yield "rmsnorm", {"rows": rows, "columns": hidden}, 1
    yield product(2 * inter, hidden)
    yield "gelu", {"elements": rows * inter}, 1
    yield "add", {"elements": rows * inter}, 1
    yield product(hidden, inter)
    yield "add", {"elements": rows * hidden}, 1


def fused(s: Mapping[str, int]) -> Iterator[Part]:
    """The kernels of one layer on one of `tp` devices of an inference framework, its two all-reduces included."""
    hidden, tp = s["hidden"], s["tp"]
    heads, groups, inter = s["heads"] // tp, max(1, s["kv_heads"] // tp), s["inter"] // tp
    head = hidden // s["heads"]
    rows = s["batch"] * s["queries"]
    gate = 2 if s["gated"] else 1
    reduce: Part = ("all-reduce", {"ranks": tp, "bytes": 2 * rows * hidden}, 1)
    yield "rmsnorm", {"rows": rows, "columns": hidden}, 1
    yield "gemm", {"m": rows, "n": (heads + 2 * groups) * head, "k": hidden}, 0
    yield "rope", {"rows": rows, "columns": (heads + groups) * head}, 1
    yield "copy", {"elements": 2 * rows * groups * head}, 1
    yield _attention(s, heads, groups, head)
    yield "gemm", {"m": rows, "n": hidden, "k": heads * head}, 0
    yield reduce
    yield "rmsnorm", {"rows": rows, "columns": hidden}, 1
    yield "gemm", {"m": rows, "n": gate * inter, "k": hidden}, 0
    yield ("silu-mul" if s["gated"] else "gelu"), {"elements": rows * inter, "columns": inter}, 1
    yield "gemm", {"m": rows, "n": hidden, "k": inter}, 0
    yield reduce


def _attention(s: Mapping[str, int], heads: int, groups: int, head: int) -> Part:
    shape = {"batch": s["batch"], "queries": s["queries"], "keys": s["keys"], "heads": heads, "kv_heads": groups, "head_dim": head}
    return ("attention-prefill" if s["queries"] > 1 else "attention-decode"), shape, 0
