"""What `make run` shows: Llama-2-7B on a data-centre GPU and on an edge NPU, prefill and decode, with their reports."""

from __future__ import annotations

import sys
from pathlib import Path

from dovetail.estimate import estimate
from workloads import catalogue

MODEL = "llama-2-7b"
DEVICES = ("a100-80g", "edge-npu")
TOKENS = 2048
FOLDER = Path("build") / "reports"


def main(folder: Path = FOLDER) -> int:
    """Traces the model from its real code, estimates it four times, prints each summary and writes a page and a timeline of each."""
    from workloads import tracer

    config = catalogue.describe(MODEL).hf_config()
    folder.mkdir(parents=True, exist_ok=True)
    written: list[Path] = []
    for phase in ("prefill", "decode"):
        print(f"tracing {MODEL} {phase} from its model code", file=sys.stderr, flush=True)
        graph = tracer.trace(config, name=MODEL, where=MODEL, phase=phase, batch=1, length=TOKENS)
        for device in DEVICES:
            report = estimate(graph, device=device)
            print(f"{report.text()}\n", flush=True)
            page, timeline = (folder / f"{MODEL}-{phase}-{device}.{suffix}" for suffix in ("html", "timeline.json"))
            report.save_html(page)
            report.save_trace(timeline)
            written += [page, timeline]
    print("reports (open in a browser) and timelines (open in Perfetto):")
    for path in written:
        print(f"  {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
