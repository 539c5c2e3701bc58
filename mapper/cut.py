"""Pieces of kernels: what one of several units works on that share a kernel, cut along one of its dimensions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from fractions import Fraction
from math import ceil

from mapper.kernels import Kernel, Operand
from workloads import cost
from workloads.experts import has_histogram, histogram_attributes, tokens_of
from workloads.graph import Operator


def _shared_right(kernel: Kernel) -> bool:
    """Whether one right operand serves the whole batch of a product."""
    op = kernel.operator
    return kernel.kind == "matmul" and kernel.input(1).total == op["n"] * op["k"]


def extents(kernel: Kernel) -> dict[str, int]:
    """The dimensions along which a kernel can be cut, with their sizes: rows `m` and columns `n` of a product, its `batch`,
    `experts`, key/value `heads` and sequences of attention. Nothing for kernels that are not cut."""
    op = kernel.operator
    match kernel.kind:
        case "matmul" if op.inputs[0] == op.inputs[1]:
            sizes: dict[str, int] = {}
        case "matmul" if _shared_right(kernel):
            sizes = {"n": op["n"], "m": op["batch"] * op["m"]}
        case "matmul":
            sizes = {"batch": op["batch"], "n": op["n"]}
        case "grouped_matmul":
            sizes = {"experts": op["active"], "n": op["n"]}
        case "attention":
            sizes = {"batch": op["batch"], "heads": op["kv_heads"]}
        case _:
            sizes = {}
    return {name: size for name, size in sizes.items() if size > 1}


def piece(kernel: Kernel, dimension: str, start: int, size: int) -> Kernel:
    """The part [start, start + size) of a kernel along one of its `extents`. All parts together move every byte of what is cut
    once, exactly, and compute every product once; operands that are not cut are read by each part."""
    whole, op = extents(kernel)[dimension], kernel.operator
    if size == whole:
        return kernel
    share = Fraction(size, whole)
    left = right = rest = share
    attributes = dict(op.attributes)
    match dimension:
        case "m":
            attributes |= {"batch": 1, "m": size}
            right = Fraction(1)
        case "n":
            attributes["n"] = size
            left = Fraction(1)
        case "batch":
            attributes["batch"] = size
        case "heads":
            attributes |= {"kv_heads": size, "heads": op["heads"] // op["kv_heads"] * size}
        case "experts" if has_histogram(op):
            return with_experts(kernel, tokens_of(op)[start : start + size])
        case "experts":
            rows = op["rows"] * (start + size) // whole - op["rows"] * start // whole
            experts = ceil(op["experts"] * share)
            attributes |= {"rows": rows, "active": size, "experts": experts, "top_k": min(op["top_k"], experts)}
            left = rest = Fraction(rows, op["rows"])
    return _part(kernel, attributes, left, right, rest)


def with_experts(kernel: Kernel, tokens: Sequence[int]) -> Kernel:
    """The part of a grouped product that runs the experts with so many `tokens` each."""
    op = kernel.operator
    share, rows = Fraction(len(tokens), op["active"]), Fraction(sum(tokens), op["rows"])
    if share == 1:
        return kernel
    experts = ceil(op["experts"] * share)
    attributes = {**histogram_attributes(op.attributes, tokens), "experts": experts, "top_k": min(op["top_k"], experts)}
    return _part(kernel, attributes, rows, share, rows)


def _part(kernel: Kernel, attributes: dict[str, int], left: Fraction, right: Fraction, rest: Fraction) -> Kernel:
    """A kernel with shares of its left and right operand and of everything else."""
    op = kernel.operator
    cached = op.inputs[1:3] if kernel.kind == "attention" else op.inputs[1:2]

    def cut(operand: Operand) -> Operand:
        part = left if operand.tensor == op.inputs[0] else right if operand.tensor in cached else rest
        return replace(operand, elements=_whole(operand.elements * part), total=_whole(operand.total * part))

    return replace(
        kernel,
        operator=replace(op, attributes=attributes),
        fused=tuple(_cut_fused(other, rest) for other in kernel.fused),
        reads=tuple(cut(o) for o in kernel.reads),
        writes=tuple(replace(o, elements=_whole(o.elements * rest), total=_whole(o.total * rest)) for o in kernel.writes),
        operations=ceil(kernel.operations * rest),
        specials=ceil(kernel.specials * rest),
    )


def _whole(value: Fraction | int) -> Fraction | int:
    return int(value) if Fraction(value).denominator == 1 else value


def _cut_fused(operator: Operator, share: Fraction) -> Operator:
    if "elements" not in operator.attributes:
        return operator
    return replace(operator, attributes={**operator.attributes, "elements": ceil(operator["elements"] * share)})


def together(kernel: Kernel, part: Kernel) -> tuple[tuple[tuple[str, Fraction], ...], Fraction]:
    """What the whole kernel moves of every operand, in parts, and how many parts it computes."""
    op = kernel.operator
    cached = op.inputs[1:3] if kernel.kind == "attention" else op.inputs[1:2]

    def size(k: Kernel, operand: str) -> Fraction:
        if operand == "outputs":
            return sum((o.size for o in k.writes), Fraction(0))
        names = cached if operand == "weights" else op.inputs[:1]
        return sum((o.size for o in k.reads if o.tensor in names), Fraction(0))

    times = []
    for operand in ("activations", "weights", "outputs"):
        if (one := size(part, operand)) and (factor := size(kernel, operand) / one) != 1:
            times.append((operand, factor))
    return tuple(times), Fraction(cost.macs(op), cost.macs(part.operator))
