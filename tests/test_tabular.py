"""Q-learning with a table against value iteration, on the tasks that everybody knows."""

import gymnasium as gym
import pytest
import torch
import yaml
from small import call

from flywheel.args import build
from flywheel.cli import config
from flywheel.policy import base
from flywheel.rl.build import table_nets
from flywheel.rl.learner import Learner
from flywheel.rl.table import Algorithm

TASKS = [("FrozenLake-v1", {"is_slippery": True}), ("FrozenLake-v1", {"is_slippery": False}), ("CliffWalking-v1", {})]


def value_iteration(outcomes, gamma, sweeps=2000):
    """Q [S, A] of {s: {a: [(probability, next, reward, ended)]}}."""
    q = torch.zeros(len(outcomes), len(outcomes[0]), dtype=torch.float64)
    for _ in range(sweeps):
        best = q.max(1).values
        q = torch.tensor(
            [
                [sum(p * (r + gamma * (not end) * best[n]) for p, n, r, end in outcomes[s][a]) for a in outcomes[s]]
                for s in outcomes
            ],
            dtype=torch.float64,
        )
    return q


def table():
    return yaml.safe_load((config.folder() / "algorithm" / "q_learning.yaml").read_text())


@pytest.mark.parametrize(("task", "options"), TASKS)
def test_q_learning_equals_value_iteration(task, options):
    """A batch of every outcome of every action, as often as it is likely, at a rate that moves each cell all the
    way."""
    gamma, outcomes = 0.95, gym.make(task, **options).unwrapped.P
    states, actions, ways = len(outcomes), len(outcomes[0]), max(len(w) for o in outcomes.values() for w in o.values())
    rows = [
        (s, a, *outcome[1:])
        for s in outcomes
        for a in outcomes[s]
        for outcome in outcomes[s][a] * (ways // len(outcomes[s][a]))
    ]
    assert len(rows) == states * actions * ways
    s, a, after, reward, ended = (torch.tensor(column) for column in zip(*rows, strict=True))
    eye = torch.eye(states, dtype=torch.float64)
    batch = {
        "obs": eye[s][:, None], "next_obs": eye[after][:, None], "action": torch.eye(actions, dtype=torch.float64)[a][:, None],
        "reward": reward.double(), "discount": gamma * ~ended.bool(),
    }  # fmt: skip
    shape = {"obs_dim": states, "action_dim": actions, "obs_steps": 1, "action_steps": 1}
    algorithm = table()
    made = table_nets(build(Algorithm, algorithm), base.build({"kind": "greedy_q", "depth": 0, **shape}).double())
    learner = Learner(
        made, evaluate=algorithm["evaluate"], improve={}, lag=algorithm["lag"], optimiser=algorithm["optimiser"],
        lr=states * actions / 2,
    )  # fmt: skip
    for _ in range(400):
        learner.act("evaluate", batch)
    found = made["q"].every(eye[:, None])[0].detach()
    torch.testing.assert_close(found, value_iteration(outcomes, gamma, 400), rtol=0, atol=1e-6)


@pytest.mark.slow
def test_q_learning_finds_the_shortest_way_along_the_cliff(tmp_path, capsys):
    words = [
        "task=gym",
        "task.id=CliffWalking-v1",
        "task.max_steps=100",
        "task.reward=env",
        "task.solved=-13",
        "policy=greedy_q",
    ]
    more = [
        "policy.depth=0",
        "batch_size=1",
        "algorithm=q_learning",
        "algorithm.cadence={rounds: 20, evaluate: 600, improve: 0}",
        "algorithm.collect.steps=500",
        "checkpoint=none",
        "score_episodes=2",
        "threads=1",
    ]
    code, out = call("online", *words, *more, f"store={tmp_path / 's'}", capsys=capsys)
    assert (code, out["metrics"]["return"], out["metrics"]["success"]) == (0, -13.0, 1.0)
