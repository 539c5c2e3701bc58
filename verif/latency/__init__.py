"""Records how long operators take on this machine, with torch and numpy alone.

    python -m verif.latency --device cuda --out measured/        a designed set, in at most eight minutes
    dovetail validate --data measured/                           compares predictions with it

The set is in `cases`, the clocks in `timing`, the card's own clocks and power in `telemetry`, and the files in `recorder`.
"""

from verif.latency.recorder import record_latency

__all__ = ["record_latency"]
