"""Losses of evaluation: how good is what the data did, or what the policy would do?

A loss is `name(nets, batch, **args) -> (loss, info)`; info holds functions, each a number to log, called now and then.
Only the net that its table names it under moves; `nets["q.lag"]` is the slow copy that `lag` keeps. Shapes: B batch,
To/Ta horizons, Do/Da sizes, E ensemble."""

from __future__ import annotations

import torch
from torch.nn import functional as F

# -- the value of what comes next; `td` takes one by name ----------------------------------------------------------


def state_value(nets, batch):
    """V(s'), learnt beside Q (IQL, arXiv 2110.06169, eq. 6); [B]."""
    return nets["v"](batch["next_obs"]).mean(0)


def data_action(nets, batch):
    """Q_e(s', a') at the action the data took next: SARSA, each member its own target; [E, B]."""
    return nets["q.lag"](batch["next_obs"], batch["next_action"])


def policy_action(nets, batch):
    """min_e Q_e(s', pi(s')) with the slow policy: DDPG with one critic (Lillicrap et al., 1509.02971); [B]."""
    policy, obs = nets["policy.lag"], batch["next_obs"]
    return nets["q.lag"](obs, policy.sample(obs, noise_like(policy, batch) * 0)).amin(0)


def policy_sample(nets, batch):
    """mean_e Q_e(s', a'), a' ~ pi: no density is asked for (FQL, 2502.02538, eq. 5); [B]."""
    policy, obs = nets["policy"], batch["next_obs"]
    return nets["q.lag"](obs, policy.sample(obs, noise_like(policy, batch))).mean(0)


def greedy(nets, batch):
    """max_a Q_e(s', a), each member its own, of actions that can be counted: Q-learning (Watkins 1989), DQN
    (1312.5602); [E, B]."""
    return nets["q.lag"].every(batch["next_obs"]).amax(-1)


def double_greedy(nets, batch):
    """Q'_e(s', argmax_a Q_e(s', a)): the fast net chooses, the slow one judges (Double DQN, 1509.06461, eq. 4); [E,
    B]."""
    best = nets["q"].every(batch["next_obs"]).argmax(-1, keepdim=True)
    return nets["q.lag"].every(batch["next_obs"]).gather(-1, best).squeeze(-1)


def smoothed(nets, batch, *, noise=0.2, clip=0.5):
    """min_e Q_e(s', pi(s') + clipped noise): target policy smoothing (TD3, 1802.09477, eq. 14), in half action
    ranges; [B]."""
    policy, obs = nets["policy.lag"], batch["next_obs"]
    action = policy.sample(obs, noise_like(policy, batch) * 0)
    jitter = torch.randn(action.shape, generator=batch["rng"], device=action.device, dtype=action.dtype)
    action = policy.bounded(action + policy.half_range.to(action.dtype) * (noise * jitter).clamp(-clip, clip))
    return nets["q.lag"](obs, action).amin(0)


def soft(nets, batch, *, alpha=None, subset=None):
    """min_e Q_e(s', a') - alpha log pi(a' | s'), a' ~ pi (SAC, 1812.05905, eq. 3); of `subset` random members (RLPD,
    2302.02948). alpha: a number, by default what the net of that name has learnt; [B]."""
    policy, obs = nets["policy"], batch["next_obs"]
    action, log_prob = policy.sample_with_log_prob(obs, noise_like(policy, batch))
    critics = nets["q.lag"]
    which = None
    if subset:
        which = torch.randperm(critics.spec["members"], generator=batch["rng"], device=obs.device)[:subset]
    return critics(obs, action, which).amin(0) - temperature(nets, alpha) * log_prob


def temperature(nets, alpha):
    """The number where there is one, else the learnt temperature."""
    return nets["alpha"]().detach() if alpha is None else alpha


def noise_like(policy, batch):
    """Standard normal noise for one chunk a row; [B, *noise_shape]."""
    obs = batch["obs"]
    return torch.randn((len(obs), *policy.noise_shape), generator=batch["rng"], device=obs.device, dtype=obs.dtype)


