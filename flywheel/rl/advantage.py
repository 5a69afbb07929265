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


@torch.no_grad()
def group_advantage(nets, batch, *, states=16, samples=16, consensus=False):
    """A = Q(s, a) - mean over its group of Q(s, .), of `samples` actions that the round's first policy draws at each of
    `states` states of the data; it is not divided by the group's deviation (OGPO, 2605.03065).

    Each sample comes with one `step` of its chain, drawn at random: that costs 1/K. With `consensus` A is what all
    members agree on: their minimum where each finds it positive, their maximum where each finds it negative, else 0.
    """
    old, rng = nets["policy.old"], batch["rng"]
    obs = batch["obs"][:: max(1, len(batch["obs"]) // states)][:states].repeat_interleave(samples, 0)
    chain = old.chain(obs, noise_like(old, {"obs": obs, "rng": rng}))  # [N, K + 1, ...]
    q = nets["q.lag"](obs, old.ended(chain)).unflatten(1, (-1, samples))  # [E, states, samples]
    better = q - q.mean(2, keepdim=True)
    advantage = agreed(better) if consensus else better.mean(0)
    made, steps = {"chain_obs": obs, "advantage": advantage.flatten()}, chain.shape[1] - 1
    if steps < 2:  # a policy of one step
        return made | {"chain": chain, "log_prob": old.chain_log_prob(obs, chain)[0]}
    step = torch.randint(steps, (len(obs),), generator=rng, device=chain.device)
    row = torch.arange(len(obs), device=chain.device)
    chain = torch.stack([chain[row, step], chain[row, step + 1]], 1)
    return made | {"chain": chain, "step": step, "log_prob": old.chain_log_prob(obs, chain, step)[0]}


def agreed(advantage):
    """The members' [E, ...] conservative advantage: the one nearest to 0 where all agree on its sign, else 0 (OGPO,
    2605.03065)."""
    least, most = advantage.amin(0), advantage.amax(0)
    return least.clamp(min=0) + most.clamp(max=0)
