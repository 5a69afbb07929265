"""An action is a function of weights, observations and seed: to the bit, however many act beside it."""

import numpy as np
import pytest
import torch

from flywheel.policy import base
from flywheel.policy.best_of_n import BestOfN
from flywheel.policy.critic import Critic

SHAPE = {"obs_dim": 19, "action_dim": 5, "obs_steps": 2, "action_steps": 2}


def made(kind):
    torch.manual_seed(0)
    if kind == "best_of_n":
        critic = Critic(obs_dim=19, action_dim=5, obs_steps=2, action_steps=2, width=256)
        return BestOfN.of(made("flow").explores(1.0), critic, n=4)
    return base.build({"kind": kind, "width": 256, "depth": 2, **SHAPE}).eval().explores(1.0)


@pytest.mark.parametrize("kind", ["flow", "deterministic", "gaussian", "diffusion", "tanh_gaussian", "best_of_n"])
def test_an_action_does_not_depend_on_how_many_act_beside_it(kind):
    """findings B3: episodes that begin anew beside a fault are equal to the bit only if this holds."""
    policy = made(kind)
    obs = np.random.default_rng(0).normal(size=(40, 19)).astype(np.float32)
    policy.reset(range(40), range(40))
    whole = [policy.act(obs, range(40)) for _ in range(3)]
    for few in (1, 2, 3, 5, 8, 13, 17, 31):
        slots = list(range(40 - few, 40))
        policy.reset(slots, slots)
        for step in whole:
            np.testing.assert_array_equal(policy.act(obs[slots], slots), step[slots])
