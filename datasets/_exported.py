"""Episodes that `flywheel export` wrote come back whole: final rows, outcome and provenance lie beside the format's
own.

streams  {stored name: [kind, key, rows, row shape]}: kind is obs, action, reward or extras; rows is "T" or "T+1" (its
last
         row is kept apart, because the format has as many observations as actions)
record   task, origin, seed, fps, success, terminated, meta of one episode
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import numpy as np

from flywheel.episode import Episode

RECORD = ("task", "origin", "seed", "fps", "success", "terminated", "meta")


def episode(
    record: dict[str, Any],
    streams: dict[str, list],
    rows: Callable[[str], np.ndarray],
    final: Callable[[str], np.ndarray],
    via: str,
) -> Episode:
    """rows(name) is [T, ...], final(name) the last row of a stream with T+1; `via` goes into meta."""
    parts: dict[str, dict[str, np.ndarray]] = {"obs": {}, "extras": {}, "action": {}, "reward": {}}
    for name, (kind, key, count, shape) in streams.items():
        value = rows(name)
        if count == "T+1":
            value = np.concatenate(
                [value.reshape(len(value), *shape), np.asarray(final(name), value.dtype).reshape(1, *shape)]
            )
        parts[kind][key] = value.reshape(len(value), *shape)
    known = {name: record[name] for name in RECORD}
    known["meta"] = {**record["meta"], "exported": via}
    return Episode(
        obs=parts["obs"],
        action=parts["action"]["action"],
        reward=parts["reward"]["reward"],
        extras=parts["extras"],
        **known,
    )


def demo(group, via: str) -> Episode:
    """A demo of a robomimic HDF5 file (_hdf5.Group): its last observation is the last of next_obs; `via` goes into
    meta."""
    record = json.loads(group.array("flywheel").texts()[0])
    record = {name: record[name] for name in RECORD}
    record["meta"] = {**record["meta"], "exported": via}
    after = group.group("next_obs")
    seen = group.group("obs").arrays()
    obs = {key: np.concatenate([value[()], after.array(key).last(len(value))]) for key, value in seen.items()}
    others = {
        name: {k: v[()] for k, v in group.group(name).arrays().items()} for name in ("extras", "start") if name in group
    }
    return Episode(obs=obs, action=group.array("actions")[()], reward=group.array("rewards")[()], **others, **record)
