"""Formats and ingest: what is good goes in once, what is bad is quarantined with a reason, nothing runs from a file."""

import itertools
import pickle
from dataclasses import replace
from pathlib import Path

import flywheel_datasets
import h5py
import numpy as np
import pytest
import toy
from small import outcome

from flywheel import env as envs
from flywheel.cli import config
from flywheel.episode import Episode, EpisodeError, check
from flywheel.intake import accept, recordings, screen
from flywheel.runs import run


def execute(store, stage="ingest", **words):
    return outcome(stage, config.compose(stage, [*toy.TASK, *(f"{k}={v}" for k, v in words.items())]), run.Store(store))


def test_every_format_reads_lazily_and_says_what_it_wants(tmp_path):
    """The contract: `read(path)` of a file that is something else yields or raises EpisodeError that names the file."""
    wrong = tmp_path / "wrong.bin"
    wrong.write_bytes(b"not this format at all")
    for name in recordings.formats():
        found = list(accept.every(recordings.reader(name), wrong, {}))
        assert len(found) == 1 and isinstance(found[0], EpisodeError), name
        assert "wrong.bin" in str(found[0])
    with pytest.raises(ValueError, match="no format 'hdf6' in datasets/. There are: .*hand_dapg, .*robomimic_hdf5"):
        recordings.reader("hdf6")


@pytest.mark.parametrize(
    ("mode", "flags", "at"),
    [
        ("any", "0110", 1), ("last", "0111", 3), ("last:2", "0111", 2), ("held:2", "0110", 2),
        ("last", "0110", 1), ("held:3", "0110", 1), ("held:3", "0011", 2),  # as the recording has it
    ],
)  # fmt: skip
def test_recorded_flags_decide_as_the_task_does(mode, flags, at):
    env = envs.make({"name": "gym", "id": "toy:Keyed-v0", "success": mode}, 1)
    told = np.array([c == "1" for c in flags])
    reward = np.zeros(4, np.float32)
    reward[told.argmax()] = 1
    found = Episode(
        task=env.task, obs={"state": np.zeros((5, env.obs_dim), np.float32)}, action=np.zeros((4, 2), np.float32),
        reward=reward, terminated=False, success=True, origin="human", extras={"success": told},
    )  # fmt: skip
    kept = screen.decided(found, env)
    assert kept.success and np.flatnonzero(kept.reward).tolist() == [at]


@pytest.mark.parametrize("task", ["lift", "push", "insert", "assemble"])
def test_the_shipped_demonstrations_enter_as_they_are_labelled(task):
    env = envs.make({"name": task}, 1)
    path = Path(next(iter(flywheel_datasets.__path__))) / f"{task}_demos.hdf5"
    for found in itertools.islice(recordings.reader("robomimic_hdf5")(path), 12):
        kept, _ = screen.sound(found.replace(task=env.task), env, "here")
        assert (kept.success, kept.reward.tolist()) == (found.success, found.reward.tolist())
    env.close()


def test_the_same_file_twice_adds_nothing(tmp_path):
    toy.demonstrations(tmp_path / "a [1], b.hdf5", 5)
    words = dict(source=tmp_path / "a [1], b.hdf5", obs_keys="[position,goal]")
    first = execute(tmp_path / "store", **words)
    assert (first["status"], first["metrics"]["added"], first["metrics"]["quarantined"]) == ("done", 5, 0)
    assert execute(tmp_path / "store", **words)["status"] == "noop"
    again = execute(tmp_path / "store", **words, origin="human")  # another command, the same episodes
    assert (again["metrics"]["added"], again["metrics"]["duplicates"]) == (0, 5)
    version = run.Store(tmp_path / "store").corpus().at("latest")
    assert len(version) == 5 and set(version.table["origin"]) == {"scripted:reach"}
    episode = version.read(0)
    assert episode.obs["state"].shape == (len(episode) + 1, 4) and episode.seed is not None


def test_obs_keys_order_and_a_mismatch_prints_both_tables(tmp_path):
    path = tmp_path / "a.hdf5"
    toy.demonstrations(path, 1)
    read = recordings.reader("robomimic_hdf5")
    one, two = (next(iter(read(path, obs_keys=keys))) for keys in (["position", "goal"], ["goal", "position"]))
    assert np.array_equal(one.obs["state"][:, :2], two.obs["state"][:, 2:])
    (error,) = read(path, obs_keys=["position", "velocity"])
    assert "obs has no velocity" in str(error) and "goal [" in str(error) and "obs_keys asks for" in str(error)


