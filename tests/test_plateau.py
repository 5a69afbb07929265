"""How long imitation trains: by hand."""

import numpy as np
import pytest
import torch

from flywheel.args import UsageError
from flywheel.policy import base
from flywheel.rl.improve import cloning
from flywheel.rl.plateau import Plateau, decayed, falling, rising
from flywheel.rl.table import Algorithm


def test_the_rate_falls_in_cycles_and_the_curve_decides_how_many():
    """findings F2: training ends where its own curve is level, within a bound."""
    plateau = Plateau(16000)
    assert [plateau.rate(u) for u in (0, 4000, 8000, 10000, 12000, 14000)] == pytest.approx(
        [1, 0.5, 0.5, 0.25, 0.5, 0.25]
    )
    assert plateau.rate(7999) < 1e-6
    plateau.saw(6000, [0.3, 0.8, 0.9], 100)
    assert not plateau.over, "no end of a cycle"
    plateau.saw(8000, [0.3, 0.8, 0.9, 0.92], 100)
    assert plateau.over, "level"
    rises = Plateau(16000)
    rises.saw(8000, [0.0, 0.1, 0.3, 0.5], 100)
    assert not rises.over
    rises.saw(12000, [0.0, 0.1, 0.3, 0.5, 0.6, 0.7], 100)
    assert not rises.over
    rises.saw(16000, [0.0, 0.1, 0.3, 0.5, 0.6, 0.7, 0.8, 0.9], 100)
    assert rises.over, "the bound"
    unseen = Plateau(16000)
    unseen.saw(8000, [0.0], 0)
    assert unseen.over, "without a curve one cycle is all"


def test_a_curve_that_falls_ends_training():
    """findings F2: 0.9 of 100, and then twice more than three standard errors of a difference, 3 sqrt(2 * 0.9 * 0.1
    / 100) = 0.127, below."""
    assert falling([0.5, 0.9, 0.77, 0.77], 100) and not falling([0.5, 0.9, 0.77, 0.78], 100)
    assert not falling([0.9, 0.1], 100)
    assert rising([0.5, 0.8, 0.86], 100) and not rising([0.5, 0.8, 0.84], 100)  # sqrt(2 * 0.86 * 0.14 / 100) = 0.049
    fallen = Plateau(10**6)
    fallen.saw(8000, [0.5, 0.9, 0.5, 0.5], 100)
    assert fallen.over


@pytest.mark.parametrize("kind", ["flow", "diffusion", "deterministic", "gaussian", "one_step"])
def test_a_policy_that_looks_ahead_predicts_two_chunks_and_executes_one(kind):
    """findings F2: both chunks are cloned; `sample` gives the first; what a greedy policy does depends on no seed."""
    torch.manual_seed(0)
    policy = base.build(
        {
            "kind": kind,
            "obs_dim": 3,
            "action_dim": 2,
            "action_steps": 4,
            "ahead": 2,
            "width": 8,
            "depth": 1,
            "greedy": True,
        }
    )
    assert policy.horizon == 8 and policy.noise_shape == (8, 2)
    assert policy.sample(torch.zeros(5, 2, 3), torch.zeros(5, 8, 2)).shape == (5, 4, 2)
    action = torch.randn(6, 8, 2)
    batch = {
        "obs": torch.randn(6, 2, 3),
        "action": action[:, :4],
        "next_action": action[:, 4:],
        "rng": torch.Generator().manual_seed(1),
    }
    alone = policy.bc_loss(batch["obs"], action, torch.Generator().manual_seed(1), None)
    assert torch.equal(cloning(policy, batch), alone)
    noisy = cloning(policy, batch | {"rng": torch.Generator().manual_seed(1)}, noise=0.5)
    assert not torch.equal(noisy, alone)
    acts = []
    for seed in (1, 2):
        policy.reset([0], [seed])
        acts.append(policy.act(np.ones(3, np.float32)))
    assert np.array_equal(*acts)
    if kind in ("flow", "diffusion"):
        policy.explores(0.1)
        assert not policy.greedy
        chain = policy.chain(batch["obs"], torch.randn(6, *policy.noise_shape))
        assert policy.chain_log_prob(batch["obs"], chain)[0].shape == (6, policy.steps)


def test_in_rounds_the_rate_falls_over_the_last_third():
    """By hand: kept for two thirds, half of it after five sixths, a hundredth at the end."""
    assert [decayed(done) for done in (0.0, 2 / 3, 5 / 6, 11 / 12, 1.0, 1.2)] == pytest.approx(
        [1.0, 1.0, 0.5, 0.25, 0.01, 0.01]
    )


@pytest.mark.parametrize(("source", "schedule"), [("offline", "decay"), ("off_policy", "plateau")])
def test_a_schedule_that_never_comes_is_refused(source, schedule):
    """findings F2: a setting that does nothing in silence is none."""
    with pytest.raises(UsageError, match=f"schedule={schedule}: algorithm x has source {source}"):
        Algorithm(name="x", source=source, schedule=schedule)
