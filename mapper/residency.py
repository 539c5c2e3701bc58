"""What a cache still holds when a kernel starts: tensors by the bytes that were touched since."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping
from fractions import Fraction
from math import ceil
from typing import Literal

from hw.memory import Cache
from mapper.kernels import Kernel


class Found(Mapping[str, Fraction]):
    """The share of each tensor that a kernel finds in the cache; tensors that it does not find are left out."""

    __slots__ = ("_shares",)

    def __init__(self, shares: Mapping[str, Fraction] | None = None) -> None:
        self._shares = {name: share for name, share in (shares or {}).items() if share}

    def __getitem__(self, name: str) -> Fraction:
        return self._shares[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._shares)

    def __len__(self) -> int:
        return len(self._shares)

    def __hash__(self) -> int:
        return hash(frozenset(self._shares.items()))

    def share(self, name: str) -> Fraction:
        return self._shares.get(name, Fraction(0))

    def __le__(self, other: Found) -> bool:
        """Whether `other` finds at least as much of everything."""
        return all(share <= other.share(name) for name, share in self.items())

    def __and__(self, other: Found) -> Found:
        """What both find."""
        return Found({name: min(share, other.share(name)) for name, share in self.items()})

    def __repr__(self) -> str:
        return f"Found({', '.join(f'{name} {float(share):.3g}' for name, share in self.items()) or 'nothing'})"


NOTHING = Found()


class Residency:
    """Tensors in order of their last use. How much of one is found depends on the bytes touched since and on the cache alone, so
    that a larger cache always finds at least as much."""

    def __init__(self, cache: Cache | int) -> None:
        self.cache = Cache(capacity=max(1, cache), bandwidth=1) if isinstance(cache, int) else cache
        self.held: OrderedDict[str, int] = OrderedDict()  # least recent first
        self.partial: set[str] = set()

    def run(self, kernel: Kernel) -> Found:
        """What a kernel finds; afterwards its own tensors are the most recently used."""
        wanted = {o.tensor for o in kernel.reads if o.tensor in self.held and o.tensor not in self.partial}
        found: dict[str, Fraction] = {}
        distance = 0
        for name in reversed(self.held):
            distance += self.held[name]
            share = self.cache.found(distance)
            if not share:
                break
            if name in wanted:
                found[name] = share
        for operand in (*kernel.reads, *kernel.writes):
            self.held.pop(operand.tensor, None)
            self.held[operand.tensor] = ceil(operand.size)
            self.partial.discard(operand.tensor)
            if not operand.whole:
                self.partial.add(operand.tensor)
        room = self.cache.window
        for name in reversed(list(self.held)):
            room -= self.held[name]
            if room < 0:
                del self.held[name]
        return Found(found)

    def around(self, kernel: Kernel) -> Found:
        """A kernel that reaches main memory past the cache finds nothing; what it writes is not in the cache any more."""
        self.drop(kernel)
        return NOTHING

    def drop(self, kernel: Kernel) -> None:
        """What a kernel writes is in main memory alone."""
        for operand in kernel.writes:
            self.held.pop(operand.tensor, None)
            self.partial.discard(operand.tensor)

    def rename(self, names: Mapping[str, str]) -> None:
        """What was held under one name is now known by another, where that is not held itself."""
        self.held = OrderedDict((names.get(name, name), size) for name, size in self.held.items() if name not in names.values())
        self.partial = {names.get(name, name) for name in self.partial if name not in names.values()}

    def forget(self, names: Iterable[str]) -> None:
        """Tensors of which the next run of a body has another instance (its weights and caches) take room but are not found."""
        self.partial.update(names)


def carried(kernels: list[Kernel]) -> dict[str, str]:
    """What a repeated body hands on to its next run: the name of the activation that it leaves, and the name by which it enters. Nothing
    where this is not plain: one activation of a format and size leaves that no kernel of the body reads, and one enters."""
    inside = {o.tensor for k in kernels for o in k.writes}
    read = {o.tensor for k in kernels for o in k.reads}
    leaving: dict[tuple[str, Fraction], set[str]] = {}
    entering: dict[tuple[str, Fraction], set[str]] = {}
    for kernel in kernels:
        for o in kernel.writes:
            if o.role == "activation" and o.tensor not in read:
                leaving.setdefault((o.format.name, Fraction(o.total)), set()).add(o.tensor)
        for o in kernel.reads:
            if o.role == "activation" and o.tensor not in inside:
                entering.setdefault((o.format.name, Fraction(o.total)), set()).add(o.tensor)
    pairs = [(leaving[size], entering[size]) for size in leaving if size in entering]
    return {left.pop(): entered.pop() for left, entered in pairs if len(left) == len(entered) == 1}


Side = Literal["behind", "past", "both"]
"""How a kernel reaches main memory: through the cache, past it, or in parts that do either."""


def residents(bodies: list[tuple[int, list[Kernel]]], cache: Cache | None, sides: list[list[Side]] | None = None) -> list[list[Found]]:
    """For every kernel what it finds in the cache. In a repeated body this is what both its first run and a later run find,
    so that all runs are alike. `sides` says which kernels reach main memory past the cache; by default none does."""
    if cache is None:
        return [[NOTHING] * len(kernels) for _, kernels in bodies]
    held = Residency(cache)
    found: list[list[Found]] = []

    def run(kernel: Kernel, side: Side) -> Found:
        if side == "past":
            return held.around(kernel)
        hits = held.run(kernel)
        if side == "both":
            held.drop(kernel)
        return hits

    for number, (count, kernels) in enumerate(bodies):
        ways: list[Side] = sides[number] if sides else ["behind"] * len(kernels)
        own = {o.tensor for k in kernels for o in (*k.reads, *k.writes) if o.role in ("weight", "kv_cache")} if count > 1 else set()
        first = [run(kernel, side) for kernel, side in zip(kernels, ways, strict=True)]
        if count > 1:
            held.forget(own)
            held.rename(carried(kernels))
            again = [run(kernel, side) for kernel, side in zip(kernels, ways, strict=True)]
            first = [a & b for a, b in zip(first, again, strict=True)]
            held.forget(own)
        found.append(first)
    return found
