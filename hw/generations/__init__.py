"""Constants of GPU generations: what kernels reach beyond what data sheets state, for devices that name their `generation`."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import yaml

from hw.errors import HardwareError, nearest

FOLDER = Path(__file__).parent

MAIN = "main"
"""Stands for the main memory, whatever a device calls it."""


def names() -> list[str]:
    """Generations with constants."""
    return sorted(path.stem for path in FOLDER.glob("*.yaml"))


@lru_cache
def _read(name: str) -> dict[str, Any]:
    if name not in names():
        raise HardwareError(f"generation: unknown generation {name!r}, expected one of {', '.join(names())}{nearest(name, names())}")
    data: dict[str, Any] = yaml.safe_load((FOLDER / f"{name}.yaml").read_text(encoding="utf-8"))
    return data


def with_generation(fields: dict[str, Any], fitted: str = "") -> dict[str, Any]:
    """A device's description, with its generation's constants wherever it states none itself; with those that another generation was
    `fitted` with, if one is named, beside what is published of its own.

    Raises `HardwareError` for an unknown generation.
    """
    name = fields.get("generation")
    if not name:
        return fields
    data = copy.deepcopy(_read(str(name)))
    if fitted:
        data["constants"] = copy.deepcopy(_read(fitted)["constants"])
    out = dict(fields)
    constants: dict[str, Any] = {}
    for path, value in data.get("published", {}).items():
        tensor = out.get("units", {}).get("tensor")
        if isinstance(tensor, Mapping) and path not in tensor:
            out["units"] = {**out["units"], "tensor": {**tensor, path: value}}
    for path, constant in data["constants"].items():
        *steps, last = path.split(".")
        if len(steps) == 2:
            group, part = steps
            parts = out.get(group)
            if part == MAIN and isinstance(parts, Mapping):
                part = next((n for n, p in parts.items() if isinstance(p, Mapping) and p.get("kind") in ("hbm", "dram")), MAIN)
            if not isinstance(parts, Mapping) or not isinstance(parts.get(part), Mapping):
                continue
            if last in parts[part]:
                continue
            out[group] = {**parts, part: {**parts[part], last: constant["value"]}}
            path = f"{group}.{part}.{last}"
        elif last in out:
            continue
        else:
            out[last] = constant["value"]
        constants[path] = {**constant, "value": str(constant["value"])}
    out["constants"] = {**constants, **out.get("constants", {})}
    return out
