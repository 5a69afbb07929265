"""DQN (Mnih et al. 2013) and Double DQN (van Hasselt et al. 2016) with a slowly following target, from the papers."""

from copy import deepcopy

import torch

from reference.plain import Value, adam, follow, step


def train(nets, batches, *, lr, rate, double=False):
    """{"q": [net]} after one update a batch; actions are one-hot [B, 1, n]."""
    q = Value(nets["q"].net, 0, every=True)
    slow, optim = deepcopy(q), adam(q.parameters(), lr)
    for batch in batches:
        s, s2, index = batch["obs"].flatten(1), batch["next_obs"].flatten(1), batch["action"][:, 0].argmax(1)
        with torch.no_grad():
            best = (q if double else slow)(s2).argmax(1)
            y = batch["reward"] + batch["discount"] * slow(s2)[torch.arange(len(s2)), best]
        step(optim, ((q(s)[torch.arange(len(s)), index] - y) ** 2).mean())
        follow(slow, q, rate)
    return {"q": [q]}
