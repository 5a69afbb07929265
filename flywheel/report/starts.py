"""Where do the failures start? Success over two initial conditions, and whether what it shows could be chance.

Every pair of initial conditions is cut into 3 x 3 cells of about equally many episodes; the pair whose cells tell most
about success (mutual information) is shown. The best of many pairs always looks good, so the same search is done on
shuffled outcomes: p is how often chance finds as much.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from typing import Any, NamedTuple

import numpy as np

from flywheel import stats

CELLS = 3
SHUFFLES = 400
ALPHA, WEAK = 0.01, 0.1  # below these the page says where to demonstrate, or perhaps


class Axis(NamedTuple):
    """One number that differs between starts: its values [n], cut at `edges` [CELLS + 1]."""

    name: str
    values: np.ndarray
    edges: np.ndarray
    unit: str = ""

    @property
    def label(self) -> str:
        """The name with its unit, for an axis of a chart."""
        return f"{self.name} ({self.unit})" if self.unit else self.name

    def range(self, cell: int) -> str:
        """Say from where to where a cell reaches."""
        unit = f" {self.unit}" if self.unit else ""
        return f"{self.name} from {self.edges[cell]:.3g} to {self.edges[cell + 1]:.3g}{unit}"


def sim_task(task: dict[str, Any]):
    """Return the task of sim/ that a config names, by its name or by its Gymnasium id; None for others."""
    import flywheel_sim

    name = task.get("name")
    if name == "gym" and not task.get("kwargs"):
        name = next((n for n in flywheel_sim.tasks() if task.get("id") == flywheel_sim.gym_id(n)), None)
    return flywheel_sim.load(name) if name in flywheel_sim.tasks() else None


def conditions(
    columns: dict[str, np.ndarray], task: dict[str, Any], names: Sequence[str] = (), units: Sequence[str] = ()
) -> tuple[dict[str, np.ndarray], dict[str, str], str]:
    """Return {name: [n]} of what differs between starts, {name: unit} and where the names come from.

    `names` and `units` are the environment's own for the numbers of its observation; "" is no unit.
    """
    if sim := sim_task(task):
        rows = [sim.init(int(seed)) for seed in columns["seed"]]
        return (
            {k: np.array([row[k] for row in rows]) for k in rows[0]},
            sim.start_units,
            "initial conditions of the task",
        )
    obs = np.asarray(columns["obs0"], float)
    varied = [i for i in range(obs.shape[1]) if len(np.unique(obs[:, i])) > CELLS]
    names = names if len(names) == obs.shape[1] else [f"obs[{i}]" for i in range(obs.shape[1])]
    said = {names[i]: units[i] for i in varied} if len(units) == obs.shape[1] else {}
    return {names[i]: obs[:, i] for i in varied}, said, "entries of the first observation"


def cells(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return edges [CELLS + 1] at quantiles, and the cell of each value [n]."""
    edges = np.quantile(values, np.linspace(0, 1, CELLS + 1))
    return edges, np.clip(np.searchsorted(edges[1:-1], values, side="right"), 0, CELLS - 1)


def information(cell: np.ndarray, success: np.ndarray) -> np.ndarray:
    """Compute the mutual information in nats of a cell [n] and outcomes [S, n] of 0 and 1 -> [S].

    n I = sum_c f(won_c) + f(lost_c) - f(n_c), less the same over all cells together; f(x) = x log x.
    """
    n = len(cell)
    f = np.arange(n + 1) * np.log(np.maximum(np.arange(n + 1), 1))
    total = np.bincount(cell, minlength=CELLS * CELLS)
    sums = np.cumsum(success[:, np.argsort(cell)], axis=1, dtype=np.int32)  # no matrix product: its threads cost more
    edges = np.pad(sums, ((0, 0), (1, 0)))[:, np.r_[0, np.cumsum(total)]]
    won = np.diff(edges, axis=1)  # [S, C]
    all_won = won.sum(1)
    within = f[won].sum(1) + f[total - won].sum(1) - f[total].sum()
    return (within - f[all_won] - f[n - all_won] + f[n]) / n


