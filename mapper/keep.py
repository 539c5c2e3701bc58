"""Tensors that stay on the chip: results that the kernels behind them read from a scratchpad, never from main memory.

A result is kept in every scratchpad from which a later kernel of the same body reads it, from the kernel that writes it to the
last one that reads it there. Kernels in between have that much less room for their tiles. Which results are kept is found by cost:
all that are at most so large, for every size there is. Where in a scratchpad they lie follows from their lifetimes, first fit from
its end.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from math import ceil

from hw.device import Device
from hw.memory import Scratchpad
from mapper.kernels import Kernel, Operand
from workloads.graph import Graph


@dataclass(frozen=True)
class Kept:
    """A tensor of `size_bytes` in scratchpad `pad` from kernel `first` to kernel `last` of a body (the number of a segment); it ends
    `offset` bytes before the scratchpad does."""

    tensor: str
    pad: str
    size_bytes: int
    first: int
    last: int
    offset: int = 0
    body: int = 0


Places = dict[str, tuple[Kept, ...]]
"""Tensors that could be kept, each with what it would take in every scratchpad it is read from."""


def candidates(graph: Graph, device: Device, kernels: Sequence[Kernel], units: Sequence[str]) -> Places:
    """The results of a body of kernels that could stay on the chip, where `units` run them ("" for a kernel that cannot take part).

    A result can stay if it is whole, nothing outside the body reads it, and the scratchpad it is written to is that from which
    every reader takes it, or linked to it.
    """
    outside = set(graph.outputs)
    for segment in graph.segments:
        for operator in segment.operators:
            if not _belongs(operator.name, kernels):
                outside.update(operator.inputs)
    found: Places = {}
    for index, (kernel, unit) in enumerate(zip(kernels, units, strict=True)):
        source = device.scratchpad("outputs", unit) if unit else None
        for operand in kernel.writes:
            readers = [(i, o) for i, k in enumerate(kernels) for o in k.reads if o.tensor == operand.tensor]
            if source is None or operand.role != "activation" or not operand.whole or operand.tensor in outside or not readers:
                continue
            pads: dict[str, int] = {}
            for reader, read in readers:
                pad = _read_from(device, kernels[reader], read, units[reader]) if reader > index else None
                if pad is None or not _reaches(device, source, pad):
                    break
                pads[pad] = max(reader, pads.get(pad, 0))
            else:
                size = ceil(operand.size)
                found[operand.tensor] = tuple(Kept(operand.tensor, pad, size, index, last) for pad, last in pads.items())
    return found


def _belongs(name: str, kernels: Sequence[Kernel]) -> bool:
    """Whether an operator is one of those that the kernels run; merged ones are named `a.q_proj+k_proj`."""
    for kernel in kernels:
        for operator in (kernel.operator, *kernel.fused):
            head, _, tail = operator.name.rpartition(".")
            prefix = f"{head}." if head else ""
            if name == operator.name or name in {f"{prefix}{part}" for part in tail.split("+")}:
                return True
    return False


def _read_from(device: Device, kernel: Kernel, operand: Operand, unit: str) -> str | None:
    """The scratchpad from which a kernel reads an operand; None where it is read from main memory in any case."""
    if not unit or (kernel.multiplied and operand.tensor in kernel.operator.inputs[1:3]):
        return None  # the weights' side streams
    left = kernel.multiplied is not None and operand.tensor == kernel.operator.inputs[0]
    return device.scratchpad("activations" if left else "outputs", unit)


def _reaches(device: Device, source: str, pad: str) -> bool:
    """Whether what is written to one scratchpad can be written to another: they are one, or linked."""
    return source == pad or any({link.source, link.sink} == {source, pad} for link in device.links)


def allocate(device: Device, places: Iterable[Kept]) -> tuple[Kept, ...] | None:
    """Offsets from the end of each scratchpad, first fit in the order of the first kernel, large ones first; None where they do not fit."""
    done: list[Kept] = []
    for kept in sorted(places, key=lambda k: (k.first, -k.size_bytes, k.tensor, k.pad)):
        alive = [d for d in done if d.pad == kept.pad and d.first <= kept.last and kept.first <= d.last]
        offset = min(
            end
            for end in [0, *(d.offset + d.size_bytes for d in alive)]
            if all(end >= d.offset + d.size_bytes or end + kept.size_bytes <= d.offset for d in alive)
        )
        memory = device.memories[kept.pad]
        if not isinstance(memory, Scratchpad) or memory.count != 1 or offset + kept.size_bytes >= memory.capacity:
            return None
        done.append(replace(kept, offset=offset))
    return tuple(done)


def reserved(places: Iterable[Kept], kernel: int) -> tuple[tuple[str, int], ...]:
    """Bytes at the end of each scratchpad that a kernel of the body must leave alone."""
    needs: dict[str, int] = {}
    for kept in places:
        if kept.first <= kernel <= kept.last:
            needs[kept.pad] = max(needs.get(kept.pad, 0), kept.offset + kept.size_bytes)
    return tuple(sorted(needs.items()))


def without(kernel: Kernel, tensors: Collection[str]) -> Kernel:
    """A kernel that neither loads nor stores some tensors: they are where it reads and writes them."""

    def drop(operand: Operand) -> Operand:
        return replace(operand, elements=Fraction(0)) if operand.tensor in tensors else operand

    return replace(kernel, reads=tuple(drop(o) for o in kernel.reads), writes=tuple(drop(o) for o in kernel.writes))
