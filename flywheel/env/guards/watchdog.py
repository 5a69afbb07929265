"""An action that comes too late is stale: it moves nothing. For a driver of a robot; simulators wait for a policy."""

import numpy as np


def guard(action, step, *, seconds=0.1):
    """action [N, Da] -> (action, or what moves nothing where the last one was more than `seconds` ago [N])."""
    last, now = step.memory("time", np.float64), step.now
    late = (last[step.slots] > 0) & (now - last[step.slots] > seconds)
    last[step.slots] = now
    return np.where(late[:, None], step.rest, action), late
