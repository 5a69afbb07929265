"""The nightly: a list of stages, each a run of its own, from new demonstrations to a report.

Its inputs are the episodes not made by a policy, the incumbent and the config; its own rollouts do not make it new.

    ingest -> pretrain -> retrain -> gate -> evaluate (each policy once, on report seeds) -> report
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np

from flywheel import run as runs
from flywheel import stats, store
from flywheel.identity import RUNTIME, fingerprint, key_of
from flywheel.log import say
from flywheel.stages import _inputs

SHARE = {"pretrain": 0.35, "retrain": 0.7}  # of a budget: by then pretraining ends, no new round begins


def default_source(cfg: dict[str, Any]) -> str | None:
    """`source=default`: the demonstrations that ship with a task of sim/."""
    if cfg["source"] != "default":
        return cfg["source"]
    import flywheel_datasets

    name = cfg["task"]["name"]
    found = [p for d in flywheel_datasets.__path__ for p in Path(d).glob(f"{name}_demos.hdf5")]
    if not found:
        raise runs.RunError(f"no demonstrations ship with task {name!r}; give source=FILE format=..., or source=null")
    return str(found[0])


def nightly(cfg: dict[str, Any], place: runs.Store, budget: float | None = None) -> dict[str, Any]:
    """Run, go on with, or look up a nightly; its result. `rounds="+N"` in the config asks for rounds from the incumbent."""
    began = time.monotonic()
    source = default_source(cfg)
    done: list[str] = []

    def stage(name: str, part: dict[str, Any], deadline: float | None = None, lock: bool = False) -> dict[str, Any]:
        result = runs.execute(name, part, place, lock=lock, deadline=deadline)
        done.append(result["run"])
        return result

    if source is not None:
        part = {**cfg["ingest"], "source": source}
        ingested = stage("ingest", part, lock=True)
        say(f"  demonstrations: {ingested['metrics']['added']} added by {ingested['run']}")
    pre = {**cfg["pretrain"], "demos": cfg["demos"], "data": cfg["data"]}
    demos = _inputs.pools(pre, place)[0]
    more = str(cfg["rounds"]) if cfg.get("rounds") and str(cfg["rounds"]).startswith("+") else None
    known = {k: v for k, v in cfg.items() if k not in RUNTIME and k != "source"}  # where it lies is no input
    code = {name: fingerprint(name, cfg) for name in ("pretrain", "retrain", "promote", "evaluate")}
    base = key_of({"config": known, "demos": demos.id, "code": code})
    name = _inputs.name_of(cfg)
    incumbent = production(place, name)

    begun = [store.read_json(p) for p in sorted((place.root / "runs" / "nightly").glob("*/begin.json"))]
    finished = {r["key"]: r for r in place.runs("nightly")}
    same = [b for b in begun if b["base"] == base]
    state = next((b for b in same if b["key"] not in finished), None)
    if state is None and not more:
        for b in same:
            result = finished[b["key"]]["result"]
            if incumbent in (b["incumbent"], result["outputs"].get("checkpoint")):
                return {**result, "status": "noop", "seconds": round(time.monotonic() - began, 1)}
    if state is None:
        night = int(cfg.get("night") or 0) + len(begun)
        what = {"base": base, "incumbent": incumbent, "again": night if more else 0}
        state = {"key": key_of(what), **what, "night": night, "corpus": demos.number if cfg["data"] else demos.ref}
    with store.Lock(place.root, "nightly"):
        return _work(cfg, place, state, stage, done, pre, more, budget, began, name)


def production(place: runs.Store, name: str) -> str | None:
    """NAME@ID in production, or None."""
    if name not in place.names.names():
        return None
    record = place.names.resolve(name)
    return f"{name}@{record['id']}" if record["production"] else None


def _work(cfg, place, state, stage, done, pre, more, budget, began, name):
    folder = place.root / "runs" / "nightly" / state["key"]
    store.make_dirs(folder / "out")
    store.write_json(folder / "begin.json", state, indent=1)
    run = f"nightly/{state['key']}"
    shared = {"night": state["night"], "corpus": str(state["corpus"])}
    incumbent = state["incumbent"]
    deadline = {part: began + share * budget if budget else None for part, share in SHARE.items()}
    bounded = {"budget": cfg["budget"]} if budget else {}
    table: list[tuple[str, str]] = []

    if more and not incumbent:
        raise runs.RunError(f"rounds={more} goes on from the incumbent, but nothing of {name} is in production yet")
    if more:
        anchor, first, extra = incumbent, incumbent, {"rounds": int(more)}
        table.append(("incumbent", incumbent))
    else:
        pretrained = stage("pretrain", {**pre, **shared, **bounded}, deadline["pretrain"])
        first, anchor = pretrained["outputs"]["checkpoint"], pretrained["outputs"]["anchor"]
        extra = {"rounds": int(cfg["rounds"])} if cfg.get("rounds") else {}
        table.append(("pretrained", first))
        if incumbent is None:
            place.names.promote(
                name, first.partition("@")[2], run, "the first of its name: there is no incumbent to beat"
            )
        elif incumbent != first:
            table.append(("incumbent", incumbent))
    retrain = {
        **cfg["retrain"],
        **shared,
        "demos": cfg["demos"],
        "data": cfg["data"],
        "checkpoint": anchor,
        "prior": bool(incumbent),
        **extra,
    }
    retrained = stage("retrain", {**retrain, **bounded}, deadline["retrain"])
    table.append(("retrained", retrained["outputs"]["policy"]))
    candidate = retrained["outputs"]["checkpoint"]
    if candidate != retrained["outputs"]["policy"]:
        table.append(("best-of-N", candidate))
    gate = stage(
        "promote", {**cfg["promote"], "night": state["night"], "checkpoint": candidate, "against": incumbent or first}
    )
    rows = _table(table, stage, {**cfg["evaluate"], "night": state["night"]}, place)
    steps = {
        "collection": retrained["metrics"]["steps"],
        "gate": gate["metrics"].get("environment_steps", 0),
        "report": sum(row["environment_steps"] for row in rows),
    }
    standing = gate["outputs"]["checkpoint"]
    row = next((r for r in rows if r["checkpoint"] == standing), rows[0])
    result = {
        "status": "refused" if gate["status"] == "refused" else "done",
        "run": run,
        "inputs": {"corpus": state["corpus"], "checkpoint": incumbent},
        "outputs": {"checkpoint": standing, "corpus": retrained["outputs"]["corpus"]},
        "metrics": {k: v for k, v in row.items() if k not in ("policy", "checkpoint")},
        "seconds": round(time.monotonic() - began, 1),
    }
    record = {
        "stage": "nightly",
        "key": state["key"],
        "identity": {"config": {k: v for k, v in cfg.items() if k not in RUNTIME}},
        "inputs": {},
        "result": result,
        "content": {"runs": done, "table": rows, "night": state["night"], "steps": steps},
        "files": {},
        "finished": store.now(),
    }
    show(rows)
    say("  environment steps: " + ", ".join(f"{kind} {n:,}" for kind, n in steps.items()))
    store.write_json(folder / "_DONE.json", record, indent=1)
    from flywheel.stages import report

    page = report.build(place)
    say(f"  report: {page}")
    return {**result, "seconds": round(time.monotonic() - began, 1)}


def _table(table, stage, part, place) -> list[dict[str, Any]]:
    """Each policy once on the report seeds; paired against the first row."""
    rows, outcomes = [], []
    for kind, ref in table:
        result = stage("evaluate", {**part, "checkpoint": ref})
        rows.append({"policy": kind, "checkpoint": ref, **result["metrics"]})
        with np.load(place.root / "runs" / result["run"] / "out" / "checkpoint.npz") as columns:
            outcomes.append(columns["success"])
        if len(rows) > 1:
            rows[-1]["paired"] = stats.mcnemar(outcomes[-1], outcomes[0])
            rows[-1]["p"] = rows[-1]["paired"]["p"]
    return rows


def show(rows: list[dict[str, Any]]) -> None:
    """Print the table that ends a nightly."""
    say("")
    say(
        f"  {'policy':12} {'checkpoint':34} success  95 % interval     at the end     n  p (better than {rows[0]['policy']})"
    )
    for row in rows:
        low, high = row["ci95"]
        p = f"{row['p']:.2g}" if "p" in row else "-"
        say(
            f"  {row['policy']:12} {row['checkpoint']:34} {row['success']:7.3f}  [{low:.3f}, {high:.3f}]  "
            f"{row['success_at_end']:11.3f}  {row['n']:4d}  {p}"
        )
        for key, value in row.items():
            if "_within_" in key:
                a, b = value["ci95"]
                say(f"  {'':12} {key:34} {value['success']:7.3f}  [{a:.3f}, {b:.3f}]")


def plan(cfg: dict[str, Any], place: runs.Store) -> dict[str, Any]:
    """--dry-run: print for each stage hit, resume or miss, and why. What depends on a stage not yet done is said so."""
    source = default_source(cfg)
    lines = []
    if source is not None:
        lines.append(runs.plan("ingest", {**cfg["ingest"], "source": source}, place))
    begun = [store.read_json(p) for p in sorted((place.root / "runs" / "nightly").glob("*/begin.json"))]
    night = max((b["night"] for b in begun), default=int(cfg.get("night") or 0))
    pre = {**cfg["pretrain"], "demos": cfg["demos"], "data": cfg["data"], "night": night}
    if lines and lines[-1]["action"] != "hit":
        print("pretrain and all after it: wait for ingest")
    else:
        lines.append(runs.plan("pretrain", pre, place))
        if lines[-1]["action"] != "hit":
            print("retrain and all after it: wait for pretrain")
    for line in lines:
        print(f"{line['action']:7} {line['run']}  {line['why']}")
    return {"status": "noop", "run": None, "stages": [{k: x[k] for k in ("action", "run", "why")} for x in lines]}
