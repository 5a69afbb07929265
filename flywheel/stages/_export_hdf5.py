"""robomimic's HDF5 layout, one file demos.hdf5: data/demo_*/{obs, next_obs, actions, rewards, dones}.

Beside it each demo keeps `extras`, `start`, and, as JSON in `flywheel`, what else flywheel knows; robomimic leaves them alone.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from flywheel.episode import Episode
from flywheel.stages import _export_survey

NAME = "robomimic_hdf5"


def write(folder: Path, episodes: Iterable[Episode], seen: _export_survey.Survey, cfg: dict[str, Any]) -> None:
    """folder/demos.hdf5; every episode keeps the streams that it has."""
    seen.aside.append("extras, start, fps, terminated and meta (groups and a JSON text in each demo)")
    if seen.unknown:
        seen.lost.append(f"success, unknown of {seen.unknown} episodes: rewards are 0 there, as if they had failed")
    _export_survey.decoded(seen)
    total, first = 0, None
    with h5py.File(folder / "demos.hdf5", "w") as file:
        data = file.create_group("data")
        for number, episode in enumerate(episodes):
            first = first or episode
            demo, steps = data.create_group(f"demo_{number}"), len(episode)
            demo.attrs["num_samples"] = steps
            demo.attrs["origin"] = episode.origin
            if episode.seed is not None:
                demo.attrs["seed"] = episode.seed
            if episode.success is not None:
                demo.attrs["success"] = bool(episode.success)
            demo["actions"], demo["rewards"] = episode.action, episode.reward
            demo["dones"] = (np.arange(steps) == steps - 1) & bool(episode.terminated)
            for key, value in episode.obs.items():
                value = np.asarray(value)
                packed = {"chunks": (1, *value.shape[1:]), "compression": "gzip"} if value.ndim == 4 else {}
                for name, rows in (("obs", value[:-1]), ("next_obs", value[1:])):
                    demo.create_dataset(f"{name}/{key}", data=rows, **packed)
            for name, group in (("extras", episode.extras), ("start", episode.start)):
                for key, value in group.items():
                    demo[f"{name}/{key}"] = np.asarray(value)
            demo["flywheel"] = json.dumps(_export_survey.record(episode))
            total += steps
        data.attrs["total"] = total
        data.attrs["task"] = first.task
        flat = [key for key, value in first.obs.items() if value.ndim < 4]
        data.attrs["obs_keys"] = sorted(flat, key=lambda k: (k != "state", k))[: 1 if "state" in first.obs else None]
        data.attrs["env_args"] = json.dumps({"env_name": first.task, "type": 2, "env_kwargs": {}})
        if cfg.get("fps") or len(seen.fps) == 1:
            data.attrs["fps"] = float(cfg.get("fps") or first.fps)
