"""Environments in batches, the guard, and the rollout that makes every episode."""

import json

import gymnasium
import numpy as np
import pytest
import toy  # noqa: F401 (registers toy:Reach-v0)

from flywheel import env as envs
from flywheel.env import gym_batch as gym_task
from flywheel.env import spaces as gym_spaces
from flywheel.env import trust
from flywheel.env.guard import StepGuard
from flywheel.env.gym_batch import GymBatch, TaskError
from flywheel.env.playback import replay
from flywheel.policy import base
from flywheel.rl import build
from flywheel.runs import names


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


@pytest.mark.parametrize(("mode", "length"), [("any", 1), ("held:3", 3), ("last", 20), ("last:3", 20)])
def test_collection_stops_once_the_tasks_success_is_decided(mode, length):
    """findings F3: held needs so many steps in a row, last never stops early; the reward lies where it was decided."""
    task = {"name": "gym", "id": "toy:Reach-v0", "max_steps": 20}
    first = {e.seed: len(e) for e in envs.rollout(envs.make(task, 4), Straight(), range(6), origin="t")[0]}
    batch = envs.make({**task, "success": mode}, 4)
    for e in envs.rollout(batch, Straight(), range(6), origin="t")[0]:
        assert e.success and e.terminated and e.reward.sum() == 1 and (mode == "last:3" or e.reward[-1] == 1)
        assert len(e) == (20 if mode.startswith("last") else first[e.seed] + length - 1)
    for e in envs.rollout(batch, Straight(), range(6), origin="t", stop_at_success=False)[0]:
        at = {"any": first[e.seed] - 1, "held:3": first[e.seed] + 1, "last": 19, "last:3": first[e.seed] + 1}[mode]
        assert len(e) == 20 and int(e.reward.argmax()) == at and e.meta["success_at_end"]
    batch.close()


def test_touching_is_not_holding():
    """findings F3: who passes through the goal succeeds at any step, and neither holds nor ends there."""

    class Through(Idle):
        def act(self, obs, slots=None):
            return np.tile(np.float32([1, 0]), (len(obs), 1))

    seeds, rates = range(60), {}
    for mode in ("any", "held:3", "last"):
        batch = envs.make({"name": "gym", "id": "toy:Reach-v0", "success": mode}, 8)
        rates[mode] = sum(
            e.success for e in envs.rollout(batch, Through(), seeds, origin="t", stop_at_success=False)[0]
        )
        batch.close()
    assert rates["any"] > 0 and rates["held:3"] == rates["last"] == 0


def test_our_own_tasks_count_a_success_that_is_held_and_anybody_may_say_otherwise():
    for task, mode in (({"name": "lift"}, "held:10"), ({"name": "lift", "success": "any"}, "any"), ({"name": "gym", "id": "flywheel/Lift-v0", "max_steps": 80}, "held:10"), ({"name": "gym", "id": "toy:Reach-v0"}, "any")):  # fmt: skip
        batch = envs.make(task, 1)
        assert batch.success == mode
        batch.close()
    with pytest.raises(ValueError, match=r"task.success=first; expected any"):
        envs.make({"name": "lift", "success": "first"}, 1)
    with pytest.raises(ValueError, match=r"task.faults=-1; expected a number from 0 to 1"):
        envs.make({"name": "lift", "faults": -1}, 1)


def test_an_end_of_the_environments_own_is_kept_in_every_mode():
    """findings C2 and findings C5: a fall is terminated and no success; `succeed` is a success key."""
    batch = envs.make({"name": "gym", "id": "odd:Falls-v0"}, 4)
    done, _ = envs.rollout(batch, Straight(), range(40), origin="t")
    assert {(e.terminated, e.success) for e in done} == {(True, False), (True, True)}
    assert all(len(e) == 4 for e in done if not e.success)
    batch.close()


def test_what_looks_like_success_is_not_scored_0_in_silence():
    """findings C5: with the environment's own reward, too."""
    task = {"name": "gym", "id": "odd:Falls-v0", "reward": "env", "kwargs": {"name": "task_succeeded"}}
    batch = envs.make(task, 2)
    with pytest.raises(
        TaskError, match="info has 'task_succeeded', which looks like success.*task.success_key=task_succeeded, or"
    ):
        envs.rollout(batch, Idle(), range(2), origin="t")
    batch.close()
    for key, expected in (("task_succeeded", {True, False}), ("none", {False})):
        batch = envs.make({**task, "success_key": key}, 4)
        assert {e.success for e in envs.rollout(batch, Straight(), range(40), origin="t")[0]} == expected
        batch.close()


