"""A vector processing unit of FlightLLM in RTL, driven by the products of an instruction stream.

The interpreter runs the stream's words; every MV instruction of the chosen layers is recorded with what its buffers hold. One
unit of the array owns `mv_start` / `mv_columns` consecutive outputs of each product. Its work becomes cases of the `csd_chain`
unit, whose RTL runs them in the Amaranth simulator (cycles) and under cocotb (`verif.gate`, all stall patterns).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from hw.device import Device
from hw.units.csd_chain import CsdChain
from hw.work import Case, Gemm
from mapper.flightllm.compile import Stream, core_of
from sim.flightllm import multiplied
from sim.flightllm_interpreter import Interpreter, Memory
from verif.conformance import batches, component_of
from verif.errors import VerificationError
from verif.simulate import simulate

Integers = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Product:
    """One MV instruction: its index in the stream, its input [K], the matrix [K, N] it multiplies, and the cycles of the model.

    `sums` are the partial sums [N] that it adds in the interpreter.
    """

    instruction: int
    row: Integers
    matrix: Integers
    sparse: bool
    cycles: int

    @property
    def sums(self) -> Integers:
        return self.row @ self.matrix


class Recorder(Interpreter):
    """An interpreter that keeps every product."""

    def __init__(self, stream: Stream, device: Device, memory: Memory) -> None:
        super().__init__(stream, device, memory)
        self.products: list[Product] = []
        self._cycles = multiplied(self.table, self.core) // self.core.mv_macs
        self._index = 0

    def _execute(self, index: int, row: list[int]) -> None:
        self._index = index
        super()._execute(index, row)

    def _multiply(self, layer: int, f: dict[str, int]) -> None:
        core, tile = self.core, self.core.tile
        matrix = np.zeros((f["k"] * tile, core.mv_start), np.int64)
        for channel in range(core.channels):
            loaded = self.a.get((layer, channel, f["a_addr"]))
            for loop, block in enumerate(self._sparse(layer, channel, f) if f["sparse"] else self._dense(loaded, f)):
                column = (loop * core.channels + channel) * tile
                matrix[:, column : column + tile] = block
        row = self.b_values[f["b_addr"] * tile : (f["b_addr"] + f["k"]) * tile].copy()
        self.products.append(Product(self._index, row, matrix, bool(f["sparse"]), int(self._cycles[self._index])))
        super()._multiply(layer, f)


def record(stream: Stream, device: Device, memory: Memory, position: int) -> list[Product]:
    """Every product of one token."""
    recorder = Recorder(stream, device, memory)
    recorder.run(position)
    return recorder.products


class StreamChain(CsdChain):
    """A chain whose cases are those of a stream; `over` makes one."""

    given: ClassVar[tuple[Case, ...]] = ()

    @classmethod
    def over(cls, cases: Sequence[Case], **fields: Any) -> StreamChain:
        """A chain with `fields` that runs `cases`."""
        made: type[StreamChain] = type("StreamChain", (cls,), {"given": tuple(cases), "__module__": __name__, "__annotations__": {}})
        return made(**fields)

    def cases(self, rng: Any) -> Iterator[Case]:
        yield from self.given


def unit_cases(products: Sequence[Product], device: Device, units: Sequence[int]) -> list[Case]:
    """The work of some units of the array for each product, product after product."""
    core = core_of(device)
    per = core.mv_start // core.mv_columns
    found = []
    for product in products:
        for unit in units:
            part = product.matrix[:, unit * per : (unit + 1) * per]
            found.append(Case(Gemm(1, per, len(product.row), "int8"), (product.row[None], part)))
    return found


def run_rtl(chain: CsdChain, cases: Sequence[Case]) -> tuple[list[Integers], list[int]]:
    """Sums and cycles of each case on the chain's RTL, one case after the other. Raises `VerificationError` for a protocol breach."""
    done = simulate(component_of(chain), batches(chain, list(cases)), apart=True)
    if done.breaches:
        raise VerificationError(done.breaches[0])
    sums = [chain.decode(list(words), case.work)[0] for words, case in zip(done.results, cases, strict=True)]
    return sums, list(done.cycles)


def latency(chain: CsdChain) -> int:
    """Cycles from the last window that enters a chain to its sums: what the model of an instruction leaves out."""
    return chain.groups + 3
