"""cocotb building blocks for ready/valid streams; a word moves in a cycle in which valid and ready are both high.

Signals are read at the rising edge, with the values they had before it, and driven right after it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from cocotb.triggers import RisingEdge


@dataclass
class Stream:
    """The signals of one stream of a component and its clock."""

    clock: Any
    valid: Any
    ready: Any
    payload: Any

    @classmethod
    def of(cls, dut: Any, name: str) -> Stream:
        return cls(dut.clk, *(getattr(dut, f"{name}__{part}") for part in ("valid", "ready", "payload")))


@dataclass
class Driver:
    """Offers words on a stream, one after the other, except in cycles in which it stalls."""

    stream: Stream
    stalls: Iterator[bool]
    seen: Callable[[str], None]
    """Told `moved`, `refused` or `idle` for every cycle."""

    async def send(self, words: Sequence[int]) -> None:
        for word in words:
            while next(self.stalls):
                self.stream.valid.value = 0
                self.stream.payload.value = ~word & ((1 << len(self.stream.payload)) - 1)  # what is not offered must not matter
                await RisingEdge(self.stream.clock)
                self.seen("idle")
            self.stream.valid.value = 1
            self.stream.payload.value = word
            await RisingEdge(self.stream.clock)
            while not int(self.stream.ready.value):
                self.seen("refused")
                await RisingEdge(self.stream.clock)
            self.seen("moved")
        self.stream.valid.value = 0


@dataclass
class Monitor:
    """Takes words from a stream, except in cycles in which it stalls, and watches that waiting words stay as they are."""

    stream: Stream
    stalls: Iterator[bool]
    seen: Callable[[str], None]
    """Told `moved`, `waits` or `idle` for every cycle."""
    word: Callable[[int], None]
    """Told every word that was taken."""
    breaches: list[str] = field(default_factory=list)

    async def watch(self) -> None:
        waiting: int | None = None
        while True:
            stalled = next(self.stalls)
            self.stream.ready.value = not stalled
            await RisingEdge(self.stream.clock)
            valid = bool(int(self.stream.valid.value))
            payload = int(self.stream.payload.value) if valid else None
            if waiting is not None and payload != waiting:
                self.breaches.append("a result changed or vanished while it waited to be taken")
            waiting = payload if valid and stalled else None
            if payload is not None and not stalled:
                self.word(payload)
            self.seen("idle" if not valid else "waits" if stalled else "moved")


@dataclass
class Scoreboard:
    """Compares words with the expected ones, in order."""

    expected: Sequence[int]
    position: int = 0
    mismatches: list[str] = field(default_factory=list)

    def see(self, word: int) -> None:
        if self.position >= len(self.expected):
            self.mismatches.append(f"result {self.position}: {word:#x}, which no operand asked for")
        elif word != self.expected[self.position]:
            self.mismatches.append(f"result {self.position}: expected {self.expected[self.position]:#x}, found {word:#x}")
        self.position += 1

    @property
    def complete(self) -> bool:
        return self.position >= len(self.expected)
