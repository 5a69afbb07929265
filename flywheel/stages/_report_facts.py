"""What the report tells, read from a store as plain values. Every function answers for an empty or half-filled store too."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from flywheel import log, stats
from flywheel.stages import _inputs


def newest_night(runs: list[dict], given: dict[str, Any] | None) -> dict[str, Any] | None:
    """The nightly to tell of: the one that ends just now, or the newest finished one."""
    if given:
        return {"key": "", "result": {}, "finished": "", **given, "content": given.get("content") or given}
    return next((r for r in reversed(runs) if r["stage"] == "nightly"), None)


def gates(place) -> list[dict[str, Any]]:
    """Every entry of every name's log but the makings, newest first: name, op, id, run, reason, time."""
    names = place.names.names() if place.names.path.exists() else []
    found = [{"name": n, **e} for n in names for e in reversed(place.names.log(n)) if e["op"] != "make"]
    return sorted(found, key=lambda e: e["time"], reverse=True)


def subject(place, runs: list[dict], night: dict | None, decisions: list[dict]) -> str | None:
    """The name that the page is about: the nightly's, else what was decided or made last."""
    for row in (night or {}).get("content", {}).get("table") or []:
        return str(row["checkpoint"]).partition("@")[0]
    if decisions:
        return decisions[0]["name"]
    made = [v for r in reversed(runs) for v in r["result"].get("outputs", {}).values() if isinstance(v, str)]
    return next((v.partition("@")[0] for v in made if "@" in v), None)


def standing(place, name: str | None) -> dict[str, Any] | None:
    """The record of what `name` means now, or None."""
    return place.names.resolve(name) if name and name in place.names.names() else None


def task_of(runs: list[dict], name: str | None, given: dict | None) -> dict[str, Any]:
    """The config of the task that made checkpoints of `name`; {} if no run tells."""
    if given:
        return given
    for done in reversed(runs):
        made = [v for v in done["result"].get("outputs", {}).values() if isinstance(v, str)]
        config = done.get("identity", {}).get("config", {})
        if config.get("task") and (name is None or any(v.startswith(f"{name}@") for v in made)):
            return config["task"]
    return {}


def of_task(runs: list[dict], stage: str, task: dict) -> list[dict]:
    """The finished runs of a stage for a task, oldest first."""
    title = _title(task)
    same = [r for r in runs if r["stage"] == stage]
    return [r for r in same if not title or _title(r.get("identity", {}).get("config", {}).get("task") or {}) == title]


def _title(task: dict) -> str:
    return _inputs.title({"task": task}) if task.get("name") else ""


# -- success ----------------------------------------------------------------------------------------------------------


def outcomes(place, runs: list[dict], night: dict | None = None) -> dict[str, dict[str, Any]]:
    """{NAME@ID: {"columns", "run", "config"}}: scores on report seeds, of this nightly where there is one, else newest."""
    wanted = set((night or {}).get("content", {}).get("runs") or [])
    found: dict[str, dict[str, Any]] = {}
    for done in runs:
        name = f"{done['stage']}/{done['key']}"
        if done["stage"] != "evaluate" or (wanted and name not in wanted):
            continue
        for kind in ("against", "checkpoint"):
            path = place.dir(done) / "out" / f"{kind}.npz"
            if kind in done["inputs"] and path.exists():
                with np.load(path) as columns:
                    kept = {k: columns[k] for k in columns.files}
                found[done["inputs"][kind]["ref"]] = {
                    "columns": kept,
                    "run": name,
                    "config": done["identity"]["config"],
                    "names": done["content"].get("obs_names") or [],
                }
    return found


def scores(night: dict | None, seen: dict[str, dict]) -> list[dict[str, Any]]:
    """The table, a row a policy: policy, checkpoint, success, n, ci95, p (better than the first), more {label: rate}."""
    rows = (night or {}).get("content", {}).get("table") or []
    if not rows:
        rows = [
            {"policy": "evaluated", "checkpoint": ref, **stats.rate(s["columns"]["success"])} for ref, s in seen.items()
        ]
        for row in rows:
            row["success_at_end"] = float(seen[row["checkpoint"]]["columns"]["success_at_end"].mean())
    table = []
    for row in rows:
        more = {k.replace("_", " "): v for k, v in row.items() if isinstance(v, dict) and "ci95" in v}
        table.append({**row, "more": more})
    return table


def better(candidate: str, base: str, seen: dict[str, dict]) -> float | None:
    """p that `candidate` beats `base` on the seeds that both were scored on; None where they were not."""
    if candidate not in seen or base not in seen or candidate == base:
        return None
    a, b = seen[candidate]["columns"], seen[base]["columns"]
    same = a["seed"].shape == b["seed"].shape and (a["seed"] == b["seed"]).all()
    return stats.mcnemar(a["success"], b["success"])["p"] if same else None


def nights(runs: list[dict], name: str | None) -> list[dict[str, Any]]:
    """Success of what was in production at each nightly's end, oldest first: success, ci95, n, finished."""
    told = [r for r in runs if r["stage"] == "nightly" and "ci95" in r["result"].get("metrics", {})]
    mine = [r for r in told if str(r["result"].get("outputs", {}).get("checkpoint")).startswith(f"{name}@")]
    return [{**r["result"]["metrics"], "finished": r.get("finished", "")} for r in mine]


