"""What `devices`, `models` and `show` print: tables for people, one JSON document for scripts."""

from __future__ import annotations

import gzip
import json
import shutil
import sys
import zlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dovetail.human import capacity, decimal, integer, percent, ratio, seconds

if TYPE_CHECKING:
    from dovetail.report import Report
    from hw import Device
    from mapper.mapping import Allocation
    from workloads.catalogue import Model
    from workloads.graph import Graph


class ShowError(ValueError):
    """A file that cannot be shown; the message says why and what was expected."""


def table(title: str, columns: Sequence[str], rows: Iterable[Sequence[str]], right: frozenset[str] = frozenset()) -> None:
    """A table on stdout, as wide as the terminal; as wide as it needs where stdout is none. `right` columns are aligned right."""
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    view = Table(title=title or None, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    for name in columns:
        view.add_column(name, justify="right" if name in right else "left", overflow="fold")
    for row in rows:
        view.add_row(*(Text(cell) for cell in row))
    if sys.stdout.isatty():
        Console(width=shutil.get_terminal_size().columns, highlight=False).print(view)
        return
    console = Console(width=240, highlight=False)
    with console.capture() as captured:
        console.print(view)
    print("\n".join(line.rstrip() for line in captured.get().splitlines()).strip("\n"))


def print_json(document: Any) -> None:
    """One JSON document on stdout."""
    print(json.dumps(document, indent=2, allow_nan=False))


# Devices ------------------------------------------------------------------------------------------------------------------
def peaks(device: Device, name: str) -> dict[str, int]:
    """Peak of a unit by number format: two FLOPs per multiply-accumulate; `any` for vector operations."""
    formats = sorted(device.units[name].formats())
    return {number: device.peak_flops(name, number) for number in formats} or {"any": device.peak_flops(name, "fp32")}


def device_document(device: Device) -> dict[str, Any]:
    """A device as the listing's JSON: base units, names say which."""
    return {
        "name": device.name,
        "title": device.title,
        "clock_hz": device.clock,
        "main_memory": device.main_memory,
        "units": [
            {"name": name, "kind": type(unit).kind, "count": unit.count, "peak_flops": peaks(device, name), "source": unit.source}
            for name, unit in device.units.items()
        ],
        "memories": [
            {
                "name": name,
                "kind": type(memory).kind,
                "capacity_bytes": memory.total,
                "bandwidth_bytes_per_s": memory.bandwidth,
                "model": memory.model,
                "source": memory.source,
            }
            for name, memory in device.memories.items()
        ],
        "source": device.source,
    }


def show_devices(as_json: bool) -> None:
    """Every device of the catalogue."""
    from hw import devices

    found = [devices.load(name) for name in devices.names()]
    if as_json:
        print_json({"devices": [device_document(device) for device in found]})
        return
    table(
        "",
        ("device", "clock", "units", "peak", "main memory", "bandwidth", "memory model", "source"),
        (
            (
                device.name,
                decimal(device.clock, "Hz"),
                ", ".join(f"{name}{f' x{unit.count}' if unit.count > 1 else ''}" for name, unit in device.units.items()),
                highest_peak(device),
                f"{device.main_memory} {capacity(device.dram.total)}",
                decimal(device.dram.bandwidth, "B/s"),
                device.dram.model,
                device.source,
            )
            for device in found
        ),
        right=frozenset({"clock", "bandwidth"}),
    )


def highest_peak(device: Device) -> str:
    """The peaks of the unit that multiplies fastest, narrow formats last."""
    name = max(device.units, key=lambda unit: max(peaks(device, unit).values()))
    by_rate: dict[int, list[str]] = {}
    for number, rate in peaks(device, name).items():
        by_rate.setdefault(rate, []).append(number)
    return "; ".join(f"{'/'.join(numbers)} {decimal(rate, 'FLOP/s')}" for rate, numbers in sorted(by_rate.items()))


def show_device(device: Device, as_json: bool) -> None:
    """One device, part by part."""
    if as_json:
        print_json(device_document(device))
        return
    print(f"{device.name}: {device.title or 'no title'}; clock {decimal(device.clock, 'Hz')}")
    print(f"source: {device.source or 'not stated'}\n")
    table(
        "",
        ("unit", "kind", "count", "peak", "source"),
        (
            (
                name,
                type(unit).kind,
                integer(unit.count),
                "; ".join(f"{number} {decimal(rate, 'FLOP/s')}" for number, rate in peaks(device, name).items()),
                unit.source,
            )
            for name, unit in device.units.items()
        ),
        right=frozenset({"count"}),
    )
    print()
    table(
        "",
        ("memory", "kind", "capacity", "bandwidth", "model", "source"),
        (
            (name, type(memory).kind, capacity(memory.total), decimal(memory.bandwidth, "B/s"), memory.model, memory.source)
            for name, memory in device.memories.items()
        ),
        right=frozenset({"capacity", "bandwidth"}),
    )
    if device.constants:
        print()
        table(
            "",
            ("constant", "value", "meaning", "source"),
            ((name, c.value, c.meaning, c.source) for name, c in device.constants.items()),
        )


# Models -------------------------------------------------------------------------------------------------------------------
def model_document(model: Model) -> dict[str, Any]:
    """A model as the listing's JSON."""
    names = "name layers hidden heads kv_heads head_dim ffn vocabulary experts top_k parameters kv_bytes_per_token positions source"
    return {name: getattr(model, name) for name in names.split()}


def show_models(as_json: bool) -> None:
    """Every model of the catalogue."""
    from workloads import catalogue

    found = [catalogue.describe(name) for name in catalogue.names()]
    if as_json:
        print_json({"models": [model_document(model) for model in found]})
        return
    columns = ("model", "parameters", "layers", "hidden", "heads", "kv heads", "ffn", "vocabulary", "experts", "fp16 KV B/token", "source")
    table(
        "",
        columns,
        (
            (
                model.name,
                decimal(model.parameters, "").strip(),
                str(model.layers),
                str(model.hidden),
                str(model.heads),
                str(model.kv_heads),
                str(model.ffn),
                integer(model.vocabulary),
                f"{model.top_k} of {model.experts}" if model.experts else "",
                "" if model.kv_bytes_per_token is None else integer(model.kv_bytes_per_token),
                model.source,
            )
            for model in found
        ),
        right=frozenset(columns[1:-1]),
    )


# Units --------------------------------------------------------------------------------------------------------------------
def show_units(as_json: bool) -> None:
    """Every kind of unit with its faces and what it is; `dovetail units` has the checks beside them."""
    from hw import UNITS
    from verif.status import faces

    kinds = {cls.title: kind for kind, cls in UNITS.items()}
    rows = sorted((faces(kind) for kind in UNITS), key=lambda row: str(row["name"]))
    if as_json:
        print_json({"units": rows})
        return
    described = {cls.title: (cls.__doc__ or "").strip().splitlines()[0] for cls in UNITS.values()}
    table(
        "",
        ("unit", "executes", "cost", "golden", "RTL", "what it is"),
        (
            (
                str(row["name"]),
                ", ".join(sorted(UNITS[kinds[str(row["name"])]].executes)),
                *("yes" if row[face] else "not modelled" for face in ("cost", "golden", "rtl")),
                described[str(row["name"])],
            )
            for row in rows
        ),
    )


# Saved artefacts ----------------------------------------------------------------------------------------------------------
def read_json(path: Path) -> Any:
    """The JSON document in a file, gzipped or not. Raises `ShowError` naming the file and the place of the mistake."""
    try:
        raw = path.read_bytes()
        if raw[:2] == b"\x1f\x8b":
            raw = gzip.decompress(raw)
        return json.loads(raw.decode("utf-8"))
    except json.JSONDecodeError as error:
        raise ShowError(f"{path}: not valid JSON: {error}") from None
    except UnicodeDecodeError:
        raise ShowError(f"{path}: neither text nor gzip; expected a saved report, graph, mapping or program, or a device in YAML") from None
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise ShowError(f"{path}: a damaged gzip file ({error})") from None
    except OSError as error:
        raise ShowError(f"{path}: cannot be read ({error.strerror or error})") from None


def show_instructions(path: Path, as_json: bool) -> bool:
    """Prints an instruction file and its first instructions; False when the file is none."""
    try:
        with path.open("rb") as stream:
            start = stream.read(16)
    except OSError:
        return False  # the caller says what is wrong with the file
    from mapper.flightllm import binary

    if not binary.is_program(start):
        return False
    document, lines = binary.show(path.read_bytes(), str(path))
    if as_json:
        print_json(document)
        return True
    print("\n".join([*(f"{name}: {value}" for name, value in document.items()), "", *lines]))
    return True


def show_file(path: Path, as_json: bool) -> None:
    """A saved artefact: a report, graph, mapping or program in JSON, or a device in YAML. Raises `ShowError` for others."""
    if path.suffix in (".yaml", ".yml"):
        from hw import devices

        show_device(devices.load(path), as_json)
        return
    if show_instructions(path, as_json):
        return
    document = read_json(path)
    kind = document.get("type") if isinstance(document, dict) else None
    if kind not in ("report", "graph", "mapping", "program"):
        if isinstance(document, dict) and "traceEvents" in document:
            raise ShowError(f"{path}: a timeline; open it in Perfetto or chrome://tracing")
        raise ShowError(f"{path}: expected the `type` of a saved report, graph, mapping or program, found {kind!r}")
    where = str(path)
    if kind == "report":
        from dovetail.report import Report

        report = Report.from_json(document, where)
        if not as_json:
            show_report(report)
    elif kind == "graph":
        from workloads.graph import Graph

        graph = Graph.from_json(document, where)
        if not as_json:
            show_graph(graph)
    elif kind == "mapping":
        from mapper.mapping import Mapping

        mapping = Mapping.loads(json.dumps(document), where)
        if not as_json:
            print(f"mapping of {mapping.workload} on {mapping.device}")
            table("", ("operator", "unit", "mapping"), ((o.operator, o.unit, str(o)) for o in mapping.operators))
            if mapping.allocation:
                print("where tensors lie, and from which operator to which")
                table("", ("memory", "tensor", "offset", "size", "from", "to"), map(place_of, mapping.allocation))
    else:
        from mapper.program import Program

        program = Program.from_json(document, where)
        if not as_json:
            print(program)
    if as_json:
        print_json(document)


def place_of(one: Allocation) -> tuple[str, ...]:
    """The row of a tensor's place."""
    copies = f" x{integer(one.copies)}" if one.copies != 1 else ""
    found = f" ({percent(float(one.share))} found)" if one.offset_bytes is None else ""
    offset = integer(one.offset_bytes) if one.offset_bytes is not None else ""
    return one.memory, one.tensor, offset, f"{capacity(one.size_bytes)}{copies}{found}", one.first or "always", one.last


def show_report(report: Report) -> None:
    """The five lines and the operators, longest first."""
    print(f"{report.text()}\n")
    total = sum(row.total_fs for row in report.operators) or 1
    columns = ("operator", "share", "runs", "latency", "vs. bound", "bound", "unit", "FLOPs", "bytes", "mapping")
    table(
        "",
        columns,
        (
            (
                row.name,
                percent(row.total_fs / total),
                integer(row.count),
                seconds(row.latency_fs / 10**15),
                ratio(row.latency_fs / row.lower_bound_fs) if row.lower_bound_fs else "",
                row.bound,
                row.unit,
                decimal(row.flops, "").strip(),
                decimal(row.bytes, "B"),
                row.mapping,
            )
            for row in sorted(report.operators, key=lambda row: -row.total_fs)
        ),
        right=frozenset({"share", "runs", "latency", "vs. bound", "FLOPs", "bytes"}),
    )


def show_graph(graph: Graph) -> None:
    """What a graph computes, stores and moves, and its operators."""
    from workloads import cost

    print(f"{graph.name} {graph.phase}, batch {graph.batch}, {graph.tokens} new tokens, context {graph.context}")
    print(
        f"{integer(cost.parameters(graph))} parameters, {decimal(cost.role_bytes(graph, 'weight'), 'B')} of weights, "
        f"{decimal(cost.role_bytes(graph, 'kv_cache'), 'B')} of KV cache; {decimal(cost.total_flops(graph), 'FLOP')} in products, "
        f"{decimal(cost.total_vector_flops(graph), 'FLOP')} elsewhere"
    )
    for note in graph.notes:
        print(f"note: {note}")
    print()
    table(
        "",
        ("segment", "runs", "operator", "kind", "sizes", "FLOPs", "bytes"),
        (
            (
                segment.name,
                integer(segment.count),
                operator.name,
                operator.kind,
                " ".join(f"{key}={value}" for key, value in operator.attributes.items()),
                decimal(cost.flops(operator), "").strip(),
                decimal(cost.operator_bytes(graph, operator), "B"),
            )
            for segment in graph.segments
            for operator in segment.operators
        ),
        right=frozenset({"runs", "FLOPs", "bytes"}),
    )
