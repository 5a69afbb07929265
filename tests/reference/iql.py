"""Implicit Q-learning (Kostrikov et al. 2021) with a Gaussian policy, written down once from the paper."""

import math
from copy import deepcopy

import torch

from reference.plain import Net, Value, adam, follow, step


def train(nets, batches, rng, *, lr, rate, tau, beta):
    """{"policy", "q", "v"}: plain nets after one update a batch."""
    members = nets["q"].net.weight[0].shape[0]
    qs = [Value(nets["q"].net, m) for m in range(members)]
    slow = deepcopy(qs)
    v, pi = Value(nets["v"].net, 0), Net(nets["policy"].net)
    q_optim = adam([p for q in qs for p in q.parameters()], lr)
    v_optim, pi_optim = adam(v.parameters(), lr), adam(pi.parameters(), lr)
    for batch in batches:
        s, a, s2 = batch["obs"].flatten(1), batch["action"].flatten(1), batch["next_obs"].flatten(1)

        with torch.no_grad():
            target = torch.stack([q(s, a) for q in slow]).min(0).values
        u = target - v(s)
        step(v_optim, (torch.abs(tau - (u <= 0).to(u.dtype)) * u**2).mean())

        with torch.no_grad():
            y = batch["reward"] + batch["discount"] * v(s2)
        step(q_optim, sum(((q(s, a) - y) ** 2).mean() for q in qs) / members)
        for old, new in zip(slow, qs, strict=True):
            follow(old, new, rate)

        with torch.no_grad():
            adv = torch.stack([q(s, a) for q in slow]).min(0).values - v(s)
            w = torch.exp(beta * adv).clamp(max=100.0)
        mean, raw = pi(s).chunk(2, 1)
        log_std = -1.5 + 2.5 * torch.tanh(raw)
        log_pi = (-0.5 * ((a - mean) / log_std.exp()) ** 2 - log_std - 0.5 * math.log(2 * math.pi)).mean(1)
        step(pi_optim, -(w * log_pi).mean())
    return {"policy": pi, "q": qs, "v": [v]}
