"""What a version is made of, and what changed between two: counts, outcomes, lengths, quality, by task and origin."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from flywheel.corpus.quality import METRICS

if TYPE_CHECKING:
    from flywheel.corpus.version import Version

OUTCOMES = {1: "success", 0: "failure", -1: "unknown"}
Quality = dict[str, np.ndarray]


def stats(version: Version, quality: Quality) -> list[dict[str, Any]]:
    """A row for each task, origin and schema (a robot's, see quality), and one for all ("*"), largest first.

    {"task", "origin", "schema", "episodes", "steps", "length": [min, median, max], "success", "failure", "unknown":
    episodes, "near": episodes with a near-duplicate, each of quality.METRICS: mean over the episodes where it is known,
    or None, "cameras": the names of those that any has}"""
    table = version.table
    (tasks, task_names), (origins, origin_names) = table.codes("task"), table.codes("origin")
    schema_names, schemas = np.unique(quality["schema"], return_inverse=True)
    kinds, where = np.unique(np.stack([tasks, origins, schemas]), axis=1, return_inverse=True)
    rows = []
    for number, (task, origin, schema) in enumerate(kinds.T):
        row = {"task": task_names[task], "origin": origin_names[origin], "schema": schema_names[schema].decode()}
        rows.append(row | _about(version, quality, np.flatnonzero(where.reshape(-1) == number)))
    rows.sort(key=lambda row: (-row["episodes"], row["task"], row["origin"], row["schema"]))
    return [*rows, {"task": "*", "origin": "*", "schema": "*", **_about(version, quality, np.arange(len(version)))}]


def _about(version: Version, quality: Quality, which: np.ndarray) -> dict[str, Any]:
    length, success = version.table["length"][which], version.table["success"][which]
    spread = [int(length.min()), float(np.median(length)), int(length.max())] if len(length) else [0, 0.0, 0]
    row = {"episodes": len(which), "steps": int(length.sum()), "length": spread}
    row |= {name: int((success == code).sum()) for code, name in OUTCOMES.items()}
    row["near"] = int((quality["near"][which] > 0).sum())
    for name in METRICS:
        known = quality[name][which]
        known = known[np.isfinite(known)]
        row[name] = float(known.mean()) if len(known) else None
    row["cameras"] = (
        " ".join(sorted({name for names in version.table["cameras"][which] for name in names.split()})) or None
    )
    return row


def changes(a: tuple[Version, Quality], b: tuple[Version, Quality]) -> list[dict[str, Any]]:
    """What differs from version a to version b, largest first: {"task", "by", "value", "a", "b", "size"}.

    by "task", "source" (the origin before its colon), "origin", "outcome": a and b are shares of the episodes, of that
    task where it is not "*", and `size` is how far they lie apart. by "length" or one of quality.METRICS: a and b are
    medians and `size` is the largest distance of the two distributions (Kolmogorov-Smirnov). Inside a task it counts as
    much as the task does: times its larger share of the two versions. So a size is a share of all episodes, from 0 to
    1."""
    (left, left_quality), (right, right_quality) = a, b
    columns = [_columns(*side) for side in (a, b)]
    rows = _shares("*", "task", columns[0]["task"], columns[1]["task"], 1.0)
    for task in sorted({*columns[0]["task"]} & {*columns[1]["task"]}):
        inside = [side["task"] == task for side in columns]
        weight = max(float(mask.mean()) for mask in inside)
        for by in ("source", "origin", "outcome"):
            rows += _shares(task, by, *(side[by][mask] for side, mask in zip(columns, inside, strict=True)), weight)
        numbers = {"length": (left.table["length"], right.table["length"])}
        numbers |= {name: (left_quality[name], right_quality[name]) for name in METRICS}
        for by, pair in numbers.items():
            one, other = (column[mask] for column, mask in zip(pair, inside, strict=True))
            one, other = one[np.isfinite(one)], other[np.isfinite(other)]
            if len(one) and len(other):
                medians = {"value": "median", "a": float(np.median(one)), "b": float(np.median(other))}
                rows.append({"task": task, "by": by, **medians, "size": weight * distance(one, other)})
    return sorted((row for row in rows if row["size"] > 0), key=lambda row: (-row["size"], row["task"], row["by"]))


def distance(one: np.ndarray, other: np.ndarray) -> float:
    """The largest distance of two empirical distribution functions, samples [N] and [M] of at least 1."""
    at = np.concatenate([one, other])
    below = [np.searchsorted(np.sort(sample), at, side="right") / len(sample) for sample in (one, other)]
    return float(np.abs(below[0] - below[1]).max())


def _columns(version: Version, quality: Quality) -> dict[str, np.ndarray]:
    origin = version.table["origin"]
    source = np.asarray([name.partition(":")[0] for name in origin], str)
    outcome = np.asarray([OUTCOMES[code] for code in version.table["success"].tolist()], str)
    return {"task": version.table["task"], "origin": origin, "source": source, "outcome": outcome}


def _shares(task: str, by: str, one: np.ndarray, other: np.ndarray, weight: float) -> list[dict[str, Any]]:
    """A row for each text in one of two columns: the share of it in both."""
    rows = []
    for value in sorted({*one.tolist()} | {*other.tolist()}):
        a, b = (float((column == value).mean()) if len(column) else 0.0 for column in (one, other))
        rows.append({"task": task, "by": by, "value": value, "a": a, "b": b, "size": weight * abs(b - a)})
    return rows
