"""An action that is not finite is replaced by the last one executed in its episode, or by what moves nothing."""

import numpy as np


def guard(action, step):
    """action [N, Da] -> (action [N, Da], replaced [N])."""
    bad = ~np.isfinite(action).all(axis=1)
    return np.where(bad[:, None], step.last, action), bad
