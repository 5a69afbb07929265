"""The tables against plain references: equal parameters after 20 updates from one seed, to 1e-8 in float64 and 1e-4
in float32. Catches a silent change."""

import copy

import numpy as np
import pytest
import torch
import yaml
from reference import dqn, iql, ogpo, ppo, residual, sac, td3

from flywheel.args import build
from flywheel.cli import config
from flywheel.episode import Episode
from flywheel.policy import base
from flywheel.policy.categorical import one_hot
from flywheel.policy.residual import Residual
from flywheel.rl.build import table_nets
from flywheel.rl.learner import Learner
from flywheel.rl.source import OnPolicy
from flywheel.rl.table import Algorithm

SHAPE = dict(obs_dim=3, action_dim=2, obs_steps=1, action_steps=2, width=16, depth=2)


def table(name):
    return yaml.safe_load((config.folder() / "algorithm" / f"{name}.yaml").read_text())


@pytest.fixture(params=[torch.float64, torch.float32], ids=["float64", "float32"])
def dtype(request):
    return request.param


def batches(n, dtype=torch.float64):
    rng = torch.Generator().manual_seed(5)

    def draw(*shape):
        return torch.randn(16, *shape, generator=rng, dtype=torch.float64).to(dtype)

    return [
        {
            "obs": draw(1, 3), "next_obs": draw(1, 3), "action": torch.tanh(draw(2, 2)), "next_action": torch.tanh(draw(2, 2)),
            "reward": draw(), "discount": 0.9 * (draw() > -1), "return": draw(),
        }
        for _ in range(n)
    ]  # fmt: skip


def ours(name, kind, acts, dtype, count=20, renewed=(), **change):
    """A learner of our table, a copy of its nets before, and its batches; `kind` may be a policy. In the batches of
    `renewed` its improvement begins."""
    torch.manual_seed(3)
    algorithm = {**table(name), "critic": {"members": 2, "width": 16, "depth": 2}, **change}
    policy = base.build({"kind": kind, **SHAPE}) if isinstance(kind, str) else kind
    made = table_nets(build(Algorithm, algorithm), policy)
    made = {k: v.to(dtype) for k, v in made.items()}
    torch.manual_seed(3)
    learner = Learner(
        made, evaluate=algorithm.get("evaluate") or {}, improve=algorithm["improve"], lag=algorithm["lag"], lr=1e-3, seed=7,
        precision="float32", advantage=algorithm.get("advantage"),
    )  # fmt: skip
    before = copy.deepcopy(made)
    given = batches(count, dtype)
    for i, batch in enumerate(given):
        if i in renewed:
            learner.begin_improve()
        for act in acts[i % len(acts)]:
            learner.act(act, batch)
    return learner, before, given


def equal(learner, plain):
    """Every parameter: each number to 1e-8 in float64, each array's norm to 1e-4 in float32."""

    def close(mine, theirs):
        if mine.dtype == torch.float64:
            torch.testing.assert_close(mine, theirs, rtol=1e-8, atol=1e-8)
        else:
            assert (mine - theirs).norm() <= 1e-4 * theirs.norm()

    for name, net in plain.items():
        if name == "q" or name == "v":
            for part in ("weight", "bias", "gain", "shift"):
                for i, mine in enumerate(getattr(learner.nets[name].net, part)):
                    theirs = torch.stack([getattr(m, part)[i] for m in net])
                    close(mine, theirs)
        elif name == "alpha":
            close(learner.nets["alpha"].log, net)
        else:
            linear = [layer for layer in learner.nets[name].net if hasattr(layer, "weight")]
            for layer, w, b in zip(linear, net.weight, net.bias, strict=True):
                close(layer.weight, w)
                close(layer.bias, b)


BOTH = [("evaluate", "improve")]


def test_iql(dtype):
    learner, before, given = ours("iql", "gaussian", BOTH, dtype, lag={"q": 0.005})
    equal(learner, iql.train(before, given, None, lr=1e-3, rate=0.005, tau=0.7, beta=3.0))


def test_cql_and_without_its_term_sac(dtype):
    rng = torch.Generator().manual_seed(7)
    learner, before, given = ours("cql", "tanh_gaussian", BOTH, dtype)
    equal(learner, sac.train(before, given, rng, lr=1e-3, rate=0.005, conservative={"weight": 5.0, "samples": 10}))
    rng = torch.Generator().manual_seed(7)
    learner, before, given = ours("cql", "tanh_gaussian", BOTH, dtype, evaluate={"q": {"td": {"next_value": "soft"}}})
    equal(learner, sac.train(before, given, rng, lr=1e-3, rate=0.005))


@pytest.mark.parametrize("scale", [None, 2.5])
def test_td3_and_td3_bc(scale, dtype):
    acts = [("evaluate",), ("evaluate",), ("improve",)]
    more = {} if scale else {"improve": {"policy": {"maximize_q": {}}}}
    learner, before, given = ours("td3_bc", "deterministic", acts, dtype, 30, **more)
    rng = torch.Generator().manual_seed(7)
    equal(learner, td3.train(before, given, rng, lr=1e-3, rate=0.005, scale=scale))


