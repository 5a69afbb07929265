"""Acts at random, each action as likely as another: what a run from scratch begins with."""

from __future__ import annotations

import torch
from torch import Tensor

from flywheel.policy.base import Policy
from flywheel.policy.categorical import one_hot


class Uniform(Policy):
    """Uniform in [low, high], or one of n where actions are one-hot; learns nothing."""

    def __init__(self, *, discrete: bool, **base):
        super().__init__(**base)
        self.discrete = discrete

    def sample(self, obs: Tensor, noise: Tensor) -> Tensor:
        if self.discrete:
            return one_hot(noise)
        low, high = self.bounds(noise)
        return low + (high - low) * torch.special.ndtr(noise)
