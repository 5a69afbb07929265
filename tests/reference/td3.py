"""TD3 (Fujimoto et al. 2018): two critic updates, then one of the policy; and TD3+BC (2021) when `scale` is given."""

from copy import deepcopy

import torch

from reference.plain import Net, Value, adam, follow, step


def train(nets, batches, rng, *, lr, rate, scale=None):
    """{"policy", "q"}; batches come in threes: evaluate, evaluate, improve."""
    qs = [Value(nets["q"].net, m) for m in range(nets["q"].net.weight[0].shape[0])]
    slow, pi = deepcopy(qs), Net(nets["policy"].net)
    slow_pi = deepcopy(pi)
    q_optim, pi_optim = adam([p for q in qs for p in q.parameters()], lr), adam(pi.parameters(), lr)
    for i, batch in enumerate(batches):
        shape = batch["action"].shape
        s, a, s2 = batch["obs"].flatten(1), batch["action"].flatten(1), batch["next_obs"].flatten(1)

        def noise(shape=shape, dtype=a.dtype):
            return torch.randn(shape, generator=rng, dtype=dtype).flatten(1)

        if i % 3 < 2:
            with torch.no_grad():
                noise()  # the policy has none, but it is asked with some
                a2 = (torch.tanh(slow_pi(s2)) + (0.2 * noise()).clamp(-0.5, 0.5)).clamp(-1, 1)
                y = batch["reward"] + batch["discount"] * torch.stack([q(s2, a2) for q in slow]).min(0).values
            step(q_optim, sum(((q(s, a) - y) ** 2).mean() for q in qs) / len(qs))
            for old, new in zip(slow, qs, strict=True):
                follow(old, new, rate)
        else:
            noise()
            new = torch.tanh(pi(s))
            q = qs[0](s, new)
            loss = -q.mean()
            if scale:
                loss = -scale / q.abs().mean().detach() * q.mean() + ((new - a) ** 2).mean()
            step(pi_optim, loss)
            follow(slow_pi, pi, rate)
    return {"policy": pi, "q": qs}
