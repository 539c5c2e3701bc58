"""Repeated layers stored once: repeated periods are found in the recorded operators themselves.

Operators are cut into blocks where the layer index in their module path changes; a run of blocks whose operators have the
same structure, and which hand tensors on to their successor in the same way, becomes one `Segment` with a count.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from workloads.graph import Operator, Segment, Tensor

_INDEX = re.compile(r"^(.*?)\.(\d+)(?=\.|$)")


def _layer(operator: Operator) -> str:
    """The module path up to its first index: `model.layers.3` for `model.layers.3.mlp.up_proj`."""
    match = _INDEX.match(operator.module)
    return match.group(0) if match else ""


@dataclass(slots=True)
class _Block:
    start: int
    stop: int
    layer: str
    structure: int  # equal numbers: operators of the same structure, whatever tensors they are connected to


def _blocks(operators: Sequence[Operator], tensors: Mapping[str, Tensor]) -> list[_Block]:
    numbers: dict[object, int] = {}
    blocks: list[_Block] = []
    start = 0
    for i in range(1, len(operators) + 1):
        layer = _layer(operators[start])
        if i < len(operators) and _layer(operators[i]) == layer:
            continue
        signature = tuple(
            (
                op.kind,
                op.function,
                op.module.removeprefix(layer),
                tuple(sorted(op.attributes.items())),
                tuple(
                    (t.elements if t.role == "activation" else t.shape, t.format.name, t.role) for t in map(tensors.__getitem__, op.inputs)
                ),
                tuple((tensors[n].shape, tensors[n].format.name, tensors[n].role) for n in op.outputs),
            )
            for op in operators[start:i]
        )
        blocks.append(_Block(start, i, layer, numbers.setdefault(signature, len(numbers))))
        start = i
    return blocks


def _repetitions(operators: Sequence[Operator], start: int, period: int, count: int, tensors: Mapping[str, Tensor]) -> int:
    """How many of `count` equally structured bodies from operator `start` on are connected alike (1: not foldable).

    Bodies are alike when every input comes from the same place: the same operator of this body, the same operator of the
    body before, a weight or cache of its own, or the same tensor from outside. The first body may read from outside what the
    others read from the body before. A tensor read later than by the next body prevents folding.
    """
    bodies = [operators[start + j * period : start + (j + 1) * period] for j in range(count)]
    readers = Counter(name for body in bodies for name in {name for op in body for name in op.inputs})
    made: list[dict[str, tuple[int, int]]] = [
        {name: (i, position) for i, op in enumerate(body) for position, name in enumerate(op.outputs)} for body in bodies
    ]

    def connections(j: int) -> list[tuple[str, object]]:
        seen: set[str] = set()
        own: dict[str, int] = {}
        result: list[tuple[str, object]] = []
        for op in bodies[j]:
            for name in op.inputs:
                role = tensors[name].role
                if name in seen:
                    result.append(("body", made[j][name]))
                elif role == "activation":
                    before = made[j - 1].get(name) if j else None
                    result.append(("outside", name) if before is None else ("previous", before))
                elif readers[name] == 1:
                    result.append(("own", own.setdefault(name, len(own))))
                elif role == "constant":
                    result.append(("outside", name))
                else:
                    result.append(("tied", (j, name)))  # stored once but read by several bodies: never alike
            seen.update(op.outputs)
        return result

    reference = connections(1)
    for mine, theirs in zip(connections(0), reference, strict=True):
        if mine != theirs and (mine[0], theirs[0]) != ("outside", "previous"):
            return 1
    alike = 2
    while alike < count and connections(alike) == reference:
        alike += 1
    body_of = {name: j for j in range(alike) for name in made[j] if tensors[name].role == "activation"}
    for i in range(start, len(operators)):
        j = min((i - start) // period, alike)
        if any(j - body_of.get(name, j) > 1 for name in operators[i].inputs):
            return 1
    return alike


def fold(operators: Sequence[Operator], tensors: Mapping[str, Tensor]) -> tuple[tuple[Segment, ...], dict[str, str]]:
    """Segments in execution order, and which tensors of the last repetitions are now called like those of the first.

    Consumers after a repeated body read the tensor that its last repetition produced, under the name of the first.
    """
    blocks = _blocks(operators, tensors)
    structure = [block.structure for block in blocks]
    renamed: dict[str, str] = {}
    segments: list[Segment] = []
    i = 0
    while i < len(blocks):
        start, best_period, best_count, covered = blocks[i].start, 1, 1, 0
        for period in range(1, (len(blocks) - i) // 2 + 1):
            count = 1
            while structure[i + count * period : i + (count + 1) * period] == structure[i : i + period]:
                count += 1
            length = blocks[i + period - 1].stop - start
            if count > 1 and (count := _repetitions(operators, start, length, count, tensors)) > 1 and count * length > covered:
                best_period, best_count, covered = period, count, count * length
        length = blocks[i + best_period - 1].stop - start
        body = operators[start : start + length]
        for j in range(1, best_count):
            for original, copy in zip(body, operators[start + j * length : start + (j + 1) * length], strict=True):
                renamed.update(zip(copy.outputs, original.outputs, strict=True))
        last = blocks[i + best_period * best_count - 1].layer
        name = _segment_name(blocks[i].layer, last, [segment.name for segment in segments])
        segments.append(Segment(name, best_count, tuple(_rename(op, renamed) for op in body)))
        i += best_period * best_count
    return tuple(segments), renamed


def _rename(operator: Operator, renamed: Mapping[str, str]) -> Operator:
    if not any(name in renamed for name in operator.inputs):
        return operator
    return replace(operator, inputs=tuple(dict.fromkeys(renamed.get(name, name) for name in operator.inputs)))


def _segment_name(first: str, last: str, taken: Sequence[str]) -> str:
    """`model.layers.0-31` for layers; what comes before is the prologue, what comes after the epilogue."""
    name = first if first == last else f"{first}-{last.rpartition('.')[2]}"
    if not first:
        name = "epilogue" if taken else "prologue"
    return name if name not in taken else f"{name}-{len(taken)}"
