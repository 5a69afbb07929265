"""Density and entropy of a diagonal Gaussian over an action chunk."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def log_density(x: Tensor, mean: Tensor, log_std: Tensor) -> Tensor:
    """log N(x; mean, std^2), all [..., Ta, Da] -> [...]."""
    return log_density_of_noise((x - mean) / log_std.exp(), log_std)


def log_density_of_noise(noise: Tensor, log_std: Tensor) -> Tensor:
    """log N(mean + std * noise; mean, std^2), both [..., Ta, Da] -> [...]."""
    constant = log_std.shape[-2:].numel() * 0.5 * math.log(2 * math.pi)
    return -constant - torch.addcmul(log_std, noise, noise, value=0.5).sum((-2, -1))


def entropy(log_std: Tensor) -> Tensor:
    """[..., Ta, Da] -> [...], in nats."""
    return (log_std + 0.5 * math.log(2 * math.pi * math.e)).sum((-2, -1))
