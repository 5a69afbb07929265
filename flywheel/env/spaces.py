"""Which spaces can be learnt from: arrays of numbers and, in a Dict, the pictures of cameras."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from flywheel.obs import STATE, Shapes, columns


class TaskError(ValueError):
    """An environment that cannot be a task; the message names what it lacks."""


def parts(id: str, obs, obs_keys: Sequence[str] | None) -> tuple[dict[str, Any], dict[str, tuple[int, int, int]]]:
    """{key: Box} of numbers and {camera: (H, W, 3)} of an observation space; TaskError with what to do for others."""
    import gymnasium as gym

    there = obs.spaces if isinstance(obs, gym.spaces.Dict) else {STATE: obs}
    if obs_keys and there is not getattr(obs, "spaces", None):
        raise TaskError(f"{id}: task.obs_keys={list(obs_keys)}: the observation is {obs}, no Dict; leave obs_keys out")
    if absent := [key for key in obs_keys or () if key not in there]:
        raise TaskError(f"{id}: task.obs_keys: there is no {', '.join(absent)}; there is {', '.join(there)}")
    chosen = {key: there[key] for key in obs_keys or there}
    cameras = {key: chosen.pop(key).shape for key in list(chosen) if len(there) > 1 and _is_camera(chosen[key])}
    usable = [key for key, box in there.items() if isinstance(box, gym.spaces.Box) and not _is_picture(box)]
    others = (
        f"Leave it out: task.obs_keys=[{','.join(usable)}]"
        if usable and len(there) > 1
        else ("An option of the environment (task.kwargs={...}) may give its state instead")
    )
    for key, box in chosen.items():
        if not isinstance(box, gym.spaces.Box):
            raise TaskError(
                f"{id}: observation space {obs if len(there) == 1 else f'{key}: {box}'} is neither Box, Dict of Box "
                f"nor Discrete; flywheel learns from arrays. {others}"
            )
        if _is_picture(box):
            what = f"observation {key}" if there is getattr(obs, "spaces", None) else "the observation"
            raise TaskError(
                f"{id}: {what} is a picture, {list(box.shape)} {box.dtype}; expected one of [H, W, 3] uint8 in a Dict, "
                f"beside numbers. {others}"
            )
    if not chosen:
        what = f"has pictures alone ({', '.join(cameras)}); expected numbers beside them" if cameras else "is empty"
        raise TaskError(f"{id}: observation space {obs} {what}; flywheel learns from arrays")
    return chosen, cameras


def units(id: str, space, shapes: Shapes, given: Any) -> list[str]:
    """Read metadata's obs_units, {key: unit} of a Dict, else a list: a unit for each number observed, "" where it has
    none.

    TaskError where they are something else.
    """
    keys, places = getattr(space, "spaces", None), columns(shapes)
    total = sum(part.stop - part.start for part in places.values())
    if not given:
        return [""] * total
    if keys and isinstance(given, Mapping) and given.keys() <= keys.keys():
        return [str(given.get(key) or "") for key, part in places.items() for _ in range(part.stop - part.start)]
    if not keys and not isinstance(given, str | Mapping) and len(given) == total:
        return [str(unit or "") for unit in given]
    wanted = f"a table {{key: unit}} with keys of {', '.join(keys)}" if keys else f"a list of {total}, one a number"
    raise TaskError(f"{id}: metadata's obs_units is {given!r:.200}; expected {wanted}")


def _is_camera(box) -> bool:
    """Whether a box holds what a policy can see: [H, W, 3] uint8."""
    return len(box.shape) == 3 and box.shape[2] == 3 and box.dtype == np.uint8 and min(box.shape[:2]) >= 8


def pictured(space) -> bool:
    """Whether anything observed is a picture, whoever looks at it."""
    return any(_is_picture(part) for part in getattr(space, "spaces", {"": space}).values() if part.shape)


def _is_picture(box) -> bool:
    """Whether a box holds pixels: bytes in two dimensions or more, or [..., H, W, C] or [..., C, H, W] of 1 to 4
    channels."""
    shape = box.shape
    if len(shape) == 2:
        return box.dtype == np.uint8 and min(shape) >= 8
    if len(shape) < 3:
        return False
    channels_last, channels_first = shape[-1] <= 4 and min(shape[-3:-1]) >= 8, shape[-3] <= 4 and min(shape[-2:]) >= 8
    return box.dtype == np.uint8 or channels_last or channels_first


def box(space):
    """Discrete(n) as the box of one-hot vectors; any other space as it is."""
    import gymnasium as gym

    return gym.spaces.Box(0.0, 1.0, (int(space.n),), np.float32) if isinstance(space, gym.spaces.Discrete) else space
