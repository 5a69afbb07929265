"""pretrain: imitation or offline RL from the demonstrations of a corpus version.

The policy is scored along its own training curve on gate seeds; what comes out is the best of that curve, and the anchor:
the best of the curve's first part, from which retraining begins with fewer updates behind it.
"""

from __future__ import annotations

import copy
import inspect
from contextlib import suppress
from typing import Any

import numpy as np

from flywheel.ending import OutOfTime
from flywheel.log import progress, say
from flywheel.stages import _inputs
from flywheel.stages.evaluate import rate, score

START = {
    "success": 0.01,  # SAC's temperature at first: rewards are 0 and 1, and a policy that can do something should keep it
    "env": 1.0,
}


class Enough(Exception):
    """The curve says that no more comes of it."""


def inputs(cfg: dict[str, Any], store) -> dict[str, Any]:
    _inputs.name_of(cfg)  # refused before anything begins
    _inputs.belongs("pretrain", cfg["algorithm"])
    found = {"corpus": _inputs.describe(_inputs.pools(cfg, store)[0])}
    return found | ({"checkpoint": _inputs.checkpoint(cfg["checkpoint"], store)} if cfg.get("checkpoint") else {})


def nets(algorithm: dict[str, Any], policy, reward: str = "success") -> dict[str, Any]:
    """The nets that an algorithm's tables name, sharing the policy's frozen normaliser: policy, q (ensemble), v, alpha,
    model (of transitions), teacher (a flow policy beside the policy, where no checkpoint is one)."""
    from flywheel.critic import Critic, TransitionModel
    from flywheel.nets import Temperature
    from flywheel.policy import base

    shape = {k: policy.spec[k] for k in ("obs_dim", "obs_steps")}
    own = {k: policy.spec[k] for k in ("action_dim", "action_steps")}
    size = dict(algorithm.get("critic") or {})

    def critic():
        if policy.discrete:  # the policy of DQN is its critic
            return getattr(policy, "critic", None) or Critic(**shape, **own, **size, discrete=True).like(policy)
        return Critic(**shape, **own, **size).like(policy)

    def teacher():
        spec = {k: policy.spec[k] for k in (*base.SHAPE, "width", "depth", "ahead") if k in policy.spec}
        return base.build({"kind": "flow", **spec}).like(policy)

    makers = {
        "policy": lambda: policy,
        "q": critic,
        "v": lambda: Critic(**shape, **{**size, "members": 1}).like(policy),
        "alpha": lambda: Temperature(START[reward]),
        "model": lambda: TransitionModel(**shape, **own).like(policy),
        "teacher": teacher,
    }
    wanted = {net for act in ("evaluate", "improve") for net in algorithm.get(act) or {}}
    if unknown := wanted - set(makers):
        raise ValueError(f"the algorithm's table names {', '.join(sorted(unknown))}; there are {', '.join(makers)}")
    return {name: make() for name, make in makers.items() if name in wanted or name == "policy"}


def learner(algorithm: dict[str, Any], policy, cfg: dict[str, Any], **more):
    """A learner for an algorithm's tables."""
    from flywheel.rl.learner import Learner

    keys = ("lr", "clip", "weight_decay", "optimiser", "advantage", "precision", "compile")
    return Learner(
        nets(algorithm, policy, cfg["task"].get("reward") or "success") | more.pop("nets", {}),
        evaluate=algorithm.get("evaluate") or {},
        improve=algorithm.get("improve") or {},
        lag=algorithm.get("lag") or {},
        seed=int(cfg["seed"]),
        device=_inputs.device(cfg),
        **{k: algorithm[k] for k in keys if k in algorithm},
        **more,
    )


