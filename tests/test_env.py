"""Environments in batches, the guard, and the rollout that makes every episode."""

import gymnasium
import numpy as np
import pytest
import toy  # noqa: F401 (registers toy:Reach-v0)

from flywheel import env as envs
from flywheel import gym_task
from flywheel.guard import Guard
from flywheel.gym_task import TaskError


class Straight:
    """Goes straight to the goal."""

    def __init__(self):
        self.begun = []

    def reset(self, slots, seeds):
        self.begun += list(zip(slots, seeds, strict=True))

    def act(self, obs, slots=None):
        return np.clip((obs[:, 2:] - obs[:, :2]) * 5, -1, 1)


class Idle(Straight):
    def act(self, obs, slots=None):
        return np.zeros((len(obs), 2), np.float32)


@pytest.fixture
def batch():
    made = envs.make({"name": "gym", "id": "toy:Reach-v0", "max_steps": 20, "also": []}, 4)
    yield made
    made.close()


def test_episodes_come_in_the_order_of_their_seeds_whatever_ends_first(batch):
    episodes, _ = envs.rollout(batch, Straight(), list(range(11)), origin="test")
    assert [e.seed for e in episodes] == list(range(11))
    alone, _ = envs.rollout(
        envs.make({"name": "gym", "id": "toy:Reach-v0", "max_steps": 20}, 1), Straight(), [7], origin="test"
    )
    assert alone[0].hash == episodes[7].hash


def test_success_is_rewarded_once_and_terminates(batch):
    episodes, _ = envs.rollout(batch, Straight(), range(8), origin="test")
    for e in episodes:
        assert e.success and e.terminated
        assert e.reward.tolist() == [0.0] * (len(e) - 1) + [1.0]
        assert len(e.obs["state"]) == len(e) + 1
        assert (e.extras["env_reward"] <= 0).all()  # the environment's own reward is kept


def test_a_time_out_is_not_terminated(batch):
    episodes, _ = envs.rollout(batch, Idle(), range(100, 104), origin="test")
    assert [(len(e), e.terminated, e.success) for e in episodes if not e.success] == [(20, False, False)] * 4


def test_success_at_any_step_and_at_the_end_are_two_figures(batch):
    class Through(Straight):
        """Straight to the goal, and on, out of the picture."""

        def reset(self, slots, seeds):
            self.there = dict.fromkeys(range(9), False) if not hasattr(self, "there") else self.there
            for slot in slots:
                self.there[slot] = False

        def act(self, obs, slots=None):
            action = np.clip((obs[:, 2:] - obs[:, :2]) * 5, -1, 1)
            for i, slot in enumerate(slots):
                self.there[slot] |= bool(np.linalg.norm(obs[i, 2:] - obs[i, :2]) < 0.1)
                if self.there[slot]:
                    action[i] = 1.0
            return action

    episodes, _ = envs.rollout(batch, Through(), range(6), origin="test", stop_at_success=False)
    assert all(e.success and len(e) == 20 and not e.terminated and e.reward.sum() == 1 for e in episodes)
    assert not any(e.meta["success_at_end"] for e in episodes if e.reward.argmax() < 15)


def test_what_is_no_task_is_refused_by_name():
    with pytest.raises(TaskError, match=r"toy:Binary-v0: action space MultiBinary\(3\) is neither Box nor Discrete"):
        envs.make({"name": "gym", "id": "toy:Binary-v0"}, 1)
    with pytest.raises(ValueError, match="task.reward=dense.*expected reward success"):
        envs.make({"name": "lift", "reward": "dense"}, 1)
    with pytest.raises(ValueError, match="task.reward=success task.solved=3"):
        envs.make({"name": "lift", "solved": 3}, 1)
    with pytest.raises(TaskError, match="'NoSuch-v0' is not a registered Gymnasium environment"):
        envs.make({"name": "gym", "id": "NoSuch-v0"}, 1)
    silent = envs.make({"name": "gym", "id": "toy:Silent-v0"}, 1)
    with pytest.raises(TaskError, match="info has no 'success, is_success, succeed'; it has: elsewhere"):
        envs.rollout(silent, Idle(), [0], origin="test")
    with pytest.raises(TaskError, match="cannot set its state"):
        silent.get_state(0)
    with pytest.raises(ValueError, match="no task 'pusj' in sim/. There are: insert, lift, push"):
        envs.make({"name": "pusj"}, 1)


