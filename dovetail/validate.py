"""The verb `validate`: predictions against measured latencies."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from verif.validation import Measurement, Score

LISTED = 12
"""Classes of rows left out that are listed in words, each by one of its rows; the JSON document has them all."""

REASONS = 12
"""Reasons for refusing rows that are listed in words."""

HALVES = {"both": None, "fitted": True, "held-out": False}


def validate(
    sets: Annotated[
        list[str] | None, typer.Argument(metavar="[SET ...]", help="Operators, such as gemm or attention-decode. Default: all.")
    ] = None,
    data: Annotated[Path | None, typer.Option(metavar="DIR", help="Folder of measured CSV files.")] = None,
    device: Annotated[str | None, typer.Option(metavar="NAME", help="Only this device.")] = None,
    clock: Annotated[str, typer.Option(metavar="kernel|launch|host|request|all", help="Which clock's latencies are compared.")] = "all",
    half: Annotated[
        str, typer.Option(metavar="both|fitted|held-out", help="Only the shapes that constants are fitted on, or only the others.")
    ] = "both",
    leave_one_device_out: Annotated[
        bool, typer.Option("--leave-one-device-out", help="Also predict with the constants of another generation.")
    ] = False,
    learned_residual: Annotated[
        bool, typer.Option("--learned-residual", help="Also a regression on what predictions miss; no estimate uses it.")
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
    if half not in HALVES:
        raise MeasurementError(f"--half: expected {', '.join(HALVES)}, not {half!r}{nearest(half, HALVES)}")
    if report is not None:
        check_writable(report)
    measured, other = read(data)

    def asked(m: Measurement) -> bool:
        return (not sets or m.operator in sets) and (device in (None, m.device)) and (clock in ("all", m.clock))

    chosen = [m for m in measured if asked(m)]
    if not any(HALVES[half] in (None, m.fitted) for m in chosen):
        raise MeasurementError(f"--data: {data}: {_nothing(measured, chosen, other)}")
    score = evaluate(chosen, leave_one_device_out=leave_one_device_out, progress=lambda text: print(f"dovetail: {text}", file=sys.stderr))
    beside = _beside(score, learned_residual)
    if report is not None:
        from dovetail.validation_page import write

        write(score, other, report, beside, HALVES[half])
    if as_json:
        print(json.dumps(document(score, other, half, beside), indent=2))
    else:
        print(text(score, other, half, beside))


def _nothing(measured: list[Measurement], chosen: list[Measurement], other: dict[str, int]) -> str:
    """Why no row is left to score."""
    left = "; ".join(f"{count} not predicted: {what}" for what, count in other.items())
    left = f" ({left})" if left else ""
    if chosen:
        return f"none of the {len(chosen)} rows asked for is of that half of the shapes"
    if not measured and not other:
        return "the files have a header and no rows"
    return f"none of the {len(measured)} rows is of the sets, device and clock asked for{left}"


def _beside(score: Score, learned: bool) -> dict[str, tuple[float, ...]]:
    """What is printed beside the predictions, by its name: what was asked for of other constants and of learned corrections."""
    from verif.validation import residual

    found = {OTHER: score.transferred} if score.transferred else {}
    return found | ({residual.LABEL: residual.corrected(score)} if learned and score.measured else {})


OTHER = "other generation"
"""The name of predictions with the constants of another generation."""


def document(score: Score, other: dict[str, int], half: str = "both", beside: dict[str, tuple[float, ...]] | None = None) -> dict[str, Any]:
    """The scores as one JSON document; `rows` is the table over the shapes asked for; what is learned is scored on held-out ones."""
    from verif.validation import residual, rows
    from verif.validation.hygiene import RULE
    from verif.validation.score import totals

    out: dict[str, Any] = {
        "half": half,
        "rows": rows(score, half=HALVES[half]),
        "fitted_half": rows(score, half=True),
        "held_out_half": rows(score, half=False),
        "baselines": {label: rows(score, values, HALVES[half]) for label, values in score.baselines.items()},
        "totals": totals(score),
        "rule": RULE,
        "excluded": [
            {"place": m.place, "device": m.device, "operator": m.operator, "dtype": m.dtype, "why": why} for m, why in score.excluded
        ],
        "not_predicted": other,
        "refused": dict(score.refused),
    }
    for label, values in (beside or {}).items():
        if label == residual.LABEL:
            out["learned_residual"] = rows(score, values, half=False)
        else:
            out["leave_one_device_out"] = rows(score, values, HALVES[half])
    return out


def text(score: Score, other: dict[str, int], half: str = "both", beside: dict[str, tuple[float, ...]] | None = None) -> str:
    """The scores as a table in words."""
    from dovetail.human import seconds
    from verif.validation import residual, rows
    from verif.validation.hygiene import RULE
    from verif.validation.score import totals

    def key(row: dict[str, object]) -> tuple[object, ...]:
        return tuple(row[name] for name in ("device", "operator", "dtype", "size_class"))

    only = HALVES[half]
    halves = {which: {key(row): row for row in rows(score, half=which)} for which in (True, False)}
    simple = {label: {key(row): row for row in rows(score, values, only)} for label, values in score.baselines.items()}
    for label, values in (beside or {}).items():
        simple[label] = {key(row): row for row in rows(score, values, False if label == residual.LABEL else only)}
    head = ["device", "operator", "dtype", "size", "n", "MAPE", "median", "bias", "p90", "max", "fitted half", "held out", *simple]
    table = [head]
    for row in rows(score, half=only):
        k = key(row)

        def share(source: dict[tuple[object, ...], dict[str, object]], k: tuple[object, ...] = k) -> str:
            return f"{source[k]['mape']:.1%}" if k in source else "-"

        numbers = [f"{row[name]:+.1%}" if name == "bias" else f"{row[name]:.1%}" for name in ("mape", "median", "bias", "p90", "max")]
        cells = [*(str(part) for part in k), str(row["n"]), *numbers, share(halves[True]), share(halves[False])]
        table.append([*cells, *(share(source) for source in simple.values())])
    widths = [max(len(line[i]) for line in table) for i in range(len(table[0]))]
    lines = [
        "  ".join(c.ljust(w) if i < 4 else c.rjust(w) for i, (c, w) in enumerate(zip(line, widths, strict=True))).rstrip() for line in table
    ]
    if len(table) == 1:
        lines = ["no row could be scored"]
    if beside and OTHER in beside:
        lines.append(f"{OTHER}: with the constants of the other fitted generation, as if nothing of the device's own had been measured")
    if beside and residual.LABEL in beside:
        lines.append(f"{residual.LABEL}: a regression fitted on the fitted half, scored on the other; no estimate uses it")
    for whole in totals(score):
        measured, predicted = (seconds(float(str(whole[key]))) for key in ("measured_s", "predicted_s"))
        error = float(str(whole["error"]))
        what = f"{whole['whole']} on {whole['device']}, {whole['parts']} parts"
        lines.append(f"{what}: measured {measured}, predicted {predicted} ({error:+.1%})")
    lines.append(f"excluded: {len(score.excluded)} rows; {RULE}")
    lines += _left_out(score)
    refused = sorted(score.refused.items(), key=lambda item: -item[1])
    lines += [f"refused: {count} rows: {reason}" for reason, count in refused[:REASONS]]
    if len(refused) > REASONS:
        count = sum(count for _, count in refused[REASONS:])
        lines.append(f"refused: {count} rows for {len(refused) - REASONS} more reasons, all of them with --json")
    lines += [f"not predicted: {count} rows: {what}" for what, count in other.items()]
    return "\n".join(lines)


def _left_out(score: Score) -> list[str]:
    """Rows that are not physical by class, most first, with one of each."""
    classes: dict[str, list[str]] = {}
    for m, why in score.excluded:
        classes.setdefault(f"{m.device} {m.operator} {m.dtype}", []).append(f"{m.place}: {why}")
    order = sorted(classes.items(), key=lambda item: -len(item[1]))
    lines = [f"  {name}: {len(rows)} rows, such as {rows[0]}" for name, rows in order[:LISTED]]
    if len(order) > LISTED:
        lines.append(f"  and {sum(len(rows) for _, rows in order[LISTED:])} rows of {len(order) - LISTED} more classes")
    return [*lines, "  all of them with --json"] if lines else []
