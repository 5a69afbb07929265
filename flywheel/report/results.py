"""How well policies do: scores on report seeds and the tests between them, nights, and rounds of practice."""

from __future__ import annotations

from typing import Any

import numpy as np

from flywheel import log, stats


def outcomes(place, evaluates: list[dict], night: dict) -> dict[str, dict[str, Any]]:
    """Read the scores on report seeds, of this nightly where there is one, else the newest.

    {NAME@ID: {"columns" {name: [n]}, "task", "names" and "units" of what is observed, "seeded": do seeds decide?}}
    """
    wanted = set(night.get("runs") or [])
    scored: dict[str, dict[str, Any]] = {}
    for run in evaluates:
        if wanted and f"evaluate/{run['key']}" not in wanted:
            continue
        for kind in ("against", "checkpoint"):
            path = place.dir(run) / "out" / f"{kind}.npz"
            if kind in run["inputs"] and path.exists():
                with np.load(path) as file:
                    columns = {name: file[name] for name in file.files}
                scored[run["inputs"][kind]["ref"]] = {
                    "columns": columns, "task": run["identity"]["config"]["task"],
                    "names": run["content"].get("obs_names") or [], "units": run["content"].get("obs_units") or [],
                    "seeded": run["content"].get("seeded", True),
                }  # fmt: skip
    return scored


def tried(place, name: str | None, task: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Count the recorded trials of each policy of `name` that has some, oldest first; as `outcomes`."""
    from flywheel.args import Task, build
    from flywheel.env import trials

    found: dict[str, dict[str, Any]] = {}
    if not name or not place.has_corpus:
        return found
    made = dict.fromkeys(entry["id"] for entry in place.names.log(name) if entry["op"] == "make")
    for ref in (f"{name}@{id_}" for id_ in made):
        some = trials.of(place, build(Task, task, "task."), ref)
        if len(some):
            columns, names = trials.columns(some)
            about = {"columns": columns, "task": task, "names": names, "units": [], "seeded": False}
            found[ref] = {**about, "policy": "tried"}
    return found


def table(night: dict, scored: dict[str, dict]) -> list[dict[str, Any]]:
    """List a row for each policy, as the nightly's record has them, else of all that was scored.

    policy, checkpoint, success, n, ci95; p (better than the first?) and by which "test"; "more" {label: rate}.
    """
    rows = night.get("table") or [
        {
            "policy": score.get("policy", "evaluated"),
            "checkpoint": ref,
            **stats.rate(score["columns"]["success"]),
            "success_at_end": float(score["columns"]["success_at_end"].mean()),
        }
        for ref, score in scored.items()
    ]
    return [
        {
            **row,
            "test": ("unpaired" if "unpaired" in row else pairing([row["checkpoint"]], scored)) if "p" in row else None,
            "more": {k.replace("_", " "): v for k, v in row.items() if isinstance(v, dict) and "ci95" in v},
        }
        for row in rows
    ]


def pairing(refs: list[str], scored: dict[str, dict]) -> str:
    """Return "paired" where seeds decide the episodes of all these checkpoints, else "unpaired"."""
    return "paired" if all(scored[ref]["seeded"] for ref in refs if ref in scored) else "unpaired"


def better(candidate: str, base: str, scored: dict[str, dict]) -> tuple[float, str] | None:
    """Return p that `candidate` beats `base`, and the test: "paired", or "unpaired" where seeds decide nothing.

    None where not both were scored, or where seeds decide and were not the same.
    """
    if candidate not in scored or base not in scored or candidate == base:
        return None
    a, b = scored[candidate]["columns"], scored[base]["columns"]
    if pairing([candidate, base], scored) == "unpaired":
        return stats.fisher(a["success"], b["success"])["p"], "unpaired"
    return (stats.mcnemar(a["success"], b["success"])["p"], "paired") if np.array_equal(a["seed"], b["seed"]) else None


def nights(runs: list[dict], name: str | None) -> list[dict[str, Any]]:
    """List the success of what was in production at each nightly's end, oldest first: success, ci95, n."""
    scored = [r["result"] for r in runs if r["stage"] == "nightly" and "ci95" in r["result"].get("metrics", {})]
    return [r["metrics"] for r in scored if str(r.get("outputs", {}).get("checkpoint")).startswith(f"{name}@")]


def rounds(retrains: list[dict], episodes: dict[str, np.ndarray] | None) -> list[dict[str, Any]]:
    """List every round of every retrain: run, at (its number over all), k of n from its own resets, steps so far.

    k and n are counted in the corpus; a round whose episodes are not there any more has the logged rate and no n.
    """
    counted: dict[tuple, list[int]] = {}
    for meta, success in zip(*(episodes[c] for c in ("meta", "success")), strict=True) if episodes else ():
        if "round" in meta and "start_from" not in meta:
            count = counted.setdefault((meta.get("run"), meta["round"]), [0, 0])
            count[0] += int(success == 1)
            count[1] += 1
    rows: list[dict[str, Any]] = []
    before = 0  # steps of the runs before this one
    for done in retrains:
        run, steps = f"{done['stage']}/{done['key']}", 0
        for line in done["content"].get("history", []):
            success = line.get("success")
            k, n = counted.get((run, line["round"]), (None, 0))
            if not n and success is not None and line.get("from_demos") is None:
                n = int(line["episodes"])
                k = round(success * n)
            steps = line.get("steps") or 0
            new = {"run": run, "at": len(rows), "k": k, "n": n, "success": k / n if n else success}
            rows.append({**line, **new, "steps": before + steps})
        before += steps
    return rows


def guarded(rounds: list[dict[str, Any]]) -> dict[str, int]:
    """Count the steps of all rounds at which each guard of acting stepped in."""
    found: dict[str, int] = {}
    for line in rounds:
        old = {"limits": line.get("clipped"), "finite": line.get("held")}  # as runs of before called them
        for name, n in (line.get("guard") or old).items():
            found[name] = found.get(name, 0) + int(n or 0)
    return {name: n for name, n in found.items() if n}


def learned(place, retrains: list[dict]) -> list[dict[str, float]]:
    """List the metrics logged after each round, {"at", "policy.imitate", "q.td", ...}; counted as in `rounds`."""
    lines, before = [], 0
    for run in retrains:
        mine: dict[int, dict] = {}
        for line in log.read(place.dir(run) / "log.jsonl"):
            if line.get("kind") == "learned" and "round" in line:
                mine[line["round"]] = line  # a round done again after a kill counts once
        lines += [{**mine[number], "at": before + number} for number in sorted(mine)]
        before += len(run["content"].get("history", []))
    return lines


def policy_loss(run: dict | None, line: dict) -> str | None:
    """Name the entry of a metrics line that is the policy's loss."""
    losses = ((run or {}).get("identity", {}).get("config", {}).get("algorithm") or {}).get("improve") or {}
    names = [f"policy.{loss}" for loss in losses.get("policy") or {}]
    return next((n for n in [*names, *sorted(k for k in line if k.startswith("policy."))] if n in line), None)
