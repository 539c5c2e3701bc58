"""AttAcc (Park et al., ASPLOS 2024): GEMV units in HBM3 stacks that hold keys and values, and a softmax unit on the buffer die.

Commands and orders of the AttAcc simulator (github.com/scale-snu/attacc_simulator): WR_GB writes a vector to the GEMV buffers,
MAC_AB (all banks), MAC_SB (one bank of every bank group) or MAC_PB (one bank of a pseudo channel) multiplies, MV_SB moves
results to the softmax buffer, SFM is softmax, MV_GB brings probabilities back. A channel works on one head; two heads are
pipelined, so that softmax and moves of one hide behind the other's MACs.
"""

from __future__ import annotations

from dataclasses import replace
from functools import cached_property, lru_cache
from math import ceil
from typing import Literal

from hw.part import Part as Sheet
from hw.pim.channel import ATTACC, HBM2_STAGES, BankSet, PimChannel
from hw.pim.kernel import Kernel
from hw.pim.layout import HeadLayout, check_fit, check_shape
from hw.pim.stream import Kind, Part, Run, Stream, once
from hw.quantity import Count

MOVE = 4
"""Clocks of WR_GB, MV_SB and MV_GB."""
SOFTMAX, SOFTMAX_ENTRIES = 16, 256
"""Clocks of SFM per so many entries."""
WAYS, PARTS = 16, 4
"""Ways over which tokens are spread (pseudo channel x rank x bank group) and banks of a group, over which a head's width is."""
MOVES = 8
"""MV_SB of a group of results: two ranks of four bank groups; both pseudo channels move at once."""
OUTPUTS = 16
"""Results of a unit that are moved together."""

