"""A question to the gate: its rank and seeds from the ledger, the episodes, and the figures from which anybody can
compute the answer again."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from flywheel import evalues, stats
from flywheel.env.comparing import ENDED, compare
from flywheel.env.rollout import honours_seeds, opened
from flywheel.log import say
from flywheel.runs.names import Moved
from flywheel.seeds import questioned

ANSWERS = {"gate": ("promote", "refuse"), "high water": ("rollback", "keep")}  # yes and no, by kind of question


def ask(run, args, name: str, kind: str, attempt: int = 0, **more: Any) -> dict[str, Any]:
    """The ledger's entry of this run's question about a name, a new one or the one that it has (Ledger.ask)."""
    before = history(run.store.names.log(name), kind)
    return run.store.ledger.ask(title(run, kind, attempt), args.gate.pairs, kind, name, *before, **more)


def history(log: list[dict[str, Any]], kind: str) -> tuple[int, int]:
    """Of a name's log: how many questions of a kind ended with E >= 1 / alpha, and how many with a yes."""
    answers = [entry for entry in log if entry["op"] in ANSWERS[kind] and "t" in entry]
    return sum(e["e"] >= 1 / e["alpha"] for e in answers), sum(e["op"] == ANSWERS[kind][0] for e in answers)


def title(run, kind: str, attempt: int = 0) -> str:
    """By what the ledger knows a question of a run."""
    return run.name + (f" {attempt}" if attempt else "") + ("" if kind == "gate" else f" {kind}")


def said(run, name: str, kind: str) -> dict[str, Any] | None:
    """The entry in the name's log of what this very run answered before it was killed."""
    mine = (entry for entry in reversed(run.store.names.log(name)) if entry["run"] == run.name)
    return next((entry for entry in mine if entry["op"] in ANSWERS[kind]), None)


def put(
    run, args, refs: dict[str, str], load: Callable[[str], Any], asked: dict[str, Any], *, part: int = 0,
    before: dict[str, Any] | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Compare two checkpoints, {"candidate": NAME@ID, "incumbent": NAME@ID}, as `asked`: {"figures", "metrics",
    "reason"}. Where nothing was spent (no "t"), alpha is this question's alone."""
    gate, env = args.gate, opened(args)
    paired, why = honours_seeds(env)
    if not paired:
        say(f"  {env.task} does not honour seeds ({why}): each episode of one stands against the next of the other")
    rank = {key: asked[key] for key in ("number", "t", "promotions") if key in asked}
    needed = evalues.needed(gate.alpha, rank["t"], rank["promotions"]) if rank else 1 / gate.alpha
    seeds = questioned(args, asked["first"], gate.pairs)
    policies = {kind: load(ref) for kind, ref in refs.items()}
    what = {kind: f"{kind} {ref}" for kind, ref in refs.items()}
    told = compare(run, env, policies, what, seeds, gate, needed=needed, before=before, part=part)
    env.close()
    run.log.table("pairs", dict(zip(("seed", "candidate", "incumbent"), outcomes(run, list(refs)), strict=True)))
    figures = {
        "test": "paired e-value" if paired else "unpaired e-value", "alpha": gate.alpha, "worth": gate.worth, **rank,
        **told, "seeds": {"first": seeds[0], "count": told["pairs"]},
    }  # fmt: skip
    rates = {kind: _rate(*counts) for kind, counts in told["success"].items()}
    first, second = rates.values()
    metrics = {**first, list(rates)[1]: second, **{k: v for k, v in told.items() if k != "success"}}
    metrics["environment_steps"] = metrics.pop("steps")
    return {"figures": figures, "metrics": metrics, "reason": reason(figures, rates, asked.get("kind"))}


def high_water(run, args, name: str, standing: str, load: Callable[[str], Any]) -> dict[str, Any] | None:
    """Compare production, `standing`, with the best that stood there before; back to that if it is shown better.

    {"best", "stands", "reason", "figures"}; None where there is none such, or no time, or production moved."""
    names, asked = run.store.names, run.store.ledger.asked(title(run, "high water"))
    if asked and asked["over"] != standing:
        return None
    if asked is None:
        best = None if run.recorded else names.high_water(name)
        if best is None or names.production(name) != standing or run.out_of_time([1, 0]):
            return None
        asked = ask(run, args, name, "high water", best=best[0], over=standing)
    best = asked["best"]
    refs = {"best": f"{name}@{best}", "production": f"{name}@{standing}"}
    before = run.recorded.get("high_water", {}).get("figures") or said(run, name, "high water")
    told = put(run, args, refs, load, asked, part=1, before=before)
    worse = told["figures"]["ended"] == "better"
    try:
        if worse:
            names.restore(name, best, run.name, told["reason"], over=standing, best=best, **told["figures"])
        else:
            names.keep(name, standing, run.name, told["reason"], best=best, **told["figures"])
    except Moved as moved:
        say(f"  {moved}: it is left alone")
        return None
    stands = best if worse else standing
    say(f"  high-water mark: {'back to' if worse else 'no reason to leave'} {name}@{stands}: {told['reason']}")
    return {"best": best, "stands": stands, "reason": told["reason"], "figures": told["figures"]}


def outcomes(run, kinds: list[str]) -> list[np.ndarray]:
    """Of the pairs that a run has played: seeds [n], and who of the two succeeded, [n] each."""
    found = [np.load(run.out / f"{kind}.npz") for kind in kinds]
    n = min(len(one["seed"]) for one in found)
    return [found[0]["seed"][:n], *(one["success"][:n] for one in found)]


def _rate(k: int, n: int) -> dict[str, Any]:
    return {"success": k / n, "n": n, "ci95": [round(x, 4) for x in stats.wilson(k, n)]}


def reason(figures: dict[str, Any], rates: dict[str, dict[str, Any]], kind: str | None) -> str:
    """The figures in a sentence."""
    words = ", ".join(f"{k} {r['success']:.3f} [{r['ci95'][0]:.2f}, {r['ci95'][1]:.2f}]" for k, r in rates.items())
    how = "paired gate seeds" if figures["test"].startswith("paired") else "gate episodes that no seed pairs"
    low, high = figures["gain_ci"]
    made = {"gate": "promotions", "high water": "rollbacks"}
    rank = f" (rank {figures['t']}, {figures['promotions']} {made[kind]} before)" if kind else ""
    return (
        f"{words} on {figures['pairs']} {how}; won {figures['won']}, lost {figures['lost']}, gain "
        f"{figures['gain']:+.3f} [{low:+.3f}, {high:+.3f}], E = {figures['e']:.3g}, needed {figures['needed']:.3g}"
        f"{rank}; {ENDED[figures['ended']]}"
    )
