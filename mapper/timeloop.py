"""Loop nests of single products in Timeloop's mapping YAML: written for other tools, and read from them to be costed here.

A directive says what happens at a level of the memory hierarchy (`target`): `temporal` loops with `factors` for the dimensions M, N
and K and a `permutation`, innermost first; `spatial` loops over the unit; `bypass` with the data spaces that a level keeps. Factors
follow Timeloop's notation, with the count in the last round where a dimension is not divided evenly: `M=4,2`.

Levels stand outermost first: main memory, the scratchpads, the unit. A loop stands at the innermost scratchpad whose operand it
reuses: left of a loop over N inside the scratchpad of the left operand that operand is held over it. The unit's temporal loops are
the folds inside a tile.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping as MappingType
from dataclasses import dataclass
from math import ceil
from typing import TYPE_CHECKING, Any

import yaml

from mapper.errors import MappingError
from mapper.mapping import Mapping, OperatorMapping, Value
from mapper.nest import ORDERS, Nest
from workloads.errors import nearest

if TYPE_CHECKING:
    from mapper.compile import Compiled
    from mapper.kernels import Kernel
    from mapper.target import Target

DIMENSIONS = ("M", "N", "K")
SPACES = {"activations": "Inputs", "weights": "Weights", "outputs": "Outputs"}
_FACTOR = re.compile(r"([A-Za-z]+)\s*=?\s*(\d+)(?:,(\d+))?$")


@dataclass(frozen=True)
class TimeloopMapping:
    """A mapping file as it was read: its directives and the sizes of the problem, where it states them."""

    directives: tuple[MappingType[str, Any], ...]
    sizes: MappingType[str, int]
    where: str

    @classmethod
    def loads(cls, text: str, where: str = "mapping") -> TimeloopMapping:
        """The mapping in a YAML document. Raises `MappingError` naming the place."""
        try:
            document = yaml.safe_load(text)
        except yaml.YAMLError as error:
            raise MappingError(f"{where}: not valid YAML: {' '.join(str(error).split())}") from None
        if not isinstance(document, dict) or not isinstance(document.get("mapping"), list):
            raise MappingError(f"{where}: expected a Timeloop mapping: a YAML document with a list `mapping`")
        for number, directive in enumerate(document["mapping"]):
            if not isinstance(directive, dict) or "target" not in directive or "type" not in directive:
                raise MappingError(f"{where}: mapping.{number}: expected a directive with target and type, found {directive!r}")
        sizes: dict[str, int] = {}
        problem = document.get("problem")
        if isinstance(problem, dict):
            instance = problem.get("instance", problem)
            if isinstance(instance, dict):
                sizes = {d: instance[d] for d in DIMENSIONS if isinstance(instance.get(d), int)}
        return cls(tuple(document["mapping"]), sizes, where)


def looks_like(text: str) -> bool:
    """Whether a file is meant as Timeloop's YAML rather than as a saved mapping."""
    return not text.lstrip().startswith(("{", "["))


# Writing --------------------------------------------------------------------------------------------------------------------
def export(compiled: Compiled) -> str:
    """The mapping of a workload of a single product as YAML; the same mapping is always the same bytes.

    Raises `MappingError` for other workloads, and for mappings that a loop nest cannot express.
    """
    from mapper.target import Target

    if len(compiled.kernels) != 1 or len(compiled.kernels[0].parts) != 1:
        raise MappingError(
            f"{compiled.graph.name}: Timeloop's mappings are of one operator on one unit, here are {len(compiled.kernels)}; "
            "use gemm:MxKxN, or save as JSON"
        )
    placed = compiled.kernels[0]
    nest = _nest(Target(compiled.device).at(placed.parts[0].site), placed.kernel)
    return export_nest(nest, placed.plan.mapping)


