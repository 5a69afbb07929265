"""online: reinforcement learning in the simulator, from a checkpoint or from scratch; how is the algorithm's table.

    off_policy    each round makes `algorithm.collect.steps` steps in whole episodes, then learns from all that there is
    on_policy     then learns from this round's episodes only

Every episode goes into the corpus. What is handed over is the best of the score curve on gate seeds, the checkpoint
that it began from included (score_every=0: of the first and the last point), and is then scored once on other seeds:
that is the success told. A run that nothing came of is refused, and its start handed over. From scratch, a warm-up of
random actions comes first; it sets the normaliser, for good."""

from __future__ import annotations

import dataclasses
from typing import Any

from flywheel import env as envs
from flywheel import selection
from flywheel.args import Learning, arg
from flywheel.env.scoring import rate, score
from flywheel.log import say
from flywheel.rl import build, exploring, practice
from flywheel.rl.table import Algorithm
from flywheel.seeds import FINAL, SCORING, seeds

GROUPS = {"policy": "tanh_gaussian", "algorithm": "sac"}
SCRATCH = "none"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Args(Learning):
    """Reinforcement learning in the simulator, from a checkpoint or from scratch."""

    policy: dict[str, Any] = arg({}, "from scratch: the kind of policy, and what differs from its class's defaults")
    algorithm: Algorithm = arg(Algorithm, "the table: which loss moves which net")
    checkpoint: str | None = arg(
        None, "default: name@production, else the newest; none: from scratch, with the policy named here", typed=True
    )
    rounds: int | None = arg(None, "default: the algorithm's", least=1, typed=True)
    max_steps: int | None = arg(None, "stop after the round that reaches so many environment steps", least=1)
    warmup: int = arg(1000, "from scratch: steps of random actions at first", least=0)
    score_every: int = arg(0, "rounds between two points of the score curve; the best of it is handed over", least=0)
    score_episodes: int = arg(48, "on gate seeds, and once more at the end", least=0, most=1250)

    @property
    def imitates(self) -> bool:
        """Does the algorithm draw from demonstrations?"""
        return any("demos" in shares for shares in self.algorithm.mixture.values())


def inputs(args: Args, store) -> dict[str, Any]:
    name = selection.name_of(args)  # refused before anything begins
    selection.belongs("online", args.algorithm)
    found = {}
    if args.imitates:
        found["corpus"] = selection.describe(selection.pools(args, store)[0])
    if args.checkpoint != SCRATCH:
        found["checkpoint"] = selection.checkpoint(args.checkpoint or name, store)
    return found


def run(args: Args, inputs: dict[str, Any], run) -> dict[str, Any]:
    import torch

    from flywheel.rl.fit import fit
    from flywheel.rl.guarding import Guarding

    device = build.device(args.device)  # refused here if it is not there
    torch.manual_seed(args.seed)
    env, demos, parts, shares = envs.opened(args), None, {"demos": []}, {"demos": 1.0}
    algorithm = build.knowing(args.algorithm, env)
    cadence = dataclasses.replace(algorithm.cadence, **({"rounds": args.rounds} if args.rounds else {}))
    if args.imitates:
        demos, parts, shares = selection.pools(args, run.store)
        parts = practice.named(demos, parts)
    elif args.data:
        raise ValueError(
            f"data={args.data}: algorithm {algorithm.name} draws from no demonstrations; take algorithm=rlpd, or leave "
            "data out"
        )
    start = inputs["checkpoint"]["ref"] if "checkpoint" in inputs else None
    record = run.store.checkpoint(start) if start else {}
    exploring.refuse_hopeless(args.task, record, demos)
    policy, first, began = exploring.begin(args, run.store.load(start) if start else None, env, demos)
    nets = began.nets if began and "q" in algorithm.evaluate else {}
    learner = build.learner(
        algorithm, policy.train(), seed=args.seed, device=device, reward=args.task.learns, nets=nets
    )
    rounds = practice.Practice(args, run, env, learner, demos.hashes if demos is not None else [], parts)
    now = exploring.Exploring(args, rounds, cadence, first, f"policy:{record.get('id') or run.name}", began)
    rounds.score = now.score
    mixture = selection.mixed(algorithm.mixture, shares, args.batch_size)
    source = now.source(mixture, build.drawn(args, policy))
    build.inform(learner, source)
    learner.try_all({act: exploring.example(learner.nets, algorithm.source) for act in ("evaluate", "improve")})
    now.scoring = seeds("gate", args, SCORING, args.score_episodes)
    rounds.scores_start = bool(record and now.scoring)  # it is what the run has to beat
    rounds.scattered(record.get("spreads") if began and began.judged else None)
    rounds.guard = Guarding(learner, args.guard, run, anchored=bool(record), reward=args.task.learns)
    fit(learner, source, cadence, run, rounds, guard=rounds.guard)
    return _handed_over(args, inputs, now, record, cadence.improve)


def _handed_over(
    args: Args, inputs: dict[str, Any], now: exploring.Exploring, record: dict[str, Any], improve: int
) -> dict[str, Any]:
    """Publish the best of the curve, scored on seeds of its own, or refuse the run; the result of the stage."""
    from flywheel.policy import base

    rounds, run, memory = now.practice, now.practice.run, now.practice.memory
    last = now.score("at the end")
    kept = memory.best
    metrics = {"kept_at": kept["steps"], "rounds": memory.round, "steps": memory.steps}
    metrics |= {"episodes": len(memory.episodes), **rounds.told()}
    metrics |= {f"{key}_at_the_end": last[key] for key in ("success", "return") if key in last}
    content = rounds.content()
    if record and now.scoring and kept["steps"] == 0 and memory.steps:
        rounds.env.close()
        why = (
            f"no point of the curve was as good as the start: {exploring.words(kept)} before, {exploring.words(last)} "
            f"after {memory.steps:,} "
            "steps; the start is handed over. A smaller algorithm.lr, or another algorithm, may keep what it has"
        )
        say(f"  refused: {why}")
        outputs = {"checkpoint": inputs["checkpoint"]["ref"], "corpus": rounds.corpus.head}
        return {"status": "refused", "outputs": outputs, "metrics": metrics, "content": {**content, "reason": why}}
    best, final = (
        base.load(run.out / "policy.safetensors", build.device(args.device)),
        seeds("gate", args, FINAL, args.score_episodes),
    )
    result = rate(score(best, rounds.env, final, what="what is handed over", stop_at_success=True)) if final else {}
    rounds.env.close()
    more = {
        "parents": [inputs["checkpoint"]["ref"]] if record else [],
        "tried": {k: result[k] for k in ("success", "n") if k in result},
    }
    updates = int(record.get("updates") or 0) + memory.round * improve
    more |= {"spreads": rounds.spreads.told()} if args.algorithm.act else {}
    made = run.publish("policy.safetensors", selection.name_of(args), kind="online", updates=updates, **more)
    return {
        "outputs": {"checkpoint": made, "corpus": rounds.corpus.head},
        "metrics": {**result, **metrics},
        "content": content,
    }
