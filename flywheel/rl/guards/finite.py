"""All weights are numbers. (A gradient that is not finite is left out; ten in a row are as bad as this.)"""

import torch


def guard(seen):
    for name, flat in seen.learner.flat.items():
        if not all(torch.isfinite(p).all() for p in flat.params):
            return f"weights of {name} are not finite"
    return ""
