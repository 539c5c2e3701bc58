"""Vector work of operators: arithmetic and transcendental functions per element, by kind."""

from __future__ import annotations

from hw.work import Vector
from mapper.kernels import Kernel
from workloads.graph import Operator


def of_operator(op: Operator) -> tuple[Vector, ...]:
    """What a vector unit executes for an operator; nothing for pure data movement and for products.

    norm: square and sum, scale, weight and shift (4 per element); division by the width and rsqrt per row.
    softmax: running maximum, subtraction, sum, scale (4 per element) and one exponential.
    topk: one comparison per element and level of a k-entry heap.
    scan: decay, outer-product update and contraction, a multiply and an add each, per element of the state and token.
    """
    match op.kind:
        case "norm":
            return Vector(op["rows"] * op["width"], 4), Vector(op["rows"], 1, 1)
        case "softmax":
            return (Vector(op["rows"] * op["width"], 4, 1),)
        case "topk":
            return (Vector(op["rows"] * op["width"], 1 + max(1, op["k"]).bit_length()),)
        case "elementwise":
            return (Vector(op["elements"], op["operations"], op["specials"]),) if op["operations"] + op["specials"] else ()
        case "reduce":
            return (Vector(op["elements"], op["operations"]),) if op["operations"] else ()
        case "conv1d":
            return (Vector(op["batch"] * op["length"] * op["channels"], 2 * op["taps"]),)
        case "scan":
            return (Vector(op["batch"] * op["length"] * op["heads"] * op["head_dim"] * op["state"], 6),)
    return ()


def of_kernel(kernel: Kernel) -> tuple[Vector, ...]:
    """Vector work of the main operator and of everything fused behind it."""
    return tuple(work for op in (kernel.operator, *kernel.fused) for work in of_operator(op))


def share(work: Vector, part: int, total: int) -> Vector:
    """The piece of some work that falls to `part` of `total` equal portions, whole elements up."""
    return Vector(-(-work.elements * part // total), work.operations, work.specials)