def test_pictures_are_refused_by_name_and_may_be_left_out():
    """findings C3: no picture is flattened into numbers; keys of a Dict can be chosen."""
    floats = {"name": "gym", "id": "odd:Camera-v0", "kwargs": {"float": True}}
    with pytest.raises(
        TaskError, match=r"pixels is a picture, \[96, 96, 3\] float32; .*task.obs_keys=\[agent_pos,goal\]"
    ):
        envs.make(floats, 1)
    with pytest.raises(TaskError, match=r"has pictures alone \(pixels\); expected numbers beside them"):
        envs.make({"name": "gym", "id": "odd:Camera-v0", "obs_keys": ["pixels"]}, 1)
    batch = envs.make({"name": "gym", "id": "odd:Camera-v0", "obs_keys": ["goal", "agent_pos"]}, 1)
    assert batch.obs_names == ["goal[0]", "goal[1]", "agent_pos[0]", "agent_pos[1]"]
    assert batch.task == "odd:Camera-v0{obs=goal+agent_pos}"
    batch.close()
    with pytest.raises(TaskError, match="task.obs_keys: there is no wrist; there is agent_pos, goal, pixels"):
        envs.make({"name": "gym", "id": "odd:Camera-v0", "obs_keys": ["wrist"]}, 1)
    with pytest.raises(TaskError, match=r"the observation is Box.*no Dict; leave obs_keys out"):
        envs.make({"name": "gym", "id": "toy:Reach-v0", "obs_keys": ["at"]}, 1)


@pytest.mark.parametrize(
    ("shape", "kind", "picture"),
    [((96, 96, 3), np.uint8, True), ((3, 64, 64), np.float32, True), ((84, 84), np.uint8, True), ((4, 84, 84), np.uint8, True),
     ((2, 64, 64), np.float32, True), ((64, 64, 2), np.float32, True), ((128,), np.uint8, False), ((7, 3), np.float32, False),
     ((2, 4, 4), np.float32, False), ((84, 84), np.float32, False), ((2, 96, 96, 3), np.uint8, True)],
)  # fmt: skip
def test_what_is_a_picture(shape, kind, picture):
    """findings C3: whatever looks like an image, channels first or last."""
    assert gym_spaces._is_picture(gymnasium.spaces.Box(0, 1, shape, kind)) is picture


def test_a_policy_takes_the_dict_that_the_environment_gives():
    """findings F8: what acts on a robot gets what the environment says, not what training flattened."""
    batch = envs.make({"name": "gym", "id": "odd:Camera-v0", "obs_keys": ["goal", "agent_pos"]}, 1)
    policy = base.build({"kind": "deterministic", "width": 8, "depth": 1, **build.shape(batch)}).eval()
    seen = {"agent_pos": np.float32([3, 4]), "pixels": np.zeros((96, 96, 3), np.uint8), "goal": np.float64([1, 2])}
    first = policy.act(seen)
    policy.reset()
    np.testing.assert_array_equal(first, policy.act(np.float32([1, 2, 3, 4])))
    again = base.build(json.loads(json.dumps(policy.spec, sort_keys=True)))
    assert list(again.obs_shapes.items()) == [("goal", (2,)), ("agent_pos", (2,))]
    with pytest.raises(
        ValueError, match=r"observation has goal \[2\]; this policy was trained on goal \[2\], agent_pos \[2\]"
    ):
        policy.act({"goal": np.zeros(2)})
    batch.close()


def test_an_environment_that_draws_is_stepped_by_one_thread():
    """OpenGL of several threads at once may end the process (tests/test_sim.py), also where nobody looks."""
    for task in ({"id": "odd:Camera-v0"}, {"id": "odd:Camera-v0", "obs_keys": ["goal", "agent_pos"]}):
        batch = GymBatch(num_envs=4, threads=4, **task)
        assert not batch._helpers
        batch.close()
    batch = GymBatch("toy:Reach-v0", num_envs=4, threads=4)
    assert len(batch._helpers) == 3
    batch.close()


def test_whether_seeds_decide(capsys):
    """findings C4: found by two resets, and said once."""
    for id, honest in (("toy:Reach-v0", True), ("odd:Seedless-v0", False)):
        batch = envs.make({"name": "gym", "id": id}, 2)
        found, reason = envs.honours_seeds(batch)
        assert found is honest and envs.honours_seeds(batch) == (found, reason)
        said = capsys.readouterr().err
        assert honest != ("seeds do not decide its episodes" in said) and said.count("reset twice with seed 7") == (
            not honest
        )
        batch.close()
    lift = envs.make({"name": "lift"}, 2)
    assert envs.honours_seeds(lift)[0] and trust.keeps_state(lift)[0]
    lift.close()


