"""The one record that flows through everything: an episode, one attempt at a task. numpy only.

obs      o_0  o_1  o_2  ...  o_T        {key: [T+1, ...]}   one row more than action
action   a_0  a_1  ...  a_T-1           [T, Da] float32     what was executed, inside the action range
reward   r_0  r_1  ...  r_T-1           [T]     float32     learning: 1 at the first success, else 0
"""

from __future__ import annotations

import errno
import hashlib
import json
import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from flywheel.frames import Frames


NAME_LETTERS, META_LETTERS = 255, 65_536  # of task, origin and each key; of meta as JSON
PASSING = {  # errors of the system that say nothing about the file: tomorrow it may be read
    errno.EACCES,
    errno.EPERM,
    errno.EIO,
    errno.EAGAIN,
    errno.EBUSY,
    errno.EINTR,
    errno.ENOMEM,
    errno.EMFILE,
    errno.ENFILE,
    errno.ENXIO,
    errno.ENODEV,
    errno.ESTALE,
    errno.ETIMEDOUT,
    errno.ENOTCONN,
    errno.ECONNRESET,
    errno.EHOSTDOWN,
    errno.EDEADLK,
}


class EpisodeError(ValueError):
    """An episode that breaks the record's rules; the message says what was found, where, and what to do."""


def attempt(make: Callable[[], Episode], where: str) -> Episode | EpisodeError:
    """make(), or an EpisodeError in the episode's place for whatever it raises: damaged input raises what it likes."""
    try:
        return make()
    except Exception as error:
        return as_error(error, where)


def as_error(error: Exception, where: str) -> EpisodeError:
    """What a reader raised as an EpisodeError that names `where`. Causes are kept, without the frames that hold what
    was read."""
    one: BaseException | None = error
    while one is not None:
        one.__traceback__, one = None, one.__cause__ or one.__context__
    if isinstance(error, EpisodeError) and where in str(error):
        return error
    words = (
        str(error) if isinstance(error, EpisodeError) else f"{type(error).__name__}: {str(error)[:1000] or 'no words'}"
    )
    found = EpisodeError(f"{where}: {words}")
    found.__cause__ = error
    return found


def passing(error: BaseException | None) -> bool:
    """Is the reason one that may pass (no permission, a locked file, a disk that answers with errors, no memory
    left)?"""
    while error is not None:
        if isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno in PASSING):
            return True
        error = error.__cause__ or error.__context__
    return False


@dataclass(frozen=True, eq=False)
class Episode:
    """One attempt at a task.

    task        name of the task ("lift", "AdroitHandDoor-v1")
    obs         {key: [T+1, ...]}; low-dimensional state is float32 [T+1, Do] under "state", a camera's frames are
                [T+1, H, W, 3] uint8 under its name: pixels, or as encoded by their source (flywheel.frames)
    action      [T, Da] float32
    reward      [T] float32
    terminated  True if the last step ended the task for good; False if it was cut off (time-out, end of recording)
    success     True, False, or None where nobody knows
    origin      who acted: "human:vr", "scripted:lift", "policy:9bd1c0a1b2c3"
    seed        environment seed of the reset, None for recordings
    fps         control rate in Hz
    extras      {key: [T, ...] or [T+1, ...]}: what else was recorded (proposed action, the environment's own reward)
    start       {key: array}: the simulator state to set before an open-loop replay; empty if unknown
    meta        JSON values: file, demo name, "start_from", "start_step", round ...
    """

    task: str
    obs: dict[str, np.ndarray | Frames]
    action: np.ndarray
    reward: np.ndarray
    terminated: bool
    success: bool | None
    origin: str
    seed: int | None = None
    fps: float = 0.0
    extras: dict[str, np.ndarray] = field(default_factory=dict)
    start: dict[str, np.ndarray] = field(default_factory=dict)
    meta: dict[str, Any] = field(default_factory=dict)

    def __len__(self) -> int:
        """T, the number of steps."""
        return len(self.action)

    @cached_property
    def hash(self) -> str:
        """sha256 (64 hex digits) over obs (encoded frames by their bytes), action, reward, terminated and task: not
        origin, time or file name."""
        digest = hashlib.sha256()
        arrays = {f"obs.{key}": value for key, value in self.obs.items()}
        arrays |= {"action": self.action, "reward": self.reward, "terminated": np.asarray(self.terminated)}
        for key in sorted(arrays):
            if not isinstance(arrays[key], np.ndarray):
                digest.update(f"{key} ".encode())
                arrays[key].feed(digest)
                continue
            value = np.ascontiguousarray(arrays[key])
            value = value.astype(value.dtype.newbyteorder("<"), copy=False)
            digest.update(f"{key} {value.dtype.str} {value.shape}\n".encode())
            digest.update(value.tobytes())
        digest.update(self.task.encode())
        return digest.hexdigest()

    def replace(self, **changes: Any) -> Episode:
        return replace(self, **changes)


