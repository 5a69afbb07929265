"""Diffusion policy's ReplayBuffer: a Zarr v2 group (folder, or one .zarr.zip) of data/* [N, ...] and meta/episode_ends.

source= names <root>/meta/episode_ends/.zarray, or the .zip. `obs_keys` are concatenated into `state` (default: `state` or
`obs`, whichever is there); `action` must be there. There is no final observation, so the last action of each episode is
lost, and nothing says whether it worked; a buffer that `flywheel export` wrote keeps both and comes back whole. Cameras are
all arrays [N, H, W, C] such as `img`, or those that `cameras` names; floats that are whole numbers from 0 to 255 become uint8.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from flywheel_datasets import _columns, _exported, _outcome

from flywheel.episode import Episode, EpisodeError


def parts(path: Path) -> list[Path]:
    """The files that decide what is read: all of the buffer's."""
    root = _root(Path(path))
    return sorted(p for p in root.rglob("*") if p.is_file()) if root.is_dir() else [root]


def _root(path: Path) -> Path:
    """The buffer that `.zarray` or zarr.json of its episode_ends lies in; any other path as it is."""
    return path.parents[2] if path.name in (".zarray", "zarr.json") and path.parent.name == "episode_ends" else path


def read(
    path: Path,
    obs_keys: list[str] | None = None,
    origin: str | None = None,
    fps: float | None = None,
    cameras: list[str] | None = None,
) -> Iterator[Episode | EpisodeError]:
    """Yield the episodes in order, or an EpisodeError in the place of one; what it cannot open it refuses in words."""
    import zarr
    from zarr.storage import ZipStore

    root = _root(Path(path))
    try:
        store = ZipStore(root, mode="r") if root.is_file() else str(root)
        group = zarr.open_group(store, mode="r")
        for _, array in (*group["meta"].arrays(), *group["data"].arrays()):
            plain(array)
        ends = np.asarray(group["meta/episode_ends"][:], np.int64)
        here = {key: array.shape for key, array in sorted(group["data"].arrays(), key=lambda pair: pair[0])}
    except EpisodeError as error:
        raise EpisodeError(f"{path}: {error}") from error
    except Exception as error:  # zarr, zipfile and codecs raise what they like
        raise EpisodeError(
            f"{path}: no replay buffer of data/* and meta/episode_ends: {error!r}; give <root>/meta/episode_ends/.zarray"
        ) from error
    data, mine = group["data"], dict(group.attrs).get("flywheel")
    begins = np.concatenate([[0], ends[:-1]])
    if "action" not in here or (np.diff(ends, prepend=0) < 1).any() or (ends[-1:] > here["action"][0]).any():
        raise EpisodeError(
            f"{path}: there is {_columns.listed(here)} and episodes end at {ends[:5].tolist()}...; expected `action` and"
            " ends that rise, up to its rows"
        )
    keys = [k for k in ("state", "obs") if k in here][:1] or ["state"]
    keys = _columns.wanted(keys if obs_keys is None else obs_keys, here, str(path))
    images = _columns.cameras(cameras, {key: shape for key, shape in here.items() if len(shape) == 4}, str(path))
    for number, (start, stop) in enumerate(zip(begins.tolist(), ends.tolist(), strict=True)):
        where = f"{path}: episode {number}"
        try:
            if mine and obs_keys is None:
                found = _exported.episode(
                    mine["episodes"][number],
                    mine["streams"],
                    lambda name, a=start, b=stop: data[name][a:b],
                    lambda name, number=number: group["meta"][f"final.{name}"][number],
                    root.name,
                )
                found = _columns.only(found, cameras)
                yield found.replace(origin=origin or found.origin, fps=float(fps or found.fps))
                continue
            obs = _columns.state([data[key][start:stop] for key in keys], where)
            action = _columns.actions(data["action"][start:stop], where)
            steps = len(action) - 1  # no final observation
            if steps < 1:
                raise EpisodeError(f"{where}: one row only, and no final observation: nothing can be learnt")
            reward, success = _outcome.outcome(None, steps)
            late = {}
            if fps and "timestamp" in here:
                seconds = np.asarray(data["timestamp"][start:stop], np.float64).reshape(-1)
                late = {"skew_s": {"rows": _columns.skew(seconds - seconds[0] - np.arange(len(seconds)) / fps)}}
            yield Episode(
                task="",
                obs={"state": obs, **{name: _columns.pixels(data[name][start:stop]) for name in images}},
                action=action[:steps],
                reward=reward,
                terminated=False,
                success=success,
                origin=origin or "human",
                fps=float(fps or 0.0),
                meta={"file": root.name, "demo": number, **late},
            )
        except Exception as error:  # a damaged chunk, a codec that is not here
            yield error if isinstance(error, EpisodeError) else EpisodeError(f"{where}: {error!r}")


def plain(array) -> None:
    """EpisodeError for an array whose chunks are pickles: nothing in a file runs."""
    parts = [*(getattr(array.metadata, "filters", None) or ()), getattr(array.metadata, "compressor", None)]
    if "pickle" in [getattr(part, "codec_id", None) for part in parts]:
        raise EpisodeError(f"array {array.name} is kept as pickles, which could run code; write it again as numbers")
