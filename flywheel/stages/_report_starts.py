"""Where do the failures start? Success over two initial conditions, and whether what it shows could be chance.

Every pair of initial conditions is cut into 3 x 3 cells of about equally many episodes; the pair whose cells tell most
about success (mutual information) is shown. The best of many pairs always looks good, so the same search is done on
shuffled outcomes: p is how often chance finds as much.
"""

from __future__ import annotations

from itertools import combinations
from typing import Any

import numpy as np

from flywheel import stats

CELLS = 3
SHUFFLES = 400
ALPHA, WEAK = 0.01, 0.1  # below these the page says where to demonstrate, or perhaps


def conditions(
    columns: dict[str, np.ndarray], task: dict[str, Any], names: list[str] | None = None
) -> tuple[dict[str, np.ndarray], str]:
    """{name: [n]} of what differed between the starts, and where the names come from; `names` are those of the observation's numbers."""
    if task.get("name") not in (None, "gym"):
        import flywheel_sim

        if task["name"] in flywheel_sim.tasks():
            init = flywheel_sim.load(task["name"]).init
            rows = [init(int(seed)) for seed in columns["seed"]]
            return {k: np.array([row[k] for row in rows], float) for k in rows[0]}, "initial conditions of the task"
    obs = np.asarray(columns["obs0"], float)
    varied = [i for i in range(obs.shape[1]) if len(np.unique(obs[:, i])) > CELLS]
    names = names if names and len(names) == obs.shape[1] else [f"obs[{i}]" for i in range(obs.shape[1])]
    return {names[i]: obs[:, i] for i in varied}, "entries of the first observation"


def cells(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Edges [CELLS + 1] at quantiles, and the cell of each value [n]."""
    edges = np.quantile(values, np.linspace(0, 1, CELLS + 1))
    return edges, np.clip(np.searchsorted(edges[1:-1], values, side="right"), 0, CELLS - 1)


def information(cell: np.ndarray, success: np.ndarray) -> np.ndarray:
    """Mutual information in nats of a cell [n] and outcomes [S, n] of 0 and 1 -> [S].

    n I = sum_c f(won_c) + f(lost_c) - f(n_c), less the same over all cells together; f(x) = x log x.
    """
    n = len(cell)
    f = np.arange(n + 1) * np.log(np.maximum(np.arange(n + 1), 1))
    total = np.bincount(cell, minlength=CELLS * CELLS)
    sums = np.cumsum(success[:, np.argsort(cell)], axis=1, dtype=np.int32)  # no matrix product: its threads cost more
    edges = np.pad(sums, ((0, 0), (1, 0)))[:, np.r_[0, np.cumsum(total)]]
    won = np.diff(edges, axis=1)  # [S, C]
    all_won = won.sum(1)
    inside = f[won].sum(1) + f[total - won].sum(1) - f[total].sum()
    return (inside - f[all_won] - f[n - all_won] + f[n]) / n


def where(columns: dict[str, np.ndarray], task: dict[str, Any], names: list[str] | None = None) -> dict[str, Any]:
    """{"x", "y": (name, values, edges), "success" [n], "k", "n" [3, 3] (row y, column x), "p", "worst" (row, column)}.

    {"why": text} where there is nothing to show.
    """
    success = np.asarray(columns["success"], bool)
    if min(success.sum(), (~success).sum()) < 5:
        few = "failures" if success.mean() > 0.5 else "successes"
        return {
            "why": f"{int(success.sum())} of {len(success)} episodes succeed: too few {few} to compare their starts."
        }
    values, source = conditions(columns, task, names)
    if len(values) < 2:
        return {"why": "The starts differ in fewer than two numbers: there is nothing to compare."}
    cut = {name: cells(column) for name, column in values.items()}
    rng = np.random.default_rng(0)
    trials = np.stack([success, *(rng.permutation(success) for _ in range(SHUFFLES))])
    best, most = None, np.zeros(len(trials))
    for x, y in combinations(values, 2):
        told = information(cut[y][1] * CELLS + cut[x][1], trials)
        if best is None or told[0] > most[0]:
            best = (x, y)
        most = np.maximum(most, told)
    x, y = best
    cell = cut[y][1] * CELLS + cut[x][1]
    n = np.bincount(cell, minlength=CELLS**2).reshape(CELLS, CELLS)
    k = np.bincount(cell, success, minlength=CELLS**2).astype(int).reshape(CELLS, CELLS)
    upper = [
        [stats.wilson(int(k[i, j]), int(n[i, j]))[1] if n[i, j] else 2.0 for j in range(CELLS)] for i in range(CELLS)
    ]
    return {
        "x": (x, values[x], cut[x][0]), "y": (y, values[y], cut[y][0]), "success": success, "k": k, "n": n,
        "p": float((1 + (most[1:] >= most[0]).sum()) / len(trials)), "source": source, "pairs": len(values) * (len(values) - 1) // 2,
        "worst": np.unravel_index(np.argmin(upper), (CELLS, CELLS)),
    }  # fmt: skip


def advice(found: dict[str, Any]) -> str:
    """One or two sentences: what to demonstrate next, or that this data does not say."""
    (x, _, ex), (y, _, ey) = found["x"], found["y"]
    i, j = found["worst"]
    k, n = int(found["k"][i, j]), int(found["n"][i, j])
    rest, others = int(found["k"].sum()) - k, int(found["n"].sum()) - n
    place = f"{x} from {ex[j]:.3g} to {ex[j + 1]:.3g}, {y} from {ey[i]:.3g} to {ey[i + 1]:.3g}"
    told = f"There {k} of {n} episodes succeed ({k / n:.2f}), elsewhere {rest} of {others} ({rest / others:.2f})"
    chance = f"chance alone finds as clear a pattern in {100 * found['p']:.2g} % of shuffles"
    if found["p"] < ALPHA:
        return f"Demonstrate next: {place}. {told}; {chance}."
    if found["p"] < WEAK:
        return f"Perhaps demonstrate next: {place}. {told}. The sign is weak: {chance}."
    return f"No start stands out: {chance}. The least success: {place}. {told}."
