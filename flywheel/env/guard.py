"""The guard's first level: what is executed stays inside the action range, whatever a policy proposes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import numpy as np


class Guard:
    """Clips to [low, high] [Da] and replaces an action that is not finite by the last one executed in the same episode.

    Before an episode's first action that is `rest(slot)` [Da], what moves nothing: by default zero, clipped into the
    range (no motion where actions are steps or velocities). Where actions are positions, zero is one: such an
    environment offers `hold_action()`. `count` holds how often it had to: steps "clipped" (in any dimension by more
    than `tolerance` of its own range) and "held"."""

    def __init__(
        self,
        low: np.ndarray,
        high: np.ndarray,
        slots: int,
        tolerance: float = 0.5,
        rest: Callable[[int], np.ndarray] | None = None,
    ):
        self.low, self.high, self.tolerance, self.rest = low, high, tolerance, rest
        self.last = np.tile(np.clip(0.0, low, high), (slots, 1)).astype(np.float32)
        self.count: Counter[str] = Counter()

    @classmethod
    def of(cls, env) -> Guard:
        """The guard of a batch."""
        low, high = np.asarray(env.action_low, np.float32), np.asarray(env.action_high, np.float32)
        return cls(low, high, env.num_envs, rest=getattr(env, "hold_action", None))

    def begin(self, slot: int) -> None:
        """An episode begins in `slot`: what was executed in the one before is forgotten."""
        self.last[slot] = np.clip(self.rest(slot) if self.rest else 0.0, self.low, self.high)

    def __call__(self, proposed: np.ndarray, slots: np.ndarray) -> np.ndarray:
        """proposed [N, Da] for `slots` [N] -> executed [N, Da] float32."""
        bad = ~np.isfinite(proposed).all(axis=1)
        action = np.where(bad[:, None], self.last[slots], proposed)
        executed = np.clip(action, self.low, self.high).astype(np.float32)
        far = (np.abs(executed - action) > self.tolerance * (self.high - self.low)).any(axis=1)
        self.count.update(clipped=int(far.sum()), held=int(bad.sum()), steps=len(slots))
        self.last[slots] = executed
        return executed
