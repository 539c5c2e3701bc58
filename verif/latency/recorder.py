"""Measures the set on this machine and writes it: `latency.csv`, which `dovetail validate --data` reads, and `provenance.json`."""

from __future__ import annotations

import csv
import difflib
import gc
import io
import json
import re
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from verif.errors import VerificationError
from verif.latency import timing
from verif.latency.cases import NOT_RECORDED, SIZES, Call, Case, build, designed, tiny
from verif.latency.telemetry import COLUMNS as CARD_COLUMNS
from verif.latency.telemetry import Telemetry, card_of
from verif.record import origin, write_atomically

BUDGET_S = 480.0
"""Time that the whole set may take."""

COLD_TIMES = 3
"""Sets of operands that take turns fill the cache so many times: none is found again."""

MOST_SETS = 256
"""Operands too small for so many sets to fill the cache are measured warm only."""

MOST_BYTES = 4 << 30
"""All sets of operands together, at most, and no more than a quarter of the device's memory."""

HOST_CACHE = 64 << 20
"""Cache of a processor, where the device is one: an assumption."""

CARDS = {
    "NVIDIA A100-SXM4-80GB": "a100-80g",
    "NVIDIA A100-SXM4-40GB": "a100-40g",
    "NVIDIA H100 80GB HBM3": "h100-sxm",
    "NVIDIA H100 PCIe": "h100-pcie",
    "NVIDIA H200": "h200-sxm",
    "NVIDIA B200": "b200",
    "NVIDIA L40S": "l40s",
    "NVIDIA L4": "l4",
    "NVIDIA A10": "a10",
    "NVIDIA RTX A6000": "a6000",
    "NVIDIA GeForce RTX 4090": "rtx-4090",
    "Tesla T4": "t4",
    "Tesla V100S-PCIE-32GB": "v100s",
    "AMD Instinct MI210": "mi210",
    "AMD Instinct MI250": "mi250",
    "AMD Instinct MI300X": "mi300x",
}
"""Described devices by the name that their driver gives them."""

COLUMNS = (
    "device",
    "card",
    "operator",
    "dtype",
    "clock",
    "latency_us",
    "copies",
    "host_us",
    *SIZES,
    "p10_us",
    "p90_us",
    "calls",
    "spans",
    *CARD_COLUMNS,
)

Progress = Callable[[str], None]


def record_latency(
    out: Path, device: str, budget_s: float = BUDGET_S, progress: Progress | None = None, cases: Iterable[Case] | None = None
) -> dict[str, Any]:
    """Measures `cases` (the designed set on a GPU, tiny ones elsewhere) and says what was written.

    What the time does not suffice for, or the device cannot run, is counted and named in the provenance. On interruption the rows until
    then are written. Raises `VerificationError` for a device that is not there and for a folder that cannot be written.
    """
    torch = _torch()
    cuda = _check(torch, device)
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise VerificationError(f"--out: {out}: cannot be made ({error.strerror})") from None
    if cuda:
        torch.cuda.set_device(device)
    wanted = list(cases) if cases is not None else list(designed() if cuda else tiny())
    session = Session(torch, device, cuda, budget_s, progress or (lambda text: None))
    with Telemetry(card_of(torch, device) if cuda else None) as session.telemetry:
        interrupted = False
        try:
            session.run(wanted)
        except KeyboardInterrupt:
            interrupted = True
            raise
        finally:
            files = _write(out, session, interrupted)
    counts: dict[str, int] = {}
    for row in session.rows:
        counts[row["operator"]] = counts.get(row["operator"], 0) + 1
    return {
        "files": [str(path) for path in files],
        "card": session.card,
        "rows": len(session.rows),
        "rows_by_operator": counts,
        "skipped": [f"{label}: {why}" for label, why in session.skipped],
        "not_reached": session.not_reached,
        "elapsed_s": round(session.elapsed_s, 1),
    }


