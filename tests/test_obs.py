"""What is observed, by key: how numbers are packed, who acts on them, and one run over a Dict environment."""

import json
from pathlib import Path

import flywheel_sim
import gymnasium
import numpy as np
import pytest
import small
import torch
import toy

from flywheel import env as envs
from flywheel import obs, store
from flywheel.cli import app
from flywheel.env.gym_batch import TaskError
from flywheel.episode import Episode, EpisodeError
from flywheel.intake import screen
from flywheel.policy import base
from flywheel.policy.best_of_n import BestOfN
from flywheel.policy.critic import Critic, TransitionModel
from flywheel.policy.encoder import Encoder
from flywheel.policy.residual import Residual
from flywheel.report import facts, starts
from flywheel.rl import build, evaluate
from flywheel.runs.run import Store

OLDER = Path(__file__).with_name("older")  # a checkpoint of each kind and what it did, made before policies knew shapes
SHAPES = {"goal": (3,), "pose": (2, 2), "grip": ()}


def test_the_columns_of_the_keys_by_hand():
    assert obs.columns(SHAPES) == {"goal": slice(0, 3), "pose": slice(3, 7), "grip": slice(7, 8)}
    assert obs.size(SHAPES) == 8 and obs.size({"state": (0,)}) == 0
    assert obs.names(SHAPES) == [
        "goal[0]", "goal[1]", "goal[2]", "pose[0]", "pose[1]", "pose[2]", "pose[3]", "grip"
    ]  # fmt: skip
    assert obs.names({"state": (2,)}) == ["obs[0]", "obs[1]"] and obs.names({"state": (1,)}) == ["obs"]


def test_a_spec_keeps_its_order_whatever_sorts_it():
    told = json.loads(json.dumps({"obs": obs.spec(SHAPES)}, sort_keys=True))
    assert list(obs.read(**told).items()) == list(SHAPES.items())
    assert obs.read({"b": [2], "a": [1]}) == {"b": (2,), "a": (1,)}
    assert obs.read(obs_dim=4) == {"state": (4,)} and obs.read(None, 3, [["b", 2], ["a", 1]]) == {"b": (2,), "a": (1,)}


def test_one_or_many_are_packed_and_taken_apart_again():
    one = {"grip": 7.0, "pose": [[3, 4], [5, 6]], "goal": np.arange(3), "pixels": np.zeros((4, 4, 3), np.uint8)}
    rows, single = obs.pack(one, SHAPES)
    assert single and rows.dtype == np.float32 and rows.tolist() == [[0, 1, 2, 3, 4, 5, 6, 7]]
    many = {"grip": [7.0, 8.0], "pose": np.ones((2, 2, 2)), "goal": [[0, 1, 2], [3, 4, 5]]}
    rows, single = obs.pack(many, SHAPES)
    assert not single and rows.tolist() == [[0, 1, 2, 1, 1, 1, 1, 7], [3, 4, 5, 1, 1, 1, 1, 8]]
    for key, part in obs.unpack(rows, SHAPES).items():
        np.testing.assert_array_equal(part, many[key])
    assert obs.pack({"pose": np.ones((2, 2))}, {"pose": (4,)})[0].shape == (1, 4)  # older files know only how many


@pytest.mark.parametrize(
    ("odd", "said"),
    [({"goal": [1, 2]}, r"goal \[2\], pose \[2, 2\], grip \[\]"), ({"goal": "text"}, r"goal no array of numbers, pose"),
     ({"pose": [1, 2, 3, 4]}, r"pose \[4\]"), ({"goal": [[1, 2, 3], [1, 2]]}, "goal no array of numbers"),
     ({"goal": np.zeros((2, 3))}, r"goal \[2, 3\], pose \[2, 2\]"), ({"goal": None}, r"goal \[\], pose"),
     ({"goal": None, "other": [3]}, r"other \[1\]")],
)  # fmt: skip
def test_what_cannot_be_packed_says_what_was_found_and_expected(odd, said):
    right = {"goal": np.zeros(3), "pose": np.zeros((2, 2)), "grip": 0.0}
    with pytest.raises(ValueError, match=rf"observation has .*{said}.*; wanted goal \[3\], pose \[2, 2\], grip \[\]"):
        obs.pack({**right, **odd}, SHAPES, "wanted")


