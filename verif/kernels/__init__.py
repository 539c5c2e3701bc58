"""Reference kernels in torch, independent of the numpy goldens: other formulations of the same definitions, on any device.

Nothing here imports hw: a machine with a GPU needs torch and numpy alone. Each kernel takes its unit's parameters and integer
tensors (codes or values) and returns an int64 tensor.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from verif.kernels.combinations import Identities

Parameters = dict[str, Any]
Operands = tuple[np.ndarray[Any, np.dtype[np.int64]], ...]


@dataclass(frozen=True, slots=True)
class Kernel:
    """`compute(parameters, *tensors)`; `draw(parameters, rng, m, n, k)` makes operands; `bulk` is the (m, n, k) of the large set.

    `parameters` are those of the recorded configurations; `rounds` says how often each one's large set is drawn and computed,
    so that it need not fit in memory at once. `identities(parameters, *operands)` tells the operand combinations of the
    arithmetic core apart, `space(parameters)` is the number of all that there are where the large set is meant to hold every
    one, and None where they are too many.
    """

    compute: Callable[..., Any]
    draw: Callable[[Parameters, np.random.Generator, int, int, int], Operands]
    parameters: tuple[Parameters, ...]
    bulk: tuple[int, int, int]
    identities: Callable[..., Identities]
    space: Callable[[Parameters], int | None] = lambda parameters: None
    rounds: tuple[int, ...] = ()

    def large(self, number: int, rng: np.random.Generator) -> Iterator[Operands]:
        """The operands of configuration `number`'s large set, round by round."""
        for _ in range(self.rounds[number] if self.rounds else 1):
            yield self.draw(self.parameters[number], rng, *self.bulk)


def kernels() -> dict[str, Kernel]:
    """Every kernel by the kind of its unit."""
    from verif.kernels import coding, floats, integers

    return {**integers.KERNELS, **floats.KERNELS, **coding.KERNELS}
