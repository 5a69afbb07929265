"""What learning by doing cost: episodes that failed and would not have, had the policy of the beginning gone on.

regret = sum over windows w of 50 episodes:  |w| max(0, p_base - p_w)
worst  = the lowest success of 50 episodes in a row, and how often chance alone makes one as low at p_base
"""

from __future__ import annotations

from typing import Any

import numpy as np

from flywheel.stats import wilson

WINDOW = 50  # episodes
FIGURES = ("base", "regret", "regret_ci95", "worst_window", "worst_window_at", "worst_by_chance")
DRAWS = 400  # histories, for what chance alone does


def windows(outcomes: str) -> list[tuple[int, int, int]]:
    """(first episode, successes, episodes) of each window of "1101..."; what is left at the end joins the last one."""
    firsts = list(range(0, max(1, len(outcomes) - WINDOW + 1), WINDOW))
    ends = [*firsts[1:], len(outcomes)]
    return [(a, outcomes[a:b].count("1"), b - a) for a, b in zip(firsts, ends, strict=True) if b > a]


def summary(outcomes: str, base: float | None, tried: int = 0) -> dict[str, Any]:
    """Sum up episodes "1101..." from the task's own reset against the success `base` of who began, measured on `tried`
    episodes (0: it is known); {} where there is nothing to sum up.

    base, regret (episodes), regret_ci95 (of the windows' Wilson intervals), worst_window, worst_window_at (its first
    episode), worst_by_chance: in which share of histories at a success that `tried` allows the worst window is as
    low."""
    if base is None or not outcomes:
        return {}
    found = [(n, won / n, *wilson(won, n)) for _, won, n in windows(outcomes)]
    lost, most, least = (sum(n * max(0.0, base - p) for n, *ps in found for p in [ps[i]]) for i in (0, 1, 2))
    size = min(WINDOW, len(outcomes))
    rolling = _rolling(np.frombuffer(outcomes.encode(), np.uint8)[None] == ord("1"), size)[0]
    at = int(rolling.argmin())
    return {
        "base": base, "regret": round(lost, 2), "regret_ci95": [round(least, 2), round(most, 2)],
        "worst_window": round(float(rolling[at]), 4), "worst_window_at": at,
        "worst_by_chance": by_chance(len(outcomes), size, base, float(rolling[at]), tried),
    }  # fmt: skip


def by_chance(n: int, size: int, base: float, worst: float, tried: int = 0) -> float:
    """The share of histories of n episodes whose worst window of `size` is at most `worst`; of 400 drawn by a fixed
    seed. They succeed with probability `base`, or what is as likely as it after `tried` episodes (Jeffreys' prior)."""
    rng, low, won = np.random.default_rng(0), 0, base * tried
    likely = rng.beta(won + 0.5, tried - won + 0.5, DRAWS) if tried else np.full(DRAWS, base)
    for p in likely:
        low += _rolling(rng.random((1, n)) < p, size).min() <= worst + 1e-9
    return float(low / DRAWS)


def _rolling(won: np.ndarray, size: int) -> np.ndarray:
    """Mean of each `size` in a row of [R, n] bool -> [R, n - size + 1]."""
    total = np.cumsum(np.pad(won, ((0, 0), (1, 0))), 1)
    return (total[:, size:] - total[:, :-size]) / size
