"""Where the base never succeeds: episodes start along replayed demonstrations, and the start moves backwards.

Where that cannot be, for recordings hold neither seed nor start or the environment cannot be put back to a state, it is
said once, and episodes begin at the task's own resets.

A window of each demonstration's length, at first near its end; it moves towards the beginning as episodes from it
succeed (reverse curriculum: Florensa et al., arXiv 1707.05300; along demonstrations: Salimans and Chen, 1812.03381).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from flywheel.args import arg
from flywheel.log import progress, say
from flywheel.rl.practice import Memory

ENOUGH = 50  # episodes of the base without a success: then this begins


@dataclass(frozen=True)
class Rule:
    """How the window moves, in shares of a demonstration's length."""

    begin: float = arg(0.85, "where the window begins at first", least=0, most=1)
    width: float = arg(0.35, "of the window", least=0, most=1)
    own_every: int = arg(8, "one episode in so many begins at the task's own reset", least=1)
    good: float = arg(0.8, "success above which it moves far", least=0, most=1)
    fair: float = arg(0.6, "success above which it moves a little", least=0, most=1)
    far: float = arg(0.1, "how far", least=0, most=1)
    near: float = arg(0.05, "how little", least=0, most=1)


class Backward:
    """`rule` is retrain's collect.back; what it has to remember lies in `memory` (rl.practice)."""

    def __init__(self, rule: Rule, seed: int, demos, env, memory: Memory):
        self.rule, self.seed, self.demos, self.env, self.memory = rule, seed, demos, env, memory
        self.states: list[tuple[str, list, int]] | None = None

    def decide(self, successes: float, episodes: int) -> None:
        """Told how the base does from the task's own reset: never in ENOUGH episodes?"""
        if self.memory.backward is None and episodes >= ENOUGH:
            self.memory.backward = successes == 0
            self.memory.window = self.rule.begin

    def starts(self, n: int) -> list[dict[str, Any] | None] | None:
        """n starts, one in `own_every` from the task's own reset (None), the others along demonstrations; None: not
        needed."""
        if not self.memory.backward:
            return None
        if self.states is None:
            self.states = self._replay()
        if not self.states:
            self.memory.backward = False
            return None
        low, width = self.memory.window, self.rule.width
        rng = np.random.default_rng([self.seed, 0xBAC, self.memory.round])
        chosen: list[dict[str, Any] | None] = []
        for i in range(n):
            hash_, states, end = self.states[int(rng.integers(len(self.states)))]
            place = low + rng.random() * min(width, 1 - low)
            step = min(int(place * end), end - 1)
            own = i % self.rule.own_every == 0
            chosen.append(None if own else {"state": states[step], "meta": {"start_from": hash_, "start_step": step}})
        return chosen

    def move(self, success: float) -> None:
        """The window moves back by `far` above `good`, by `near` above `fair`."""
        rule = self.rule
        step = rule.far if success > rule.good else rule.near if success > rule.fair else 0.0
        self.memory.window = max(0.0, self.memory.window - step)

    def _replay(self) -> list[tuple[str, list, int]]:
        """(hash, the simulator's states, where it ends: its success, or its last step) of each demonstration that
        can be replayed."""
        from flywheel.env.playback import replay

        made, why = [], []
        with progress("replay demonstrations", len(self.demos)) as tick:
            for episode in self.demos:
                try:
                    states = replay(self.env, episode, keep_states=True).states
                except ValueError as error:
                    why.append(str(error))
                else:
                    end = int(episode.reward.argmax()) + 1 if episode.success else len(episode)
                    made.append((episode.hash, states, min(end, len(states))))
                tick()
        if why:
            rest = "from the others" if made else "all at the task's own resets: the base has never succeeded there"
            say(
                f"  {len(why)} of {len(self.demos)} demonstrations cannot be replayed ({why[0]}); episodes begin {rest}"
            )
        return made
