"""The golden model of small integer decoders: a traced graph, operator by operator, in dense numpy.

It knows no instructions, tiles, buffers or sparsity; it shares with the interpreter only the arithmetic rules. Rotary pairs are
elements i and i + 8 of each 16 (the columns of the projections are permuted accordingly).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from mapper.errors import MappingError
from sim import flightllm_arithmetic as arithmetic
from workloads.graph import Graph, Operator, Segment

Integers = NDArray[np.int64]
LAYOUT = 64
"""Rows and columns of a block of an attention mask."""


@dataclass
class Golden:
    """One model with its caches. `weights` and `biases` hold one array per repetition of the layer, by the weight's name;
    `shifts` the requantisation of products with a weight or a cache, 0 where none is given. `masks` are the kept 64 x 64 blocks of
    attention layers, [heads, tokens / 64, tokens / 64]; keys outside them have no weight."""

    graph: Graph
    weights: Mapping[str, Sequence[Integers]]
    biases: Mapping[str, Sequence[Integers]] = field(default_factory=dict)
    shifts: Mapping[str, int] = field(default_factory=dict)
    masks: Mapping[str, NDArray[np.bool_]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.caches: dict[tuple[str, int], list[Integers]] = {}

    def step(self, hidden: Integers, cosines: Integers, sines: Integers) -> Integers:
        """The logits of one token from its embedding; `cosines` and `sines` have one entry per pair of a head's 16 elements."""
        values: dict[str, Integers] = {}
        result = hidden
        for segment in self.graph.segments:
            outside = self._outside(segment)
            for repetition in range(segment.count):
                for name in outside:
                    values.setdefault(name, hidden)
                for operator in segment.operators:
                    found = self._run(operator, values, repetition, (cosines, sines))
                    if found is not None:
                        values[operator.outputs[0]] = result = found
                if segment.count > 1 and len(outside) == 1:
                    values[outside[0]] = result
        return result

    def _outside(self, segment: Segment) -> list[str]:
        """Activations that a body reads before it makes them, tables left out."""
        made: set[str] = set()
        found: list[str] = []
        for operator in segment.operators:
            for name in operator.inputs:
                role = self.graph.tensors[name].role
                if role == "activation" and name not in made and "rope_table" not in name and name not in found:
                    found.append(name)
            made.update(operator.outputs)
        return found

    def _run(self, op: Operator, values: dict[str, Integers], repetition: int, rotation: tuple[Integers, Integers]) -> Integers | None:
        match op.kind:
            case "embedding":
                return None
            case "matmul":
                name = op.inputs[1]
                sums = values[op.inputs[0]] @ self.weights[name][repetition]
                if name in self.biases:
                    sums = sums + self.biases[name][repetition]
                return arithmetic.requantise(sums, self.shifts.get(name, 0), False)
            case "norm":
                rule = arithmetic.rmsnorm if op.function == "rms_norm" else arithmetic.layernorm
                return rule(values[op.inputs[0]])
            case "append":
                kept = self.caches.setdefault((op.inputs[1], repetition), [])
                kept.append(values[op.inputs[0]])
                return None
            case "attention":
                return self._attention(op, values, repetition)
            case "elementwise":
                return self._elementwise(op, values, rotation)
        raise MappingError(f"operator {op.name!r} ({op.kind}) has no golden rule")

    def _elementwise(self, op: Operator, values: dict[str, Integers], rotation: tuple[Integers, Integers]) -> Integers | None:
        known = [values[name] for name in op.inputs if name in values]
        match op.function:
            case "rope":
                cosines, sines = rotation
                x = known[0].reshape(-1, 2, 8)
                first = arithmetic.add(arithmetic.mul(x[:, 0], cosines), arithmetic.mul(x[:, 1], -sines))
                second = arithmetic.add(arithmetic.mul(x[:, 1], cosines), arithmetic.mul(x[:, 0], sines))
                return np.stack([first, second], axis=1).reshape(-1)
            case "silu":
                return arithmetic.silu(known[0])
            case "relu":
                return np.maximum(known[0], 0)
            case "add" if len(known) == 2:
                return arithmetic.add(*known)
            case "mul" if len(known) == 2:
                return arithmetic.mul(*known)
            case "mul" if len(known) == 1:  # a scale by one number is part of the requantisation before it
                return known[0]
        return None  # what the host prepares

    def _attention(self, op: Operator, values: dict[str, Integers], repetition: int) -> Integers:
        query = values[op.inputs[0]].reshape(op["heads"], op["head_dim"])
        key_name, value_name = (name for name in op.inputs if self.graph.tensors[name].role == "kv_cache")
        keys, seen = (
            np.stack(self.caches[name, repetition]).reshape(-1, op["kv_heads"], op["head_dim"]) for name in (key_name, value_name)
        )
        out = []
        position = len(keys) - 1
        for head in range(op["heads"]):
            group = head * op["kv_heads"] // op["heads"]
            kept = np.ones(len(keys), np.bool_)
            if op.name in self.masks:
                kept = np.repeat(self.masks[op.name][head, position // LAYOUT], LAYOUT)[: len(keys)]
            scores = arithmetic.requantise(keys[kept, group] @ query[head], self.shifts.get(key_name, 0), False)
            weights = arithmetic.softmax(scores, len(scores))
            out.append(arithmetic.requantise(weights @ seen[kept, group], self.shifts.get(value_name, 0), False))
        return np.concatenate(out)
