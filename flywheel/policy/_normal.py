"""Density and entropy of a diagonal Gaussian over an action chunk."""

from __future__ import annotations

import math

from torch import Tensor


def log_density(x: Tensor, mean: Tensor, log_std: Tensor) -> Tensor:
    """log N(x; mean, std^2), all [..., Ta, Da] -> [...]."""
    z = (x - mean) / log_std.exp()
    return (-0.5 * z.square() - log_std - 0.5 * math.log(2 * math.pi)).sum((-2, -1))


def entropy(log_std: Tensor) -> Tensor:
    """[..., Ta, Da] -> [...], in nats."""
    return (log_std + 0.5 * math.log(2 * math.pi * math.e)).sum((-2, -1))
