"""The night of a robot without a simulator: what needs no robot, and which trials it wants next.

    ingest -> gate (yesterday's candidate, by the trials recorded since) -> pretrain (each class of policy) -> the least
           next-action error of episodes held out -> evaluate (count the trials of candidate and production) -> report

The first policy of a name goes into production. From then on there is one candidate at a time: it stays until the gate
has promoted or refused it, and then the newest policy is the next one. Trials come in by `flywheel drive` or `flywheel
ingest`, with origin policy:ID."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from typing import Any

import numpy as np

from flywheel import selection, stats, store
from flywheel.env import trials
from flywheel.log import say
from flywheel.runs.names import Moved

PARTS = ("pretrain", "promote", "evaluate")  # of a nightly's stages
BY = {"gate": 0.1, "pretrain": 0.9, "evaluate": 0.97}  # of a budget: done by
BEGIN = 10  # trials of each, of a candidate that nobody has tried


def recorded(cfg, place) -> str:
    """A hash of the trials that there are: what makes a night new, besides demonstrations."""
    if not place.has_corpus:
        return ""
    name = selection.name_of(cfg)
    made = _made(place, name)
    return trials.identity(*(trials.of(place, cfg.task, f"{name}@{id_}") for id_ in made))


def stages(cfg, place, state: dict[str, Any], work: Callable) -> dict[str, Any]:
    """The stages after ingest, by whatever `work` does with each: what nightly._stages answers, and `wanted`."""
    name, run, incumbent = selection.name_of(cfg), f"nightly/{state['key']}", state["incumbent"]
    night = {"night": state["night"] if state["night"] is not None else cfg.night}
    gate, asked = {"status": "done", "outputs": {}, "metrics": {}}, _waiting(cfg, place, name, incumbent)
    if asked:
        gate = work("promote", replace(cfg.promote, **night, checkpoint=asked, asked_by=run), BY["gate"])
    base, tournament = _pretrained(cfg, {**night, "corpus": str(state["corpus"])}, work)
    if place.names.production(name) is None and not work.foresees:
        reason = "the first of its name: there is no incumbent to beat"
        with suppress(Moved):
            place.names.promote(name, base.partition("@")[2], run, reason, over=None)
    standing = f"{name}@{place.names.production(name) or base.partition('@')[2]}"
    open_ = asked and asked != standing and _waiting(cfg, place, name, standing.partition("@")[2], only=asked)
    candidate = open_ or (standing if _judged(place, base) else base)
    kinds = {"production": standing} | ({"candidate": candidate} if candidate != standing else {})
    tried = {kind: ref for kind, ref in kinds.items() if len(trials.of(place, cfg.task, ref))}
    rows = _rows(cfg, {ref: kind for kind, ref in tried.items()}, night, work, place)
    known = len(trials.of(place, cfg.task, standing))
    begin = {"candidate": BEGIN, "incumbent": max(0, BEGIN - known)}
    more = gate["metrics"].get("wanted") if open_ else begin
    wanted = _wanted(candidate, standing, more, rows, place)
    rows = [{key: one for key, one in row.items() if key != "run"} for row in rows]
    return {
        "rows": rows, "gate": gate, "standing": standing, "candidate": candidate, "tournament": [],
        "compared": tournament, "corpus": place.corpus().head, "steps": {"collection": 0, "gate": 0, "report": 0},
        "wanted": wanted,
    }  # fmt: skip


def show(made: dict[str, Any]) -> None:
    """Print what ends a robot's night: the classes that were compared, the trials so far, and those that it wants."""
    for row in made["compared"]:
        mark = "  <- the least" if row["chosen"] else ""
        say(f"  {row['policy']:14} {row['checkpoint']:34} next-action error {row['error']:.3f}{mark}")
    for row in made["rows"]:
        low, high = row["ci95"]
        say(
            f"  {row['policy']:14} {row['checkpoint']:34} {row['success']:.3f}  [{low:.3f}, {high:.3f}] of {row['n']} "
            "trials"
        )
    say(f"  in production: {made['standing']}")
    say(f"  {made['wanted']['words']}")


