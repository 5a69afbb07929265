"""Minari's HDF5 layout, <dataset>/data/main_data.hdf5: episode_*/{observations [T+1], actions, rewards, terminations, ...}.

The final observation is there, so nothing is lost. Observations that are a dict are taken apart: `obs_keys`, default all
keys sorted (Gymnasium's own order when it flattens), nested ones as `a/b`. Success: infos/success or
infos/goal_achieved, else a reward of only 0 and 1. The data set's id and its environment come from the file or from
metadata.json beside it. Minari's other layout (Arrow) is not read.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from flywheel_datasets import _columns, _outcome

from flywheel.episode import Episode, EpisodeError


def read(
    path: Path, obs_keys: list[str] | None = None, origin: str | None = None, fps: float = 0.0
) -> Iterator[Episode | EpisodeError]:
    """Yield an episode for each group in the order of their numbers, or an EpisodeError in its place."""
    try:
        file = h5py.File(path, "r")
    except OSError as error:
        raise EpisodeError(f"{path}: not an HDF5 file that can be read: {error}") from error
    with file:
        names = sorted((n for n in file if n.startswith("episode_")), key=lambda n: (len(n), n))
        if not names:
            raise EpisodeError(f"{path}: there is {', '.join(file) or 'nothing'}; expected groups episode_0, ...")
        told = about(file, Path(path))
        rewards = [file[n]["rewards"][()].reshape(-1) for n in names if "rewards" in file[n]]
        sparse = _outcome.scores(np.concatenate(rewards) if rewards else None)
        for name in names:
            where = f"{path}: {name}"
            try:
                yield episode(file[name], where, obs_keys, origin or f"dataset:{told['dataset']}", fps, sparse, told)
            except (ValueError, TypeError, KeyError, OSError) as error:  # what a damaged group may raise
                yield error if isinstance(error, EpisodeError) else EpisodeError(f"{where}: {error!r}")


def episode(group: h5py.Group, where: str, obs_keys, origin: str, fps: float, sparse: bool, told: dict) -> Episode:
    """One group as an Episode."""
    if missing := [key for key in ("observations", "actions") if key not in group]:
        raise EpisodeError(f"{where}: no {', '.join(missing)}; there is {', '.join(group)}")
    action = _columns.actions(group["actions"][()], where)
    steps = len(action)
    seen = arrays(group["observations"])
    keys = _columns.wanted(seen if obs_keys is None else obs_keys, {k: v.shape for k, v in seen.items()}, where)
    obs = _columns.state([seen[key][()] for key in keys], where)
    if len(obs) != steps + 1:
        raise EpisodeError(f"{where}: {len(obs)} observations and {steps} actions; expected one observation more")
    reward = group["rewards"][()].reshape(-1).astype(np.float32) if "rewards" in group else None
    flags = solved(group.get("infos"))
    if flags is not None:
        flags = flags[-steps:]  # infos may have a first row of the reset
    elif sparse and reward is not None:
        flags = reward > 0
    learning, success = _outcome.outcome(flags, steps)
    seed = group.attrs.get("seed")
    return Episode(
        task="",
        obs={"state": obs},
        action=action,
        reward=learning,
        terminated=bool("terminations" in group and group["terminations"][-1]),
        success=success,
        origin=origin,
        seed=int(seed) if isinstance(seed, (int, np.integer)) and abs(int(seed)) < 2**63 else None,
        fps=float(fps),
        extras={} if reward is None else {"env_reward": reward},
        meta={"file": Path(where.rsplit(": ", 1)[0]).name, "demo": group.name.rsplit("/", 1)[-1], **told},
    )


def solved(infos: h5py.Group | h5py.Dataset | None) -> np.ndarray | None:
    """Which rows say success or goal_achieved, [T or T+1] bool; infos are arrays by name or, in newer files, JSON texts."""
    for key in ("success", "goal_achieved"):
        if isinstance(infos, h5py.Group) and key in infos:
            return infos[key][()].reshape(len(infos[key]), -1).any(axis=1)
        if isinstance(infos, h5py.Dataset):
            told = [json.loads(text) for text in infos[()]]
            if any(key in row for row in told):
                return np.array([bool(np.any(row.get(key, False))) for row in told])
    return None


def arrays(found: h5py.Dataset | h5py.Group, name: str = "") -> dict[str, h5py.Dataset]:
    """{path: array} of an observation, which may be an array, or nested groups of them; sorted."""
    if isinstance(found, h5py.Dataset):
        return {name or "observations": found}
    return {k: v for key in sorted(found) for k, v in arrays(found[key], f"{name}/{key}".lstrip("/")).items()}


def about(file: h5py.File, path: Path) -> dict[str, Any]:
    """{"dataset": its id, "env": the environment's id if known}, from the file's attributes or metadata.json."""
    found = dict(file.attrs)
    beside = path.parent / "metadata.json"
    if beside.is_file():
        try:
            found = json.loads(beside.read_text()) | found
        except ValueError as error:
            raise EpisodeError(f"{beside}: no JSON: {error}") from error
    spec = found.get("env_spec")
    try:
        spec = json.loads(spec) if isinstance(spec, (str, bytes)) else spec
    except ValueError:
        spec = None
    env = {"env": spec["id"]} if isinstance(spec, dict) and "id" in spec else {}
    return {"dataset": str(found.get("dataset_id", "minari")), **env}
