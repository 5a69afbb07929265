"""A policy as a file that runs without flywheel, a format each: exports/NAME.py, found by its name.

    obs [1, To, Do] float32, noise [1, *noise_shape] float32, of each camera [1, H, W, 3] uint8
        ->  action chunk [1, Ta, Da] float32

That is the arithmetic of `Policy.act` for one robot: normalise, look, the nets, un-normalise, clip to the bounds; of a
best of N its candidates, the critics and the choice. A format has

    SUFFIX                          of the file
    write(module, example, path)    module(obs, noise, *frames) -> action, example (obs, noise, *frames)
    load(path)                      -> a function of numpy arrays (obs, noise, *frames) that gives the action

flywheel.json beside the file says what goes in and comes out (`_write.about`)."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any


def names() -> list[str]:
    """The formats there are, without importing them."""
    return sorted(path.stem for folder in __path__ for path in Path(folder).glob("[!_]*.py"))


def checked(name: str) -> str:
    """The name of a format that is there; ValueError with what there is."""
    if name not in names():
        raise ValueError(f"format={name!r}: a policy is written as {' or '.join(names())}")
    return name


def named(name: str) -> Any:
    """The module exports/NAME.py."""
    return importlib.import_module(f"flywheel.exports.{checked(name)}")