def new_policy(cfg: dict[str, Any], env, windows):
    """The policy of the config for this environment, its normaliser fitted to the rows of `windows`."""
    from flywheel.policy import base

    columns = windows.columns
    width, actions = (columns[field].stop - columns[field].start for field in ("obs.state", "action"))
    robot = _inputs.robot(cfg, windows, env)
    shape = _inputs.shape(env)
    if robot:
        shape |= {"obs_dim": width, "action_dim": actions, "robot": robot}
        for bound, rest in (("action_low", -1.0), ("action_high", 1.0)):
            own = dict(zip(robot["action"], shape[bound], strict=True))
            shape[bound] = [own.get(column, rest) for column in range(actions)]
    policy = base.build({**cfg["policy"], **shape})
    _inputs.suits(policy, env)
    if robot and "mask" not in inspect.signature(policy.bc_loss).parameters:
        raise ValueError(
            f"align: a {policy.spec['kind']} policy cannot leave out what a robot has not got; use policy=flow, diffusion or deterministic"
        )
    if not robot and width != env.obs_dim:
        raise ValueError(
            f"the corpus has observations of {width} numbers, task {env.task} has {env.obs_dim}. Name the keys that it "
            "observes, in its order, with ingest's obs_keys=[...]"
        )
    fit_rows(policy, env, windows)
    return policy


def fit_rows(policy, env, windows) -> None:
    """Freeze the policy's normaliser on all steps of the windows."""
    columns, spans = windows.columns, [slice(s, s + n) for s, n in zip(windows.start, windows.length, strict=True)]
    rows = np.concatenate([windows.rows[span] for span in spans])
    masks = [rows[:, columns[mask]] for mask in _inputs.MASKS if mask in columns]
    fit_normaliser(policy, env, rows[:, columns["obs.state"]], rows[:, columns["action"]], *masks)


def fit_normaliser(policy, env, obs, action, *masks) -> None:
    """Freeze the policy's normaliser on rows obs [R, Do], action [R, Da]; what is one-hot stays as it is."""
    policy.fit_normaliser(None if getattr(env, "one_hot", None) else obs, None if policy.discrete else action, *masks)


def run(cfg: dict[str, Any], run) -> dict[str, Any]:
    def begin(env, windows):
        if "checkpoint" not in run.inputs:
            return new_policy(cfg, env, windows)
        policy = run.store.load(run.inputs["checkpoint"]["ref"])
        _inputs.suits(policy, env)
        if policy.robot != _inputs.robot(cfg, windows, env):
            raise ValueError(
                f"align: the checkpoint's robot has the columns {policy.robot}, these views give {_inputs.robot(cfg, windows, env)}"
            )
        return policy.train().requires_grad_(True)

    return train(cfg, run, begin)


