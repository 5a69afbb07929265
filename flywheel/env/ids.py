"""What a Gymnasium id stands for: the name of its task, and the code that decides what it does."""

from __future__ import annotations

import hashlib
import importlib
import json
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any


def find(id: str) -> None:
    """Import what registers `id`: our own tasks, the packages of the extras, or the module of "module:id", from the
    current folder too."""
    import flywheel_sim
    import gymnasium as gym

    flywheel_sim.register()
    if ":" in id:
        if "" not in sys.path and str(Path.cwd()) not in sys.path:
            sys.path.append(str(Path.cwd()))
    elif id not in gym.registry:  # else they are not needed: seconds, and their own warnings
        for package in ("gymnasium_robotics", "metaworld"):
            try:
                gym.register_envs(__import__(package))
            except ImportError:
                continue


def title(id: str, kwargs: dict[str, Any] | None = None, obs_keys: Sequence[str] | None = None) -> str:
    """The task's name as episodes carry it: the id, and what else makes it another task: "PushT-v0{obs_type=state}"."""
    more = {**(kwargs or {}), **({"obs": "+".join(obs_keys)} if obs_keys else {})}
    return id + ("{" + ",".join(f"{key}={_word(more[key])}" for key in sorted(more)) + "}" if more else "")


def of_task(task: Mapping[str, Any]) -> str:
    """The title of a task as its arguments are in JSON; "" where there is none."""
    if task.get("name") == "robot":
        return str(task.get("id") or "robot")
    if task.get("name") != "gym":
        return title(task.get("name") or "", task.get("cameras"))
    return title(task["id"], task.get("kwargs"), task.get("obs_keys"))


def short(title: str) -> str:
    """A title as part of a checkpoint's name: "gym_pusht:gym_pusht/PushT-v0{obs_type=state}" ->
    "PushT-v0-obs_type-state"."""
    id, brace, more = title.partition("{")
    id = id.rpartition(":")[2].rpartition("/")[2]
    return re.sub(r"[^A-Za-z0-9._-]+", "-", f"{id}-{more.rstrip('}')}" if brace else id)


def _word(value: Any) -> str:
    """A value in a title: as it is where that is short and plain, else a hash of it."""
    text = str(value)
    if isinstance(value, str | bool | int | float) and re.fullmatch(r"[\w.+-]{1,60}", text):
        return text
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()[:8]


def identity(id: str, kwargs: dict[str, Any] | None = None) -> dict[str, Any]:
    """Which code decides what the environment does: {"id", "kwargs", "entry_point", "distribution", "version", "code"}.

    `code` is the sha256 over the source files of the class (its bases too) that belong to no installed distribution;
    for a task of sim/ over that folder. Quick, and without torch unless the environment's own module imports it."""
    import gymnasium as gym

    find(id)
    module, _, name = id.rpartition(":")
    if module:
        importlib.import_module(module)
    what: dict[str, Any] = {"id": id, "kwargs": dict(kwargs or {}), "entry_point": None}
    what |= {"distribution": None, "version": None, "code": None}
    spec = gym.registry.get(name) or gym.registry.get(
        gym.envs.registration.get_env_id(*gym.envs.registration.parse_env_id(name))
    )
    if spec is None or spec.entry_point is None:
        return what
    made = (
        gym.envs.registration.load_env_creator(spec.entry_point)
        if isinstance(spec.entry_point, str)
        else spec.entry_point
    )
    where = getattr(made, "__module__", type(made).__module__)
    what["entry_point"] = f"{where}:{getattr(made, '__qualname__', type(made).__name__)}"
    what["distribution"], what["version"] = _distribution(where)
    classes = [
        c
        for c in getattr(made, "__mro__", ())
        if c.__module__.partition(".")[0] not in ("builtins", "gymnasium", "typing")
    ]
    files = {Path(file) for file in (_source(m) for m in {where, *(c.__module__ for c in classes)}) if file}
    if where.partition(".")[0] == "flywheel_sim":
        files |= {p for p in next(iter(files)).parent.iterdir() if p.suffix in (".py", ".xml")}
    if own := sorted(path for path in files if "site-packages" not in path.parts):
        what["code"] = hashlib.sha256(b"".join(p.name.encode() + p.read_bytes() for p in own)).hexdigest()
    return what


def _source(module: str) -> str | None:
    file = getattr(sys.modules.get(module), "__file__", None)
    return file if file and file.endswith(".py") else None


def _distribution(module: str) -> tuple[str | None, str | None]:
    """(name, version) of the installed distribution that a module comes from."""
    from importlib import metadata

    names = metadata.packages_distributions().get(module.partition(".")[0]) or []
    return (names[0], metadata.version(names[0])) if names else (None, None)
