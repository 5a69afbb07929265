"""Minari's HDF5 layout, <dataset>/data/main_data.hdf5: episode_*/{observations [T+1], actions, rewards, terminations,
...}.

The final observation is there, so nothing is lost. Observations that are a dict are taken apart: `obs_keys`, default
all keys sorted (Gymnasium's own order when it flattens), nested ones as `a/b`. Success: infos/success or
infos/goal_achieved, else as flywheel.outcome says; `terminations` ends an episode for good. The data set's id and its
environment come from the file or from metadata.json beside it. Minari's other layout (Arrow) is not read."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from flywheel_datasets import _columns, _hdf5

from flywheel import bounds
from flywheel import outcome as outcomes
from flywheel.episode import Episode, EpisodeError, attempt

FLAGS = ("success", "goal_achieved")


def unit(folder: Path) -> Path | None:
    """The file that source= names for a data set's folder, None where it is none."""
    file = Path(folder) / "data" / "main_data.hdf5"
    return file if file.is_file() else None


def read(
    path: Path,
    obs_keys: list[str] | None = None,
    origin: str | None = None,
    fps: float = 0.0,
    outcome: Any = None,
) -> Iterator[Episode | EpisodeError]:
    """Yield an episode for each group in the order of their numbers, or an EpisodeError in its place."""
    rule = outcomes.rule(outcome)
    with _hdf5.opened(path) as file:
        names = sorted((n for n in file if n.startswith("episode_")), key=lambda n: (len(n), n))
        if not names:
            raise EpisodeError(f"{path}: there is {', '.join(file)[:500] or 'nothing'}; expected groups episode_0, ...")
        told = about(file, Path(path))
        sparse = outcomes.sparse(r for r in (rewards(file, name) for name in names) if r is not None)
        for name in names:
            where = f"{path}: {name}"

            def one(name=name, where=where) -> Episode:
                found = episode(file.group(name), where, obs_keys, sparse, rule)
                meta = {"file": Path(path).name, "demo": name, **told, **found.meta}
                return found.replace(
                    origin=origin or f"dataset:{told['dataset']}", fps=_columns.rate(fps, where), meta=meta
                )

            yield attempt(one, where)


def rewards(file: _hdf5.Group, name: str) -> np.ndarray | None:
    """An episode's rewards; None where there are none that can be read (the episode itself says why)."""
    try:
        return file.array(f"{name}/rewards")[()].reshape(-1)
    except Exception:
        return None


def episode(group: _hdf5.Group, where: str, obs_keys, sparse: bool, rule) -> Episode:
    """One group as an Episode."""
    if missing := [key for key in ("observations", "actions") if key not in group]:
        raise EpisodeError(f"{where}: no {', '.join(missing)}; there is {', '.join(group)[:500]}")
    action = _columns.actions(group.array("actions")[()], where)
    steps = len(action)
    found = group["observations"]
    seen = {"observations": found} if isinstance(found, _hdf5.Array) else found.arrays()
    keys = _columns.wanted(seen if obs_keys is None else obs_keys, {k: v.shape for k, v in seen.items()}, where)
    parts = {key: seen[key][()] for key in keys}
    obs = _columns.state(list(parts.values()), where)
    if len(obs) != steps + 1:
        raise EpisodeError(f"{where}: {len(obs)} observations and {steps} actions; expected one observation more")
    reward = group.array("rewards")[()].reshape(-1) if "rewards" in group else None
    ends = group.array("terminations")[()].reshape(-1) if "terminations" in group else np.zeros(0)
    infos = group.get("infos")
    told = outcomes.decide(
        outcomes.Said(
            flags=next((f for key in FLAGS if (f := info(infos, key, steps)) is not None), None),
            reward=reward,
            terminal=bool(len(ends) and ends[-1]),
        ),
        steps, sparse=sparse, rule=rule, where=where,
        find=lambda key: group.array(key)[()]
        if key in group and not key.startswith("infos/")
        else info(infos, key.removeprefix("infos/"), steps),
    )  # fmt: skip
    seed, dropped = _columns.seed(group.attr("seed"))
    return Episode(
        task="",
        obs={"state": obs},
        action=action,
        reward=told.reward,
        terminated=told.terminated,
        success=told.success,
        origin="",
        seed=seed,
        extras={**({} if reward is None else {"env_reward": reward.astype(np.float32)}), **told.extras},
        meta=dropped | _columns.layout(parts),
    )


def info(infos: _hdf5.Group | _hdf5.Array | None, key: str, steps: int) -> np.ndarray | None:
    """What infos say of `key`, a step; they are arrays by name or, in newer files, JSON texts, perhaps with one of
    the reset."""
    if isinstance(infos, _hdf5.Group) and key in infos:
        return infos.array(key)[()][-steps:]
    if isinstance(infos, _hdf5.Array):
        told = [json.loads(text) for text in infos.texts()][-steps:]
        if any(key in row for row in told):
            return np.array([np.asarray(row.get(key, False), np.float64).reshape(-1)[:1].sum() for row in told])
    return None


def about(file: _hdf5.Group, path: Path) -> dict[str, Any]:
    """{"dataset": its id, "env": the environment's id if known}, from the file's attributes or metadata.json."""
    found = {key: value for key in ("dataset_id", "env_spec") if (value := file.attr(key)) is not None}
    beside = path.parent / "metadata.json"
    if beside.is_file():
        try:
            found = json.loads(bounds.inside(path.parent, beside.name, str(path)).read_text()) | found
        except (ValueError, TypeError, RecursionError) as error:
            raise error if isinstance(error, EpisodeError) else EpisodeError(f"{beside}: no JSON: {error}") from error
    spec = found.get("env_spec")
    try:
        spec = json.loads(spec) if isinstance(spec, (str, bytes)) else spec
    except (ValueError, RecursionError):
        spec = None
    env = {"env": _columns.text(spec["id"])[:255]} if isinstance(spec, dict) and "id" in spec else {}
    return {"dataset": _columns.text(found.get("dataset_id", "minari")), **env}
