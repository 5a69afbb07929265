"""hand_dapg pickles: Adroit demonstrations of Rajeswaran et al. (RSS 2018), github aravindr93/hand_dapg.

A list of dicts with `observations` [T, Do], `actions` [T, Da], `rewards` [T] and `init_state_dict`. There is no final
observation, so the last action is lost. The pickle is read by an unpickler that knows numpy's arrays and nothing else.
"""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from flywheel.episode import Episode, EpisodeError

ALLOWED = {(f"numpy.{core}.multiarray", name) for core in ("core", "_core") for name in ("_reconstruct", "scalar")} | {
    ("numpy", "ndarray"),
    ("numpy", "dtype"),
    ("numpy.core.numeric", "_frombuffer"),
    ("_codecs", "encode"),
}

DOOR_OPEN = 1.35  # rad; AdroitHandDoor-v1's own threshold


class ArraysOnly(pickle.Unpickler):
    """Refuses, by name, any global that is not one of numpy's array types; nothing in the file runs."""

    def find_class(self, module: str, name: str):
        if (module, name) not in ALLOWED:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}; only numpy arrays are read from a pickle")
        return super().find_class(module, name)


def load_arrays(path: Path):
    """The numpy objects in a pickle, or EpisodeError that names what it asked for."""
    try:
        with open(path, "rb") as file:
            return ArraysOnly(file, encoding="latin1").load()
    except (pickle.UnpicklingError, EOFError, AttributeError, ImportError, IndexError, ValueError) as error:
        raise EpisodeError(f"{path}: not a pickle of numpy arrays: {error}") from error


def read(path: Path, origin: str = "human:vr", fps: float = 100.0) -> Iterator[Episode]:
    """Yield one episode a recording; `start` holds what `check=replay` sets the simulator to."""
    recordings = load_arrays(path)
    if not isinstance(recordings, list):
        raise EpisodeError(f"{path}: found a {type(recordings).__name__}; expected a list of recordings")
    for i, recording in enumerate(recordings):
        where = f"{path}: recording {i}"
        try:
            obs = np.asarray(recording["observations"], np.float32)
            exact = np.asarray(recording["observations"], np.float64)
            action = np.asarray(recording["actions"], np.float32)
            reward = np.asarray(recording["rewards"], np.float32)
            init = recording["init_state_dict"]
        except (KeyError, TypeError, ValueError) as error:
            raise EpisodeError(
                f"{where}: {error!r}; expected observations, actions, rewards, init_state_dict"
            ) from error
        if obs.ndim != 2 or action.ndim != 2 or not len(obs) == len(action) == len(reward):
            raise EpisodeError(
                f"{where}: observations {list(obs.shape)}, actions {list(action.shape)}, rewards {list(reward.shape)};"
                " expected [T, Do], [T, Da], [T]"
            )
        won = door_open(obs[1:])
        learning = np.zeros(len(obs) - 1, np.float32)
        if won is not None and won.any():
            learning[won.argmax()] = 1.0
        yield Episode(
            task="AdroitHandDoor-v1",
            obs={"state": obs},
            action=action[:-1],
            reward=learning,
            terminated=False,
            success=None if won is None else bool(won.any()),
            origin=origin,
            fps=fps,
            extras={"env_reward": reward[:-1]},
            start=door_start(exact, init),
            meta={"file": Path(path).name, "demo": i},
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
    if obs.shape[1] != 39 or "door_body_pos" not in init:
        return {}
    qpos = [np.concatenate([[np.nan], row[:27], [row[28], row[27]]]) for row in obs[:2]]
    return {
        "qpos": qpos[0],
        "qvel": np.asarray(init["qvel"], np.float64),
        "body_pos.frame": np.asarray(init["door_body_pos"], np.float64),
        "site_pos.S_grasp": obs[0, 29:32],
        "qpos_next": qpos[1],
        "site_next.S_grasp": obs[1, 29:32],
    }
