"""Which formats there are, and which files a source names."""

from __future__ import annotations

import glob
import importlib
import inspect
import json
import os
from pathlib import Path
from typing import Any

from flywheel import selection
from flywheel import store as files
from flywheel.intake import card

ASKED = (
    "obs_keys",
    "cameras",
    "filter_key",
    "action_key",
    "outcome",
)  # what a format that does not know it must refuse
DEFAULT = "robomimic_hdf5"
OPTIONS = (*ASKED, "origin", "fps", "rollouts", "seed", "card")


def formats() -> list[str]:
    """The formats there are: the modules of datasets/."""
    import flywheel_datasets

    return sorted(p.stem for d in flywheel_datasets.__path__ for p in Path(d).glob("*.py") if p.stem[0] != "_")


def layout(name: str):
    """The module of a format: `read(path, ...)`, and `parts(path, ...)` where one recording is many files."""
    if name not in formats():
        raise ValueError(f"no format {name!r} in datasets/. There are: {', '.join(formats())}")
    return importlib.import_module(f"flywheel_datasets.{name}")


def lerobot(source: str, told: str) -> str | None:
    """The format of a LeRobotDataset's folder by its own codebase_version, where the default was `told`; else None."""
    file = Path(os.path.expanduser(str(source))) / "meta" / "info.json"
    if told != DEFAULT or not file.is_file():
        return None
    try:
        version = str(json.loads(file.read_text(encoding="utf-8")).get("codebase_version"))
    except (OSError, ValueError, AttributeError):
        return None
    return {"v2.0": "lerobot_v21", "v2.1": "lerobot_v21", "v3.0": "lerobot_v3"}.get(version)


def reader(name: str):
    return layout(name).read


def matches(source: str, module=None) -> list[Path]:
    """The files that `source` names: itself, a data set's folder (by the module's `unit`), the files and data sets
    of a folder, or a glob of these; ValueError if none."""
    source = os.path.expanduser(str(source))
    unit = getattr(module, "unit", lambda folder: None)

    def files_of(path: str | Path) -> list[Path]:
        path = Path(path)
        return (
            [found] if (found := unit(path) if path.is_dir() else path) and (found.is_file() or found == path) else []
        )

    if os.path.isdir(source):
        inside = (p for p in Path(source).iterdir() if p.name[0] != "." and p.suffix != ".yaml")  # no data cards
        found = files_of(source) or [one for p in inside for one in files_of(p)]
    elif os.path.exists(source):
        found = [Path(source)]
    else:
        found = [one for p in glob.glob(source, recursive=True) for one in files_of(p)]
    if not found:
        raise ValueError(
            f"source={source!r} names no file (from {os.getcwd()}). Quote a glob, so that the shell leaves it"
        )
    return sorted(set(found))


def title(path: Path, module) -> str:
    """What a recording is called: its file, or the folder of the data set that it is."""
    unit = getattr(module, "unit", lambda folder: None)
    return next((folder.name for folder in list(path.parents)[:3] if unit(folder) == path), path.name)


def content(path: Path) -> str:
    """What a file's content is known by; of one that cannot be read now, that: `run` says so, and it is another
    input then."""
    try:
        return files.sha256_file(path)
    except OSError as error:
        return f"not readable: {error.errno}"


def card_of(read, path: Path, args) -> Path | None:
    """Where a recording's data card lies, if it has one and its reader does not read by a card of its own."""
    return None if "card" in inspect.signature(read).parameters else card.place(path, args.card)


def options(function, args) -> dict[str, Any]:
    """What the config says of the options that a reader's function takes."""
    known = inspect.signature(function).parameters
    told = {k: getattr(args, k) for k in OPTIONS if k in known and getattr(args, k) is not None}
    return told | ({"task": selection.title(args.task)} if "task" in known else {})