Place = Literal["bank", "bank group", "buffer"]
COMMAND: dict[str, str] = {"bank": "MAC_AB", "bank group": "MAC_SB", "buffer": "MAC_PB"}
SETS: dict[str, tuple[int, int]] = {"bank": (1, WAYS * PARTS), "bank group": (PARTS, WAYS), "buffer": (WAYS // 2 * PARTS, 2)}
"""Bank sets of a channel and banks of each, by placement."""
CADENCE: dict[str, tuple[int, int]] = {"bank": (4, 6), "bank group": (4, 6), "buffer": (2, 2)}
"""Clocks between MACs, unconstrained and under the power limit, of the simulator's 5.2 Gb/s presets (nCCDAB, nCCDSB, nCCD_S)."""


class AttAcc(Sheet):
    """`stacks` of 16 channels. `place` is where the units are, `power_limited` the cadence that the power of a stack allows,
    `mac_pj` the energy of one multiply-accumulate."""

    stacks: Count = 5
    place: Place = "bank"
    power_limited: bool = True
    lanes: Count = 16
    mac_pj: float = 0.32  # AttAcc simulator's energy table
    pipelined: bool = True
    refresh: bool = True

    @property
    def channels(self) -> int:
        return 16 * self.stacks

    @property
    def cadence(self) -> int:
        return CADENCE[self.place][self.power_limited]

    @cached_property
    def channel(self) -> PimChannel:
        count, banks = SETS[self.place]
        sets = tuple(BankSet(name=f"set {i}", first=i, banks=banks, step=count) for i in range(count))
        beat = {place: 256 * pj for place, pj in HBM2_STAGES.items()}
        reach = {"bank": 1, "bank group": 2, "buffer": 4}[self.place]
        mac = {place: pj * banks for place, pj in list(beat.items())[:reach]}
        inside = {place: beat[place] for place in ("column mux", "bank-group mux", "tsv")}
        energy = {
            "activate": {"activate": 909.0},
            COMMAND[self.place]: {**mac, "compute": self.mac_pj * self.lanes * banks},
            "WR_GB": {**inside, "interposer": beat["interposer"]},
            "MV_SB": inside,
            "MV_GB": inside,
        }
        return PimChannel(preset=ATTACC, sets=sets, energy_pj=energy, source=ATTACC.source)

    @property
    def formats(self) -> frozenset[str]:
        return frozenset({"fp16"})

    @property
    def free_rows(self) -> int:
        return ATTACC.rows

    @property
    def capacity(self) -> int:
        return ATTACC.capacity * self.channels

    @property
    def internal_peak(self) -> int:
        """Bytes per second of all units at their cadence."""
        return int(self.channel.internal_peak(self.cadence) * self.channels)

    def head(self, tokens: int, width: int) -> HeadLayout:
        check_shape("AttAcc head", tokens=tokens, width=width)
        return HeadLayout(tokens, width, WAYS, PARTS, self.lanes, ATTACC.row_bytes // ATTACC.burst_bytes)

    def attention(self, jobs: int, tokens: int, width: int, value_width: int = 0, queries: int = 1) -> Kernel:
        """Score, softmax and context of one new token: `jobs` heads (of all sequences together), each with `queries` query
        vectors over `tokens` keys of `width` and values of `value_width` fp16 numbers.

        Units hold one vector, so that `queries` which share keys take that many passes over them.
        Raises `HardwareError` when keys and values of all heads do not fit.
        """
        return _attention(self, jobs, tokens, width, value_width or width, queries)

    def product(self, outputs: int, inputs: int, batch: int = 1) -> Kernel:
        """`batch` vectors times a matrix [outputs, inputs] that lies in the banks as the keys of a head do, rows shared out over
        all channels."""
        return _product(self, outputs, inputs, batch)


def _accesses(design: AttAcc, row: int, first: int, count: int, tag: tuple[int, ...], fence: bool) -> list[Run]:
    """`count` accesses of a head's matrix from the `first` on, which starts in `row`; with fewer units the same rows are read
    bank after bank."""
    columns = ATTACC.row_bytes // ATTACC.burst_bytes
    sets, _ = SETS[design.place]
    name, left = COMMAND[design.place], count
    runs: list[Run] = []
    while left:
        at, column = divmod(first, columns)
        piece = min(left, columns - column)
        for index in range(sets):
            runs.append(Run(name, Kind.READ, piece, design.cadence, index, row + at, column, fence=fence and not runs, tag=(*tag, first)))
        first, left = first + piece, left - piece
    return runs


class _Head:
    """The command groups of one head on a channel."""

    def __init__(self, design: AttAcc, number: int, keys: HeadLayout, values: HeadLayout, share: int) -> None:
        self.design, self.number, self.keys, self.values = design, number, keys, values
        self.row = number // share * (keys.rows_needed + values.rows_needed)

    @property
    def groups(self) -> int:
        """Groups of results of the score."""
        return ceil(self.keys.token_steps / OUTPUTS)

    def load(self) -> list[Run]:
        return [Run("WR_GB", Kind.MOVE, PARTS * self.keys.width_steps, MOVE, tag=(self.number,))]

    def score(self, group: int) -> list[Run]:
        steps = min(OUTPUTS, self.keys.token_steps - group * OUTPUTS)
        first = group * OUTPUTS * self.keys.width_steps
        return _accesses(self.design, self.row, first, steps * self.keys.width_steps, (self.number, 0), fence=True)

    def context(self, step: int) -> list[Run]:
        steps = self.values.token_steps
        return _accesses(self.design, self.row + self.keys.rows_needed, step * steps, steps, (self.number, 1), fence=True)

    def moved(self, part: int, group: int) -> list[Run]:
        return [Run("MV_SB", Kind.MOVE, MOVES, MOVE, tag=(self.number, part, group))]

    def softmax(self) -> list[Run]:
        count = ceil(self.keys.tokens / SOFTMAX_ENTRIES)
        return [Run("SFM", Kind.UNIT, count, SOFTMAX, tag=(self.number,))]

    def back(self) -> list[Run]:
        return [Run("MV_GB", Kind.MOVE, MOVES * ceil(self.keys.tokens / SOFTMAX_ENTRIES), MOVE, joins=True, tag=(self.number,))]


def _groups(head: _Head, other: _Head | None, beside: str) -> list[Run]:
    """The score of `head`; results move while the next group goes on. Beside it the `other` loads its vector (`load`) or runs
    its softmax and brings the probabilities back (`softmax`)."""
    runs: list[Run] = []
    middle = head.groups // 2
    for group in range(head.groups):
        runs += head.score(group)
        if group:
            runs += head.moved(0, group - 1)
        if other and beside == "softmax":
            runs += other.softmax() if group == 0 else []
            runs += other.back() if group == middle else []
        elif other and group == 0:
            runs += other.load()
    return [*runs, *head.moved(0, head.groups - 1)]


def _context(head: _Head, other: _Head | None) -> list[Run]:
    """The context of `head`, beside it the softmax of the `other`."""
    runs: list[Run] = []
    steps = head.values.width_steps
    for step in range(steps):
        runs += head.context(step)
        if step:
            runs += head.moved(1, step - 1)
        if other:
            runs += other.softmax() if step == 0 else []
            runs += other.back() if step == steps // 2 else []
    return [*runs, *head.moved(1, steps - 1)]


def _alone(head: _Head) -> tuple[Run, ...]:
    first, *rest = [*head.load(), *_groups(head, None, ""), *head.softmax(), *head.back(), *_context(head, None)]
    return (_fenced(first), *rest)


def _pair(first: _Head, second: _Head) -> tuple[Run, ...]:
    load, *rest = [
        *first.load(),
        *_groups(first, second, "load"),
        *_groups(second, first, "softmax"),
        *_context(first, second),
        *_context(second, None),
    ]
    return (_fenced(load), *rest)


def _fenced(run: Run) -> Run:
    """The run as the start of something new: the channel may be handed over before it."""
    return replace(run, fence=True, turn=True)


@lru_cache(maxsize=1024)
def _attention(design: AttAcc, jobs: int, tokens: int, width: int, value_width: int, queries: int) -> Kernel:
    check_shape("AttAcc attention", jobs=jobs, queries=queries, value_width=value_width)
    keys, values = design.head(tokens, width), design.head(tokens, value_width)
    rows = keys.rows_needed + values.rows_needed
    held = ceil(jobs / design.channels)
    what = f"AttAcc: keys and values of {jobs} heads x {tokens} tokens on {design.channels} channels ({held} heads in one)"
    check_fit(what, held * rows, design.free_rows, ATTACC.row_bytes, WAYS * PARTS)
    passes = held * queries

    def pair(index: int) -> tuple[Run, ...]:
        return _pair(*(_Head(design, 2 * index + i, keys, values, queries) for i in range(2)))

    parts: list[Part] = []
    if design.pipelined:
        parts.append(Part(passes // 2, pair))
        if passes % 2:
            parts.append(once(*_alone(_Head(design, passes - 1, keys, values, queries))))
    else:
        parts.append(Part(passes, lambda i: _alone(_Head(design, i, keys, values, queries))))
    beats = passes * PARTS * keys.width_steps
    results = passes * MOVES * values.width_steps
    burst = ATTACC.burst_bytes
    banks = SETS[design.place][0] * SETS[design.place][1]
    return Kernel(
        name=f"{jobs} heads x {queries} queries over {tokens} tokens of {width}",
        channel=design.channel,
        channels=min(jobs, design.channels),
        stream=Stream(tuple(parts)),
        macs=jobs * queries * tokens * (width + value_width),
        internal_bytes=passes * (keys.accesses + values.accesses) * banks * burst * min(jobs, design.channels),
        host_read=results * burst * min(jobs, design.channels),
        host_written=beats * burst * min(jobs, design.channels),
        array=(COMMAND[design.place],),
        padding=keys.padding,
        refresh=design.refresh,
        notes=("softmax of 256 entries takes 16 clocks; its energy is not modelled",),
    )


@lru_cache(maxsize=1024)
def _product(design: AttAcc, outputs: int, inputs: int, batch: int) -> Kernel:
    check_shape("AttAcc matrix", outputs=outputs, inputs=inputs, batch=batch)
    share = ceil(outputs / design.channels)
    layout = design.head(share, inputs)
    what = f"AttAcc matrix {outputs} x {inputs} on {design.channels} channels"
    check_fit(what, layout.rows_needed, design.free_rows, ATTACC.row_bytes, WAYS * PARTS)

    def vector(index: int) -> tuple[Run, ...]:
        head = _Head(design, index, layout, layout, batch)
        load, *rest = [*head.load(), *_groups(head, None, "")]
        return (_fenced(load), *rest)

    burst = ATTACC.burst_bytes
    banks = SETS[design.place][0] * SETS[design.place][1]
    used = ceil(outputs / share)
    return Kernel(
        name=f"[{batch}, {inputs}] x [{outputs}, {inputs}]",
        channel=design.channel,
        channels=used,
        stream=Stream((Part(batch, vector),)),
        macs=batch * outputs * inputs,
        internal_bytes=batch * layout.accesses * banks * burst * used,
        host_read=batch * ceil(layout.token_steps / OUTPUTS) * MOVES * burst * used,
        host_written=batch * PARTS * layout.width_steps * burst * used,
        array=(COMMAND[design.place],),
        padding=layout.padding * share * used / outputs,
        refresh=design.refresh,
    )
