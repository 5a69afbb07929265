"""Diffusion policy, sampled by DDIM (Ho et al. 2006.11239; Song et al. 2010.02502; Chi et al. 2303.04137).

x_t = sqrt(abar_t) x_0 + sqrt(1 - abar_t) eps,   loss = || net(x_t, t, obs) - x_0 ||^2,   or eps in the place of x_0

The net predicts the action x_0: with ten steps and a small net that clones better than predicting the noise, whose
error is divided by sqrt(abar_t) (`flywheel pretrain task=lift policy=diffusion algorithm.cadence.improve=4000`, seed 1:
86 of 100; policy.predict=eps: 27)."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from flywheel.policy._denoise import Denoiser
from flywheel.policy.base import masked_mean
from flywheel.policy.nets import mlp, time_embedding


def cosine_alphas(steps: int) -> Tensor:
    """abar_t for t = 1..steps, the squared cosine schedule (Nichol and Dhariwal 2102.09672, eq. 17); [steps]."""
    t = torch.arange(steps + 1, dtype=torch.float64) / steps
    f = torch.cos((t + 0.008) / 1.008 * math.pi / 2) ** 2
    beta = (1 - f[1:] / f[:-1]).clamp(max=0.999)
    return torch.cumprod(1 - beta, 0).float()


class Diffusion(Denoiser):
    """`train_steps` noise levels in training, `steps` deterministic DDIM steps in sampling (eta = 0); `predict` x0
    or eps."""

    def __init__(
        self,
        *,
        width: int = 256,
        depth: int = 3,
        activation: str = "silu",
        steps: int = 10,
        train_steps: int = 100,
        predict: str = "x0",
        **base,
    ):
        super().__init__(
            width=width,
            depth=depth,
            activation=activation,
            steps=steps,
            train_steps=train_steps,
            predict=predict,
            **base,
        )
        if predict not in ("x0", "eps"):
            raise ValueError(f"policy.predict={predict!r}; expected x0 (the action) or eps (the noise)")
        self.steps, self.train_steps, self.predict = steps, train_steps, predict
        size = self.horizon * self.action_dim
        self.net = mlp(size + 32 + self.features, size, width, depth, activation)
        levels = torch.linspace(train_steps - 1, 0, steps).round().long()
        abar = cosine_alphas(train_steps)
        self.register_buffer("abar", abar, persistent=False)
        self.register_buffer("levels", levels, persistent=False)  # t of each sampling step, [steps]
        self.register_buffer("after", torch.cat([abar[levels[1:]], torch.ones(1)]), persistent=False)  # abar after it

    def predicted(self, x: Tensor, t: Tensor, features: Tensor) -> Tensor:
        """x [B, Ta, Da], t [B] in 0..train_steps-1, features [B, F] -> what the net predicts, x_0 or eps [B, Ta,
        Da]."""
        embedded = time_embedding(t.to(x.dtype) / self.train_steps)
        return self.net(torch.cat([x.flatten(1), embedded, features], dim=1)).view_as(x)

    def step_mean(self, x: Tensor, k: Tensor, features: Tensor) -> Tensor:
        """DDIM with variance `explore`^2 (2010.02502, eq. 12): mean = sqrt(abar') x_0 + sqrt(1 - abar' - sigma^2)
        eps."""
        t = self.levels[k]
        abar, after = (level[:, None, None] for level in (self.abar[t], self.after[k]))
        guess = self.predicted(self.hidden(x), t, features)
        if self.predict == "eps":
            guess = (x - (1 - abar).sqrt() * guess) / abar.sqrt()
        clean = guess.clamp(-3, 3)
        eps = (x - abar.sqrt() * clean) / (1 - abar).sqrt()
        return after.sqrt() * clean + (1 - after - self.explore**2).clamp(min=0).sqrt() * eps

    def bc_loss(self, obs, action, generator, condition=None, mask=None):
        x0 = self.action_norm(action)
        eps = torch.randn(x0.shape, generator=generator, device=x0.device)
        t = torch.randint(self.train_steps, (len(x0),), generator=generator, device=x0.device)
        abar = self.abar[t][:, None, None]
        x = abar.sqrt() * x0 + (1 - abar).sqrt() * eps
        guess = self.predicted(x if mask is None else x * mask[:, None], t, self.encode(obs, condition))
        return masked_mean((guess - (x0 if self.predict == "x0" else eps)).square(), mask)


make = Diffusion
