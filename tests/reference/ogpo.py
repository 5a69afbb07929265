"""OGPO (arXiv 2605.03065) for a flow of K noisy Euler steps: critics of what the data did next, then one step of each of G
chains a state, weighed by what all critics grant it over its group; successes are imitated beside it."""

import math
from copy import deepcopy

import torch

from reference.plain import Net, Value, adam, follow, step

K, SIGMA = 8, 0.1


def embed(t):
    freq = torch.exp(torch.arange(16, dtype=t.dtype) * (-math.log(1000.0) / 15))
    return torch.cat([(1000 * t[:, None] * freq).sin(), (1000 * t[:, None] * freq).cos()], 1)


def mean(net, x, k, s):
    t = torch.full((len(x),), k / K, dtype=x.dtype) if isinstance(k, int) else k.to(x.dtype) / K
    return x + net(torch.cat([x, embed(t), s], 1)) / K


def chain(net, s, noise):
    """x_0 .. x_K, each [N, A], from noise [N, K + 1, A]."""
    made = [noise[:, 0]]
    for k in range(K):
        made.append(mean(net, made[-1], k, s) + SIGMA * noise[:, k + 1])
    return made


def train(nets, batches, rng, *, lr, rate, clip, states, samples, weight, renewed):
    """{"policy", "q"}; in each batch the critics move, then the policy; in those of `renewed` it is remembered."""
    pi, qs = Net(nets["policy"].net), [Value(nets["q"].net, m) for m in range(nets["q"].net.weight[0].shape[0])]
    slow, pi_optim, q_optim = deepcopy(qs), adam(pi.parameters(), lr), adam([p for q in qs for p in q.parameters()], lr)
    for i, batch in enumerate(batches):
        s, a, s2 = batch["obs"].flatten(1), batch["action"].flatten(1), batch["next_obs"].flatten(1)
        size, dtype = a.shape[1], a.dtype
        shape = batch["action"].shape[1:]
        with torch.no_grad():
            a2 = batch["next_action"].flatten(1)
            y = [torch.maximum(batch["reward"] + batch["discount"] * q(s2, a2), batch["return"]) for q in slow]
        step(q_optim, sum(((q(s, a) - y_e) ** 2).mean() for q, y_e in zip(qs, y, strict=True)) / len(qs))
        for old, new in zip(slow, qs, strict=True):
            follow(old, new, rate)

        if i in renewed:
            before = deepcopy(pi)
        with torch.no_grad():
            rows = torch.arange(0, len(s), len(s) // states).repeat_interleave(samples)
            noise = torch.randn((len(rows), K + 1, *shape), generator=rng, dtype=dtype).flatten(2)
            x, g = torch.stack(chain(before, s[rows], noise)), s[rows]
            k = torch.randint(K, (len(rows),), generator=rng)
            n = torch.arange(len(rows))
            x, xx = x[k, n], x[k + 1, n]
            granted = torch.zeros(len(rows), dtype=dtype)
            said = [q(g, chain(before, g, noise)[-1]) for q in slow]
            for first in range(0, len(rows), samples):
                for row in range(first, first + samples):
                    a_e = [float(v[row] - v[first : first + samples].mean()) for v in said]
                    granted[row] = min(a_e) if min(a_e) > 0 else max(a_e) if max(a_e) < 0 else 0.0
            old = normal(xx, mean(before, x, k, g))
        ratio = (normal(xx, mean(pi, x, k, g)) - old).exp()
        a_g = granted / ((granted**2).mean().sqrt() + 1e-8)
        loss = -torch.minimum(ratio * a_g, ratio.clamp(1 - clip, 1 + clip) * a_g).mean()
        x0 = torch.randn(batch["action"].shape, generator=rng).flatten(1)
        t = torch.rand(len(s), generator=rng)
        v = pi(torch.cat([(1 - t)[:, None] * x0 + t[:, None] * a, embed(t), s], 1))
        won = batch["return"] > 0
        step(pi_optim, loss + weight * ((v - (a - x0)) ** 2).sum(1)[won].sum() / size / won.sum())
    return {"policy": pi, "q": qs}


def normal(x, mean):
    return torch.distributions.Normal(mean, SIGMA).log_prob(x).sum(1)
