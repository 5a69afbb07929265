"""One of n actions at each step, by softmax of an MLP's logits; its imitation loss is the cross-entropy.

An action is a one-hot row. Gumbel's trick makes one from normal noise z:  argmax(logits - log(-log Phi(z)))  ~
softmax(logits)."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from flywheel.policy.base import Policy
from flywheel.policy.nets import mlp


class Categorical(Policy):
    """Logits of a chunk of independent choices, [B, Ta, Da]; greedy, the likeliest is taken."""

    discrete = True

    def __init__(self, *, width: int = 256, depth: int = 2, activation: str = "silu", **base):
        super().__init__(width=width, depth=depth, activation=activation, **base)
        self.net = mlp(self.features, self.action_steps * self.action_dim, width, depth, activation)

    def logits(self, features: Tensor) -> Tensor:
        """features [B, F] -> log-probabilities [B, Ta, Da]."""
        return self.net(features).view(-1, self.action_steps, self.action_dim).log_softmax(-1)

    def chain(self, obs: Tensor, noise: Tensor) -> Tensor:
        uniform = torch.special.ndtr(noise).clamp(1e-6, 1 - 1e-6)
        return one_hot(self.logits(self.encode(obs)) - (-uniform.log()).log())[:, None]

    def chain_log_prob(self, obs: Tensor, chain: Tensor) -> tuple[Tensor, Tensor]:
        logits = self.logits(self.encode(obs))
        return (logits * chain[:, 0]).sum((1, 2))[:, None], -(logits.exp() * logits).sum((1, 2))[:, None]

    def ended(self, chain: Tensor) -> Tensor:
        return chain[:, 0]

    def sample(self, obs: Tensor, noise: Tensor) -> Tensor:
        return self.ended(self.chain(obs, noise))

    def bc_loss(self, obs, action, generator, condition=None):
        return -(self.logits(self.encode(obs, condition)) * action).sum(-1).mean(1)


def one_hot(score: Tensor) -> Tensor:
    """1 where the last dimension's score is largest, else 0."""
    return F.one_hot(score.argmax(-1), score.shape[-1]).to(score.dtype)


make = Categorical
