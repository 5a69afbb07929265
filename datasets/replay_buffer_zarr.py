"""Diffusion policy's ReplayBuffer: a Zarr v2 group (folder, or one .zarr.zip) of data/* [N, ...] and meta/episode_ends.

source= names the folder, or the .zip. `obs_keys` are concatenated into `state` (default: `state` or `obs`, whichever is
there); `action` must be there. There is no final observation, so the last action of each episode is lost, and only
`data/success`, a `data/reward` of 0 and 1, or outcome= says whether it worked; a buffer that `flywheel export` wrote
keeps both and comes back whole. Cameras are all arrays [N, H, W, C] such as `img`, or those that `cameras` names;
floats that are whole numbers from 0 to 255 become uint8.

`write` makes one folder replay_buffer.zarr; the final observation of each episode stands in meta/final.*, the rest of
what flywheel knows in the group's attributes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from flywheel_datasets import _columns, _exported, _survey, _zarr

from flywheel import bounds
from flywheel import outcome as outcomes
from flywheel.episode import Episode, EpisodeError, attempt

REWARDS = ("reward", "rewards")
CHUNK_BYTES, FLUSH_BYTES = 2**20, 32 * 2**20  # of an array; of what is held before it is written


def unit(folder: Path) -> Path | None:
    """The file that source= names for a buffer's folder, None where it is none."""
    ends = Path(folder) / "meta" / "episode_ends"
    return next((file for name in (".zarray", "zarr.json") if (file := ends / name).is_file()), None)


def parts(path: Path) -> list[Path]:
    """The files that decide what is read: all of the buffer's."""
    root = _root(Path(path))
    if not root.is_dir():
        return [root]
    return sorted(p for p in root.rglob("*") if p.is_file() and bounds.within(root, p))


def _root(path: Path) -> Path:
    """The buffer that `.zarray` or zarr.json of its episode_ends lies in; any other path as it is."""
    return path.parents[2] if path.name in (".zarray", "zarr.json") and path.parent.name == "episode_ends" else path


def read(
    path: Path,
    obs_keys: list[str] | None = None,
    origin: str | None = None,
    fps: float | None = None,
    cameras: list[str] | None = None,
    outcome: Any = None,
) -> Iterator[Episode | EpisodeError]:
    """Yield the episodes in order, or an EpisodeError in the place of one; what it cannot open it refuses in words."""
    root, rule = _root(Path(path)), outcomes.rule(outcome)
    try:
        group, stored = _zarr.opened(root)
        arrays, refused = usable(group, stored)
        ends = np.asarray(group["meta/episode_ends"][:]).astype(np.int64).reshape(-1)
        here = {key: array.shape for key, array in arrays.items()}
    except EpisodeError as error:
        raise EpisodeError(f"{path}: {error}") from error
    except Exception as error:  # zarr, zipfile and codecs raise what they like
        raise EpisodeError(
            f"{path}: no replay buffer of data/* and meta/episode_ends: {error!r}; give source=<buffer>, its folder or "
            ".zip"
        ) from error
    mine, begins = dict(group.attrs).get("flywheel"), np.concatenate([[0], ends[:-1]])
    if "action" not in here or (np.diff(ends, prepend=0) < 0).any() or (ends[-1:] > here["action"][0]).any():
        raise EpisodeError(
            f"{path}: there is {_columns.listed(here)} and episodes end at {ends[:5].tolist()}...; expected `action` "
            "and"
            f" ends that rise, up to its rows{'. ' + '; '.join(refused) if refused else ''}"
        )
    keys = [k for k in ("state", "obs") if k in here][:1] or ["state"]
    keys = _columns.wanted(keys if obs_keys is None else obs_keys, here, str(path))
    images = _columns.cameras(cameras, {key: shape for key, shape in here.items() if len(shape) == 4}, str(path))
    sparse = outcomes.sparse([_rewards(arrays)])
    for number, (start, stop) in enumerate(zip(begins.tolist(), ends.tolist(), strict=True)):
        where = f"{path}: episode {number}"

        def one(number=number, start=start, stop=stop, where=where) -> Episode:
            rows = slice(start, stop)
            if mine and obs_keys is None:
                found = _columns.only(exported(group, mine, number, rows, root), cameras)
                return found.replace(origin=origin or found.origin, fps=_columns.rate(fps or found.fps, where))
            cut = {key: arrays[key][rows] for key in {*keys, "action", *images}}
            found = episode(cut, keys, images, where)
            told = judged(arrays, rows, len(found), sparse, rule, where)
            return found.replace(
                reward=told.reward,
                terminated=told.terminated,
                success=told.success,
                extras=told.extras | _kept(arrays, rows),
                origin=origin or "human",
                fps=_columns.rate(fps, where),
                meta={"file": root.name, "demo": number, **(_late(arrays, rows, fps) if fps else {})}
                | _columns.layout({key: cut[key] for key in keys}),
            )

        yield attempt(one, where)


