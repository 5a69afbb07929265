"""ALOHA's HDF5 layout (ACT, Mobile ALOHA), one file an episode: observations/{qpos, qvel, effort, images/*}, action.

`obs_keys` (default qpos, qvel) are concatenated into `state`. There is no final observation, so the last action is lost;
nothing says whether it worked, so success is unknown. Cameras are all of images/*, or those that `cameras` names: raw, or
where the file keeps JPEG rows those bytes as they are (less the zeros behind them), with the channels in the order that the
recorder gave to OpenCV. Rows are taken as they lie: ACT itself shifts a real robot's actions back by one step.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import h5py
import numpy as np
from flywheel_datasets import _columns, _outcome

from flywheel.episode import Episode, EpisodeError
from flywheel.frames import Frames, pictures


def read(
    path: Path,
    obs_keys: list[str] | None = None,
    origin: str = "human:teleoperation",
    fps: float = 50.0,
    cameras: list[str] | None = None,
) -> Iterator[Episode | EpisodeError]:
    """Yield the one episode of a file; EpisodeError says what is missing and what there is."""
    try:
        file = h5py.File(path, "r")
    except OSError as error:
        raise EpisodeError(f"{path}: not an HDF5 file that can be read: {error}") from error
    with file:
        if "action" not in file or "observations" not in file:
            raise EpisodeError(f"{path}: there is {', '.join(file) or 'nothing'}; expected `observations` and `action`")
        try:
            yield episode(file, str(path), obs_keys, origin, fps, cameras)
        except (ValueError, TypeError, KeyError, OSError) as error:  # what a damaged file may raise
            yield error if isinstance(error, EpisodeError) else EpisodeError(f"{path}: {error!r}")


def episode(file: h5py.File, where: str, obs_keys, origin: str, fps: float, cameras) -> Episode:
    """The episode of an open file."""
    seen = file["observations"]
    here = {key: value.shape for key, value in seen.items() if isinstance(value, h5py.Dataset)}
    default = [key for key in ("qpos", "qvel") if key in here] or ["qpos"]
    keys = _columns.wanted(default if obs_keys is None else obs_keys, here, where)
    obs = _columns.state([seen[key][()] for key in keys], where)
    action = _columns.actions(file["action"][()], where)
    if len(action) != len(obs) or len(action) < 2:
        raise EpisodeError(
            f"{where}: action is {list(action.shape)}; expected one row for each of {_columns.listed(here)}"
        )
    there = {name: value.shape for name, value in seen["images"].items()} if "images" in seen else {}
    names = _columns.cameras(cameras, there, where)
    images = _columns.frames(lambda name: camera(seen["images"][name]), names, where)
    steps = len(action) - 1  # no final observation
    reward, success = _outcome.outcome(None, steps)
    extras = {"base_action": file["base_action"][:steps]} if "base_action" in file else {}
    return Episode(
        task="",
        obs={"state": obs, **images},
        action=action[:steps],
        reward=reward,
        terminated=False,
        success=success,
        origin=origin,
        fps=float(fps),
        extras=extras,
        meta={"file": Path(where).name, "demo": Path(where).stem, "sim": bool(file.attrs.get("sim", False))},
    )


def camera(rows: h5py.Dataset) -> Frames | np.ndarray:
    """A camera's frames [N, H, W, 3], or as encoded: rows of JPEG bytes, padded with zeros to one length."""
    if rows.ndim > 2:
        return rows[()]
    data = (np.asarray(row, np.uint8).tobytes().rstrip(b"\0") for row in rows)
    return pictures(data, channels="bgr")  # OpenCV took the first channel for blue
