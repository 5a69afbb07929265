"""Observation keys in order, concatenated to one state; cameras; and the message of what a file has, for a key that it lacks."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

import numpy as np

from flywheel.episode import Episode, EpisodeError
from flywheel.frames import Frames


def listed(arrays: Mapping[str, tuple[int, ...]]) -> str:
    """{name: shape} as "qpos [40, 14], qvel [40, 14]"."""
    return ", ".join(f"{name} {list(shape)}" for name, shape in arrays.items()) or "nothing"


def wanted(keys: Iterable[str], here: Mapping[str, tuple[int, ...]], where: str) -> list[str]:
    """`keys`, if they are all there; else EpisodeError that lists what there is."""
    keys = [str(key) for key in keys]
    if absent := [key for key in keys if key not in here]:
        raise EpisodeError(
            f"{where}: no {', '.join(absent)}; there is {listed(here)}. Name the keys with obs_keys=[...]"
        )
    return keys


def cameras(names: Iterable[str] | None, here: Mapping[str, tuple[int, ...]], where: str) -> list[str]:
    """The cameras to read: all that are `here`, or those named; EpisodeError that lists what there is."""
    for name in names or ():
        if name not in here:
            raise EpisodeError(f"{where}: no camera {name!r}; there is {listed(here)}. Name them with cameras=[...]")
    return list(here if names is None else names)


def frames(
    make: Callable[[str], Frames | np.ndarray], names: Iterable[str], where: str
) -> dict[str, Frames | np.ndarray]:
    """{camera: make(camera)}; what cannot be read of one is told with its name."""
    out = {}
    for name in names:
        try:
            out[name] = make(name)
        except (EpisodeError, OSError) as error:
            raise EpisodeError(f"{where}: camera {name}: {error}") from error
    return out


def pixels(rows: np.ndarray) -> np.ndarray:
    """Frames that are kept as floats of whole numbers from 0 to 255 as uint8, which holds the same; others as they are."""
    if rows.ndim != 4 or rows.dtype.kind != "f":
        return rows
    with np.errstate(invalid="ignore"):
        whole = rows.astype(np.uint8)
    return whole if np.array_equal(whole, rows) else rows


def only(episode: Episode, names: Iterable[str] | None) -> Episode:
    """An episode with no other cameras than those named, or all."""
    kept = {k: v for k, v in episode.obs.items() if v.ndim != 4 or names is None or k in names}
    return episode.replace(obs=kept)


def state(parts: list[np.ndarray], where: str) -> np.ndarray:
    """[N, ...] each -> [N, Do] float32, side by side in their order."""
    if not parts:
        raise EpisodeError(f"{where}: no observation of numbers; name the keys with obs_keys=[...]")
    if len({len(part) for part in parts}) != 1:
        raise EpisodeError(
            f"{where}: observations of {', '.join(str(len(p)) for p in parts)} rows; expected equal ones"
        )
    return np.concatenate([np.asarray(part, np.float32).reshape(len(part), -1) for part in parts], axis=1)


def skew(seconds: np.ndarray) -> list[float]:
    """[median, largest] of the distances [N] of a stream's samples from the control ticks: what meta["skew_s"] has of it."""
    seconds = np.abs(np.asarray(seconds, np.float64))
    return [round(float(np.median(seconds)), 6), round(float(seconds.max()), 6)]


def actions(array: np.ndarray, where: str) -> np.ndarray:
    """[T, Da] float32; EpisodeError for numbers of a choice (discrete actions) and for other shapes."""
    if array.ndim != 2 or not np.issubdtype(array.dtype, np.floating):
        raise EpisodeError(
            f"{where}: action is {array.dtype} {list(array.shape)}; expected floats [T, Da] (discrete actions are not for"
            " flywheel's policies)"
        )
    return array.astype(np.float32)
