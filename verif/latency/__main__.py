"""The recorder without the command line of Dovetail, for a machine that has torch and numpy alone."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from verif.errors import VerificationError
from verif.latency.recorder import BUDGET_S, record_latency


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m verif.latency", description="Record how long operators take on this machine.")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--budget", type=float, default=BUDGET_S, metavar="SECONDS")
    options = parser.parse_args()
    try:
        found = record_latency(options.out, options.device, options.budget, lambda text: print(text, file=sys.stderr))
    except VerificationError as error:
        print(f"latency: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("latency: interrupted; what was measured until then is in the folder, no file was left half-written", file=sys.stderr)
        return 130
    for name, value in found.items():
        print(f"{name}: {value}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
