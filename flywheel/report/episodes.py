"""What is in the corpus, as plain values: how it grew, who acted, and how that went."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np

from flywheel import stats


def corpus(place) -> dict[str, Any] | None:
    """Read the newest version's columns, the log, and who acted in each episode; None where there is no corpus."""
    if not place.has_corpus:
        return None
    held = place.corpus()
    if not held.head:
        return None
    version = held.at("latest")
    columns = version.table
    actors = who(columns["origin"], columns["added"])
    return {"version": version.number, "table": columns, "log": held.log(), "who": actors}


def who(origin: np.ndarray, added: np.ndarray, most: int = 6) -> np.ndarray:
    """Label each episode with its origin; where there are many, older policies share one, then whatever is rarest."""
    label = np.asarray(origin, object).copy()
    policies = [o for o in np.unique(origin) if str(o).startswith("policy:")]
    policies.sort(key=lambda o: int(added[origin == o].max()))
    for old in policies[:-2] if len(policies) > 3 else []:
        label[origin == old] = "earlier policies"
    counts = Counter(label.tolist())
    for rare, _ in counts.most_common()[most - 1 :] if len(counts) > most else []:
        label[label == rare] = "others"
    return label


def growth(held: dict[str, Any]) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Return the version numbers [V] and, for each label, how many of today's episodes there were by then [V]."""
    versions = np.arange(1, held["version"] + 1)
    added, label = held["table"]["added"], held["who"]
    order = sorted(set(label.tolist()), key=lambda w: (int(added[label == w].min()), w))
    return versions, {w: np.searchsorted(np.sort(added[label == w]), versions, side="right") for w in order}


def actors(held: dict[str, Any]) -> list[dict[str, Any]]:
    """List a row for each label: episodes, k successes of those with a known outcome, and quantiles of the length."""
    columns, rows = held["table"], []
    for label in growth(held)[1]:
        mine = held["who"] == label
        success = columns["success"][mine]
        k, known = int((success == 1).sum()), int((success >= 0).sum())
        rows.append({
            "who": label, "episodes": int(mine.sum()), "known": known,
            "success": k / known if known else None, "ci95": stats.wilson(k, known),
            "length": np.quantile(columns["length"][mine], [0.1, 0.5, 0.9]).tolist(),
        })  # fmt: skip
    return rows
