"""Losses of improvement: how the policy moves towards better actions. Form and shapes as in evaluate.py."""

from __future__ import annotations

import math

import torch

from flywheel.rl.evaluate import noise_like, temperature


def cloning(policy, batch, condition=None, noise=0.0):
    """The policy's imitation loss of each row [B]; components of the action that a row's robot has not got do not
    count. A policy that looks `ahead` is given the chunk after the next, too; `noise` is added to what it sees, in
    its normaliser's deviations."""
    more = {"mask": batch["action_mask"]} if "action_mask" in batch else {}
    obs, action = batch["obs"], batch["action"]
    if getattr(policy, "window", None):
        action, more["pad"] = batch["window"], batch["window_pad"]
    elif policy.horizon > policy.action_steps:
        action = torch.cat([action, batch["next_action"]], 1)
    if noise:
        obs = policy.encoder.blurred(obs, noise, batch["rng"])
    return policy.bc_loss(obs, action, batch["rng"], condition, **more)


def weighed(policy, batch, noise=0.0):
    """As `cloning`, where rows are to count differently; ValueError for a policy that cannot tell its rows apart."""
    if not getattr(policy, "by_row", True):
        raise ValueError(
            f"policy.type={policy.spec['type']}: LeRobot says its loss of a whole batch, and here each row has a "
            "weight of its own; take algorithm=bc or rounds, or a best of N or a residual over it"
        )
    return cloning(policy, batch, noise=noise)


def imitate(nets, batch, *, net="policy", noise=0.0, weight=1.0, successes=False):
    """Behaviour cloning in the policy's own terms: -log pi, noise matching or velocity matching. `noise` on the
    observations keeps a net from learning some hundred episodes by heart (as DART does by noise on the actions,
    1703.09327). With `successes` only rows count from which something was earned, and it is their mean."""
    if not successes:
        return weight * cloning(nets[net], batch, noise=noise).mean(), {}
    loss = weighed(nets[net], batch, noise=noise)  # [B]
    won = (batch["return"] > 0).to(loss)
    return weight * (won * loss).sum() / won.sum().clamp(min=1), {"won": won.mean}


def imitate_better(nets, batch, *, weight=1.0):
    """Imitation of each row by how sure the critics are that it did better than the policy would: a Q-filter
    (1709.10089, eq. 5) made soft, w = the share of members with Q_e(s, a) > Q_e(s, pi(s)) (DICE, 2603.10263):

        weight * E[w || pi(s, z) - a ||^2], in the policy's own terms"""
    policy, obs = nets["policy"], batch["obs"]
    with torch.no_grad():
        own = policy.sample(obs, noise_like(policy, batch))
        better = (nets["q.lag"](obs, batch["action"]) > nets["q.lag"](obs, own)).to(obs.dtype).mean(0)  # [B]
    loss = weighed(policy, batch)
    return weight * (better * loss).mean(), {"better": better.mean}


def distil(nets, batch, *, weight=1.0):
    """weight * || pi(s, z) - teacher(s, z) ||^2 in normalised units, the same noise z for both: a chain of K steps
    becomes one (consistency distillation, RL-100, 2510.14830; FQL, 2502.02538, eq. 6).

    What a source has labelled (rl/labelled.py: where the teacher draws another noise, as a best of N does) is imitated,
    in the policy's own terms: weight * bc_loss(s, chosen)."""
    policy, teacher, obs = nets["policy"], nets["teacher"], batch["obs"]
    if getattr(policy, "window", None):
        raise ValueError("distil: a policy of LeRobot imitates what was recorded; take policy=flow or one_step")
    if "chosen" in batch:
        return weight * cloning(policy, {**batch, "action": batch["chosen"]}).mean(), {}
    noise = noise_like(policy, batch)
    with torch.no_grad():
        wanted = teacher.sample(obs, noise)
    error = policy.action_norm(policy.sample(obs, noise)) - policy.action_norm(wanted)
    return weight * error.square().mean(), {}


def clipped_surrogate(nets, batch, *, clip=0.2, first=None, entropy=0.0, denoise=1.0, target_kl=None, centre=True):
    """-E sum_k min(r_k A, clip(r_k, 1 - c, 1 + c) A),  r_k = pi(x_{k+1} | x_k, s) / pi_old: PPO (1707.06347, eq. 7),
    for a chain of K steps one ratio each and one advantage for all (DPPO, 2409.00588; RL-100, 2510.14830).

    A is whitened over the batch or, where it is not to `centre`, divided by its root mean square: signs and zeros stay.
    In a chain the noisier steps may have less: A * denoise^(K-1-k), and a clip c that grows from `first` to `clip`; a
    batch that says which one `step` it is of has no K. `entropy` is the weight of a bonus. Beyond `target_kl` the
    round's improvement stops.
    """
    obs, step = batch.get("chain_obs", batch["obs"]), [batch["step"]] if "step" in batch else []
    log_prob, spread = nets["policy"].chain_log_prob(obs, batch["chain"], *step)  # [B, K]
    deviation, mean = torch.std_mean(batch["advantage"])
    if not centre:
        deviation, mean = batch["advantage"].square().mean().sqrt(), 0.0
    worse = ((mean - batch["advantage"]) / (deviation + 1e-8))[:, None]  # -A
    steps, limit = log_prob.shape[1], clip
    if steps > 1:
        left = torch.arange(steps - 1, -1, -1, device=log_prob.device)  # steps after this one, [K]
        limit = clip if first is None else _grown(first, clip, left)
        worse = worse * denoise**left
    change = log_prob - batch["log_prob"]
    ratio = change.exp()

    def kl():  # Schulman's k3 estimate
        return (ratio - 1 - change).detach().sum(1).mean()

    loss = torch.maximum(ratio * worse, ratio.clamp(1 - limit, 1 + limit) * worse).mean() * steps
    if entropy:
        loss = loss - entropy * spread.sum(1).mean()
    info = {"kl": kl, "entropy": spread.mean, "clipped": lambda: ((ratio - 1).abs() > limit).float().mean()}
    return loss, info | ({"stop": kl() > target_kl} if target_kl else {})


