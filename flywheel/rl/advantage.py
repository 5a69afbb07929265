"""How much better than expected was it? Made once a round from what was collected (gae), or for each batch (resample).

A function `name(nets, batch, **args)` returns what the clipped surrogate asks for: chain, log_prob [B, K] under the
policy that acted, advantage [B]; and the `return` that V is fitted to."""

from __future__ import annotations

import torch

from flywheel.rl.evaluate import noise_like


@torch.no_grad()
def gae(nets, batch, *, lam=0.95):
    """Generalised advantage estimation (1506.02438, eq. 16) over chunks, discount = gamma**n * (1 - terminated) of
    each:

        delta_t = R_t + discount_t V(s_{t+n}) - V(s_t),      A_t = delta_t + discount_t lam A_{t+n}

    `batch` is whole episodes, one after the other, time-first; `last` [B] marks the last chunk of each. A time-out
    bootstraps. Needs the `noise` that the chunks were made from.
    """
    policy = nets["policy"]
    chain = policy.chain(batch["obs"], batch["noise"])
    value, after = nets["v"](batch["obs"]).mean(0), nets["v"](batch["next_obs"]).mean(0)
    delta = (batch["reward"] + batch["discount"] * after - value).cpu()
    carry = (batch["discount"] * lam * ~batch["last"]).cpu()
    advantage, ahead = torch.zeros_like(delta), torch.zeros((), dtype=delta.dtype)
    for t in range(len(delta) - 1, -1, -1):
        ahead = delta[t] + carry[t] * ahead
        advantage[t] = ahead
    advantage = advantage.to(value)
    return {
        "chain": chain,
        "log_prob": policy.chain_log_prob(batch["obs"], chain)[0],
        "advantage": advantage,
        "return": advantage + value,
    }


@torch.no_grad()
def resample(nets, batch):
    """A = min_e Q_e(s, a) - V(s) of an action that the round's first policy draws at a state of the data (RL-100,
    2510.14830)."""
    old, obs = nets["policy.old"], batch["obs"]
    noise = noise_like(old, batch)
    chain = old.chain(obs, noise)
    value = nets["q.lag"](obs, old.sample(obs, noise)).amin(0)
    return {
        "chain": chain,
        "log_prob": old.chain_log_prob(obs, chain)[0],
        "advantage": value - nets["v"](obs).mean(0),
    }