def export_nest(nest: Nest, mapping: OperatorMapping) -> str:
    """One product's loop nest as YAML. Raises `MappingError` for what a loop nest cannot express."""
    if mapping.family != "nest":
        raise MappingError(
            f"mapping of {mapping.operator!r}: family {mapping.family!r} spreads loads over several iterations, which Timeloop's loop "
            "nests cannot express; choose one that they can with --strategy output_stationary or weight_stationary"
        )
    product = nest.products[0]
    full = {"M": product.m, "N": product.n, "K": product.k}
    tile = dict(zip(DIMENSIONS, nest.shape(mapping, product).values(), strict=True))
    unit = dict(zip(DIMENSIONS, nest.target.unit(nest.unit).granularity(), strict=True))
    spatial = {d: min(unit[d], tile[d]) for d in DIMENSIONS}
    for d in DIMENSIONS:
        if tile[d] % spatial[d] and tile[d] < full[d]:
            raise MappingError(
                f"mapping of {mapping.operator!r}: {d.lower()}={tile[d]} is no multiple of the unit's {spatial[d]}; only the last round "
                "of a loop may be incomplete in Timeloop's factors"
            )
    trips = {d: ceil(full[d] / tile[d]) for d in DIMENSIONS}
    last = {d: full[d] - (trips[d] - 1) * tile[d] for d in DIMENSIONS}
    folds = {d: (ceil(tile[d] / spatial[d]), ceil(last[d] / spatial[d])) for d in DIMENSIONS}
    edge = {d: last[d] - (folds[d][1] - 1) * spatial[d] for d in DIMENSIONS}
    order = str(mapping.parameters["order"]).upper()
    levels = _levels(nest, mapping, order)
    directives: list[dict[str, str | list[str]]] = []
    for target, dims in levels:
        factors = " ".join(f"{d}={trips[d] if d in dims else 1}" for d in DIMENSIONS)
        directives.append({"target": target, "type": "temporal", "factors": factors, "permutation": order[::-1]})
    names = sorted(set(nest.pads.values()), key=[target for target, _ in levels].index)
    for pad in names:
        keep = [space for operand, space in SPACES.items() if nest.pads[operand] == pad]
        directives.append({"target": pad, "type": "bypass", "keep": keep, "bypass": [s for s in SPACES.values() if s not in keep]})
    inner = "NMK" if nest.target.unit(nest.unit).stationary() == "outputs" else "MNK"
    counts = " ".join(f"{d}={_with_rest(*folds[d])}" for d in DIMENSIONS)
    directives.append({"target": nest.unit, "type": "temporal", "factors": counts, "permutation": inner[::-1]})
    sides = " ".join(f"{d}={_with_rest(spatial[d], edge[d])}" for d in DIMENSIONS)
    directives.append({"target": nest.unit, "type": "spatial", "factors": sides, "permutation": "MNK"})
    lines = [
        f"# {mapping.operator} on {nest.target.device.name}: levels outermost first, permutations innermost loop first",
        f"problem: {{instance: {{M: {full['M']}, N: {full['N']}, K: {full['K']}}}}}",
        "mapping:",
    ]
    for directive in directives:
        fields = [f"{key}: {'[' + ', '.join(v) + ']' if isinstance(v, list) else v}" for key, v in directive.items()]
        lines += [f"- {fields[0]}", *(f"  {text}" for text in fields[1:])]
    return "\n".join(lines) + "\n"


def _levels(nest: Nest, mapping: OperatorMapping, order: str) -> list[tuple[str, str]]:
    """Main memory and the scratchpads, outermost first, with the loops that stand at each."""
    hold = str(mapping.parameters["hold"])
    inside = {"activations": "", "weights": "", "outputs": ""}
    if "a" in hold:
        inside["activations"] = order[order.index("N") :]
    if "b" in hold:
        inside["weights"] = order[order.index("M") :]
    if mapping.parameters["sums"] == "local":
        inside["outputs"] = order[order.index("K") :]
    pads: dict[str, str] = {}
    for operand in sorted(inside, key=lambda name: -len(inside[name])):
        pads.setdefault(nest.pads[operand], inside[operand])
    if len(pads) < len(inside):
        raise MappingError(
            f"mapping of {mapping.operator!r}: operands share a scratchpad on {nest.target.device.name}; a loop nest with one level for "
            "both cannot say which of them is held"
        )
    nested = [(nest.target.main, order), *pads.items(), ("", "")]
    return [(level, loops[: len(loops) - len(inner)]) for (level, loops), (_, inner) in itertools.pairwise(nested)]


