"""Evidence that may be looked at whenever one likes: is the candidate better, by how much, and at which price?

A pair is one seed, played by both: d = +1 where only the candidate succeeds (won), -1 where only the incumbent does
(lost), else 0. Whoever bets the share c of what it has, at odds that are fair if the mean of d is `gain`, owns after n
pairs prod(1 + c (d - gain) / (1 + gain)). Several begin with a share of 1 and keep theirs for good (Waudby-Smith and
Ramdas, JRSSB 2024, doi:10.1093/jrsssb/qkad009); together they own, with b = c / (1 + gain),

    E(gain) = sum_k share_k (1 + b_k (1 - gain))^won (1 - c_k)^lost (1 - b_k gain)^(n - won - lost)

If the mean is at most `gain`, E exceeds 1 / alpha at any moment, ever, with probability alpha at most (Ville 1939), and
its mean is at most 1 whenever one stops: it is an e-value (Vovk and Wang, Ann. Stat. 2021). E(0) is a mixture of the
likelihood ratios of theta = (1 + c) / 2 against 1/2 for the pairs that differ. The gains that it does not exclude are a
confidence sequence. Nothing but three counts goes in: anybody can compute it again.

Pairs need not share a seed: where seeds decide nothing the k-th episode of one stands against the k-th of the other.
Then a win has probability p (1 - q), a loss q (1 - p), and all of this holds as it stands."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

BETS = np.array([0.05, 0.1, 0.2, 0.4, 0.8])
SHARES = np.array([0.01, 0.02, 0.2, 0.55, 0.22])
FIRST, DECAY = 0.75, 1.5  # of alpha: what the first rank has; the others share the rest as t^-1.5
REST = 2.612375348685488 - 1  # sum of t^-1.5 from t = 2 on


def log_e(won, lost, ties=0, gain: float = 0.0) -> np.ndarray:
    """log E(gain) against "the mean gain is at most `gain`" (> -1), of counts, numbers or arrays of one shape."""
    won, lost, ties = (np.asarray(count, float)[..., None] for count in (won, lost, ties))
    odds = BETS / (1 + gain)
    grown = won * np.log1p(odds * (1 - gain)) + lost * np.log1p(-BETS)
    if gain:
        grown = grown + ties * np.log1p(-odds * gain)
    return np.logaddexp.reduce(grown + np.log(SHARES), axis=-1)


def lower(won: int, lost: int, pairs: int, alpha: float) -> float:
    """Bound the mean gain from below, at all times at once, with confidence 1 - alpha; E falls as `gain` rises."""
    low, high = -1.0, 1.0
    for _ in range(40):
        middle = (low + high) / 2
        excluded = middle > -1 and log_e(won, lost, pairs - won - lost, middle) >= -math.log(alpha)
        low, high = (middle, high) if excluded else (low, middle)
    return low


def interval(won: int, lost: int, pairs: int, alpha: float) -> tuple[float, float]:
    """Enclose the mean gain, at all times at once, with confidence 1 - alpha: half of it on each side."""
    return lower(won, lost, pairs, alpha / 2), -lower(lost, won, pairs, alpha / 2)


def share(t: int) -> float:
    """gamma_t, of alpha, of rank t = 1, 2, ...; their sum is 1."""
    return FIRST if t == 1 else (1 - FIRST) * t**-DECAY / REST


def level(alpha: float, t: int, promotions: int) -> float:
    """alpha_t = alpha (1 - alpha) gamma_t (promotions + 1), alpha at most, for a question of rank t.

    e-LOND (Xu and Ramdas, AISTATS 2024, arXiv:2311.06412): who promotes where E >= 1 / alpha_t has an expected share of
    false ones among all promotions of at most alpha, however many questions are asked. There t counts all questions;
    here 1 and those before that ended with E < 1 / alpha, so that a promotion spends nothing. That costs the factor
    1 - alpha and is e-SAFFRON's device (Zhang et al. 2025, arXiv:2506.01452): if there is nothing to be found, E < 1 /
    alpha has a probability of at least 1 - alpha, so that these questions stand for all."""
    return min(alpha, alpha * (1 - alpha) * share(t) * (promotions + 1))


def needed(alpha: float, t: int, promotions: int) -> float:
    """What E has to be: 1 / alpha_t."""
    return digits(1 / level(alpha, t, promotions))


def told(won: int, lost: int, pairs: int, alpha: float) -> dict[str, Any]:
    """The figures of so many pairs, as logs and pages have them: gain is candidate less incumbent."""
    low, high = interval(won, lost, pairs, alpha)
    return {
        "won": won, "lost": lost, "pairs": pairs, "e": digits(math.exp(min(700.0, log_e(won, lost)))),
        "gain": (won - lost) / pairs if pairs else 0.0, "gain_ci": [round(low, 4), round(high, 4)],
    }  # fmt: skip


def so_far(candidate: np.ndarray, incumbent: np.ndarray, alpha: float = 0.05) -> dict[str, Any]:
    """What successes [n], [n] bool say by now: `told`, and the verdict better, worse or undecided, also in words."""
    won, lost = int((candidate & ~incumbent).sum()), int((incumbent & ~candidate).sum())
    figures = told(won, lost, len(candidate), alpha)
    low, high = figures["gain_ci"]
    verdict = "better" if low > 0 else "worse" if high < 0 else "undecided"
    gain = f"gain {figures['gain']:+.3f} [{low:+.3f}, {high:+.3f}]"
    words = f"{verdict}, {gain} at any time with {1 - alpha:.0%} confidence; won {won}, lost {lost} of {len(candidate)}"
    return {**figures, "verdict": verdict, "words": words}


def decided(told: dict[str, Any], needed: float, worth: float) -> str | None:
    """Why one may stop here: "better", or "futile" where the gain is shown to be less than what is worth having."""
    if told["e"] >= needed:
        return "better"
    return "futile" if told["gain_ci"][1] < worth else None


def differs(entry: dict[str, Any]) -> list[str]:
    """Compute a decision again from what its entry in a log says; a sentence for each figure that does not follow."""
    counted = told(entry["won"], entry["lost"], entry["pairs"], entry["alpha"])
    wanted = {**counted, "needed": needed(entry["alpha"], entry["t"], entry["promotions"])}
    found = [f"{key} is {entry[key]}, and follows as {value}" for key, value in wanted.items() if entry[key] != value]
    better = counted["e"] >= wanted["needed"]
    if better is not (entry["op"] in ("promote", "rollback")):
        found.append(f"{entry['op']} at E = {counted['e']:g} where {wanted['needed']:g} is needed")
    return found


def digits(value: float) -> float:
    return float(f"{value:.6g}")
