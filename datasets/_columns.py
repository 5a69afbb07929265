"""Observation keys in order, concatenated to one state; cameras; and the message of what a file has, for a key that
it lacks."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping

import numpy as np

from flywheel.episode import Episode, EpisodeError
from flywheel.frames import Frames


def listed(arrays: Mapping[str, tuple[int, ...]]) -> str:
    """{name: shape} as "qpos [40, 14], qvel [40, 14]"."""
    names = [f"{name[:80]} {list(shape)}" for name, shape in arrays.items()]
    return ", ".join(names[:40]) + (f" and {len(names) - 40} more" if len(names) > 40 else "") or "nothing"


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
        except Exception as error:  # what damaged pictures raise
            raise EpisodeError(f"{where}: camera {name}: {str(error)[:1000] or repr(error)}") from error
    return out


def pixels(rows: np.ndarray) -> np.ndarray:
    """Frames that are kept as floats of whole numbers from 0 to 255 as uint8, which holds the same; others as they
    are."""
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
    if wrong := [part for part in parts if part.dtype.kind not in "biuf" or not part.ndim]:
        raise EpisodeError(
            f"{where}: an observation of {wrong[0].dtype} {list(wrong[0].shape)}; expected numbers [N, ...]"
        )
    if len({len(part) for part in parts}) != 1:
        raise EpisodeError(
            f"{where}: observations of {', '.join(str(len(p)) for p in parts)} rows; expected equal ones"
        )
    return np.concatenate([flat(np.asarray(part, np.float32)) for part in parts], axis=1)


def layout(parts: Mapping[str, np.ndarray]) -> dict[str, list]:
    """Say for meta what `parts` {key: [N, ...]} a state is made of: {"obs_shapes": [[key, shape of a row]]}; {} of
    one part."""
    if len(parts) < 2:
        return {}
    return {"obs_shapes": [[key, list(part.shape[1:])] for key, part in parts.items()]}


def flat(array: np.ndarray) -> np.ndarray:
    """[N, ...] -> [N, D], also of no rows."""
    return array.reshape(len(array), int(np.prod(array.shape[1:])))


def skew(seconds: np.ndarray) -> list[float]:
    """[median, largest] of the distances [N] of a stream's samples from the control ticks: what meta["skew_s"] has
    of it."""
    seconds = np.abs(np.asarray(seconds, np.float64))
    if not len(seconds) or not np.isfinite(seconds).all():
        raise EpisodeError("the times of the samples are not finite; expected seconds")
    return [round(float(np.median(seconds)), 6), round(float(seconds.max()), 6)]


def actions(array: np.ndarray, where: str) -> np.ndarray:
    """[T, Da] float32, or int64 where the recording has whole numbers: a choice (ingest makes it one-hot) or numbers
    after all."""
    if array.ndim not in (1, 2) or array.dtype.kind not in "biuf":
        raise EpisodeError(f"{where}: action is {array.dtype} {list(array.shape)}; expected numbers [T, Da] or [T]")
    array = flat(array)
    return array.astype(np.float32 if array.dtype.kind == "f" else np.int64)


def seed(value: object) -> tuple[int | None, dict[str, str]]:
    """A seed, and what meta says where something else was recorded as one: a wrong seed costs a replay, not the
    episode."""
    if value is None:
        return None, {}
    try:
        number = int(value)
        if number == value and abs(number) < 2**63:
            return number, {}
    except (TypeError, ValueError, OverflowError):
        pass
    return None, {"dropped": f"seed {str(value)[:40]}"}


def rate(value: object, where: str) -> float:
    """A control rate in Hz, 0 where none was recorded; EpisodeError for nonsense."""
    try:
        found = float(value or 0.0)
    except (TypeError, ValueError):
        found = math.nan
    if not math.isfinite(found) or found < 0:
        raise EpisodeError(f"{where}: fps is {str(value)[:40]}; expected a rate in Hz. Say the right one with fps=")
    return found


def text(value: object) -> str:
    """A text that may be kept as bytes."""
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)
