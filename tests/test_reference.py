"""The tables against plain references: equal parameters after 20 updates from one seed. Catches a silent change."""

import pytest
import torch
import yaml
from reference import iql, sac, td3

from flywheel import config
from flywheel.policy import base
from flywheel.rl.learner import Learner
from flywheel.stages.pretrain import nets

SHAPE = dict(obs_dim=3, action_dim=2, obs_steps=1, action_steps=2, width=16, depth=2)


def table(name):
    return yaml.safe_load((config.folder() / "algorithm" / f"{name}.yaml").read_text())


def batches(n):
    rng = torch.Generator().manual_seed(5)

    def draw(*shape):
        return torch.randn(16, *shape, generator=rng, dtype=torch.float64)

    return [
        {
            "obs": draw(1, 3), "next_obs": draw(1, 3), "action": torch.tanh(draw(2, 2)), "next_action": torch.tanh(draw(2, 2)),
            "reward": draw(), "discount": 0.9 * (draw() > -1), "return": draw(),
        }
        for _ in range(n)
    ]  # fmt: skip


def ours(name, kind, acts, count=20, **change):
    """A learner of our table in float64, a copy of its nets before, and its batches."""
    torch.manual_seed(3)
    algorithm = {**table(name), "critic": {"members": 2, "width": 16, "depth": 2}, **change}
    made = nets(algorithm, base.build({"kind": kind, **SHAPE}))
    made = {k: v.double() for k, v in made.items()}
    torch.manual_seed(3)
    learner = Learner(
        made, evaluate=algorithm.get("evaluate") or {}, improve=algorithm["improve"], lag=algorithm["lag"], lr=1e-3, seed=7
    )  # fmt: skip
    import copy

    before = copy.deepcopy(made)
    given = batches(count)
    for i, batch in enumerate(given):
        for act in acts[i % len(acts)]:
            learner.act(act, batch)
    return learner, before, given


def equal(learner, plain):
    """Every parameter, to 1e-8."""
    for name, net in plain.items():
        if name == "q" or name == "v":
            for part in ("weight", "bias", "gain", "shift"):
                for i, mine in enumerate(getattr(learner.nets[name].net, part)):
                    theirs = torch.stack([getattr(m, part)[i] for m in net])
                    torch.testing.assert_close(mine, theirs, rtol=1e-8, atol=1e-8)
        elif name == "alpha":
            torch.testing.assert_close(learner.nets["alpha"].log, net, rtol=1e-8, atol=1e-8)
        else:
            linear = [layer for layer in learner.nets[name].net if hasattr(layer, "weight")]
            for layer, w, b in zip(linear, net.weight, net.bias, strict=True):
                torch.testing.assert_close(layer.weight, w, rtol=1e-8, atol=1e-8)
                torch.testing.assert_close(layer.bias, b, rtol=1e-8, atol=1e-8)


BOTH = [("evaluate", "improve")]


def test_iql():
    learner, before, given = ours("iql", "gaussian", BOTH, lag={"q": 0.005})
    equal(learner, iql.train(before, given, None, lr=1e-3, rate=0.005, tau=0.7, beta=3.0))


def test_cql_and_without_its_term_sac():
    rng = torch.Generator().manual_seed(7)
    learner, before, given = ours("cql", "tanh_gaussian", BOTH)
    equal(learner, sac.train(before, given, rng, lr=1e-3, rate=0.005, conservative={"weight": 5.0, "samples": 10}))
    rng = torch.Generator().manual_seed(7)
    learner, before, given = ours("cql", "tanh_gaussian", BOTH, evaluate={"q": {"td": {"next_value": "soft"}}})
    equal(learner, sac.train(before, given, rng, lr=1e-3, rate=0.005))


@pytest.mark.parametrize("scale", [None, 2.5])
def test_td3_and_td3_bc(scale):
    acts = [("evaluate",), ("evaluate",), ("improve",)]
    more = {} if scale else {"improve": {"policy": {"maximize_q": {}}}}
    learner, before, given = ours("td3_bc", "deterministic", acts, 30, **more)
    rng = torch.Generator().manual_seed(7)
    equal(learner, td3.train(before, given, rng, lr=1e-3, rate=0.005, scale=scale))


def test_the_oracle_sees_a_change():
    learner, before, given = ours("iql", "gaussian", BOTH, lag={"q": 0.005})
    plain = iql.train(before, given, None, lr=1e-3, rate=0.005, tau=0.71, beta=3.0)
    with pytest.raises(AssertionError):
        equal(learner, plain)
