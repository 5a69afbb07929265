"""May a round's policy be kept? A gate is `name(nets, batch, **args) -> (reason, numbers)`, the reason empty where it
may, the numbers for the log: the `gain` that it expects and its standard `error`."""

from __future__ import annotations

import torch

from flywheel.rl.evaluate import noise_like


@torch.no_grad()
def ope(nets, batch, *, sigmas=1.0, margin=0.0, chunks=20):
    """Offline policy evaluation in the learnt model (AM-Q of RL-100, 2510.14830): J_i(pi) is the mean of min_e Q_e(s_t,
    a_t) along `chunks` steps of the model from the i-th of the data's states, a_t ~ pi. Both policies get the same
    states, noise and members of the model, so that their gains are paired; kept if

        mean_i (J_i(pi) - J_i(pi_old)) >= margin |J(pi_old)| + sigmas * standard error of that mean

    A share of J alone, RL-100's 0.05, cannot work where success is 1: J is near 1 then, and nothing gains so much."""
    begin, value = batch["rng"].get_state(), {}
    for name in ("policy", "policy.old"):
        batch["rng"].set_state(begin)
        value[name] = _along(nets, nets[name], batch, chunks)
    now, before = value["policy"].mean().item(), value["policy.old"].mean().item()
    gains = value["policy"] - value["policy.old"]
    error = (gains.std() / len(gains) ** 0.5).item()
    gain, wanted = gains.mean().item(), margin * abs(before) + sigmas * error
    told = {"gain": gain, "error": error}
    if gain >= wanted:
        return "", told
    return f"the model says J = {now:.4f}, before {before:.4f}: gained {gain:.4f}, wanted {wanted:.4f}", told


def _along(nets, policy, batch, chunks):
    obs, rng, total = batch["obs"], batch["rng"], 0.0
    for _ in range(chunks):
        action = policy.bounded(policy.sample(obs, noise_like(policy, {"obs": obs, "rng": rng})))
        total = total + nets["q"](obs, action).amin(0)
        member = torch.randint(len(nets["model"].net.weight[0]), (len(obs),), generator=rng, device=obs.device)
        obs = nets["model"](obs, action)[member, torch.arange(len(obs), device=obs.device)]
    return total / chunks
