"""Evidence from trials that nobody can repeat: candidate and incumbent tried on a robot, in any order, as often as one
likes.

The k-th trial of one stands against the k-th of the other, and bettors own what they own for pairs (evalues.py). Trials
that have no partner yet count by what their pair comes to on average, h, which depends on the rates p1 of the candidate
and p0 of the incumbent. So, with b = c / (1 + gain), the bettors own at most

    N(p1, p0) = sum_k share_k (1 + b_k (1 - gain))^won (1 - c_k)^lost (1 - b_k gain)^ties h_k(p1, p0)

an e-process if p1 - p0 <= gain, whoever decides from what he has seen which of the two is tried next: a trial that
opens a pair multiplies N by 1 on average at most, one that closes it by 1. Another bettor owns the likelihood ratio of
a uniform prior to (p1, p0),

    U(p1, p0) = B(k1 + 1, n1 - k1 + 1) B(k0 + 1, n0 - k0 + 1) / (p1^k1 (1 - p1)^(n1 - k1) p0^k0 (1 - p0)^(n0 - k0))

(universal inference: Wasserman, Ramdas and Balakrishnan, PNAS 2020, doi:10.1073/pnas.1922664117), which rules out
rates that the trials themselves exclude. E(gain) is the least of 0.9 N + 0.1 U over all p1 - p0 <= gain, so that it is
at least 1 / alpha, at any moment, ever, with probability alpha at most (Ville 1939; as the blocks of Turner, Ly and
Gruenwald, JSPI 2024, arXiv:2106.02693, with halves). Counts go in, nothing else: anybody can compute it again."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from flywheel import evalues, stats

GRID = np.linspace(0.0, 1.0, 401)  # of the rate of the one that was tried more often
OWN = 0.9  # of the capital: those who bet on pairs
MOST = 500  # further trials of each that are looked ahead


@dataclass(frozen=True)
class Counts:
    """Numbers or arrays of one shape: k1 of n1 trials of the candidate succeeded, k0 of n0 of the incumbent; of the
    first min(n1, n0) pairs `won` and `lost`, and both of `both`."""

    k1: Any
    n1: Any
    k0: Any
    n0: Any
    won: Any
    lost: Any
    both: Any

    @classmethod
    def of(cls, candidate: np.ndarray, incumbent: np.ndarray) -> Counts:
        """Count successes [n1], [n0] bool in the order in which they were recorded."""
        a, b = np.asarray(candidate, bool), np.asarray(incumbent, bool)
        pairs = min(len(a), len(b))
        x, y = a[:pairs], b[:pairs]
        paired = (int((x & ~y).sum()), int((y & ~x).sum()), int((x & y).sum()))
        return cls(int(a.sum()), len(a), int(b.sum()), len(b), *paired)

    @property
    def pairs(self) -> Any:
        return np.minimum(self.n1, self.n0)


def log_e(counts: Counts, gain: float = 0.0) -> np.ndarray:
    """Compute log E(gain) against "the candidate is better by `gain` at most", of numbers or of arrays of one shape."""
    fields = ("k1", "n1", "k0", "n0", "won", "lost", "both")
    k1, n1, k0, n0, won, lost, both = (np.asarray(getattr(counts, name), float)[..., None] for name in fields)
    more = n1 >= n0  # the candidate has the trials without a partner
    p1 = np.where(more, np.minimum(_clip(GRID + gain), _rate(k1, n1)), GRID)
    p0 = np.where(more, GRID, np.maximum(_clip(GRID - gain), _rate(k0, n0)))
    inside = p1 - p0 <= gain + 1e-9  # at the edges no partner is left
    likely = _log(k1, p1) + _log(n1 - k1, 1 - p1) + _log(k0, p0) + _log(n0 - k0, 1 - p0)
    ratio = _beta(k1, n1) + _beta(k0, n0) - likely
    pairs = np.minimum(n1, n0)
    extra = np.where(more, n1 - n0, n0 - n1)
    good = np.where(more, k1 - won - both, k0 - lost - both)  # successes among these
    own = np.full(np.broadcast_shapes(ratio.shape), -np.inf)
    for bet, share in zip(evalues.BETS, evalues.SHARES, strict=True):
        odds = bet / (1 + gain) if gain > -1 else 0.0
        up, level = np.log1p(odds * (1 - gain)), np.log1p(-odds * gain)
        paired = won * up + lost * math.log1p(-bet) + (pairs - won - lost) * level
        yes = np.where(more, 1 + odds * (1 - p0 - gain), 1 + odds * (p1 - 1 - gain))
        no = np.where(more, 1 + odds * (-p0 - gain), 1 + odds * (p1 - gain))
        half = _log(good, yes) + _log(extra - good, no)
        own = np.logaddexp(own, paired + half + math.log(share))
    return np.where(inside, np.logaddexp(own + math.log(OWN), ratio + math.log(1 - OWN)), np.inf).min(-1)


def lower(counts: Counts, alpha: float) -> float:
    """Bound the gain from below, at all times at once, with confidence 1 - alpha."""
    low, high = -1.0, 1.0
    for _ in range(20):
        middle = (low + high) / 2
        low, high = (middle, high) if log_e(counts, middle) >= -math.log(alpha) else (low, middle)
    return low


def interval(counts: Counts, alpha: float) -> tuple[float, float]:
    """Enclose the gain, at all times at once, with confidence 1 - alpha: half of it on each side."""
    other = Counts(counts.k0, counts.n0, counts.k1, counts.n1, counts.lost, counts.won, counts.both)
    return lower(counts, alpha / 2), -lower(other, alpha / 2)


def told(counts: Counts, alpha: float) -> dict[str, Any]:
    """The figures, with the keys of evalues.told and `both`, `success` {kind: [successes, trials]}."""
    low, high = interval(counts, alpha)
    rates = [k / n if n else 0.0 for k, n in ((counts.k1, counts.n1), (counts.k0, counts.n0))]
    return {
        "won": counts.won, "lost": counts.lost, "both": counts.both, "pairs": int(counts.pairs),
        "e": evalues.digits(math.exp(min(700.0, log_e(counts)))), "gain": round(rates[0] - rates[1], 6),
        "gain_ci": [round(low, 4), round(high, 4)],
        "success": {"candidate": [counts.k1, counts.n1], "incumbent": [counts.k0, counts.n0]},
    }  # fmt: skip


def differs(entry: dict[str, Any]) -> list[str]:
    """Compute a decision from trials again from what its entry in a log says; a sentence for each figure that does not
    follow."""
    (k1, n1), (k0, n0) = (entry["success"][kind] for kind in ("candidate", "incumbent"))
    counted = told(Counts(k1, n1, k0, n0, entry["won"], entry["lost"], entry["both"]), entry["alpha"])
    wanted = {**counted, "needed": evalues.needed(entry["alpha"], entry["t"], entry["promotions"])}
    found = [f"{key} is {entry[key]}, and follows as {value}" for key, value in wanted.items() if entry[key] != value]
    if (counted["e"] >= wanted["needed"]) is not (entry["op"] == "promote"):
        found.append(f"{entry['op']} at E = {counted['e']:g} where {wanted['needed']:g} is needed")
    return found


def wanted(counts: Counts, needed: float, worth: float, alpha: float) -> tuple[int, int] | None:
    """How many further trials of candidate and incumbent decide, if both go on as the trials so far say; None where
    MOST of each do not."""

    def after(more: int) -> Counts:
        level = max(counts.n1, counts.n0) + more
        return _later(counts, level)

    def decides(more: int) -> bool:
        there = after(more)
        return log_e(there) >= math.log(needed) or -lower(_turned(there), alpha / 2) < worth

    if not decides(MOST):
        return None
    low, high = -1, MOST
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if decides(middle) else (middle, high)
    return max(counts.n1, counts.n0) + high - counts.n1, max(counts.n1, counts.n0) + high - counts.n0


def _later(counts: Counts, level: int) -> Counts:
    """What to expect once both were tried `level` times."""
    p1, p0 = ((k + 1) / (n + 2) for k, n in ((counts.k1, counts.n1), (counts.k0, counts.n0)))
    left = level - int(counts.pairs)
    return Counts(
        counts.k1 + (level - counts.n1) * p1, level, counts.k0 + (level - counts.n0) * p0, level,
        counts.won + left * p1 * (1 - p0), counts.lost + left * p0 * (1 - p1), counts.both + left * p1 * p0,
    )  # fmt: skip


def _turned(counts: Counts) -> Counts:
    return Counts(counts.k0, counts.n0, counts.k1, counts.n1, counts.lost, counts.won, counts.both)


def rate(k: int, n: int) -> dict[str, Any]:
    """{"success", "n", "ci95"} of k successes in n trials; success None where there are none."""
    return {"success": k / n if n else None, "n": n, "ci95": [round(x, 4) for x in stats.wilson(k, n)]}


def _rate(k, n):
    return np.where(n > 0, k / np.maximum(n, 1), 0.5)


def _clip(p):
    return np.clip(p, 0.0, 1.0)


def _log(count, p):
    """count * log p, 0 where the count is 0."""
    return np.where(count > 1e-9, count * np.log(np.maximum(p, 1e-300)), 0.0)


def _beta(k, n):
    """log B(k + 1, n - k + 1)."""
    gamma = np.vectorize(math.lgamma)
    return gamma(k + 1) + gamma(n - k + 1) - gamma(n + 2)
