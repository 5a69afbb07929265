"""Tasks with cameras: what is recorded, what goes into the corpus, and that a policy really looks."""

import json
from pathlib import Path

import flywheel_sim
import h5py
import numpy as np
import pytest
from small import call

from flywheel import env as envs
from flywheel.args import Task, UsageError
from flywheel.cli import config
from flywheel.episode import check
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


# -- policies that see -------------------------------------------------------------------------------------------------

torch = pytest.importorskip("torch")


def made(kind: str, **more):
    from flywheel.policy.base import build

    torch.manual_seed(0)
    spec = {"kind": kind, "obs": [["state", [3]]], "action_dim": 2, "width": 8, "depth": 1, **more}
    return build({**spec, "cameras": {"wrist": [24, 24, 3], "top": [32, 32, 3]}}).eval()


def watched(count: int, seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    frames = {name: rng.integers(0, 256, (count, side, side, 3)).astype(np.uint8) for name, side in EYES.items()}
    return {"state": rng.normal(size=(count, 3)).astype(np.float32), **frames}


@pytest.mark.parametrize("kind", ["flow", "diffusion", "gaussian", "deterministic", "one_step"])
def test_an_action_depends_on_each_picture_and_on_no_neighbour(kind, tmp_path):
    from flywheel.policy import base

    policy, obs = made(kind), watched(5)
    for net in policy.modules():  # some begin at zero, and would not look
        if isinstance(net, torch.nn.Linear):
            torch.nn.init.normal_(net.weight, std=0.5)
    policy.reset(range(5), range(5))
    together = policy.act(obs)
    for i in range(5):
        policy.reset([0], [i])
        np.testing.assert_array_equal(policy.act({key: value[i] for key, value in obs.items()}), together[i])
    for camera in EYES:
        other = {**obs, camera: 255 - obs[camera]}
        policy.reset(range(5), range(5))
        assert (np.abs(policy.act(other) - together).max(1) > 0).all(), f"it does not look at {camera}"
    base.save(policy, tmp_path / "p.safetensors")
    again = base.load(tmp_path / "p.safetensors", "cpu").eval()
    again.reset(range(5), range(5))
    np.testing.assert_array_equal(again.act(obs), together)


def test_a_picture_of_another_kind_is_refused():
    policy, obs = made("flow"), watched(1)
    one = {key: value[0] for key, value in obs.items()}
    for wrong, said in (
        ({"wrist": one["wrist"].astype(np.float32)}, r"\[24, 24, 3\] float32"),
        ({"wrist": one["wrist"][:20]}, r"\[20, 24, 3\] uint8"),
    ):
        with pytest.raises(ValueError, match=f"camera 'wrist' is {said}; this policy was trained on .24, 24, 3. uint8"):
            policy.act({**one, **wrong})
    with pytest.raises(ValueError, match="camera 'top' is nothing"):
        policy.act({key: value for key, value in one.items() if key != "top"})


def test_where_a_feature_is_by_hand():
    """A map with all its mass at one place is that place; a flat one is the middle."""
    from flywheel.policy.eyes import Eye

    class Maps(torch.nn.Module):
        def forward(self, x):
            assert x.shape == (1, 3, 32, 64) and x.min() == -0.5
            maps = torch.zeros(1, 2, 4, 8)
            maps[0, 0, 1, 6] = 100.0
            return maps

    eye = Eye(32, 64)  # maps of 4 x 8
    eye.net = Maps()
    found = eye(torch.zeros(1, 32, 64, 3, dtype=torch.uint8))
    torch.testing.assert_close(found, torch.tensor([[-1 + 6 * 2 / 7, -1 + 2 / 3, 0, 0]]), atol=1e-6, rtol=1e-6)


def test_a_shift_moves_a_picture_and_repeats_its_border():
    from flywheel.policy.eyes import shifted

    frames = torch.arange(16 * 16 * 3).remainder(251).to(torch.uint8).view(1, 16, 16, 3).expand(200, -1, -1, -1)
    moved = shifted(frames, torch.Generator().manual_seed(0))
    seen = set()
    for picture in moved:
        for dy in (-1, 0, 1):
            for dx in (-1, 0, 1):
                y, x = ((torch.arange(16) + d).clamp(0, 15) for d in (dy, dx))
                if torch.equal(picture, frames[0][y][:, x]):
                    seen.add((dy, dx))
    assert len(seen) == 9, "up to a sixteenth of a side, each way"


def test_rows_that_are_repeated_share_their_pictures():
    from flywheel.policy.critic import Critic
    from flywheel.policy.eyes import Seen

    policy, obs = made("flow"), watched(3)
    frames = {name: torch.from_numpy(obs[name]) for name in EYES}
    seen = Seen(torch.randn(3, 2, 3), frames)
    many = seen.repeat_interleave(4)
    assert len(many) == 12 and many.frames["wrist"].shape[0] == 3
    torch.testing.assert_close(policy.encoder(many), policy.encoder(seen).repeat_interleave(4, 0))
    torch.testing.assert_close(policy.encoder(many[::4]), policy.encoder(seen))
    critic = Critic.of(policy, actions=True, members=2, width=8)
    assert critic(many, torch.randn(12, 4, 2)).shape == (2, 12)
    assert not any(p.requires_grad for p in critic.encoder.eyes.parameters()), "it looks through the policy's eyes"


@pytest.mark.slow
@pytest.mark.parametrize("slowly", [False, True])
def test_a_policy_learns_from_pictures_and_is_scored_by_them(few, tmp_path, capsys, slowly):
    """Imitation, a score, its replay; offline RL, from a checkpoint whose eyes have learnt."""
    store = f"store={tmp_path}"
    assert call("ingest", f"source={few}", "task=lift", TASK, store, capsys=capsys)[0] == 0
    words = ["task=lift", TASK, "policy=flow", "policy.width=16", "policy.depth=1", "demos.failures=true", store]
    size = ["algorithm.cadence.improve=6", "score_every=3", "score_episodes=2", "batch_size=8", "num_envs=2"]
    code, out = call("pretrain", *words, *size, "threads=1", capsys=capsys)
    assert code == 0, out
    ref = out["outputs"]["checkpoint"]
    assert ref.startswith("policy/lift-top-32-wrist-24@")
    policy = Store(tmp_path).load(ref)
    assert policy.cameras == {"wrist": (24, 24, 3), "top": (32, 32, 3)} and policy.obs_shapes == {"state": (10,)}
    code, again = call("replay", out["run"], store, capsys=capsys)
    assert code == 0, again  # to the bit
    code, out = call("evaluate", f"checkpoint={ref}", "task=lift", TASK, store, "episodes=2", capsys=capsys)
    assert code == 0 and out["metrics"]["n"] == 2
    code, out = call("evaluate", f"checkpoint={ref}", "task=lift", store, "episodes=2", capsys=capsys)
    assert code != 0 and "task lift shows none; take task.cameras={top: 32, wrist: 24}" in json.dumps(out), out
    code, out = call("pretrain", *words, *size, "algorithm=iql", capsys=capsys)
    assert code != 0 and "algorithm iql: this policy sees top, wrist" in out["error"], out
    assert "begin from one that imitates" in out["error"]
    judge = [
        "algorithm.cadence={rounds: 2, evaluate: 3, improve: 3}",
        "algorithm.critic.width=16",
        "name=policy/judged",
    ]
    for algorithm, *more in (["iql"], ["fql"], ["iql", "algorithm.encoder=learn"]):
        told = [*words, *size, *judge, f"algorithm={algorithm}", *more, f"checkpoint={ref}", "threads=1"]
        code, out = call("pretrain", *told, capsys=capsys)
        assert code == 0, (algorithm, out)
        assert call("replay", out["run"], store, capsys=capsys)[0] == 0
        eyes = Store(tmp_path).load(out["outputs"]["checkpoint"]).encoder.eyes.state_dict()
        same = all(torch.equal(eyes[name], weights) for name, weights in policy.encoder.eyes.state_dict().items())
        assert same == (not more), algorithm
    turn(ref, ["task=lift", TASK, "demos.failures=true", store, "threads=1", "num_envs=2"], capsys, slowly)
    driven = ["driver_args={seed: 3}", "hz=100", "seconds=0.05", store]
    code, out = call("drive", f"checkpoint={ref}", "task=lift", TASK, *driven, capsys=capsys)
    assert code == 0, out
    kept = Store(tmp_path).corpus().at("latest").read(out["outputs"]["episode"])
    assert {key: len(frames) for key, frames in kept.obs.items()} == dict.fromkeys(("state", *EYES), len(kept) + 1)
    assert np.asarray(kept.obs["wrist"]).std() > 0 and kept.task == "lift{top=32,wrist=24}"


def options_that_are_off(stage: str, ref: str, words: list[str], out: dict, capsys) -> None:
    """Eyes that go on learning, and frames that are drawn again."""
    learnt = [*words, "algorithm.encoder=learn"]
    code, other = call(stage, f"checkpoint={ref}", *learnt, capsys=capsys)
    assert code == 0, other
    made, changed = Store(words[3].removeprefix("store=")), 0
    frozen, moved = (made.load(one["outputs"]["policy"]).encoder.eyes.state_dict() for one in (out, other))
    judge = made.load(other["outputs"]["checkpoint"]).critic.encoder.eyes.state_dict()
    for name, weights in frozen.items():
        changed += int(not torch.equal(weights, moved[name]))
        torch.testing.assert_close(judge[name], weights, msg="the critics' eyes stay those of the checkpoint")
    assert changed, "the policy's eyes learn"
    drawn = [*words, "task.keep_frames=false"]
    code, again = call(stage, f"checkpoint={ref}", *drawn, capsys=capsys)
    assert code == 0, again
    assert again["outputs"]["policy"].split("@")[1] == out["outputs"]["policy"].split("@")[1], "equal to the bit"
    code, told = call("replay", again["run"], words[3], capsys=capsys)
    assert code == 0, told
    code, again = call(stage, f"checkpoint={ref}", *drawn, "algorithm.encoder=learn", capsys=capsys)
    assert code != 0 and "task.keep_frames=false leaves those of rollouts out" in again["error"], again


def turn(ref: str, words: list[str], capsys, slowly: bool) -> None:
    """Rounds, which replay to the bit, and online RL, by critics that look through the policy's frozen eyes."""
    little = ["algorithm.cadence.evaluate=3", "algorithm.cadence.improve=3", "batch_size=8", "score_episodes=2"]
    small = ["algorithm.critic.width=16", "algorithm.critic.members=2"]
    for stage, more in (
        ("retrain", ["rounds=2", "collect.episodes=2", "collect.n=4", "score_every=1"]),
        (
            "online",
            ["algorithm=ogpo", "rounds=2", "algorithm.collect.steps=80", "algorithm.collect.n=4", "score_every=1"],
        ),
    ):
        code, out = call(stage, f"checkpoint={ref}", *words, *little, *small, *more, capsys=capsys)
        assert code == 0, out
        if stage == "retrain":
            if slowly:
                options_that_are_off(stage, ref, [*words, *little, *small, *more], out, capsys)
            code, again = call("replay", out["run"], words[3], capsys=capsys)
            assert code == 0, again
            ref = out["outputs"]["checkpoint"]
            made = Store(words[3].removeprefix("store="))
            acting = made.load(ref)
            kept = made.corpus().at("latest").select(origin="policy:*")
            assert len(kept) == (10 if slowly else 4) and all(
                set(e.obs) - {"state"} in (set(EYES), set()) and "seen" not in e.extras for e in kept
            )
            before = made.load(out["outputs"]["policy"]).encoder.eyes.state_dict()
            for name, weights in acting.critic.encoder.eyes.state_dict().items():
                torch.testing.assert_close(
                    weights, before[name], msg="eyes are frozen, and the critics' are the policy's"
                )


@pytest.mark.slow
def test_critics_may_know_what_only_the_simulator_does(few, tmp_path, capsys):
    """They collect; what is handed over is a policy that needs its cameras and nothing else."""
    store, size = f"store={tmp_path}", ["batch_size=8", "score_episodes=2", "num_envs=2", "threads=1"]
    assert call("ingest", f"source={few}", "task=lift", TASK, store, capsys=capsys)[0] == 0
    told = ["task=lift", TASK, "demos.failures=true", *size, store]
    little = ["policy.width=16", "policy.depth=1", "algorithm.cadence.improve=4", "score_every=4"]
    code, out = call("pretrain", *told, *little, capsys=capsys)
    assert code == 0, out
    ref, made = out["outputs"]["checkpoint"], Store(tmp_path)
    knows = ["algorithm.critic={obs: [state, privileged], members: 2, width: 16, depth: 2}"]
    few_ = ["algorithm.cadence.evaluate=3", "algorithm.cadence.improve=3", "score_every=1", "rounds=2"]
    for stage, more in (
        ("retrain", ["collect.episodes=2", "collect.n=4"]),
        ("retrain", ["collect.episodes=2", "collect.n=4", "algorithm.encoder=learn"]),
        ("online", ["algorithm=ogpo", "algorithm.collect.steps=80", "algorithm.collect.n=4"]),
    ):
        code, out = call(stage, f"checkpoint={ref}", *told, *more, *knows, *few_, capsys=capsys)
        assert code == 0, out
        policy = made.load(out["outputs"]["checkpoint"])
        assert policy.spec["kind"] == "flow" and not policy.knows
        code, again = call("replay", out["run"], store, capsys=capsys)
        assert code == 0, again
    blind = [word for word in told if word != TASK]
    code, out = call("retrain", f"checkpoint={ref}", *blind, *knows, "data=null", capsys=capsys)
    assert code != 0, out
    with pytest.raises(UsageError, match="critic.obs=everything; expected"):
        config.load("retrain", ["algorithm.critic.obs=everything"], tmp_path)


def test_a_robot_with_cameras_is_driven():
    from flywheel.args import Guard
    from flywheel.env import loopback
    from flywheel.env.drive import drive
    from flywheel.policy.base import build

    task = Task(name="lift", cameras=EYES)
    env = envs.make(task, 1, 1)
    policy = build({"kind": "flow", "width": 8, "depth": 1, **shape(env)}).eval()
    env.close()
    now = [0.0]

    def sleep(seconds: float) -> None:
        now[0] += seconds

    class Shared(loopback.Loopback):
        """Its cameras write into one buffer, as many drivers' do."""

        buffer, seen = {}, []

        def _seen(self):
            obs = super()._seen()
            for name in EYES:
                self.buffer.setdefault(name, obs[name].copy())[...] = obs[name]
            self.seen.append({name: obs[name].copy() for name in EYES})
            return {**obs, **self.buffer}

    def driven(film=True):
        now[0], Shared.seen = 0.0, []
        robot = Shared(task, clock=lambda: now[0])
        return drive(robot, policy, Guard(), hz=20, steps=6, clock=lambda: now[0], sleep=sleep, film=film)

    done = driven()
    assert len(done.executed) == 6 and done.error is None
    episode = check(done.episode("lift", policy.obs_shapes, origin="policy:abc", seed=0, fps=20.0))
    for name, side in EYES.items():
        assert episode.obs[name].shape == (7, side, side, 3) and episode.obs[name].dtype == np.uint8
        np.testing.assert_array_equal(episode.obs[name], [one[name] for one in Shared.seen])
    policy.reset([0], [0])
    for t, proposed in enumerate(episode.extras["proposed"]):
        np.testing.assert_array_equal(policy.act({key: stream[t] for key, stream in episode.obs.items()}), proposed)
    assert list(driven(film=False).episode("lift", policy.obs_shapes, origin="policy:abc").obs) == ["state"]


def test_a_camera_that_fails_while_it_is_driven_ends_it_and_what_was_seen_is_kept():
    from flywheel.args import Guard
    from flywheel.env.drive import drive

    class Arm:
        reads = -1

        def read(self):
            self.reads += 1
            frames = {name: frame[0] for name, frame in watched(1, self.reads).items()}
            return frames if self.reads != self.broken else {**frames, "top": frames["top"][:9]}

        reset = read

        def write(self, action):
            """Nothing moves."""

        def close(self):
            """Nothing is open."""

    policy, arm = made("deterministic"), Arm()
    arm.broken = 3
    done = drive(arm, policy, Guard(), hz=20, steps=6, clock=lambda: 0.0, sleep=lambda seconds: None)
    assert "camera 'top' is [9, 32, 3] uint8; this policy was trained on [32, 32, 3] uint8" in done.ended
    assert (len(done.obs), len(done.executed), len(done.frames["top"])) == (3, 2, 3)
    arm.reads, arm.broken = -1, 6
    done = drive(arm, policy, Guard(), hz=20, steps=6, clock=lambda: 0.0, sleep=lambda seconds: None)
    assert (len(done.obs), len(done.executed), len(done.frames["top"])) == (6, 5, 6), "the last was not seen"
    check(done.episode("lift", policy.obs_shapes, origin="policy:abc"))


@pytest.mark.parametrize("seconds", [0, 30])
def test_an_environment_of_others_gives_its_pictures_by_their_keys(seconds):
    """In this process, and in others: what each saw last, whichever order they are stepped in."""
    task = {"name": "gym", "id": "odd:Camera-v0", "max_steps": 4, "step_seconds": seconds}
    env = envs.make(task, 9, 2)
    assert env.cameras == {"pixels": (96, 96, 3)} and list(env.obs_shapes) == ["agent_pos", "goal"]
    policy = Uniform(**shape(env), obs_steps=1, action_steps=1, discrete=False)
    done, _ = envs.rollout(env, policy, range(20), origin="test", film=True)
    for episode in done:
        frames = np.asarray(episode.obs["pixels"])
        assert frames.shape == (len(episode) + 1, 96, 96, 3)
        for frame, state in zip(frames, episode.obs["state"], strict=True):
            spot = np.argwhere(frame[..., 0])
            x, y = np.clip(48 + 20 * state[:2].astype(np.float64), 0, 95)
            assert len(spot) == 1 and np.abs(spot[0] - [y, x]).max() < 1.01
    env.close()


def test_a_policy_learns_from_the_pictures_of_an_environment_of_others(tmp_path, capsys):
    """Imitation, rounds and a score, and a policy's file says what it saw."""
    task = {"name": "gym", "id": "odd:Camera-v0", "max_steps": 4}
    env, store = envs.make(task, 4, 1), Store(tmp_path)
    done, _ = envs.rollout(
        env, Uniform(**shape(env), obs_steps=1, action_steps=1, discrete=False), range(6), origin="human", film=True
    )
    env.close()
    store.corpus(create=True).append(done)
    told = ["task=gym", "task.id=odd:Camera-v0", "task.max_steps=4", f"store={tmp_path}", "demos.failures=true"]
    size = ["batch_size=8", "num_envs=2", "score_episodes=2"]
    little = ["policy=flow", "policy.width=16", "policy.depth=1", "algorithm.cadence.improve=4", "score_every=4"]
    code, out = call("pretrain", *told, *size, *little, capsys=capsys)
    assert code == 0, out
    policy = store.load(out["outputs"]["checkpoint"])
    assert policy.cameras == {"pixels": (96, 96, 3)} and set(policy.obs_shapes) == {"agent_pos", "goal"}
    few = [
        "rounds=1",
        "collect.episodes=2",
        "collect.n=2",
        "algorithm.cadence.evaluate=2",
        "algorithm.cadence.improve=2",
    ]
    code, out = call("retrain", *told, *size, *few, "algorithm.critic.width=8", capsys=capsys)
    assert code == 0, out


@pytest.mark.slow
def test_a_teacher_that_knows_more_teaches_a_student_that_sees(few, tmp_path, capsys):
    """It labels what the student saw in its own practice, which stays in the corpus; to the bit when replayed."""
    store, size = f"store={tmp_path}", ["batch_size=8", "score_episodes=2", "num_envs=2", "threads=1"]
    for words in ([], [TASK]):
        assert call("ingest", f"source={few}", "task=lift", *words, store, capsys=capsys)[0] == 0
    little = ["policy.width=16", "policy.depth=1", "demos.failures=true", *size]
    code, out = call(
        "pretrain", "task=lift", *little, "algorithm.cadence.improve=4", "score_every=4", store, capsys=capsys
    )
    assert code == 0, out
    teacher = out["outputs"]["checkpoint"]
    words = ["task=lift", TASK, f"checkpoint={teacher}", "policy=deterministic", *little, "score_every=3", store]
    code, out = call(
        "distil", *words, "algorithm.cadence.improve=6", "practice={rounds: 2, episodes: 2}", capsys=capsys
    )
    assert code == 0, out
    made = Store(tmp_path)
    student = made.load(out["outputs"]["checkpoint"])
    assert set(student.cameras) == set(EYES) and student.obs_dim == 10
    played = made.corpus().at("latest").select(origin="policy:*")
    assert len(played) == 2 and all(e.extras["privileged"].shape == (len(e) + 1, 18) for e in played)
    code, again = call("replay", out["run"], store, capsys=capsys)
    assert code == 0, again
    code, out = call("distil", *words[:1], f"checkpoint={out['outputs']['checkpoint']}", *words[4:], capsys=capsys)
    assert code != 0 and "trained on state [10]" in out["error"], out