# -- losses --------------------------------------------------------------------------------------------------------


def td(nets, batch, *, next_value, lower_bound=False):
    """Fit every critic to reward + discount * next_value(s'); discount = gamma**h * (1 - terminated) is data.

    `lower_bound` lifts the target to the return that the data really got from here (Monte Carlo): no value is lower.
    """
    with torch.no_grad():
        target = batch["reward"] + batch["discount"] * next_value(nets, batch)
        if lower_bound:
            target = torch.maximum(target, batch["return"].expand_as(target))
    q = nets["q"](batch["obs"], batch["action"])  # [E, B]
    return F.mse_loss(q, target.expand_as(q)), {"q": q.mean, "q_std": lambda: q.std(0, correction=0).mean()}


def expectile(nets, batch, *, tau=0.7):
    """V(s) as the tau-expectile of min_e Q_e(s, a) over the data's actions (IQL, eq. 5)."""
    with torch.no_grad():
        q = nets["q.lag"](batch["obs"], batch["action"]).amin(0)
    error = q - nets["v"](batch["obs"])  # [1, B]
    weight = torch.where(error > 0, tau, 1 - tau)
    return (weight * error.square()).mean(), {"v": lambda: (q - error).mean()}


def conservative(nets, batch, *, weight=5.0, samples=10, floor=False):
    """Push down Q where the policy or chance would act, up where the data did (CQL(H), 2006.04779, eq. 4):

        weight * E_s [ log sum_a exp Q(s, a) - Q(s, a_data) ],  a by importance from uniform, pi(. | s) and pi(. | s')

    Actions that can be counted are summed over as they are. `floor` lets no value of the policy's actions be pushed
    below the data's return (Cal-QL, 2303.05479, eq. 2)."""
    if nets["policy"].discrete:
        every = nets["q"].every(batch["obs"])  # [E, B, Da]
        gap = (every.logsumexp(-1) - nets["q"](batch["obs"], batch["action"])).mean(1).sum()
        return weight * gap, {"gap": lambda: gap / len(every)}
    policy, obs, rng = nets["policy"], batch["obs"], batch["rng"]
    many = obs.repeat_interleave(samples, 0)
    low, high = policy.bounds(obs)
    shape = (len(many), policy.action_steps, policy.action_dim)
    parts = [low + (high - low) * torch.rand(shape, generator=rng, device=obs.device, dtype=obs.dtype)]
    density = [-(high - low).log().sum().expand(len(many)) * policy.action_steps]
    for where in (obs, batch["next_obs"]):
        noise = torch.randn((len(many), *policy.noise_shape), generator=rng, device=obs.device, dtype=obs.dtype)
        with torch.no_grad():
            action, log_prob = policy.sample_with_log_prob(where.repeat_interleave(samples, 0), noise)
        parts.append(action)
        density.append(log_prob)
    q = torch.stack([nets["q"](many, action) for action in parts], 1)  # [E, 3, B * samples]
    if floor:
        lifted = torch.maximum(q[:, 1:], batch["return"].repeat_interleave(samples))
        q = torch.cat([q[:, :1], lifted], 1)
    q = (q - torch.stack(density)).unflatten(2, (len(obs), samples))  # [E, 3, B, samples]
    spread = q.movedim(2, 1).flatten(2).logsumexp(2)  # [E, B]
    gap = (spread - nets["q"](obs, batch["action"])).mean(1).sum()
    return weight * gap, {"gap": lambda: gap / len(q)}


def returns(nets, batch):
    """Fit V(s) to the return that the data got from here: Monte Carlo, or GAE's (see rl/advantage.py)."""
    v = nets["v"](batch["obs"])
    return F.mse_loss(v, batch["return"].expand_as(v)), {"v": v.mean}


def next_state(nets, batch):
    """Fit every member of the transition model to where the data went: squared error in normalised units."""
    model = nets["model"]
    error = model.encoder(model(batch["obs"], batch["action"])) - model.encoder(batch["next_obs"])
    return error.square().mean(), {}
