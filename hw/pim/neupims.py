"""NeuPIMs (Heo et al., ASPLOS 2024): a unit per bank behind a row buffer of its own, so that the NPU keeps reading and writing.

Commands of the NeuPIMs simulator (github.com/casys-kaist/NeuPIMs): P_HEADER announces a sequence, GWRITE copies a DRAM row to the
channel's global buffer, G_ACT activates four banks, COMPS_READRES is a composite of COMPs (all-bank multiply-accumulate at the
column rate) and the read of their results. Keys and values of a channel's requests lie in its banks.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property, lru_cache
from math import ceil

from hw.part import Part as Sheet
from hw.pim.channel import HBM2_STAGES, NEUPIMS, BankSet, PimChannel
from hw.pim.kernel import Kernel
from hw.pim.layout import RowLayout, check_fit, check_shape
from hw.pim.stream import Kind, Part, Run, Stream
from hw.quantity import Count

GROUP = 4
"""Banks of one G_ACT."""
ARRAY = ("COMP",)


class NeuPims(Sheet):
    """`channels` channels of `banks` units with `lanes` multipliers. `dual` is the second row buffer; `composite` lets the
    controller unroll COMPs by itself, otherwise each takes a slot of the command bus of its own."""

    channels: Count = 32
    banks: Count = 32
    lanes: Count = 16
    dual: bool = True
    composite: bool = True
    mac_pj: float = 0.32  # AttAcc simulator's energy table
    refresh: bool = True

    @cached_property
    def channel(self) -> PimChannel:
        spacing = ceil(NEUPIMS.n_faw / NEUPIMS.ranks)
        every = BankSet(name="all", first=0, banks=self.banks, activates=ceil(self.banks / GROUP), spacing=spacing)
        column = {place: 8 * 2 * self.lanes * pj for place, pj in HBM2_STAGES.items()}  # pJ of a column of one bank
        energy = {
            "activate": {"activate": 909.0},
            "COMP": {"cells": column["cells"] * self.banks, "compute": self.mac_pj * self.lanes * self.banks},
            "GWRITE": {place: column[place] for place in ("cells", "column mux", "bank-group mux")},
            "READRES": {place: column[place] for place in ("column mux", "bank-group mux", "tsv", "interposer")},
            "P_HEADER": {},
        }
        return PimChannel(
            preset=NEUPIMS, sets=(every,), row_buffers=2 if self.dual else 1, scope="none" if self.dual else "all",
            energy_pj=energy, source=NEUPIMS.source,
        )  # fmt: skip

    @property
    def formats(self) -> frozenset[str]:
        return frozenset({"fp16"})

    @property
    def column_bytes(self) -> int:
        """Bytes that a unit takes per COMP."""
        return 2 * self.lanes

    @property
    def internal_peak(self) -> int:
        """Bytes per second of all units at the column rate."""
        return self.banks * self.column_bytes * 10**15 // (NEUPIMS.n_ccd_l * NEUPIMS.clock_fs) * self.channels

    @property
    def capacity(self) -> int:
        return NEUPIMS.capacity * self.channels

    def layout(self, outputs: int, inputs: int, channels: int = 1) -> RowLayout:
        return RowLayout(outputs, inputs, channels, self.banks, self.lanes, NEUPIMS.row_bytes // self.column_bytes)

    def _matrix(self, layout: RowLayout, row: int, tag: int) -> list[Run]:
        """One vector times a matrix of one channel."""
        preset, runs = NEUPIMS, [Run("P_HEADER", Kind.HOLD, 1, 1, fence=True, turn=True, tag=(tag,))]
        beats = ceil(preset.row_bytes / preset.burst_bytes)
        gap = preset.n_ccd_l if self.composite else preset.n_ccd_l + 1
        for number in range(layout.slices):
            runs.append(Run("GWRITE", Kind.MOVE, beats, preset.n_bl, fence=True, tag=(tag, number)))
            accesses = layout.slice_accesses(number)
            for group in range(layout.groups):
                at, column = layout.row(group, number)
                runs.append(Run("COMP", Kind.READ, accesses, gap, 0, row + at, column, fence=group == 0, tag=(tag, number, group)))
                runs.append(Run("READRES", Kind.MOVE, 1, preset.n_bl, fence=True, tag=(tag, number, group)))
        return runs

    def attention(self, jobs: int, tokens: int, width: int, value_width: int = 0, queries: int = 1) -> Kernel:
        """Score and context of one new token for `jobs` heads, spread evenly over the channels; softmax runs on the NPU.

        Raises `HardwareError` when keys and values of a channel's heads do not fit.
        """
        return _attention(self, jobs, tokens, width, value_width or width, queries)

    def product(self, outputs: int, inputs: int, batch: int = 1) -> Kernel:
        """`batch` vectors times a matrix [outputs, inputs] in the banks."""
        return _product(self, outputs, inputs, batch)


@lru_cache(maxsize=1024)
def _attention(design: NeuPims, jobs: int, tokens: int, width: int, value_width: int, queries: int) -> Kernel:
    check_shape("NeuPIMs attention", jobs=jobs, tokens=tokens, width=width, value_width=value_width, queries=queries)
    keys, values = design.layout(tokens, width), design.layout(value_width, tokens)
    rows, held = keys.rows_needed + values.rows_needed, ceil(jobs / design.channels)
    what = f"NeuPIMs: keys and values of {jobs} heads x {tokens} tokens on {design.channels} channels ({held} heads in one)"
    check_fit(what, held * rows, NEUPIMS.rows, NEUPIMS.row_bytes, design.banks)

    def head(index: int) -> tuple[Run, ...]:
        first = index // queries * rows
        return (*design._matrix(keys, first, 2 * index), *design._matrix(values, first + keys.rows_needed, 2 * index + 1))

    accesses = _accesses(keys) + _accesses(values)
    sums = keys.groups * keys.slices + values.groups * values.slices
    used = min(jobs, design.channels)
    return Kernel(
        name=f"{jobs} heads x {queries} queries over {tokens} tokens of {width}",
        channel=design.channel,
        channels=used,
        stream=Stream((Part(held * queries, head),)),
        macs=jobs * queries * tokens * (width + value_width),
        internal_bytes=held * queries * accesses * design.banks * design.column_bytes * used,
        host_read=held * queries * sums * NEUPIMS.burst_bytes * used,
        host_written=0,
        array=ARRAY,
        padding=(keys.padding + values.padding) / 2,
        refresh=design.refresh,
        notes=("softmax runs on the NPU, and the NPU writes its probabilities to DRAM rows that GWRITE copies",),
    )


@lru_cache(maxsize=1024)
def _product(design: NeuPims, outputs: int, inputs: int, batch: int) -> Kernel:
    check_shape("NeuPIMs matrix", outputs=outputs, inputs=inputs, batch=batch)
    layout = design.layout(outputs, inputs, design.channels)
    what = f"NeuPIMs matrix {outputs} x {inputs} on {design.channels} channels"
    check_fit(what, layout.rows_needed, NEUPIMS.rows, NEUPIMS.row_bytes, design.banks)
    return Kernel(
        name=f"[{batch}, {inputs}] x [{outputs}, {inputs}]",
        channel=design.channel,
        channels=design.channels,
        stream=Stream((Part(batch, lambda i: tuple(design._matrix(layout, 0, i))),)),
        macs=batch * outputs * inputs,
        internal_bytes=batch * _accesses(layout) * design.banks * design.column_bytes * design.channels,
        host_read=batch * layout.groups * layout.slices * NEUPIMS.burst_bytes * design.channels,
        host_written=0,
        array=ARRAY,
        padding=layout.padding,
        refresh=design.refresh,
    )


def _accesses(layout: RowLayout) -> int:
    """Column accesses of every bank for one pass over a matrix."""
    return layout.groups * sum(layout.slice_accesses(number) for number in range(layout.slices))


def pack(loads: Sequence[int], channels: int) -> list[list[int]]:
    """Requests to channels, the longest first to the channel with the least so far (greedy bin packing).

    `loads` are sequence lengths; the result lists the requests of each channel. Raises nothing for fewer requests than channels.

    >>> pack([5, 4, 3, 3], 2)
    [[0, 3], [1, 2]]
    """
    bins: list[list[int]] = [[] for _ in range(channels)]
    sums = [0] * channels
    for request in sorted(range(len(loads)), key=lambda i: (-loads[i], i)):
        least = min(range(channels), key=lambda c: (sums[c], c))
        bins[least].append(request)
        sums[least] += loads[request]
    return bins


def sub_batches(loads: Sequence[int]) -> tuple[list[int], list[int]]:
    """Two halves of a batch with balanced sums of sequence lengths: they take turns on the NPU and the PIM.

    >>> sub_batches([8, 7, 2, 1])
    ([0, 3], [1, 2])
    """
    first, second = pack(loads, 2)
    return first, second


def interleaved(npu: int, pim: int, layers: int) -> int:
    """Time of `layers` layers for two sub-batches, each of which needs `npu` then `pim` time per layer: while one computes on the
    NPU the other's attention runs in memory.

    A sub-batch alternates between the two, so that a pair of phases takes the longer one: fill with one NPU phase, then
    2 x `layers` - 1 overlapped phases, then drain with one attention phase.

    >>> interleaved(3, 2, 1)
    8
    """
    return npu + (2 * layers - 1) * max(npu, pim) + pim
