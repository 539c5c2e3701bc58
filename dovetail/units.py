"""The verb `units`: which faces each unit has and which checks hold, as it is and not as it should be."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

COLUMNS = ("cost", "golden", "vectors", "rtl", "cycles_verified", "proved", "synthesised")


def units(
    load: Annotated[list[Path] | None, typer.Option("--load", metavar="FILE.py", help="Python file with units of your own.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """Every unit with its faces: cost, golden arithmetic, recorded vectors, RTL, and what was verified of these sources."""
    from dovetail.cli import load_file
    from dovetail.listing import print_json, table
    from hw import UNITS
    from verif.status import faces

    for path in load or []:
        load_file(path)
    rows = sorted((faces(kind) for kind in UNITS), key=lambda row: str(row["name"]))
    if as_json:
        print_json({"units": rows})
        return
    ticks = {True: "yes", False: "-", None: "-"}
    cells = [[row["name"], *(row[c] if isinstance(row[c], str) else ticks[row[c]] for c in COLUMNS)] for row in rows]
    table("", ("unit", *(c.replace("_", " ") for c in COLUMNS)), cells)
