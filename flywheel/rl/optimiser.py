"""Optimisers of one vector: a step is one kernel, and little else."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.optim.adamw import adamw


class AdamW:
    """Adam with decoupled weight decay (Loshchilov and Hutter, arXiv 1711.05101); `slots` is all that it remembers."""

    def __init__(self, values: Tensor, lr: float, weight_decay: float):
        self.values, self.lr, self.weight_decay = values, lr, weight_decay
        self.slots = {"exp_avg": torch.zeros_like(values), "exp_avg_sq": torch.zeros_like(values)}
        self.slots["step"] = torch.zeros((), device=values.device)

    def step(self) -> None:
        """Move the values by their gradient."""
        lists = [[value] for value in (self.values, self.values.grad, *list(self.slots.values())[:2])]
        adamw(
            *lists, [], [self.slots["step"]], fused=True, amsgrad=False, maximize=False,
            beta1=0.9, beta2=0.999, lr=self.lr, weight_decay=self.weight_decay, eps=1e-8,
        )  # fmt: skip


class SGD:
    """Plain steps down the gradient; it remembers nothing."""

    def __init__(self, values: Tensor, lr: float, weight_decay: float):
        self.values, self.lr, self.slots = values, lr, {}

    def step(self) -> None:
        self.values.add_(self.values.grad, alpha=-self.lr)


KINDS = {"adamw": AdamW, "sgd": SGD}
