"""The command line. A verb imports what it needs when it runs, so that help and listings stay fast.

A user's mistake ends with status 2 and one message on stderr; an interrupt with 130; a reader that closes the pipe early
with 141. With `--json`, stdout carries one JSON document and nothing else.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.exceptions import TyperException

from dovetail.explore.command import sweep
from dovetail.memory import memory
from dovetail.record import record
from dovetail.serving.command import serve
from dovetail.study import study
from dovetail.units import units
from dovetail.validate import validate
from dovetail.verify import verify
from workloads.errors import nearest

USAGE = 2
INTERRUPTED = 130
CLOSED_PIPE = 141  # 128 + SIGPIPE, as a shell reports it

PHASES = ("prefill", "decode")
ENGINES = ("simpy", "fast")
SWITCH = ("on", "off")
CO_PROCESSING = ("on", "off", "rule")

app = typer.Typer(
    name="dovetail",
    help="Estimate, explore and verify hardware for LLM inference.",
    add_completion=False,
    pretty_exceptions_enable=False,
)


class CommandError(ValueError):
    """A command line that cannot be carried out; the message names the option."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command line (by default that of the process) and returns its exit status."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    try:
        status = app(args=given or ["--help"], prog_name="dovetail", standalone_mode=False)
        sys.stdout.flush()
    except KeyboardInterrupt:
        status = INTERRUPTED
    except TyperException as error:
        return complain(usage_message(error))
    except SystemExit:  # typer's way out when the reader of stdout has gone
        return CLOSED_PIPE
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # the flush at exit must not fail again
        return CLOSED_PIPE
    except OSError as error:
        return complain(f"{error.filename}: {error.strerror}" if error.filename and error.strerror else str(error))
    except ValueError as error:
        if not isinstance(error, mistakes()):
            raise
        return complain(str(error))
    if status == INTERRUPTED:
        print("dovetail: interrupted; no file was left half-written", file=sys.stderr)
    return status if isinstance(status, int) else 0


def mistakes() -> tuple[type[ValueError], ...]:
    """The errors that are a user's mistake; any other error is ours and keeps its traceback."""
    from dovetail.explore.errors import ExploreError
    from dovetail.listing import ShowError
    from dovetail.report import ReportError
    from dovetail.serving.errors import ServingError
    from hw.errors import HardwareError
    from mapper.errors import MappingError
    from verif.errors import VerificationError
    from workloads.errors import WorkloadError

    return (CommandError, WorkloadError, HardwareError, MappingError, ReportError, ShowError, ExploreError, ServingError, VerificationError)


def complain(message: str) -> int:
    print(f"dovetail: {message}", file=sys.stderr)
    return USAGE


def usage_message(error: TyperException) -> str:
    """What the option parser found, in the words of our other messages."""
    context = getattr(error, "ctx", None)
    verb = context.info_name if context is not None and context.parent is not None else ""
    text = error.format_message().rstrip(".")
    option = getattr(error, "option_name", None)
    if option is not None and context is not None:
        known = [name for parameter in context.command.params for name in parameter.opts if name.startswith("--")]
        text = f"no such option {option}{nearest(option, known)}"
    elif text.startswith("No such command") and context is not None:
        verbs = list(context.command.commands)
        wrong = text.split("'")[1]
        text = f"no such verb {wrong!r}, expected one of {', '.join(verbs)}{nearest(wrong, verbs)}"
    else:
        text = text[0].lower() + text[1:]
    return f"{verb}: {text}" if verb else text


# Options ------------------------------------------------------------------------------------------------------------------
def one_of(option: str, choices: Sequence[str]) -> Callable[[str | None], str | None]:
    def check(value: str | None) -> str | None:
        if value is not None and value not in choices:
            raise CommandError(f"{option}: expected {' or '.join(choices)}, not {value!r}{nearest(value, choices)}")
        return value

    return check


def positive(option: str) -> Callable[[str | None], int | None]:
    def check(value: str | None) -> int | None:
        if value is None:
            return None
        try:
            number = int(value)
        except ValueError:
            raise CommandError(f"{option}: expected a whole number of at least 1, not {value!r}") from None
        if number < 1:
            raise CommandError(f"{option}: expected at least 1, not {number}")
        return number

    return check


def assignments(values: Sequence[str]) -> dict[str, str]:
    """The `PATH=VALUE` arguments of `--set` as a mapping."""
    out: dict[str, str] = {}
    for text in values:
        path, equals, value = text.partition("=")
        if not equals or not path.strip() or not value.strip():
            raise CommandError(f"--set: expected PATH=VALUE such as units.array.rows=32, not {text!r}")
        if path.strip() in out:
            raise CommandError(f"--set: {path.strip()} is set twice")
        out[path.strip()] = value.strip()
    return out


def token_counts(text: str) -> list[int]:
    """The numbers of `--experts`."""
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() for part in parts):
        raise CommandError(f"--experts: expected whole numbers with commas between them, such as 40,12,8,4, not {text!r}")
    return [int(part) for part in parts]


