"""hand_dapg pickles: Adroit demonstrations of Rajeswaran et al. (RSS 2018), github aravindr93/hand_dapg.

A list of dicts with `observations` [T, Do], `actions` [T, Da], `rewards` [T] and `init_state_dict`. There is no final
observation, so the last action is lost. The pickle is read by _pickles, which knows numpy's arrays and nothing else.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from flywheel_datasets import _columns, _pickles

from flywheel import outcome as outcomes
from flywheel.episode import Episode, EpisodeError, attempt

DOOR_OPEN = 1.35  # rad; AdroitHandDoor-v1's own threshold
ARRAYS = ("observations", "actions", "rewards")


def read(
    path: Path, origin: str = "human:vr", fps: float = 100.0, outcome: Any = None
) -> Iterator[Episode | EpisodeError]:
    """Yield one episode a recording; `start` holds what `check=replay` sets the simulator to."""
    rule = outcomes.rule(outcome)
    recordings = _pickles.load(path)
    if not isinstance(recordings, list):
        raise EpisodeError(f"{path}: found a {type(recordings).__name__}; expected a list of recordings")
    for i, recording in enumerate(recordings):
        where = f"{path}: recording {i}"

        def one(recording=recording, where=where, i=i) -> Episode:
            found = episode(recording, where, rule)
            about = {"file": Path(path).name, "demo": i}
            return found.replace(origin=origin, fps=_columns.rate(fps, where), meta=about)

        yield attempt(one, where)


def episode(recording: Any, where: str, rule: outcomes.Rule | None) -> Episode:
    """One recording as an Episode."""
    if not isinstance(recording, dict) or not {*ARRAYS, "init_state_dict"} <= set(recording):
        there = list(recording) if isinstance(recording, dict) else type(recording).__name__
        raise EpisodeError(f"{where}: there is {str(there)[:300]}; expected {', '.join(ARRAYS)}, init_state_dict")
    exact, action, reward = (_pickles.array(recording[key], f"{where}: {key}") for key in ARRAYS)
    if exact.ndim != 2 or action.ndim not in (1, 2) or not len(exact) == len(action) == reward.size:
        raise EpisodeError(
            f"{where}: observations {list(exact.shape)}, actions {list(action.shape)}, rewards {list(reward.shape)};"
            " expected [T, Do], [T, Da], [T]"
        )
    obs, steps = exact.astype(np.float32), len(action) - 1
    if steps < 1:
        raise EpisodeError(f"{where}: {len(action)} rows, and no final observation: nothing can be learnt")

    def find(key: str) -> np.ndarray | None:
        value = recording.get(key)
        return None if value is None else _pickles.array(value, f"{where}: {key}")

    said = outcomes.Said(flags=door_open(obs[1:]), reward=reward.reshape(-1), terminal=False)
    told = outcomes.decide(said, steps, rule=rule, find=find, where=where)
    return Episode(
        task="AdroitHandDoor-v1",
        obs={"state": obs},
        action=_columns.actions(action, where)[:-1],
        reward=told.reward,
        terminated=told.terminated,
        success=told.success,
        origin="",
        extras={"env_reward": reward.reshape(-1)[:-1].astype(np.float32), **told.extras},
        start=door_start(exact.astype(np.float64), recording["init_state_dict"]),
    )


def door_open(obs: np.ndarray) -> np.ndarray | None:
    """obs [T, 39] of the door task -> [T] bool: its hinge (column 28) at 1.35 rad or more; None for another task."""
    return obs[:, 28] >= DOOR_OPEN if obs.shape[1] == 39 else None


def door_start(obs: np.ndarray, init: dict) -> dict[str, np.ndarray]:
    """The simulator state of a door recording's first observation; obs [T, 39].

    init_state_dict has zeros for the arm's joints and for all velocities, where the recording begins in motion; so the
    positions come from the first observation (qpos[1:28] = obs[:27], hinge obs[28], latch obs[27]) and the velocities,
    at replay, from the second. qpos[0] is not observed (NaN) and follows from where the palm was seen.
    """
    if obs.shape[1] != 39 or not isinstance(init, dict) or not {"door_body_pos", "qvel"} <= set(init):
        return {}
    qpos = [np.concatenate([[np.nan], row[:27], [row[28], row[27]]]) for row in obs[:2]]
    return {
        "qpos": qpos[0],
        "qvel": _pickles.array(init["qvel"], "init_state_dict: qvel").astype(np.float64),
        "body_pos.frame": _pickles.array(init["door_body_pos"], "init_state_dict: door_body_pos").astype(np.float64),
        "site_pos.S_grasp": obs[0, 29:32],
        "qpos_next": qpos[1],
        "site_next.S_grasp": obs[1, 29:32],
    }
