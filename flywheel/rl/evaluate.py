"""Losses of evaluation: how good is what the data did, or what the policy would do?

A loss is `name(nets, batch, **args) -> (loss, info)`. Only the net that its table names it under moves; `nets["q.lag"]` is
the slow copy that `lag` keeps. Shapes: B batch, To/Ta horizons, Do/Da sizes, E ensemble.
"""

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
    return F.mse_loss(q, target.expand_as(q)), {"q": q.mean(), "q_std": q.std(0, correction=0).mean()}


def expectile(nets, batch, *, tau=0.7):
    """V(s) as the tau-expectile of min_e Q_e(s, a) over the data's actions (IQL, eq. 5)."""
    with torch.no_grad():
        q = nets["q.lag"](batch["obs"], batch["action"]).amin(0)
    error = q - nets["v"](batch["obs"])  # [1, B]
    weight = torch.where(error > 0, tau, 1 - tau)
    return (weight * error.square()).mean(), {"v": (q - error).mean()}


def returns(nets, batch):
    """Fit V(s) to the return that the data got from here (Monte Carlo)."""
    v = nets["v"](batch["obs"])
    return F.mse_loss(v, batch["return"].expand_as(v)), {"v": v.mean()}
