"""Areas from our synthesis beside the published ones, with the cells of both sides: `python benchmarks/units.py`."""

from __future__ import annotations

import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).parents[1])  # `mapper.py` in this folder would hide the package of that name

from studies.unit_areas import RATIOS, cells


def main() -> None:
    print(f"{'ratio':52}{'cells':>10}{'over':>10}{'ours':>8}   published")
    for ratio in RATIOS:
        ours = "not synthesised" if ratio.ours is None else f"{ratio.ours:.2f}"
        print(f"{ratio.name:52}{cells(ratio.left) or '-':>10}{cells(ratio.right) or '-':>10}{ours:>8}   {ratio.published} ({ratio.source})")


if __name__ == "__main__":
    main()