def test_whether_a_state_can_be_set_again():
    """findings F7: Fetch's goal lies outside its state; the door's frame is part of it."""
    pytest.importorskip("gymnasium_robotics")
    for id, kept in (("FetchReach-v4", False), ("AdroitHandDoor-v1", True), ("toy:Reach-v0", False)):
        batch = envs.make({"name": "gym", "id": id, "max_steps": 50}, 1)
        found, reason = trust.keeps_state(batch)
        assert found is kept, reason
        if id.startswith("Fetch"):
            assert "desired_goal[0] is" in reason
            demo, _ = envs.rollout(batch, Still(4), [5], origin="t")
            with pytest.raises(ValueError, match=r"FetchReach-v4 cannot be put back to a state: .*desired_goal"):
                replay(batch, demo[0], keep_states=True)
        batch.close()


class Still(Idle):
    def __init__(self, width):
        super().__init__()
        self.width = width

    def act(self, obs, slots=None):
        return np.zeros((len(obs), self.width), np.float32)


def test_other_options_make_another_task_with_another_name():
    """findings F7 and findings F8: kwargs are part of a task's identity; names have neither module nor namespace
    twice."""
    from flywheel import selection
    from flywheel.args import Task
    from flywheel.stages.pretrain import Args

    id, options = "gym_pusht:gym_pusht/PushT-v0", {"obs_type": "state", "big": {"a": [1, 2]}}
    one, other = (Args(task=Task(name="gym", id=id, kwargs=kwargs)) for kwargs in (options, {}))
    title = selection.title(one.task)
    assert title.startswith("gym_pusht:gym_pusht/PushT-v0{big=") and title.endswith(",obs_type=state}")
    name = selection.name_of(one)
    assert names.NAME.fullmatch(name) and name.startswith("policy/PushT-v0-big-")
    assert (selection.title(other.task), selection.name_of(other)) == (
        "gym_pusht:gym_pusht/PushT-v0",
        "policy/PushT-v0",
    )


def test_the_code_of_an_environment_is_part_of_what_it_is(tmp_path, monkeypatch):
    """findings A4: its class's source or its distribution's version; a module of the current folder is found."""
    monkeypatch.chdir(tmp_path)
    text = "import gymnasium, toy\nclass Mine(toy.Reach):\n    pass\ngymnasium.register('Mine-v0', Mine, max_episode_steps=20)\n"
    (tmp_path / "mine_beside.py").write_text(text)
    found = gym_task.identity("mine_beside:Mine-v0", {"a": 1})
    assert found["entry_point"] == "mine_beside:Mine" and found["kwargs"] == {"a": 1} and found["distribution"] is None
    (tmp_path / "mine_beside.py").write_text(text + "# changed\n")
    assert gym_task.identity("mine_beside:Mine-v0")["code"] != found["code"]
    batch = envs.make({"name": "gym", "id": "mine_beside:Mine-v0"}, 1)
    assert len(envs.rollout(batch, Idle(), [0], origin="t")[0]) == 1
    batch.close()
    known = gym_task.identity("CartPole-v1")
    assert (known["distribution"], known["code"]) == ("gymnasium", None) and known["version"]
    assert gym_task.identity("flywheel/Lift-v0")["code"] != gym_task.identity("toy:Reach-v0")["code"] is not None


