"""bfloat16 is used inside an update only, and its copies never lag behind the weights."""

import copy

import pytest
import torch

from flywheel.policy import base
from flywheel.policy.critic import Critic
from flywheel.policy.nets import Temperature
from flywheel.rl import learner as learning
from flywheel.rl.learner import Learner

TABLES = {
    "evaluate": {"q": {"td": {"next_value": "soft"}}},
    "improve": {"policy": {"maximize_soft_q": {}}, "alpha": {"match_entropy": {}}},
}


def learner(precision):
    torch.manual_seed(0)
    shape = {"obs_dim": 3, "action_dim": 2, "obs_steps": 1, "action_steps": 1}
    nets = {
        "policy": base.build({"kind": "tanh_gaussian", "width": 128, **shape}),
        "q": Critic(**shape, members=2, width=128),
        "alpha": Temperature(),
    }
    return Learner(nets, **TABLES, lag={"q": 0.01}, precision=precision)


def batch(seed, n=64):
    rng = torch.Generator().manual_seed(seed)
    draw = lambda *shape: torch.randn(n, *shape, generator=rng)  # noqa: E731
    return {
        "obs": draw(1, 3), "action": draw(1, 2).clamp(-1, 1), "next_obs": draw(1, 3), "next_action": draw(1, 2),
        "reward": draw(), "discount": torch.full((n,), 0.9), "return": draw(),
    }  # fmt: skip


def equal_copies(held):
    """The rounded copies are what rounding the weights gives, in every net."""
    for name, flat in held.flat.items():
        if name != "alpha":
            assert torch.equal(flat.half, flat.values.bfloat16()), name
            for module in held.nets[name].modules():
                for p, twin in (getattr(module, "twins", None) or {}).items():
                    assert torch.equal(twin, p.bfloat16())


@pytest.fixture
def rounded(monkeypatch):
    monkeypatch.setattr(learning, "multiplies_bf16", lambda device: True)
    return learner("bf16")


def train(held, updates=10):
    for i in range(updates):
        held.act("evaluate", batch(2 * i))
        held.act("improve", batch(2 * i + 1))


def test_copies_follow_every_way_in_which_weights_change(rounded):
    equal_copies(rounded)
    train(rounded)
    equal_copies(rounded)
    before = rounded.snapshot()
    train(rounded, 3)
    rounded.restore(before, "refused")
    equal_copies(rounded)
    assert torch.equal(rounded.nets["q"].net.weight[1], before["nets/q/net.weight.1"])


def test_bfloat16_learns_what_float32_learns(rounded):
    exact = learner("float32")
    train(rounded)
    train(exact)
    assert exact.flat["q"].half is None
    for name in ("q", "policy"):
        moved = exact.flat[name].values - learner("float32").flat[name].values
        apart = rounded.flat[name].values - exact.flat[name].values
        assert 0 < apart.norm() < 0.2 * moved.norm(), name


def test_what_acts_is_float32(rounded):
    train(rounded)
    policy, obs = rounded.nets["policy"], batch(9)["obs"]
    stored = base.build(policy.spec)
    stored.load_state_dict(policy.state_dict())
    noise = torch.zeros(64, 1, 2)
    assert torch.equal(policy.sample(obs, noise), stored.sample(obs, noise))
    assert torch.equal(copy.deepcopy(policy).sample(obs, noise), stored.sample(obs, noise))
