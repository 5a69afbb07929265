"""Rounds of retraining: who acts, where episodes start, and how it does."""

from __future__ import annotations

import copy
import dataclasses
from typing import Any

import numpy as np

from flywheel import stats
from flywheel.args import arg
from flywheel.env.scoring import score
from flywheel.log import progress
from flywheel.rl.acting import best_of_n
from flywheel.rl.backward import Backward, Rule
from flywheel.rl.practice import Practice, counts_for, tell
from flywheel.rl.table import Choosing
from flywheel.seeds import NIGHT, seeds


@dataclasses.dataclass(frozen=True)
class Collect(Choosing):
    """How a round is collected."""

    episodes: int = arg(64, "a round", least=1, most=NIGHT)
    explore: float = arg(0.1, "noise on every second candidate, in half action ranges", least=0, most=10)
    retry: float = arg(0.3, "share of a round, at most, from starts at which it failed before", least=0, most=0.9)
    back: Rule = arg(Rule, "where the base never succeeds: starts along demonstrations, that move back as it gets good")


@dataclasses.dataclass
class Round:
    """Who acts in a round, and where its episodes start."""

    args: Any
    practice: Practice
    anchor: Any
    judged: bool  # was there a critic from the beginning?
    origin: str
    starts: Backward | None = None

    def actor(self, collecting: bool = False):
        """Who acts now: the plain policy until there are critics that have learnt, or for good."""
        explore = self.args.collect.explore if collecting else 0.0
        if self.args.algorithm.act == "policy":
            nets = self.practice.learner.nets
            return copy.deepcopy(nets.get("policy.lag", nets["policy"])).eval().explores(explore)
        judged = self.judged or self.practice.memory.round > 0
        spread = self.practice.spread(collecting, judged)
        nets, how = self.practice.learner.nets, self.args.collect
        return best_of_n(nets, self.anchor, how, explore, judged=judged, spread=spread)

    def collect(self, learner) -> list:
        """Play a round, and return what is to be learnt from it; then the window of starts moves. The first round is
        whole, whatever the budget."""
        memory, n = self.practice.memory, self.args.collect.episodes
        starts, low, run = self.starts.starts(n), memory.window, self.practice.run

        def more(done) -> dict[str, Any]:
            own = [e.success for e in done if counts_for(e)]
            started = [e.success for e in done if "start_from" in e.meta]
            rates = [float(np.mean(won)) if won else None for won in (own, started)]
            if started:
                self.starts.move(rates[1])
            else:
                self.starts.decide(sum(own), len(own))
            return {"success": rates[0], "from_demos": rates[1], "window_low": low if started else None}

        chosen, number = seeds("collect", self.args, memory.round * n, n), memory.round
        chosen = chosen if starts else self.practice.with_failed(chosen, n)
        with progress(f"collect round {number}", n) as tick:
            late = lambda k: number > 0 and run.out_of_time([number, 0, k])  # noqa: E731
            acts = self.actor(collecting=True)
            _, new = self.practice.play(acts, chosen, self.origin, more, starts=starts, progress=tick, late=late)
        tell(memory.history[-1])
        return new


def scored(rounds: Practice, actor, scoring: list[int], what: str) -> dict[str, Any]:
    """How the actor does on the gate seeds, from the task's own reset."""
    won = score(actor, rounds.env, scoring, what=what, stop_at_success=True)["success"]
    rounds.run.log("scored", round=rounds.memory.round - 1, steps=rounds.memory.steps, **stats.rate(won))
    return stats.rate(won)
