"""`dovetail study`: published values against ours, per system.

Studies are modules of the package `studies`, each with a function `rows()`. They are built on this front door, so they are found
by name when the verb runs, never imported here.
"""

from __future__ import annotations

import json
import sys
from typing import Annotated, Any

import typer


def study(
    names: Annotated[list[str] | None, typer.Argument(help="Studies to run; all of them without a name.", metavar="[NAME ...]")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON document on stdout.")] = False,
) -> None:
    """Published values against ours, per system."""
    found: list[Any] = []
    for name in _chosen(names or []):
        print(f"running {name}", file=sys.stderr)
        found += _module(name).rows()
    if as_json:
        print(json.dumps({"rows": [row.to_json() for row in found]}, indent=2, allow_nan=False))
        return
    from dovetail.human import digits
    from dovetail.listing import table

    table(
        "",
        ("system", "experiment", "published", "ours", "unit", "error", "status", "note"),
        (
            (
                row.system,
                row.experiment,
                digits(row.published),
                digits(row.ours),
                row.unit,
                f"{row.error:+.1%}",
                row.status + ("" if row.tolerance is None else f" (within {row.tolerance:.0%})"),
                row.note,
            )
            for row in found
        ),
        right=frozenset({"published", "ours", "error"}),
    )


def _module(name: str) -> Any:
    import importlib

    return importlib.import_module(f"studies.{name}")


def available() -> list[str]:
    """Names of the studies that exist: the modules of `studies` that have rows."""
    import importlib.util
    import pkgutil

    package = importlib.util.find_spec("studies")
    paths = package.submodule_search_locations if package else None
    names = sorted(module.name for module in pkgutil.iter_modules(paths))
    return [name for name in names if hasattr(_module(name), "rows")]


def _chosen(names: list[str]) -> list[str]:
    from hw.errors import HardwareError, nearest

    known = available()
    for name in names:
        if name.replace("-", "_") not in known:
            raise HardwareError(f"unknown study {name!r}, expected one of {', '.join(known)}{nearest(name, known)}")
    return [name.replace("-", "_") for name in names] or known
