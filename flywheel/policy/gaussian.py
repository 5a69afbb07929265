"""A diagonal Gaussian over the action chunk; its imitation loss is the negative log-likelihood."""

from __future__ import annotations

import torch
from torch import Tensor

from flywheel.policy._normal import entropy, log_density
from flywheel.policy.base import Policy
from flywheel.policy.nets import mlp


class Gaussian(Policy):
    """Mean and log standard deviation from one MLP; the latter begins at about `log_std` and stays within 2.5 of it,
    in normalised units."""

    def __init__(
        self,
        *,
        width: int = 256,
        depth: int = 3,
        activation: str = "silu",
        log_std: float = -1.5,
        last_scale: float = 1.0,
        **base,
    ):
        super().__init__(width=width, depth=depth, activation=activation, log_std=log_std, **base)
        self.log_std = log_std
        self.net = mlp(self.features, 2 * self.horizon * self.action_dim, width, depth, activation, last_scale)

    def distribution(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """features [B, F] -> mean, log std, both [B, ahead * Ta, Da] in normalised units."""
        mean, log_std = self.net(features).view(len(features), 2, self.horizon, self.action_dim).unbind(1)
        return mean, self.log_std + 2.5 * torch.tanh(log_std)

    def sample(self, obs: Tensor, noise: Tensor) -> Tensor:
        return self.ended(self.chain(obs, noise))

    def chain(self, obs: Tensor, noise: Tensor) -> Tensor:
        mean, log_std = self.distribution(self.encode(obs))
        return torch.addcmul(mean, log_std.exp(), noise)[:, None]

    def chain_log_prob(self, obs: Tensor, chain: Tensor) -> tuple[Tensor, Tensor]:
        mean, log_std = (x[:, : self.action_steps] for x in self.distribution(self.encode(obs)))
        return log_density(chain[:, 0, : self.action_steps], mean, log_std)[:, None], entropy(log_std)[:, None]

    def log_prob(self, obs: Tensor, action: Tensor, condition: Tensor | None = None) -> Tensor:
        """log pi(action | obs) of a whole chunk, or of it and the next, in normalised units; [B]."""
        mean, log_std = (x[:, : action.shape[1]] for x in self.distribution(self.encode(obs, condition)))
        return log_density(self.action_norm(action), mean, log_std)

    def bc_loss(self, obs, action, generator, condition=None):
        return -self.log_prob(obs, action, condition) / (self.horizon * self.action_dim)


make = Gaussian
