"""The policy of Q-learning and DQN: the action of the highest value; exploring, one drawn uniformly with probability
`explore`.

Improvement needs no update here: who moves the critic has moved the policy. depth=0 is a table over one-hot
observations."""

from __future__ import annotations

import torch
from torch import Tensor

from flywheel.policy.base import Policy
from flywheel.policy.categorical import one_hot
from flywheel.policy.critic import Critic


class GreedyQ(Policy):
    """argmax_a of the members' mean Q(s, a), repeated action_steps times; the learner's net `q` is `critic`."""

    discrete = True

    def __init__(
        self, *, members: int = 1, width: int = 256, depth: int = 2, activation: str = "silu", norm: bool = True, **base
    ):
        size = dict(members=members, width=width, depth=depth, activation=activation, norm=norm)
        super().__init__(**size, **base)
        if self.condition:
            raise ValueError("policy=greedy_q is its critic, and that is told nothing; set policy.condition=false")
        shape = {k: self.spec[k] for k in ("obs", "obs_steps", "action_dim", "action_steps")}
        self.critic = Critic(**shape, **size, discrete=True)
        self.critic.encoder = self.encoder

    @property
    def noise_shape(self) -> tuple[int, ...]:
        return (2, self.action_dim)

    def sample(self, obs: Tensor, noise: Tensor) -> Tensor:
        taken = one_hot(self.critic.every(obs).mean(0))
        if self.explore:
            by_chance = torch.special.ndtr(noise[:, 0, :1]) < self.explore
            taken = torch.where(by_chance, one_hot(noise[:, 1]), taken)
        return taken[:, None].expand(-1, self.action_steps, -1)

    def bc_loss(self, obs, action, generator, condition=None):
        return -(self.critic.every(obs).mean(0).log_softmax(-1) * action[:, 0]).sum(-1)


make = GreedyQ
