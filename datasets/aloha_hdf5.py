"""ALOHA's HDF5 layout (ACT, Mobile ALOHA), one file an episode: observations/{qpos, qvel, effort, images/*}, action.

`obs_keys` (default qpos, qvel) are concatenated into `state`. There is no final observation, so the last action is
lost; nothing says whether it worked (unless an attribute or array `success`, or outcome=, does), so success is unknown.
Cameras are all of images/*, or those that `cameras` names: raw, or where the file keeps JPEG rows those bytes as they
are (less the zeros behind them), with the channels in the order that the recorder gave to OpenCV. Rows are taken as
they lie: ACT itself shifts a real robot's actions back by one step."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from flywheel_datasets import _columns, _hdf5

from flywheel import outcome as outcomes
from flywheel.episode import Episode, EpisodeError, attempt
from flywheel.frames import Frames, pictures


def read(
    path: Path,
    obs_keys: list[str] | None = None,
    origin: str = "human:teleoperation",
    fps: float = 50.0,
    cameras: list[str] | None = None,
    outcome: Any = None,
) -> Iterator[Episode | EpisodeError]:
    """Yield the one episode of a file; EpisodeError says what is missing and what there is."""
    rule = outcomes.rule(outcome)
    with _hdf5.opened(path) as file:
        if "action" not in file or "observations" not in file:
            there = ", ".join(file)[:500] or "nothing"
            raise EpisodeError(f"{path}: there is {there}; expected `observations` and `action`")
        yield attempt(lambda: episode(file, str(path), obs_keys, origin, fps, cameras, rule), str(path))


def episode(file: _hdf5.Group, where: str, obs_keys, origin: str, fps: float, cameras, rule) -> Episode:
    """The episode of an open file."""
    seen = file.group("observations")
    there = {key: value for key, value in seen.arrays().items() if not key.startswith("images/")}
    here = {key: value.shape for key, value in there.items()}
    default = [key for key in ("qpos", "qvel") if key in here] or ["qpos"]
    keys = _columns.wanted(default if obs_keys is None else obs_keys, here, where)
    parts = {key: there[key][()] for key in keys}
    obs = _columns.state(list(parts.values()), where)
    action = _columns.actions(file.array("action")[()], where)
    if len(action) != len(obs) or len(action) < 2:
        raise EpisodeError(
            f"{where}: action is {list(action.shape)}; expected one row for each of {_columns.listed(here)}, and at "
            "least two"
        )
    views = seen.group("images").arrays() if "images" in seen else {}
    names = _columns.cameras(cameras, {name: value.shape for name, value in views.items()}, where)
    images = _columns.frames(lambda name: camera(views[name]), names, where)
    steps = len(action) - 1  # no final observation
    told = outcomes.decide(
        outcomes.Said(
            flag=file.attr("success"),
            flags=file.array("success")[()].reshape(-1) if "success" in file else None,
            reward=file.array("rewards")[()].reshape(-1) if "rewards" in file else None,
            done=True,
        ),
        steps, rule=rule, where=where, find=lambda key: file.attr(key) if key not in file else file.array(key)[()],
    )  # fmt: skip
    extras = {"base_action": file.array("base_action")[:steps]} if "base_action" in file else {}
    return Episode(
        task="",
        obs={"state": obs, **{name.replace("/", "."): value for name, value in images.items()}},
        action=action[:steps],
        reward=told.reward,
        terminated=told.terminated,
        success=told.success,
        origin=origin,
        fps=_columns.rate(fps, where),
        extras={**extras, **told.extras},
        meta={"file": Path(where).name, "demo": Path(where).stem, "sim": bool(file.attr("sim", False))}
        | _columns.layout(parts),
    )


def camera(rows: _hdf5.Array) -> Frames | np.ndarray:
    """A camera's frames [N, H, W, 3], or as encoded: rows of JPEG bytes, padded with zeros to one length."""
    if rows.ndim > 2:
        return rows[()]
    data = (np.asarray(row, np.uint8).tobytes().rstrip(b"\0") for row in rows[()])
    return pictures(data, channels="bgr")  # OpenCV took the first channel for blue