def check(episode: Episode, where: str = "episode") -> Episode:
    """Return `episode` if it keeps the record's rules, else raise EpisodeError naming `where`, the key and both
    shapes."""
    steps = len(episode.action)

    def fail(found: str, expected: str) -> None:
        raise EpisodeError(f"{where}: {found}; expected {expected}")

    if episode.action.ndim != 2 or steps == 0:
        fail(f"action is {list(episode.action.shape)}", "[T, Da] with T of at least 1")
    if not episode.obs:
        fail("there is no observation", "at least one key, such as obs['state'] [T+1, Do]")
    for key, value in episode.obs.items():
        if len(value) != steps + 1:
            fail(f"obs[{key!r}] has {len(value)} rows and action {steps}", f"{steps + 1} rows, one more than action")
    if episode.reward.shape != (steps,):
        fail(f"reward is {list(episode.reward.shape)}", f"[{steps}], one per action")
    for key, value in episode.extras.items():
        if len(value) not in (steps, steps + 1):
            fail(f"extras[{key!r}] has {len(value)} rows", f"{steps} or {steps + 1}")
    _check_words(episode, fail)
    arrays = {f"obs[{key!r}]": value for key, value in episode.obs.items()}
    arrays |= {"action": episode.action, "reward": episode.reward}
    for key, value in arrays.items():
        if value.dtype == object or not (np.issubdtype(value.dtype, np.number) or value.dtype == bool):
            fail(f"{key} has dtype {value.dtype}", "a number type")
        if np.issubdtype(value.dtype, np.floating) and not np.isfinite(value).all():
            row = int(np.argwhere(~np.isfinite(value.reshape(len(value), -1)).all(axis=1))[0, 0])
            fail(f"{key} is not finite at row {row}", "finite numbers (drop the episode or record it again)")
    return episode


def _check_words(episode: Episode, fail: Callable[[str, str], None]) -> None:
    """What is told in words and single numbers: names that are names, a rate that is one, meta of a size to be kept."""
    keys = [("a key", key) for key in (*episode.obs, *episode.extras, *episode.start)]
    for what, word in (("task", episode.task), ("origin", episode.origin), *keys):
        if len(word) > NAME_LETTERS:
            fail(f"{what} has {len(word)} letters ({word[:40]!r}...)", f"at most {NAME_LETTERS}")
    fps = float(episode.fps or 0.0)
    if not math.isfinite(fps) or fps < 0:
        fail(f"fps is {fps}", "a control rate in Hz, or 0 for unknown; say the right one with fps=")
    try:
        size = len(json.dumps(episode.meta))
    except (TypeError, ValueError, RecursionError):
        return  # the corpus says what in it cannot be kept
    if size > META_LETTERS:
        fail(f"meta has {size} letters as JSON", f"at most {META_LETTERS}: keep texts in files of their own")
