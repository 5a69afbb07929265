"""Trials: what became of policies on a robot, as the corpus holds it, and what it says of two of them.

A trial is an episode by policy:ID whose outcome is known. One in which a person took over (`intervention`) is no
success, whatever came after. They stand in the order in which they came in, those of one version by hash, which is as
good as drawn by lot; the answer to "is the candidate better?" follows from how often either succeeded (unpaired.py),
and grows with every trial that comes in: a question about the same two is one question, however often it is asked."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np

from flywheel import evalues, selection, unpaired
from flywheel.env import questions
from flywheel.log import say

ENDED = {  # why no further trial is asked for, or is, in words
    "better": "shown better",
    "futile": "a gain worth having is excluded",
    "trials": "not decided yet",
}


def of(store, task, ref: str, at: int | str = "latest"):
    """The trials of the policy NAME@ID on a task in a version of the corpus, a Version; no episode where there are
    none."""
    version = store.corpus().at(at)
    chosen = version.select(task=selection.title(task), origin=f"policy:{ref.partition('@')[2]}", success=[True, False])
    keep = ["cause" not in meta for meta in chosen.table["meta"]]
    chosen = chosen.select(np.array(keep, bool) & (chosen.table["flagged"] == ""))
    return chosen.select(np.lexsort((np.asarray(chosen.hashes, "U64"), chosen.table["added"])))


def succeeded(trials) -> np.ndarray:
    """[n] bool: which of the trials succeeded, and nobody helped."""
    helped = np.array([bool(meta.get("interventions")) for meta in trials.table["meta"]], bool)
    return (trials.table["success"] == 1) & ~helped


def identity(*trials) -> str:
    """A hash of these trials and how they went."""
    told = [f"{one} {won}" for some in trials for one, won in zip(some.hashes, succeeded(some), strict=True)]
    return hashlib.sha256("\n".join(told).encode()).hexdigest()


def known(store, task, refs: list[str]) -> dict[str, Any]:
    """How inputs.json names the trials of some policies: by content, and the version that they are counted in."""
    corpus = store.corpus()
    return {"id": identity(*(of(store, task, ref, corpus.head) for ref in refs)), "version": corpus.head}


def columns(trials) -> tuple[dict[str, np.ndarray], list[str]]:
    """The columns of env.scoring.score, and what the numbers of `obs0` are: where the trials began, as they say in
    meta["start"], else their first observation."""
    won = succeeded(trials)
    told = [meta.get("start") for meta in trials.table["meta"]]
    names = list(told[0]) if len(told) and told[0] and all(one and one.keys() == told[0].keys() for one in told) else []
    if names:
        obs0 = np.array([[one[name] for name in names] for one in told], np.float32)
    elif len(trials) and "trial_only" not in "".join(map(str, trials.table["meta"])):
        obs0 = np.stack([np.asarray(episode.obs["state"][0]) for episode in trials])
        names = [f"obs[{i}]" for i in range(obs0.shape[1])]
    else:
        obs0 = np.zeros((len(trials), 0), np.float32)
    length = trials.table["length"].astype(np.int64)
    return {
        "seed": np.arange(len(trials)), "success": won, "success_at_end": won, "steps": length, "length": length,
        "obs0": obs0,
    }, names  # fmt: skip


def ask(run, args, name: str, kind: str, attempt: int = 0, **more: Any) -> dict[str, Any]:
    """The ledger's entry of the question whether this candidate beats `over`: one, however often it is asked."""
    key = f"trials {run.inputs['checkpoint']['ref']} over {more['over']}"
    before = questions.history(run.store.names.log(name), kind)
    return {**run.store.ledger.ask(key, 0, kind, name, *before, **more), "asked": key}


def put(run, args, refs: dict[str, str], asked: dict[str, Any]) -> dict[str, Any]:
    """Compare two checkpoints, {"candidate": NAME@ID, "incumbent": NAME@ID}, by their trials as they are now:
    {"figures", "metrics", "reason", "wanted"}; figures["ended"] is a key of ENDED."""
    gate, at = args.gate, run.inputs["trials"]["version"]
    some = {kind: of(run.store, args.task, ref, at) for kind, ref in refs.items()}
    counts = unpaired.Counts.of(*(succeeded(trials) for trials in some.values()))
    rank = {key: asked[key] for key in ("number", "t", "promotions") if key in asked}
    needed = evalues.needed(gate.alpha, rank["t"], rank["promotions"]) if rank else 1 / gate.alpha
    told = unpaired.told(counts, gate.alpha)
    ended = evalues.decided(told, needed, gate.worth) or "trials"
    steps = sum(int(trials.table["length"].sum()) for trials in some.values())
    figures = {
        "test": "recorded trials", "alpha": gate.alpha, "worth": gate.worth, **rank, **told, "needed": needed,
        "ended": ended, "steps": steps, "trials": identity(*some.values()),
        **({"asked": asked["asked"]} if "asked" in asked else {}),
    }  # fmt: skip
    more = unpaired.wanted(counts, needed, gate.worth, gate.alpha) if ended == "trials" else (0, 0)
    rates = {kind: unpaired.rate(*told["success"][kind]) for kind in ("candidate", "incumbent")}
    shown = {key: told[key] for key in ("won", "lost", "e", "gain", "gain_ci")}
    metrics = {**rates["candidate"], "incumbent": rates["incumbent"], **shown, "needed": needed}
    metrics["wanted"] = dict(zip(refs, more, strict=True)) if more else None
    metrics["environment_steps"] = 0  # none was made here
    reason = _reason(figures, rates, asked.get("kind")) + ("" if ended != "trials" else f"; {words(more)}")
    return {"figures": figures, "metrics": metrics, "reason": reason, "wanted": metrics["wanted"]}


def waits(ref: str, standing: str, told: dict[str, Any]) -> dict[str, Any]:
    """What a stage answers where the trials do not decide yet: nothing is written into the name's log."""
    say(f"  {told['reason']}")
    return {
        "status": "refused",
        "outputs": {"checkpoint": f"{ref.partition('@')[0]}@{standing}"},
        "metrics": told["metrics"],
        "content": {"reason": told["reason"], "over": standing, "figures": told["figures"], "wanted": told["wanted"]},
    }


def words(more: tuple[int, int] | None) -> str:
    """How many further trials of candidate and incumbent are wanted, in words."""
    if more is None:
        return f"if it goes on so, {unpaired.MOST} further trials of each would not decide: they are too near"
    parts = [f"{n} of the {kind}" for kind, n in zip(("candidate", "incumbent"), more, strict=True) if n]
    return f"wanted: some {' and '.join(parts)} more, alternating" if parts else "wanted: none"


def _reason(figures: dict[str, Any], rates: dict[str, dict[str, Any]], kind: str | None) -> str:
    low, high = figures["gain_ci"]
    rank = f" (rank {figures['t']}, {figures['promotions']} promotions before)" if kind else ""
    words = ", ".join(_told(name, *rate.values()) for name, rate in rates.items())
    return (
        f"{words} recorded trials; gain {figures['gain']:+.3f} "
        f"[{low:+.3f}, {high:+.3f}], E = {figures['e']:.3g}, needed {figures['needed']:.3g}{rank}; "
        f"{ENDED[figures['ended']]}"
    )


def _told(name: str, success: float | None, n: int, ci95: list[float]) -> str:
    return f"{name} {success:.3f} [{ci95[0]:.2f}, {ci95[1]:.2f}] of {n}" if n else f"{name} untried, of 0"