def test_ogpo(dtype):
    """The policy that is sampled from is remembered at the first batch and, after it has moved, at the eleventh."""
    torch.manual_seed(3)
    policy = base.build({"kind": "flow", **SHAPE}).explores(0.1)
    more = {"advantage": {"group_advantage": {"states": 4, "samples": 5, "consensus": True}}, "lag": {"q": 0.005}}
    row = {"clipped_surrogate": {"clip": 0.05, "centre": False}, "imitate": {"weight": 0.1, "successes": True}}
    more |= {"improve": {"policy": row}}
    learner, before, given = ours("ogpo", policy, BOTH, dtype, renewed=(0, 10), **more)
    rng = torch.Generator().manual_seed(7)
    how = dict(lr=1e-3, rate=0.005, clip=0.05, states=4, samples=5, weight=0.1, renewed=(0, 10))
    equal(learner, ogpo.train(before, given, rng, **how))


def test_residual(dtype):
    torch.manual_seed(3)
    policy = Residual.of(base.build({"kind": "deterministic", **SHAPE}), alpha=0.2, width=16, depth=2)
    row = {"maximize_q": {"sample": True, "scale": 1.0}, "imitate_better": {"weight": 10.0}}
    learner, before, given = ours("residual", policy, BOTH, dtype, lag={"q": 0.005}, improve={"policy": row})
    rng = torch.Generator().manual_seed(7)
    equal(learner, residual.train(before, given, rng, lr=1e-3, rate=0.005, alpha=0.2, weight=10.0))


@pytest.mark.parametrize("name", ["dqn", "double_dqn"])
def test_dqn(name, dtype):
    torch.manual_seed(3)
    algorithm = table(name)
    policy = base.build({"kind": "greedy_q", **SHAPE, "action_steps": 1}).to(dtype)
    made = table_nets(build(Algorithm, algorithm), policy)
    before = {"q": copy.deepcopy(made["q"])}
    learner = Learner(made, evaluate=algorithm["evaluate"], improve={}, lag={"q": 0.02}, lr=1e-3, precision="float32")
    given = [{**b, "action": one_hot(b["action"][:, :1])} for b in batches(20, dtype)]
    for batch in given:
        learner.act("evaluate", batch)
    equal(learner, dqn.train(before, given, lr=1e-3, rate=0.02, double=name == "double_dqn"))


def test_ppo(dtype):
    """Whole episodes through the source: their noise, their GAE, four passes in its order; one terminated, one cut
    off by time."""
    torch.manual_seed(3)
    policy = base.build({"kind": "gaussian", **SHAPE, "action_steps": 1}).to(dtype).explores(1.0)
    algorithm = {**table("ppo"), "critic": {"members": 1, "width": 16, "depth": 2}}
    made = {k: v.to(dtype) for k, v in table_nets(build(Algorithm, algorithm), policy).items()}
    before = copy.deepcopy(made)
    acts = {k: algorithm[k] for k in ("evaluate", "improve", "advantage")}
    learner = Learner(made, **acts, lag={}, lr=1e-3, precision="float32")
    exact = np.float64 if dtype == torch.float64 else np.float32
    rng = np.random.default_rng(0)
    episodes, plain = [], []
    for seed, (steps, ended) in enumerate([(23, True), (17, False)]):
        state, reward = rng.normal(size=(steps + 1, 3)).astype(exact), rng.normal(size=steps)
        episodes.append(
            Episode(
                task="t", obs={"state": state}, action=np.zeros((steps, 2)), reward=np.zeros(steps), terminated=ended, success=False,
                origin="o", seed=seed, extras={"env_reward": reward},
            )
        )  # fmt: skip
        noise = torch.from_numpy(policy.noises(seed, steps)).to(dtype)[:, 0]
        plain.append(
            {
                "obs": torch.from_numpy(state),
                "reward": torch.from_numpy(reward).float().to(dtype),
                "terminated": ended,
                "noise": noise,
            }
        )
    source = OnPolicy(
        obs_steps=1, action_steps=1, batch_size=10, gamma=0.9, reward="env",
        play=lambda learner: episodes,
    )  # fmt: skip
    policy.noises = lambda seed, count: type(policy).noises(policy, seed, count).astype(exact)
    source.collect(learner)
    whole = {k: v.clone() for k, v in source.data.items()}
    orders = {"evaluate": [], "improve": []}
    for act in ("evaluate", "improve"):
        for _ in range(20):
            batch = source.batch(act)
            orders[act].append([int((whole["obs"] == o).all(2).all(1).nonzero()) for o in batch["obs"]])
            learner.act(act, batch)
    equal(learner, ppo.train(before, plain, orders, lr=1e-3, gamma=0.9, lam=0.95, clip=0.2))


def test_the_oracle_sees_a_change(dtype):
    learner, before, given = ours("iql", "gaussian", BOTH, dtype, lag={"q": 0.005})
    plain = iql.train(before, given, None, lr=1e-3, rate=0.005, tau=0.71, beta=3.0)
    with pytest.raises(AssertionError):
        equal(learner, plain)