def where(
    columns: dict[str, np.ndarray], task: dict[str, Any], names: Sequence[str] = (), units: Sequence[str] = ()
) -> dict[str, Any]:
    """Find the pair of conditions that tells most about success.

    {"x", "y": Axis, "success" [n], "k", "n" [3, 3] (row y, column x), "p", "pairs", "source", "worst" (row, column)},
    or {"why": text} where there is nothing to show.
    """
    success = np.asarray(columns["success"], bool)
    if min(success.sum(), (~success).sum()) < 5:
        few = "failures" if success.mean() > 0.5 else "successes"
        return {"why": f"{success.sum()} of {len(success)} episodes succeed: too few {few} to compare their starts."}
    values, units, source = conditions(columns, task, names, units)
    if len(values) < 2:
        return {"why": "The starts differ in fewer than two numbers: there is nothing to compare."}
    cut = {name: cells(column) for name, column in values.items()}
    pair, p = clearest(success, {name: cell for name, (_, cell) in cut.items()})
    x, y = (Axis(name, values[name], cut[name][0], units.get(name, "")) for name in pair)
    cell = cut[y.name][1] * CELLS + cut[x.name][1]
    n = np.bincount(cell, minlength=CELLS**2).reshape(CELLS, CELLS)
    k = np.bincount(cell, success, minlength=CELLS**2).astype(int).reshape(CELLS, CELLS)
    upper = [stats.wilson(int(won), int(all_))[1] if all_ else 2.0 for won, all_ in zip(k.flat, n.flat, strict=True)]
    worst = np.unravel_index(np.argmin(upper), (CELLS, CELLS))
    pairs = len(values) * (len(values) - 1) // 2
    return {
        "x": x,
        "y": y,
        "success": success,
        "k": k,
        "n": n,
        "p": p,
        "pairs": pairs,
        "source": source,
        "worst": worst,
    }


def clearest(success: np.ndarray, cell: dict[str, np.ndarray]) -> tuple[tuple[str, str], float]:
    """Return the pair of conditions, given by their cells [n], that tells most, and how often chance tells as much."""
    rng = np.random.default_rng(0)
    trials = np.stack([success, *(rng.permutation(success) for _ in range(SHUFFLES))])
    best, most = None, np.zeros(len(trials))
    for x, y in combinations(cell, 2):
        bits = information(cell[y] * CELLS + cell[x], trials)
        if best is None or bits[0] > most[0]:
            best = (x, y)
        most = np.maximum(most, bits)
    return best, float((1 + (most[1:] >= most[0]).sum()) / len(trials))


def inside(pattern: dict[str, Any]) -> np.ndarray:
    """Mark the episodes [n] that began in the worst cell."""
    row, column = pattern["worst"]
    x, y = pattern["x"], pattern["y"]
    marked = (x.edges[column] <= x.values) & (x.values <= x.edges[column + 1])
    return marked & (y.edges[row] <= y.values) & (y.values <= y.edges[row + 1])


def advice(pattern: dict[str, Any]) -> str:
    """Say in one or two sentences what to demonstrate next, or that this data does not tell."""
    row, column = pattern["worst"]
    k, n = int(pattern["k"][row, column]), int(pattern["n"][row, column])
    rest, others = int(pattern["k"].sum()) - k, int(pattern["n"].sum()) - n
    cell = f"{pattern['x'].range(column)}, {pattern['y'].range(row)}"
    rates = f"There {k} of {n} episodes succeed ({k / n:.2f}), elsewhere {rest} of {others} ({rest / others:.2f})"
    chance = f"chance alone finds as clear a pattern in {100 * pattern['p']:.2g} % of shuffles"
    if pattern["p"] < ALPHA:
        return f"Demonstrate next: {cell}. {rates}; {chance}."
    if pattern["p"] < WEAK:
        return f"Perhaps demonstrate next: {cell}. {rates}. The sign is weak: {chance}."
    return f"No start stands out: {chance}. The least success: {cell}. {rates}."