class Session:
    """One recording: its rows, what was skipped, and the time it has left."""

    def __init__(self, torch: Any, device: str, cuda: bool, budget_s: float, progress: Progress) -> None:
        self.torch, self.device, self.cuda, self.budget_s, self.progress = torch, device, cuda, budget_s, progress
        self.telemetry = Telemetry(None)
        self.started = time.perf_counter()
        self.rows: list[dict[str, Any]] = []
        self.skipped: list[tuple[str, str]] = []
        self.not_reached = 0
        self.host_us: dict[str, float] = {}
        self.origin = origin(device)
        self.card = str(self.origin["card"])
        self.name = CARDS.get(self.card, "") if cuda else ""
        self.cache, self.memory = _sizes(torch, device) if cuda else (HOST_CACHE, 8 << 30)

    @property
    def elapsed_s(self) -> float:
        return time.perf_counter() - self.started

    def run(self, cases: list[Case]) -> None:
        """Measures the cases in order until the time is over."""
        torch = self.torch
        torch.manual_seed(0)
        with torch.no_grad():
            for number, case in enumerate(cases):
                if self.elapsed_s > self.budget_s:
                    self.not_reached = len(cases) - number
                    return
                self.progress(f"{number + 1}/{len(cases)} {case.label}")
                try:
                    for row in self._measure(case):
                        self.rows.append(row)
                except (RuntimeError, NotImplementedError, TypeError, AttributeError) as error:  # torch says so in all of these
                    self.skipped.append((case.label, str(error).strip().split("\n")[0] or type(error).__name__))
                    with suppress(RuntimeError):
                        timing.wait(torch, self.cuda)
                gc.collect()
                if self.cuda:
                    torch.cuda.empty_cache()

    def _measure(self, case: Case) -> Iterator[dict[str, Any]]:
        """Rows of one case: kernels with a warm cache where its operands fit into it, and with a cold one; then the other clocks, warm."""
        torch, cuda = self.torch, self.cuda
        single = [held(build(case, torch, self.device))]
        if cuda:
            if not case.cold or case.size_bytes <= self.cache:
                yield self._timed(case, "kernel", 1, lambda: timing.kernel(torch, single))
            if case.cold and (sets := self._sets(case.size_bytes)):
                more = [held(build(case, torch, self.device)) for _ in range(sets - 1)]
                yield self._timed(case, "kernel", 0, lambda: timing.kernel(torch, [*single, *more]))
                del more
        if "launch" in case.clocks:
            yield self._timed(case, "launch", 1, lambda: timing.launch(torch, cuda, single))
        if "host" in case.clocks:
            yield self._timed(case, "host", 1, lambda: timing.host(torch, cuda, single))

    def _sets(self, size_bytes: int) -> int:
        """Sets of operands that take turns so that none is found in the cache again; 0 where there is no room for as many."""
        size = max(1, size_bytes)
        fill = max(2, -(-COLD_TIMES * self.cache // size) + 1)
        room = max(2, min(MOST_BYTES, self.memory // 4) // size)
        return fill if fill <= min(room, MOST_SETS) else 0

    def _timed(self, case: Case, clock: str, copies: int, measure: Callable[[], timing.Timing]) -> dict[str, Any]:
        start = time.perf_counter()
        found = measure()
        telemetry = self.telemetry.between(start, time.perf_counter())
        micro = found.median_s * 1e6
        if case.operator == "empty":
            self.host_us[clock] = micro
        row: dict[str, Any] = {
            "device": self.name,
            "card": self.card,
            "operator": case.operator,
            "dtype": case.dtype,
            "clock": clock,
            "latency_us": f"{micro:.4g}" if micro < 1000 else f"{micro:.1f}",
            "copies": copies,
            "host_us": f"{self.host_us[clock]:.4g}" if clock != "kernel" and clock in self.host_us else "",
            **case.shape,
            "p10_us": f"{found.p10_s * 1e6:.4g}",
            "p90_us": f"{found.p90_s * 1e6:.4g}",
            "calls": found.calls,
            "spans": found.spans,
        }
        return {name: "" if value is None else value for name, value in {**row, **telemetry}.items()}


def held(call: Call) -> Call:
    """A call whose result stays until the next: sets that take turns write their results to places of their own."""
    kept: list[object] = []

    def run() -> None:
        kept[:] = [call()]

    return run


def _torch() -> Any:
    try:
        import torch
    except ImportError:
        raise VerificationError("recording needs the Python package 'torch'; install it with: pip install torch") from None
    return torch


def _check(torch: Any, device: str) -> bool:
    """Whether a device is a GPU. Raises `VerificationError` for one that is not there."""
    if not re.fullmatch(r"cpu|cuda(:\d+)?", device):
        close = difflib.get_close_matches(device, ("cpu", "cuda"), 1)
        hint = f"; did you mean `{close[0]}`?" if close else ""
        raise VerificationError(f"--device: expected cpu, cuda or cuda:N, not {device!r}{hint}")
    if device == "cpu":
        return False
    if not torch.cuda.is_available():
        raise VerificationError(f"--device {device}: torch {torch.__version__} sees no GPU on this machine; cpu records tiny cases")
    index = int(device.partition(":")[2] or 0)
    if index >= torch.cuda.device_count():
        raise VerificationError(f"--device {device}: this machine has {torch.cuda.device_count()} GPUs, numbered from 0")
    return True


def _sizes(torch: Any, device: str) -> tuple[int, int]:
    """Bytes of the second-level cache and of the memory."""
    properties = torch.cuda.get_device_properties(device)
    return int(getattr(properties, "L2_cache_size", 0)) or HOST_CACHE, int(properties.total_memory)


def _write(out: Path, session: Session, interrupted: bool) -> list[Path]:
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(session.rows)
    document = {
        "schema": 1,
        "type": "latencies",
        **session.origin,
        "described_as": session.name or None,
        "cache_bytes": session.cache,
        "clocks": {
            "kernel": "CUDA events around replays of a CUDA graph, divided by its calls",
            "launch": "the same around calls that the host issues one after the other",
            "host": "wall clock of one call and the wait for it",
        },
        "copies": {"1": "operands of the call before are still in the cache", "0": "operands take turns until none is found there again"},
        "host_us": "the same clock's time of a call that adds two numbers",
        "not_recorded": NOT_RECORDED,
        "skipped": [{"case": label, "why": why} for label, why in session.skipped],
        "not_reached": session.not_reached,
        "interrupted": interrupted,
        "elapsed_s": round(session.elapsed_s, 1),
    }
    files = [(out / "latency.csv", text.getvalue()), (out / "provenance.json", json.dumps(document, indent=2) + "\n")]
    try:
        for path, content in files:
            write_atomically(path, content.encode())
    except OSError as error:
        raise VerificationError(f"--out: {out}: cannot be written ({error.strerror})") from None
    return [path for path, _ in files]