def test_the_guard_clips_and_holds():
    guard = Guard(np.float32([-1, -1]), np.float32([1, 1]), slots=3)
    first = guard(np.array([[0.5, 3.0], [np.nan, 0.0]]), np.array([0, 2]))
    assert first.tolist() == [[0.5, 1.0], [0.0, 0.0]]
    second = guard(np.array([[np.inf, 0.0]]), np.array([0]))
    assert second.tolist() == [[0.5, 1.0]]  # the last one executed
    assert guard.count == {"steps": 3, "clipped": 1, "held": 2}


def test_dict_observations_are_flattened_in_the_spaces_order():
    pytest.importorskip("gymnasium_robotics")
    batch = envs.make({"name": "gym", "id": "FetchReach-v4", "max_steps": 5}, 1)
    obs = batch.reset([3])
    plain = gymnasium.make("FetchReach-v4")
    raw, _ = plain.reset(seed=3)
    assert np.array_equal(obs[0], np.concatenate([raw[k] for k in plain.observation_space.spaces]).astype(np.float32))
    assert batch.obs_names[:2] == ["achieved_goal[0]", "achieved_goal[1]"] and len(batch.obs_names) == batch.obs_dim
    plain.close()
    episodes, _ = envs.rollout(
        batch, type("P", (Straight,), {"act": lambda s, o, slots=None: np.zeros((len(o), 4))})(), [1], origin="t"
    )
    assert len(episodes[0]) == 5 and episodes[0].success is not None


def test_a_state_can_be_set_and_goes_on_exactly():
    pytest.importorskip("gymnasium_robotics")
    batch = envs.make({"name": "gym", "id": "AdroitHandDoor-v1", "max_steps": 50}, 2, threads=1)
    batch.reset([1, 2])
    action = np.random.default_rng(0).uniform(-1, 1, (2, 28)).astype(np.float32)
    for _ in range(5):
        batch.step(action)
    state = batch.get_state(0)
    batch.set_state(1, state)
    action[1] = action[0]
    for _ in range(5):
        obs, *_ = batch.step(action)
    assert np.array_equal(obs[0], obs[1])


def corridor(**more):
    return envs.make({"name": "gym", "id": "toy:Corridor-v0", "max_steps": 6, "reward": "env", **more}, 2, threads=1)


class Right(Idle):
    def act(self, obs, slots=None):
        return np.tile(np.array([0, 1], np.float32), (len(obs), 1))


def test_discrete_spaces_are_one_hot_and_the_environments_own_reward_decides():
    env = corridor()
    assert (env.obs_dim, env.action_dim) == (5, 2)
    done, _ = envs.rollout(env, Right(), range(6), origin="test")
    for e in done:
        first = int(e.obs["state"][0].argmax())
        assert (e.obs["state"].sum(1) == 1).all() and len(e) == 4 - first
        assert e.terminated and not e.success and (e.extras["env_reward"] == -1).all() and (e.reward == 0).all()
    solved, _ = envs.rollout(corridor(solved=-3), Right(), range(6), origin="test")
    assert [e.success for e in solved] == [len(e) <= 3 for e in solved]


class Left(Idle):
    def act(self, obs, slots=None):
        return np.tile(np.array([1, 0], np.float32), (len(obs), 1))


def test_a_time_limit_is_not_an_end():
    done, _ = envs.rollout(corridor(), Left(), range(3), origin="test")
    assert all(len(e) == 6 and not e.terminated for e in done)


def test_steps_bound_how_many_episodes_are_begun_and_all_of_them_are_finished():
    done, _ = envs.rollout(corridor(), Left(), range(100), origin="test", steps=20)
    assert [len(e) for e in done] == [
        6,
        6,
        6,
        6,
    ]  # two beside each other; when the third pair would begin, 24 were made
    assert [e.seed for e in done] == [0, 1, 2, 3]


def test_what_cannot_be_drawn_has_no_clip(capsys):
    from flywheel.stages.evaluate import clip

    assert clip(Left(), corridor(), 0) == [] and "name no rgb_array" in capsys.readouterr().err


def test_threads_step_where_they_were_faster_and_both_are_timed_again():
    faster, ways = gym_task.Faster(), []
    cost = {False: 0.01, True: 0.006}  # s an environment
    for call in range(2 * gym_task.AGAIN):
        if call == gym_task.AGAIN:
            cost[True] = 0.02  # a neighbour has come
        ways.append(faster.threads())
        faster.took(ways[-1], 4 * cost[ways[-1]], 4)
    first, second = ways[: gym_task.AGAIN], ways[gym_task.AGAIN :]
    tried = gym_task.TIMED
    assert not any(first[:tried]) and all(first[tried:])
    assert not any(second[:tried]) and all(second[tried : 2 * tried]) and not any(second[2 * tried :])
