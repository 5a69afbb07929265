"""Which night is it? One that was finished and is not new, one that was begun, or a new one.

found          by                                                        then
finished       the same episodes, config and code, and its own policy    its result again
begun          the same, without a record                                it goes on
neither        a key and a number of its own, from the ledger            it begins
"""

from __future__ import annotations

from dataclasses import is_dataclass, replace
from pathlib import Path
from typing import Any

from flywheel import ending, selection, store
from flywheel.args import UsageError, defaults, plain
from flywheel.cli import config
from flywheel.cli.config import PARTS
from flywheel.log import say
from flywheel.runs import robot
from flywheel.runs import run as runs
from flywheel.runs.identity import deciding, fingerprint, key_of

DECIDED = ("night", "corpus", "demos", "data", "prior")  # of each stage, by a night itself


def look(cfg: Any, place: runs.Store, work: Any) -> dict[str, Any]:
    """Ingest, and find out which night this is: {"result"} of one that was finished, else its state: a begun one, or
    a new one."""
    refuse_decided(cfg)
    source = default_source(cfg)
    for stage in ("pretrain", "retrain", *(("online",) if cfg.online else ())):  # refused now, not after hours
        selection.belongs(stage, getattr(cfg, stage).algorithm)
    if cfg.promote.against:
        place.names.resolve(cfg.promote.against)
    if source is not None:
        _ingest(replace(cfg.ingest, source=source), work)
    demos = selection.pools(replace(cfg.pretrain, demos=cfg.demos, data=cfg.data), place)[0]
    more, told = _more(cfg), plain(cfg)
    known = deciding(
        {k: v for k, v in told.items() if k not in ("source", *PARTS)}
    )  # where the source lies is no input
    parts = [part for part in PARTS if told[part] is not None]
    known |= {part: {k: v for k, v in deciding(told[part]).items() if k != "source"} for part in parts}
    files = config.stages()
    used = [name for name in parts[1:] if not cfg.task.recorded or name in robot.PARTS]
    code = {name: fingerprint(files[name], {**told, **told[name]}) for name in used}
    name = selection.name_of(cfg)
    incumbent = production(place, name)
    trials = {"trials": robot.recorded(cfg, place)} if cfg.task.recorded else {}
    base = key_of({"config": known, "demos": demos.id, "code": code, **trials})

    finished = {r["key"]: r for r in place.runs("nightly")}
    same = sorted((b for b in _begun(place) if b["base"] == base), key=lambda b: b["night"])
    state = next((b for b in same if b["key"] not in finished), None)
    if state is None and not more:
        for b in same:
            result = finished[b["key"]]["result"]
            if result.get("stopped") == "budget" and not work.budget:
                continue  # cut short: without a budget the whole is another night
            if incumbent in (b["incumbent"], result["outputs"].get("checkpoint")):
                return {"result": result}
    if state is None:
        again = 1 + len(place.ledger.taken("night")) if more else 0
        what = {"base": base, "incumbent": incumbent, "again": again}
        while key_of(what) in finished:  # cut short by its budget
            what["whole"] = what.get("whole", 0) + 1
        corpus = demos.number if cfg.data else demos.ref
        start = _start(name, incumbent, finished.values()) if more else None
        state = {"key": key_of(what), **what, "night": None, "corpus": corpus, "start": start}
    return state


def number_of(cfg: Any, place: runs.Store, key: str | None = None) -> int:
    """The number of the night `key`, its own for ever; without a key, that of a night which began now."""
    first = cfg.night
    least = (
        1 + max((b["night"] for b in _begun(place)), default=first - 1) - first
    )  # also of nights from before there was a ledger
    taken = place.ledger.taken("night")
    return first + (
        place.ledger.take("night", key, least=least) if key else max([least, *(e["first"] + 1 for e in taken)])
    )


def production(place: runs.Store, name: str) -> str | None:
    """NAME@ID in production, or None."""
    id_ = place.names.production(name)
    return f"{name}@{id_}" if id_ else None


def default_source(cfg: Any) -> str | None:
    """`source=default`: the demonstrations that ship with a task of sim/."""
    if cfg.source != "default":
        return cfg.source
    if cfg.task.recorded:
        return None
    import flywheel_datasets

    name = cfg.task.name
    found = [p for d in flywheel_datasets.__path__ for p in Path(d).glob(f"{name}_demos.hdf5")]
    if not found:
        raise runs.RunError(f"no demonstrations ship with task {name!r}; give source=FILE format=..., or source=null")
    return str(found[0])


def refuse_decided(cfg: Any) -> None:
    """UsageError for a key of a stage that a night decides itself: it would have no effect."""
    for stage in PARTS:
        part = getattr(cfg, stage)
        for key, usual in defaults(part).items() if is_dataclass(part) else ():
            own = key in DECIDED or (key == "checkpoint" and stage in ("retrain", "online", "distil"))
            if own and (value := getattr(part, key)) not in (usual, getattr(cfg, key, usual)):
                hint = f"; say it for all: {key}=..." if hasattr(cfg, key) else ""
                raise UsageError(f"{stage}.{key}={plain(value)}: a nightly decides that itself{hint}")


def _ingest(part: Any, work: Any) -> None:
    """Take in what is there. Files that failed are said; a source of which nothing at all could be taken is a
    failure."""
    try:
        result = work("ingest", part, lock=True)
    except ending.Failed as error:
        counts = error.result.get("metrics", {})
        if not counts.get("added") and not counts.get("duplicates"):
            raise
        say(f"  going on without what ingest could not take: {error}")
        return
    say(f"  demonstrations: {result['metrics']['added']} added by {result['run']}")


def _begun(place: runs.Store) -> list[dict[str, Any]]:
    """What each night wrote when it began. A damaged one is named and left out; its number stands in the ledger."""
    found = []
    for path in (folder / "begin.json" for folder in place.begun("nightly") if (folder / "begin.json").exists()):
        try:
            found.append(store.read_json(path))
        except ValueError as error:
            say(f"  left out: {error}")
    return found


def _more(cfg: Any) -> str | None:
    """+N, where so many further rounds are asked for."""
    return cfg.rounds if cfg.rounds and cfg.rounds.startswith("+") else None


def _start(name: str, incumbent: str | None, finished) -> str:
    """Where further rounds begin: at the incumbent, or at what the last night made and the gate refused, if it was
    made to beat it."""
    if not incumbent:
        raise runs.RunError(f"rounds=+N goes on from the incumbent, but nothing of {name} is in production yet")
    mine = [r for r in finished if r["content"].get("name") == name]
    last = max(mine, key=lambda r: r["content"]["night"], default=None)
    if last and last["result"]["status"] == "refused" and last["result"]["outputs"]["checkpoint"] == incumbent:
        return last["content"]["candidate"]
    return incumbent
