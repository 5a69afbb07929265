"""Where a measured force, torque or current is beyond its limit nothing moves until it is below it again."""

import numpy as np


def guard(action, step, *, obs, most):
    """action [N, Da] -> (action, or what moves nothing where an |observation| at `obs` is beyond `most` [N])."""
    beyond = (np.abs(step.obs[:, list(obs)]) > np.float32(most)).any(axis=1)
    return np.where(beyond[:, None], step.rest, action), beyond
