"""retrain: rounds of collect, evaluate, improve from a checkpoint. N rounds are one `fit` with rounds = N.

    collect    episodes by best-of-N over (policy, anchor) with a little noise; appended to the corpus, failures too
    evaluate   critics of action chunks on everything seen
    improve    the policy on demonstrations and own successes, half and half (or whatever the algorithm's table says)

Where the base never succeeds, episodes start along replayed demonstrations, and the start moves backwards.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from flywheel import env as envs
from flywheel import selection
from flywheel.args import Learning, arg
from flywheel.rl import acting, backward, build, practice
from flywheel.rl.rounds import Collect, Round, scored
from flywheel.rl.table import Algorithm
from flywheel.seeds import NIGHT, SCORING, seeds

GROUPS = {"algorithm": "rounds"}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Args(Learning):
    """Rounds of collect, evaluate, improve from a checkpoint."""

    algorithm: Algorithm = arg(Algorithm, "the table: which loss moves which net")
    checkpoint: str | None = arg(None, "default: name@production, else the newest", typed=True)
    rounds: int | None = arg(None, "default: the algorithm's", least=1, typed=True)
    max_steps: int | None = arg(None, "stop after the round that reaches so many environment steps", least=1)
    restart: str = arg(
        "last", "anchor: each round's policy begins again from the checkpoint", choices=("last", "anchor")
    )
    prior: bool = arg(False, "learn from earlier rollouts in the corpus, too")
    score_every: int = arg(
        0, "rounds between two points of the success curve; it is watched, nothing is chosen by it", least=0
    )
    score_episodes: int = arg(96, "on gate seeds", least=0, most=1250)
    collect: Collect = arg(Collect, "how a round is collected")


def inputs(args: Args, store) -> dict[str, Any]:
    name = selection.name_of(args)  # refused before anything begins
    selection.belongs("retrain", args.algorithm)
    return {
        "corpus": selection.describe(_episodes(args, store, selection.pools(args, store)[0])),
        "checkpoint": selection.checkpoint(args.checkpoint or name, store),
    }


def _episodes(args: Args, store, demos):
    """The input episodes: what is imitated and, with `prior`, earlier rollouts of the same version."""
    if not args.prior:
        return demos
    version = demos.corpus.at(demos.number if args.data else demos.ref)
    own = version.select(task=selection.title(args.task), origin=list(selection.MADE))
    own = selection.sound(own.select(~np.isin(own.rows, demos.rows))).canonical()
    return type(demos)(demos.corpus, demos.number, np.concatenate([demos.rows, own.rows]), demos.ref)


def run(args: Args, inputs: dict[str, Any], run) -> dict[str, Any]:
    import torch

    from flywheel.rl.fit import fit
    from flywheel.rl.guarding import Guarding
    from flywheel.rl.source import OffPolicy

    torch.manual_seed(args.seed)
    cadence = dataclasses.replace(args.algorithm.cadence, **({"rounds": args.rounds} if args.rounds else {}))
    demos, parts, shares = selection.pools(args, run.store)
    held = _episodes(args, run.store, demos).hashes
    record = run.store.checkpoint(inputs["checkpoint"]["ref"])
    env = envs.opened(args)
    args = dataclasses.replace(args, algorithm=build.knowing(args.algorithm, env))
    learner, anchor, judged = _learner(args, run.store.load(inputs["checkpoint"]["ref"]))
    build.suits(learner.nets["policy"], env)
    rounds = practice.Practice(args, run, env, learner, held, practice.named(demos, parts))
    now = Round(args, rounds, anchor, judged, f"policy:{record['id']}")
    now.starts = backward.Backward(args.collect.back, args.seed, demos, env, rounds.memory)
    tried = record.get("tried") or {}
    now.starts.decide(tried.get("success", 0), tried.get("n", 0))
    scoring = seeds("gate", args, SCORING, args.score_episodes)
    rounds.score = lambda what: scored(rounds, now.actor(), scoring, what)
    rounds.full = lambda: (rounds.memory.round + 1) * args.collect.episodes > NIGHT
    mixture = selection.mixed(args.algorithm.mixture, shares, args.batch_size)
    source = OffPolicy(
        mixture,
        play=now.collect,
        held=rounds.held,
        looked=rounds.looked,
        **build.drawn(args, learner.nets["policy"]),
    )
    build.inform(learner, source)
    tiny = source.draw({"all": 1.0}, 2)
    learner.try_all({"evaluate": tiny, "improve": tiny})
    rounds.guard = Guarding(learner, args.guard, run, anchored=True, reward=args.task.learns)
    rounds.began_at(tried.get("success"), tried.get("n", 0))
    rounds.scattered(record.get("spreads") if judged else None)
    gates = build.gates(args, source, run, env, args.score_episodes)
    fit(learner, source, cadence, run, rounds, gates, rounds.guard)
    env.close()
    updates = int(record.get("updates") or 0) + rounds.memory.round * cadence.improve
    return _handed_over(args, inputs, rounds, now, updates)


def _learner(args: Args, loaded) -> tuple[Any, Any, bool]:
    """The learner of a checkpoint's policy, the anchor, and whether the checkpoint brought a critic."""
    device = build.device(args.device)
    start = acting.taken_apart(loaded, device)
    policy, restart = build.learns(start.policy, args.algorithm), args.restart == "anchor"
    if args.algorithm.explore is not None:
        policy.explores(args.algorithm.explore)
    learner = build.learner(
        args.algorithm, policy, seed=args.seed, device=device, reward=args.task.learns, nets=start.nets, restart=restart
    )
    return learner, start.anchor, start.judged


def _handed_over(
    args: Args, inputs: dict[str, Any], rounds: practice.Practice, now: Round, updates: int
) -> dict[str, Any]:
    """Publish the policy, and the best of N of its samples; the result of the stage."""
    from flywheel.policy import base

    run, memory, name = rounds.run, rounds.memory, selection.name_of(args)
    more = {"parents": [inputs["checkpoint"]["ref"]], "updates": updates}
    nets = rounds.learner.nets
    base.save(nets.get("policy.lag", nets["policy"]).explores(0.0), run.out / "policy.safetensors")
    outputs = dict.fromkeys(("policy", "checkpoint"), run.publish("policy.safetensors", name, kind="retrained", **more))
    if args.algorithm.act == "best_of_n" and not args.algorithm.critic.get("knows"):
        base.save(now.actor(), run.out / "best.safetensors")
        more |= {"spreads": rounds.spreads.told()}
        outputs["checkpoint"] = run.publish("best.safetensors", name, kind="best-of-N", **more)
    return {
        "outputs": {**outputs, "corpus": rounds.corpus.head},
        "metrics": {
            "rounds": memory.round,
            "steps": memory.steps,
            "episodes": len(memory.episodes),
            "updates": updates,
            **rounds.told(),
        },
        "content": rounds.content(),
    }