def test_columns_are_found_by_name_and_without_names_by_their_number():
    given = {"a": (2,), "b": (1,), "c": (2,)}
    assert obs.picked({"c": (2,), "a": (2,)}, given).tolist() == [3, 4, 0, 1]
    assert obs.picked({"c": (2,), "b": (1,), "a": (2,)}, given).tolist() == [3, 4, 2, 0, 1]  # a table's order counts
    assert obs.picked(given, given) is None and obs.picked({"a": (2,), "b": (1,), "c": (2, 1)}, given) is None
    assert obs.picked({"state": (5,)}, given) is None and obs.picked(given, {"state": (5,)}) is None
    for wanted in ({"state": (4,)}, {"d": (1,)}, {"a": (3,)}):
        with pytest.raises(ValueError, match=r"observes a \[2\], b \[1\], c \[2\]; this policy was trained on"):
            obs.picked(wanted, given)


def made(kind, shapes, **more):
    """A policy with random weights and the statistics of something."""
    torch.manual_seed(0)
    if kind == "best_of_n":
        inner = made("flow", shapes)
        return BestOfN.of(inner, Critic.of(inner, actions=True, members=2, width=8), made("flow", shapes), n=4)
    if kind == "residual":
        return Residual.of(made("flow", shapes), width=8).eval()
    spec = {"kind": kind, "obs": obs.spec(shapes), "action_dim": 2, "width": 8, "depth": 1, **more}
    policy, rows = base.build(spec), np.random.default_rng(0).normal(2, 3, (50, obs.size(shapes) + 2))
    policy.fit_normaliser(rows[:, :-2], rows[:, -2:])
    return policy.eval()


@pytest.mark.parametrize("kind", base.names())
def test_a_policy_of_keys_acts_as_one_of_the_same_numbers_in_one_array(kind, tmp_path):
    rows = np.random.default_rng(1).normal(2, 3, (5, 4, 8)).astype(np.float32)
    policy = made(kind, SHAPES)
    base.save(policy, tmp_path / "keys")
    policy, flat = base.load(tmp_path / "keys"), made(kind, {"state": (8,)})
    assert list(policy.obs_shapes.items()) == list(SHAPES.items())
    acted = []
    for one, see in (
        (policy, lambda row: obs.unpack(row, SHAPES) | {"more": "words"}),
        (policy, lambda row: row),
        (policy, lambda row: {k: v.tolist() for k, v in reversed(obs.unpack(row, SHAPES).items())}),
        (flat, lambda row: row),
        (flat, lambda row: {"state": row}),
    ):
        one.reset(range(4), range(4))
        many = [one.act(see(row), range(4)) for row in rows]
        one.reset([0], [0])
        single = [one.act(see(row[0])) for row in rows]
        np.testing.assert_array_equal([action[0] for action in many], single)
        acted.append(many)
    for other in acted[1:]:
        np.testing.assert_array_equal(acted[0], other)
    with pytest.raises(
        ValueError, match=r"observation has goal \[3\]; this policy was trained on goal \[3\], pose \[2, 2"
    ):
        policy.act({"goal": np.zeros(3)})
    with pytest.raises(ValueError, match=r"observation has goal \[3\]; this policy was trained on state \[8\]"):
        flat.act({"goal": np.zeros(3)})
    with pytest.raises(ValueError, match="observation has 1 numbers, this policy was trained on 8"):
        flat.act(3)


