"""An encoder makes features of what is observed: a policy, a critic and a transition model begin with one.

    obs [B, To, Do]  --  frozen normaliser, side by side  -->  features [B, F], F = To * Do

Do are the numbers of all keys, packed (flywheel/obs.py). With cameras `obs` is a Seen, numbers and frames, and what
the eyes make of these (policy/eyes.py) stands beside the numbers. No policy, critic or loss looks inside an
observation: of `obs` they use `len`, `repeat_interleave`, indexing, `device`, `dtype`, `new_zeros` and `new_ones`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from flywheel import obs as observed
from flywheel.policy.eyes import Eyes, Seen
from flywheel.policy.nets import Normaliser


class Encoder(nn.Module):
    """Features of numbers: normalised by statistics that are frozen with the weights, all keys and steps side by side.

    `shapes` {key: shape of a row}, `steps` To, `cameras` {camera: (H, W, 3)}, which nets of the kind `eye`
    look at; `features` is F.
    """

    def __init__(
        self, shapes: observed.Shapes, steps: int, cameras: Mapping[str, Any] | None = None, eye: str = "small"
    ):
        super().__init__()
        self.shapes, self.steps = dict(shapes), steps
        self.norm = Normaliser(observed.size(shapes))
        self.features = steps * self.norm.mean.numel()
        self.cameras = {name: tuple(shape) for name, shape in sorted((cameras or {}).items())}  # in any order the same
        self.eyes = Eyes(self.cameras, eye) if cameras else None
        self.features += self.eyes.features if cameras else 0

    def forward(self, obs: Tensor | Seen) -> Tensor:
        """obs [..., To, Do], or with cameras a Seen -> features [..., F]."""
        if self.eyes is not None:
            return torch.cat([self.norm.forward(obs.numbers).flatten(-2), self.eyes(obs)], 1)
        return self.norm.forward(obs).flatten(-2)  # forward: a module's call costs as much as a small kernel

    def decode(self, features: Tensor) -> Tensor:
        """features [..., F] -> the observations [..., To, Do] that they are of: what a transition model predicts."""
        return self.norm.inverse(features.unflatten(-1, (self.steps, -1)))

    def blurred(self, obs: Tensor, amount: float, generator: torch.Generator | None) -> Tensor:
        """Add noise to obs [B, To, Do]: `amount` times the normaliser's standard deviations. Frames stay as they
        are."""
        if isinstance(obs, Seen):
            numbers = obs.numbers + self._noise(obs.numbers, amount, generator)
            return Seen(numbers, obs.frames, obs.rows, obs.rng, obs.features)
        return obs + self._noise(obs, amount, generator)

    def _noise(self, obs: Tensor, amount: float, generator: torch.Generator | None) -> Tensor:
        noise = torch.randn(obs.shape, generator=generator, device=obs.device, dtype=obs.dtype)
        return amount * self.norm.std * noise

    def zeros(self, count: int) -> Tensor | Seen:
        """Make `count` observations of zeros, for a first pass that shows whether shapes fit."""
        numbers = torch.zeros(count, self.steps, self.norm.mean.numel(), device=self.norm.mean.device)
        if self.eyes is None:
            return numbers
        return Seen(numbers, {k: numbers.new_zeros(count, *s, dtype=torch.uint8) for k, s in self.cameras.items()})

    def fit(self, rows, mask=None) -> dict[int, int]:
        """Freeze the statistics on rows [R, Do]; as `Normaliser.fit`."""
        return self.norm.fit(rows, mask)

    def like(self, other: Encoder) -> Encoder:
        """Take over what is frozen in `other`; its eyes, which then are, too."""
        self.norm.load_state_dict(other.norm.state_dict())
        if self.eyes is not None:
            self.eyes.load_state_dict(other.eyes.state_dict())
            self.eyes.requires_grad_(False)
        return self


class Known(nn.Module):
    """Features of what only the simulator knows: Dp numbers, normalised. For critics, that act in no robot (asymmetric
    actor and critic, arXiv 1710.06542)."""

    eyes = None

    def __init__(self, size: int):
        super().__init__()
        self.norm = Normaliser(size)
        self.features = size

    def forward(self, obs: Seen) -> Tensor:
        """A Seen -> features [B, Dp]."""
        return self.norm.forward(obs.known)

    def fit(self, rows, mask=None) -> dict[int, int]:
        """Freeze the statistics on rows [R, Dp]; as `Normaliser.fit`."""
        return self.norm.fit(rows, mask)

    def like(self, other: Encoder) -> Known:
        """Nothing is taken over: a policy knows less."""
        return self
