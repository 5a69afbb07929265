"""A tool or a joint stays inside a box: what would lead further out of it moves nothing in that dimension."""

import numpy as np


def guard(action, step, *, obs, low, high, dims=None, positions=False):
    """action [N, Da] -> (action [N, Da], which [N] led out).

    `obs` are the positions in the observation, by name ("grip[0]", the same for a robot and in simulation) or place;
    `low` and `high` their limits, in the observation's units; `dims` the dimensions of the action that move them (by
    default the first ones). Where actions are `positions`, in the same units, a target outside is moved to the wall;
    else they are motions, and a motion outwards is `step.rest`.
    """
    dims = list(range(len(obs)) if dims is None else dims)
    low, high, wanted = np.float32(low), np.float32(high), action[:, dims]
    if positions:
        kept = np.clip(wanted, low, high)
    else:
        at, rest = step.obs[:, list(obs)], step.rest[:, dims]
        out = ((at >= high) & (wanted > rest)) | ((at <= low) & (wanted < rest))
        kept = np.where(out, rest, wanted)
    changed = (kept != wanted).any(axis=1)
    if changed.any():
        action = action.copy()
        action[:, dims] = kept
    return action, changed
