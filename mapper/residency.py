"""What a cache still holds when a kernel starts: whole tensors, least recently used first out."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable
from math import ceil

from mapper.kernels import Kernel


class Residency:
    """A fully associative cache of whole tensors. What it holds is the longest run of most recently used tensors that fits, so
    that a larger cache always holds at least as much; a tensor that is larger than the cache pushes everything out."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.held: OrderedDict[str, int] = OrderedDict()  # least recent first
        self.partial: set[str] = set()

    def run(self, kernel: Kernel) -> frozenset[str]:
        """The tensors that a kernel finds; afterwards its own are the most recently used."""
        hits = frozenset(o.tensor for o in kernel.reads if o.tensor in self.held and o.tensor not in self.partial)
        for operand in (*kernel.reads, *kernel.writes):
            self.held.pop(operand.tensor, None)
            self.held[operand.tensor] = ceil(operand.size)
            self.partial.discard(operand.tensor)
            if not operand.whole:
                self.partial.add(operand.tensor)
        room = self.capacity
        for name in reversed(list(self.held)):
            room -= self.held[name]
            if room < 0:
                del self.held[name]
        return hits

    def forget(self, names: Iterable[str]) -> None:
        """Tensors of which the next run of a body has another instance (its weights and caches) take room but are not found."""
        self.partial.update(names)


def residents(bodies: list[tuple[int, list[Kernel]]], capacity: int) -> list[list[frozenset[str]]]:
    """For every kernel the tensors it finds in the cache. In a repeated body these are what both its first run and a later
    run find, so that all runs are alike."""
    cache = Residency(capacity)
    found: list[list[frozenset[str]]] = []
    for count, kernels in bodies:
        own = {o.tensor for k in kernels for o in (*k.reads, *k.writes) if o.role in ("weight", "kv_cache")} if count > 1 else set()
        first = [cache.run(kernel) for kernel in kernels]
        if count > 1:
            cache.forget(own)
            again = [cache.run(kernel) for kernel in kernels]
            first = [a & b for a, b in zip(first, again, strict=True)]
            cache.forget(own)
        found.append(first)
    return found
