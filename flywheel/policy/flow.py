"""Flow matching: a velocity field carries noise to actions in a few Euler steps (Lipman et al., arXiv 2210.02747).

x_0 ~ N(0, I),  x_1 = action,  x_t = (1 - t) x_0 + t x_1,   loss = || v(x_t, t, obs) - (x_1 - x_0) ||^2
"""

from __future__ import annotations

import torch
from torch import Tensor

from flywheel.policy._denoise import Denoiser
from flywheel.policy.base import masked_mean
from flywheel.policy.nets import mlp, time_embedding


class Flow(Denoiser):
    """`steps` Euler steps of a velocity net of `depth` x `width`."""

    def __init__(self, *, width: int = 256, depth: int = 3, activation: str = "silu", steps: int = 8, **base):
        super().__init__(width=width, depth=depth, activation=activation, steps=steps, **base)
        self.steps = steps
        size = self.horizon * self.action_dim
        self.net = mlp(size + 32 + self.features, size, width, depth, activation)

    def velocity(self, x: Tensor, t: Tensor, features: Tensor) -> Tensor:
        """x [B, H, Da] (H = ahead * Ta), t [B] in [0, 1], features [B, F] -> dx/dt [B, Ta, Da]."""
        return self.net(torch.cat([x.flatten(1), time_embedding(t), features], dim=1)).view_as(x)

    def step_mean(self, x: Tensor, k: Tensor, features: Tensor) -> Tensor:
        return x + self.velocity(self.hidden(x), k.to(x.dtype) / self.steps, features) / self.steps

    def bc_loss(self, obs, action, generator, condition=None, mask=None):
        x1 = self.action_norm(action)
        x0 = torch.randn(x1.shape, generator=generator, device=x1.device)
        t = torch.rand(len(x1), generator=generator, device=x1.device)
        mix = t[:, None, None]
        x = (1 - mix) * x0 + mix * x1
        v = self.velocity(x if mask is None else x * mask[:, None], t, self.encode(obs, condition))
        return masked_mean((v - (x1 - x0)).square(), mask)


make = Flow
