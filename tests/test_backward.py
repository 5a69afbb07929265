"""Starts along replayed demonstrations: where they lie, and that an episode from there begins where the recording
was."""

from pathlib import Path

import flywheel_datasets
import numpy as np
import pytest

from flywheel import env as envs
from flywheel.intake.recordings import reader
from flywheel.rl.backward import Backward, Rule
from flywheel.rl.practice import Memory

RULE = Rule(own_every=4)


@pytest.fixture(scope="module")
def lift():
    path = Path(next(iter(flywheel_datasets.__path__))) / "lift_demos.hdf5"
    demos = [e for _, e in zip(range(12), reader("robomimic_hdf5")(path), strict=False) if e.success]
    env = envs.make({"name": "lift"}, 4)
    yield env, demos
    env.close()


def backward(env=None, demos=()):
    return Backward(RULE, 1, demos, env, Memory())


def test_it_begins_only_where_the_base_never_succeeds():
    for successes, episodes, wanted in [(0, 49, None), (0, 50, True), (0.02, 50, False), (0, 96, True)]:
        one = backward()
        one.decide(successes, episodes)
        assert one.memory.backward is wanted
    assert backward().starts(8) is None
    one = backward()
    one.decide(0, 50)
    one.decide(5, 50)  # decided once
    assert one.memory.backward is True


def test_the_window_moves_back_by_success_and_not_beyond_the_beginning():
    one = backward()
    one.decide(0, 50)
    seen = []
    for rate in (0.9, 0.7, 0.6, 0.5, *[1.0] * 9):
        one.move(rate)
        seen.append(round(one.memory.window, 2))
    assert seen[:4] == [0.75, 0.7, 0.7, 0.7]
    assert seen[-1] == 0.0


def test_episodes_begin_where_the_recording_was(lift):
    env, demos = lift
    one = backward(env, demos)
    one.decide(0, 50)
    starts = one.starts(8)
    assert [s is None for s in starts] == [True, False, False, False] * 2

    class Idle:
        def reset(self, slots, seeds):
            pass

        def act(self, obs, slots=None):
            return np.zeros((len(obs), env.action_dim), np.float32)

    episodes, _ = envs.rollout(env, Idle(), range(8), origin="test", starts=starts)
    recorded = {e.hash: e for e in demos}
    for episode, start in zip(episodes, starts, strict=True):
        if start is None:
            assert "start_from" not in episode.meta
            continue
        demo = recorded[episode.meta["start_from"]]
        step, length = episode.meta["start_step"], int(demo.reward.argmax()) + 1
        assert 0.85 * length - 1 <= step < length
        np.testing.assert_allclose(episode.obs["state"][0], demo.obs["state"][step], atol=2e-3)
