"""The front door: estimates of LLM inference on described hardware, and their reports.

Names load when they are first used, so that `import dovetail` stays fast and loads neither torch nor matplotlib.
"""

from __future__ import annotations

import importlib
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dovetail.estimate import estimate
    from dovetail.report import Report
    from dovetail.sweep import optimise, sweep
    from hw import Device, Link, Memory, Unit
    from workloads.graph import Graph

_HOME = {
    "estimate": "dovetail.estimate",
    "sweep": "dovetail.sweep",
    "optimise": "dovetail.sweep",
    "Report": "dovetail.report",
    "Device": "hw",
    "Link": "hw",
    "Memory": "hw",
    "Unit": "hw",
    "Graph": "workloads.graph",
}

__all__ = ["Device", "Graph", "Link", "Memory", "Report", "Unit", "estimate", "optimise", "sweep"]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'dovetail' has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOME[name]), name)
    globals()[name] = value  # found without a detour next time
    return value


class _FrontDoor(ModuleType):
    """A package whose functions win over the modules they are named after, whichever is imported first."""

    def __setattr__(self, name: str, value: Any) -> None:
        if not (name in _HOME and isinstance(value, ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _FrontDoor


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
