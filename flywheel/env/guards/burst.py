"""Guards that step in again and again say that a policy is beside itself: it is stopped for a moment, then goes slowly.

Never for good: a robot that was frozen at each intervention stood still for two thirds of an episode. So: interventions
are counted in windows; when two of the last three were bad, the robot rests for `freeze` steps, then moves at `slow` of
what is asked for `steps` steps."""

import numpy as np


def guard(action, step, *, window=10, share=0.5, freeze=5, slow=0.5, steps=50):
    """action [N, Da] -> (action, at rest, or slowed [N, Da]; which [N] are at rest). Place it last: it counts what the
    guards before it did (`step.stepped_in` [N])."""
    at = step.slots
    time, hits, bad, rest = (step.memory(name, np.int64) for name in ("time", "hits", "bad", "rest"))
    hits[at] += step.stepped_in & (rest[at] == 0)  # what it does itself to the next steps is no news
    time[at] += 1
    full = at[time[at] % window == 0]
    bad[full] = ((bad[full] << 1) | (hits[full] >= share * window)) & 0b111  # the last three windows, a bit each
    hits[full] = 0
    again = full[((bad[full] & 1) + (bad[full] >> 1 & 1) + (bad[full] >> 2 & 1) >= 2) & (rest[full] <= steps)]
    rest[again], bad[again] = freeze + steps, 0
    left = rest[at]
    rest[at] = np.maximum(left - 1, 0)
    frozen, slowed = left > steps, (left > 0) & (left <= steps)
    step.excused = slowed
    slower = step.rest + np.float32(slow) * (action - step.rest)
    return np.where(frozen[:, None], step.rest, np.where(slowed[:, None], slower, action)), frozen
