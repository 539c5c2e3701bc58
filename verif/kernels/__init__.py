"""Reference kernels in torch, independent of the numpy goldens: other formulations of the same definitions, on any device.

Nothing here imports hw: a machine with a GPU needs torch and numpy alone. Each kernel takes its unit's parameters and integer
tensors (codes or values) and returns an int64 tensor.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

Parameters = dict[str, Any]
Operands = tuple[np.ndarray[Any, np.dtype[np.int64]], ...]


@dataclass(frozen=True, slots=True)
class Kernel:
    """`compute(parameters, *tensors)`; `draw(parameters, rng, m, n, k)` makes operands; `bulk` is the (m, n, k) of the large set.

    `parameters` are those of the recorded configurations.
    """

    compute: Callable[..., Any]
    draw: Callable[[Parameters, np.random.Generator, int, int, int], Operands]
    parameters: tuple[Parameters, ...]
    bulk: tuple[int, int, int]


def kernels() -> dict[str, Kernel]:
    """Every kernel by the kind of its unit."""
    from verif.kernels import coding, floats, integers

    return {**integers.KERNELS, **floats.KERNELS, **coding.KERNELS}
