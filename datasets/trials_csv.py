"""What became of trials on a robot, a line each: policy, success, and perhaps which episode and where it began.

    policy,success,episode,data,cube_x,cube_y
    policy/lift@7738d72b8bf9,1,0,,0.42,-0.05
    7738d72b8bf9,0,3,eval_lift,,

`policy` is NAME@ID or ID, `success` true or false (1, 0, yes, no). Other columns of numbers are where the trial began.
With `data`, the folder of a LeRobotDataset beside the file, `episode` is the number of the episode in it: that comes
in, with this outcome. Without, the outcome is all that is kept of the trial (meta.trial_only), and nothing is learnt
from it; `episode` then only tells it from others. A file may grow: lines that were ingested before are duplicates."""

from __future__ import annotations

import csv
import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from flywheel_datasets import _lerobot

from flywheel import bounds
from flywheel.episode import Episode, EpisodeError, attempt

SAID = {"true": True, "1": True, "yes": True, "success": True} | dict.fromkeys(("false", "0", "no", "failure"), False)
OWN = ("policy", "success", "episode", "data")
ID = 12  # digits of a checkpoint's id


def parts(path: Path) -> list[Path]:
    """The files that decide what is read: the table, and those of the data sets that it names."""
    path = Path(path)
    try:
        named = {row.get("data") for row in _lines(path)[1]} - {None, ""}
        return [path, *(p for one in sorted(named) for p in _lerobot.parts(_info(path, one)))]
    except (EpisodeError, OSError, ValueError):
        return [path]  # `read` says what is wrong


def read(path: Path, fps: float | None = None) -> Iterator[Episode | EpisodeError]:
    """Yield a trial for each line, or an EpisodeError in its place; origin is policy:ID."""
    path = Path(path)
    columns, rows = _lines(path)
    if missing := [name for name in ("policy", "success") if name not in columns]:
        raise EpisodeError(
            f"{path}: no column {', '.join(missing)}; there are {', '.join(columns)[:200] or 'none'}. Expected a first "
            "line such as policy,success,episode,x,y"
        )
    loaded: dict[str, list[Any]] = {}
    for number, row in enumerate(rows):
        where = f"{path}, line {number + 2}"
        yield attempt(lambda row=row, where=where, number=number: _trial(path, row, number, fps, loaded, where), where)


def _trial(path: Path, row: dict[str, str], number: int, fps: float | None, loaded: dict, where: str) -> Episode:
    """The trial of one line. EpisodeError says what in it is none."""
    policy, said = (row.get("policy") or "").strip(), (row.get("success") or "").strip().lower()
    id_ = policy.rpartition("@")[2][:ID]
    if len(id_) < ID or not set(id_) <= set("0123456789abcdef"):
        raise EpisodeError(f"{where}: policy is {policy[:60]!r}; expected NAME@ID or ID, with {ID} digits of the id")
    if said not in SAID:
        raise EpisodeError(f"{where}: success is {said[:40]!r}; expected true or false, 1 or 0, yes or no")
    start = {key: _number(value, f"{where}: {key}") for key, value in row.items() if key not in OWN and value}
    about = {"trial": f"{path.name} {row.get('episode') or number}", **({"start": start} if start else {})}
    if row.get("data"):
        found = _recorded(path, row, loaded, where)
        success, reward = SAID[said], np.zeros(len(found), np.float32)
        reward[-1] = float(success)
        return found.replace(
            origin=f"policy:{id_}", success=success, terminated=success, reward=reward, meta={**found.meta, **about}
        )
    word = f"{path.name} {row.get('episode') or number} {id_} {said}"
    known = np.frombuffer(hashlib.sha256(word.encode()).digest()[:8], np.uint8)  # what tells it from other trials
    return Episode(
        task="", obs={"trial": np.stack([known, known])}, action=np.zeros((1, 1), np.float32),
        reward=np.float32([SAID[said]]), terminated=SAID[said], success=SAID[said], origin=f"policy:{id_}",
        fps=float(fps or 0.0), meta={**about, "file": path.name, "trial_only": True},
    )  # fmt: skip


def _recorded(path: Path, row: dict[str, str], loaded: dict, where: str) -> Episode:
    """The episode of the data set that a line names."""
    from flywheel_datasets import lerobot_v3, lerobot_v21

    name = row["data"]
    if name not in loaded:
        info = _info(path, name)
        version = _lerobot.opened(info, ("v2.0", "v2.1", "v3.0"))[1]["codebase_version"]
        loaded[name] = list((lerobot_v3 if version == "v3.0" else lerobot_v21).read(info))
    number = (row.get("episode") or "").strip()
    if not number.isdecimal() or int(number) >= len(loaded[name]):
        raise EpisodeError(f"{where}: episode is {number!r}; {name} has the episodes 0 to {len(loaded[name]) - 1}")
    if isinstance(found := loaded[name][int(number)], EpisodeError):
        raise found
    return found


def _info(path: Path, name: str) -> Path:
    """meta/info.json of the data set `name` beside the table."""
    folder = bounds.inside(path.parent, path.parent / name, str(path))
    if (file := _lerobot.unit(folder)) is None:
        raise EpisodeError(f"{path}: data is {name!r}, which is no LeRobotDataset beside the file (no meta/info.json)")
    return file


def _lines(path: Path) -> tuple[list[str], list[dict[str, str]]]:
    try:
        with open(path, newline="", encoding="utf-8") as file:
            reader = csv.DictReader(file)
            return [name.strip() for name in reader.fieldnames or []], [
                {str(key).strip(): str(value or "").strip() for key, value in row.items() if key} for row in reader
            ]
    except (UnicodeDecodeError, csv.Error) as error:
        raise EpisodeError(f"{path}: no table of trials: {error}; expected CSV in UTF-8") from error


def _number(value: str, where: str) -> float:
    try:
        number = float(value)
    except ValueError:
        number = float("nan")
    if not np.isfinite(number):
        raise EpisodeError(f"{where} is {value[:40]!r}; expected a number, where the trial began")
    return number
