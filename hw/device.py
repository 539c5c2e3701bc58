"""A device: units, memories, links and a clock. The YAML spelling and the Python object are the same thing."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from fractions import Fraction
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BeforeValidator, Field, SerializeAsAny, model_serializer, model_validator

import hw.units  # noqa: F401 - registers the unit kinds
from hw.errors import HardwareError, nearest
from hw.generations import with_generation
from hw.memory import Dram, Memory, Scratchpad, Share, memory_class
from hw.node import Node
from hw.part import Part
from hw.quantity import Bandwidth, Count, Duration, Energy, Frequency, Power, cycles_to_fs
from hw.unit import UNITS, Unit, unit_class
from hw.work import Work

SCHEMA = 1


def _build(value: object, classes: Any, instance: type[Part]) -> Part:
    if isinstance(value, instance):
        return value
    if not isinstance(value, Mapping):
        raise HardwareError(f"expected a mapping with a `kind`, found {value!r}")
    fields = dict(value)
    built: Part = classes(fields.pop("kind", None))(**fields)
    return built


AnyUnit = Annotated[SerializeAsAny[Unit], BeforeValidator(lambda v: _build(v, unit_class, Unit))]
AnyMemory = Annotated[SerializeAsAny[Memory], BeforeValidator(lambda v: _build(v, memory_class, Memory))]


class Link(Part):
    """A connection from `sink`'s side to `source`'s data. Without a bandwidth it is as fast as its ends.

    A link with a `bandwidth` between main memory and a unit, or a scratchpad of units, is a way of their own beside the memory's
    interface: that of units near or in the memory. `access` says what the memory does meanwhile: with `exclusive` it serves
    either this way or its interface at a time, with `concurrent` both (other banks serve the interface). `efficiency` is the share
    of the bandwidth that streams reach (rows and refresh; the memory's `timing` is that of its interface), `latency` comes on top
    of the memory's, `energy` is that of one bit over this way instead of the memory's. A concurrent way may have `sections` (bank
    bundles) of which either side uses its own at a time: what two units share is cut so that they never meet in one.
    """

    source: str
    sink: str
    bandwidth: Bandwidth | None = None
    latency: Duration = 0
    access: Literal["exclusive", "concurrent"] = "exclusive"
    efficiency: Share = Fraction(1)
    energy: Energy | None = None
    sections: Count = 1

    @model_validator(mode="before")
    @classmethod
    def _pair(cls, value: Any) -> Any:
        if isinstance(value, (tuple, list)):
            if len(value) != 2:
                raise HardwareError(f"expected a pair (source, sink), found {value!r}")
            return {"source": value[0], "sink": value[1]}
        return value

    @model_validator(mode="after")
    def _fast(self) -> Link:
        if self.bandwidth is None and (self.access != "exclusive" or self.efficiency != 1 or self.energy is not None):
            raise HardwareError("access, efficiency and energy belong to a link with a bandwidth; state its bandwidth")
        if self.sections != 1 and self.access != "concurrent":
            raise HardwareError("sections belong to a way with concurrent access; state access: concurrent")
        return self


class Constant(Part):
    """A named number that no data sheet states: what it means, and what it was derived from or fitted on."""

    value: str
    meaning: str


class Device(Part):
    """A device as its data sheet describes it.

    `generation` names the GPU generation whose constants hold where the description states none (`hw/generations`).
    `launch` is the time between the end of one kernel and the start of the next on the device's queue; `node` says that the
    description is that of one of several equal chips, which share every layer; `price` is in US
    dollars; `process_nm` the technology node that energies refer to. `constants` names every number that is not from a
    data sheet.
    """

    name: str = Field(min_length=1)
    title: str = ""
    clock: Frequency
    units: dict[str, AnyUnit]
    memories: dict[str, AnyMemory]
    links: tuple[Link, ...] = ()
    launch: Duration = 0
    node: Node | None = None
    power: Power | None = None
    price: Annotated[float, Field(gt=0)] | None = None
    process_nm: int | None = None
    generation: str = ""
    constants: dict[str, Constant] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _consistent(self) -> Device:
        for group, parts in (("units", self.units), ("memories", self.memories)):
            if not parts:
                raise HardwareError(f"{group}: expected at least one")
        if both := sorted(set(self.units) & set(self.memories)):
            raise HardwareError(f"units and memories share the name {both[0]!r}; rename one")
        names = [*self.units, *self.memories]
        for number, link in enumerate(self.links):
            for end in (link.source, link.sink):
                if end not in names:
                    raise HardwareError(f"links.{number}: {end!r} is neither a unit nor a memory{nearest(end, names)}")
        return self

    # What the mapper and the simulator ask ---------------------------------------------------------------------------------
    @property
    def main_memory(self) -> str:
        """The memory that holds weights and KV cache: the only DRAM, or the largest."""
        drams = {name: m for name, m in self.memories.items() if isinstance(m, Dram)}
        pool: Mapping[str, Memory] = drams or self.memories
        return max(pool, key=lambda name: pool[name].total)

    @property
    def dram(self) -> Memory:
        return self.memories[self.main_memory]

    def unit_clock(self, name: str) -> int:
        """The clock of a unit in hertz."""
        return self.units[name].clock or self.clock

    def work_fs(self, name: str, work: Work) -> int:
        """Femtoseconds that `work` takes on one copy of a unit."""
        return cycles_to_fs(self.units[name].cycles(work), self.unit_clock(name))

    def units_for(self, work: str) -> list[str]:
        """Units that execute a kind of work (`gemm`, `vector`), in the order of the description."""
        return [name for name, unit in self.units.items() if work in unit.executes]

    def peak_flops(self, name: str, number_format: str) -> int:
        """Peak FLOP/s of all copies of a unit: two per multiply-accumulate, one per vector operation."""
        unit = self.units[name]
        per_cycle = 2 * unit.macs_per_cycle(number_format) or unit.operations_per_cycle()
        return per_cycle * unit.count * self.unit_clock(name)

    def own_way(self, unit: str) -> Link | None:
        """The link over which a unit reaches main memory beside the interface: one with a bandwidth that ends at the unit or at a
        scratchpad of it. None for a unit behind the interface."""
        main = self.main_memory
        ends = {unit} | {
            name
            for name, memory in self.memories.items()
            if isinstance(memory, Scratchpad) and any({link.source, link.sink} == {name, unit} for link in self.links)
        }
        for link in self.links:
            if link.bandwidth is not None and main in (link.source, link.sink) and ends & {link.source, link.sink}:
                return link
        return None

    def scratchpad(self, operand: str, unit: str) -> str | None:
        """The scratchpad that serves an operand (`activations`, `weights`, `outputs`) of a unit: linked to it, or the only one."""
        pads = {n: m for n, m in self.memories.items() if isinstance(m, Scratchpad) and m.holds in (operand, "any")}
        linked = [n for n in pads if any({link.source, link.sink} == {n, unit} for link in self.links)]
        return next(iter(linked or pads), None)

    # The same thing as data ---------------------------------------------------------------------------------------------
    @model_serializer(mode="wrap")
    def _with_kinds(self, handler: Any) -> dict[str, Any]:
        data: dict[str, Any] = handler(self)
        for group, parts in (("units", self.units), ("memories", self.memories)):
            if group in data:
                data[group] = {n: {"kind": type(parts[n]).kind, **data[group][n]} for n in parts if n in data[group]}
        return data

    def to_dict(self) -> dict[str, Any]:
        """Plain data with quantities spelled with their units; defaults are left out."""
        data = self.model_dump(mode="json", exclude_defaults=True)
        for group, parts in (("units", self.units), ("memories", self.memories)):
            data[group] = {n: {"kind": type(p).kind, **data[group].get(n, {})} for n, p in parts.items()}
        return data

    def to_yaml(self) -> str:
        data = {"schema": SCHEMA, **self.to_dict()}
        text = yaml.safe_dump(data, sort_keys=False, allow_unicode=True, width=120)
        if yaml.safe_load(text) == data:
            return text
        return yaml.safe_dump(data, sort_keys=False, width=120)  # some characters are line breaks to YAML unless they are escaped

    @classmethod
    def from_dict(cls, data: object, where: str = "device") -> Device:
        """The device that plain data describes; `where` names its place in messages."""
        if not isinstance(data, Mapping):
            raise HardwareError(f"{where}: expected a mapping with name, clock, units and memories, found {type(data).__name__}")
        fields = {str(key): value for key, value in data.items()}
        schema = fields.pop("schema", SCHEMA)
        if schema != SCHEMA:
            raise HardwareError(f"{where}: schema {schema!r} cannot be read, expected {SCHEMA}")
        try:
            return cls(**with_generation(fields))
        except HardwareError as error:
            raise error.within(where) from None

    @classmethod
    def from_yaml(cls, path: str | Path) -> Device:
        """The device in a YAML file. Raises `HardwareError` naming the file and every mistake in it."""
        try:
            text = Path(path).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise HardwareError(f"{path}: cannot be read ({error})") from None
        try:
            data = yaml.load(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
        except yaml.YAMLError as error:
            raise HardwareError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from None
        return cls.from_dict(data, where=str(path))

    def with_settings(self, settings: Mapping[str, object]) -> Device:
        """A variant: `settings` maps paths of the description to new values, `{"units.array.rows": "32"}`.

        A link is named by its ends, `links.hbm-l2.bandwidth`.
        Raises `HardwareError` naming the first step of the path that does not exist, with the nearest name.
        """
        data = self.to_dict()
        for path, value in settings.items():
            _assign(self, data, path, value)
        changes = ", ".join(f"{path}={value}" for path, value in settings.items())
        return Device.from_dict(data, where=f"{self.name} with {changes}" if changes else self.name)

    @property
    def digest(self) -> str:
        """SHA-256 of the description: the identity of this device."""
        return hashlib.sha256(json.dumps(self.to_dict(), sort_keys=True).encode()).hexdigest()

    def __repr__(self) -> str:
        return f"Device({self.name}: {', '.join(self.units)}; {', '.join(self.memories)})"


def _assign(device: Device, data: dict[str, Any], path: str, value: object) -> None:
    steps = path.split(".")
    node: Any = data
    part: Any = device
    for depth, step in enumerate(steps):
        if isinstance(part, Part):
            valid = list(type(part).model_fields)
            child = getattr(part, step, None) if step in valid else None
        elif isinstance(part, Mapping):
            valid = list(part)
            child = part.get(step)
        elif part is device.links:
            ends = {f"{link.source}-{link.sink}": link for link in device.links}
            valid, child = list(ends), ends.get(step)
        else:
            valid, child = [], None
        if step not in valid:
            place = ".".join(steps[:depth]) or device.name
            raise HardwareError(f"{path}: {place} has no {step!r}, expected one of {', '.join(valid) or 'nothing'}{nearest(step, valid)}")
        if depth == len(steps) - 1:
            if isinstance(child, (Part, Mapping)):
                raise HardwareError(f"{path}: is a group, set one of its fields: {', '.join(_names(child))}")
            node[step] = value
        else:
            node = node[valid.index(step)] if isinstance(node, list) else node.setdefault(step, {})
            part = child


def _names(part: Any) -> list[str]:
    return list(type(part).model_fields) if isinstance(part, Part) else [str(k) for k in part]


def json_schema() -> dict[str, Any]:
    """JSON Schema of device files, for editors: every unit and memory kind with its fields."""
    from hw.memory import MEMORIES

    schema = Device.model_json_schema(mode="validation")
    definitions = schema.setdefault("$defs", {})

    def variants(classes: Mapping[str, type[Part]]) -> dict[str, Any]:
        options = []
        for kind, cls in sorted(classes.items()):
            body = cls.model_json_schema(mode="validation")
            definitions.update(body.pop("$defs", {}))
            body["properties"] = {"kind": {"const": kind}, **body.get("properties", {})}
            body["required"] = ["kind", *body.get("required", [])]
            definitions[cls.__name__] = body
            options.append({"$ref": f"#/$defs/{cls.__name__}"})
        return {"type": "object", "additionalProperties": {"oneOf": options}, "minProperties": 1}

    schema["properties"]["units"] = variants(UNITS)
    schema["properties"]["memories"] = variants(MEMORIES)
    schema["properties"]["schema"] = {"const": SCHEMA}
    schema["properties"]["links"] = {
        "type": "array",
        "items": {"oneOf": [{"type": "array", "items": {"type": "string"}, "minItems": 2, "maxItems": 2}, {"$ref": "#/$defs/Link"}]},
    }
    schema["$schema"] = "https://json-schema.org/draft/2020-12/schema"
    return schema
