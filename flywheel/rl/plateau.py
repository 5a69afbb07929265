"""How long to train, and at which rate: until the curve says that no more comes of it.

    rate     1 ------------------.
                                  `-._            first constant, while the curve rises; once it does not any more, or at the
                                      `-._        middle of the bound, falling in a line to 0 over as many updates again
    updates  0        T                  2 T

A falling rate takes the noise out of the weights (warm-up, stable, decay: Hu et al., arXiv 2404.06395); its own curve decides about T.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

PATIENCE = 2  # points of the curve in a row that are no better than the best before them
WORSE = 3.0  # standard errors of a point below the best: so far below twice in a row, a curve is falling


@dataclass
class Plateau:
    """`bound` updates at most. `began` is where the rate began to fall, None before that."""

    bound: int
    began: int | None = None
    over: bool = False

    @property
    def end(self) -> int:
        """The updates after which training ends, as far as one knows."""
        return self.bound if self.began is None else min(self.bound, 2 * self.began)

    def rate(self, updates: int) -> float:
        """The share of the learning rate for the update after so many."""
        if self.began is None:
            return 1.0
        return max(0.0, 1 - (updates - self.began) / max(1, self.end - self.began))

    def saw(self, updates: int, success: Sequence[float], n: int) -> None:
        """Decide by a point of the curve, the last of `success`, each of n episodes: does the rate begin to fall, is training `over`?"""
        if self.began is None and (2 * updates >= self.bound or (n and level(success))):
            self.began = updates
        self.over = updates >= self.end or bool(n and falling(success, n))


def level(success: Sequence[float]) -> bool:
    """Was none of the last PATIENCE points better than the best before them?"""
    return len(success) > PATIENCE and max(success[-PATIENCE:]) <= max(success[:-PATIENCE]) and max(success) > 0


def falling(success: Sequence[float], n: int) -> bool:
    """Are the last PATIENCE points all far below the best, WORSE standard errors of a difference?"""
    best = max(success)
    error = (2 * max(best * (1 - best), 1 / n) / n) ** 0.5
    return len(success) > PATIENCE and all(best - s > WORSE * error for s in success[-PATIENCE:])
