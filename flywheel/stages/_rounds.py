"""What retrain and online share: which episodes there are to draw from, one round of collection, and what a run remembers."""

from __future__ import annotations

from typing import Any

import numpy as np

from flywheel.log import say
from flywheel.stages import _inputs


def memory() -> dict[str, Any]:
    """What a run of rounds remembers, as JSON values."""
    return {"round": 0, "episodes": [], "begun": 0, "steps": 0, "history": []}


def pools(cfg, run, corpus, memory: dict[str, Any], inputs: list[str], demos: dict[str, list[str]]):
    """Windows over the input episodes and the run's own (by hash), and which are which; in an order that only this run decides.

    `demos` are the pools of what is imitated (`named`); what is in none of them is a rollout.
    """
    version = corpus.at("latest")
    where = {h: i for i, h in enumerate(version.hashes)}
    order = [*inputs, *memory["episodes"]]
    chosen = version.select(np.array([where[h] for h in order]))
    won = np.asarray(chosen.table["success"]) == 1
    index = np.arange(len(order))
    parts = {name: np.isin(np.array(order), np.array(hashes, dtype=str)) for name, hashes in demos.items()}
    is_demo = np.any([*parts.values(), np.zeros(len(order), bool)], axis=0)
    return _inputs.windows(corpus, chosen, cfg, run.store), {
        **{name: index[part] for name, part in parts.items()},
        "own": index[~is_demo & won],
        "rollouts": index[~is_demo],
        "all": index,
    }


def named(version, pools: dict[str, np.ndarray]) -> dict[str, list[str]]:
    """{pool: hashes} of positions among a version's episodes."""
    return {name: [version.hashes[i] for i in which] for name, which in pools.items()}


def keep(run, corpus, memory: dict[str, Any], done, counts, **more) -> dict[str, Any]:
    """Append a round's episodes to the corpus and remember them, less what someone has removed from it; the line that is logged."""
    done = [e.replace(meta={**e.meta, "round": memory["round"], "run": run.name}) for e in done]
    added = corpus.append(done, message=f"{run.name} round {memory['round']}", author=run.name)
    memory["steps"] += sum(len(e) for e in done)
    memory["begun"] += len(done)
    known = {*memory["episodes"], *(h for h, _ in added.refused)}
    memory["episodes"] += [
        e.hash for e in done if e.hash not in known and "cause" not in e.meta
    ]  # a fault is no lesson
    note = {"round": memory["round"], "episodes": len(done), **more, "steps": memory["steps"]}
    note |= {key: counts.get(key, 0) for key in ("clipped", "held")}
    if faults := [f"seed {e.seed}: {e.meta['cause']}" for e in done if "cause" in e.meta]:
        note["faults"] = faults
    memory["round"] += 1
    memory["history"].append(note)
    run.log("round", **note)
    return note


def tell(note: dict[str, Any]) -> None:
    """A round's line, for people."""
    words = (f"{k} {v:.3g}" if isinstance(v, float) else f"{k} {v}" for k, v in note.items() if v is not None)
    say("  " + ", ".join(words))
