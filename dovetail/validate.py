"""The verb `validate`: predictions against measured latencies."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from verif.validation import Measurement, Score

LISTED = 5
"""Rows left out that are listed in words; the JSON document has them all."""


def validate(
    sets: Annotated[
        list[str] | None, typer.Argument(metavar="[SET ...]", help="Operators, such as gemm or attention-decode. Default: all.")
    ] = None,
    data: Annotated[Path | None, typer.Option(metavar="DIR", help="Folder of measured CSV files.")] = None,
    device: Annotated[str | None, typer.Option(metavar="NAME", help="Only this device.")] = None,
    clock: Annotated[str, typer.Option(metavar="kernel|launch|host|request|all", help="Which clock's latencies are compared.")] = "all",
    leave_one_device_out: Annotated[
        bool, typer.Option("--leave-one-device-out", help="Also predict with the constants of another generation.")
    ] = False,
    report: Annotated[Path | None, typer.Option(metavar="FILE.html", help="Write tables and pictures as one HTML page.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """Score predictions against measured latencies, per device, operator, data type and size."""
    from dovetail.files import check_writable
    from hw.devices import names
    from hw.errors import nearest
    from verif.validation import evaluate, read
    from verif.validation.errors import MeasurementError
    from verif.validation.measurement import CLOCKS, SHAPES

    if data is None:
        raise MeasurementError("--data: expected a folder of measured CSV files (columns device, operator, dtype, latency_s and the sizes)")
    for wanted in sets or ():
        if wanted not in SHAPES:
            raise MeasurementError(f"unknown set {wanted!r}, expected one of {', '.join(SHAPES)}{nearest(wanted, SHAPES)}")
    if device is not None and device not in names():
        raise MeasurementError(f"--device: unknown device {device!r}, expected one of {', '.join(names())}{nearest(device, names())}")
    if clock not in (*CLOCKS, "all"):
        raise MeasurementError(f"--clock: expected {', '.join(CLOCKS)} or all, not {clock!r}{nearest(clock, CLOCKS)}")
    if report is not None:
        check_writable(report)
    measured, other = read(data)

    def asked(m: Measurement) -> bool:
        return (not sets or m.operator in sets) and (device in (None, m.device)) and (clock in ("all", m.clock))

    chosen = [m for m in measured if asked(m)]
    if not chosen:
        left = "; ".join(f"{count} not predicted: {what}" for what, count in other.items())
        raise MeasurementError(
            f"--data: {data}: none of the {len(measured)} rows is of the sets, device and clock asked for{f' ({left})' if left else ''}"
        )
    score = evaluate(chosen, leave_one_device_out=leave_one_device_out, progress=lambda text: print(f"dovetail: {text}", file=sys.stderr))
    if report is not None:
        from dovetail.validation_page import write

        write(score, other, report)
    if as_json:
        print(json.dumps(document(score, other), indent=2))
    else:
        print(text(score, other))


def document(score: Score, other: dict[str, int]) -> dict[str, Any]:
    """The scores as one JSON document; `rows` is the table over all shapes."""
    from verif.validation import rows
    from verif.validation.hygiene import RULE
    from verif.validation.score import totals

    out: dict[str, Any] = {
        "rows": rows(score),
        "fitted_half": rows(score, half=True),
        "held_out_half": rows(score, half=False),
        "baselines": {label: rows(score, values) for label, values in score.baselines.items()},
        "totals": totals(score),
        "rule": RULE,
        "excluded": [
            {"place": m.place, "device": m.device, "operator": m.operator, "dtype": m.dtype, "why": why} for m, why in score.excluded
        ],
        "not_predicted": other,
        "refused": dict(score.refused),
    }
    if score.transferred:
        out["leave_one_device_out"] = rows(score, score.transferred)
    return out


def text(score: Score, other: dict[str, int]) -> str:
    """The scores as a table in words."""
    from dovetail.human import seconds
    from verif.validation import rows
    from verif.validation.hygiene import RULE
    from verif.validation.score import totals

    def key(row: dict[str, object]) -> tuple[object, ...]:
        return tuple(row[name] for name in ("device", "operator", "dtype", "size_class"))

    halves = {half: {key(row): row for row in rows(score, half=half)} for half in (True, False)}
    simple = {label: {key(row): row for row in rows(score, values)} for label, values in score.baselines.items()}
    foreign = {key(row): row for row in rows(score, score.transferred)} if score.transferred else {}
    head = ["device", "operator", "dtype", "size", "n", "MAPE", "median", "bias", "p90", "max", "fitted half", "held out", *score.baselines]
    table = [[*head, *(["other generation"] if foreign else [])]]
    for row in rows(score):
        k = key(row)

        def share(source: dict[tuple[object, ...], dict[str, object]], k: tuple[object, ...] = k) -> str:
            return f"{source[k]['mape']:.1%}" if k in source else "-"

        numbers = [f"{row[name]:+.1%}" if name == "bias" else f"{row[name]:.1%}" for name in ("mape", "median", "bias", "p90", "max")]
        cells = [*(str(part) for part in k), str(row["n"]), *numbers, share(halves[True]), share(halves[False])]
        cells += [share(source) for source in simple.values()]
        table.append([*cells, *([share(foreign)] if foreign else [])])
    widths = [max(len(line[i]) for line in table) for i in range(len(table[0]))]
    lines = [
        "  ".join(c.ljust(w) if i < 4 else c.rjust(w) for i, (c, w) in enumerate(zip(line, widths, strict=True))).rstrip() for line in table
    ]
    for whole in totals(score):
        measured, predicted = (seconds(float(str(whole[key]))) for key in ("measured_s", "predicted_s"))
        error = float(str(whole["error"]))
        what = f"{whole['whole']} on {whole['device']}, {whole['parts']} parts"
        lines.append(f"{what}: measured {measured}, predicted {predicted} ({error:+.1%})")
    lines.append(f"excluded: {len(score.excluded)} rows; {RULE}")
    lines += [f"  {m.place}: {m.device} {m.operator} {m.dtype}: {why}" for m, why in score.excluded[:LISTED]]
    if len(score.excluded) > LISTED:
        lines.append(f"  and {len(score.excluded) - LISTED} more, all of them with --json")
    lines += [f"refused: {count} rows: {reason}" for reason, count in score.refused.items()]
    lines += [f"not predicted: {count} rows: {what}" for what, count in other.items()]
    return "\n".join(lines)