def train(cfg: dict[str, Any], run, begin, **more) -> dict[str, Any]:
    """Train the policy that `begin(env, windows)` makes on the demonstrations; `more` nets stand beside those of the table."""
    import torch

    from flywheel.policy import base
    from flywheel.policy.best_of_n import BestOfN
    from flywheel.rl.fit import At, Cadence, fit
    from flywheel.rl.learner import resolve
    from flywheel.rl.plateau import Plateau
    from flywheel.rl.source import Offline

    algorithm = cfg["algorithm"]
    cfg = {**cfg, "device": _inputs.device(cfg)}  # refused here if it is not there
    torch.manual_seed(int(cfg["seed"]))
    corpus = run.store.corpus()
    version, pools, shares = _inputs.pools(cfg, run.store)
    windows = _inputs.windows(corpus, version, cfg, run.store)
    env = _inputs.open_env(cfg)
    policy = begin(env, windows)
    if "explore" in algorithm:
        policy.explores(float(algorithm["explore"]))
    learning = learner(algorithm, policy, cfg, nets=more)
    source = Offline(
        windows, pools, _inputs.mixed({act: {"demos": 1.0} for act in ("evaluate", "improve")}, shares, int(cfg["batch_size"])),
        **_inputs.drawn(cfg, policy),
    )  # fmt: skip
    cadence = Cadence(**algorithm["cadence"])
    total, every = cadence.rounds * cadence.improve, int(cfg["score_every"])
    learning.try_all({act: source.batch(act, 2) for act in ("evaluate", "improve")})
    source.rng = np.random.default_rng(int(cfg["seed"]))

    curve: list[dict[str, Any]] = []
    at, plateau = At(), Plateau(total) if algorithm.get("schedule") == "plateau" else None

    def updates() -> int:
        return at.round * cadence.improve + (at.step if at.phase == 2 else 0)

    if saved := run.load():
        learning.load_state(saved[0])
        source.load_state(saved[1]["source"])
        curve, at = saved[1]["curve"], At(**saved[1]["at"])
        plateau = plateau and Plateau(**saved[1]["plateau"])
        say(f"  going on at update {updates()}")
    gate_seeds = _inputs.seeds("gate", cfg, _inputs.CURVE, int(cfg["score_episodes"]))
    acting = learning.nets["policy.lag" if "policy.lag" in learning.nets else "policy"]

    def actor():
        """Who is scored and saved: the policy, or the best of N of its samples."""
        if algorithm.get("act") != "best_of_n":
            made = copy.deepcopy(acting).eval()
            return made.explores(0.0) if "explore" in algorithm else made
        return BestOfN.of(copy.deepcopy(acting), copy.deepcopy(learning.nets["q.lag"])).eval()

    gate = None
    if algorithm.get("gate"):
        ((name, args),) = algorithm["gate"].items()
        judge, filled = resolve("gate", name, args)

        def gate(before, learning):
            reason = judge(learning.nets, learning.complete("gate", source.batch("evaluate")), **filled)
            run.log("gate", refused=reason)
            say(f"  the round is {'undone: ' + reason if reason else 'kept'}")
            return reason

    def save() -> None:
        if gate and at.phase:  # it goes back to how the round began, which only the round's begin can remember
            return
        state = {"source": source.state(), "curve": curve, "at": vars(at)}
        run.save(learning.state(), state | ({"plateau": vars(plateau)} if plateau else {}))

    def pause(at: At) -> None:
        updates = at.round * cadence.improve + at.step
        if at.phase == 2:
            tick(note=loss)
            if updates and (updates % every == 0 or updates == total) and (not curve or curve[-1]["updates"] < updates):
                point(updates)
            if plateau:
                if plateau.over:
                    raise Enough
                learning.slow(plateau.rate(updates))
            if updates and run.out_of_time(updates):
                raise OutOfTime
        elif (
            at.phase == 1
            and at.step
            and run.out_of_time(at.round * max(1, cadence.improve) + at.step / (cadence.evaluate + 1))
        ):
            raise OutOfTime  # while critics are fitted: between two updates of the policy
        if run.due():
            save()
            run.stop_if_asked()

    def point(updates: int) -> None:
        file = f"at_{updates}.safetensors"
        who = actor()
        base.save(who, run.out / file)
        entry = {"updates": updates, "file": file, **learning.metrics()}
        if gate_seeds:
            result = score(who, env, gate_seeds, what=f"at {updates} updates", stop_at_success=True)
            entry |= rate(result)
            say(f"  {updates} updates: success {entry['success']:.2f} on {entry['n']} gate seeds")
        curve.append(entry)
        run.log("curve", **entry)
        if plateau:
            plateau.saw(updates, [e.get("success", 0.0) for e in curve], len(gate_seeds))
        save()

    def loss() -> str:
        name = "policy." + next(iter(algorithm["improve"]["policy"]))
        return f"loss {float(learning.sums[name]) / max(1, learning.counts[name]):.3f}"

    if plateau:
        learning.slow(plateau.rate(updates()))
    with progress("pretrain", total, updates()) as tick, run.ended_early(updates), suppress(Enough):
        fit(learning, source, cadence, gate, at=at, pause=pause)
    if run.stopped and run.stopped["why"] == "budget" and (not curve or curve[-1]["updates"] < updates()):
        point(updates())
    env.close()
    if not curve:
        raise FloatingPointError(run.stopped["why"])

    best = max(curve, key=lambda e: (e.get("success", 0), e["updates"]))
    early = [e for e in curve if e["updates"] <= (cfg.get("anchor_until") or total)] or curve[:1]
    anchor = max(early, key=lambda e: (e.get("success", 0), e["updates"]))
    for entry in curve:
        if entry not in (best, anchor):
            (run.out / entry["file"]).unlink(missing_ok=True)
    rated = {k: best[k] for k in ("success", "n", "ci95") if k in best}
    name = _inputs.name_of(cfg)
    outputs = {}
    for kind, entry in (("anchor", anchor), ("checkpoint", best)):
        tried = {k: entry[k] for k in ("success", "n") if k in entry}
        outputs[kind] = run.publish(entry["file"], name, kind="pretrained", updates=entry["updates"], tried=tried)
    return {
        "outputs": outputs,
        "metrics": {
            **rated,
            "updates": best["updates"],
            "anchor_updates": anchor["updates"],
            "demonstrations": len(version),
        },
        "content": {"curve": curve},
    }
