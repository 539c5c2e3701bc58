"""Design spaces: named parameters with their values, some of which exist only under a condition on others."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction

from dovetail.explore import expression
from dovetail.explore.errors import ExploreError
from hw.errors import HardwareError, nearest
from hw.quantity import BANDWIDTH, CAPACITY, FREQUENCY, TIME, parse, spell

Value = int | float | str | bool
Parameters = dict[str, Value]

LARGEST_GRID = 1_000_000
"""Points of a grid beyond which a sweep is refused: a search finds its front with far fewer."""

_UNITS = (CAPACITY, BANDWIDTH, FREQUENCY, TIME)


@dataclass(frozen=True)
class Parameter:
    """`values` that a parameter takes, in order. `when` is a condition on parameters before it; where it does not hold the
    parameter does not exist. Raises `ExploreError` for an empty or repeated list."""

    name: str
    values: tuple[Value, ...]
    when: str | None = None

    def __post_init__(self) -> None:
        if not self.values:
            raise ExploreError(f"parameter {self.name!r}: the range is empty; give it at least one value")
        for value in self.values:
            if type(value) not in (int, float, str, bool) or (isinstance(value, float) and not math.isfinite(value)):
                raise ExploreError(f"parameter {self.name!r}: expected finite numbers, text or booleans, found {value!r}")
        kinds = [(type(v) is bool, v) for v in self.values]
        if twice := [v for i, (_, v) in enumerate(kinds) if kinds[i] in kinds[:i]]:
            raise ExploreError(f"parameter {self.name!r}: {twice[0]!r} is listed twice")

    @property
    def numeric(self) -> bool:
        """Whether the values are numbers or quantities, so that neighbours are a step apart."""
        return magnitudes(self.values) is not None


def magnitudes(values: Sequence[Value]) -> list[float] | None:
    """The size of each value as a number, quantities in base units; None where one of them is neither."""
    out: list[float] = []
    for value in values:
        number = _magnitude(value)
        if number is None:
            return None
        out.append(number)
    return out


def _magnitude(value: Value) -> float | None:
    if isinstance(value, bool):
        return None
    if isinstance(value, (int, float)):
        return float(value)
    for units in _UNITS:
        if value.split()[-1:] and value.split()[-1] in units:
            try:
                return float(parse(value, units, whole=False, minimum=0))
            except HardwareError:
                return None
    return None


def span(
    low: object, high: object, *, factor: object = None, step: object = None, count: object = None, where: str = "range"
) -> tuple[Value, ...]:
    """Values from `low` up to `high`, `factor` times or `step` apart, or `count` of them evenly in logarithm.

    Ends are numbers or quantities such as "256 KiB". Raises `ExploreError` for an empty range.

    >>> span(32, 256, factor=2), span("1 MiB", "3 MiB", step="1 MiB"), span(1, 16, count=3)
    ((32, 64, 128, 256), ('1 MiB', '2 MiB', '3 MiB'), (1, 4, 16))
    """
    start, stop, units = *_ends(low, high, where), _units(low)
    if [factor, step, count].count(None) != 2:
        raise ExploreError(f"{where}: expected exactly one of factor, step and count")
    if start > stop:
        raise ExploreError(f"{where}: the range is empty, from {low} is above to {high}")
    values: list[Fraction] = []
    if count is not None:
        if not isinstance(count, int) or isinstance(count, bool) or count < 1 or (count == 1 and start != stop) or start <= 0:
            raise ExploreError(f"{where}: count: expected a whole number of at least 2 and a range above 0, found {count!r} from {low}")
        exact = (float(stop) / float(start)) ** (1 / max(1, count - 1))
        values = [Fraction(round(float(start) * exact**i, 9)) for i in range(count)]
        if start.denominator == stop.denominator == 1:
            values = list(dict.fromkeys(Fraction(round(value)) for value in values))
        values[0], values[-1] = start, stop
    elif factor is not None:
        ratio = _number(factor, f"{where}: factor")
        if ratio <= 1 or start <= 0:
            raise ExploreError(f"{where}: factor: expected more than 1 and a range above 0, found {factor!r} from {low}")
        value = start
        while value <= stop:
            values.append(value)
            value *= ratio
    else:
        stride = parse(step, units) if units and isinstance(step, str) else _number(step, f"{where}: step")
        if stride <= 0:
            raise ExploreError(f"{where}: step: expected more than 0, found {step!r}")
        values = [start + i * stride for i in range(int((stop - start) / stride) + 1)]
    return tuple(spell(value, units) if units else _plain(value) for value in values)


def _ends(low: object, high: object, where: str) -> tuple[Fraction, Fraction]:
    units = _units(low)
    if units != _units(high):
        raise ExploreError(f"{where}: from {low!r} and to {high!r} are not of the same kind")
    try:
        if units:
            return parse(low, units), parse(high, units)
    except HardwareError as error:
        raise ExploreError(f"{where}: {error}") from None
    return _number(low, f"{where}: from"), _number(high, f"{where}: to")


def _units(value: object) -> Mapping[str, Fraction] | None:
    if not isinstance(value, str):
        return None
    return next((units for units in _UNITS if value.split()[-1:] and value.split()[-1] in units), None)


def _number(value: object, where: str) -> Fraction:
    if isinstance(value, bool) or not isinstance(value, (int, float, Fraction)) or (isinstance(value, float) and not math.isfinite(value)):
        raise ExploreError(f"{where}: expected a number or a quantity such as 256 KiB, found {value!r}")
    return Fraction(str(value)) if isinstance(value, float) else Fraction(value)


def _plain(value: Fraction) -> int | float:
    return int(value) if value.denominator == 1 else float(value)


@dataclass(frozen=True)
class Space:
    """Parameters in order; a later one may depend on those before it."""

    parameters: tuple[Parameter, ...]
    _by_name: dict[str, Parameter] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_by_name", {p.name: p for p in self.parameters})
        seen: list[str] = []
        for parameter in self.parameters:
            if parameter.name in seen:
                raise ExploreError(f"parameter {parameter.name!r} is given twice")
            if parameter.when is not None and (unknown := sorted(expression.names(parameter.when) - set(seen))):
                raise ExploreError(
                    f"parameter {parameter.name!r}: its condition {parameter.when!r} refers to {unknown[0]!r}, expected a parameter "
                    f"before it ({', '.join(seen) or 'none'}){nearest(unknown[0], seen)}"
                )
            seen.append(parameter.name)

    @classmethod
    def of(cls, values: Mapping[str, Sequence[Value]]) -> Space:
        """A space without conditions."""
        return cls(tuple(Parameter(name, tuple(options)) for name, options in values.items()))

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self._by_name)

    def __getitem__(self, name: str) -> Parameter:
        return self._by_name[name]

    @property
    def upper_size(self) -> int:
        """Points of the grid if every condition held."""
        return math.prod(len(p.values) for p in self.parameters)

    def active(self, chosen: Mapping[str, Value]) -> Parameters:
        """The chosen values of those parameters that exist under their conditions, in the order of the space."""
        out: Parameters = {}
        for p in self.parameters:
            if p.when is None or _holds(p, out):
                out[p.name] = chosen[p.name]
        return out

    def grid(self) -> Iterator[Parameters]:
        """Every point once, the last parameter fastest. Raises `ExploreError` for a grid of more than a million points."""
        if self.upper_size > LARGEST_GRID and not any(p.when for p in self.parameters):
            raise ExploreError(
                f"the grid has {self.upper_size} points, more than {LARGEST_GRID}; search it instead: method tpe, nsga2 or gp, or random"
            )
        for number, point in enumerate(self._grid((), {})):
            if number >= LARGEST_GRID:
                raise ExploreError(f"the grid has more than {LARGEST_GRID} points; search it instead: method tpe, nsga2 or gp, or random")
            yield point

    def _grid(self, done: tuple[str, ...], point: Parameters) -> Iterator[Parameters]:
        if len(done) == len(self.parameters):
            yield dict(point)
            return
        parameter = self.parameters[len(done)]
        after = (*done, parameter.name)
        if parameter.when is not None and not _holds(parameter, point):
            yield from self._grid(after, point)
            return
        for value in parameter.values:
            yield from self._grid(after, {**point, parameter.name: value})

    def sample(self, count: int, seed: int = 0) -> list[Parameters]:
        """`count` different points (all of a smaller space), the same for the same seed."""
        rng = random.Random(seed)
        if not any(p.when for p in self.parameters) and self.upper_size <= max(4 * count, 4096):
            everything = list(self.grid())
            return rng.sample(everything, min(count, len(everything)))
        found: dict[tuple[tuple[str, Value], ...], Parameters] = {}
        for _ in range(50 * count):
            point = self.active({p.name: rng.choice(p.values) for p in self.parameters})
            found.setdefault(tuple(point.items()), point)
            if len(found) == count:
                break
        return list(found.values())

    def neighbours(self, point: Mapping[str, Value]) -> list[tuple[str, Parameters]]:
        """Points one step away along one parameter, with its name: the next values of a number, every other one of a choice."""
        out: list[tuple[str, Parameters]] = []
        for p in self.parameters:
            if p.name not in point:
                continue
            at = p.values.index(point[p.name])
            options = (at - 1, at + 1) if p.numeric else tuple(i for i in range(len(p.values)) if i != at)
            for i in options:
                if 0 <= i < len(p.values):
                    full = {q.name: q.values[0] for q in self.parameters} | dict(point) | {p.name: p.values[i]}
                    out.append((p.name, self.active(full)))
        return out

    def check(self, point: Mapping[str, object]) -> None:
        """Raises `ExploreError` when `point` has a parameter or a value that the space does not have."""
        for name, value in point.items():
            if name not in self._by_name:
                raise ExploreError(f"unknown parameter {name!r}, expected one of {', '.join(self.names)}{nearest(name, self.names)}")
            if value not in self._by_name[name].values:
                shown = ", ".join(str(v) for v in self._by_name[name].values)
                raise ExploreError(f"parameter {name!r}: {value!r} is none of its values ({shown})")


def _holds(parameter: Parameter, point: Parameters) -> bool:
    assert parameter.when is not None
    if not expression.names(parameter.when) <= set(point):
        return False  # a condition on a parameter that does not exist does not hold
    return bool(expression.evaluate(parameter.when, point))
