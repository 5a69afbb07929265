"""Training on what is there: imitation, offline RL, distillation. What comes out is the best of the curve, and the
anchor: the best of the curve's first part, from which retraining begins with fewer updates behind it."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from flywheel import env as envs
from flywheel import selection
from flywheel.args import Learning, arg
from flywheel.env.scoring import rate, score
from flywheel.parallel import refuse, share
from flywheel.rl import acting, build, validation
from flywheel.rl.table import Algorithm
from flywheel.seeds import CURVE, seeds

SHARD = 1_000_003  # between the seeds of two processes that draw from shares of their own


@dataclasses.dataclass(frozen=True, kw_only=True)
class Training(Learning):
    """What pretrain and distil take."""

    policy: dict[str, Any] = arg({}, "the kind of policy, and what differs from its class's defaults")
    algorithm: Algorithm = arg(Algorithm, "the table: which loss moves which net")
    checkpoint: str | None = arg(None, "begin from these weights; default: a new policy", typed=True)
    score_every: int = arg(2000, "updates between two points of the training curve", least=1)
    score_episodes: int = arg(100, "on gate seeds; 0: no curve", least=0, most=1250)
    resident: str = arg(
        "4GB", "of the corpus in memory at once: what is larger is read from disk as it is drawn", typed=True
    )
    validate: float = arg(
        0.1, "without a simulator: the share of the episodes, by hash, that are held out and choose", least=0, most=0.9
    )
    corrections: float = arg(
        0.25, "share of a batch from steps at which a person took over (`intervention`), if there are any", least=0,
        most=0.9,
    )  # fmt: skip
    anchor_until: int | None = arg(None, "the anchor is the best of the curve up to here", least=1)


def train(
    args: Training,
    run,
    begin: Callable,
    nets: Mapping[str, Any] = {},
    labels: Callable | None = None,
    fields: tuple[str, ...] = (),
    shards: bool = False,
    slices: int = 1,
) -> dict[str, Any]:
    """Train the policy that `begin(env, windows)` makes on the demonstrations; `nets` stand beside those of the table.
    `labels(policy, device, env)` names a source other than Offline, if it is needed, and what that takes besides;
    `fields` of the corpus are read too. By several processes: `shards`, `slices` (parallel.py)."""
    import torch

    from flywheel.rl.fit import fit
    from flywheel.rl.guarding import Guarding
    from flywheel.rl.source import Offline

    algorithm, device = args.algorithm, build.device(args.device)  # refused here if it is not there
    torch.manual_seed(args.seed)
    peers = run.peers
    refuse(peers, algorithm, args.batch_size, slices)
    version, pools, shares, place = _mine(args, run, shards)
    windows = selection.windows(run.store.corpus(), version, args, run.store, fields)
    env = envs.opened(args, held=version)
    pools, unseen = validation.split(version, pools, args.validate) if args.task.recorded else (pools, None)
    policy = begin(env, windows)
    if shards:  # one normaliser for all: that of the first share
        policy.load_state_dict(peers.first(policy.state_dict))
    if algorithm.explore is not None:
        policy.explores(algorithm.explore)
    windows, seen = _shown(args, run, policy, env, version, windows)
    told = {"seed": args.seed, "device": device, "reward": args.task.learns, "nets": nets}
    learner = build.learner(algorithm, policy, **told, peers=peers, slices=slices)
    acts = {act: {"demos": 1.0} for act in ("evaluate", "improve")}
    mixture = selection.mixed(acts, shares, args.batch_size)
    kind, more = (labels and labels(policy, device, env)) or (Offline, {})
    more = more | seen
    drawn = {**build.drawn(args, policy), "batch_size": args.batch_size // peers.size, **place}
    source = kind(windows, pools, mixture, **drawn, **more)
    learner.try_all({act: source.draw(shares, 2) for act, shares in mixture.items()})
    measure = validation.measure(version, unseen, env.action_names) if unseen is not None else None
    curve = _curve(args, run, env, learner, measure)
    begun = args.checkpoint is not None and "teacher" not in nets  # a student begins anew
    guard = Guarding(learner, args.guard, run, anchored=begun, reward=args.task.learns)
    gates = build.gates(args, source, run, env, args.score_episodes)
    at = fit(learner, source, algorithm.cadence, run, curve, gates, guard)
    if run.stopped and run.stopped["why"] == "budget":
        curve.add(at.improved(algorithm.cadence))
    env.close()
    if not curve.points:
        raise FloatingPointError(run.stopped["why"])
    return _handed_over(args, run, curve, len(version))


def _shown(args: Training, run, policy, env, version, windows) -> tuple[Any, dict[str, Any]]:
    """What is learnt from, and the frames of a policy whose eyes learn, as a source takes them. Where critics look
    through its eyes as they are, the rows say what these make of each frame. ValueError where they have learnt
    nothing yet."""
    algorithm, learns = args.algorithm, True
    if policy.cameras and (algorithm.evaluate or algorithm.advantage):
        build.learns(policy, algorithm)
        if args.checkpoint is None:
            raise ValueError(
                f"algorithm {algorithm.name}: this policy sees {', '.join(policy.cameras)}, and critics look through "
                "its eyes as they are, which have learnt nothing yet; begin from one that imitates (flywheel pretrain "
                "algorithm=bc, then checkpoint=NAME)"
            )
        eyes = policy.encoder.eyes.to(build.device(args.device))
        windows, learns = acting.rows_seen(eyes, version, env, windows.fields), eyes.move
    frames = selection.cameras(run.store.corpus(), version, policy, args, run.store) if learns else []
    return windows, {"cameras": frames, "frames": 1} if frames else {}


def _mine(args: Training, run, shards: bool) -> tuple:
    """What this process trains on: (version, pools, shares of a batch, which rows of it: what a source takes)."""
    version, pools, shares = selection.pools(args, run.store)
    if shards and run.peers.size > 1:
        return *share(run.peers, version, pools), shares, {"seed": args.seed + SHARD * run.peers.rank}
    return version, pools, shares, {"rank": run.peers.rank, "world_size": run.peers.size}


def _curve(args: Training, run, env, learner, measure: Callable | None):
    """The curve of this training: scored on seeds, or by `measure(policy)` where nothing can be played."""
    from flywheel.policy.best_of_n import BestOfN
    from flywheel.rl.curve import Curve

    acting = learner.nets.get("policy.lag", learner.nets["policy"])
    chosen_by = seeds("gate", args, CURVE, args.score_episodes)

    def actor():
        if args.algorithm.act == "best_of_n":
            return BestOfN.of(copy.deepcopy(acting), copy.deepcopy(learner.nets["q.lag"])).eval()
        made = copy.deepcopy(acting).eval()
        return made if args.algorithm.explore is None else made.explores(0.0)

    def scored(policy, what: str) -> dict[str, Any]:
        if measure:
            return measure(policy)
        return rate(score(policy, env, chosen_by, what=what, stop_at_success=True)) if chosen_by else {}

    return Curve(learner, run, args.algorithm, args.score_every, actor, scored)


def _handed_over(args: Training, run, curve, demonstrations: int) -> dict[str, Any]:
    """Publish the best of the curve and the anchor; the result of the stage."""
    best, anchor = curve.best(), curve.best(args.anchor_until)
    curve.drop_all_but([best, anchor])
    outputs = {}
    for kind, point in (("anchor", anchor), ("checkpoint", best)):
        tried = {key: point[key] for key in ("success", "error", "n") if key in point}
        name = selection.name_of(args)
        outputs[kind] = run.publish(point["file"], name, kind="pretrained", updates=point["updates"], tried=tried)
    told = ("success", "n", "ci95", "error", "error_by_dimension", "error_by_phase")
    metrics = {key: best[key] for key in told if key in best}
    metrics |= {"updates": best["updates"], "anchor_updates": anchor["updates"], "demonstrations": demonstrations}
    return {"outputs": outputs, "metrics": metrics, "content": {"curve": curve.points}}