def test_an_environment_that_draws_itself_has_a_clip_of_a_second(tmp_path):
    """findings F8: not only MuJoCo's; a success after four steps is shown for a second."""
    import av

    from flywheel.env.scoring import clip, film

    batch = envs.make({"name": "gym", "id": "odd:Camera-v0", "obs_keys": ["agent_pos", "goal"]}, 2)

    class There(Idle):
        def act(self, obs, slots=None):
            return np.clip((obs[:, 2:] - obs[:, :2]) * 5, -1, 1)

    ((seed, few),) = [(e.seed, len(e)) for e in envs.rollout(batch, There(), range(30), origin="t")[0] if len(e) <= 4][
        :1
    ]
    frames = clip(There(), batch, seed, every=2)
    assert len(frames) == -(-few // 2) and frames[0].shape == (48, 64, 3) and frames[0].dtype == np.uint8
    assert film(There(), batch, seed, str(tmp_path / "clip.mp4")) == 5
    with av.open(str(tmp_path / "clip.mp4")) as file:
        assert len(list(file.decode(video=0))) == 5 and file.streams.video[0].average_rate == 5
    batch.close()


def test_what_is_no_task_is_refused_by_name():
    with pytest.raises(TaskError, match=r"toy:Binary-v0: action space MultiBinary\(3\) is neither Box nor Discrete"):
        envs.make({"name": "gym", "id": "toy:Binary-v0"}, 1)
    with pytest.raises(ValueError, match="task.reward=dense; expected success or env"):
        envs.make({"name": "lift", "reward": "dense"}, 1)
    with pytest.raises(ValueError, match="task.reward=success task.solved=3"):
        envs.make({"name": "lift", "solved": 3}, 1)
    with pytest.raises(TaskError, match="'NoSuch-v0' is not a registered Gymnasium environment"):
        envs.make({"name": "gym", "id": "NoSuch-v0"}, 1)
    with pytest.raises(
        TaskError, match=r"'nosuch:Env-v0' cannot be made with task.kwargs=\{\}: ModuleNotFoundError: .*nosuch"
    ):
        envs.make({"name": "gym", "id": "nosuch:Env-v0"}, 1)
    with pytest.raises(TaskError, match=r"cannot be made with task.kwargs=\{'colour': 'red'\}: TypeError: .*colour"):
        envs.make({"name": "gym", "id": "toy:Reach-v0", "kwargs": {"colour": "red"}}, 1)
    silent = envs.make({"name": "gym", "id": "toy:Silent-v0"}, 1)
    with pytest.raises(TaskError, match="info has no 'success, is_success, succeed'; it has: elsewhere"):
        envs.rollout(silent, Idle(), [0], origin="test")
    with pytest.raises(TaskError, match="cannot set its state"):
        silent.get_state(0)
    with pytest.raises(ValueError, match="no task 'pusj' in sim/. There are: assemble, insert, lift, push"):
        envs.make({"name": "pusj"}, 1)


def test_the_guard_forgets_an_episode_judges_each_dimension_and_rests_without_a_motion():
    """findings C6: the last action does not survive into the next episode, ranges differ, and the middle is no rest."""
    guard = StepGuard(np.float32([-1, 0, 0.5]), np.float32([1, 1000, 1.5]), slots=2)
    nothing = np.full((1, 3), np.nan)
    assert guard(nothing, np.array([0])).tolist() == [[0.0, 0.0, 0.5]]  # zero, clipped; not 0, 500, 1
    guard(np.array([[0.5, 7.0, 1.0]]), np.array([0]))
    guard.begin(0)
    assert guard(nothing, np.array([0])).tolist() == [[0.0, 0.0, 0.5]]
    guard.count.clear()
    guard(
        np.array([[2.5, 7.0, 1.0], [0.0, 1100.0, 1.0]]), np.array([0, 1])
    )  # 1.5 of a range of 2; 100 of a range of 1000
    assert guard.count["limits"] == 1
    rests = StepGuard(np.float32([-1, 0]), np.float32([1, 9]), 1, rest=lambda slot: np.array([0.25, 11.0]))
    rests.begin(0)
    assert rests(nothing[:, :2], np.array([0])).tolist() == [[0.25, 9.0]]


def test_an_environment_may_say_how_to_hold_still():
    """findings C6: where actions are positions, zero is a motion; hold_action() of the environment is asked at each
    beginning."""

    class Broken(Idle):
        def act(self, obs, slots=None):
            return np.full((len(obs), 2), np.nan)

    env = envs.make({"name": "gym", "id": "odd:Position-v0"}, 2)
    done, counts = envs.rollout(env, Broken(), range(3), origin="test")
    assert counts["finite"] == 60 and all((e.action == [0.75, 100.0]).all() for e in done)
    env.close()
    lift = envs.make({"name": "lift"}, 1)
    assert lift.hold_action(0).tolist() == [0, 0, 0, 0, -1]  # the open gripper stays open
    lift.close()


def test_the_guard_clips_and_holds():
    guard = StepGuard(np.float32([-1, -1]), np.float32([1, 1]), slots=3)
    first = guard(np.array([[0.5, 3.0], [np.nan, 0.0]]), np.array([0, 2]))
    assert first.tolist() == [[0.5, 1.0], [0.0, 0.0]]
    second = guard(np.array([[np.inf, 0.0]]), np.array([0]))
    assert second.tolist() == [[0.5, 1.0]]  # the last one executed
    assert guard.count == {"steps": 3, "limits": 1, "finite": 2}


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
    from flywheel.env.scoring import clip

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
