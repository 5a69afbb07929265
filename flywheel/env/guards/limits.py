"""Each dimension stays inside its limits: the environment's, or narrower ones."""

import numpy as np


def guard(action, step, *, low=None, high=None, tolerance=0.5):
    """action [N, Da] -> (clipped [N, Da], which [N] lay outside by more than `tolerance` of a dimension's range).

    `low`, `high` [Da] or one number are limits within the environment's own."""
    least = step.low if low is None else np.maximum(step.low, np.float32(low))
    most = step.high if high is None else np.minimum(step.high, np.float32(high))
    inside = np.clip(action, least, most)
    return inside, (np.abs(inside - action) > tolerance * (most - least)).any(axis=1)