@pytest.mark.parametrize("kind", sorted(set(base.names()) - {"residual", "lerobot"}))  # which came later
def test_an_older_checkpoint_acts_as_it_did(kind, tmp_path):
    """Its spec has obs_dim, and of two kinds obs_keys; its encoder's statistics were called obs_norm."""
    policy, known = base.load(OLDER / f"{kind}.safetensors"), np.load(OLDER / "actions.npz")
    keys = {"position": (2,), "goal": (2,)} if kind in ("flow", "best_of_n") else {"state": (4,)}
    assert list(policy.obs_shapes.items()) == list(keys.items()) and policy.obs_dim == 4
    base.save(policy, tmp_path / "again")
    again = base.load(tmp_path / "again")
    for one in (policy, again):
        one.reset([0], [5])
    acted = [policy.act(row) for row in known["obs"]]
    np.testing.assert_allclose(acted, known[kind], rtol=1e-4, atol=1e-5)  # another processor may round otherwise
    np.testing.assert_array_equal(acted, [again.act(obs.unpack(row, keys)) for row in known["obs"]])


def test_an_older_policy_of_several_robots_takes_the_keys_of_its_own():
    robot = {"obs": [0, 2], "action": [1]}
    older = {
        "kind": "flow",
        "obs_dim": 5,
        "action_dim": 3,
        "robot": robot,
        "obs_keys": [["b", 1], ["a", 1]],
        "width": 8,
    }
    policy = base.build(older).eval()
    assert policy.obs_shapes == {"b": (1,), "a": (1,)} and policy.obs_dim == 5
    again = base.build(policy.spec).eval()
    again.load_state_dict(policy.state_dict())
    np.testing.assert_array_equal(policy.act({"a": [2.0], "b": 1.0}), again.act([1.0, 2.0]))


