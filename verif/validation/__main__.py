"""Rewrites the residuals that error bands are read from: `python -m verif.validation --data DIR`, after models have changed."""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path
from typing import Any

from verif.errors import VerificationError
from verif.validation.bands import SUMMARY, summarise
from verif.validation.score import evaluate
from verif.validation.sources import read

SOURCE = (
    "NVIDIA aiconfigurator (commit 095f58a51, Apache-2.0; vLLM 0.14.0, TensorRT-LLM 1.0.0 and 1.3.0rc10) and microsoft/vidur "
    "(commit 7d47513, MIT); the half of the shapes that no constant was fitted on"
)


def spelled(summary: dict[str, Any]) -> str:
    """The summary with one class per line."""
    head = "".join(f"  {json.dumps(key)}: {json.dumps(value)},\n" for key, value in summary.items() if key != "classes")
    classes = ",\n".join(f"    {json.dumps(found)}" for found in summary["classes"])
    return f'{{\n{head}  "classes": [\n{classes}\n  ]\n}}\n'


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m verif.validation", description="Summarise errors on held-out shapes.")
    parser.add_argument("--data", type=Path, required=True, help="measured latencies by the kernel clock")
    parser.add_argument("--out", type=Path, default=SUMMARY)
    parser.add_argument("--source", default=SOURCE)
    options = parser.parse_args()
    try:
        measured, _ = read(options.data)
        held_out = (m for m in measured if not m.fitted and m.clock == "kernel")
        summary = summarise(evaluate(held_out, progress=lambda text: print(text, file=sys.stderr)), options.source)
        temporary = options.out.with_name(f"{options.out.name}.new")
        temporary.write_text(spelled(summary), encoding="utf-8")
        os.replace(temporary, options.out)
    except (VerificationError, OSError) as error:
        print(f"validation: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("validation: interrupted; nothing was written", file=sys.stderr)
        return 130
    print(f"{options.out}: {len(summary['classes'])} classes")
    return 0


if __name__ == "__main__":
    sys.exit(main())
