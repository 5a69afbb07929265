"""Bugs that others have had, each by name. Those with a proper place elsewhere are only pointed to.

terminated against truncated: test_source.py (time-outs, whole episodes), test_env.py; a deterministic last step scored
as a Gaussian: test_policy.py; a base that never succeeds: test_cells.py; success at any step against at the end:
test_env.py."""

import numpy as np
import pytest
import torch
import toy
from small import LITTLE, call

import flywheel
from flywheel import env as envs
from flywheel import seeds
from flywheel.args import Acting
from flywheel.env import scoring
from flywheel.policy.critic import Critic
from flywheel.rl.learner import Learner


@pytest.mark.parametrize(("stage", "algorithm"), [("retrain", "rounds"), ("online", "rlpd")])
def test_the_normaliser_is_not_refitted_between_rounds(copied, capsys, stage, algorithm):
    copy, at = copied
    made = call(
        "pretrain", "policy=tanh_gaussian", "algorithm.cadence.improve=10", "name=policy/n", *LITTLE, *at, capsys=capsys
    )[1]
    cadence = "algorithm.cadence={rounds: 2, evaluate: 3, improve: 3}"
    few = (
        ["collect.episodes=4", "collect.n=2"]
        if stage == "retrain"
        else ["algorithm.collect.steps=40", "score_episodes=2"]
    )
    words = [
        stage,
        f"algorithm={algorithm}",
        cadence,
        "algorithm.critic.width=16",
        "name=policy/n",
        "batch_size=16",
        *few,
        *at,
    ]
    out = call(*words, f"checkpoint={made['outputs']['checkpoint']}", capsys=capsys)[1]
    before, after = (flywheel.load(o["outputs"]["checkpoint"], store=str(copy.root)) for o in (made, out))
    for key in ("encoder.norm.mean", "encoder.norm.std", "action_norm.mean", "action_norm.std"):
        assert torch.equal(before.state_dict()[key], after.state_dict()[key]), key


class Runner:
    """Straight to the goal; remembers what it was asked for."""

    spec = {"greedy": True}

    def __init__(self):
        self.asked = []

    def reset(self, slots=None, seeds=None):
        pass

    def act(self, obs, slots=None):
        self.asked.append(len(obs))
        return np.clip((obs[:, 2:] - obs[:, :2]) * 5, -1, 1)


def reach(n):
    return envs.make({"name": "gym", "id": "toy:Reach-v0", "max_steps": 20}, n, threads=1)


def test_no_step_is_made_or_counted_after_the_end_of_an_episode():
    runner = Runner()
    done, _ = envs.rollout(reach(4), runner, range(10), origin="test")
    assert sum(runner.asked) == sum(len(e) for e in done)
    for e in done:
        near = np.linalg.norm(e.obs["state"][:, 2:] - e.obs["state"][:, :2], axis=1) < 0.1
        assert e.success and not near[1:-1].any() and near[-1]


def test_short_episodes_are_not_counted_more_often():
    """Each seed once, whatever ends first: the rate of many at once is that of one after the other."""
    many, _ = envs.rollout(reach(8), Runner(), range(40), origin="test")
    one, _ = envs.rollout(reach(1), Runner(), range(40), origin="test")
    assert [e.seed for e in many] == list(range(40))
    assert [len(e) for e in many] == [len(e) for e in one]


def test_what_is_evaluated_is_what_is_deployed(copied, capsys):
    """The score of a checkpoint, step by step, by hand through `act` with a plain Gymnasium loop."""
    copy, at = copied
    made = call("pretrain", "algorithm.cadence.improve=60", "name=policy/d", *LITTLE, *at, capsys=capsys)[1]
    policy = flywheel.load(made["outputs"]["checkpoint"], store=str(copy.root))
    scored = scoring.score(policy, reach(4), range(6), what="it")
    for k, seed in enumerate(range(6)):
        env, won = toy.Reach(), False
        obs, _ = env.reset(seed=seed)
        policy.reset([0], [seed])
        for step in range(20):
            obs, _, _, _, info = env.step(policy.act(obs))
            if info["success"] and not won:
                won = True
                assert scored["steps"][k] == step + 1
        assert scored["success"][k] == won


def test_an_ensemble_disagrees_where_it_has_no_data():
    """A lower bound mean - k std means something only as long as the members differ off the data, and agree on it."""
    torch.manual_seed(0)
    critic = Critic(obs_dim=2, obs_steps=1, action_dim=1, action_steps=1, members=4, width=32)
    learner = Learner(
        {"q": critic}, evaluate={"q": {"td": {"next_value": "data_action"}}}, improve={}, lag={"q": 0.01}, lr=3e-3
    )
    rng = torch.Generator().manual_seed(1)
    for _ in range(400):
        obs, action = torch.rand(64, 1, 2, generator=rng), torch.rand(64, 1, 1, generator=rng)
        reward = obs.sum((1, 2)) - action[:, 0, 0]
        learner.act(
            "evaluate",
            {
                "obs": obs,
                "next_obs": obs,
                "action": action,
                "next_action": action,
                "reward": reward,
                "discount": 0 * reward,
            },
        )
    obs, action = torch.rand(200, 1, 2), torch.rand(200, 1, 1)
    with torch.no_grad():
        known, unknown = critic(obs, action).std(0).mean(), critic(-4 * obs, -4 * action).std(0).mean()
    assert known < 0.15 and unknown > 4 * known
    assert learner.metrics()["q.q_std"] > 0  # it is logged, so that a collapse is seen


def test_nothing_is_chosen_on_the_reported_episodes():
    now = Acting(seed=3, night=2)
    blocks = {block: set(seeds.seeds(block, now, 0, seeds.NIGHT)) for block in seeds.BLOCKS}
    assert all(not blocks[a] & blocks[b] for a in blocks for b in blocks if a != b)
    every = [
        seeds.seeds(b, Acting(seed=s, night=n), 0, 1)[0] for b in blocks for s in range(10) for n in range(0, 1000, 111)
    ]
    assert len(set(every)) == len(every)
