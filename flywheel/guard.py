"""The guard's first level: what is executed stays inside the action range, whatever a policy proposes."""

from __future__ import annotations

from collections import Counter

import numpy as np


class Guard:
    """Clips to [low, high] and replaces an action that is not finite by the last one executed (at first: the middle).

    `count` holds how often it had to: steps "clipped" (by more than `tolerance` of the range) and "held".
    """

    def __init__(self, low: np.ndarray, high: np.ndarray, slots: int, tolerance: float = 0.5):
        self.low, self.high, self.tolerance = low, high, tolerance
        self.last = np.tile((low + high) / 2, (slots, 1)).astype(np.float32)
        self.count: Counter[str] = Counter()

    def __call__(self, proposed: np.ndarray, slots: np.ndarray) -> np.ndarray:
        """proposed [N, Da] for `slots` [N] -> executed [N, Da] float32."""
        bad = ~np.isfinite(proposed).all(axis=1)
        action = np.where(bad[:, None], self.last[slots], proposed)
        executed = np.clip(action, self.low, self.high).astype(np.float32)
        far = np.abs(executed - action).max(axis=1) > self.tolerance * (self.high - self.low).max()
        self.count.update(clipped=int(far.sum()), held=int(bad.sum()), steps=len(slots))
        self.last[slots] = executed
        return executed
