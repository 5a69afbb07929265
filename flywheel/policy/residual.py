"""A frozen base of any kind, and a bounded residual of what it sees and is about to do, which alone is learnt.

    a = a_base + alpha * half_range * tanh(f(s, a_base)),   the last layer of f begins at zero: at first it is the base

So a policy improves that cannot be differentiated or belongs to somebody else (DICE, arXiv 2603.10263; Silver et al.,
1812.06298)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from flywheel.policy.base import SHAPE, Policy, build, masked_mean
from flywheel.policy.nets import mlp


class Residual(Policy):
    """f is an MLP of `depth` x `width`; `alpha` is how far it may move an action, in half action ranges."""

    def __init__(
        self,
        *,
        base: dict,
        alpha: float = 0.1,
        width: int = 256,
        depth: int = 2,
        activation: str = "silu",
        **shape,
    ):
        super().__init__(base=base, alpha=alpha, width=width, depth=depth, activation=activation, **shape)
        self.base, self.alpha = build(base).requires_grad_(False), alpha
        self.fixed = self.base.fixed
        chunk = self.action_steps * self.action_dim
        self.net = mlp(self.features + chunk, chunk, width, depth, activation)
        nn.init.zeros_(self.net[-1].weight)
        nn.init.zeros_(self.net[-1].bias)

    @classmethod
    def of(cls, base: Policy, **own) -> Residual:
        """A residual over an existing policy (shared, not copied), which is frozen, behind the same normaliser."""
        shape = {key: base.spec[key] for key in (*SHAPE, "robot", "greedy") if key in base.spec}
        made = cls(base=base.spec, **own, **shape).to(base.device)
        made.base = base.requires_grad_(False)
        return made.like(base)

    @property
    def noise_shape(self) -> tuple[int, ...]:
        return self.base.noise_shape

    def requires_grad_(self, on: bool = True) -> Residual:
        super().requires_grad_(on)
        self.base.requires_grad_(False)  # it stays frozen, whoever learns
        return self

    def explores(self, amount: float) -> Residual:
        self.base.explores(amount)
        return super().explores(amount)

    def moved(self, obs: Tensor, action: Tensor) -> Tensor:
        """What the base would do, [B, Ta, Da], as the residual has it."""
        seen = torch.cat([self.encode(obs), self.action_norm(action).flatten(1)], 1)
        change = torch.tanh(self.net(seen)).view_as(action)
        return self.bounded(action + self.alpha * self.half_range.to(action) * change)

    def sample(self, obs: Tensor, noise: Tensor) -> Tensor:
        with torch.no_grad():
            action = self.bounded(self.base.sample(obs, noise))
        return self.moved(obs, action)

    def bc_loss(self, obs, action, generator, condition=None, mask=None):
        noise = torch.randn((len(obs), *self.noise_shape), generator=generator, device=obs.device, dtype=obs.dtype)
        made = self.action_norm(self.sample(obs, noise))
        return masked_mean((made - self.action_norm(action)).square(), mask)


make = Residual
