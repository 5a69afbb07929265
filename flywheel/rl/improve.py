"""Losses of improvement: how the policy moves towards better actions. Form and shapes as in evaluate.py."""

from __future__ import annotations

import torch


def imitate(nets, batch):
    """Behaviour cloning in the policy's own terms: -log pi, noise matching or velocity matching."""
    loss = nets["policy"].bc_loss(batch["obs"], batch["action"], batch["rng"], None)
    return loss.mean(), {}


def advantage_weighted(nets, batch, *, beta=3.0, limit=100.0):
    """Imitation weighted by exp(beta * A), A = min_e Q_e(s, a) - V(s), at most `limit` (IQL, eq. 7; AWR, 1910.00177)."""
    with torch.no_grad():
        advantage = nets["q.lag"](batch["obs"], batch["action"]).amin(0) - nets["v"](batch["obs"]).mean(0)
        weight = (beta * advantage).exp().clamp(max=limit)  # [B]
    loss = nets["policy"].bc_loss(batch["obs"], batch["action"], batch["rng"], None)
    return (weight * loss).mean(), {"advantage": advantage.mean(), "weight": weight.mean()}


def advantage_conditioned(nets, batch, *, percentile=30.0, drop=0.2):
    """Imitate everything, told how good it was: +1 above the `percentile` of the batch's advantages, -1 below, 0 for a
    share `drop` of the rows (RECAP, arXiv 2511.14759). Acting asks for +1. Needs policy.condition=true."""
    with torch.no_grad():
        advantage = nets["q.lag"](batch["obs"], batch["action"]).mean(0) - nets["v"](batch["obs"]).mean(0)  # [B]
        good = advantage >= torch.quantile(advantage, percentile / 100)
        told = torch.rand(good.shape, generator=batch["rng"], device=good.device) >= drop
        condition = torch.where(good, 1.0, -1.0) * told
    loss = nets["policy"].bc_loss(batch["obs"], batch["action"], batch["rng"], condition)
    return loss.mean(), {"advantage": advantage.mean(), "good": good.float().mean()}