def test_features_by_hand():
    """Mean 1 and deviation 2 of every number; the steps stand side by side, and go back."""
    encoder = Encoder({"a": (1,), "b": (2,)}, steps=2)
    encoder.norm.mean.fill_(1.0), encoder.norm.std.fill_(2.0)
    seen = torch.tensor([[[1.0, 3.0, 5.0], [-1.0, 1.0, 90.0]]])
    assert encoder(seen).tolist() == [[0, 1, 2, -1, 0, 10]] and encoder.features == 6  # 44.5 is cut at 10
    assert encoder.decode(encoder(seen)).tolist() == [[[1, 3, 5], [-1, 1, 21]]]
    other = Encoder({"a": (1,), "b": (2,)}, steps=2).like(encoder)
    assert torch.equal(other(seen), encoder(seen)) and other.zeros(3).shape == (3, 2, 3)
    noise = torch.randn(1, 2, 3, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(encoder.blurred(seen, 0.5, torch.Generator().manual_seed(0)), seen + noise)


class Seen:
    """Observations of another kind: numbers and pictures, with what policies use of a tensor and nothing more."""

    def __init__(self, **parts):
        self.parts = parts
        self.device, self.dtype = parts["state"].device, parts["state"].dtype

    def __len__(self):
        return len(self.parts["state"])

    def repeat_interleave(self, count, dim):
        return Seen(**{key: part.repeat_interleave(count, dim) for key, part in self.parts.items()})


class Seeing(Encoder):
    """Features of numbers and of a picture."""

    def __init__(self, shapes, steps, cameras=None, eye="small"):
        super().__init__({"state": shapes["state"]}, steps)
        self.net = torch.nn.Linear(4 * 4 * 3 * steps, 5)
        self.features += 5

    def forward(self, obs):
        return torch.cat([super().forward(obs.parts["state"]), self.net(obs.parts["wrist"].flatten(1) / 255)], 1)


@pytest.mark.parametrize("kind", [kind for kind in base.names() if kind != "lerobot"])  # whose nets look by themselves
def test_nobody_but_the_encoder_looks_inside_an_observation(kind, monkeypatch):
    """With another encoder, and observations that are no tensors, every policy acts and learns, and critics judge
    it."""
    for module in ("flywheel.policy.base", "flywheel.policy.critic"):
        monkeypatch.setattr(f"{module}.Encoder", Seeing)
    policy = made(kind, {"state": (3,)}, **({"action_steps": 1} if kind == "greedy_q" else {}))
    rng = torch.Generator().manual_seed(0)
    seen = Seen(state=torch.randn(6, 2, 3), wrist=torch.randint(256, (6, 2, 4, 4, 3), dtype=torch.uint8))
    noise = torch.randn(6, *policy.noise_shape)
    action = policy.sample(seen, noise)
    assert action.shape == (6, policy.action_steps, 2)
    q, v = Critic.of(policy, actions=True, width=8, discrete=policy.discrete), Critic.of(policy, width=8, members=1)
    assert q(seen, action).shape == (4, 6) and v(seen).shape == (1, 6)
    if kind == "best_of_n":
        return
    assert policy.bc_loss(seen, action.detach(), rng).shape == (6,)
    number = torch.ones(6)
    batch = {"obs": seen, "next_obs": seen, "action": action.detach(), "next_action": action.detach(), "rng": rng}
    batch |= {"reward": number, "discount": number, "return": number}
    nets = {"policy": policy, "policy.lag": policy, "q": q, "q.lag": q, "v": v}
    assert (
        evaluate.td(nets, batch, next_value=evaluate.policy_sample)[0].isfinite()
        and evaluate.returns(nets, batch)[0].isfinite()
    )


def test_a_transition_model_predicts_what_is_observed():
    policy = made("flow", SHAPES)
    model = TransitionModel.of(policy, members=3, width=8)
    seen = torch.randn(4, 2, 8)
    assert model(seen, torch.randn(4, 4, 2)).shape == (3, 4, 2, 8)
    batch = {"obs": seen, "action": torch.randn(4, 4, 2), "next_obs": seen}
    assert evaluate.next_state({"model": model}, batch)[0].isfinite()


# -- environments ----------------------------------------------------------------------------------------------------


class Told(toy.Reach):
    """Says what its four numbers are, in metadata."""

    def __init__(self, names=None, units=None, shape=(4,)):
        super().__init__()
        self.metadata = {**self.metadata, "obs_names": names, "obs_units": units}
        self.observation_space = gymnasium.spaces.Box(-9, 9, shape, np.float32)

    def _obs(self):
        return super()._obs().reshape(self.observation_space.shape)


class Gripper(toy.Reach):
    """A Dict with a key named `state`, and one that is a single number."""

    def __init__(self):
        super().__init__()
        parts = {"state": (4,), "grip": (1,)}
        self.observation_space = gymnasium.spaces.Dict(
            {k: gymnasium.spaces.Box(-9, 9, s, np.float32) for k, s in parts.items()}
        )

    def _obs(self):
        return {"state": super()._obs(), "grip": np.ones(1, np.float32)}


gymnasium.register("Told-v0", Told, max_episode_steps=20)
gymnasium.register("Gripper-v0", Gripper, max_episode_steps=20)
NAMES = ["x", "y", "goal_x", "goal_y"]


def batch(**kwargs):
    return envs.make({"name": "gym", "id": "Told-v0", "kwargs": kwargs, "step_seconds": 0}, 2, threads=1)


def test_an_environment_says_names_and_units():
    told = batch(names=NAMES, units=["m", "m", "m", None])
    assert told.obs_names == NAMES and told.obs_units == ["m", "m", "m", ""]
    plain = batch()
    assert plain.obs_names == [f"obs[{i}]" for i in range(4)] and plain.obs_units == [""] * 4
    with pytest.raises(TaskError, match="obs_names has 3 names; expected 4"):
        batch(names=NAMES[:3])
    for wrong in (["m"], "m", {"x": "m"}):
        with pytest.raises(TaskError, match="obs_units is .*; expected a list of 4, one a number"):
            batch(units=wrong)
    keyed = envs.make({"name": "gym", "id": "toy:Keyed-v0"}, 1)
    assert keyed.obs_shapes == {"goal": (2,), "position": (2,)} and keyed.obs_units == ["m"] * 4
    keyed.close()
    lift = envs.make({"name": "lift"}, 1)
    assert len(lift.obs_units) == lift.obs_dim and lift.obs_units[lift.obs_names.index("cube_pos[0]")] == "m"
    plain = gymnasium.make(flywheel_sim.gym_id("lift"))
    assert plain.unwrapped.metadata["obs_units"] == lift.obs_units
    plain.close(), lift.close()


def test_a_box_of_two_axes_stays_an_array_and_a_policy_takes_it():
    env = batch(shape=(2, 2))
    policy = base.build({"kind": "deterministic", "width": 8, "depth": 1, **build.shape(env)}).eval()
    seen = env._envs[0].reset(seed=0)[0]
    assert seen.shape == (2, 2) and policy.act(seen).shape == (2,)
    policy.reset(range(3), range(3))
    assert policy.act(np.stack([seen] * 3)).shape == (3, 2) and policy.obs_dim == 4


def test_a_policy_gets_by_name_what_it_was_trained_on():
    """One of fewer keys, or of the same in another order, acts in the environment as in its own."""
    env = envs.make({"name": "gym", "id": "toy:Keyed-v0"}, 2)
    for keys in (["position"], ["position", "goal"]):
        own = envs.make({"name": "gym", "id": "toy:Keyed-v0", "obs_keys": keys}, 2)
        policy = base.build({"kind": "deterministic", "width": 8, "depth": 1, **build.shape(own)}).eval()
        (one,), (other,) = (envs.rollout(e, policy, [3], origin="t")[0] for e in (env, own))
        np.testing.assert_array_equal(one.action, other.action)
        assert one.meta["obs_shapes"] == [["goal", [2]], ["position", [2]]] and one.obs["state"].shape[1] == 4
        if len(keys) == 2:
            with pytest.raises(ValueError, match=r"observes goal \[2\], position \[2\].*trained on position.*obs_keys"):
                build.suits(policy, env)
        own.close()
    policy = base.build({"kind": "deterministic", "width": 8, "obs": {"speed": [2]}, "action_dim": 2})
    with pytest.raises(
        ValueError, match=r"observes goal \[2\], position \[2\]; this policy was trained on speed \[2\]"
    ):
        envs.rollout(env, policy, [0], origin="t")
    env.close()


def test_an_episode_may_bring_the_parts_by_name():
    env = envs.make({"name": "gym", "id": "toy:Keyed-v0"}, 1)
    rng = np.random.default_rng(0)
    parts = {"position": rng.normal(size=(5, 2)).astype(np.float32), "goal": np.ones((5, 2), np.float32)}
    force = rng.normal(size=(5, 1)).astype(np.float32)
    one = Episode(
        task=env.task, obs={**parts, "force": force}, action=np.zeros((4, 2), np.float32), reward=np.zeros(4, np.float32),
        terminated=False, success=False, origin="human:me",
    )  # fmt: skip
    kept, _ = screen.sound(one, env, "here")
    np.testing.assert_array_equal(kept.obs["state"], np.c_[parts["goal"], parts["position"]])
    assert set(kept.obs) == {"state", "force"} and kept.meta["obs_shapes"] == [["goal", [2]], ["position", [2]]]
    with pytest.raises(
        EpisodeError, match=r"here: observation has .*goal \[5, 3\].*; expected goal \[2\], position \[2\]"
    ):
        screen.sound(one.replace(obs={**parts, "goal": np.ones((5, 3), np.float32)}), env, "here")
    told = {"obs_shapes": [["position", [2]], ["spin", [1]], ["goal", [2]]]}
    whole = np.c_[parts["position"], np.zeros(5), parts["goal"]].astype(np.float32)
    (again, _), (as_it_is, _) = (
        screen.sound(one.replace(obs={"state": state}, meta=meta), env, "here")
        for state, meta in ((whole, told), (kept.obs["state"], {"obs_shapes": [["x", [4]]]}))
    )
    assert again.hash == as_it_is.hash == kept.replace(obs={"state": kept.obs["state"]}).hash
    assert again.meta == as_it_is.meta == kept.meta
    for odd, said in (
        ([["position", [2]], ["goal", [3]]], r"the recording has position \[2\], goal \[3\]"),
        ("x", "is x;"),
    ):
        with pytest.raises(EpisodeError, match=said):
            screen.sound(one.replace(obs={"state": whole}, meta={"obs_shapes": odd}), env, "here")
    env.close()


def test_one_of_the_keys_may_be_called_state():
    env = envs.make({"name": "gym", "id": "Gripper-v0", "step_seconds": 0}, 2, threads=1)
    policy = base.build({"kind": "deterministic", "width": 8, "depth": 1, **build.shape(env)}).eval()
    assert list(policy.obs_shapes.items()) == [("grip", (1,)), ("state", (4,))] and env.obs_names[0] == "grip"
    (played,), _ = envs.rollout(env, policy, [0], origin="t")
    policy.reset()
    np.testing.assert_array_equal(policy.act({"state": played.obs["state"][0, 1:], "grip": 1.0}), played.action[0])
    streams = {"grip": played.obs["state"][:, 0], "state": played.obs["state"][:, 1:]}
    kept, _ = screen.sound(played.replace(obs=streams, meta={}), env, "here")
    assert kept.hash == played.hash and kept.meta == {"obs_shapes": played.meta["obs_shapes"]}
    assert screen.sound(kept, env, "again")[0].hash == played.hash


def test_a_run_over_a_dict_environment(tmp_path, capsys):
    """From demonstrations to the report: names and shapes are there at every end; a flat policy of old is an
    opponent."""
    toy.demonstrations(tmp_path / "demos.hdf5")
    task = ["task=gym", "task.id=toy:Keyed-v0", "task.max_steps=20"]
    words = [word for word in small.SMALL if "obs_keys" not in word] + [
        "ingest.fps=10",
    ]
    at = f"store={tmp_path / 'store'}"
    code, out = small.call("nightly", at, f"source={tmp_path / 'demos.hdf5'}", *task, *words, capsys=capsys)
    assert code == 0, out
    place = Store(tmp_path / "store")
    said = [one.meta.get("obs_shapes") for one in place.corpus().at("latest")]
    assert said and all(one == [["goal", [2]], ["position", [2]]] for one in said)
    (run,) = place.runs("retrain")
    ref = run["result"]["outputs"]["checkpoint"]
    policy = place.load(ref)
    assert policy.obs_shapes == {"goal": (2,), "position": (2,)} and policy.spec["kind"] == "best_of_n"
    env = gymnasium.make("toy:Keyed-v0")
    seen = env.reset(seed=0)[0]
    first = policy.act(seen)
    policy.reset()
    np.testing.assert_array_equal(first, policy.act(np.concatenate([seen["goal"], seen["position"]])))
    env.close()

    flat = base.build({"kind": "flow", "obs_dim": 4, "action_dim": 2, "width": 8, "depth": 1})
    base.save(flat, tmp_path / "flat")
    other = place.names.make("policy/flat", store.sha256_file(tmp_path / "flat"), tmp_path / "flat", "pretrain/1")["id"]
    few = ["episodes=16", "num_envs=8", "threads=1", at, *task]
    code, out = small.call("evaluate", f"checkpoint={ref}", f"against=policy/flat@{other}", *few, capsys=capsys)
    assert code == 0 and out["metrics"]["against"]["n"] == 16 and "paired" in out["metrics"], out
    code, out = small.call(
        "promote", f"checkpoint=policy/flat@{other}", f"against={ref}", "gate.pairs=16", *few[1:], capsys=capsys
    )
    assert code == 0 and out["metrics"]["n"] == 16, out
    score = facts.look(place).outcomes[ref]
    assert score["names"] == ["goal[0]", "goal[1]", "position[0]", "position[1]"] and score["units"] == ["m"] * 4
    first = np.random.default_rng(0).uniform(-1, 1, (60, 4))
    worse = {"obs0": first, "success": first[:, 1] > 0}
    found = starts.where(worse, score["task"], score["names"], score["units"])
    assert "goal[1] (m)" in (found["x"].label, found["y"].label) and " m" in starts.advice(found)
    for kind in ("lerobot_v3", "robomimic_hdf5", "zarr"):
        words = ["export", f"out={tmp_path / kind}", f"format={kind}", at, *task]
        code, out = small.call(*words, capsys=capsys)
        assert code == 0, out
    info = json.loads((tmp_path / "lerobot_v3" / "meta" / "info.json").read_text())
    assert info["features"]["observation.state"]["names"] == ["goal[0]", "goal[1]", "position[0]", "position[1]"]
    assert app.main(["report", at]) == 0
