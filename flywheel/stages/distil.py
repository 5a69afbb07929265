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
from flywheel.rl import offline
from flywheel.seeds import NIGHT

GROUPS = {"policy": "one_step", "algorithm": "consistency"}


@dataclasses.dataclass(frozen=True)
class Practice:
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
    practice: Practice = arg(Practice, "of a student that practises before its teacher")


def inputs(args: Args, store) -> dict[str, Any]:
    selection.name_of(args)  # refused before anything begins
    selection.belongs("distil", args.algorithm)
    teacher = args.checkpoint or selection.name_of(dataclasses.replace(args, name=None))
    return {
        "corpus": selection.describe(selection.pools(args, store)[0]),
        "checkpoint": selection.checkpoint(teacher, store),
    }


def run(args: Args, inputs: dict[str, Any], run) -> dict[str, Any]:
    from flywheel.rl.taught import Teaching

    teacher = run.store.load(inputs["checkpoint"]["ref"]).requires_grad_(False)
    selection.one_robot(args, teacher)
    if rounds := args.practice.rounds:
        cadence = args.algorithm.cadence
        cadence = dataclasses.replace(cadence, rounds=rounds, improve=cadence.improve // rounds)
        args = dataclasses.replace(args, algorithm=dataclasses.replace(args.algorithm, cadence=cadence))
    how = Teaching(args, run, teacher)
    return offline.train(args, run, how.student, {"teacher": teacher}, how.labels, how.fields)
