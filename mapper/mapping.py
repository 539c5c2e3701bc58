"""Mappings: for every kernel the unit, the tiling and the loop order that were chosen. Readable, editable, byte-stable."""

from __future__ import annotations

import json
from collections.abc import Mapping as MappingType
from dataclasses import dataclass, field
from fractions import Fraction
from types import MappingProxyType
from typing import Any

from mapper.errors import MappingError

SCHEMA = 1

Value = int | str


@dataclass(frozen=True)
class OperatorMapping:
    """How one kernel runs: the `unit`, the `family` of loop nest, and its `parameters` (tile sizes, loop order, ...).

    `placement` is what the unit alone does not say: the `format` and the `vector` unit where there is a choice, `split` and
    `copies` of units in lockstep, the `share` of the memory's time, `together` with which kernel it runs at the same time.
    `parts` are the pieces of a kernel that several units share, each with its `size`.
    """

    operator: str
    unit: str
    family: str
    parameters: MappingType[str, Value]
    placement: MappingType[str, Value] = field(default_factory=dict)
    parts: tuple[OperatorMapping, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "parameters", MappingProxyType(dict(self.parameters)))
        object.__setattr__(self, "placement", MappingProxyType(dict(self.placement)))

    def integer(self, name: str, most: int | None = None) -> int:
        """A positive integer parameter, of `most` at most. Raises `MappingError` when it is missing or is none."""
        value = self.parameters.get(name)
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise MappingError(f"mapping of {self.operator!r}: {name}: expected an integer of at least 1, found {value!r}")
        if most is not None and value > most:
            raise MappingError(f"mapping of {self.operator!r}: {name}: the operator has {most} of it, found a tile of {value}")
        return value

    def choice(self, name: str, options: tuple[str, ...]) -> str:
        """A parameter that is one of `options`."""
        value = self.parameters.get(name)
        if not isinstance(value, str) or value not in options:
            raise MappingError(f"mapping of {self.operator!r}: {name}: expected one of {', '.join(options)}, found {value!r}")
        return value

    def __str__(self) -> str:
        if self.parts:
            pieces = "; ".join(f"{part.unit} {part.placement.get('size')}: {part}" for part in self.parts)
            return f"{self.family} {self.parameters.get('split')} ({pieces})"
        shown = {**self.parameters, **{k: v for k, v in self.placement.items() if k != "size"}}
        return " ".join([self.family, *(f"{key}={value}" for key, value in shown.items())])

    def to_json(self) -> dict[str, Any]:
        document: dict[str, Any] = {"operator": self.operator, "unit": self.unit, "family": self.family}
        document["parameters"] = dict(self.parameters)
        if self.placement:
            document["placement"] = dict(self.placement)
        if self.parts:
            document["parts"] = [part.to_json() for part in self.parts]
        return document

    @classmethod
    def from_json(cls, o: Any) -> OperatorMapping:
        parts = tuple(cls.from_json(part) for part in o.get("parts", ()))
        return cls(o["operator"], o["unit"], o["family"], o["parameters"], o.get("placement", {}), parts)


@dataclass(frozen=True)
class Allocation:
    """`size_bytes` of a tensor, `copies` times in a row, `offset_bytes` from the start of a memory; from the start of kernel `first` to
    the end of kernel `last`, or all the time where these are empty. Of a tensor in a cache a `share` is found."""

    memory: str
    tensor: str
    size_bytes: int
    offset_bytes: int | None = None
    first: str = ""
    last: str = ""
    copies: int = 1
    share: Fraction = Fraction(1)

    def to_json(self) -> dict[str, Any]:
        """Without what is as usual: one copy, all of it, all the time; a cache has no offsets."""
        document: dict[str, Any] = {"memory": self.memory, "tensor": self.tensor, "bytes": self.size_bytes}
        if self.offset_bytes is not None:
            document["offset"] = self.offset_bytes
        if self.copies != 1:
            document["copies"] = self.copies
        if self.share != 1:
            document["share"] = str(self.share)
        if self.first:
            document |= {"first": self.first, "last": self.last}
        return document

    @classmethod
    def from_json(cls, o: Any) -> Allocation:
        named = {"size_bytes": o["bytes"], "offset_bytes": o.get("offset"), "copies": o.get("copies", 1)}
        return cls(o["memory"], o["tensor"], **named, first=o.get("first", ""), last=o.get("last", ""), share=Fraction(o.get("share", 1)))


@dataclass(frozen=True)
class Mapping:
    """The mapping of a whole workload onto a device. `allocation` says where its tensors lie; it follows from the rest,
    so that a replay works it out again."""

    device: str
    workload: str
    operators: tuple[OperatorMapping, ...]
    allocation: tuple[Allocation, ...] = field(default=(), compare=False, repr=False)

    def to_json(self) -> dict[str, Any]:
        document = {
            "schema": SCHEMA,
            "type": "mapping",
            "device": self.device,
            "workload": self.workload,
            "operators": [o.to_json() for o in self.operators],
        }
        return {**document, "allocation": [one.to_json() for one in self.allocation]} if self.allocation else document

    def dumps(self) -> str:
        """The saved form: the same mapping is always the same bytes."""
        return json.dumps(self.to_json(), indent=2) + "\n"

    @classmethod
    def loads(cls, text: str, where: str = "mapping") -> Mapping:
        """The mapping in a saved file. Raises `MappingError` naming `where`."""
        try:
            document = json.loads(text)
        except json.JSONDecodeError as error:
            raise MappingError(f"{where}: not valid JSON: {error}") from None
        if not isinstance(document, dict) or document.get("type") != "mapping":
            raise MappingError(f'{where}: expected a saved mapping (a JSON object with "type": "mapping")')
        if document.get("schema") != SCHEMA:
            raise MappingError(f"{where}: schema {document.get('schema')!r} cannot be read, expected {SCHEMA}")
        try:
            return cls(
                document["device"],
                document["workload"],
                tuple(OperatorMapping.from_json(o) for o in document["operators"]),
                tuple(Allocation.from_json(o) for o in document.get("allocation", ())),
            )
        except (AttributeError, KeyError, TypeError, ValueError, ArithmeticError) as error:
            raise MappingError(f"{where}: not a complete saved mapping ({error!r})") from None

    def find(self, operator: str) -> OperatorMapping:
        """The mapping of one operator. Raises `MappingError` naming it."""
        for mapping in self.operators:
            if mapping.operator == operator:
                return mapping
        raise MappingError(f"the mapping of {self.workload} on {self.device} has no operator {operator!r}: it is for another workload")

    def __repr__(self) -> str:
        return f"Mapping({self.workload} on {self.device}, {len(self.operators)} operators)"