def test_bad_episodes_are_quarantined_and_never_stop_the_good(tmp_path):
    path = tmp_path / "a.hdf5"
    toy.demonstrations(path, 6)
    with h5py.File(path, "a") as file:
        data = file["data"]
        data["demo_0/obs/position"][2] = np.nan
        data["demo_1/actions"][:] *= 100
        del data["demo_2/actions"]
        steps = 40
        for k in list(data["demo_3"]):
            del data[f"demo_3/{k}"]
        data["demo_3/actions"] = np.random.default_rng(0).uniform(-1, 1, (steps, 2)).astype(np.float32)
        for key in ("position", "goal"):
            data[f"demo_3/obs/{key}"] = np.ones((steps + 1, 2), np.float32)
        data["demo_4/actions"][0] = [1.4, -1.2]  # outside, but plausible
    (tmp_path / "b.hdf5").write_bytes(b"no HDF5")
    out = execute(tmp_path / "store", source=tmp_path / "*.hdf5", obs_keys="[position,goal]")
    assert (out["metrics"]["added"], out["metrics"]["quarantined"]) == (2, 5)
    folder = tmp_path / "store" / "runs" / out["run"] / "out"
    reasons = {r["reason"].split(": ", 1)[-1][:70] for r in run.store.read_json(folder / "quarantine.json")}
    text = "\n".join(reasons)
    for words in ("is not finite at row 2", "over twice the range", "no actions", "bit-equal for", "not an HDF5 file"):
        assert words in text, (words, text)
    assert (folder / "quarantine" / "a-0.npz").exists()  # nothing is lost
    assert out["metrics"]["clipped_values"] == 2
    held = next(e for e in run.Store(tmp_path / "store").corpus().at("latest") if e.meta["demo"] == "demo_4")
    assert held.action[0].tolist() == [1.0, -1.0]
    np.testing.assert_allclose(held.extras["recorded_action"][0], [1.4, -1.2], rtol=1e-6)


def test_a_demo_without_a_final_observation_loses_its_last_action(tmp_path):
    toy.demonstrations(tmp_path / "a.hdf5", 1)
    whole = next(iter(recordings.reader("robomimic_hdf5")(tmp_path / "a.hdf5")))
    with h5py.File(tmp_path / "a.hdf5", "a") as file:
        del file["data/demo_0/next_obs"]
    short = next(iter(recordings.reader("robomimic_hdf5")(tmp_path / "a.hdf5")))
    assert len(short) == len(whole) - 1 and len(short.obs["state"]) == len(whole)


def recording(steps=30, **more):
    rng = np.random.default_rng(0)
    return {
        "observations": 0.1 * rng.normal(size=(steps, 39)),
        "actions": rng.uniform(-1, 1, (steps, 28)),
        "rewards": np.zeros(steps),
        "init_state_dict": {"qpos": np.zeros(30), "qvel": np.zeros(30), "door_body_pos": np.zeros(3)},
        **more,
    }


def test_hand_dapg_reads_what_the_authors_wrote(tmp_path):
    opened = recording()
    opened["observations"][:, 28] = np.linspace(0, 2, 30)
    (tmp_path / "d.pickle").write_bytes(pickle.dumps([opened, recording()], protocol=2))
    one, two = recordings.reader("hand_dapg")(tmp_path / "d.pickle")
    assert len(one) == 29 and one.origin == "human:vr" and one.success and not two.success
    first = int((opened["observations"][1:, 28] >= 1.35).argmax())
    assert one.reward.argmax() == first and one.reward.sum() == 1
    assert np.isnan(one.start["qpos"][0]) and one.start["qpos"][28] == 0.0


class Evil:
    def __reduce__(self):
        return (print, ("this ran",))


@pytest.mark.parametrize("what", [Evil(), {"a": [Evil()]}, print])
def test_a_pickle_runs_nothing_and_is_refused_by_name(tmp_path, capsys, what):
    (tmp_path / "evil.pickle").write_bytes(pickle.dumps([what]))
    with pytest.raises(EpisodeError, match=r"evil.pickle.*builtins.print; only numpy arrays"):
        list(recordings.reader("hand_dapg")(tmp_path / "evil.pickle"))
    assert "this ran" not in capsys.readouterr().out


def test_the_records_rules_are_checked_with_names_and_shapes():
    good = dict(
        task="t", obs={"state": np.zeros((4, 2))}, action=np.zeros((3, 1)), reward=np.zeros(3), terminated=False,
        success=None, origin="o",
    )  # fmt: skip
    check(Episode(**good))
    for change, words in [
        (dict(obs={"state": np.zeros((3, 2))}), r"obs\['state'\] has 3 rows and action 3; expected 4 rows"),
        (dict(reward=np.zeros(4)), r"reward is \[4\]; expected \[3\]"),
        (dict(action=np.zeros((0, 1))), r"action is \[0, 1\]"),
        (dict(obs={"state": np.array([["a"]] * 4)}), "expected a number type"),
    ]:
        with pytest.raises(EpisodeError, match=words):
            check(Episode(**{**good, **change}), "demo_7")


def test_streak():
    assert screen.streak(np.array([1, 1, 0, 1, 1, 1, 0], bool)) == 3
    assert screen.streak(np.zeros(0, bool)) == 0


def test_real_recordings_replay_exactly(tmp_path, demos):
    pytest.importorskip("gymnasium_robotics")
    args = config.compose("nightly", ["experiment=adroit_door"]).ingest
    source = str(demos / "hand_dapg" / "door-v0_demos.pickle")
    out = run.execute("ingest", replace(args, source=source), run.Store(tmp_path))
    assert (out["metrics"]["added"], out["metrics"]["quarantined"]) == (25, 0)
    back = out["metrics"]["replay"]
    assert max(back["palm_m median error"]["all"]) <= 0.001, "metres"
    assert sum(gap <= 0.02 for gap in back["hinge_rad peak error"]["all"]) >= 23, "radians"
