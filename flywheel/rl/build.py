"""From a table and a policy to a learner: the nets that a table names, the policy that a task asks for, its frozen
normaliser."""

from __future__ import annotations

import copy
import dataclasses
import importlib
import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from flywheel import obs as observed
from flywheel import selection, stats
from flywheel.args import Task
from flywheel.env.scoring import score
from flywheel.log import say
from flywheel.obs import PRIVILEGED
from flywheel.parallel import ALONE, Peers
from flywheel.rl import beside
from flywheel.rl.table import Algorithm
from flywheel.seeds import SCORING, seeds

INFORMED = 4096  # transitions that show how what only the simulator knows is spread


def device(wanted: str) -> str:
    """`device=auto` is a GPU where there is one. ValueError for a device that PyTorch cannot use here."""
    import torch

    if wanted == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(1, device=wanted)
    except (RuntimeError, AssertionError) as error:
        told = str(error).splitlines()[0].split(". ")[0].rstrip(".")
        raise ValueError(
            f"device={wanted}: PyTorch says: {told}. Take device=cpu, or auto: a GPU where there is one"
        ) from error
    return wanted


def drawn(args, policy) -> dict[str, Any]:
    """What every source asks for: horizons, batch size, gamma, seed, which reward, where to."""
    selection.one_robot(args, policy)
    return {
        "obs_steps": policy.obs_steps, "action_steps": policy.action_steps, "batch_size": args.batch_size,
        "gamma": args.gamma, "seed": args.seed, "reward": args.task.learns, "device": device(args.device),
        **({"window": policy.window} if getattr(policy, "window", None) else {}),
    }  # fmt: skip


def shape(env) -> dict[str, Any]:
    """What a task gives to the spec of a policy."""
    bounds = {"action_low": env.action_low.tolist(), "action_high": env.action_high.tolist()}
    cameras = {"cameras": env.cameras} if getattr(env, "cameras", None) else {}
    return {"obs": observed.spec(env.obs_shapes), "action_dim": env.action_dim, **bounds, **cameras}


def blind(policy, what: str) -> None:
    """ValueError where a policy sees, and `what` has no eyes yet."""
    if getattr(policy, "cameras", None):
        raise ValueError(
            f"{what}: this policy sees {', '.join(policy.cameras)}; transition models predict, and on-policy rounds "
            "keep, numbers alone. Take imitation (algorithm=bc), or off policy from a checkpoint (flywheel retrain; "
            "flywheel online algorithm=ogpo; flywheel pretrain algorithm=iql)"
        )


def learns(policy, algorithm: Algorithm):
    """The policy of a checkpoint, ready to learn; its eyes stay frozen unless the algorithm's encoder learns.
    ValueError where the algorithm has no eyes."""
    if algorithm.source == "on_policy" or "model" in algorithm.evaluate:
        blind(policy, f"algorithm {algorithm.name}")
    if getattr(policy, "window", None):
        _of_lerobot(policy, algorithm)
    policy.train().requires_grad_(True)
    if policy.encoder.eyes is not None:
        policy.encoder.eyes.move = algorithm.encoder == "learn"
        policy.encoder.eyes.requires_grad_(policy.encoder.eyes.move)
    return policy


def _of_lerobot(policy, algorithm: Algorithm) -> None:
    """ValueError, with the reason, for what cannot be built on a policy of LeRobot's."""
    what = f"algorithm {algorithm.name}: policy.type={policy.spec['type']} is LeRobot's"
    if policy.cameras:
        raise ValueError(
            f"{what} and sees {', '.join(policy.cameras)}: its pictures go through its own net, and whoever judges or "
            "corrects its actions (the critics of a best of N, a residual) has no features of them; pretrain it "
            "further, or train one from numbers (no task.cameras=)"
        )
    if policy.averages and (algorithm.act == "best_of_n" or algorithm.residual):
        raise ValueError(
            f"{what} and executes averages of its chunks: critics judge, and a residual corrects, one chunk; train one "
            "with policy.settings.temporal_ensemble_coeff=null policy.action_steps=4, or pretrain it further"
        )
    if algorithm.source == "on_policy":
        raise ValueError(
            f"{what}: it has no log pi(a), which on-policy algorithms move; take algorithm=rounds or residual, or "
            "pretrain it further"
        )


def knowing(algorithm: Algorithm, env) -> Algorithm:
    """The table, its critics as wide as what only the simulator knows where they are to see that. ValueError where
    there is nothing that the policy does not see."""
    critic = dict(algorithm.critic)
    if critic.pop("obs", None) is None:
        return algorithm
    if not (size := getattr(env, "privileged_dim", 0)):
        raise ValueError(
            f"algorithm.critic.obs: the policy sees all that {env.task} has to show; name cameras (task.cameras=...) "
            "of a task of sim/, or leave it out"
        )
    return dataclasses.replace(algorithm, critic={**critic, "knows": size})


def inform(learner, source) -> None:
    """Fit what critics take of the simulator's knowledge, on what there is to learn from."""
    from flywheel.policy.encoder import Known

    for name in ("q", "v"):
        for net in (learner.nets.get(name), learner.nets.get(f"{name}.lag")):
            if net is not None and isinstance(net.encoder, Known):
                rows = source.draw({"all": 1.0}, INFORMED)[f"obs.{PRIVILEGED}"][:, -1]
                net.encoder.fit(rows.cpu().numpy())


