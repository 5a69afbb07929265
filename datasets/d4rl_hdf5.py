"""D4RL's HDF5 layout: flat observations, actions, rewards, terminals, timeouts [N, ...], cut where an episode ended.

With next_observations nothing is lost; without them the last action of each episode is. `terminals` ends an episode for
good, `timeouts` cuts it off. Success: infos/goal_achieved (Adroit) or infos/success, else as flywheel.outcome says.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from flywheel_datasets import _columns, _hdf5

from flywheel import outcome as outcomes
from flywheel.episode import Episode, EpisodeError, attempt

NEEDED = ("observations", "actions", "rewards", "terminals")
FLAGS = ("infos/goal_achieved", "infos/success")


def read(
    path: Path, origin: str = "dataset:d4rl", fps: float = 0.0, outcome: Any = None
) -> Iterator[Episode | EpisodeError]:
    """Yield the episodes in the order of the file; EpisodeError in the place of one that cannot be used."""
    rule = outcomes.rule(outcome)
    with _hdf5.opened(path) as file:
        rows = columns(file, path, rule)
    ended = rows["terminals"].reshape(-1).astype(bool)
    cut = rows["timeouts"].reshape(-1).astype(bool) if "timeouts" in rows else np.zeros(len(ended), bool)
    stops = np.flatnonzero(ended | cut) + 1
    stops = np.append(stops, len(ended)) if not len(stops) or stops[-1] != len(ended) else stops
    sparse = outcomes.sparse([rows["rewards"]])
    start = 0
    for number, stop in enumerate(int(s) for s in stops):
        part, start = slice(start, stop), stop
        where = f"{path}: episode {number}"

        def one(number=number, part=part, where=where) -> Episode:
            found = episode(rows, part, where, sparse, rule, bool(ended[part.stop - 1]))
            about = {"file": Path(path).name, "demo": number, "rows": [part.start, part.stop]}
            return found.replace(origin=origin, fps=_columns.rate(fps, where), meta=about)

        yield attempt(one, where)


def columns(file: _hdf5.Group, path: Path, rule: outcomes.Rule | None) -> dict[str, np.ndarray]:
    """{name: [N, ...]} of what is read; EpisodeError where something is missing or of another length."""
    here = {key: value.shape for key, value in file.items() if isinstance(value, _hdf5.Array)}
    if absent := [key for key in NEEDED if key not in here]:
        raise EpisodeError(f"{path}: no {', '.join(absent)}; there is {_columns.listed(here)}")
    more = [key for key in (*FLAGS, *([rule.what] if rule else [])) if isinstance(file.get(key), _hdf5.Array)]
    names = [key for key in (*NEEDED, "timeouts", "next_observations") if key in here] + more
    rows = {key: file.array(key)[()] for key in names}
    if len({value.shape[:1] for value in rows.values()}) != 1 or not rows["actions"].ndim:
        raise EpisodeError(
            f"{path}: arrays of different length: {_columns.listed({k: rows[k].shape for k in sorted(rows)})}"
        )
    rows["rewards"] = rows["rewards"].reshape(len(rows["rewards"]))
    return rows


def episode(rows: dict[str, np.ndarray], part: slice, where: str, sparse: bool, rule, ended: bool) -> Episode:
    """The episode in a part of the rows."""
    obs = _columns.state([rows["observations"][part]], where)
    action = _columns.actions(rows["actions"][part], where)
    if "next_observations" in rows:
        obs = np.concatenate([obs, _columns.state([rows["next_observations"][part.stop - 1 : part.stop]], where)])
    steps = len(obs) - 1  # without next_observations there is no final one
    if steps < 1:
        raise EpisodeError(f"{where}: one row (row {part.start}) and no next_observations: nothing can be learnt")
    flags = next((rows[key][part] for key in FLAGS if key in rows), None)
    said = outcomes.Said(flags=flags, reward=rows["rewards"][part], terminal=ended)
    find = lambda key: rows[key][part] if key in rows else None  # noqa: E731
    told = outcomes.decide(said, steps, sparse=sparse, rule=rule, find=find, where=where)
    return Episode(
        task="",
        obs={"state": obs},
        action=action[:steps],
        reward=told.reward,
        terminated=told.terminated,
        success=told.success,
        origin="",
        extras={"env_reward": rows["rewards"][part][:steps].astype(np.float32), **told.extras},
    )
