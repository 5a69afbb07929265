"""All weights are numbers. (A gradient that is not finite is left out; ten in a row are as bad as this.)"""

import torch


def guard(seen):
    for name, flat in seen.learner.flat.items():
        if not torch.isfinite(flat.values).all():
            return f"weights of {name} are not finite"
    return ""
