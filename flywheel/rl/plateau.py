"""How long to train, and at which rate: until the curve says that no more comes of it.

    rate     1 --.
                  `.           .              a cosine to 0 over the first half of the bound; if it still rises there, a
                    `.        1/2`.           further cycle of a quarter, and another
                      `--.___     `--.___
    updates  0          bound/2    3 bound/4    bound

A rate that falls to nothing takes the noise out of the weights, so that the ends of cycles can be compared (warm
restarts: Loshchilov and Hutter, arXiv 1608.03983). On a hundred demonstrations longer is worse, not better: the net
learns them by heart.

In rounds, where data grow, the rate is kept for two thirds and then falls in a line (`decayed`; Hagele et al., arXiv
2405.18392)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

KEPT = 2 / 3  # of rounds: the rate falls from here on
FLOOR = 0.01  # to this share
WORSE = 3.0  # standard errors below the best: so far below it twice in a row, a curve is falling


@dataclass
class Plateau:
    """`bound` updates at most; training is `over` where the curve decided so."""

    bound: int
    over: bool = False

    def cycle(self, updates: int) -> tuple[int, int, float]:
        """The cycle of the update after so many: (its first update, its length, the rate that it begins at)."""
        half, quarter = max(1, self.bound // 2), max(1, self.bound // 4)
        if updates < half:
            return 0, half, 1.0
        return half + (updates - half) // quarter * quarter, quarter, 0.5

    def rate(self, updates: int) -> float:
        """The share of the learning rate for the update after so many."""
        first, length, peak = self.cycle(updates)
        return peak * 0.5 * (1 + math.cos(math.pi * (updates - first) / length))

    def saw(self, updates: int, success: Sequence[float], n: int) -> None:
        """Decide by a point of the curve, the last of `success`, each of n episodes."""
        self.judge(updates, rising(success, n), falling(success, n))

    def judge(self, updates: int, up: bool, down: bool) -> None:
        """Decide by what the curve does after so many updates: is it rising still, is it falling?"""
        ends = updates >= self.bound or (updates > 1 and self.cycle(updates)[0] == updates)
        self.over = (ends and not up) or updates >= self.bound or down


def decayed(done: float) -> float:
    """The share of the learning rate when this share of the rounds is behind."""
    return min(1.0, max(FLOOR, (1 - done) / (1 - KEPT)))


def moves(errors: Sequence[Sequence[float]]) -> tuple[bool, bool]:
    """Of a curve of errors, each of the same n episodes: (is the last point better than all before, by more than the
    error of the difference; are the last two far worse than the best?)."""
    means = [float(np.mean(one)) for one in errors]

    def behind(point: int, other: int) -> float:
        """How many standard errors `point` is worse than `other`."""
        gap = np.asarray(errors[point]) - np.asarray(errors[other])
        return float(gap.mean() / max(gap.std(ddof=min(1, len(gap) - 1)) / math.sqrt(len(gap)), 1e-12))

    last, best = len(means) - 1, int(np.argmin(means))
    before = int(np.argmin(means[:-1])) if last else None
    up = before is None or behind(before, last) > 1.0
    return up, last > 1 and best < last - 1 and min(behind(last, best), behind(last - 1, best)) > WORSE


def error(rate: float, n: int) -> float:
    """The standard error of the difference of two rates near `rate`, of n episodes each."""
    return math.sqrt(2 * max(rate * (1 - rate), 1 / n) / n)


def rising(success: Sequence[float], n: int) -> bool:
    """Is the last point better than all before it, by more than the error of a difference?"""
    return n > 0 and success[-1] > max(success[:-1], default=0.0) + error(success[-1], n)


def falling(success: Sequence[float], n: int) -> bool:
    """Are the last two points both far below the best?"""
    return n > 0 and len(success) > 2 and max(success) - max(success[-2:]) > WORSE * error(max(success), n)
