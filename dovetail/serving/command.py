"""The verb `serve`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

INTERRUPTED = 130


def _number(option: str) -> Any:
    def check(value: str | None) -> int | None:
        from dovetail.serving.errors import ServingError

        if value is None:
            return None
        try:
            found = int(value)
        except ValueError:
            raise ServingError(f"{option}: expected a whole number of at least 1, not {value!r}") from None
        if found < 1:
            raise ServingError(f"{option}: expected at least 1, not {found}")
        return found

    return check


def _count(option: str, text: str) -> Any:
    return typer.Option(option, metavar="N", callback=_number(option), help=text)


def serve(
    model: Annotated[str, typer.Argument(help="Model name, config.json, or the saved trace of a decode step of one sequence.")],
    device: Annotated[str, typer.Option(metavar="NAME|FILE", help="Device name or YAML file.")],
    devices: Annotated[str | None, _count("--devices", "Devices that share the model. Default: 1.")] = None,
    requests: Annotated[str | None, _count("--requests", "Requests to serve. Default: 1000, or all of a trace.")] = None,
    max_batch: Annotated[str | None, _count("--max-batch", "Requests at a time, at most. Default: 64.")] = None,
    arrivals: Annotated[
        str, typer.Option(metavar="closed|poisson:RATE|FILE", help="When requests arrive; a CSV trace has their lengths too.")
    ] = "closed",
    inputs: Annotated[str, typer.Option("--input", metavar="MEAN[:SD]", help="Tokens of prompts.")] = "512",
    outputs: Annotated[str, typer.Option("--output", metavar="MEAN[:SD]", help="Tokens of answers.")] = "512",
    routing: Annotated[str, typer.Option(metavar="uniform|zipf:S|FILE", help="Which experts tokens go to.")] = "uniform",
    experts: Annotated[str, typer.Option(metavar="single|split|optimum", help="How two kinds of units share experts.")] = "split",
    slice_experts: Annotated[bool, typer.Option("--slice-experts", help="Cut every expert over the devices.")] = False,
    co_processing: Annotated[
        str, typer.Option(metavar="on|off", help="Let units near memory and the others work at the same time.")
    ] = "on",
    sub_batches: Annotated[
        bool, typer.Option("--sub-batches", help="Let two halves of a batch alternate between dense layers and attention near memory.")
    ] = False,
    chunk: Annotated[
        str | None, _count("--chunk", "Tokens of prompts per iteration, at most. Default: whole prompts, up to 16384.")
    ] = None,
    weights: Annotated[str | None, typer.Option(metavar="FORMAT", help="Format of weights.")] = None,
    acts: Annotated[str | None, typer.Option(metavar="FORMAT", help="Format of activations.")] = None,
    kv: Annotated[str | None, typer.Option(metavar="FORMAT", help="Format of the KV cache.")] = None,
    settings: Annotated[
        list[str] | None, typer.Option("--set", metavar="PATH=VALUE", help="Change a field of the device; repeatable.")
    ] = None,
    seed: Annotated[int, typer.Option(metavar="N", help="Of lengths, arrivals and routing.")] = 0,
    report: Annotated[Path | None, typer.Option(metavar="FILE.html", help="Write the run as one HTML page.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout.")] = False,
) -> None:
    """Serve requests with continuous batching: throughput, time to first token and between tokens, percentiles, energy."""
    import sys

    from dovetail.cli import Progress, assignments, check_outputs
    from dovetail.serving import serve as run
    from dovetail.serving.errors import ServingError
    from workloads.errors import nearest

    if co_processing not in ("on", "off"):
        raise ServingError(f"--co-processing: expected on or off, not {co_processing!r}{nearest(co_processing, ('on', 'off'))}")
    if seed < 0:
        raise ServingError(f"--seed: expected at least 0, not {seed}")
    check_outputs({"--report": report})
    changes = assignments(settings or ())
    given: dict[str, Any] = {"devices": devices, "max_batch": max_batch, "chunk": chunk, "weights": weights, "acts": acts, "kv": kv}
    traced = arrivals != "closed" and not arrivals.startswith("poisson")
    given["requests"] = requests if requests is not None or not traced else sys.maxsize
    with Progress() as progress:
        result = run(
            model,
            device=device,
            arrivals=arrivals,
            inputs=inputs,
            outputs=outputs,
            routing=routing,
            experts=experts,
            slice_experts=slice_experts,
            co_processing=co_processing == "on",
            sub_batches=sub_batches,
            seed=seed,
            settings=changes,
            progress=progress,
            **{name: value for name, value in given.items() if value is not None},
        )
        if report is not None:
            progress("writing the page")
            result.save_html(report)
    print(json.dumps(result.to_json(), indent=2, allow_nan=False) if as_json else result.text())
    if report is not None:
        print(f"report: {report}", file=sys.stderr)
    if result.served.ended == "interrupted":
        print("dovetail: interrupted while serving: these are the requests until then", file=sys.stderr)
        raise typer.Exit(INTERRUPTED)
