"""What diffusion and flow share: noise becomes an action in K steps, which are Gaussian while the policy explores.

    x_0 ~ N(0, I),   x_{k+1} ~ N(mean_k(x_k, obs), sigma^2 I),   action = x_K         sigma = explore (0: deterministic)

Each step has a density then, the last one too, and a policy gradient can be taken through the chain (DPPO, 2409.00588).
With `learn_noise` sigma is a net's, between half and twice `explore`, and is thrown away with it (ReinFlow,
2505.22094)."""

from __future__ import annotations

import torch
from torch import Tensor

from flywheel.policy._normal import entropy, log_density
from flywheel.policy.base import Policy
from flywheel.policy.nets import mlp, time_embedding


class Denoiser(Policy):
    """A member of this kind sets `self.steps` (K) and defines `step_mean`."""

    def __init__(self, **base):
        super().__init__(**base)
        self.noise_net = None

    @property
    def noise_shape(self) -> tuple[int, ...]:
        chunk = (self.horizon, self.action_dim)
        return (1 + self.steps, *chunk) if self.explore else chunk

    def explores(self, amount: float) -> Denoiser:
        self.explore = (
            amount  # a greedy one begins its chain at zero, the middle of all that it may do; never while it explores
        )
        return self

    def step_mean(self, x: Tensor, k: Tensor, features: Tensor) -> Tensor:
        """x [B, Ta, Da] before step k [B] (long, 0 is the noisiest), features [B, F] -> mean of x after it."""
        raise NotImplementedError

    def learn_noise(self) -> None:
        """From now on sigma is learnt, for as long as the policy explores."""
        self.noise_net = mlp(32 + self.features, self.horizon * self.action_dim, 64, 1).to(self.device)

    def sigma(self, x: Tensor, k: Tensor, features: Tensor) -> Tensor:
        """Standard deviation of step k, as x."""
        if self.noise_net is None:
            return torch.full_like(x, self.explore)
        level = self.noise_net(torch.cat([time_embedding(k.to(x.dtype) / self.steps), features], 1)).view_as(x)
        return self.explore * 2 ** torch.tanh(level)

    def chain(self, obs: Tensor, noise: Tensor) -> Tensor:
        features = self.encode(obs)
        x = noise[:, 0] if self.explore else noise
        made = [x]
        for i in range(self.steps):
            k = torch.full((len(x),), i, device=x.device)
            x = self.step_mean(x, k, features)
            if self.explore:
                x = x + self.sigma(x, k, features) * noise[:, 1 + i]
            made.append(x)
        return torch.stack(made, 1)

    def chain_log_prob(self, obs: Tensor, chain: Tensor, step: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """As of every policy; with `step` [B] a chain [B, 2, ...] is the one step of this number, and K is 1."""
        if not self.explore:
            raise ValueError(
                "a policy that does not explore takes deterministic steps, which have no density; set explore"
            )
        before, after = chain[:, :-1].flatten(0, 1), chain[:, 1:].flatten(0, 1)
        k = torch.arange(self.steps, device=chain.device).repeat(len(chain)) if step is None else step
        features = self.encode(obs).repeat_interleave(chain.shape[1] - 1, 0)
        mean, sigma, after = (
            x[:, : self.action_steps]
            for x in (self.step_mean(before, k, features), self.sigma(before, k, features), after)
        )  # what is executed; the chunk after it is no act
        log_prob = log_density(after, mean, sigma.log())
        return log_prob.view(len(chain), -1), entropy(sigma.log()).view(len(chain), -1)

    def sample(self, obs: Tensor, noise: Tensor) -> Tensor:
        return self.ended(self.chain(obs, noise))
