"""distil: whatever needs many passes of its nets for an action becomes a policy that needs one, taught on states of the
corpus.

The teacher may be of any kind. A chain (flow, diffusion) and its student are given the same noise; of a best of N, the
student imitates the action that is chosen: where its practice is in the corpus, on those states too
(demos.origin='*')."""

from __future__ import annotations

import dataclasses
from typing import Any

from flywheel import selection
from flywheel.args import Demos, arg
from flywheel.obs import PRIVILEGED
from flywheel.rl import build, offline
from flywheel.seeds import NIGHT

GROUPS = {"policy": "one_step", "algorithm": "consistency"}


@dataclasses.dataclass(frozen=True)
class Collect:
    """How the student practises before its teacher (rl/taught.py)."""

    rounds: int = arg(0, "each with its share of the updates; 0: it is taught on the corpus alone", least=0)
    episodes: int = arg(64, "a round, of the student, failures too", least=1, most=NIGHT)


def _all() -> Demos:
    return Demos(failures=True)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Args(offline.Training):
    """A policy of any kind becomes one of a single step."""

    checkpoint: str | None = arg(
        None, "the teacher; default: the task's own name@production, else its newest", typed=True
    )
    name: str | None = arg(None, "of the student; default: that of the task", typed=True)
    draws: int = arg(
        4, "of a teacher that chooses by chance (a best of N): its action is their mean", least=1, most=1e4
    )
    demos: Demos = arg(_all, "whose states it is taught on; origin='*': those of practice, too")
    collect: Collect = arg(Collect, "of a student that practises before its teacher")


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
    from flywheel.rl import taught
    from flywheel.rl.labelled import Labelled

    ref = inputs["checkpoint"]["ref"]
    teacher = run.store.load(ref).requires_grad_(False)
    selection.one_robot(args, teacher)

    apart = bool(args.task.cameras) and not teacher.cameras  # it knows what only the simulator does
    rounds = args.collect.rounds
    if rounds:
        share = dataclasses.replace(
            args.algorithm.cadence, rounds=rounds, improve=args.algorithm.cadence.improve // rounds
        )
        args = dataclasses.replace(args, algorithm=dataclasses.replace(args.algorithm, cadence=share))

    def begin(env, windows):
        if apart:
            return taught.student(args, teacher, env, windows)
        build.suits(teacher, env)
        shape = {"ahead": 1} | {  # a best of N says nothing of the chunk after the next
            k: teacher.spec[k] for k in (*base.SHAPE, "ahead") if k in teacher.spec
        }
        student = base.build({**args.policy, **shape, "condition": teacher.condition})
        build.suits(student, env)
        return student.like(teacher)

    def labels(student, device, env):
        """What the teacher does in each state, where it is of no use to give student and teacher the same noise."""
        told = {"teacher": teacher.to(device), "draws": args.draws}
        if rounds:
            return taught.Taught, {**told, "env": env, "stage": args, "run": run}
        same = student.noise_shape == teacher.noise_shape and not (student.fixed or student.discrete)
        return None if same and not apart else (Labelled, told)

    fields = (f"extras.{PRIVILEGED}",) if apart else ()
    return offline.train(args, run, begin, {"teacher": teacher}, labels, fields)
