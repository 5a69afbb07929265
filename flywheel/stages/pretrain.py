"""pretrain: imitation or offline RL from the demonstrations of a corpus version.

The policy is scored along its own training curve on gate seeds; what comes out is the best of that curve, and the
anchor."""

from __future__ import annotations

import dataclasses
from typing import Any

from flywheel import selection
from flywheel.args import arg
from flywheel.log import say
from flywheel.rl import build, offline

GROUPS = {"policy": "flow", "algorithm": "bc"}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Args(offline.Training):
    """Imitation or offline RL from a corpus version."""

    shards: bool = arg(
        False, "by torchrun: each process draws from segments of its own, and decodes these alone; then it matters how "
        "many there are",
    )  # fmt: skip
    slices: int = arg(
        1, "of a batch, whose gradients are summed in one order: the same weights to the bit by every number of "
        "processes that divides it", least=1, most=1024,
    )  # fmt: skip
    align: Any = arg(None, "views of several robots: pad (zeros, which do not count), or {SCHEMA: {action: [columns]}}")


def inputs(args: Args, store) -> dict[str, Any]:
    selection.name_of(args)  # refused before anything begins
    selection.belongs("pretrain", args.algorithm)
    found = {"corpus": selection.describe(selection.pools(args, store)[0])}
    return found | ({"checkpoint": selection.begun(args.checkpoint, store)} if args.checkpoint else {})


def run(args: Args, inputs: dict[str, Any], run) -> dict[str, Any]:
    def begin(env, windows):
        if "checkpoint" not in inputs:
            return build.new_policy(args.policy, args.task, env, windows)
        policy, robot = _loaded(args, inputs["checkpoint"], env, run), selection.robot(args.task, windows, env)
        build.suits(policy, env)
        if policy.robot != robot:
            raise ValueError(f"align: the checkpoint's robot has the columns {policy.robot}, these views give {robot}")
        return policy.train().requires_grad_(True)

    return offline.train(args, run, begin, shards=args.shards, slices=args.slices)


def _loaded(args: Args, checkpoint: dict[str, Any], env, run):
    """The policy to begin from; one that LeRobot wrote gets a name with its hash first."""
    if "folder" not in checkpoint:
        return run.store.load(checkpoint["ref"])
    from flywheel.policy import base, lerobot

    policy = lerobot.adopted(checkpoint["ref"], build.shape(env))
    base.save(policy, run.out / "adopted.safetensors")
    made = run.publish("adopted.safetensors", selection.name_of(args), kind="lerobot", updates=0)
    say(f"  {checkpoint['ref']} is {made}")
    return policy