def _made(place, name: str) -> list[str]:
    """The ids that were made under a name, oldest first."""
    if name not in (place.names.names() if place.names.path.exists() else []):
        return []
    return list(dict.fromkeys(entry["id"] for entry in place.names.log(name) if entry["op"] == "make"))


def _waiting(cfg, place, name: str, incumbent: str | None, only: str | None = None) -> str | None:
    """The newest checkpoint (or `only` this one) that was tried, that the gate has not refused against this production,
    and that is not it."""
    standing = (incumbent or "").partition("@")[2] or incumbent
    if not standing:
        return None
    for id_ in reversed(_made(place, name)):
        ref = f"{name}@{id_}"
        if _judged(place, ref) or (only and ref != only):
            continue
        if len(trials.of(place, cfg.task, ref)):
            return ref
    return None


def _judged(place, ref: str) -> bool:
    """Has the gate, or a person, decided about this checkpoint before?"""
    name, _, id_ = ref.partition("@")
    decisions = ("refuse", "promote", "rollback")
    return any(entry["id"] == id_ for entry in place.names.log(name) if entry["op"] in decisions)


def _pretrained(cfg, shared: dict[str, Any], work: Callable) -> tuple[str, list[dict[str, Any]]]:
    """Each class of policy, trained; (that with the least error of episodes held out, a row for each)."""
    rows = []
    shared |= {"demos": cfg.demos, "data": cfg.data}
    for index, (kind, policy) in enumerate(cfg.policies.items()):
        by = BY["gate"] + (BY["pretrain"] - BY["gate"]) * (index + 1) / len(cfg.policies)
        result = work("pretrain", replace(cfg.pretrain, **shared, policy=policy), by)
        about = {key: result["metrics"][key] for key in ("error", "n", "error_by_phase", "error_by_dimension")}
        rows.append({"policy": kind, "checkpoint": result["outputs"]["checkpoint"], **about, "chosen": False})
    best = min(rows, key=lambda row: row["error"])
    best["chosen"] = True
    return best["checkpoint"], rows


def _rows(cfg, kinds: dict[str, str], night: dict[str, Any], work: Callable, place) -> list[dict[str, Any]]:
    """A row for each policy {NAME@ID: kind} that was tried, the first against the others by Fisher's test."""
    rows, outcomes = [], []
    for ref, kind in kinds.items():
        result = work("evaluate", replace(cfg.evaluate, **night, checkpoint=ref), BY["evaluate"])
        rows.append({"policy": kind, "checkpoint": ref, **result["metrics"], "run": result["run"]})
        with np.load(place.dir(result["run"]) / "out" / "checkpoint.npz") as columns:
            outcomes.append(columns["success"])
        if len(rows) > 1:
            rows[-1]["unpaired"] = stats.fisher(outcomes[-1], outcomes[0])
            rows[-1]["p"] = rows[-1]["unpaired"]["p"]
    return rows


def _wanted(candidate: str, standing: str, more: Any, rows: list[dict[str, Any]], place) -> dict[str, Any]:
    """{"candidate", "incumbent": trials that are wanted next, "starts": where failures begin, "words"}."""
    from flywheel.report import starts

    if candidate == standing:
        return {"words": f"nothing to try: {standing} is in production, and nothing newer waits; demonstrate more"}
    advice = None
    for row in rows[::-1]:  # the candidate's, else production's
        folder = place.dir(row["run"])
        about = store.read_json(folder / "_DONE.json")["content"]
        with np.load(folder / "out" / "checkpoint.npz") as file:
            columns = {name: file[name] for name in file.files}
        found = starts.where(columns, {"name": "robot"}, about["obs_names"], about["obs_units"])
        advice = advice or (starts.advice(found) if "why" not in found else None)
    if more is None:
        words = f"{candidate} and {standing} are too near to be told apart by trials; refuse it, or demonstrate more"
        return {"words": words, "starts": advice}
    told = [f"{n} of {ref}" for ref, n in ((candidate, more["candidate"]), (standing, more["incumbent"])) if n]
    words = f"trials wanted: {' and '.join(told)}, in turn" + (f". {advice}" if advice else "")
    return {**more, "starts": advice, "words": words}
