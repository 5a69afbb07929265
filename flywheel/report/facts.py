"""What the report tells, read from a store as plain values.

Every function answers for an empty or half-filled store too.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flywheel.env import ids as gym_names
from flywheel.report import episodes, results


@dataclass(frozen=True)
class Facts:
    """What several sections need of a store, read once."""

    place: Any  # the store
    runs: list[dict[str, Any]]  # the finished ones, oldest first
    night: dict[str, Any]  # what the newest nightly recorded; {} before the first
    decisions: list[dict[str, Any]]  # of the gate and by hand, newest first
    name: str | None  # that the page is about, such as policy/lift
    corpus: dict[str, Any] | None
    outcomes: dict[str, dict[str, Any]]  # {NAME@ID: scores on report seeds}
    table: list[dict[str, Any]]  # a row for each policy that was scored
    production: str | None  # NAME@ID that `name` stands for now
    pretrains: list[dict[str, Any]]  # the task's runs
    practices: list[dict[str, Any]]  # retrain and online


def look(place) -> Facts:
    """Read a store."""
    runs = place.runs()
    night = next((run["content"] for run in reversed(runs) if run["stage"] == "nightly"), {})
    decided = decisions(place)
    name = subject(runs, night, decided)
    task = task_of(runs, name)
    robot = task.get("name") == "robot"  # of which every trial counts, also those since the night
    scored = (
        results.tried(place, name, task) if robot else results.outcomes(place, of_task(runs, "evaluate", task), night)
    )
    return Facts(
        place=place, runs=runs, night=night, decisions=decided, name=name, corpus=episodes.corpus(place),
        outcomes=scored, table=results.table({} if robot else night, scored), production=production(place, name),
        pretrains=of_task(runs, "pretrain", task), practices=of_task(runs, ("retrain", "online"), task),
    )  # fmt: skip


def decisions(place) -> list[dict[str, Any]]:
    """List the entries of every name's log but the makings, newest first: name, op, id, run, reason, time."""
    names = place.names.names() if place.names.path.exists() else []
    entries = [{"name": n, **e} for n in names for e in reversed(place.names.log(n)) if e["op"] != "make"]
    return sorted(entries, key=lambda e: e["time"], reverse=True)


def subject(runs: list[dict], night: dict, decided: list[dict]) -> str | None:
    """Return the name that the page is about: the nightly's, else what was decided or made last."""
    for row in night.get("table") or []:
        return str(row["checkpoint"]).partition("@")[0]
    if decided:
        return decided[0]["name"]
    return next((ref.partition("@")[0] for run in reversed(runs) for ref in outputs(run) if "@" in ref), None)


def outputs(run: dict) -> list[str]:
    """List what a run made that has a name."""
    return [output for output in run["result"].get("outputs", {}).values() if isinstance(output, str)]


def production(place, name: str | None) -> str | None:
    """Return the NAME@ID that `name` stands for now."""
    return f"{name}@{place.names.resolve(name)['id']}" if name and name in place.names.names() else None


def task_of(runs: list[dict], name: str | None) -> dict[str, Any]:
    """Return the config of the task that made checkpoints of `name`; {} if no run tells."""
    for run in reversed(runs):
        config = run.get("identity", {}).get("config", {})
        if config.get("task") and (name is None or any(ref.startswith(f"{name}@") for ref in outputs(run))):
            return config["task"]
    return {}


def of_task(runs: list[dict], stage: str | tuple[str, ...], task: dict) -> list[dict]:
    """List the finished runs of a stage, or of several, for a task (all of them where that is not known); oldest first
    of all."""
    wanted = gym_names.of_task(task)
    same = [run for run in runs if run["stage"] in ((stage,) if isinstance(stage, str) else stage)]
    return [
        r for r in same if wanted in ("", gym_names.of_task(r.get("identity", {}).get("config", {}).get("task") or {}))
    ]


def quarantined(runs: list[dict]) -> list[dict[str, Any]]:
    """List what ingest kept out and why, newest ingest first: file, episode, reason."""
    ingests = [run for run in reversed(runs) if run["stage"] == "ingest"]
    blank = {"file": None, "episode": None, "reason": None}
    return [{**blank, **episode} for run in ingests for episode in run["content"].get("quarantined", [])]


def disk(root: Path) -> list[tuple[str, int, int]]:
    """List (folder, bytes, files) of what lies in the store, the largest first; the page itself is not counted."""
    rows = []
    for top in (path for path in root.iterdir() if path.is_dir()) if root.exists() else []:
        inside = [Path(folder) / name for folder, _, names in os.walk(top) for name in names]
        counted = [path for path in inside if path != root / "report" / "index.html" and not path.is_symlink()]
        if counted:
            rows.append((top.name, sum(path.stat().st_size for path in counted), len(counted)))
    return sorted(rows, key=lambda row: (-row[1], row[0]))
