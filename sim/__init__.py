"""Manipulation tasks on MuJoCo, each in two forms: a Gymnasium environment and a batch on `mujoco.rollout`.

A task is one file and its MJCF (`lift.py`, `lift.xml`); every module of this folder whose name does not start with `_`
is a task. Importing this package loads neither mujoco nor gymnasium: names are found by looking, not by importing.

    tasks()                    ["insert", "lift", "push"]
    load("lift")               the task: sizes, names, `init(seed)`, model
    Batch("lift", 32)          32 environments, one C++ call a control step
    register()                 flywheel/Lift-v0 ... for gymnasium.make
"""

from __future__ import annotations

from pathlib import Path

__all__ = ["Batch", "TaskEnv", "load", "register", "tasks"]


def tasks() -> list[str]:
    """Names of all tasks, sorted: the modules of this folder, not imported."""
    return sorted(path.stem for path in Path(__file__).parent.glob("*.py") if not path.stem.startswith("_"))


def load(name: str):
    """The task called `name` (a `Task`); ValueError with the list of names if there is none."""
    if name not in tasks():
        raise ValueError(f"no task {name!r} in sim/. There are: {', '.join(tasks())}")
    from flywheel_sim._task import load_task

    return load_task(name)


def register() -> list[str]:
    """Register every task with gymnasium and return the ids, such as "flywheel/Lift-v0"; twice does no harm."""
    import gymnasium

    ids = []
    for name in tasks():
        ids.append(f"flywheel/{name.title().replace('_', '')}-v0")
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
