"""Tasks with cameras: what is recorded, what goes into the corpus, and that a policy really looks."""

from pathlib import Path

import flywheel_sim
import h5py
import numpy as np
import pytest
from small import call

from flywheel import env as envs
from flywheel.args import Task
from flywheel.policy._uniform import Uniform
from flywheel.rl.build import shape
from flywheel.runs.run import Store

DEMOS = Path(flywheel_sim.__file__).parent.parent / "datasets" / "lift_demos.hdf5"
EYES = {"wrist": 24, "top": 32}
TASK = "task.cameras={wrist: 24, top: 32}"


@pytest.fixture(autouse=True, scope="module")
def opengl():
    batch = flywheel_sim.make_batch("lift", 1, cameras={"top": 16})
    try:
        batch.look([0])
    except RuntimeError as error:
        pytest.skip(str(error))
    finally:
        batch.close()


@pytest.fixture(scope="module")
def few(tmp_path_factory) -> Path:
    """Four of the shipped demonstrations, of which the last says that the hand was elsewhere."""
    path = tmp_path_factory.mktemp("few") / "few.hdf5"
    with h5py.File(DEMOS) as whole, h5py.File(path, "w") as part:
        data = part.create_group("data")
        for key, value in whole["data"].attrs.items():
            data.attrs[key] = value
        won = list(whole["data"])[:4]
        for name in won:
            whole["data"].copy(name, data)
        moved = data[won[-1]]["obs"]["robot0_eef_pos"]
        moved[...] = moved[...] + 0.05
    return path


def test_a_demonstration_is_replayed_and_filmed(few, tmp_path, capsys):
    """The state in the corpus is what the robot knows of itself; what does not come back as recorded stays outside."""
    code, out = call("ingest", f"source={few}", "task=lift", TASK, f"store={tmp_path}", capsys=capsys)
    assert code == 0 and out["metrics"]["added"] == 3 and out["metrics"]["quarantined"] == 1, out
    store = Store(tmp_path)
    (aside,) = store.runs("ingest")[-1]["content"]["quarantined"]
    assert "replayed, robot0_eef_pos[" in aside["reason"] and "from what was recorded" in aside["reason"]
    version = store.corpus().at("latest")
    first = version.read(0)
    assert first.task == "lift{top=32,wrist=24}" and first.obs["state"].shape == (len(first) + 1, 10)
    batch = flywheel_sim.make_batch("lift", 1, cameras=EYES)
    batch.reset_at(0, first.seed or 0, dict(first.start) or None)
    for t, action in enumerate(first.action[:5]):
        for camera, side in EYES.items():
            frames = np.asarray(first.obs[camera])
            assert frames.shape == (len(first) + 1, side, side, 3)
            np.testing.assert_array_equal(frames[t], batch.look([0])[camera][0])
        batch.step(action[None])
    batch.close()


def test_a_rollout_films_what_each_camera_saw_and_only_where_it_is_asked_to():
    env = envs.make(Task(name="lift", cameras=EYES), 3, 2)
    policy = Uniform(**shape(env), obs_steps=1, action_steps=1, discrete=False)
    done, _ = envs.rollout(env, policy, range(5), origin="test", film=True)
    blind, _ = envs.rollout(env, policy, range(5), origin="test")
    for one, other in zip(done, blind, strict=True):
        assert list(other.obs) == ["state"] and np.array_equal(one.obs["state"], other.obs["state"])
        env.reset_at(0, one.seed)
        for t in range(3):
            for camera in EYES:
                np.testing.assert_array_equal(one.obs[camera][t], env.look([0])[camera][0])
            action = np.zeros((3, env.action_dim), np.float32)
            action[0] = one.action[t]
            env.step(action, [0])
        assert all(len(one.obs[camera]) == len(one) + 1 for camera in EYES)
    env.close()


def test_cameras_belong_to_tasks_that_draw():
    with pytest.raises(ValueError, match="cameras=.*that is for a task of sim/"):
        Task(name="gym", id="Pendulum-v1", cameras={"top": 64})
