"""The verb `record`: what this machine's own kernels compute and how long they take, for every other machine to compare with."""

from __future__ import annotations

import importlib
import importlib.util
from pathlib import Path
from typing import Annotated, Any

import typer

WHAT = ("vectors", "latency")


def record(
    what: Annotated[str, typer.Argument(metavar="vectors|latency", help="Results of the reference kernels, or how long operators take.")],
    out: Annotated[Path, typer.Option(metavar="DIR", help="Folder for the files; made when it is missing.")],
    device: Annotated[str, typer.Option(metavar="cpu|cuda", help="Where the kernels run.")] = "cpu",
    unit: Annotated[list[str] | None, typer.Option("--unit", metavar="NAME", help="Vectors of this unit only; repeatable.")] = None,
    budget: Annotated[float, typer.Option(metavar="SECONDS", help="Time that recording latencies may take.")] = 480.0,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """Record vectors or latencies on this machine with torch and numpy. `python -m verif.record` does the same without this command."""
    from dovetail.cli import Progress
    from dovetail.listing import print_json
    from hw.errors import nearest
    from verif.conformance import kind_of
    from verif.errors import VerificationError

    if what not in WHAT:
        raise VerificationError(f"expected vectors or latency, not {what!r}{nearest(what, WHAT)}")
    if unit and what == "latency":
        raise VerificationError("--unit: latencies are of operators, not of units; leave it out")
    if not 0 < budget < float("inf"):
        raise VerificationError(f"--budget: expected a number of seconds above 0, not {budget:g}")
    if importlib.util.find_spec("torch") is None:
        raise VerificationError("recording needs the Python package 'torch'; install it with: pip install torch")
    with Progress() as progress:
        found = vectors(out, device, unit or [], progress, kind_of) if what == "vectors" else latency(out, device, budget, progress)
    document = {"what": what, "device": device, "out": str(out), **found}
    if as_json:
        print_json(document)
        return
    for name, value in document.items():
        if name == "units":
            show_units(value)
        elif name not in ("provenance", "rows_by_operator"):
            print(f"{name}: {', '.join(map(str, value)) if isinstance(value, list) else value}")


def vectors(out: Path, device: str, units: list[str], progress: Any, kind_of: Any) -> dict[str, Any]:
    """Records the vectors and says what is in the folder then."""
    from verif.record import record as record_vectors

    chosen = [kind_of(name) for name in units]
    origin = record_vectors(out, device, chosen, progress)
    rows = [
        {
            "name": kind,
            **{key: found[key] for key in ("device", "card", "torch", "date", "sha256")},
            "configurations": len(found["sets"]),
            "combinations": sum(each["combinations"]["distinct"] for each in found["sets"]),
        }
        for kind, found in sorted(origin["units"].items())
        if not chosen or kind in chosen
    ]
    return {"files": [str(out / "provenance.json"), *(str(out / f"{row['name']}.npz") for row in rows)], "units": rows}


def latency(out: Path, device: str, budget_s: float, progress: Any) -> dict[str, Any]:
    from verif.errors import VerificationError

    if importlib.util.find_spec("verif.latency") is None:
        raise VerificationError("recording latencies is not part of this installation; `dovetail record vectors` is")
    found: dict[str, Any] = importlib.import_module("verif.latency").record_latency(out, device, budget_s, progress)
    return found


def show_units(rows: list[dict[str, Any]]) -> None:
    from dovetail.human import integer
    from dovetail.listing import table

    cells = [[r["name"], r["device"], r["card"], str(r["configurations"]), integer(r["combinations"]), r["sha256"][:12]] for r in rows]
    table("", ("unit", "device", "card", "configurations", "combinations", "sha256"), cells, frozenset(("configurations", "combinations")))