def _with_rest(count: int, last: int) -> str:
    return str(count) if count == last else f"{count},{last}"


# Reading --------------------------------------------------------------------------------------------------------------------
def resolve(document: TimeloopMapping, kernels: list[Kernel], target: Target, workload: str) -> Mapping:
    """A loop nest as the mapping of a workload of one product. Raises `MappingError` with the directive and the reason."""
    if len(kernels) != 1:
        raise MappingError(f"{document.where}: is the loop nest of one operator; {workload} has {len(kernels)} kernels. Use gemm:MxKxN")
    nest = _nest(target, kernels[0])
    operator = import_nest(document, nest)
    return Mapping(target.device.name, workload, (operator,))


def import_nest(document: TimeloopMapping, nest: Nest) -> OperatorMapping:
    """The mapping that a loop nest describes. Raises `MappingError` with the directive and the reason where it has none."""
    where, product = document.where, nest.products[0]
    full = {"M": product.m, "N": product.n, "K": product.k}
    for d, size in document.sizes.items():
        if size != full[d]:
            raise MappingError(
                f"{where}: problem: {d}={size}, but operator {nest.kernel.name!r} has {d}={full[d]}: it is for another shape"
            )
    pads = {pad: operand for operand, pad in nest.pads.items()}
    known = [nest.target.main, *pads, nest.unit]
    loops: list[tuple[str, str, int]] = []  # (dimension, level, count), outermost first
    reached: list[str] = []
    folds: dict[str, tuple[int, int]] = dict.fromkeys(DIMENSIONS, (1, 1))
    spatial: dict[str, tuple[int, int]] = dict.fromkeys(DIMENSIONS, (1, 1))
    for number, directive in enumerate(document.directives):
        place, level, kind = f"{where}: mapping.{number}", str(directive["target"]), str(directive["type"])
        if level not in known:
            hint = nearest(level, known)
            raise MappingError(f"{place}: {nest.target.device.name} has no level {level!r}, expected one of {', '.join(known)}{hint}")
        if kind in ("bypass", "datatype", "dataspace"):
            _check_kept(directive, place, level, pads)
            continue
        if kind not in ("temporal", "spatial"):
            raise MappingError(
                f"{place}: type {kind!r}: expected temporal, spatial or bypass{nearest(kind, ('temporal', 'spatial', 'bypass'))}"
            )
        factors = _factors(directive.get("factors", ""), place)
        if kind == "spatial":
            if level != nest.unit and any(f != (1, 1) for f in factors.values()) and any(s != (1, 1) for s in spatial.values()):
                raise MappingError(f"{place}: more than one spatial directive")
            spatial = factors
        elif level == nest.unit:
            folds = factors
        else:
            reached.append(level)
            for d in reversed(_permutation(directive.get("permutation", "KNM"), place)):
                count, rest = factors[d]
                if rest != count:
                    raise MappingError(f"{place}: {d}={count},{rest}: an incomplete round is possible inside a tile only, not at {level!r}")
                if count > 1:
                    if any(other == d for other, _, _ in loops):
                        raise MappingError(f"{place}: a second loop over {d}: tiles of tiles are not part of this mapper's space")
                    loops.append((d, level, count))
    return _mapping_of(nest, where, full, loops, reached, folds, spatial)


