"""What failed is, in hindsight, a success at another goal: by hand, and in real rounds."""

import numpy as np
import pytest
import small
import toy

from flywheel import env as envs
from flywheel.args import UsageError
from flywheel.cli import config
from flywheel.episode import Episode
from flywheel.rl import hindsight
from flywheel.rl.table import Goal
from flywheel.runs.run import Store

KEYED = ["task=gym", "task.id=toy:Keyed-v0", "task.max_steps=20"]
WHERE = Goal(achieved="position", desired="goal")


def episode(there, wanted, **more):
    """A point on a line at `there` [T+1] that is to be at `wanted`."""
    state = np.stack([there, np.full(len(there), wanted)], 1).astype(np.float32)
    steps = len(there) - 1
    return Episode(
        task="t", obs={"state": state}, action=np.ones((steps, 1), np.float32), reward=np.zeros(steps, np.float32),
        terminated=False, success=False, origin="policy:abc", seed=3, meta={"round": 2},
        extras={"env_reward": np.full(steps, -1, np.float32), "proposed": np.ones((steps, 1), np.float32)},
    ).replace(**more)  # fmt: skip


def test_where_it_ended_was_the_goal():
    played = episode([0, 1, 3, 4], 8)
    (made,) = hindsight.relabelled([played], slice(0, 1), slice(1, 2))
    np.testing.assert_array_equal(made.obs["state"], [[0, 4], [1, 4], [3, 4], [4, 4]])
    assert made.reward.tolist() == [0, 0, 1] and made.success and made.origin == "hindsight:abc"
    assert made.meta == {"round": 2, "of": played.hash} and set(made.extras) == {"proposed"}
    assert played.obs["state"][0].tolist() == [0, 8], "what was played is as it was"


@pytest.mark.parametrize(("mode", "reward"), [("any", [0, 1, 0, 0]), ("last:2", [0, 0, 1, 0]), ("last", [0, 0, 0, 1])])
def test_it_was_there_once_it_stayed_there(mode, reward):
    """A tenth of the way of 4 is 0.4."""
    (made,) = hindsight.relabelled([episode([0, 1, 3.7, 3.9, 4], 8)], slice(0, 1), slice(1, 2), mode)
    assert made.reward.tolist() == reward


def test_what_hardly_moved_has_no_copy():
    """A quarter of the way of 8 is 2."""
    rounds = [episode([0, 1, 1.9], 8), episode([0, 1, 2], 8), episode([0, 1, 3], 8, success=None)]
    copies = hindsight.relabelled(rounds, slice(0, 1), slice(1, 2))
    assert [e.meta["of"] for e in copies] == [rounds[1].hash]


def test_what_succeeded_is_imitated_at_the_goal_that_it_reached():
    near, still, missed = (
        episode([0, 1, 7.5], 8, success=True),
        episode([0, 0, 0], 0, success=True),
        episode([0, 1, 2], 8),
    )
    of_near, of_missed = hindsight.relabelled([near, still, missed], slice(0, 1), slice(1, 2))
    assert of_near.obs["state"][0].tolist() == [0, 7.5] and of_near.meta["of"] == near.hash
    told = [near, still, missed, of_near, of_missed]
    won = np.array([bool(e.success) for e in told])
    kept = hindsight.imitated([e.hash for e in told], won, [e.meta for e in told])
    assert kept.tolist() == [False, True, False, True, False]


def test_a_task_without_such_a_goal_says_what_it_has():
    env = envs.make({"name": "gym", "id": "toy:Keyed-v0"}, 1)
    assert hindsight.goals(WHERE, env, "success") == (slice(2, 4), slice(0, 2))
    with pytest.raises(
        UsageError, match=r"achieved_goal and desired_goal; toy:Keyed-v0 has goal \[2\], position \[2\]"
    ):
        hindsight.goals(Goal(), env, "success")
    with pytest.raises(UsageError, match="task.reward=env"):
        hindsight.goals(WHERE, env, "env")


def test_on_policy_there_is_no_hindsight(tmp_path):
    with pytest.raises(UsageError, match="algorithm ppo learns from what its policy has just done"):
        config.load("online", ["task=lift", "algorithm=ppo", "algorithm.collect.hindsight={}"], tmp_path)


@pytest.mark.parametrize("stage", ["retrain", "online"])
def test_rounds_learn_from_copies_that_count_nowhere(stage, tmp_path, capsys):
    toy.demonstrations(tmp_path / "demos.hdf5")
    at = [f"store={tmp_path / 'store'}", *KEYED, "num_envs=8", "threads=1"]
    small.call("ingest", *at[:4], f"source={tmp_path / 'demos.hdf5'}", "fps=10", capsys=capsys)
    made = small.call("pretrain", "policy=flow", "algorithm.cadence.improve=20", *small.LITTLE, *at, capsys=capsys)[1]
    keys = "{achieved: position, desired: goal}"
    words = {
        "retrain": ["rounds=2", "collect.episodes=8", "collect.retry=0", f"collect.hindsight={keys}", "algorithm.cadence.evaluate=3",
                    "algorithm.cadence.improve=3"],
        "online": ["algorithm=ogpo", "rounds=2", "algorithm.cadence={evaluate: 2, improve: 2}", "score_every=0",
                   f"algorithm.collect={{steps: 120, n: 4, retry: 0, hindsight: {keys}}}"],
    }[stage]  # fmt: skip
    ref = made["outputs"]["checkpoint"]
    out = small.call(stage, f"checkpoint={ref}", "batch_size=16", *words, *at, capsys=capsys)[1]
    assert out["status"] == "done", out
    place = Store(tmp_path / "store")
    content, version = place.find(out["run"])["content"], place.corpus().at("latest")
    learnt = [version.read(digest) for digest in content["episodes"]]
    copies = [e for e in learnt if e.origin.startswith("hindsight:")]
    played = {e.hash: e for e in learnt if e.origin.startswith("policy:")}
    assert copies and len(copies) + len(played) == len(learnt)
    for copy in copies:
        first = played[copy.meta["of"]]
        np.testing.assert_array_equal(
            copy.obs["state"][:, :2], np.tile(first.obs["state"][-1, 2:], (len(first) + 1, 1))
        )
        np.testing.assert_array_equal(copy.action, first.action)
        assert copy.success
    assert len(content["outcomes"]) == sum(line["episodes"] for line in content["history"])
    again = small.call(
        "pretrain", "policy=flow", "algorithm.cadence.improve=20", "seed=2", *small.LITTLE, *at, capsys=capsys
    )
    assert again[1]["metrics"]["demonstrations"] == made["metrics"]["demonstrations"], "no policy's, nor copies of its"
