"""Concurrent transfers over shared links: every flow gets its max-min fair share at every moment. Time is exact femtoseconds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction

from hw.errors import HardwareError, nearest
from hw.links import LinkSpec


@dataclass(frozen=True)
class Flow:
    """`size_bytes` that arrive at `start_fs` and take `path`, the names of directed links, from end to end."""

    name: str
    path: tuple[str, ...]
    size_bytes: int
    start_fs: int = 0


def fair_shares(paths: Sequence[tuple[str, ...]], rates: Mapping[str, Fraction]) -> list[Fraction]:
    """Bytes per second of each flow: no flow can get more without one that has less getting even less (max-min fairness).

    By progressive filling: the link with the least left per flow fixes the share of its flows, and so on.
    """
    share = [Fraction(0)] * len(paths)
    left = {link: rates[link] for path in paths for link in path}
    open_flows = set(range(len(paths)))
    while open_flows:
        users = {link: [i for i in sorted(open_flows) if link in paths[i]] for link in left}
        tight = min((link for link in users if users[link]), key=lambda link: (left[link] / len(users[link]), link))
        level = left[tight] / len(users[tight])
        for flow in users[tight]:
            share[flow] = level
            open_flows.remove(flow)
            for link in set(paths[flow]):
                left[link] -= level
        del left[tight]
    return share


def transfer_all(links: Mapping[str, LinkSpec], flows: Sequence[Flow]) -> dict[str, int]:
    """When the last byte of each flow is received, in femtoseconds.

    Shares change only when a flow starts or ends; the latency of every link of the path is added once. Deterministic.
    Raises `HardwareError` for a link that does not exist, a flow without bytes or path, or two flows of one name.
    """
    for flow in flows:
        if not flow.path or flow.size_bytes < 1 or flow.start_fs < 0:
            raise HardwareError(f"flow {flow.name!r}: expected a path, at least one byte and no negative start, found {flow}")
        for link in flow.path:
            if link not in links:
                raise HardwareError(
                    f"flow {flow.name!r}: there is no link {link!r}; links are {', '.join(links) or 'none'}{nearest(link, links)}"
                )
    if len({flow.name for flow in flows}) != len(flows):
        raise HardwareError("two flows have the same name")
    rates = {name: link.rate / 10**15 for name, link in links.items()}  # bytes per femtosecond
    waiting = sorted(range(len(flows)), key=lambda i: (flows[i].start_fs, i))
    left = [Fraction(flow.size_bytes) for flow in flows]
    running: list[int] = []
    ends: dict[str, int] = {}
    now = Fraction(0)
    while waiting or running:
        if not running:
            now = max(now, Fraction(flows[waiting[0]].start_fs))
        while waiting and flows[waiting[0]].start_fs <= now:
            running.append(waiting.pop(0))
        share = fair_shares([flows[i].path for i in running], rates)
        done = min(left[i] / rate for i, rate in zip(running, share, strict=True))
        step = min(done, flows[waiting[0]].start_fs - now) if waiting else done
        now += step
        for i, rate in zip(list(running), share, strict=True):
            left[i] -= rate * step
            if left[i] == 0:
                running.remove(i)
                latency = sum(links[link].latency for link in flows[i].path)
                ends[flows[i].name] = -int(-now // 1) + latency
    return {flow.name: ends[flow.name] for flow in flows}
