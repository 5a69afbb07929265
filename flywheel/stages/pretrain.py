"""pretrain: imitation or offline RL from the demonstrations of a corpus version.

The policy is scored along its own training curve on gate seeds; what comes out is the best of that curve, and the
anchor."""

from __future__ import annotations

import dataclasses
from typing import Any

from flywheel import selection
from flywheel.args import arg
from flywheel.rl import build, offline

GROUPS = {"policy": "flow", "algorithm": "bc"}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Args(offline.Training):
    """Imitation or offline RL from a corpus version."""

    align: Any = arg(None, "views of several robots: pad (zeros, which do not count), or {SCHEMA: {action: [columns]}}")


def inputs(args: Args, store) -> dict[str, Any]:
    selection.name_of(args)  # refused before anything begins
    selection.belongs("pretrain", args.algorithm)
    found = {"corpus": selection.describe(selection.pools(args, store)[0])}
    return found | ({"checkpoint": selection.checkpoint(args.checkpoint, store)} if args.checkpoint else {})


def run(args: Args, inputs: dict[str, Any], run) -> dict[str, Any]:
    def begin(env, windows):
        if "checkpoint" not in inputs:
            return build.new_policy(args.policy, args.task, env, windows)
        policy, robot = run.store.load(inputs["checkpoint"]["ref"]), selection.robot(args.task, windows, env)
        build.suits(policy, env)
        if policy.robot != robot:
            raise ValueError(f"align: the checkpoint's robot has the columns {policy.robot}, these views give {robot}")
        return policy.train().requires_grad_(True)

    return offline.train(args, run, begin)
