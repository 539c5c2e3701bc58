"""Which experts tokens go to: the rows of every expert in every layer of an iteration.

`uniform` and `zipf:S` (popularity 1 / rank^S, ranks shuffled layer by layer) choose `top_k` distinct experts for every token and
layer independently; a trace replays recorded tokens in a ring: JSON lines, one token each, a list for every layer with the experts
that it went to.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from functools import cached_property
from itertools import combinations, permutations
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from dovetail.serving.errors import ServingError

Counts = np.ndarray[Any, np.dtype[np.int64]]
MOST_SUBSETS = 4096
"""Sets of `top_k` experts up to which a batch is drawn set by set: one multinomial for every layer."""
MOST_KEYS = 1 << 22
"""Random keys up to which every token chooses by itself where there are more sets; beyond, experts are drawn one by one."""


class Routing(Protocol):
    """A source of expert histograms."""

    def draw(self, tokens: int) -> Counts: ...

    def several(self, tokens: int, times: int) -> list[Counts]: ...


def parse(text: str, layers: int, experts: int, top_k: int, rng: np.random.Generator) -> Routing:
    """`uniform`, `zipf:S`, or the path of a trace. Raises `ServingError`."""
    name, colon, exponent = text.partition(":")
    if text == "uniform":
        return Independent(np.full((1, experts), 1 / experts), layers, top_k, rng)
    if name == "zipf":
        try:
            power = float(exponent) if colon else math.nan
        except ValueError:
            power = math.nan
        if not 0 <= power <= 16:
            raise ServingError(f"--routing: expected zipf:S with an exponent of 0 to 16, such as zipf:1, not {text!r}")
        shares = np.arange(1, experts + 1, dtype=float) ** -power
        rows = np.stack([rng.permutation(shares / shares.sum()) for _ in range(layers)])
        return Independent(rows, layers, top_k, rng)
    path = Path(text)
    if not path.is_file():
        raise ServingError(f"--routing: expected uniform, zipf:S or a trace file; {text!r} is neither and there is no such file")
    return Replay(read_trace(path, layers, experts, top_k), experts)


@dataclass(frozen=True)
class _Sets:
    """Every set of experts that a token can choose: its `members` [sets, top_k], the same as rows of zeros and ones in `table`
    [sets, experts], and its `odds` [1 or layers, sets], the sum over the orders in which it can be chosen."""

    members: Counts
    table: Counts
    odds: np.ndarray[Any, Any]


@dataclass
class Independent:
    """Every token chooses `top_k` distinct experts of a layer, one after the other, by their shares [1 or layers, experts]."""

    shares: np.ndarray[Any, Any]
    layers: int
    top_k: int
    rng: np.random.Generator

    @property
    def experts(self) -> int:
        return int(self.shares.shape[1])

    @cached_property
    def _sets(self) -> _Sets | None:
        """Every set of experts and its odds; None where there are too many."""
        if math.comb(self.experts, self.top_k) > MOST_SUBSETS or self.top_k > 3:
            return None
        members = np.array(list(combinations(range(self.experts), self.top_k)), dtype=np.int64)
        table = np.zeros((len(members), self.experts), dtype=np.int64)
        np.put_along_axis(table, members, 1, axis=1)
        odds = np.zeros((len(self.shares), len(members)))
        for column, chosen in enumerate(members.tolist()):
            for order in permutations(chosen):
                chance, left = np.ones(len(self.shares)), np.ones(len(self.shares))
                for expert in order:
                    chance = chance * self.shares[:, expert] / np.maximum(left, 1e-300)
                    left = left - self.shares[:, expert]
                odds[:, column] += chance
        return _Sets(members, table, odds / odds.sum(axis=1, keepdims=True))

    def draw(self, tokens: int) -> Counts:
        """Rows of every expert for so many tokens, [layers, experts]."""
        sets = self._sets
        if sets is not None and tokens < len(sets.table):
            one: Counts = self._by_token(sets, tokens, 1)[0]
            return one
        if sets is not None:
            if len(sets.odds) == 1:
                drawn = self.rng.multinomial(tokens, sets.odds[0], size=self.layers)
            else:
                drawn = np.stack([self.rng.multinomial(tokens, odds) for odds in sets.odds])
            return np.asarray(drawn @ sets.table, dtype=np.int64)
        if tokens * self.layers * self.experts <= MOST_KEYS:
            with np.errstate(divide="ignore"):
                keys = np.log(self.shares)[:, None, :] + self.rng.gumbel(size=(self.layers, tokens, self.experts))
            chosen = np.argpartition(-keys, self.top_k - 1, axis=2)[..., : self.top_k].reshape(self.layers, -1)
            offsets = np.arange(self.layers)[:, None] * self.experts
            counts = np.bincount((chosen + offsets).ravel(), minlength=self.layers * self.experts)
            return counts.reshape(self.layers, self.experts)
        shares = np.broadcast_to(self.shares, (self.layers, self.experts))
        return np.stack([self._one_by_one(tokens, row) for row in shares])

    def several(self, tokens: int, times: int) -> list[Counts]:
        """What so many draws give."""
        sets = self._sets
        if sets is not None and tokens < len(sets.table):
            return list(self._by_token(sets, tokens, times))
        if times > 1 and len(self.shares) == 1 and sets is not None:
            drawn = self.rng.multinomial(tokens, sets.odds[0], size=self.layers * times) @ sets.table
            return list(np.asarray(drawn, dtype=np.int64).reshape(times, self.layers, self.experts))
        return [self.draw(tokens) for _ in range(times)]

    def _by_token(self, sets: _Sets, tokens: int, times: int) -> Counts:
        """Every token draws its set of experts, [times, layers, experts]."""
        drawn, ends = self.rng.random((times, self.layers, tokens)), np.cumsum(sets.odds, axis=1)
        if len(ends) == 1:
            found = np.searchsorted(ends[0], drawn, side="right")
        else:
            found = np.stack([np.searchsorted(row, drawn[:, layer], side="right") for layer, row in enumerate(ends)], axis=1)
        chosen = sets.members[np.minimum(found, len(sets.members) - 1)].reshape(times * self.layers, -1)
        offsets = np.arange(times * self.layers)[:, None] * self.experts
        counts = np.bincount((chosen + offsets).ravel(), minlength=times * self.layers * self.experts)
        return counts.reshape(times, self.layers, self.experts)

    def _one_by_one(self, tokens: int, shares: np.ndarray[Any, Any]) -> Counts:
        """Expert by expert without regard to which tokens have chosen it, none of them more often than there are tokens."""
        counts = np.zeros(len(shares), dtype=np.int64)
        left = tokens * self.top_k
        while left:
            room = counts < tokens
            odds = np.where(room, shares, 0)
            odds = odds / odds.sum() if odds.sum() > 0 else room / room.sum()
            counts += self.rng.multinomial(left, odds)
            over = np.maximum(counts - tokens, 0)
            counts -= over
            left = int(over.sum())
        return counts


@dataclass
class Replay:
    """Recorded tokens in a ring. `chosen` is [tokens, layers, top_k]."""

    chosen: Counts
    experts: int
    at: int = field(default=0)

    @cached_property
    def _sums(self) -> Counts:
        """Rows of every expert up to each token, [tokens + 1, layers, experts]."""
        tokens, layers, _ = self.chosen.shape
        hot = np.zeros((tokens + 1, layers, self.experts), dtype=np.int64)
        rows, columns = np.indices(self.chosen.shape)[:2]
        np.add.at(hot, (rows + 1, columns, self.chosen), 1)
        return np.cumsum(hot, axis=0)

    def draw(self, tokens: int) -> Counts:
        size, sums = len(self.chosen), self._sums
        turns, rest = divmod(tokens, size)
        end = self.at + rest
        found = turns * sums[-1] + (sums[end] - sums[self.at] if end <= size else sums[-1] - sums[self.at] + sums[end - size])
        self.at = end % size
        return np.asarray(found)

    def several(self, tokens: int, times: int) -> list[Counts]:
        return [self.draw(tokens) for _ in range(times)]


def read_trace(path: Path, layers: int, experts: int, top_k: int) -> Counts:
    """Recorded choices [tokens, layers, top_k]. Raises `ServingError` naming the line."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ServingError(f"{path}: cannot be read ({getattr(error, 'strerror', None) or 'not a text file'})") from None
    tokens = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        where = f"{path}:{number}"
        try:
            token = json.loads(line)
        except json.JSONDecodeError as error:
            raise ServingError(f"{where}: not valid JSON ({error.msg}); expected a list for every layer such as [[0, 3], [1, 2]]") from None
        if not isinstance(token, list) or len(token) != layers:
            found = f"{len(token)} lists" if isinstance(token, list) else repr(token)
            raise ServingError(f"{where}: expected a list for each of {layers} layers with experts, found {found}")
        for layer, chosen in enumerate(token):
            fine = isinstance(chosen, list) and len(chosen) == top_k and all(type(e) is int and 0 <= e < experts for e in chosen)
            if not fine or len(set(chosen)) != top_k:
                raise ServingError(f"{where}: layer {layer}: expected {top_k} different experts of 0 to {experts - 1}, found {chosen!r}")
        tokens.append(token)
    if not tokens:
        raise ServingError(f"{path}: has no tokens, expected one line for each")
    return np.array(tokens, dtype=np.int64)