def _mapping_of(
    nest: Nest,
    where: str,
    full: dict[str, int],
    loops: list[tuple[str, str, int]],
    reached: list[str],
    folds: dict[str, tuple[int, int]],
    spatial: dict[str, tuple[int, int]],
) -> OperatorMapping:
    unit = dict(zip(DIMENSIONS, nest.target.unit(nest.unit).granularity(), strict=True))
    trips = {d: next((count for other, _, count in loops if other == d), 1) for d in DIMENSIONS}
    tile: dict[str, int] = {}
    for d in DIMENSIONS:
        if spatial[d][0] > unit[d]:
            raise MappingError(f"{where}: spatial {d}={spatial[d][0]}: unit {nest.unit!r} has {unit[d]} in that direction")
        whole = folds[d][0] * spatial[d][0]
        covered = (trips[d] - 1) * whole + (folds[d][1] - 1) * spatial[d][0] + spatial[d][1]
        if covered != full[d]:
            raise MappingError(
                f"{where}: the factors of {d} cover {covered} elements, the operator has {full[d]}; where it does not divide write the "
                f"last round as {d}=count,rest"
            )
        tile[d] = min(whole, full[d])
        if spatial[d][0] != min(unit[d], tile[d]):
            raise MappingError(
                f"{where}: spatial {d}={spatial[d][0]}: this mapper uses the whole unit, expected {d}={min(unit[d], tile[d])}"
            )
    sequence = "".join(d for d, _, _ in loops).lower()
    orders = ORDERS[nest.target.unit(nest.unit).stationary()]
    order = next((o for o in orders if "".join(d for d in o if d in sequence) == sequence), None)
    if order is None:
        raise MappingError(
            f"{where}: loops {sequence.upper()}, outermost first: a unit with stationary {nest.target.unit(nest.unit).stationary()} "
            f"runs {', '.join(o.upper() for o in orders)}"
        )
    position = {level: index for index, level in enumerate(reached)}
    at = {d: position[level] for d, level, _ in loops}

    def inside(dimension: str, operand: str) -> bool:
        return dimension in at and nest.pads[operand] in position and at[dimension] >= position[nest.pads[operand]]

    real = [d for d in order.upper() if trips[d] > 1]

    def reused(dimension: str, others: str) -> bool:
        return dimension in real and any(d in others for d in real[real.index(dimension) + 1 :])

    hold = ("a" if inside("N", "activations") and reused("N", "MK") else "") + ("b" if inside("M", "weights") and reused("M", "NK") else "")
    spilled = reused("K", "MN") and not inside("K", "outputs")
    parameters: dict[str, Value] = {d.lower(): tile[d] for d in DIMENSIONS}
    parameters |= {"order": order, "hold": hold or "none", "sums": "spill" if spilled else "local"}
    return OperatorMapping(nest.kernel.name, nest.unit, "nest", parameters)


def _nest(target: Target, kernel: Kernel) -> Nest:
    if kernel.kind != "matmul":
        raise MappingError(f"operator {kernel.name!r} is no product: Timeloop's loop nests here are those of gemm:MxKxN")
    nest = Nest(target, kernel)
    if nest.target.unit(nest.unit).execution == "waves":
        raise MappingError(f"{target.device.name}: unit {nest.unit!r} runs thread blocks, not loop nests over scratchpads")
    if len(nest.products) != 1 or nest.products[0].count != 1:
        raise MappingError(f"operator {kernel.name!r} is several products: Timeloop's loop nests here are those of gemm:MxKxN")
    return nest


def _check_kept(directive: MappingType[str, Any], place: str, level: str, pads: dict[str, str]) -> None:
    bypassed = directive.get("bypass") or []
    if level in pads and SPACES[pads[level]] in bypassed:
        raise MappingError(f"{place}: {SPACES[pads[level]]} bypass {level!r}: every operand goes through its scratchpad here")


def _factors(given: Any, place: str) -> dict[str, tuple[int, int]]:
    parts = given if isinstance(given, list) else str(given).split()
    out: dict[str, tuple[int, int]] = dict.fromkeys(DIMENSIONS, (1, 1))
    for part in parts:
        match = _FACTOR.match(str(part).strip())
        if not match or match[1].upper() not in DIMENSIONS:
            raise MappingError(f"{place}: factors: expected M=, N= and K= with a count, such as M=4 or M=4,2, found {part!r}")
        count, rest = int(match[2]), int(match[3] or match[2])
        if count < 1 or not 1 <= rest <= count:
            raise MappingError(f"{place}: factors: {part}: expected a count of at least 1, and a last round of 1 to that count")
        out[match[1].upper()] = (count, rest)
    return out


def _permutation(given: Any, place: str) -> str:
    """The dimensions innermost first, those that are left out outermost."""
    text = ("".join(given) if isinstance(given, list) else str(given)).upper().replace(",", "").replace(" ", "")
    if any(d not in DIMENSIONS for d in text) or len(set(text)) != len(text):
        raise MappingError(f"{place}: permutation {given!r}: expected each of M, N and K at most once, innermost first")
    return text + "".join(d for d in reversed(DIMENSIONS) if d not in text)
