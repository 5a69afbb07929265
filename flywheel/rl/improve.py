"""Losses of improvement: how the policy moves towards better actions. Form and shapes as in evaluate.py."""

from __future__ import annotations

import torch

from flywheel.rl.evaluate import noise_like, temperature


def imitate(nets, batch):
    """Behaviour cloning in the policy's own terms: -log pi, noise matching or velocity matching."""
    loss = nets["policy"].bc_loss(batch["obs"], batch["action"], batch["rng"], None)
    return loss.mean(), {}


def state_baseline(nets, batch):
    """V(s), learnt beside Q; [B]."""
    return nets["v"](batch["obs"]).mean(0)


def policy_baseline(nets, batch):
    """min_e Q_e(s, a), a ~ pi: one sample of V(s) (AWAC, 2006.09359); [B]."""
    policy = nets["policy"]
    return nets["q.lag"](batch["obs"], policy.sample(batch["obs"], noise_like(policy, batch))).amin(0)


def advantage_weighted(nets, batch, *, beta=3.0, limit=100.0, baseline=state_baseline):
    """Imitation weighted by exp(beta * A), A = min_e Q_e(s, a) - V(s), at most `limit` (IQL, eq. 7; AWR, 1910.00177)."""
    with torch.no_grad():
        advantage = nets["q.lag"](batch["obs"], batch["action"]).amin(0) - baseline(nets, batch)
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


def maximize_q(nets, batch, *, scale=None):
    """-Q_1(s, pi(s)): the deterministic policy gradient (DDPG, TD3). With `scale` it is weighed scale / mean |Q| (TD3+BC,
    2106.06860, eq. 5; the imitation is a second row)."""
    policy, obs = nets["policy"], batch["obs"]
    q = nets["q"](obs, policy.sample(obs, noise_like(policy, batch) * 0))[0]
    weight = scale / q.abs().mean().detach() if scale else 1.0
    return -weight * q.mean(), {"q_pi": q.mean()}


def maximize_soft_q(nets, batch, *, alpha=0.2, pessimism="min"):
    """alpha log pi(a | s) - Q(s, a), a ~ pi (SAC, 1812.05905, eq. 7); Q is the members' min, or mean (RLPD)."""
    policy, obs = nets["policy"], batch["obs"]
    action, log_prob = policy.sample_with_log_prob(obs, noise_like(policy, batch))
    q = nets["q"](obs, action)
    q = q.amin(0) if pessimism == "min" else q.mean(0)
    return (temperature(nets, alpha) * log_prob - q).mean(), {"entropy": -log_prob.mean(), "q_pi": q.mean()}


def match_entropy(nets, batch, *, target="auto"):
    """-alpha (log pi + target): the temperature that keeps the policy's entropy at `target`, by default -Ta * Da (SAC, eq. 18)."""
    policy, obs = nets["policy"], batch["obs"]
    goal = -float(policy.action_steps * policy.action_dim) if target == "auto" else float(target)
    with torch.no_grad():
        _, log_prob = policy.sample_with_log_prob(obs, noise_like(policy, batch))
    alpha = nets["alpha"]()
    return -(alpha.log() * (log_prob + goal)).mean(), {"alpha": alpha}
