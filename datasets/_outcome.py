"""What a recording's flags and rewards say about success, in flywheel's convention: reward 1 at the first success, else 0.

Where the last action is lost for want of a final observation, what it brought about is told at the step before.
"""

from __future__ import annotations

import numpy as np


def scores(reward: np.ndarray | None) -> bool:
    """Does the reward of a whole data set say who succeeded: only 0 and 1, and somewhere a 1?"""
    return reward is not None and bool((reward == 1).any()) and bool(np.isin(reward, (0, 1)).all())


def outcome(flags: np.ndarray | None, steps: int) -> tuple[np.ndarray, bool | None]:
    """flags [n >= steps], true where the task is solved -> reward [steps] float32, success; unknown success for None."""
    reward = np.zeros(steps, np.float32)
    if flags is None:
        return reward, None
    won = bool(np.any(flags))
    if won and steps:
        reward[min(int(np.argmax(np.asarray(flags) > 0)), steps - 1)] = 1.0
    return reward, won
