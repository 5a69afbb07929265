"""How often `near` is right: the share of near-duplicates that are found, and of other pairs that are taken for them.

    at a distance    the same episode, moved in a random direction: |difference| over 16 points of states and actions is d
    as it happens    noise on each number, ends cut off, every second step, kept as float16
    others           all pairs of different episodes of the demonstrations that ship with the tasks, or of a corpus (--store)

Without --store all of it is the same everywhere.

    python benchmarks/near.py [--tries 20] [--store DIR [--at VERSION]] [--json]
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path

import flywheel_datasets
import numpy as np

from flywheel.corpus.quality import POINTS, coarse
from flywheel.intake.recordings import reader
from flywheel.runs.run import Store

DISTANCES = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0)
Rows = tuple[str, np.ndarray, np.ndarray]  # task, state [T+1, Do], action [T, Da]


def shipped() -> list[Rows]:
    folder = Path(next(iter(flywheel_datasets.__path__)))
    read = reader("robomimic_hdf5")
    return [
        (path.stem, one.obs["state"].astype(float), one.action.astype(float))
        for path in sorted(folder.glob("*_demos.hdf5"))
        for one in read(path)
    ]


def at_distance(d: float, rows: Rows, random: np.random.Generator) -> Rows:
    """All rows moved by one constant, so that the 16 points together are at distance d."""
    task, state, action = rows
    step = random.normal(size=state.shape[1] + action.shape[1])
    step *= d / (np.linalg.norm(step) * np.sqrt(POINTS))
    return task, state + step[: state.shape[1]], action + step[state.shape[1] :]


def noisy(share: float, rows: Rows, random: np.random.Generator) -> Rows:
    task, state, action = rows
    one, two = (value + random.normal(size=value.shape) * share * value.std(0) for value in (state, action))
    return task, one, two


def cut(count: int, rows: Rows, random: np.random.Generator) -> Rows:
    task, state, action = rows
    return task, state[count : len(state) - count], action[count : len(action) - count]


def thinned(rows: Rows, random: np.random.Generator) -> Rows:
    task, state, action = rows
    return task, np.concatenate([state[:-1:2], state[-1:]]), action[::2]


def halved(rows: Rows, random: np.random.Generator) -> Rows:
    task, state, action = rows
    return task, state.astype(np.float16).astype(float), action.astype(np.float16).astype(float)


CHANGES: dict[str, Callable[[Rows, np.random.Generator], Rows]] = {
    **{f"at a distance of {d:g}": lambda rows, random, d=d: at_distance(d, rows, random) for d in DISTANCES},
    "noise of 0.01 % of each number's spread": lambda rows, random: noisy(1e-4, rows, random),
    "noise of 0.1 %": lambda rows, random: noisy(1e-3, rows, random),
    "noise of 1 %": lambda rows, random: noisy(1e-2, rows, random),
    "kept as float16": halved,
    "one step cut off at both ends": lambda rows, random: cut(1, rows, random),
    "every second step": thinned,
}


def rates(episodes: list[Rows], tries: int) -> dict[str, float]:
    """{what: share of pairs that share a hash}."""
    random = np.random.default_rng(0)
    own = [coarse(*rows) for rows in episodes]
    found = {}
    for name, change in CHANGES.items():
        hits = [any(a == b for a, b in zip(hashes, coarse(*change(rows, random)), strict=True))
                for _ in range(tries) for rows, hashes in zip(episodes, own, strict=True)]  # fmt: skip
        found[f"found, {name}"] = float(np.mean(hits))
    pairs, wrong = others(np.asarray(own), [task for task, _, _ in episodes])
    return found | {"pairs of different episodes of a task": pairs, "of them taken for near-duplicates": wrong}


def others(hashes: np.ndarray, tasks: list[str]) -> tuple[int, int]:
    """How many pairs of one task there are, and how many share a hash."""
    pairs = wrong = 0
    for task in sorted({*tasks}):
        mine = hashes[[one == task for one in tasks]]
        same = (mine[:, None] == mine[None]).any(-1)
        pairs += len(mine) * (len(mine) - 1) // 2
        wrong += int(np.triu(same, 1).sum())
    return pairs, wrong


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tries", type=int, default=20, help="of each change and episode (default %(default)s)")
    parser.add_argument("--store", help="episodes of this store's corpus instead of those that ship")
    parser.add_argument("--at", default="latest", help="version of it (default %(default)s)")
    parser.add_argument("--json", action="store_true", help="the last line on stdout is one JSON object")
    args = parser.parse_args()
    episodes = shipped()
    if args.store:
        version = Store(args.store).corpus().at(args.at)
        episodes = [(one.task, one.obs["state"].astype(float), one.action.astype(float)) for one in version]
    found = {"episodes": len(episodes), **rates(episodes, args.tries)}
    for name, value in found.items():
        print(f"{name:48} {value:10,.4f}" if isinstance(value, float) else f"{name:48} {value:10,}")
    if args.json:
        print(json.dumps(found))


if __name__ == "__main__":
    main()