def rounds(retrains: list[dict], episodes: dict[str, np.ndarray] | None) -> list[dict[str, Any]]:
    """Every round of every retrain, in order: run, at (its number over all), k of n from its own resets, steps so far.

    k and n are counted in the corpus; a round whose episodes are not there any more has the logged rate and no n.
    """
    counted: dict[tuple, list[int]] = {}
    for meta, won in zip(*(episodes[c] for c in ("meta", "success")), strict=True) if episodes else ():
        if "round" in meta and "start_from" not in meta:
            both = counted.setdefault((meta.get("run"), meta["round"]), [0, 0])
            both[0] += int(won == 1)
            both[1] += 1
    found: list[dict[str, Any]] = []
    offset = 0
    for done in retrains:
        run, steps = f"{done['stage']}/{done['key']}", 0
        for line in done["content"].get("history", []):
            k, n = counted.get((run, line["round"]), (None, 0))
            if not n and line.get("success") is not None and line.get("from_demos") is None:
                n = int(line["episodes"])
                k = round(line["success"] * n)
            steps = line.get("steps") or 0
            value = line.get("success") if not n else k / n
            found.append(
                {**line, "run": run, "at": len(found), "k": k, "n": n, "success": value, "steps": offset + steps}
            )
        offset += steps
    return found


def learned(place, retrains: list[dict]) -> list[dict[str, float]]:
    """The metrics that were logged after each round ({"at", "policy.imitate", "q.td", ...}), rounds counted as in `rounds`."""
    lines, offset = [], 0
    for done in retrains:
        own: dict[int, dict] = {}
        for line in log.read(place.dir(done) / "log.jsonl"):
            if line.get("kind") == "learned" and "round" in line:
                own[line["round"]] = line  # a round done again after a kill counts once
        lines += [{**own[r], "at": offset + r} for r in sorted(own)]
        offset += len(done["content"].get("history", []))
    return lines


def policy_loss(done: dict | None, line: dict) -> str | None:
    """Which entry of a metrics line is the policy's loss."""
    table = ((done or {}).get("identity", {}).get("config", {}).get("algorithm") or {}).get("improve") or {}
    names = [f"policy.{loss}" for loss in table.get("policy") or {}]
    return next((n for n in [*names, *sorted(k for k in line if k.startswith("policy."))] if n in line), None)


# -- corpus -----------------------------------------------------------------------------------------------------------


def corpus(place) -> dict[str, Any] | None:
    """The newest version's columns, the log, and a label of who acted for each episode; None where there is no corpus."""
    if not place.has_corpus:
        return None
    held = place.corpus()
    if not held.head:
        return None
    version = held.at("latest")
    table = version.table
    log_ = held.log()
    return {
        "version": version.number,
        "id": version.id,
        "table": table,
        "log": log_,
        "who": who(table["origin"], table["added"]),
    }


def who(origin: np.ndarray, added: np.ndarray, most: int = 6) -> np.ndarray:
    """A label an episode: its origin, where there are few; the older policies together, then whatever is rarest."""
    label = np.asarray(origin, object).copy()
    policies = [o for o in np.unique(origin) if str(o).startswith("policy:")]
    policies.sort(key=lambda o: int(added[origin == o].max()))
    for old in policies[:-2] if len(policies) > 3 else []:
        label[origin == old] = "earlier policies"
    counts = Counter(label.tolist())
    for rare, _ in counts.most_common()[most - 1 :] if len(counts) > most else []:
        label[label == rare] = "others"
    return label


def growth(held: dict[str, Any]) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Version numbers [V], and for each label how many of today's episodes there were by then [V]."""
    versions = np.arange(1, held["version"] + 1)
    added, label = held["table"]["added"], held["who"]
    order = sorted(set(label.tolist()), key=lambda w: (int(added[label == w].min()), w))
    return versions, {w: np.searchsorted(np.sort(added[label == w]), versions, side="right") for w in order}


def quality(held: dict[str, Any]) -> list[dict[str, Any]]:
    """A row a label: episodes, steps, successes of those with a known outcome, and quantiles of the length."""
    table, rows = held["table"], []
    for label in growth(held)[1]:
        mine = held["who"] == label
        won, length = table["success"][mine], table["length"][mine]
        rows.append({
            "who": label, "episodes": int(mine.sum()), "steps": int(length.sum()),
            "k": int((won == 1).sum()), "known": int((won >= 0).sum()),
            "length": np.quantile(length, [0.1, 0.5, 0.9]).tolist(),
        })  # fmt: skip
    return rows


def quarantined(runs: list[dict]) -> list[dict[str, Any]]:
    """What ingest kept out and why, newest ingest first: file, episode, reason, finished."""
    found = []
    for done in reversed(runs):
        if done["stage"] == "ingest":
            found += [{**bad, "finished": done.get("finished", "")} for bad in done["content"].get("quarantined", [])]
    return found


def disk(root: Path) -> list[tuple[str, int, int]]:
    """(folder, bytes, files) of what lies in the store, the largest first; the page itself is not counted."""
    found = []
    for top in sorted(p for p in root.iterdir() if p.is_dir()) if root.exists() else []:
        total = files = 0
        for folder, _, names in os.walk(top):
            for name in names:
                path = Path(folder) / name
                if path != root / "report" / "index.html" and not path.is_symlink():
                    total, files = total + path.stat().st_size, files + 1
        if files:
            found.append((top.name, total, files))
    return sorted(found, key=lambda row: -row[1])
