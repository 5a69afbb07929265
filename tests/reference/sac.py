"""Soft actor-critic (Haarnoja et al. 2018) with a learnt temperature, written down once from the paper; CQL on top of it."""

import math
from copy import deepcopy

import torch

from reference.plain import Net, Value, adam, follow, squashed, step


def train(nets, batches, rng, *, lr, rate, conservative=None, ratio=1):
    """{"policy", "q", "alpha"} after one update a batch, the policy's every `ratio` batches; conservative = {"weight",
    "samples"} makes it CQL(H)."""
    members = nets["q"].net.weight[0].shape[0]
    qs = [Value(nets["q"].net, m) for m in range(members)]
    slow, pi = deepcopy(qs), Net(nets["policy"].net)
    log_alpha = nets["alpha"].log.detach().clone().requires_grad_()
    q_optim = adam([p for q in qs for p in q.parameters()], lr)
    pi_optim, alpha_optim = adam(pi.parameters(), lr), adam([log_alpha], lr)
    for i, batch in enumerate(batches):
        shape = batch["action"].shape
        s, a, s2 = batch["obs"].flatten(1), batch["action"].flatten(1), batch["next_obs"].flatten(1)

        def noise(n=None, shape=shape, dtype=a.dtype):
            return torch.randn((n or shape[0], *shape[1:]), generator=rng, dtype=dtype).flatten(1)

        with torch.no_grad():
            a2, log_pi2 = squashed(pi, s2, noise())
            q2 = torch.stack([q(s2, a2) for q in slow]).min(0).values
            y = batch["reward"] + batch["discount"] * (q2 - log_alpha.exp() * log_pi2)
        loss = sum(((q(s, a) - y) ** 2).mean() for q in qs) / members
        if conservative:
            loss = loss + gap(qs, pi, s, a, s2, rng, noise, **conservative)
        step(q_optim, loss)
        for old, new in zip(slow, qs, strict=True):
            follow(old, new, rate)
        if (i + 1) % ratio:
            continue

        new, log_pi = squashed(pi, s, noise())
        q = torch.stack([q(s, new) for q in qs]).min(0).values
        step(pi_optim, (log_alpha.exp().detach() * log_pi - q).mean())
        step(alpha_optim, -(log_alpha * (log_pi.detach() - a.shape[1])).mean())
    return {"policy": pi, "q": qs, "alpha": log_alpha}


def gap(qs, pi, s, a, s2, rng, noise, weight, samples):
    """weight * sum over members of E_s[ log sum_a exp(Q(s, a)) / density(a)  -  Q(s, a_data) ]."""
    total = 0.0
    many = s.repeat_interleave(samples, 0)
    drawn = [2 * torch.rand((len(many), *_shape(a, many)), generator=rng, dtype=a.dtype).flatten(1) - 1]
    density = [torch.full((len(many),), -a.shape[1] * math.log(2.0), dtype=a.dtype)]
    for where in (s, s2):
        with torch.no_grad():
            action, log_pi = squashed(pi, where.repeat_interleave(samples, 0), noise(len(many)))
        drawn.append(action)
        density.append(log_pi)
    for q in qs:
        columns = torch.cat([(q(many, x) - d).view(len(s), samples) for x, d in zip(drawn, density, strict=True)], 1)
        total = total + (torch.logsumexp(columns, 1) - q(s, a)).mean()
    return weight * total


def _shape(a, many):
    return (a.shape[1],)
