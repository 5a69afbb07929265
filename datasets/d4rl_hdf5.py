"""D4RL's HDF5 layout: flat observations, actions, rewards, terminals, timeouts [N, ...], cut where an episode ended.

With next_observations nothing is lost; without them the last action of each episode is. `terminals` ends an episode for
good, `timeouts` cuts it off. Success: infos/goal_achieved (Adroit) or infos/success, else a reward of only 0 and 1.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import h5py
import numpy as np
from flywheel_datasets import _columns, _outcome

from flywheel.episode import Episode, EpisodeError


def read(path: Path, origin: str = "dataset:d4rl", fps: float = 0.0) -> Iterator[Episode | EpisodeError]:
    """Yield the episodes in the order of the file; EpisodeError in the place of one that cannot be used."""
    try:
        file = h5py.File(path, "r")
    except OSError as error:
        raise EpisodeError(f"{path}: not an HDF5 file that can be read: {error}") from error
    with file:
        here = {key: value.shape for key, value in file.items() if isinstance(value, h5py.Dataset)}
        needed = ("observations", "actions", "rewards", "terminals")
        if absent := [key for key in needed if key not in here]:
            raise EpisodeError(f"{path}: no {', '.join(absent)}; there is {_columns.listed(here)}")
        rows = {key: file[key][()] for key in (*needed, "timeouts", "next_observations") if key in here}
        if len({len(value) for value in rows.values()}) != 1:
            raise EpisodeError(f"{path}: arrays of different length: {_columns.listed(here)}")
        won = next((file[f"infos/{k}"][()] for k in ("goal_achieved", "success") if f"infos/{k}" in file), None)
    reward = np.asarray(rows["rewards"], np.float32).reshape(len(rows["rewards"]))
    if won is None and _outcome.scores(reward):
        won = reward > 0
    ended = rows["terminals"].reshape(len(reward)).astype(bool)
    cut = rows["timeouts"].reshape(len(reward)).astype(bool) if "timeouts" in rows else np.zeros(len(reward), bool)
    stops = np.flatnonzero(ended | cut) + 1
    stops = np.append(stops, len(reward)) if not len(stops) or stops[-1] != len(reward) else stops
    start = 0
    for number, stop in enumerate(int(s) for s in stops):
        part, start = slice(start, stop), stop
        where = f"{path}: episode {number}"
        try:
            obs = _columns.state([rows["observations"][part]], where)
            action = _columns.actions(rows["actions"][part], where)
            if "next_observations" in rows:
                obs = np.concatenate([obs, _columns.state([rows["next_observations"][stop - 1 : stop]], where)])
            steps = len(obs) - 1  # without next_observations there is no final one
            if steps < 1:
                raise EpisodeError(f"{where}: one row (row {stop - 1}) and no next_observations: nothing can be learnt")
            learning, success = _outcome.outcome(None if won is None else won[part], steps)
            yield Episode(
                task="",
                obs={"state": obs},
                action=action[:steps],
                reward=learning,
                terminated=bool(ended[stop - 1]),
                success=success,
                origin=origin,
                fps=float(fps),
                extras={"env_reward": reward[part][:steps]},
                meta={"file": Path(path).name, "demo": number, "rows": [part.start, stop]},
            )
        except EpisodeError as error:
            yield error
