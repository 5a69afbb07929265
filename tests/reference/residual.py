"""A residual over a frozen net (DICE, arXiv 2603.10263): critics of what the data did next, never below the return; then up
the critics' mean, and near the data by the share of critics that find the data better."""

from copy import deepcopy

import torch

from reference.plain import Net, Value, adam, follow, step


def train(nets, batches, rng, *, lr, rate, alpha, weight):
    """{"policy", "q"}: of the policy what is learnt."""
    base, f = Net(nets["policy"].base.net), Net(nets["policy"].net)
    qs = [Value(nets["q"].net, m) for m in range(nets["q"].net.weight[0].shape[0])]
    slow, f_optim, q_optim = deepcopy(qs), adam(f.parameters(), lr), adam([p for q in qs for p in q.parameters()], lr)

    def act(s):
        with torch.no_grad():
            a = torch.tanh(base(s))
        return (a + alpha * torch.tanh(f(torch.cat([s, a], 1)))).clamp(-1, 1)

    for batch in batches:
        s, a, s2 = batch["obs"].flatten(1), batch["action"].flatten(1), batch["next_obs"].flatten(1)
        unused = lambda: torch.randn(batch["action"].shape, generator=rng, dtype=s.dtype)  # noqa: B023, E731
        with torch.no_grad():
            a2 = batch["next_action"].flatten(1)
            y = [torch.maximum(batch["reward"] + batch["discount"] * q(s2, a2), batch["return"]) for q in slow]
        step(q_optim, sum(((q(s, a) - y_e) ** 2).mean() for q, y_e in zip(qs, y, strict=True)) / len(qs))
        for old, new in zip(slow, qs, strict=True):
            follow(old, new, rate)

        for _ in range(3):
            unused()
        with torch.no_grad():
            better = sum((q(s, a) > q(s, act(s))).to(s.dtype) for q in slow) / len(slow)
        value = sum(q(s, act(s)) for q in qs) / len(qs)
        cloned = ((act(s) - a) ** 2).mean(1)
        step(f_optim, -value.mean() / value.abs().mean().detach() + weight * (better * cloned).mean())
    return {"policy": f, "q": qs}
