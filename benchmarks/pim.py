"""CPU seconds of PIM kernels, closed form against command by command, and what extrapolating long streams costs in accuracy.

python benchmarks/pim.py             speed of the closed form and of the command engine
python benchmarks/pim.py --errors    clocks of folded streams against following every run
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).parents[1])  # `mapper.py` in this folder would hide the package of that name

from hw.pim.aim import Aim
from hw.pim.attacc import AttAcc
from hw.pim.hbm_pim import HbmPim
from hw.pim.kernel import Kernel
from hw.pim.logic import BundlePath
from hw.pim.neupims import NeuPims
from hw.pim.timeline import follow
from sim.pim import play


def kernels() -> Iterator[tuple[str, Callable[[], Kernel]]]:
    """Kernels of up to tens of millions of commands per channel."""
    yield "HBM-PIM, 28672 x 8192", lambda: HbmPim().product(28672, 8192)
    yield "HBM-PIM, 16384 x 16384, batch 64", lambda: HbmPim().product(16384, 16384, 64)
    yield "AiM, 28672 x 8192 on 32 channels", lambda: Aim(channels=32).product(28672, 8192)
    yield "AiM, 16384 x 4096 on 2 channels, batch 8", lambda: Aim().product(16384, 4096, 8)
    yield "AttAcc, 96 heads x batch 64 over 2048", lambda: AttAcc().attention(96 * 64, 2048, 128)
    yield "AttAcc, 8 heads x batch 256 over 32768, 8 queries", lambda: AttAcc(stacks=20).attention(8 * 256, 32768, 128, queries=8)
    yield "NeuPIMs, 32 heads x batch 256 over 1024", lambda: NeuPims().attention(32 * 256, 1024, 128)
    yield "bank bundles, 16 GiB", lambda: BundlePath().read(16 << 30)


def speed() -> None:
    play(HbmPim(channels=1).product(64, 128))  # compile, or load what was compiled before
    print(f"{'kernel':52}{'commands':>12}{'closed form':>13}{'commands':>11}{'Mcmd/s':>9}   clocks closed / by command")
    for name, make in kernels():
        start = time.process_time()
        kernel = make()
        clocks = kernel.clocks
        closed = time.process_time() - start
        start = time.process_time()
        played = play(kernel)
        exact = time.process_time() - start
        commands = sum(kernel.stream.counts().values())
        ratio = clocks / played.kernel_clocks - 1
        print(f"{name:52}{commands:12,}{closed:11.4f} s{exact:9.3f} s{commands / exact * 1e-6:9.1f}   {clocks} {ratio:+.4%}")


def errors() -> None:
    """Folded over exact clocks, in percent."""
    for name, make in kernels():
        kernel = make()
        exact = follow(kernel.channel, kernel.stream, exact=True).clocks
        print(f"{name:52}{kernel.clocks:14} {exact:14} {100 * (kernel.clocks / exact - 1):+.4f} %   followed {kernel.timed.followed:.1%}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--errors", action="store_true")
    errors() if parser.parse_args().errors else speed()
