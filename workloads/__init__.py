"""What is computed: graph types, the tracer, the model catalogue, number formats and transforms."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from workloads.catalogue import describe, names
from workloads.errors import WorkloadError
from workloads.format import Format, parse_format

if TYPE_CHECKING:
    from workloads.graph import Graph, Operator, Segment, Tensor
    from workloads.sources import load, save_graph, source
    from workloads.transforms import quantise

__all__ = [
    "Format",
    "Graph",
    "Operator",
    "Segment",
    "Tensor",
    "WorkloadError",
    "describe",
    "load",
    "names",
    "parse_format",
    "quantise",
    "save_graph",
    "source",
]

_HOMES = {
    "Graph": "graph",
    "Operator": "graph",
    "Segment": "graph",
    "Tensor": "graph",
    "load": "sources",
    "save_graph": "sources",
    "source": "sources",
    "quantise": "transforms",
}


def __getattr__(name: str) -> Any:
    """Names whose home imports networkx are looked up when they are first used."""
    if name not in _HOMES:
        raise AttributeError(f"module 'workloads' has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(f"workloads.{_HOMES[name]}"), name)