def _grown(first, last, left):
    """A clip that grows exponentially from the noisiest step to the last (DPPO, section 5)."""
    done = 1 - left / max(1, len(left) - 1)
    return first + (last - first) * (done.exp() - 1) / (math.e - 1)


def state_baseline(nets, batch):
    """V(s), learnt beside Q; [B]."""
    return nets["v"](batch["obs"]).mean(0)


def policy_baseline(nets, batch):
    """min_e Q_e(s, a), a ~ pi: one sample of V(s) (AWAC, 2006.09359); [B]."""
    policy = nets["policy"]
    return nets["q.lag"](batch["obs"], policy.sample(batch["obs"], noise_like(policy, batch))).amin(0)


def advantage_weighted(nets, batch, *, beta=3.0, limit=100.0, baseline=state_baseline):
    """Imitation weighted by exp(beta * A), A = min_e Q_e(s, a) - V(s), at most `limit` (IQL, eq. 7; AWR,
    1910.00177)."""
    with torch.no_grad():
        advantage = nets["q.lag"](batch["obs"], batch["action"]).amin(0) - baseline(nets, batch)
        weight = (beta * advantage).exp().clamp(max=limit)  # [B]
    loss = weighed(nets["policy"], batch)
    return (weight * loss).mean(), {"advantage": advantage.mean, "weight": weight.mean}


def advantage_conditioned(nets, batch, *, percentile=30.0, drop=0.2):
    """Imitate everything, told how good it was: +1 above the `percentile` of the batch's advantages, -1 below, 0 for a
    share `drop` of the rows (RECAP, arXiv 2511.14759). Acting asks for +1. Needs policy.condition=true."""
    with torch.no_grad():
        advantage = nets["q.lag"](batch["obs"], batch["action"]).mean(0) - nets["v"](batch["obs"]).mean(0)  # [B]
        good = advantage >= torch.quantile(advantage, percentile / 100)
        told = torch.rand(good.shape, generator=batch["rng"], device=good.device) >= drop
        condition = torch.where(good, 1.0, -1.0) * told
    loss = cloning(nets["policy"], batch, condition)
    return loss.mean(), {"advantage": advantage.mean, "good": lambda: good.float().mean()}


def maximize_q(nets, batch, *, scale=None, sample=False):
    """-Q_1(s, pi(s)): the deterministic policy gradient (DDPG, TD3). With `scale` it is weighed scale / mean |Q|
    (TD3+BC, 2106.06860, eq. 5; the imitation is a second row). With `sample` pi's noise is drawn and Q is the
    members' mean (FQL)."""
    policy, obs = nets["policy"], batch["obs"]
    noise = noise_like(policy, batch) * (1 if sample else 0)
    q = nets["q"](obs, policy.sample(obs, noise), which=None if sample else slice(1)).mean(0)
    weight = scale / q.abs().mean().detach() if scale else 1.0
    return -weight * q.mean(), {"q_pi": q.mean}


def maximize_soft_q(nets, batch, *, alpha=None, pessimism="min"):
    """alpha log pi(a | s) - Q(s, a), a ~ pi (SAC, 1812.05905, eq. 7); Q is the members' min, or mean (RLPD). What pi
    said of its actions stays in the batch for `match_entropy`."""
    policy, obs = nets["policy"], batch["obs"]
    action, log_prob = policy.sample_with_log_prob(obs, noise_like(policy, batch))
    batch["pi_log_prob"] = log_prob.detach()
    q = nets["q"](obs, action)
    q = q.amin(0) if pessimism == "min" else q.mean(0)
    return (temperature(nets, alpha) * log_prob - q).mean(), {"entropy": lambda: -log_prob.mean(), "q_pi": q.mean}


def match_entropy(nets, batch, *, target="auto"):
    """-alpha (log pi + target): the temperature that keeps the policy's entropy at `target`, by default -Ta * Da
    (SAC, eq. 18), by the actions that the policy was just improved with, if it was."""
    policy, obs = nets["policy"], batch["obs"]
    goal = -float(policy.action_steps * policy.action_dim) if target == "auto" else float(target)
    log_prob = batch.get("pi_log_prob")
    if log_prob is None:
        with torch.no_grad():
            _, log_prob = policy.sample_with_log_prob(obs, noise_like(policy, batch))
    log_alpha = nets["alpha"].log
    return -log_alpha * (log_prob.mean() + goal), {"alpha": log_alpha.exp}
