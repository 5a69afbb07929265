"""A Gaussian squashed by tanh into the action range: it has a density, so SAC, RLPD and CQL can use it (1812.05905, C).

a = middle + half * tanh(mean + std * noise),   log pi(a) = log N(u) - sum log(half * (1 - tanh(u)^2))
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from flywheel.policy._normal import entropy, log_density, log_density_of_noise
from flywheel.policy.base import Policy
from flywheel.policy.nets import mlp


class TanhGaussian(Policy):
    """Mean and log standard deviation of the chunk before the squashing, from one MLP; the latter begins at about
    `log_std` and stays within `log_std_span` of it; the wider, the faster it moves at first: log_std + span *
    tanh(output)."""

    def __init__(
        self,
        *,
        width: int = 256,
        depth: int = 2,
        activation: str = "silu",
        log_std: float = -1.5,
        log_std_span: float = 3.5,
        last_scale: float = 1.0,
        **base,
    ):
        own = dict(log_std=log_std, log_std_span=log_std_span)
        super().__init__(width=width, depth=depth, activation=activation, **own, **base)
        self.log_std, self.log_std_span = log_std, log_std_span
        self.net = mlp(self.features, 2 * self.action_steps * self.action_dim, width, depth, activation, last_scale)
        self.steepest = self.action_steps * float((4 * self.half_range.double()).log().sum())

    def distribution(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """features [B, F] -> mean, log std before the squashing, both [B, Ta, Da]."""
        mean, log_std = self.net(features).view(len(features), 2, self.action_steps, self.action_dim).unbind(1)
        return mean, self.log_std + self.log_std_span * torch.tanh(log_std)

    def squash(self, u: Tensor) -> Tensor:
        return torch.addcmul(self.middle.to(u), self.half_range.to(u), torch.tanh(u))

    def slope(self, u: Tensor) -> Tensor:
        """log of d squash(u) / du, summed over the chunk, [B]; 1 - tanh(u)^2 = 4 exp(2u) / (1 + exp(2u))^2, written
        so that it cannot round to 0."""
        rest = torch.add(F.softplus(u, beta=-2.0), u, alpha=-0.5)  # log(1 + exp(-2u)) / -2 - u / 2
        return 4 * rest.sum((1, 2)) + self.steepest

    def density(self, u: Tensor, mean: Tensor, log_std: Tensor) -> Tensor:
        """log pi of squash(u), [B]."""
        return log_density(u, mean, log_std) - self.slope(u)

    def chain(self, obs: Tensor, noise: Tensor) -> Tensor:
        mean, log_std = self.distribution(self.encode(obs))
        return torch.addcmul(mean, log_std.exp(), noise)[:, None]  # before the squashing

    def chain_log_prob(self, obs: Tensor, chain: Tensor) -> tuple[Tensor, Tensor]:
        mean, log_std = self.distribution(self.encode(obs))
        return log_density(chain[:, 0], mean, log_std)[:, None], entropy(log_std)[:, None]

    def ended(self, chain: Tensor) -> Tensor:
        return self.squash(chain[:, 0])

    def sample(self, obs: Tensor, noise: Tensor) -> Tensor:
        return self.ended(self.chain(obs, noise))

    def sample_with_log_prob(self, obs: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        mean, log_std = self.distribution(self.encode(obs))
        u = torch.addcmul(mean, log_std.exp(), noise)
        return self.squash(u), log_density_of_noise(noise, log_std) - self.slope(u)

    def bc_loss(self, obs, action, generator, condition=None):
        mean, log_std = self.distribution(self.encode(obs, condition))
        inside = ((action - self.middle.to(action)) / self.half_range.to(action)).clamp(-1 + 1e-4, 1 - 1e-4)
        return -self.density(torch.atanh(inside), mean, log_std) / (self.action_steps * self.action_dim)


make = TanhGaussian
