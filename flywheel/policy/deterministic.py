"""One action chunk for each observation: for DDPG, TD3 and TD3+BC."""

from __future__ import annotations

import torch
from torch import Tensor

from flywheel.policy.base import Policy, masked_mean
from flywheel.policy.nets import mlp


class Deterministic(Policy):
    """a = middle + half * tanh(net(obs)) + explore * half * noise; `explore` is 0 but for collection."""

    fixed = True

    def __init__(self, *, width: int = 256, depth: int = 2, activation: str = "silu", **base):
        super().__init__(width=width, depth=depth, activation=activation, **base)
        self.net = mlp(self.features, self.horizon * self.action_dim, width, depth, activation)
        self.explore = 0.0

    def _act(self, features: Tensor) -> Tensor:
        u = self.net(features).view(-1, self.horizon, self.action_dim)
        return torch.addcmul(self.middle.to(u), self.half_range.to(u), torch.tanh(u))

    def sample(self, obs: Tensor, noise: Tensor) -> Tensor:
        action = self._act(self.encode(obs))[:, : self.action_steps]
        return (
            self.bounded(action + self.explore * self.half_range * noise[:, : self.action_steps])
            if self.explore
            else action
        )

    def bc_loss(self, obs, action, generator, condition=None, mask=None):
        return masked_mean((self._act(self.encode(obs, condition)) - action).square(), mask)


make = Deterministic
