"""Manipulation tasks on MuJoCo, each in two forms: a Gymnasium environment and a batch on `mujoco.rollout`.

A task is one file and its MJCF (`lift.py`, `lift.xml`); every module of this folder whose name does not start with `_`
is a task. Importing this package loads neither mujoco nor gymnasium: names are found by looking, not by importing.

    tasks()                    ["assemble", "insert", "lift", "push"]
    load("lift")               the task: sizes, names, `init(seed)`, model
    Batch("lift", 32)          32 environments, one C++ call a control step
    register()                 flywheel/Lift-v0 ... for gymnasium.make
"""

from __future__ import annotations

import ctypes
import os
import sys
from pathlib import Path

__all__ = ["Batch", "TaskEnv", "gym_id", "load", "make_batch", "register", "tasks"]

if sys.platform == "linux" and not os.environ.get("DISPLAY") and "MUJOCO_GL" not in os.environ:
    # without a screen mujoco draws through EGL, which it must be told before it is imported, and only if it is there
    try:
        ctypes.CDLL("libEGL.so.1")
        os.environ["MUJOCO_GL"] = "egl"
    except OSError:
        pass


def tasks() -> list[str]:
    """Names of all tasks, sorted: the modules of this folder, not imported."""
    return sorted(path.stem for path in Path(__file__).parent.glob("*.py") if not path.stem.startswith("_"))


def load(name: str):
    """The task called `name` (a `Task`); ValueError with the list of names if there is none."""
    if name not in tasks():
        raise ValueError(f"no task {name!r} in sim/. There are: {', '.join(tasks())}")
    from flywheel_sim._task import load_task

    return load_task(name)


def make_batch(name: str, num_envs: int, threads: int = 2, **options):
    """A `Batch` whose caller starts the episodes (`autoreset=False`); options other than its own are refused by
    name."""
    from flywheel_sim._batch import Batch

    known = {"terminate_on_success", "cameras"}
    if unknown := sorted(set(options) - known):
        raise ValueError(f"task {name} has no option {', '.join(unknown)}. There are: {', '.join(sorted(known))}")
    return Batch(load(name), num_envs, nthread=threads, autoreset=False, **options)


def gym_id(name: str) -> str:
    """The id of a task for gymnasium.make: "flywheel/Lift-v0"."""
    return f"flywheel/{name.title().replace('_', '')}-v0"


def register() -> list[str]:
    """Register every task with gymnasium and return the ids, such as "flywheel/Lift-v0"; twice does no harm."""
    import gymnasium

    ids = []
    for name in tasks():
        ids.append(gym_id(name))
        if ids[-1] not in gymnasium.registry:
            gymnasium.register(ids[-1], entry_point="flywheel_sim._gym:TaskEnv", kwargs={"task": name})
    return ids


def __getattr__(name: str):
    if name == "Batch":
        from flywheel_sim._batch import Batch

        return Batch
    if name == "TaskEnv":
        from flywheel_sim._gym import TaskEnv

        return TaskEnv
    raise AttributeError(f"module 'flywheel_sim' has no attribute {name!r}")
