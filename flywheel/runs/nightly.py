"""The nightly: a list of stages, each a run of its own, from new demonstrations to a report.
(Of a robot without a simulator: runs/robot.py.)

Its inputs are the episodes not made by a policy, the incumbent and the config; its own rollouts do not make it new.

    ingest -> pretrain (each class of policy) -> choose the base -> retrain -> online -> choose the candidate -> gate
           -> evaluate (each policy once, on report seeds) -> report

`plan` (--dry-run) walks the same steps, and looks each up in place of doing it.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import nullcontext, suppress
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from flywheel import ending, selection, stats, store
from flywheel.args import Bounded, Demos, UsageError, arg, number, plain
from flywheel.cli import config
from flywheel.cli.config import PARTS
from flywheel.log import say
from flywheel.runs import robot
from flywheel.runs import run as runs
from flywheel.runs.identity import deciding
from flywheel.runs.names import Moved
from flywheel.runs.which import look, number_of, production

SHARE = {
    "pretrain": 0.4,
    "base": 0.45,
    "retrain": 0.62,
    "online": 0.68,
    "distil": 0.71,
    "candidate": 0.74,
    "gate": 0.82,
    "evaluate": 0.97,
}  # of a budget: done by


@dataclass(frozen=True, kw_only=True)
class Args(Bounded):
    """Demonstrations in, a better policy out, with proof: ingest, pretrain, retrain, online, gate, report."""

    policy: Any = arg(
        ["flow", "deterministic", "diffusion", "gaussian"], "each is trained, the best is the base; or one: policy=flow"
    )
    within: float = arg(
        0.15, "of a base without chance: practice begins with a class that has some, if it is at most so much worse",
        least=0, most=1,
    )  # fmt: skip
    begin: str | None = arg(
        None, "the class that practice begins with, of those; null: the base, or as within says", typed=True
    )
    cloned: dict[str, Any] = arg(
        {"ahead": 2}, "laid over each class, as far as it has the keys: what is known to clone better"
    )
    policies: dict[str, Any] = arg({}, "what policy and cloned come to")
    source: str | None = arg(
        "default", "the demonstrations that come with the task; null: what the corpus holds", typed=True
    )
    format: str = arg("robomimic_hdf5", "a reader of datasets/; docs/formats.md has them all")
    name: str | None = arg(None, "of all checkpoints; default: policy/TASK", typed=True)
    rounds: str | None = arg(None, "N; +N: N further rounds from the incumbent", typed=True)
    demos: Demos = arg(Demos, "which episodes are imitated")
    data: dict[str, float] | None = arg(None, "instead of demos: views and their shares, for all that learns")
    ingest: Any = arg({}, "keys of that stage, and so on")
    pretrain: Any = arg({})
    retrain: Any = arg(
        {"algorithm": {"cadence": {"rounds": 6, "evaluate": 1500, "improve": 1000}}, "collect": {"episodes": 96}}
    )
    online: Any = arg(
        {"algorithm": {"name": "ogpo"}, "rounds": 6, "score_every": 3, "score_episodes": 100}, "null: without it"
    )
    distil: Any = arg(None, "{}: what came out becomes a policy of one step, too")
    choose: Any = arg({})
    promote: Any = arg({})
    evaluate: Any = arg({"episodes": 300})

    def __post_init__(self) -> None:
        if self.begin and self.begin not in (self.policies or self.policy):
            there = ", ".join(self.policies or self.policy)
            raise UsageError(f"begin={self.begin}: it is not among the classes that are trained, policy=[{there}]")
        if self.rounds is not None:
            text = str(self.rounds)
            if not text.lstrip("+").isdecimal() or text.count("+") > 1:
                raise UsageError(
                    f"rounds={text}; expected a whole number of at least 1, or +N: N further rounds from the incumbent"
                )
            number("rounds", int(text), int, 1, 10**9)


@dataclass
class Work:
    """How the stages of a night are done: one after the other, each by its share of the budget."""

    place: runs.Store
    budget: float | None = None
    began: float = field(default_factory=time.monotonic)
    done: list[str] = field(default_factory=list)  # the runs, in order
    stopped: list[str] = field(default_factory=list)  # those that the budget cut short
    foresees = False  # does it look stages up in place of doing them?

    def __call__(self, stage: str, part: Any, by: float = 1.0, lock: bool = False) -> dict[str, Any]:
        """Do a stage, or look it up; its result."""
        ending.check()
        deadline = self.began + by * self.budget if self.budget else None
        result = runs.execute(stage, part, self.place, lock=lock, deadline=deadline)
        self.done.append(result["run"])
        self.stopped += [result["run"]] if result.get("stopped") == "budget" else []
        return result


class Waits(Exception):
    """A stage that was not done yet: what comes after it cannot be foreseen."""


@dataclass
class Plan(Work):
    """How they are foreseen: each is looked up; the first that is not there ends the list."""

    lines: list[dict[str, Any]] = field(default_factory=list)
    foresees = True

    def __call__(self, stage: str, part: Any, by: float = 1.0, lock: bool = False) -> dict[str, Any]:
        planned = runs.plan(stage, part, self.place, self.budget is not None)
        self.lines.append(planned)
        if planned["action"] != "hit":
            raise Waits(stage)
        return store.read_json(self.place.dir(planned["run"]) / "_DONE.json")["result"]


def nightly(cfg: Args, place: runs.Store, budget: float | None = None) -> dict[str, Any]:
    """Run, go on with, or look up a nightly; its result. `rounds="+N"` in the config asks for rounds from the
    incumbent."""
    work = Work(place, budget)
    with nullcontext() if ending.Signals.now else ending.Signals():
        night = look(cfg, place, work)
        if "result" in night:
            return {**night["result"], "status": "noop", "seconds": round(time.monotonic() - work.began, 1)}
        own = store.make_dirs(place.root / "runs" / "nightly" / night["key"])
        with store.Lock(place.root, "nightly", shared=True), place.mirror.hold(own, "nightly"):
            return _night(cfg, place, night, work)


def plan(cfg: Args, place: runs.Store, budget: float | None = None) -> dict[str, Any]:
    """--dry-run: print for each stage hit, resume or miss, and why; what depends on a stage not yet done is said so."""
    work, after = Plan(place, budget), None
    try:
        night = look(cfg, place, work)
        if "result" in night:
            print(
                f"hit     {night['result']['run']}  nothing is new: no episode that no policy made, no other incumbent "
                "or config"
            )
        else:
            (robot.stages if cfg.task.recorded else _stages)(cfg, place, night, work)
    except Waits as stage:
        after = str(stage)
    for line in work.lines:
        print(f"{line['action']:7} {line['run']}  {line['why']}")
    if after:
        print(f"all after {after}: wait for it")
    known = [{k: x[k] for k in ("action", "run", "why")} for x in work.lines]
    return {
        "status": "noop",
        "run": night["result"]["run"] if not after and "result" in night else None,
        "stages": known,
    }


def _night(cfg: Args, place: runs.Store, state: dict[str, Any], work: Work) -> dict[str, Any]:
    """Do the stages of a night, write its record and the page; its result."""
    folder = place.root / "runs" / "nightly" / state["key"]
    store.make_dirs(folder / "out")
    if state["night"] is None:
        state["night"] = number_of(cfg, place, state["key"])
        store.write_json(folder / "begin.json", state, indent=1)
        place.mirror.keep(folder)
    run = f"nightly/{state['key']}"
    made = (robot.stages if cfg.task.recorded else _stages)(cfg, place, state, work)
    rows, gate = made["rows"], made["gate"]
    standing = made["standing"]
    row = next((r for r in rows if r["checkpoint"] == standing), {})  # on a robot, nobody tried it yet
    result = {
        "status": "refused" if gate["status"] == "refused" else "done",
        "run": run,
        "inputs": {"corpus": state["corpus"], "checkpoint": state["incumbent"]},
        "outputs": {"checkpoint": standing, "corpus": made["corpus"]},
        "metrics": {k: v for k, v in row.items() if k not in ("policy", "checkpoint")},
        "seconds": round(time.monotonic() - work.began, 1),
        **({"stopped": "budget"} if work.stopped else {}),
    }
    record = {
        "stage": "nightly",
        "key": state["key"],
        "identity": {"config": deciding(plain(cfg), PARTS)},
        "inputs": {},
        "result": result,
        "content": {
            "runs": work.done,
            "table": rows,
            "night": state["night"],
            "steps": made["steps"],
            "tournament": made["tournament"],
            "name": selection.name_of(cfg),
            "candidate": made["candidate"],
            **({"wanted": made["wanted"]} if "wanted" in made else {}),
            **({"cut": work.stopped} if work.stopped else {}),
        },
        "files": {},
        "finished": store.now(),
        "order": 1 + max((done.get("order", 0) for done in place.runs()), default=0),
    }
    if cfg.task.recorded:
        robot.show(made)
    else:
        show(rows, made["tournament"])
        say("  environment steps: " + ", ".join(f"{kind} {n:,}" for kind, n in made["steps"].items()))
    place.mirror.commit(folder, record)
    from flywheel import report

    page = report.build(place)
    say(f"  report: {page}")
    seconds = time.monotonic() - work.began
    if work.stopped:
        say(f"  cut short by the budget: {', '.join(work.stopped)}")
    if work.budget and seconds > work.budget:
        say(f"  over its budget of {cfg.budget} by {seconds - work.budget:.0f} s")
    return {**result, "seconds": round(seconds, 1)}


def _stages(cfg: Args, place: runs.Store, state: dict[str, Any], work: Callable) -> dict[str, Any]:
    """The stages after ingest, by whatever `work` does with each: the table, the gate's answer, and what the record
    tells."""
    run, incumbent, start = f"nightly/{state['key']}", state["incumbent"], state.get("start")
    night = {"night": state["night"] if state["night"] is not None else number_of(cfg, place)}
    shared = {**night, "corpus": str(state["corpus"]), "demos": cfg.demos, "data": cfg.data}
    name, rows, tournament = selection.name_of(cfg), [], []
    if start:
        anchor = start
        rows.append(("incumbent", incumbent))
        if start != incumbent:
            say(f"  going on from {start}, which the gate refused last night")
    else:
        base, anchor, tournament = _base(cfg, shared, work)
        rows.append(("pretrained", base))
        if incumbent is None:
            if not isinstance(work, Plan):
                reason = "the first of its name: there is no incumbent to beat"
                with suppress(Moved):  # somebody promoted one meanwhile: the gate compares with that
                    place.names.promote(name, base.partition("@")[2], run, reason, over=None)
        elif incumbent != base:
            rows.append(("incumbent", incumbent))
    made, practised = _practise(cfg, place, shared, anchor, bool(incumbent), work)
    rows += [row for i, row in enumerate(made) if row[1] not in [ref for _, ref in made[:i]]]
    able = list(dict.fromkeys(ref for kind, ref in rows if kind != "incumbent" and (incumbent or kind != "pretrained")))
    candidate = _choose(cfg, night, able, "candidate", work)["outputs"]["checkpoint"]
    gate = work("promote", replace(cfg.promote, **night, checkpoint=candidate, asked_by=run), SHARE["gate"])
    standing = gate["outputs"].get("checkpoint") or production(place, name)  # none: promote.against= only measures
    if standing not in [ref for _, ref in rows]:
        rows.append(("production", standing))  # by another hand, meanwhile
    table = _table(rows, work, replace(cfg.evaluate, **night), place)
    steps = {
        "collection": sum(done["metrics"]["steps"] for done in practised),
        "gate": gate["metrics"].get("environment_steps", 0),
        "report": sum(row["environment_steps"] for row in table),
    }
    return {
        "rows": table,
        "gate": gate,
        "standing": standing,
        "corpus": practised[-1]["outputs"]["corpus"],
        "steps": steps,
        "tournament": tournament,
        "candidate": candidate,
    }


def _practise(
    cfg: Args, place: runs.Store, shared: dict[str, Any], anchor: str, prior: bool, work: Callable
) -> tuple[list[tuple[str, str]], list[dict[str, Any]]]:
    """Rounds of retraining, online RL and a student of one step, the latter two where they are asked for: (what was
    made, by kind; the results of those that acted)."""
    rounds = {"rounds": int(cfg.rounds)} if cfg.rounds else {}
    part = replace(cfg.retrain, **shared, checkpoint=anchor, prior=prior, **rounds)
    retrained = work("retrain", part, SHARE["retrain"])
    made = [("retrained", retrained["outputs"]["policy"]), ("best-of-N", retrained["outputs"]["checkpoint"])]
    practised = [retrained]
    if cfg.online:
        part = replace(
            cfg.online, **shared, checkpoint=made[-1][1], algorithm=_suited(cfg.online.algorithm, anchor, place)
        )
        practised.append(work("online", part, SHARE["online"]))
        made.append(("online", practised[-1]["outputs"]["checkpoint"]))  # refused: what it began from
    if cfg.distil:
        states = {
            "corpus": str(practised[-1]["outputs"]["corpus"]),
            "demos": Demos(origin="*", failures=True),
            "data": None,
        }
        part = replace(cfg.distil, **{**shared, **states}, checkpoint=made[-1][1])
        made.append(("one-step", work("distil", part, SHARE["distil"])["outputs"]["checkpoint"]))
    return made, practised


def _suited(algorithm: Any, anchor: str, place: runs.Store) -> Any:
    """The table that online learns by: a surrogate of probabilities asks for a policy that has some; over one that has
    none, a residual learns, as often and from as many steps."""
    if not any("clipped_surrogate" in losses for losses in algorithm.improve.values()):
        return algorithm
    policy = place.load(anchor)
    policy = getattr(policy, "base", policy)
    try:
        policy.chain(policy.encoder.zeros(1), policy.encoder.zeros(1).new_zeros(1, *policy.noise_shape))
    except ValueError:
        other = config.table("online", "residual")
        steps = {"steps": algorithm.collect.steps, "explore": algorithm.collect.explore}
        return replace(other, cadence=algorithm.cadence, collect=replace(other.collect, **steps))
    return algorithm


def _base(cfg: Args, shared: dict[str, Any], work: Callable) -> tuple[str, str, list[dict[str, Any]]]:
    """The best imitation there is: each class of policy is trained, and they are compared. (base, anchor, the
    tournament's table)."""
    made = {}
    for index, (kind, policy) in enumerate(cfg.policies.items()):
        by = SHARE["pretrain"] * (index + 1) / len(cfg.policies)
        result = work("pretrain", replace(cfg.pretrain, **shared, policy=policy), by)
        made[result["outputs"]["checkpoint"]] = (kind, result["outputs"]["anchor"])
    chosen = _choose(cfg, {"night": shared["night"]}, list(made), "base", work)
    base = chosen["outputs"]["checkpoint"]
    table = [{**row, "policy": made[row["checkpoint"]][0]} for row in chosen["metrics"].get("table", [])]
    named = {kind: ref for ref, (kind, _) in made.items()}
    begun = named[cfg.begin] if cfg.begin else _begun_from(base, table, cfg.within, work.place)
    return base, made[begun][1], table


def _begun_from(base: str, table: list[dict[str, Any]], within: float, place: runs.Store) -> str:
    """Which class practice begins with if none is named: the base or, where that always does the same, so that a best
    of N has nothing to choose among, the first class that knows chance, if its success is at most `within` less."""
    if len(table) < 2 or not place.load(base).fixed:
        return base
    least = next(row["success"] for row in table if row["checkpoint"] == base) - within
    able = [row["checkpoint"] for row in table if row["success"] >= least]
    return next((ref for ref in able if not place.load(ref).fixed), base)


def _choose(cfg: Args, night: dict[str, Any], refs: list[str], what: str, work: Callable) -> dict[str, Any]:
    """The best of some checkpoints; of one, itself."""
    if len(refs) == 1:
        return {"outputs": {"checkpoint": refs[0]}, "metrics": {}}
    return work("choose", replace(cfg.choose, **night, checkpoints=refs, what=what), SHARE[what])


def _table(table: list[tuple[str, str]], work: Callable, part: Any, place: runs.Store) -> list[dict[str, Any]]:
    """Each policy once on the report seeds; paired against the first row."""
    rows, outcomes = [], []
    for index, (kind, ref) in enumerate(table):
        by = SHARE["gate"] + (SHARE["evaluate"] - SHARE["gate"]) * (index + 1) / len(table)
        result = work("evaluate", replace(part, checkpoint=ref), by)
        rows.append({"policy": kind, "checkpoint": ref, **result["metrics"]})
        with np.load(place.dir(result["run"]) / "out" / "checkpoint.npz") as columns:
            outcomes.append(columns["success"])
        if len(rows) > 1:
            n = min(len(outcomes[-1]), len(outcomes[0]))
            done = store.read_json(place.dir(result["run"]) / "_DONE.json")
            test, how = (stats.mcnemar, "paired") if done["content"].get("seeded", True) else (stats.fisher, "unpaired")
            rows[-1][how] = test(outcomes[-1][:n], outcomes[0][:n])
            rows[-1]["p"] = rows[-1][how]["p"]
    return rows


def show(rows: list[dict[str, Any]], tournament: list[dict[str, Any]] = ()) -> None:
    """Print the tables that end a nightly: the classes of policy that were compared, and each policy on report
    seeds."""
    for row in tournament:
        say(
            f"  {row['policy']:14} {row['checkpoint']:34} {row['success']:7.3f}  of {row['n']} to choose "
            f"by{'  <- the base' if row['chosen'] else ''}"
        )
    say("")
    say(
        f"  {'policy':12} {'checkpoint':34} success  95 % interval     at the end     n  p (better than "
        f"{rows[0]['policy']})"
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
