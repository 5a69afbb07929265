"""How sure a success rate is: Wilson intervals, and the exact paired test of two policies on the same seeds."""

from __future__ import annotations

import math

import numpy as np


def wilson(successes: int, n: int, z: float = 1.959964) -> tuple[float, float]:
    """95 % interval of a rate (Wilson 1927): (low, high); (0, 1) for n = 0."""
    if n == 0:
        return 0.0, 1.0
    p = successes / n
    middle = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return max(0.0, middle - half), min(1.0, middle + half)


def mcnemar(candidate: np.ndarray, incumbent: np.ndarray) -> dict[str, float]:
    """Exact one-sided McNemar test of paired successes [n], [n] bool: is the candidate better?

    Under "equally good" the seeds on which exactly one succeeds fall either way like a fair coin:
    p = P(Binomial(won + lost, 1/2) >= won). {"won", "lost", "p"}.
    """
    candidate, incumbent = np.asarray(candidate, bool), np.asarray(incumbent, bool)
    if candidate.shape != incumbent.shape:
        raise ValueError(f"paired test of {len(candidate)} and {len(incumbent)} episodes; expected the same seeds")
    won, lost = int((candidate & ~incumbent).sum()), int((~candidate & incumbent).sum())
    m = won + lost
    p = sum(math.comb(m, k) for k in range(won, m + 1)) / 2**m
    return {"won": won, "lost": lost, "p": p}


def fisher(candidate: np.ndarray, incumbent: np.ndarray) -> dict[str, float]:
    """Exact one-sided test of unpaired successes [n], [m] bool (Fisher 1935): is the candidate better?

    Given how many succeeded in all, p = P(Hypergeometric >= the candidate's successes). {"won", "lost", "p"}: the
    successes of each."""
    candidate, incumbent = np.asarray(candidate, bool), np.asarray(incumbent, bool)
    n, m, a, b = len(candidate), len(incumbent), int(candidate.sum()), int(incumbent.sum())
    total = math.comb(n + m, a + b)
    p = sum(math.comb(n, k) * math.comb(m, a + b - k) for k in range(a, min(n, a + b) + 1)) / total
    return {"won": a, "lost": b, "p": p}


def rate(success: np.ndarray) -> dict[str, object]:
    """{"success", "n", "ci95"} of outcomes [n] bool."""
    n, k = len(success), int(np.sum(success))
    return {"success": k / n if n else 0.0, "n": n, "ci95": [round(x, 4) for x in wilson(k, n)]}
