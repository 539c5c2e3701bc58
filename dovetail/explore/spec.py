"""Studies as files: YAML for a device and settings on it, or a Python script that defines an `Exploration`.

name: array-and-sram
device: edge-npu                       # a name, or a file beside this one
parameters:
  rows: [32, 64, 128]                  # a list
  sram: {from: 256 KiB, to: 4 MiB, factor: 2}
  preload: {values: [serial, hidden], when: rows > 32}
  memories.dram.bandwidth: [51.2 GB/s, 102.4 GB/s]   # a path of the device description needs no setting
settings:
  units.array.rows: "{rows}"
  memories.weights.capacity: "{sram}"  # of a list with {...} in it, the first whose parameters exist counts
workloads:
  - {workload: llama-2-7b, phase: decode, batch: 8, weights: int8, acts: int8}
objectives: [latency, area, {name: edap, formula: latency * energy * area}]
constraints: [area <= 400]
search: {method: nsga2, evaluations: 200, seed: 0}   # default: every point
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import yaml

from dovetail.explore import expression
from dovetail.explore.errors import ExploreError
from dovetail.explore.exploration import Exploration
from dovetail.explore.optimise import SAMPLERS
from dovetail.explore.space import Parameter, Space, span
from dovetail.explore.workload import workload
from hw.device import Device
from hw.errors import HardwareError, nearest

SCHEMA = 1
_FIELDS = ("schema", "name", "device", "parameters", "settings", "workloads", "objectives", "constraints", "engine", "search", "notes")
_SEARCH = ("method", "evaluations", "seed", "batch_size")
_METHODS = ("grid", *SAMPLERS)
_RANGE = ("values", "from", "to", "factor", "step", "count", "when")


@dataclass(frozen=True)
class Spec:
    """A study file: what to explore, and how its points are found (`grid`, or a sampler with its options)."""

    exploration: Exploration
    method: str = "grid"
    options: Mapping[str, Any] = field(default_factory=dict)


def read(path: Path) -> Spec:
    """The study in a file. Raises `ExploreError` (or `HardwareError` for its device) naming the file and the field."""
    if not path.is_file():
        raise ExploreError(f"{path}: no such file; expected a study as .yaml or a script as .py")
    if path.suffix == ".py":
        return _script(path)
    if path.suffix not in (".yaml", ".yml"):
        raise ExploreError(f"{path}: expected a study as .yaml or a script as .py")
    try:
        data = yaml.load(path.read_text(encoding="utf-8"), Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    except (OSError, UnicodeDecodeError) as error:
        raise ExploreError(f"{path}: cannot be read ({error})") from None
    except yaml.YAMLError as error:
        raise ExploreError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from None
    try:
        return _from_data(data, path)
    except (ExploreError, HardwareError) as error:
        raise ExploreError(f"{path}: {error}") from None


def _from_data(data: object, path: Path) -> Spec:
    fields = _mapping(data, "a study", _FIELDS)
    if fields.get("schema", SCHEMA) != SCHEMA:
        raise ExploreError(f"schema {fields['schema']!r} cannot be read, expected {SCHEMA}")
    for name in ("device", "parameters", "workloads"):
        if name not in fields:
            raise ExploreError(f"missing field {name!r}; a study needs device, parameters and workloads")
    parameters = _parameters(fields["parameters"])
    space = Space(tuple(parameters))
    settings = {str(k): v for k, v in _mapping(fields.get("settings") or {}, "settings").items()}
    for p in space.names:
        if "." in p:
            settings.setdefault(p, f"{{{p}}}")
    describe = _Describe(str(fields["device"]), settings, space.names, path.parent)
    items = fields["workloads"] if isinstance(fields["workloads"], list) else [fields["workloads"]]
    notes = fields.get("notes") or []
    exploration = Exploration.of(
        _design(describe),
        space=space,
        workloads=[workload(item, f"workloads.{i}") for i, item in enumerate(items)],
        objectives=fields.get("objectives") or ("latency",),
        constraints=fields.get("constraints") or (),
        name=str(fields.get("name") or path.stem),
        engine=str(fields.get("engine", "fast")),
        notes=tuple(notes) if isinstance(notes, list) else (str(notes),),
        describe=describe,
        command=f"dovetail sweep {path.name}",
    )
    describe.check(exploration)
    method, options = _search(fields.get("search") or {})
    return Spec(exploration, method, options)


def _mapping(value: object, where: str, allowed: tuple[str, ...] | None = None) -> dict[str, Any]:
    if not isinstance(value, Mapping):
        raise ExploreError(f"{where}: expected a mapping of names to values, found {value!r}")
    fields = {str(k): v for k, v in value.items()}
    for key in fields:
        if allowed is not None and key not in allowed:
            raise ExploreError(f"{where}: unknown field {key!r}, expected one of {', '.join(allowed)}{nearest(key, allowed)}")
    return fields


def _parameters(given: object) -> list[Parameter]:
    out = []
    for name, entry in _mapping(given, "parameters").items():
        where = f"parameters.{name}"
        if isinstance(entry, list):
            out.append(Parameter(name, tuple(entry)))
            continue
        if not isinstance(entry, Mapping):
            entry = {"values": [entry]}
        fields = _mapping(entry, where, _RANGE)
        when = fields.pop("when", None)
        if when is not None and not isinstance(when, str):
            raise ExploreError(f"{where}.when: expected a condition such as rows > 32, found {when!r}")
        if "values" in fields:
            if len(fields) > 1 or not isinstance(fields["values"], list):
                raise ExploreError(f"{where}: expected a list in `values` and no range beside it")
            values = tuple(fields["values"])
        else:
            if "from" not in fields or "to" not in fields:
                raise ExploreError(f"{where}: expected `values`, or `from`, `to` and one of factor, step and count")
            values = span(
                fields["from"], fields["to"], factor=fields.get("factor"), step=fields.get("step"), count=fields.get("count"), where=where
            )
        out.append(Parameter(name, values, when))
    return out


def _search(given: object) -> tuple[str, dict[str, Any]]:
    fields = _mapping(given, "search", _SEARCH)
    method = fields.pop("method", "grid")
    if method not in _METHODS:
        raise ExploreError(f"search.method: expected one of {', '.join(_METHODS)}, not {method!r}{nearest(str(method), _METHODS)}")
    if method == "grid" and fields:
        raise ExploreError(f"search: a grid takes no {', '.join(fields)}; choose a method ({', '.join(SAMPLERS)})")
    return str(method), fields


@dataclass(frozen=True)
class _Describe:
    """The device and the settings of a point; settings of parameters that do not exist at it are left out."""

    device: str
    settings: Mapping[str, Any]
    names: tuple[str, ...]
    folder: Path

    def __call__(self, parameters: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
        chosen = {}
        for path, options in self.settings.items():
            for value in _options(options):
                if expression.template_names(value) <= set(parameters):
                    chosen[path] = expression.fill(value, parameters)
                    break
        return self.place(str(expression.fill(self.device, parameters))), chosen

    def place(self, name: str) -> str:
        """A device file is looked for beside the study first."""
        beside = self.folder / name
        return str(beside) if name.endswith((".yaml", ".yml")) and beside.is_file() else name

    def check(self, exploration: Exploration) -> None:
        """Refuses templates that name no parameter, and parameters that change nothing."""
        texts = [("device", self.device), *((f"settings.{p}", text) for p, value in self.settings.items() for text in _options(value))]
        for where, text in texts:
            for name in sorted(expression.template_names(text)):
                if name not in self.names:
                    known = f"expected one of {', '.join(self.names)}{nearest(name, self.names)}"
                    raise ExploreError(f"{where}: unknown parameter {name!r}, {known}")
        used = {n for _, text in texts for n in expression.template_names(text)}
        for name in self.names:
            if name not in used and not exploration.uses(name):
                raise ExploreError(
                    f"parameters.{name}: changes nothing; use it in a setting or a workload as {{{name}}}, or name a path of the device"
                )


def _design(describe: _Describe) -> Any:
    """The design function of a described device."""

    def design(**parameters: Any) -> Device:
        name, settings = describe(parameters)
        return _base(name).with_settings(settings)

    return design


def _options(value: Any) -> list[Any]:
    """A setting's alternatives: a list with `{...}` in it is several, of which the first counts whose parameters exist."""
    return value if isinstance(value, list) and any(expression.template_names(item) for item in value) else [value]


@lru_cache(maxsize=32)
def _base(name: str) -> Device:
    from hw.devices import load

    return load(name)


def _script(path: Path) -> Spec:
    """A script states `study`, an `Exploration`; optionally `search`, as in YAML."""
    import importlib.util
    import sys
    import traceback

    name = f"dovetail_study_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        lines = [f.lineno for f in traceback.extract_tb(error.__traceback__) if Path(f.filename).resolve() == path.resolve()]
        line = error.lineno if isinstance(error, SyntaxError) else lines[-1] if lines else None
        raise ExploreError(f"{path}{f':{line}' if line else ''}: {type(error).__name__}: {error}") from error
    found = getattr(module, "study", None)
    if not isinstance(found, Exploration):
        raise ExploreError(
            f"{path}: expected the script to define `study`, an Exploration (dovetail.explore.Exploration.of(...)), found {found!r}"
        )
    try:
        method, options = _search(getattr(module, "search", {}))
    except ExploreError as error:
        raise ExploreError(f"{path}: {error}") from None
    from dataclasses import replace

    return Spec(replace(found, command=f"dovetail sweep {path.name}") if not found.command else found, method, options)
