"""What a cache still holds when a kernel starts: whole tensors, least recently used first out."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable

from mapper.kernels import Kernel


class Residency:
    """A fully associative cache of whole tensors. A tensor larger than the cache never stays."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.held: OrderedDict[str, int] = OrderedDict()

    def run(self, kernel: Kernel) -> frozenset[str]:
        """The tensors that a kernel finds; afterwards its own are the most recently used."""
        hits = frozenset(o.tensor for o in kernel.reads if o.tensor in self.held)
        for operand in (*kernel.reads, *kernel.writes):
            self.held.pop(operand.tensor, None)
            size = -(-operand.size // 1)
            if operand.whole and size <= self.capacity:
                self.held[operand.tensor] = size
        while sum(self.held.values()) > self.capacity:
            self.held.popitem(last=False)
        return hits

    def forget(self, names: Iterable[str]) -> None:
        """Drop tensors of which the next run of a body has another instance (its weights and caches)."""
        for name in names:
            self.held.pop(name, None)


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
