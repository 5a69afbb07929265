"""promote: the gate. Candidate against production on the same seeds; only a better one moves the name.

Production is what the name means at the moment it moves: if that changed meanwhile, the question is asked again. Every
question has seeds of its own (ledger.py), so no answer is looked up. `against=` measures against something else and
moves nothing."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from flywheel import env as envs
from flywheel import selection, stats
from flywheel.args import Bounded, arg
from flywheel.env.scoring import scored
from flywheel.log import say
from flywheel.rl import build
from flywheel.runs.names import Moved
from flywheel.seeds import questioned

TRIES = 3  # how often a question is asked again because production moved under it


@dataclasses.dataclass(frozen=True, kw_only=True)
class Args(Bounded):
    """The gate: candidate against production on the same seeds."""

    checkpoint: str = arg(help="the candidate, NAME or NAME@ID", typed=True)
    against: str | None = arg(None, "measure against this; the name moves only by the gate, or with force", typed=True)
    episodes: int = arg(200, "one a seed, of each", least=1, most=1e6)
    alpha: float = arg(0.05, "the error that is borne", least=1e-6, most=0.1)
    force: str | None = arg(None, "a reason: overrule the gate, and be recorded", typed=True)
    asked_by: str | None = arg(None, "a nightly names itself")


def inputs(args: Args, store) -> dict[str, Any]:
    candidate = selection.checkpoint(args.checkpoint, store)
    name = candidate["ref"].partition("@")[0]
    said, played = len(store.names.log(name)), len(store.ledger.taken("gate"))
    asked = args.asked_by or f"by hand, {name} entry {said + 1}, question {played + 1}"
    found = {"checkpoint": candidate, "question": {"id": asked}}
    return found | ({"against": selection.checkpoint(args.against, store)} if args.against else {})


def run(args: Args, inputs: dict[str, Any], run) -> dict[str, Any]:
    ref = inputs["checkpoint"]["ref"]
    name, _, id_ = ref.partition("@")
    names = run.store.names
    if args.force:
        names.promote(name, id_, run.name, f"forced: {args.force}", forced=True)
        return {"outputs": {"checkpoint": ref}, "content": {"reason": f"forced: {args.force}"}}
    measured = inputs.get("against")
    for attempt in range(TRIES):
        standing = _standing(run, name)
        if measured and measured["ref"] != f"{name}@{standing}":
            return _measure(args, run, measured["ref"])
        if standing == id_:
            say("  it is the incumbent")
            return {"status": "noop", "outputs": {"checkpoint": ref}, "content": {"reason": "it is the incumbent"}}
        try:
            return _decide(args, run, name, id_, standing, attempt)
        except Moved as moved:
            say(f"  {moved}: asked again")
    raise RuntimeError(
        f"{name}: production moved {TRIES} times while {ref} was judged; nothing was decided. Ask again: flywheel "
        f"promote {ref}"
    )


def _standing(run, name: str) -> str | None:
    """What the candidate has to beat: production as it is now, or as it was when this very run decided (a replay, or
    a kill since)."""
    if "over" in run.recorded:
        return run.recorded["over"]
    decided = [e for e in run.store.names.log(name) if e["run"] == run.name and e["op"] in ("promote", "refuse")]
    return decided[-1].get("over") if decided else run.store.names.production(name)


def _decide(args: Args, run, name: str, id_: str, standing: str | None, attempt: int) -> dict[str, Any]:
    """Ask the question and move the name, or refuse. Moved if production is another one by then."""
    names, ref = run.store.names, f"{name}@{id_}"
    if standing is None:
        reason = "the first of its name: there is no incumbent to beat"
        names.promote(name, id_, run.name, reason, over=None)
        return {"outputs": {"checkpoint": ref}, "content": {"reason": reason, "over": None}}
    told = _compare(args, run, f"{name}@{standing}", attempt)
    better = told["metrics"]["p"] < args.alpha
    more = {"alpha": args.alpha, "p": told["metrics"]["p"], "test": told["test"], "over": standing}
    if better:
        names.promote(name, id_, run.name, told["reason"], **more)
    else:
        names.refuse(name, id_, run.name, told["reason"], **more)
    say(f"  {'accepted' if better else 'refused'}: {told['reason']}")
    run.log("gate", accepted=better, **{k: v for k, v in told["metrics"].items() if not isinstance(v, dict)})
    return {
        "status": "done" if better else "refused",
        "outputs": {"checkpoint": ref if better else f"{name}@{standing}"},
        "metrics": told["metrics"],
        "content": {"reason": told["reason"], "over": standing},
    }


def _measure(args: Args, run, other: str) -> dict[str, Any]:
    """Compare with something that is not production: an answer, and no decision."""
    told = _compare(args, run, other, 0)
    say(
        f"  measured: {told['reason']}. Nothing was promoted: {other} is not in production; leave out against= to ask "
        "the gate"
    )
    return {"metrics": told["metrics"], "content": {"reason": f"measured only: {told['reason']}"}}


def _compare(args: Args, run, incumbent: str, attempt: int) -> dict[str, Any]:
    """Candidate and incumbent on seeds that no question had before: {"metrics", "reason", "test"}."""
    env, count = envs.opened(args), args.episodes
    first = run.store.ledger.take("gate", f"{run.name}{f' {attempt}' if attempt else ''}", count)
    who = {"candidate": run.inputs["checkpoint"]["ref"], "incumbent": incumbent}
    policies = {kind: run.store.load(ref, build.device(args.device)) for kind, ref in who.items()}
    paired, why = envs.honours_seeds(env)
    if not paired:
        say(f"  {env.task} does not honour seeds ({why}): its episodes cannot be paired, Fisher's exact test is used")
    what = {kind: f"{kind} {ref}" for kind, ref in who.items()}
    results = scored(run, env, policies, questioned(args, first, count), what, stop_at_success=True)
    env.close()
    for kind, result in results.items():
        np.savez(run.out / f"{kind}.npz", **result)
    won, lost = (results[kind]["success"] for kind in ("candidate", "incumbent"))
    test = stats.mcnemar(won, lost) if paired else stats.fisher(won, lost)
    rates = {kind: stats.rate(result["success"]) for kind, result in results.items()}
    words = ", ".join(f"{k} {r['success']:.3f} [{r['ci95'][0]:.2f}, {r['ci95'][1]:.2f}]" for k, r in rates.items())
    how = f"paired gate seeds; won {test['won']}, lost {test['lost']}" if paired else "gate episodes that no seed pairs"
    steps = sum(int(result["length"].sum()) for result in results.values())
    return {
        "reason": f"{words} on {len(won)} {how}, p = {test['p']:.2g}, alpha = {args.alpha:g}",
        "metrics": {**rates["candidate"], "incumbent": rates["incumbent"], **test, "environment_steps": steps},
        "test": "mcnemar" if paired else "fisher",
    }
