"""Tokens per expert: how the rows of a mixture of experts are shared out among the experts that are active.

A grouped product carries a histogram as attributes `tokens_0`, `tokens_1`, ..., one per active expert, which add up to its rows.
One without spreads its rows as evenly as whole rows allow.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace

from workloads.errors import WorkloadError
from workloads.graph import Graph, Operator, Segment

PREFIX = "tokens_"


def has_histogram(op: Operator) -> bool:
    """Whether an operator says how many rows each of its experts has."""
    return f"{PREFIX}0" in op.attributes


def tokens_of(op: Operator) -> tuple[int, ...]:
    """Rows of every active expert of a grouped product, fewest first.

    Raises `WorkloadError` for a histogram that is not one: of another number of experts or rows.

    >>> op = Operator("moe", "grouped_matmul", ("x", "w"), ("y",), dict(rows=7, experts=8, top_k=1, active=3, n=4, k=4))
    >>> tokens_of(op)
    (2, 2, 3)
    """
    if not has_histogram(op):
        each, more = divmod(op["rows"], op["active"])
        return (each,) * (op["active"] - more) + (each + 1,) * more
    found = tuple(sorted(value for name, value in op.attributes.items() if name.startswith(PREFIX)))
    if len(found) != op["active"] or sum(found) != op["rows"]:
        raise WorkloadError(
            f"operator {op.name!r}: tokens of its experts: expected {op['active']} numbers that add up to {op['rows']} rows, found "
            f"{len(found)} that add up to {sum(found)}"
        )
    return found


def histogram_attributes(attributes: Mapping[str, int], tokens: Iterable[int]) -> dict[str, int]:
    """Attributes of a grouped product with a histogram in place of any that they had; those without tokens are left out."""
    kept = {name: value for name, value in attributes.items() if not name.startswith(PREFIX)}
    counts = sorted(count for count in tokens if count)
    return {**kept, "rows": sum(counts), "active": len(counts), **{f"{PREFIX}{i}": count for i, count in enumerate(counts)}}


def with_tokens(graph: Graph, tokens: Iterable[int]) -> Graph:
    """A graph whose grouped products send `tokens` rows to each of their experts (0: to none of it).

    Raises `WorkloadError` where the graph has no mixture of experts, or one of other sizes.
    """
    counts = [int(count) for count in tokens]
    if not counts or min(counts) < 0 or not sum(counts):
        raise WorkloadError(f"tokens per expert: expected numbers of at least 0 and one above, found {counts}")
    changed = 0

    def routed(op: Operator) -> Operator:
        nonlocal changed
        if op.kind != "grouped_matmul":
            return op
        if len(counts) > op["experts"] or sum(counts) != op["rows"]:
            raise WorkloadError(
                f"operator {op.name!r}: tokens per expert: expected at most {op['experts']} numbers that add up to {op['rows']} rows "
                f"(tokens x {op['top_k']}), found {len(counts)} that add up to {sum(counts)}"
            )
        changed += 1
        return replace(op, attributes=histogram_attributes(op.attributes, counts))

    segments = tuple(Segment(s.name, s.count, tuple(routed(op) for op in s.operators)) for s in graph.segments)
    if not changed:
        raise WorkloadError(f"{graph.name}: has no mixture of experts to send tokens to")
    note = f"tokens per expert, in every layer: {', '.join(str(count) for count in counts)}"
    return replace(graph, segments=segments, notes=(*graph.notes, note))