def suits(policy, env) -> None:
    """Check that the policy observes what the task gives, in its order, and makes the actions that it takes; else
    ValueError."""
    if observed.picked(policy.obs_shapes, env.obs_shapes) is not None:
        gives, wanted = observed.listed(env.obs_shapes), observed.listed(policy.obs_shapes)
        raise ValueError(
            f"task {env.task} observes {gives}, and the policy was trained on {wanted}: it can be evaluated and "
            "promoted, not trained on; name its keys with task.obs_keys=[...]"
        )
    there = bool(getattr(env, "discrete", None))
    if policy.discrete != there:
        kind, takes = policy.spec["kind"], f"one of {env.action_dim}" if there else f"{env.action_dim} numbers"
        fit = "categorical (bc, iql, ppo) or greedy_q (dqn, double_dqn, q_learning)"
        raise ValueError(
            f"task {env.task} takes {takes} as an action, and a {kind} policy makes "
            f"{'one-hot' if policy.discrete else 'continuous'} "
            f"actions; use policy={fit if there else 'flow, diffusion, gaussian, tanh_gaussian or deterministic'}"
        )


def table_nets(algorithm: Algorithm, policy, reward: str = "success") -> dict[str, Any]:
    """The policy, and the nets that an algorithm's tables name beside it (rl/beside/), behind the policy's frozen
    normaliser."""
    known = sorted({path.stem for folder in beside.__path__ for path in Path(folder).glob("[!_]*.py")})
    wanted = {net for act in ("evaluate", "improve") for net in getattr(algorithm, act)} - {"policy"}
    if unknown := wanted - set(known):
        raise ValueError(
            f"the algorithm's table names {', '.join(sorted(unknown))}; there are policy, {', '.join(known)}"
        )
    makers = {name: importlib.import_module(f"flywheel.rl.beside.{name}").make for name in known if name in wanted}
    return {"policy": policy} | {name: make(policy, algorithm, reward) for name, make in makers.items()}


def learner(
    algorithm: Algorithm,
    policy,
    *,
    seed: int,
    device: str,
    reward: str = "success",
    nets: Mapping[str, Any] = {},
    restart: bool = False,
    peers: Peers = ALONE,
    slices: int = 1,
):
    """A learner for an algorithm's tables."""
    from flywheel.rl.learner import Learner

    keys = (
        "evaluate",
        "improve",
        "lag",
        "lr",
        "clip",
        "weight_decay",
        "optimiser",
        "advantage",
        "precision",
        "compile",
    )
    table = {key: getattr(algorithm, key) for key in keys} | {"updates": algorithm.cadence.updates}
    from flywheel.policy.residual import Residual

    if algorithm.residual is not None and not isinstance(policy, Residual):
        policy = Residual.of(policy.eval(), **algorithm.residual).train()
    if "q" in nets and nets["q"].spec.get("knows", 0) != algorithm.critic.get("knows", 0):
        raise ValueError(
            "algorithm.critic.obs: the checkpoint brings a critic, of what its policy sees; begin from a policy alone "
            "(the stage's outputs.policy), or leave critic.obs out"
        )
    made = table_nets(algorithm, policy, reward) | dict(nets)
    return Learner(made, **table, seed=seed, device=device, restart=restart, peers=peers, slices=slices)


def new_policy(spec: Mapping[str, Any], task: Task, env, windows):
    """A policy of this spec for this environment, its normaliser fitted to the rows of `windows`."""
    from flywheel.policy import base

    columns = windows.columns
    width, actions = (columns[field].stop - columns[field].start for field in ("obs.state", "action"))
    robot = selection.robot(task, windows, env)
    more = shape(env)
    if robot:
        more |= {"obs": {observed.STATE: [width]}, "action_dim": actions, "robot": {**robot, "keys": more["obs"]}}
        for bound, rest in (("action_low", -1.0), ("action_high", 1.0)):
            own = dict(zip(robot["action"], more[bound], strict=True))
            more[bound] = [own.get(column, rest) for column in range(actions)]
    policy = base.build({**spec, **more})
    suits(policy, env)
    if robot and "mask" not in inspect.signature(policy.bc_loss).parameters:
        raise ValueError(
            f"align: a {policy.spec['kind']} policy cannot leave out what a robot has not got; use policy=flow, "
            "diffusion or deterministic"
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
    from flywheel.corpus.windows import Steps

    masks = [mask for mask in selection.MASKS if mask in windows.columns]
    fit_normaliser(policy, env, *(Steps(windows, field) for field in ("obs.state", "action", *masks)))


def fit_normaliser(policy, env, obs, action, *masks) -> None:
    """Freeze the policy's normaliser on rows obs [R, Do], action [R, Da]; what is one-hot stays as it is."""
    policy.fit_normaliser(None if getattr(env, "one_hot", None) else obs, None if policy.discrete else action, *masks)


def gates(args, source, run, env, episodes: int) -> list:
    """The judges of the algorithm's table, that may undo a round; what each says is logged, and beside it what it
    cannot know, and what decides nothing: the policies before and after on so many gate seeds, paired."""
    from flywheel.rl.learner import resolve

    if not args.algorithm.gate:
        return []
    chosen = seeds("gate", args, SCORING, episodes)

    def truth(nets) -> dict[str, Any]:
        if not chosen or args.task.recorded or "policy.old" not in nets:
            return {}
        kinds = (copy.deepcopy(nets[name]).eval().explores(0.0) for name in ("policy", "policy.old"))
        won = [score(one, env, chosen, what="a round", stop_at_success=True)["success"] for one in kinds]
        return {"truth": stats.mcnemar(*won) | {"before": float(won[1].mean()), "after": float(won[0].mean())}}

    def judged(judge, arguments):
        def gate(before, learner) -> str:
            reason, told = judge(learner.nets, learner.complete("gate", source.batch("evaluate")), **arguments)
            run.log("gate", refused=reason, **told, **truth(learner.nets))
            say(f"  the round is {'undone: ' + reason if reason else 'kept'}")
            return reason

        return gate

    return [judged(*resolve("gate", name, given)) for name, given in args.algorithm.gate.items()]
