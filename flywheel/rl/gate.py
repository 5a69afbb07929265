"""May a round's policy be kept? A gate is `name(nets, batch, **args) -> reason`, empty where it may."""

from __future__ import annotations

import torch

from flywheel.rl.evaluate import noise_like


@torch.no_grad()
def ope(nets, batch, *, margin=0.05, chunks=20):
    """Offline policy evaluation in the learnt model (AM-Q of RL-100, 2510.14830): J(pi) is the mean of min_e
    Q_e(s_t, a_t) along `chunks` steps of the model from the data's states, a_t ~ pi; kept if J(pi) - J(pi_old) >=
    margin |J(pi_old)|. Both are given the same noise and the same members of the model."""
    begin, value = batch["rng"].get_state(), {}
    for name in ("policy", "policy.old"):
        batch["rng"].set_state(begin)
        value[name] = _along(nets, nets[name], batch, chunks)
    gain, wanted = value["policy"] - value["policy.old"], margin * abs(value["policy.old"])
    if gain >= wanted:
        return ""
    now, before = value["policy"], value["policy.old"]
    return f"the model says J = {now:.4f}, before {before:.4f}: gained {gain:.4f}, wanted {wanted:.4f}"


def _along(nets, policy, batch, chunks):
    obs, rng, total = batch["obs"], batch["rng"], 0.0
    for _ in range(chunks):
        action = policy.bounded(policy.sample(obs, noise_like(policy, {"obs": obs, "rng": rng})))
        total += float(nets["q"](obs, action).amin(0).mean())
        member = torch.randint(len(nets["model"].net.weight[0]), (len(obs),), generator=rng, device=obs.device)
        obs = nets["model"](obs, action)[member, torch.arange(len(obs), device=obs.device)]
    return total / chunks
