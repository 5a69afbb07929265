"""One pass of a net from noise and observation to an action chunk: what a chain of K steps is distilled into.

The student of consistency distillation (Song et al., arXiv 2303.01469) and of flow Q-learning (FQL, 2502.02538).
"""

from __future__ import annotations

import torch
from torch import Tensor

from flywheel.policy.base import Policy
from flywheel.policy.nets import mlp


class OneStep(Policy):
    """action = net(noise, obs), in normalised units; an MLP of `depth` x `width`."""

    def __init__(self, *, width: int = 256, depth: int = 3, activation: str = "silu", **base):
        super().__init__(width=width, depth=depth, activation=activation, **base)
        size = self.horizon * self.action_dim
        self.net = mlp(size + self.features, size, width, depth, activation)

    def _made(self, features: Tensor, noise: Tensor) -> Tensor:
        return self.net(torch.cat([noise.flatten(1), features], 1)).view_as(noise)

    def sample(self, obs: Tensor, noise: Tensor) -> Tensor:
        return self.action_norm.inverse(self._made(self.encode(obs), noise)[:, : self.action_steps])

    def bc_loss(self, obs, action, generator, condition=None):
        noise = torch.randn(action.shape, generator=generator, device=action.device, dtype=action.dtype)
        return (self._made(self.encode(obs, condition), noise) - self.action_norm(action)).square().mean((1, 2))


make = OneStep
