"""What is observed: {key: shape of one row}, and how the numbers of all keys lie side by side in one array.

    shapes   {"goal": (2,), "pose": (2, 3)}
    packed   goal[0] goal[1] pose[0] ... pose[5]      [..., Do], Do = 8: the keys in order, each in C order
    spec     [["goal", [2]], ["pose", [2, 3]]]        in a policy's file: pairs, since JSON may sort the keys of a table

An observation that is one array has the key `state`. Numbers are packed from the environment to the encoder
(flywheel/policy/encoder.py).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

Shapes = dict[str, tuple[int, ...]]
STATE = "state"
PRIVILEGED = "privileged"  # an episode's extras: what only the simulator knows, [T+1, Dp]


def read(obs: Any = None, obs_dim: int | None = None, obs_keys: Any = None) -> Shapes:
    """Read the shapes of a spec: `obs`, {key: shape} or pairs. An older spec has `obs_dim` Do, and perhaps
    `obs_keys`, {key: numbers}."""
    if obs is not None:
        pairs = obs.items() if isinstance(obs, Mapping) else obs
        return {str(key): tuple(int(n) for n in shape) for key, shape in pairs}
    return {str(key): (int(size),) for key, size in dict(obs_keys or {STATE: obs_dim}).items()}


def spec(shapes: Shapes) -> list[list[Any]]:
    """Write the shapes as a spec keeps them."""
    return [[key, list(shape)] for key, shape in shapes.items()]


def size(shapes: Shapes) -> int:
    """Count the numbers of a row, Do."""
    return sum(part.stop - part.start for part in columns(shapes).values())


def columns(shapes: Shapes) -> dict[str, slice]:
    """Say where each key's numbers are in a packed row."""
    ends = np.cumsum([int(np.prod(shape)) for shape in shapes.values()], dtype=int).tolist()
    return {key: slice(begin, end) for key, begin, end in zip(shapes, [0, *ends], ends, strict=False)}


def names(shapes: Shapes) -> list[str]:
    """Name each number of a packed row: "goal[0]", "grip" where a key is one number, "obs[0]" where there are no
    keys."""
    label = {STATE: "obs"} if list(shapes) == [STATE] else {}
    parts = ((label.get(key, key), part.stop - part.start) for key, part in columns(shapes).items())
    return [f"{key}[{i}]" if count > 1 else key for key, count in parts for i in range(count)]


def pack(obs: Mapping[str, Any], shapes: Shapes, wanted: str = "expected") -> tuple[np.ndarray, bool]:
    """Pack {key: [*shape]}, or {key: [N, *shape]}, into rows [1 or N, Do] float32; say also whether it was one.

    Other keys are left out; [n] stands for any array of n numbers. ValueError says what was found and `wanted`.
    """
    parts, counts = [], set()
    for key, shape in shapes.items():
        try:
            value = np.asarray(obs[key], np.float32)
        except (KeyError, TypeError, ValueError):
            raise _unlike(obs, shapes, wanted) from None
        if value.shape[1:] == shape and value.ndim == len(shape) + 1:
            counts.add(len(value))
        elif value.shape == shape or (len(shape) == 1 and value.size == shape[0]):
            counts.add(None)
        else:
            raise _unlike(obs, shapes, wanted)
        parts.append(value)
    if len(counts) > 1:
        raise _unlike(obs, shapes, wanted)
    (count,) = counts
    rows = [part.reshape(1 if count is None else count, -1) for part in parts]
    return (rows[0] if len(rows) == 1 else np.concatenate(rows, axis=1)), count is None


def unpack(rows: np.ndarray, shapes: Shapes) -> dict[str, np.ndarray]:
    """Take packed rows [..., Do] apart: {key: [..., *shape]}, views."""
    parts = columns(shapes).items()
    return {key: rows[..., part].reshape((*rows.shape[:-1], *shapes[key])) for key, part in parts}


def picked(wanted: Shapes, given: Shapes) -> np.ndarray | None:
    """Find the columns of rows packed as `given` that make rows packed as `wanted`; None for all of them as they are.

    Where one of them has no keys only the number of columns counts. ValueError where a key is missing or has another
    size."""
    if [STATE] in (list(wanted), list(given)) and size(wanted) == size(given):
        return None
    there, parts = columns(given), columns(wanted)
    if any(key not in there or _long(there[key]) != _long(part) for key, part in parts.items()):
        raise ValueError(f"the environment observes {listed(given)}; this policy was trained on {listed(wanted)}")
    found = np.concatenate([np.arange(there[key].start, there[key].stop) for key in parts])
    return None if np.array_equal(found, np.arange(size(given))) else found


def listed(shapes: Mapping[str, Iterable[int] | None]) -> str:
    """List keys with their shapes: "goal [2], pose [2, 3]"."""
    words = ((key, "no array of numbers" if shape is None else list(shape)) for key, shape in shapes.items())
    return ", ".join(f"{key} {shape}" for key, shape in words) or "none"


def _long(part: slice) -> int:
    return part.stop - part.start


def _unlike(obs: Mapping[str, Any], shapes: Shapes, wanted: str) -> ValueError:
    found: dict[str, tuple[int, ...] | None] = {}
    for key, value in obs.items():
        try:
            found[key] = np.shape(np.asarray(value, np.float32))
        except (TypeError, ValueError):
            found[key] = None
    return ValueError(f"observation has {listed(found)}; {wanted} {listed(shapes)}")
