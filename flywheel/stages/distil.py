"""distil: a policy that needs K passes of its net for an action becomes one that needs one, taught on the
demonstrations' states."""

from __future__ import annotations

import dataclasses
from typing import Any

from flywheel import selection
from flywheel.args import Demos, arg
from flywheel.rl import build, offline

GROUPS = {"policy": "one_step", "algorithm": "consistency"}


def _all() -> Demos:
    return Demos(failures=True)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Args(offline.Training):
    """A policy of K steps becomes one of a single step."""

    checkpoint: str | None = arg(
        None, "the teacher; default: the task's own name@production, else its newest", typed=True
    )
    name: str | None = arg(None, "of the student; default: that of the task", typed=True)
    demos: Demos = arg(_all, "whose states it is taught on")


def inputs(args: Args, store) -> dict[str, Any]:
    selection.name_of(args)  # refused before anything begins
    selection.belongs("distil", args.algorithm)
    teacher = args.checkpoint or selection.name_of(dataclasses.replace(args, name=None))
    return {
        "corpus": selection.describe(selection.pools(args, store)[0]),
        "checkpoint": selection.checkpoint(teacher, store),
    }


def run(args: Args, inputs: dict[str, Any], run) -> dict[str, Any]:
    from flywheel.policy import base

    ref = inputs["checkpoint"]["ref"]
    teacher = run.store.load(ref).requires_grad_(False)
    selection.one_robot(args, teacher)
    if not hasattr(teacher, "step_mean"):
        raise ValueError(
            f"distil: {ref} is a {teacher.spec['kind']} policy, not a chain of steps to shorten; expected "
            "diffusion or flow (of a best-of-N, name the `policy` that its retrain published)"
        )

    def begin(env, windows):
        build.suits(teacher, env)
        shape = {k: teacher.spec[k] for k in (*base.SHAPE, "ahead") if k in teacher.spec}
        return base.build({**args.policy, **shape, "condition": teacher.condition}).like(teacher)

    return offline.train(args, run, begin, {"teacher": teacher})