def usable(group, stored: _zarr.Bytes) -> tuple[dict[str, Any], list[str]]:
    """{key: array} of data/* that are plain numbers of a size that is there, and why others are left out; pickles
    are refused."""
    for _, array in group["meta"].arrays():
        _zarr.allowed(array, stored)
    arrays, refused = {}, []
    for key, array in sorted(group["data"].arrays(), key=lambda pair: pair[0]):
        try:
            _zarr.allowed(array, stored)
            arrays[key] = array
        except EpisodeError as error:
            if "pickles" in str(error) or key in ("action", "state", "obs"):
                raise
            refused.append(str(error))
    return arrays, refused


def episode(cut: dict[str, np.ndarray], keys: list[str], images: list[str], where: str) -> Episode:
    """The rows of one episode; the last action is lost."""
    obs = _columns.state([cut[key] for key in keys], where)
    action = _columns.actions(cut["action"], where)
    steps = len(action) - 1  # no final observation
    if steps < 1:
        raise EpisodeError(f"{where}: {len(action)} rows, and no final observation: nothing can be learnt")
    seen = {"state": obs, **{name: _columns.pixels(cut[name]) for name in images}}
    nothing = np.zeros(steps, np.float32)
    return Episode(task="", obs=seen, action=action[:steps], reward=nothing, terminated=False, success=None, origin="")


def judged(arrays: dict, rows: slice, steps: int, sparse: bool, rule, where: str) -> outcomes.Outcome:
    """The outcome of one episode."""
    reward = next((arrays[key][rows].reshape(-1) for key in REWARDS if key in arrays), None)
    flags = arrays["success"][rows] if "success" in arrays else None
    said = outcomes.Said(flags=flags, reward=reward, done=True)
    find = lambda key: arrays[key][rows] if key in arrays else None  # noqa: E731
    return outcomes.decide(said, steps, sparse=sparse, rule=rule, find=find, where=where)


def _rewards(arrays: dict) -> np.ndarray:
    """The reward of the whole buffer; nothing where it cannot be read (its episodes say why)."""
    for key in REWARDS:
        try:
            if key in arrays:
                return arrays[key][:].reshape(-1)
        except Exception:
            break
    return np.zeros(0)


def _kept(arrays: dict, rows: slice) -> dict[str, np.ndarray]:
    reward = next((arrays[key][rows] for key in REWARDS if key in arrays), None)
    return {} if reward is None else {"env_reward": reward.reshape(-1)[:-1].astype(np.float32)}


def _late(arrays: dict, rows: slice, fps: float) -> dict[str, Any]:
    """meta's skew_s where rows have times."""
    if "timestamp" not in arrays:
        return {}
    seconds = np.asarray(arrays["timestamp"][rows], np.float64).reshape(-1)
    return {"skew_s": {"rows": _columns.skew(seconds - seconds[0] - np.arange(len(seconds)) / fps)}}


def exported(group, mine: dict[str, Any], number: int, rows: slice, root: Path) -> Episode:
    """An episode that `flywheel export` wrote."""
    return _exported.episode(
        mine["episodes"][number],
        mine["streams"],
        lambda name: group["data"][name][rows],
        lambda name: group["meta"][f"final.{name}"][number],
        root.name,
    )


def write(folder: Path, episodes: Iterable[Episode], seen: _survey.Survey, fps: float | None) -> None:
    """folder/replay_buffer.zarr; arrays grow by some 32 MB at a time."""
    import zarr
    from numcodecs import Blosc

    kept = _survey.keep(seen, lambda s: True, "")
    _survey.decoded(seen)
    taken = {"action", "reward"}
    kept = {s.key if s.kind == "obs" and s.key not in taken else s.name: s for s in kept}
    seen.aside.append("final observation (meta/final.*), origin, seed, fps, terminated, success and meta (attributes)")
    root = zarr.open_group(str(folder / "replay_buffer.zarr"), mode="w", zarr_format=2)

    def create(name: str, stream: _survey.Stream):
        wide = max(1, int(np.prod(stream.shape))) * np.dtype(stream.dtype).itemsize
        chunks = (max(1, min(8192, CHUNK_BYTES // wide)), *stream.shape)
        packer = Blosc(cname="lz4", clevel=5, shuffle=Blosc.SHUFFLE)
        return root.create_array(
            name, shape=(0, *stream.shape), chunks=chunks, dtype=stream.dtype, compressors=packer, fill_value=0
        )

    stored = {f"data/{name}": (create(f"data/{name}", stream), []) for name, stream in kept.items()}
    stored |= {f"meta/final.{n}": (create(f"meta/final.{n}", s), []) for n, s in kept.items() if s.longer}

    def flush() -> None:
        for array, parts in stored.values():
            array.append(np.concatenate(parts))
            parts.clear()

    ends, records, waiting = [0], [], 0
    for episode in episodes:
        steps = len(episode)
        for name, stream in kept.items():
            value = np.asarray(stream.of(episode))
            stored[f"data/{name}"][1].append(value[:steps])
            if stream.longer:
                stored[f"meta/final.{name}"][1].append(value[steps:])
            waiting += value.nbytes
        ends.append(ends[-1] + steps)
        records.append(_survey.record(episode))
        if waiting > FLUSH_BYTES:
            flush()
            waiting = 0
    if waiting:
        flush()
    ends = ends[1:]
    root.create_array("meta/episode_ends", data=np.array(ends, np.int64), chunks=(len(ends),))
    root.attrs["flywheel"] = {"streams": _survey.streams(kept), "episodes": records}
