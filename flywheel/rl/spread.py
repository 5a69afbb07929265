"""How far from what a policy surest does its candidates are drawn, decided by what became of episodes.

    noise of an episode = spread * N(0, I),      spread by the episode's seed, in shares of the round

At 0 a policy does what it does by itself; at 1 it acts as it was trained to, by chance. Which is better is the task's
business: where motions must be exact, sampled ones fail, however well critics choose among them; elsewhere critics need
the choice. Each spread is an arm of a bandit: a round's shares are the chance of each to be the best (Thompson,
Biometrika 1933), and what is scored and handed over is the best so far. A wider one may cost something, for critics
learn from what differs, but no more than the guard promises: where it would be further below the start than `below` it
has no such bonus (a conservative bandit's constraint: Wu et al., 1602.04282)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from flywheel.args import UsageError
from flywheel.rl.table import SPREADS

PRIOR = 8.0  # episodes at the base's success that each arm begins with
WIDER = 0.25  # of success that an episode at 1 may cost, against one at 0: critics learn from what differs
NEARLY = 0.05  # the same of who is handed over, who teaches nobody
MEMORY = 100  # episodes: so many later an outcome counts a third, for who acts has changed meanwhile
DRAWS = 2000


@dataclass(frozen=True)
class Shares:
    """The spreads of a round, each with its share of the episodes."""

    spreads: tuple[float, ...]
    shares: tuple[float, ...]
    key: int

    def of(self, seed: int) -> float:
        """The spread of the episode with this seed."""
        at = np.random.default_rng([0x5EED, self.key, seed]).random()
        return self.spreads[min(int(np.searchsorted(np.cumsum(self.shares), at, side="right")), len(self.spreads) - 1)]


class Spreads:
    """The bandit. `counts` [[won, lost]] of each spread are the caller's to keep; of equal arms the first is best.
    `below` is what practice may fall below its start's success (None: anything)."""

    def __init__(self, spreads: Sequence[float], seed: int, below: float | None = None):
        if not spreads or any(
            isinstance(s, bool) or not isinstance(s, (int, float)) or not 0 <= s <= 10 for s in spreads
        ):
            raise UsageError(f"collect.spreads={list(spreads)}; expected numbers from 0 to 10, such as {SPREADS}")
        self.spreads, self.seed, self.below = tuple(dict.fromkeys(float(s) for s in spreads)), seed, below
        self.counts = [[0.0, 0.0] for _ in self.spreads]

    def fade(self) -> None:
        """Someone else acts from now on: what was seen counts half."""
        for arm in self.counts:
            arm[:] = arm[0] / 2, arm[1] / 2

    def saw(self, episodes: Sequence) -> None:
        """Count what became of episodes by meta["spread"], but for what an environment spoilt."""
        for spread, arm in zip(self.spreads, self.counts, strict=True):
            won = [bool(e.success) for e in episodes if e.meta["spread"] == spread and "cause" not in e.meta]
            kept = (1 - 1 / MEMORY) ** len(episodes)
            arm[:] = arm[0] * kept + sum(won), arm[1] * kept + len(won) - sum(won)

    def told(self) -> dict[str, list[float]]:
        """The counts {spread: [won, lost]}, for a checkpoint whose critics they are of."""
        return {f"{s:g}": [round(n, 3) for n in arm] for s, arm in zip(self.spreads, self.counts, strict=True)}

    def _beta(self, base: float) -> tuple[np.ndarray, np.ndarray]:
        won, lost = np.array(self.counts).T
        return won + PRIOR * base + 0.5, lost + PRIOR * (1 - base) + 0.5

    def best(self, base: float | None) -> float:
        """The spread with the highest expected success, of nearly equal ones a wider."""
        a, b = self._beta(0.5 if base is None else base)
        worth = a / (a + b) + NEARLY * np.array(self.spreads)
        return self.spreads[int(np.argmax(np.round(worth, 12)))]

    def shares(self, base: float | None, round: int, begun: int = 0) -> Shares:
        """What a round is collected with from its episode `begun` on."""
        a, b = self._beta(0.5 if base is None else base)
        drawn = np.random.default_rng([self.seed, round, begun]).beta(a, b, (DRAWS, len(a)))
        bonus = WIDER * np.array(self.spreads)
        if base is not None and self.below is not None:
            bonus = np.where(drawn >= base - self.below, bonus, 0.0)
        drawn += bonus
        won = np.bincount(drawn.argmax(1), minlength=len(a)) / DRAWS
        return Shares(self.spreads, tuple(won.tolist()), self.seed * 100_003 + round)


def by_spread(episodes: Sequence) -> dict[str, str]:
    """What became of episodes, in words: {"0.5": "12 of 20"}."""
    told = {}
    for spread in sorted({e.meta["spread"] for e in episodes}, reverse=True):
        won = [bool(e.success) for e in episodes if e.meta["spread"] == spread]
        told[f"{spread:g}"] = f"{sum(won)} of {len(won)}"
    return told
