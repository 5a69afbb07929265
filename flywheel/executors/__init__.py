"""Who does independent work, a file each: `map(function, tasks, workers, **resources)` gives results in the order of
the tasks.

A function is named at the top of a module, tasks are tuples of plain data: what is done elsewhere is equal to the
bit. The arguments of a `map` after `workers` are the resources that it takes (`resources.cpus=2`)."""

from __future__ import annotations

import functools
import importlib
import inspect
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

TRIES = 3  # how often workers may die without a task done in between


def named(name: str) -> Callable:
    """The `map` of executors/NAME.py; ValueError with what there is."""
    there = sorted({path.stem for folder in __path__ for path in Path(folder).glob("[!_]*.py")})
    if name not in there:
        raise ValueError(f"no executor {name!r}. There are: {', '.join(there)}")
    return importlib.import_module(f"flywheel.executors.{name}").map


def stays(name: str, resources: Mapping[str, Any] = {}) -> bool:
    """Are the workers of an executor there from one call to the next (`STAY` in its file, or resources.stay)?"""
    return bool(resources.get("stay", getattr(sys.modules[named(name).__module__], "STAY", False)))


def bound(name: str, workers: int = 0, resources: Mapping[str, Any] = {}) -> Callable:
    """Give `map(function, tasks)` of an executor with its workers and resources; ValueError for one it does not
    take."""
    found = named(name)
    signature = inspect.signature(found).parameters
    if not any(one.kind is one.VAR_KEYWORD for one in signature.values()):
        takes = list(signature)[3:]
        if unknown := [key for key in resources if key not in takes]:
            raise ValueError(
                f"executor={name} takes no resources.{unknown[0]}; it takes: {', '.join(takes) or 'none'}. Leave it "
                "out, or take another executor"
            )
    return functools.partial(found, workers=workers, **resources)


def needed(module: str, extra: str):
    """Import an engine; ValueError with what to install where it is not there."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ValueError(
            f"executor={extra} needs {module} ({error}): pip install 'robot-flywheel[{extra}]'; executor=processes "
            "goes without"
        ) from error


def whose(function: Callable) -> tuple[str, str]:
    """Name a function to another process: (module, name); that of a script is found by its file."""
    module = function.__module__
    if module == "__main__":
        module = Path(sys.modules[module].__file__).stem
    return module, function.__qualname__


def elsewhere(path: Sequence[str], module: str, name: str, task: tuple) -> Any:
    """Do a task in a worker that knows only what it is told: where modules lie, which function."""
    sys.path[:] = dict.fromkeys([*sys.path, *path])
    one_thread()
    return getattr(importlib.import_module(module), name)(*task)


def one_thread() -> None:
    """Let PyTorch compute in one thread from now on, also where it comes later: workers are as many as there are
    cores."""
    os.environ["OMP_NUM_THREADS"] = os.environ["MKL_NUM_THREADS"] = "1"
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(1)


def lost(name: str, done: int, total: int, advice: str) -> RuntimeError:
    """What is raised where workers die again and again."""
    return RuntimeError(f"executor={name}: workers died {TRIES} times, {done} of {total} tasks done. {advice}")
