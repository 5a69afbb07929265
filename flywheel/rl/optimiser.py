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


class Grouped:
    """An optimiser of PyTorch with its groups and the schedule of their rates, as a policy brings them
    (policy/lerobot.py). `factors` [function of updates so far, one a group] or None; `lr` is a share of all rates. What
    has no part in a loss does not move."""

    def __init__(self, flat, made: torch.optim.Optimizer, factors: list | None, clip: float):
        self.flat, self.made, self.factors, self.clip, self.lr = flat, made, factors, clip, 1.0
        self.groups = [group.get("initial_lr", group["lr"]) for group in made.param_groups]
        self.slots = {"updates": torch.zeros((), device=flat.values.device)}
        if isinstance(made, (torch.optim.Adam, torch.optim.AdamW)):
            self._remember()

    def _remember(self) -> None:
        """What Adam remembers, as parts of vectors: to be saved and loaded as they are."""
        values, params = self.flat.values, self.flat.params
        self.slots |= {key: torch.zeros_like(values) for key in ("exp_avg", "exp_avg_sq")}
        self.slots["steps"] = torch.zeros(len(params), device=values.device)
        for i, (p, grad) in enumerate(zip(params, self.flat.grads, strict=True)):
            at = grad.storage_offset()
            parts = {key: self.slots[key][at : at + p.numel()].view_as(p) for key in ("exp_avg", "exp_avg_sq")}
            self.made.state[p] = {"step": self.slots["steps"][i], **parts}

    @torch.no_grad()
    def step(self) -> None:
        """Move what has a gradient, each group at its rate."""
        count = int(self.slots["updates"])
        for i, (group, rate) in enumerate(zip(self.made.param_groups, self.groups, strict=True)):
            group["lr"] = self.lr * rate * (self.factors[i](count) if self.factors else 1.0)
        for p, grad, moves in zip(self.flat.params, self.flat.grads, self.flat.moves, strict=True):
            p.grad = grad if moves else None
        self.made.step()
        self.slots["updates"] += 1


KINDS = {"adamw": AdamW, "sgd": SGD}
