"""Design-space exploration: sweeps that resume, searches that know their front, and reports that people send.

`dovetail.sweep` and `dovetail.optimise` are the short way in; the names here are for scripts that state a study as an object.
They load when they are first used: the database and the search libraries take their time.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dovetail.explore.errors import ExploreError, StoreError
    from dovetail.explore.exploration import Exploration
    from dovetail.explore.sensitivity import sensitivity
    from dovetail.explore.space import Parameter, Space, span
    from dovetail.explore.store import Store
    from dovetail.explore.study import Point, Study
    from dovetail.explore.surrogate import Surrogate
    from dovetail.explore.workload import Workload

_HOMES = {
    "ExploreError": "errors",
    "StoreError": "errors",
    "Exploration": "exploration",
    "sensitivity": "sensitivity",
    "Parameter": "space",
    "Space": "space",
    "span": "space",
    "Store": "store",
    "Point": "study",
    "Study": "study",
    "Surrogate": "surrogate",
    "Workload": "workload",
}

__all__ = [
    "Exploration",
    "ExploreError",
    "Parameter",
    "Point",
    "Space",
    "Store",
    "StoreError",
    "Study",
    "Surrogate",
    "Workload",
    "sensitivity",
    "span",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'dovetail.explore' has no attribute {name!r}")
    return getattr(importlib.import_module(f"dovetail.explore.{_HOMES[name]}"), name)
