"""No dimension changes by more than a share of its range from one step to the next."""

import numpy as np


def guard(action, step, *, share=0.2):
    """action [N, Da] -> (within `share` of the range [Da] or one number of the last executed, which were not [N])."""
    most = np.float32(share) * (step.high - step.low)
    near = np.clip(action, step.last - most, step.last + most)
    return near, (np.abs(near - action) > 1e-6 * (step.high - step.low)).any(axis=1)
