"""The one loop. Pretraining, offline RL, retraining rounds, online RL and distillation are this with other tables."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Cadence:
    """How often: rounds x (evaluate, improve) updates. one-step 1 x (100k, 100k), multi-step 5 x (20k, 2k), iterative
    1M x (1, 1). In the first `warmup` rounds nothing is improved."""

    rounds: int
    evaluate: int
    improve: int
    warmup: int = 0


@dataclass
class At:
    """Where the loop is: the round, the phase in it (0 collect, 1 evaluate, 2 improve, 3 gate), updates done in the phase."""

    round: int = 0
    phase: int = 0
    step: int = 0


def fit(
    learner,
    source,
    cadence: Cadence,
    gate: Callable | None = None,
    *,
    at: At | None = None,
    pause: Callable[[At], None] = lambda at: None,
    each: Callable[[int], bool | None] = lambda round: None,
) -> None:
    """Collect, evaluate, improve, `cadence.rounds` times; `gate(before, learner)` may refuse a round with a reason. An act ends
    early where a loss says that it is enough.

    `pause(at)` is called where the loop can be left and entered again (`at`); `each(round)` after each round: if it
    returns True the loop ends there (a time budget).
    """
    at = at or At()
    while at.round < cadence.rounds:
        before = learner.snapshot() if gate else None
        if at.phase == 0:
            source.collect(learner)
            at.phase, at.step = 1, 0
            pause(at)
        if at.phase == 1:
            while at.step < cadence.evaluate:
                if learner.act("evaluate", source.batch("evaluate")):
                    break
                at.step += 1
                pause(at)
            at.phase, at.step = 2, 0
        if at.phase == 2:
            if at.step == 0:
                learner.begin_improve()
            while at.step < cadence.improve and at.round >= cadence.warmup:
                if learner.act("improve", source.batch("improve")):
                    break
                at.step += 1
                pause(at)
            at.phase, at.step = 3, 0
        if gate and (reason := gate(before, learner)):
            learner.restore(before, reason)
        at.round, at.phase, at.step = at.round + 1, 0, 0
        stop = each(at.round - 1)
        pause(at)
        if stop:
            return
