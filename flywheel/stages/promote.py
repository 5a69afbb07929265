"""promote: the gate. Candidate against production on the same seeds; only a better one moves the name.

Production is what the name means at the moment it moves: if that changed meanwhile, the question is asked again. Every
question has seeds and a rank of its own (ledger.py), so no answer is looked up, and asking often promotes no chance
(evalues.py). Of a robot without a simulator recorded trials decide (env/trials.py). `against=` measures against
something else, spends nothing and moves nothing. Now and then production is compared with the best that ever stood
there, and the name goes back to that if it is shown better."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

from flywheel import selection
from flywheel.args import Bounded, arg
from flywheel.env import questions, trials
from flywheel.env.comparing import Gate
from flywheel.log import say
from flywheel.rl import build
from flywheel.runs.names import Moved

TRIES = 3  # how often a question is asked again because production moved under it


@dataclasses.dataclass(frozen=True, kw_only=True)
class Args(Bounded):
    """The gate: candidate against production on the same seeds."""

    checkpoint: str = arg(help="the candidate, NAME or NAME@ID", typed=True)
    against: str | None = arg(None, "measure against this; the name moves only by the gate, or with force", typed=True)
    gate: Gate = arg(Gate, "how sure, and at what cost")
    high_water: int = arg(5, "every so many questions production meets the best that stood there; 0: never", least=0)
    force: str | None = arg(None, "a reason: overrule the gate, and be recorded", typed=True)
    asked_by: str | None = arg(None, "a nightly names itself")


def inputs(args: Args, store) -> dict[str, Any]:
    candidate = selection.checkpoint(args.checkpoint, store)
    name = candidate["ref"].partition("@")[0]
    said, played = len(store.names.log(name)), len(store.ledger.taken("gate"))
    asked = args.asked_by or f"by hand, {name} entry {said + 1}, question {played + 1}"
    found = {"checkpoint": candidate, "question": {"id": asked}}
    if args.task.recorded:  # the answer follows from what was recorded until now
        refs = [candidate["ref"], *([f"{name}@{at}"] if (at := store.names.production(name)) else [])]
        found["trials"] = trials.known(store, args.task, refs)
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
    decided = questions.said(run, name, "gate")
    return decided.get("over") if decided else run.store.names.production(name)


def _decide(args: Args, run, name: str, id_: str, standing: str | None, attempt: int) -> dict[str, Any]:
    """Ask the question and move the name, or refuse. Moved if production is another one by then."""
    names, ref = run.store.names, f"{name}@{id_}"
    if standing is None:
        reason = "the first of its name: there is no incumbent to beat"
        names.promote(name, id_, run.name, reason, over=None)
        return {"outputs": {"checkpoint": ref}, "content": {"reason": reason, "over": None}}
    asked = (trials if args.task.recorded else questions).ask(run, args, name, "gate", attempt, over=standing)
    if asked["over"] != standing:  # since this run was killed, or while the one that it repeats was at work
        raise Moved(f"{name}: this question was about {asked['over']}, production is {standing}")
    before = run.recorded.get("figures") or questions.said(run, name, "gate")
    told = _compare(args, run, {"candidate": ref, "incumbent": f"{name}@{standing}"}, asked, before=before)
    if told["figures"]["ended"] == "trials":
        return trials.waits(ref, standing, told)
    better = told["figures"]["ended"] == "better"
    (names.promote if better else names.refuse)(name, id_, run.name, told["reason"], over=standing, **told["figures"])
    say(f"  {'accepted' if better else 'refused'}: {told['reason']}")
    run.log("gate", accepted=better, **{k: v for k, v in told["metrics"].items() if not isinstance(v, (dict, list))})
    content = {"reason": told["reason"], "over": standing, "figures": told["figures"]}
    standing = id_ if better else standing
    due = args.high_water and not args.task.recorded and asked["number"] % args.high_water == 0
    if due and (found := questions.high_water(run, args, name, standing, _load(args, run))):
        content["high_water"], standing = found, found["stands"]
        told["metrics"]["environment_steps"] += found["figures"]["steps"]
    return {
        "status": "done" if better else "refused",
        "outputs": {"checkpoint": f"{name}@{standing}"},
        "metrics": told["metrics"],
        "content": content,
    }


def _measure(args: Args, run, other: str) -> dict[str, Any]:
    """Compare with something that is not production: an answer, and no decision; it spends nothing but seeds."""
    asked = {"first": run.store.ledger.take("gate", run.name, args.gate.pairs)}
    refs = {"candidate": run.inputs["checkpoint"]["ref"], "incumbent": other}
    told = _compare(args, run, refs, asked, before=run.recorded.get("figures"))
    say(
        f"  measured: {told['reason']}. Nothing was promoted: {other} is not in production; leave out against= to ask "
        "the gate"
    )
    content = {"reason": f"measured only: {told['reason']}", "figures": told["figures"]}
    return {"metrics": told["metrics"], "content": content}


def _compare(args: Args, run, refs: dict[str, str], asked: dict[str, Any], **more: Any) -> dict[str, Any]:
    """Two checkpoints on seeds that no question had before, or by the trials that were recorded: {"figures", "metrics",
    "reason"}."""
    if args.task.recorded:
        return trials.put(run, args, refs, asked)
    return questions.put(run, args, refs, _load(args, run), asked, **more)


def _load(args: Args, run) -> Callable[[str], Any]:
    """The policy of a NAME@ID."""
    return lambda ref: run.store.load(ref, build.device(args.device))
