"""The card's clocks, power and temperature while it works, as its vendor's tool states them. Nothing is ever set."""

from __future__ import annotations

import subprocess
import threading
import time
from types import TracebackType
from typing import Any

PERIOD_MS = 100

FIELDS = ("clocks.sm", "clocks.mem", "power.draw", "temperature.gpu")

COLUMNS = ("sm_mhz", "memory_mhz", "power_w", "temperature_c")


class Telemetry:
    """Samples of one card from a tool that runs beside the measurements; without the tool there are none.

    As a context manager: the tool is started on entering and ended on leaving.
    """

    def __init__(self, card: str | None) -> None:
        self.card = card
        self.samples: list[tuple[float, tuple[float | None, ...]]] = []
        self._tool: subprocess.Popen[str] | None = None

    def __enter__(self) -> Telemetry:
        if self.card is not None:
            query = ["nvidia-smi", f"--id={self.card}", f"--query-gpu={','.join(FIELDS)}", "--format=csv,noheader,nounits"]
            command = [*query, f"--loop-ms={PERIOD_MS}"]
            try:
                self._tool = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
            except OSError:
                return self
            threading.Thread(target=self._listen, args=(self._tool,), daemon=True).start()
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None) -> None:
        if self._tool is not None:
            self._tool.terminate()
            try:
                self._tool.wait(timeout=5)
            except subprocess.TimeoutExpired:
                self._tool.kill()
                self._tool.wait()

    def _listen(self, tool: subprocess.Popen[str]) -> None:
        assert tool.stdout is not None
        for line in tool.stdout:
            self.take(line)

    def take(self, line: str) -> None:
        """Keeps one line of the tool; a cell that is no number (`[N/A]`) counts as unknown, and a line of another length as none."""
        cells = [cell.strip() for cell in line.split(",")]
        if len(cells) == len(FIELDS):
            self.samples.append((time.perf_counter(), tuple(_number(cell) for cell in cells)))

    def between(self, start: float, stop: float) -> dict[str, float | None]:
        """Means over a time (of `time.perf_counter`), of the last sample before it where none fell into it."""
        samples = list(self.samples)
        inside = [values for at, values in samples if start <= at <= stop]
        chosen = inside or [values for at, values in samples if at < start][-1:]
        out: dict[str, float | None] = {}
        for index, name in enumerate(COLUMNS):
            known = [value for values in chosen if (value := values[index]) is not None]
            out[name] = round(sum(known) / len(known), 1) if known else None
        return out


def _number(cell: str) -> float | None:
    try:
        return float(cell)
    except ValueError:
        return None


def card_of(torch: Any, device: str) -> str | None:
    """The identity of a CUDA device for the vendor's tool: its UUID, which does not depend on which devices are visible here. None
    where torch does not know it."""
    found = getattr(torch.cuda.get_device_properties(device), "uuid", None)
    if found is None:
        return None
    text = str(found)
    return text if text.startswith("GPU-") else f"GPU-{text}"