def load_file(path: Path) -> None:
    """Imports a Python file from outside the tree, so that the units, strategies and sources it defines are known.

    Raises `CommandError` that names the file and the line when it does not import.
    """
    import importlib.util
    import traceback

    if not path.is_file():
        raise CommandError(f"--load: {path}: no such file")
    name = f"dovetail_loaded_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise CommandError(f"--load: {path}: expected a Python file (.py)")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        frames = traceback.extract_tb(error.__traceback__)
        lines = [frame.lineno for frame in frames if Path(frame.filename).resolve() == path.resolve()]
        line = error.lineno if isinstance(error, SyntaxError) else lines[-1] if lines else None
        place = f"{path}:{line}" if line else str(path)
        raise CommandError(f"--load: {place}: {type(error).__name__}: {error}") from error


def read_mapping(path: Path) -> Any:
    """The mapping saved in a file, ours or Timeloop's, or an instruction file. Raises `CommandError` or `MappingError` naming it."""
    from mapper.flightllm import binary
    from mapper.mapping import Mapping
    from mapper.timeloop import TimeloopMapping, looks_like

    try:
        data = path.read_bytes()
        if binary.is_program(data):
            return binary.loads(data, str(path))
        text = data.decode("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise CommandError(f"--mapping: {path}: cannot be read ({getattr(error, 'strerror', None) or error})") from None
    return TimeloopMapping.loads(text, str(path)) if looks_like(text) else Mapping.loads(text, str(path))


def check_outputs(outputs: dict[str, Path | None]) -> None:
    """Refuses output files that cannot be written, before anything is computed."""
    from dovetail.files import check_writable

    taken: dict[Path, str] = {}
    for option, path in outputs.items():
        if path is None:
            continue
        if other := taken.get(path.resolve()):
            raise CommandError(f"{option} and {other} name the same file {str(path)!r}")
        taken[path.resolve()] = option
        try:
            check_writable(path)
        except OSError as error:
            raise CommandError(f"{option}: {error}") from None


class Progress:
    """Says on stderr what is going on: a spinner on a terminal, else a line per stage once it takes long."""

    PATIENCE_S = 10.0

    def __init__(self) -> None:
        import time

        self._now = time.monotonic
        self._start = self._now()
        self._status: Any = None
        if sys.stderr.isatty():
            from rich.console import Console

            self._status = Console(stderr=True).status("starting")

    def __enter__(self) -> Progress:
        if self._status is not None:
            self._status.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._status is not None:
            self._status.stop()

    def __call__(self, stage: str) -> None:
        if self._status is not None:
            self._status.update(stage)
        elif self._now() - self._start > self.PATIENCE_S:
            print(f"dovetail: {stage}", file=sys.stderr)


Json = Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout.")]


def version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import PackageNotFoundError
        from importlib.metadata import version as installed

        try:
            print(f"dovetail {installed('dovetail')}")
        except PackageNotFoundError:
            print("dovetail, run from its source tree without installation")
        raise typer.Exit


@app.callback()
def common(
    version: Annotated[bool, typer.Option("--version", callback=version, is_eager=True, help="Print the version and exit.")] = False,
) -> None:
    """Estimate, explore and verify hardware for LLM inference."""


# Verbs --------------------------------------------------------------------------------------------------------------------
def size(option: str, text: str) -> Any:
    return typer.Option(option, metavar="N", callback=positive(option), help=text)


def choice(option: str, choices: Sequence[str], text: str) -> Any:
    return typer.Option(option, metavar="|".join(choices), callback=one_of(option, choices), help=text)


def field(metavar: str, text: str, *names: str) -> Any:
    return typer.Option(*names, metavar=metavar, help=text)


@app.command()
def estimate(
    workload: Annotated[str, typer.Argument(help="Model name, config.json, saved trace, .onnx, or gemm:MxKxN[:FORMAT].")],
    device: Annotated[str, field("NAME|FILE", "Device name or YAML file.")],
    phase: Annotated[str | None, choice("--phase", PHASES, "Default: prefill.")] = None,
    batch: Annotated[str | None, size("--batch", "Sequences at once. Default: 1.")] = None,
    seq: Annotated[str | None, size("--seq", "Prompt tokens of a prefill. Default: 2048.")] = None,
    context: Annotated[str | None, size("--context", "Tokens that a decode step attends to. Default: 2048.")] = None,
    weights: Annotated[str | None, field("FORMAT", "Format of weights, such as fp16 or int4-g128.")] = None,
    acts: Annotated[str | None, field("FORMAT", "Format of activations.")] = None,
    kv: Annotated[str | None, field("FORMAT", "Format of the KV cache.")] = None,
    settings: Annotated[list[str] | None, field("PATH=VALUE", "Change a field of the device; repeatable.", "--set")] = None,
    mapping: Annotated[Path | None, field("FILE", "Replay a saved mapping.")] = None,
    save_mapping: Annotated[Path | None, field("FILE", "Save the mapping that was simulated.")] = None,
    strategy: Annotated[str | None, field("NAME", "How mappings are chosen: search (default), heuristic, exhaustive, or your own.")] = None,
    objective: Annotated[str | None, field("latency|edp", "What mappings are chosen for. Default: latency.")] = None,
    budget: Annotated[str | None, field("TIME", "Stop looking for mappings after so long, such as 5s, and take the best so far.")] = None,
    engine: Annotated[str | None, choice("--engine", ENGINES, "Simulation engine; all give the same spans.")] = None,
    co_processing: Annotated[
        str | None,
        choice(
            "--co-processing",
            CO_PROCESSING,
            "Let units share an operator, or run several at once, where faster; rule: experts divided by tokens. Default: on.",
        ),
    ] = None,
    experts: Annotated[str | None, field("N,N,...", "Tokens of each expert of a mixture, in every layer. Default: even shares.")] = None,
    report: Annotated[Path | None, field("FILE.html", "Write the report as one HTML page.")] = None,
    trace: Annotated[Path | None, field("FILE.json", "Write the timeline for Perfetto.")] = None,
    load: Annotated[list[Path] | None, field("FILE.py", "Import a file of your own first; repeatable.")] = None,
    as_json: Json = False,
) -> None:
    """Estimate cycles, energy and memory of a model's phase on a device."""
    changes = assignments(settings or ())
    check_outputs({"--report": report, "--trace": trace, "--save-mapping": save_mapping})
    for path in load or ():
        load_file(path)
    from dovetail import estimate as run

    given = {
        "phase": phase,
        "batch": batch,
        "seq": seq,
        "context": context,
        "weights": weights,
        "acts": acts,
        "kv": kv,
        "engine": engine,
        "strategy": strategy,
        "objective": objective,
        "budget": budget,
        "co_processing": {None: None, "on": True, "off": False, "rule": "rule"}[co_processing],
        "experts": None if experts is None else token_counts(experts),
        "mapping": read_mapping(mapping) if mapping is not None else None,
    }
    with Progress() as progress:
        chosen: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
        result = run(workload, device=device, settings=changes, progress=progress, **chosen)
        if report is not None:
            progress("writing the report")
            result.save_html(report)
        if trace is not None:
            progress("writing the timeline")
            result.save_trace(trace)
        if save_mapping is not None:
            result.save_mapping(save_mapping)
    if as_json:
        print(json.dumps(result.to_json(), indent=2, allow_nan=False))
    else:
        print(result.text())
    for what, written in (("report", report), ("timeline", trace), ("mapping", save_mapping)):
        if written is not None:
            print(f"{what}: {written}", file=sys.stderr)
    if result.search.get("ended") == "interrupted":
        print("dovetail: interrupted while mapping: this is the best found so far", file=sys.stderr)
        raise typer.Exit(INTERRUPTED)


app.command()(sweep)
app.command()(memory)
app.command()(study)
app.command()(verify)
app.command()(units)
app.command()(validate)
app.command()(record)
app.command()(serve)


@app.command()
def devices(as_json: Json = False) -> None:
    """List the devices that come with Dovetail, with their peaks and sources."""
    from dovetail import listing

    listing.show_devices(as_json)


@app.command()
def models(as_json: Json = False) -> None:
    """List the models of the catalogue with their dimensions."""
    from dovetail import listing

    listing.show_models(as_json)


@app.command()
def show(
    what: Annotated[
        str,
        typer.Argument(
            metavar="FILE|devices|models|units",
            help="A saved report, graph, mapping, program or device, safetensors weights, or a random tensor such as gaussian:4096x4096.",
        ),
    ],
    weights: Annotated[
        list[str] | None, field("FORMAT,...", "For weights and random tensors: the error of storing them so; or `all`.", "--weights")
    ] = None,
    tensors: Annotated[list[str] | None, field("PATTERN", "Weights of a safetensors file, such as '*q_proj*'.", "--tensor")] = None,
    seed: Annotated[int | None, field("N", "Of a random tensor. Default: 0.", "--seed")] = None,
    as_json: Json = False,
) -> None:
    """Print a saved artefact, or a list of what is known, readably; for weights, what number formats do to them."""
    from dovetail import accuracy, listing

    lists = {"devices": listing.show_devices, "models": listing.show_models, "units": listing.show_units}
    if accuracy.is_random(what) or what.endswith(accuracy.SUFFIX):
        accuracy.show(what, weights or (), tensors or (), seed, as_json)
    elif weights or tensors or seed is not None:
        raise CommandError(f"show: --weights, --tensor and --seed are for safetensors files and random tensors, not for {what!r}")
    elif what in lists:
        lists[what](as_json)
    elif Path(what).is_file():
        listing.show_file(Path(what), as_json)
    else:
        raise CommandError(f"show: {what!r} is neither a file nor one of {', '.join(lists)}{nearest(what, lists)}")


