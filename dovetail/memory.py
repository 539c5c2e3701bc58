"""The verb `memory`: a pattern through one channel of a memory preset, in numbers and as a load-latency curve."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from hw.dram import DramPreset
    from sim.dram import MemoryResult

PATTERNS = ("stream", "random", "stride", "mixed", "chunks", "triad")


def memory(
    preset: Annotated[
        str, typer.Argument(
            metavar="PRESET", help="DDR4-3200, HBM2-PC, ..., or a YAML file with the fields of your own: one channel of it is simulated."
        ),
    ],
    pattern: Annotated[str, typer.Option(metavar="|".join(PATTERNS), help="What is asked of it.")] = "stream",
    size: Annotated[str, typer.Option("--bytes", metavar="N", help="Bytes in all, such as 1048576 or '16 MiB'.")] = "16 MiB",
    chunk: Annotated[str, typer.Option(metavar="N", help="Bytes of a chunk, for the pattern chunks.")] = "4 KiB",
    stride: Annotated[
        str | None, typer.Option(metavar="N", help="Bytes between requests of the pattern stride. Default: next row of a bank.")
    ] = None,
    mapping: Annotated[
        str, typer.Option(metavar="row|interleaved|ORDER", help="Address mapping; ORDER as row-bank-column-bg.")
    ] = "interleaved",
    refresh: Annotated[str, typer.Option(metavar="on|off", help="All-bank refresh.")] = "on",
    mode: Annotated[str, typer.Option(metavar="burst|chunk", help="Every command, or bulk service.")] = "burst",
    write: Annotated[bool, typer.Option("--write", help="Write instead of read, for the patterns of one direction.")] = False,
    queue: Annotated[int, typer.Option(metavar="N", help="Bursts in the read and in the write queue.")] = 32,
    seed: Annotated[int, typer.Option(metavar="N", help="Seed of random patterns.")] = 0,
    picture: Annotated[Path | None, typer.Option(metavar="FILE.svg|png", help="Draw the load-latency curve.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """Achieved bandwidth, row hits, latency and the limiting rule of a memory under a pattern of addresses."""
    from hw import dram
    from hw.errors import HardwareError, nearest
    from hw.quantity import CAPACITY, parse
    from sim.dram import simulate

    chosen = dram.preset_file(preset) if preset.endswith((".yaml", ".yml")) else dram.preset(preset)
    if refresh not in ("on", "off"):
        raise HardwareError(f"--refresh: expected on or off, not {refresh!r}{nearest(refresh, ('on', 'off'))}")
    if picture is not None:
        check_picture(picture)
    numbers: dict[str, int] = {}
    for option, text in (("bytes", size), ("chunk", chunk), ("stride", stride)):
        try:
            numbers[option] = 0 if text is None else int(parse(text, CAPACITY))
        except HardwareError as error:
            raise HardwareError(f"--{option}: {error}") from None
    result = simulate(
        chosen,
        pattern,
        numbers["bytes"],
        chunk_bytes=numbers["chunk"],
        stride_bytes=numbers["stride"],
        mapping=mapping,
        refresh=refresh == "on",
        mode=mode,
        queue=queue,
        write=write,
        seed=seed,
    )
    if picture is not None:
        draw(chosen, picture, mapping=mapping, refresh=refresh == "on", seed=seed)
        print(f"picture: {picture}", file=sys.stderr)
    if as_json:
        print(json.dumps(result.to_json(), indent=2, allow_nan=False))
    else:
        print("\n".join(lines(chosen, result)))


def lines(preset: DramPreset, result: MemoryResult) -> list[str]:
    """The result in words, one fact a line."""
    from dovetail.human import capacity, digits, integer, joules, percent, seconds

    latency = result.latency_ns
    out = [
        f"{result.preset} {result.pattern}, {capacity(result.bytes)} in {seconds(result.time_s)} ({result.mode} mode)",
        f"bandwidth   {digits(result.bandwidth_gbps)} GB/s, {percent(result.fraction)} of the peak of {digits(result.peak_gbps)} GB/s",
        f"limited by  {result.limited_by}",
        f"rows        {integer(result.activates)} activates, {integer(result.row_hits)} row hits, {integer(result.refreshes)} refreshes",
        f"latency     mean {digits(latency.mean)} ns, median {digits(latency.p50)} ns, 99th percentile {digits(latency.p99)} ns",
    ]
    lost = sorted(((share, reason) for reason, share in result.lost.items() if share >= 0.005), reverse=True)
    if lost:
        out.append(f"bus idle    {', '.join(f'{percent(share)} {reason}' for share, reason in lost)}")
    if result.energy_j is None:
        out.append("energy      not modelled: no published energy per command for this preset")
    else:
        known = ", ".join(f"{name} {joules(part)}" for name, part in result.energy_parts.items() if part)
        missing = ", ".join(name for name, part in result.energy_parts.items() if part is None)
        out.append(f"energy      {joules(result.energy_j)}: {known}" + (f"; not modelled: {missing}" if missing else ""))
    out.append(f"source      {preset.source}")
    return out


def check_picture(path: Path) -> None:
    """Refuses a picture that could not be written, before anything is computed."""
    from dovetail.files import check_writable
    from hw.errors import HardwareError, nearest

    if path.suffix not in (".svg", ".png"):
        raise HardwareError(f"--picture: expected a file ending in .svg or .png, not {str(path)!r}{nearest(path.suffix, ('.svg', '.png'))}")
    check_writable(path)


def draw(preset: DramPreset, path: Path, *, mapping: str, refresh: bool, seed: int) -> None:
    """Writes the load-latency curve of random reads: mean and 99th percentile against the bandwidth reached."""
    import io

    import matplotlib
    from matplotlib.figure import Figure

    from hw.dram import idle_latency_fs
    from sim.dram import load_latency

    curve = load_latency(preset, mapping=mapping, refresh=refresh, seed=seed)
    figure = Figure(figsize=(6.4, 4.0), layout="constrained")
    axes: Any = figure.subplots()
    bandwidth = [point[0] for point in curve]
    axes.plot(bandwidth, [point[1] for point in curve], marker="o", color="#4477aa", label="mean")
    axes.plot(bandwidth, [point[2] for point in curve], marker="s", color="#ee6677", label="99th percentile")
    axes.axhline(idle_latency_fs(preset, "closed") * 1e-6, color="#717273", linestyle=":", label="idle, closed row")
    axes.axvline(float(preset.peak) * 1e-9, color="#717273", linestyle="--", label="peak")
    axes.set_yscale("log")
    axes.set_xlim(left=0)
    axes.set_xlabel("bandwidth (GB/s)")
    axes.set_ylabel("latency (ns)")
    axes.set_title(f"{preset.name}: random reads of 64 B, refresh {'on' if refresh else 'off'}")
    axes.legend(frameon=False)
    buffer = io.BytesIO()
    kind = path.suffix[1:]
    with matplotlib.rc_context({"svg.hashsalt": "dovetail", "svg.fonttype": "none"}):
        figure.savefig(buffer, format=kind, dpi=150, metadata={"Date": None} if kind == "svg" else None)
    temporary = path.with_name(f".{path.name}.part")
    try:
        temporary.write_bytes(buffer.getvalue())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
