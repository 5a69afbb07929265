"""PPO (Schulman et al. 2017) with GAE (2016) for a diagonal Gaussian, two nets, the value's epoch before the policy's."""

import torch

from reference.plain import Net, Value, adam, step


def train(nets, episodes, orders, *, lr, gamma, lam, clip):
    """{"policy", "v"} after one round: `episodes` [{obs [T+1, D], noise [T, A], reward [T], terminated}], and for the value and then
    the policy a list of batches of row numbers."""
    pi, v = Net(nets["policy"].net), Value(nets["v"].net, 0)
    pi_optim, v_optim = adam(pi.parameters(), lr), adam(v.parameters(), lr)
    rows = {"obs": [], "u": [], "old": [], "advantage": [], "return": []}
    with torch.no_grad():
        for e in episodes:
            obs, values = e["obs"][:-1], v(e["obs"])
            mean, log_std = gaussian(pi, obs)
            u = mean + log_std.exp() * e["noise"]
            advantage, ahead = torch.zeros(len(obs), dtype=obs.dtype), 0.0
            for t in reversed(range(len(obs))):
                alive = 0.0 if e["terminated"] and t == len(obs) - 1 else 1.0
                delta = e["reward"][t] + gamma * alive * values[t + 1] - values[t]
                advantage[t] = ahead = delta + gamma * lam * alive * (0.0 if t == len(obs) - 1 else 1.0) * ahead
            old = torch.distributions.Normal(mean, log_std.exp()).log_prob(u).sum(1)
            for key, value in zip(rows, (obs, u, old, advantage, advantage + values[:-1]), strict=True):
                rows[key].append(value)
    obs, u, old, advantage, returns = (torch.cat(rows[key]) for key in rows)
    for batch in orders["evaluate"]:
        step(v_optim, ((v(obs[batch]) - returns[batch]) ** 2).mean())
    for batch in orders["improve"]:
        mean, log_std = gaussian(pi, obs[batch])
        ratio = (torch.distributions.Normal(mean, log_std.exp()).log_prob(u[batch]).sum(1) - old[batch]).exp()
        a = advantage[batch]
        a = (a - a.mean()) / (a.std() + 1e-8)
        step(pi_optim, -torch.minimum(ratio * a, ratio.clamp(1 - clip, 1 + clip) * a).mean())
    return {"policy": pi, "v": [v]}


def gaussian(net, obs):
    mean, raw = net(obs).chunk(2, 1)
    return mean, -1.5 + 2.5 * torch.tanh(raw)
