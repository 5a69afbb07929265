"""An encoder makes features of what is observed: a policy, a critic and a transition model begin with one.

    obs [B, To, Do]  --  frozen normaliser, side by side  -->  features [B, F], F = To * Do

Do are the numbers of all keys, packed (flywheel/obs.py). No policy, critic or loss looks inside an observation: of
`obs` they use `len`, `repeat_interleave`, `device` and `dtype`. So an encoder that sees is another class with these
methods, whose `obs` holds {key: [B, To, ...]} (tests/test_obs.py has one)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from flywheel import obs as observed
from flywheel.policy.nets import Normaliser


class Encoder(nn.Module):
    """Features of numbers: normalised by statistics that are frozen with the weights, all keys and steps side by side.

    `shapes` {key: shape of a row}, `steps` To; `features` is F.
    """

    def __init__(self, shapes: observed.Shapes, steps: int):
        super().__init__()
        self.shapes, self.steps = dict(shapes), steps
        self.norm = Normaliser(observed.size(shapes))
        self.features = steps * self.norm.mean.numel()

    def forward(self, obs: Tensor) -> Tensor:
        """obs [..., To, Do] -> features [..., F]."""
        return self.norm.forward(obs).flatten(-2)  # forward: a module's call costs as much as a small kernel

    def decode(self, features: Tensor) -> Tensor:
        """features [..., F] -> the observations [..., To, Do] that they are of: what a transition model predicts."""
        return self.norm.inverse(features.unflatten(-1, (self.steps, -1)))

    def blurred(self, obs: Tensor, amount: float, generator: torch.Generator | None) -> Tensor:
        """Add noise to obs [B, To, Do]: `amount` times the normaliser's standard deviations."""
        noise = torch.randn(obs.shape, generator=generator, device=obs.device, dtype=obs.dtype)
        return obs + amount * self.norm.std * noise

    def zeros(self, count: int) -> Tensor:
        """Make `count` observations of zeros, for a first pass that shows whether shapes fit."""
        return torch.zeros(count, self.steps, self.norm.mean.numel(), device=self.norm.mean.device)

    def fit(self, rows, mask=None) -> dict[int, int]:
        """Freeze the statistics on rows [R, Do]; as `Normaliser.fit`."""
        return self.norm.fit(rows, mask)

    def like(self, other: Encoder) -> Encoder:
        """Take over what is frozen in `other`."""
        self.norm.load_state_dict(other.norm.state_dict())
        return self
