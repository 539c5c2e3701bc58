"""CPU seconds of FlightLLM at instruction level: one decode token, one prompt, a whole generation.

python benchmarks/flightllm.py
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).parents[1])  # `mapper.py` in this folder would hide the package of that name

from sim.flightllm import generate, run
from studies.flightllm import compiler


def timed(what: str, work: Callable[[], Any]) -> None:
    """Runs `work` and prints its CPU seconds."""
    start = time.process_time()
    found = work()
    print(f"{what:40} {time.process_time() - start:7.2f} s CPU   {found}")


def main() -> None:
    decode, prefill = compiler(), compiler(phase="prefill")  # tracing is not part of it
    for context in (144, 2048):
        timed(f"decode token, context {context}", lambda context=context: run(decode.compile(context), decode.device))  # type: ignore[misc]
    timed("prompt of 128 tokens", lambda: run(prefill.compile(128), prefill.device))
    timed("generation [128, 512]", lambda: generate(decode, 128, 512, prefill))


if __name__ == "__main__":
    main()
