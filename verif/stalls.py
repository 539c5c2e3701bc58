"""When a stream's user hesitates: patterns of cycles in which it does not offer or does not take a word."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import count

from numpy.random import Generator

Stall = Callable[[Generator], Iterator[bool]]
"""For each cycle, whether the user stalls in it; endless."""


def never(rng: Generator) -> Iterator[bool]:
    while True:
        yield False


def every_third(rng: Generator) -> Iterator[bool]:
    for cycle in count():
        yield cycle % 3 == 2


def random_half(rng: Generator) -> Iterator[bool]:
    while True:
        yield from (rng.random(256) < 0.5).tolist()


STALLS: dict[str, Stall] = {"never": never, "every_third": every_third, "random_half": random_half}
