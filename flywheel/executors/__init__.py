"""Who does independent work, a file each: `map(function, tasks, workers)` gives results in the order of the tasks.

A function is named at the top of a module, tasks are tuples of plain data: what is done elsewhere is equal to the
bit."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path


def named(name: str) -> Callable:
    """The `map` of executors/NAME.py; ValueError with what there is."""
    there = sorted({path.stem for folder in __path__ for path in Path(folder).glob("[!_]*.py")})
    if name not in there:
        raise ValueError(f"no executor {name!r}. There are: {', '.join(there)}")
    return importlib.import_module(f"flywheel.executors.{name}").map
