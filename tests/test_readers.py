"""Recordings as they come: nested, empty, of choices, with outcomes, with wrong words about themselves; one bad one
stops nothing."""

import json
import os
import pickle
import subprocess
import sys
from pathlib import Path

import fuzz_inputs
import h5py
import numpy as np
import pytest
import test_formats as written
import toy
from small import outcome

from flywheel import bounds
from flywheel.cli import config
from flywheel.corpus import Corpus, quality
from flywheel.episode import Episode, EpisodeError, passing
from flywheel.intake import accept, recordings
from flywheel.runs import run
from flywheel.stages import ingest

ANY = ["task=gym", "task.id=fuzz:Any-v0", "task.max_steps=9"]
CORRIDOR = ["task=gym", "task.id=toy:Corridor-v0", "task.max_steps=20", "task.reward=env"]


def take(store, source, format, *words, task=ANY):
    """Ingest; the result."""
    cfg = config.compose("ingest", [f"source={source}", *task, f"format={format}", *words])
    return outcome("ingest", cfg, run.Store(store))


def reasons(store, made):
    found = run.store.read_json(Path(store) / "runs" / made["run"] / "out" / "quarantine.json")
    return "\n".join(f"{one['file']} {one['episode']} {one['reason']}" for one in found)


def made(folder, name, number=0):
    suffix, write = fuzz_inputs.GOOD[name]
    place = folder / (f"good{number}.{suffix}" if suffix else f"good{number}")
    write(place, number)
    return place


read = written.read


# B1


def test_nested_groups_are_keys_and_cameras(tmp_path):
    """findings B1: Isaac Lab's obs/datagen_info is there as `a/b`, and nested images are cameras."""
    path = made(tmp_path, "robomimic_hdf5")
    with h5py.File(path, "a") as file:
        for demo, n in (("demo_0", 5), ("demo_1", 3), ("demo_2", 4)):
            file[f"data/{demo}/obs/images/front"] = np.zeros((n, 4, 6, 3), np.uint8)
            del file[f"data/{demo}/next_obs"]
    plain = read("robomimic_hdf5", path, cameras=[])
    assert [e.obs["state"].shape[1] for e in plain] == [3, 3, 3], "the default is what lies in obs itself"
    one = read("robomimic_hdf5", path, obs_keys=["a", "datagen_info/pose"])[0]
    assert one.obs["state"].shape == (5, 2 + 16) and one.obs["images.front"].shape == (5, 4, 6, 3)
    out = take(tmp_path / "store", path, "robomimic_hdf5", "obs_keys=[a,b]", "cameras=['images/front']")
    assert out["metrics"]["added"] == 3


@pytest.mark.parametrize("name", ["robomimic_hdf5", "minari_hdf5", "d4rl_hdf5", "aloha_hdf5"])
@pytest.mark.parametrize(
    "damage", [f for f in fuzz_inputs.HDF5 if f.__name__ in ("group_for_array", "array_for_group", "fewer_rows")]
)
def test_groups_for_arrays_and_empty_ones_are_told_in_words(tmp_path, name, damage):
    """findings B1: whatever stands where an array should, an EpisodeError comes in the place of the episode."""
    path = made(tmp_path, name)
    for seed in range(6):
        fuzz_inputs.GOOD[name][1](path.with_name(f"copy{seed}.hdf5"), 0)
        damage(path.with_name(f"copy{seed}.hdf5"), np.random.default_rng(seed), None)
        found = list(accept.every(recordings.reader(name), path.with_name(f"copy{seed}.hdf5"), {}))
        assert found and all(isinstance(one, (Episode, EpisodeError)) for one in found)


def test_an_empty_episode_refuses_no_other(tmp_path):
    """findings B1: one empty episode in a replay buffer, one of a single step, and the others."""
    recordings = written.rows(lengths=(4, 0, 1, 5))
    path = written.buffer(tmp_path / "b", recordings)
    first, empty, single, last = read("replay_buffer_zarr", path)
    assert len(first) == 3 and len(last) == 4
    assert "episode 1: 0 rows" in str(empty) and "episode 2: 1 rows, and no final observation" in str(single)


@pytest.mark.parametrize(
    "error", [RecursionError("deep"), EOFError(), ZeroDivisionError(), AssertionError("odd"), StopIteration()]
)
def test_whatever_a_reader_raises_is_quarantined(tmp_path, error):
    """findings B1: an exception of any class becomes the last thing that a reader gives."""

    def broken(path):
        yield Episode("", {}, np.zeros((1, 1)), np.zeros(1), False, None, "")
        raise error

    *_, last = accept.every(broken, tmp_path / "a.bin", {})
    assert isinstance(last, EpisodeError) and "a.bin" in str(last)
    assert "it holds no episode" in str(next(accept.every(lambda path: iter(()), tmp_path / "a.bin", {})))


def test_an_episode_that_the_corpus_cannot_keep_stops_no_other(tmp_path):
    """findings B1: keys with slashes, long ones and 100,000-letter origins are that episode's trouble only."""
    path = made(tmp_path, "robomimic_hdf5")
    with h5py.File(path, "a") as file:
        file["data/demo_0"].attrs["origin"] = "x" * 60_000
        file["data/demo_1/start/a/b"] = np.zeros(3)
    out = take(tmp_path / "store", path, "robomimic_hdf5", "obs_keys=[a,b]")
    text = reasons(tmp_path / "store", out)
    assert (out["metrics"]["added"], out["metrics"]["quarantined"]) == (1, 2) and len(text) < 5000
    assert "origin has 60000 letters ('xxxx" in text and "key 'a/b'; expected a name without slashes" in text


# B5


def test_a_value_far_from_all_others_is_named(tmp_path):
    """findings B5: one observation of 1e6 among 60 demonstrations is taken, counted and named with episode, row and
    column."""
    toy.demonstrations(tmp_path / "a.hdf5", 60)
    plain = take(tmp_path / "one", tmp_path / "a.hdf5", "robomimic_hdf5", "obs_keys=[position,goal]", task=toy.TASK)
    assert (plain["metrics"]["added"], plain["metrics"]["far_values"]) == (60, 0)
    with h5py.File(tmp_path / "a.hdf5", "a") as file:
        file["data/demo_7/next_obs/position"][-1, 1] = 1e6
        row = len(file["data/demo_7/actions"])
        file["data/demo_9/obs/position"][0, 0] = 1e25
    out = take(tmp_path / "two", tmp_path / "a.hdf5", "robomimic_hdf5", "obs_keys=[position,goal]", task=toy.TASK)
    (far,) = run.store.read_json(tmp_path / "two" / "runs" / out["run"] / "out" / "far.json")
    assert out["metrics"]["far_values"] == 1 and out["metrics"]["quarantined"] == 1
    assert (far["file"], far["episode"], far["stream"], far["row"], far["column"]) == ("a.hdf5", 7, "obs.state", row, 1)
    assert far["value"] == 1e6 and abs(far["centre"]) < 1 and far["usual"] < 3
    assert "a number beyond 1e+18 at row 0; expected what a sensor says" in reasons(tmp_path / "two", out)


@pytest.mark.parametrize("fps", [np.nan, np.inf, -5.0])
def test_a_rate_that_is_none_is_refused_and_breaks_no_corpus_that_has_one(tmp_path, fps):
    """findings B5: fps NaN in a recording; stats and queries of a corpus that older flywheels let it into."""
    path = made(tmp_path, "robomimic_hdf5")
    with h5py.File(path, "a") as file:
        file["data"].attrs["fps"] = fps
        file["data/demo_0"].attrs["seed"] = np.nan
    out = take(tmp_path / "store", path, "robomimic_hdf5", "obs_keys=[a,b]")
    assert out["status"] == "failed" and f"fps is {fps}" in reasons(tmp_path / "store", out)
    good = take(tmp_path / "store", path, "robomimic_hdf5", "obs_keys=[a,b]", "fps=20")
    assert (good["metrics"]["added"], good["metrics"]["dropped"]) == (3, 1)
    version = run.Store(tmp_path / "store").corpus().at("latest")
    assert next(e for e in version if e.meta["demo"] == "demo_0").meta["dropped"] == "seed nan"
    assert np.isnan(quality.sparc(np.array([1.0, 2.0, 1.0]), fps)) and np.isnan(quality.skew({"skew_s": {"a": "late"}}))
    rows = quality.measure(np.random.rand(9, 2), np.random.rand(8, 2), None, fps, {"skew_s": {"a": [1, None]}})
    assert np.isnan(rows[1]) and np.isnan(rows[5]) and np.isfinite(rows[0])


def test_an_own_reward_that_is_not_finite_is_dropped(tmp_path):
    """findings B5"""
    path = made(tmp_path, "robomimic_hdf5")
    with h5py.File(path, "a") as file:
        file["data/demo_1/rewards"][1] = np.nan
    out = take(tmp_path / "store", path, "robomimic_hdf5", "obs_keys=[a,b]")
    assert (out["metrics"]["added"], out["metrics"]["dropped"]) == (3, 1)
    kept = [e for e in run.Store(tmp_path / "store").corpus().at("latest") if "env_reward" not in e.extras]
    assert [e.meta["dropped"] for e in kept] == ["env_reward: not finite"]


# B7, A4


def test_nothing_taken_is_a_failure(tmp_path):
    """findings B7: all episodes quarantined."""
    (tmp_path / "a.hdf5").write_bytes(b"nothing")
    out = take(tmp_path / "store", tmp_path / "a.hdf5", "robomimic_hdf5")
    assert out["status"] == "failed" and "not an HDF5 file" in reasons(tmp_path / "store", out)
    run_ = run.Store(tmp_path / "store")
    told = accept.failure({"good": 0, "bad": 3}, [{"reason": "why", "file": "a"}], "a*")
    assert told == "ingest: nothing was taken, all 3 episodes of a* were quarantined; the first because why" and run_


def test_what_may_be_read_tomorrow_is_no_result(tmp_path):
    """findings A4: a locked file fails the ingest, and the good ones are taken."""
    good = made(tmp_path, "robomimic_hdf5", 1)
    locked = made(tmp_path, "robomimic_hdf5", 2)
    code = "import h5py, sys; f = h5py.File(sys.argv[1], 'a'); print('held', flush=True); sys.stdin.read()"
    holder = subprocess.Popen(
        [sys.executable, "-c", code, locked], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert holder.stdout.readline() == "held\n"
    words = ("robomimic_hdf5", "obs_keys=[a,b]")
    out = take(tmp_path / "store", tmp_path / "*.hdf5", *words)
    holder.communicate("")
    assert out["status"] == "failed" and out["metrics"]["added"] == 3 and good.exists()
    waiting = run.store.read_json(tmp_path / "store" / "runs" / out["run"] / "out" / "quarantine.json")
    assert [one["file"] for one in waiting] == [locked.name] and waiting[0]["passing"]
    error = accept.failure({"good": 3, "bad": 1}, waiting, {})
    assert error.startswith(f"ingest: {locked.name} could not be read now") and "3 episodes were taken" in error


def test_which_errors_pass():
    """findings A4"""
    import errno

    for code in (errno.EACCES, errno.EIO, errno.EAGAIN, errno.EMFILE, errno.ETIMEDOUT):
        wrapped = EpisodeError("x")
        wrapped.__cause__ = OSError(code, "no")
        assert passing(wrapped), code
    assert passing(MemoryError()) and not passing(OSError(errno.ENOENT, "gone")) and not passing(ValueError())


# C1, out of files


def outcomes(name, path, **more):
    return [
        (e.success, e.terminated, int(e.reward.argmax()) if e.reward.any() else None) for e in read(name, path, **more)
    ]


def test_robomimic_without_success_is_judged_by_the_data_set(tmp_path):
    """findings C1: a 1 in the last row only, all zeros, dense small rewards; the last action is lost."""
    path = made(tmp_path, "robomimic_hdf5")
    with h5py.File(path, "a") as file:
        for k, n in enumerate((5, 3, 4)):
            demo = file[f"data/demo_{k}"]
            del demo.attrs["success"], demo["next_obs"], demo["dones"]
            demo["dones"] = np.arange(n) == n - 1
            demo["rewards"][-1] = float(k == 0)
    assert outcomes("robomimic_hdf5", path) == [(True, True, 3), (False, False, None), (False, False, None)]
    with h5py.File(path, "a") as file:
        file["data/demo_0/rewards"][-1] = 0.0
    assert outcomes("robomimic_hdf5", path) == [(None, False, None)] * 3, "all zero: nobody knows"
    with h5py.File(path, "a") as file:
        file["data/demo_0/rewards"][:] = 0.01 * np.arange(5)
    assert outcomes("robomimic_hdf5", path) == [(None, False, None)] * 3, "a dense reward decides nothing"
    told = outcomes("robomimic_hdf5", path, outcome={"success_when": "reward > 0.025"})
    assert told == [(True, True, 3), (False, False, None), (False, False, None)]
    one = read("robomimic_hdf5", path, outcome={"success_when": "reward > 0.005"})[0]
    assert one.extras["success"].tolist() == [False, True, True, True] and one.reward.tolist() == [0, 1, 0, 0]
    np.testing.assert_allclose(one.extras["env_reward"], [0, 0.01, 0.02, 0.03])
    with h5py.File(path, "a") as file:
        file["data/demo_1"].attrs["success"] = np.nan
    assert outcomes("robomimic_hdf5", path)[1][0] is None, "NaN is not true"


@pytest.mark.parametrize(
    "name", [n for n in fuzz_inputs.GOOD if n not in ("ros2_mcap", "hand_dapg_policy", "aloha_hdf5", "trials_csv")]
)
def test_a_key_decides_in_every_format(tmp_path, name):
    """findings C1: outcome=KEY asks the recorded array, and what it says is the outcome."""
    path = made(tmp_path, name)
    lengths = (5, 3, 4)
    flags = [np.arange(n) == 1 if k != 1 else np.zeros(n, bool) for k, n in enumerate(lengths)]
    key = "won"
    if name == "hand_dapg":
        path.write_bytes(
            pickle.dumps([{**r, key: f} for r, f in zip(pickle.loads(path.read_bytes()), flags, strict=True)])
        )
    elif name.startswith("lerobot"):
        path = getattr(written, name)(tmp_path / "l", written.rows(), **{key: lambda i, n: flags[i]})
    elif name == "replay_buffer_zarr":
        path = written.buffer(tmp_path / "b", written.rows(), **{key: np.concatenate(flags)})
    else:
        with h5py.File(path, "a") as file:
            if name == "d4rl_hdf5":
                file[key] = np.concatenate(flags)
            for k, one in enumerate(flags if name != "d4rl_hdf5" else ()):
                file[f"data/demo_{k}/{key}" if name == "robomimic_hdf5" else f"episode_{k}/infos/{key}"] = one
    key = "infos/won" if name == "minari_hdf5" else key
    at = 0 if name == "minari_hdf5" else 1  # infos have a first row of the reset
    assert [(s, a) for s, _, a in outcomes(name, path, outcome=key)] == [(True, at), (False, None), (True, at)]
    assert all("not recorded" in str(e) for e in read(name, path, outcome="nowhere"))
    with pytest.raises(ValueError, match="outcome=.*expected last_reward"):
        ingest.inputs(ingest.Args(format=name, source=str(path), outcome={"success_when": "reward >"}), None)


# C5


@pytest.mark.parametrize(
    "name", [n for n in fuzz_inputs.GOOD if n not in ("ros2_mcap", "hand_dapg_policy", "trials_csv")]
)
def test_whole_numbers_are_one_hot_for_a_discrete_task(tmp_path, name):
    """findings C5: integer actions of every format in a task with 2 choices from 1 on and 5 cells; a 7 is
    quarantined."""
    lengths = (5, 3, 4)
    rng = np.random.default_rng(0)
    choices = [rng.integers(1, 3, n) for n in lengths]
    choices[1][0] = 7
    cells = [rng.integers(0, 5, (n, 1)).astype(np.float32) for n in lengths]
    both = [{"state": s, "action": a} for s, a in zip(cells, choices, strict=True)]
    folder = tmp_path / "in"
    folder.mkdir()
    if name == "hand_dapg":
        kept = [
            {
                "observations": r["state"],
                "actions": r["action"],
                "rewards": np.zeros(len(r["action"])),
                "init_state_dict": {},
            }
            for r in both
        ]
        (folder / "a.pickle").write_bytes(pickle.dumps(kept))
    elif name == "replay_buffer_zarr":
        written.buffer(folder / "b", both)
    elif name.startswith("lerobot"):
        import pyarrow as pa
        import pyarrow.parquet as pq

        getattr(written, name)(folder / "l", written.rows())
        told = json.loads((folder / "l" / "meta" / "info.json").read_text())
        told["features"] |= {
            "action": {"dtype": "int64", "shape": [1]},
            "observation.state": {"dtype": "float32", "shape": [1]},
        }
        (folder / "l" / "meta" / "info.json").write_text(json.dumps(told))
        for file in (folder / "l" / "data").rglob("*.parquet"):
            table = pq.read_table(file)
            which = table.column("episode_index").to_pylist()
            rows = {k: iter(zip(cells[k][:, 0].tolist(), choices[k].tolist(), strict=True)) for k in set(which)}
            pairs = [next(rows[k]) for k in which]
            for key, column in (
                ("observation.state", pa.array([p[0] for p in pairs])),
                ("action", pa.array([p[1] for p in pairs])),
            ):
                table = table.set_column(table.column_names.index(key), key, column)
            pq.write_table(table, file)
    elif name == "aloha_hdf5":
        for k, r in enumerate(both):
            with h5py.File(folder / f"{k}.hdf5", "w") as file:
                file["action"], file["observations/qpos"] = r["action"], r["state"]
    elif name == "d4rl_hdf5":
        written.d4rl(folder / "a.hdf5", both, terminals=written.flags(4, 7))
    else:
        with h5py.File(folder / "a.hdf5", "w") as file:
            for k, r in enumerate(both):
                group = file.create_group(f"data/demo_{k}" if name == "robomimic_hdf5" else f"episode_{k}")
                group["actions"] = r["action"][: len(r["action"]) - (name != "robomimic_hdf5")]
                group["obs/cell" if name == "robomimic_hdf5" else "observations"] = r["state"]
    out = take(tmp_path / "store", folder, name, task=CORRIDOR)
    text = reasons(tmp_path / "store", out)
    assert (out["metrics"]["added"], out["metrics"]["quarantined"]) == (2, 1), text
    assert "action has 7; expected a whole number from 1 to 2, of the 2 choices of toy:Corridor-v0" in text
    first = max(run.Store(tmp_path / "store").corpus().at("latest"), key=len)
    assert np.array_equal(first.action, (choices[0][:4, None] == [1, 2]).astype(np.float32))
    assert np.array_equal(first.obs["state"], (cells[0] == np.arange(5)).astype(np.float32))


def test_whole_numbers_are_numbers_for_a_continuous_task(tmp_path):
    """findings C5"""
    recordings = [{**r, "action": np.sign(r["action"]).astype(np.int64)} for r in written.rows()]
    out = take(tmp_path / "store", written.buffer(tmp_path / "b", recordings), "replay_buffer_zarr")
    assert (
        out["metrics"]["added"] == 3
        and run.Store(tmp_path / "store").corpus().at("latest").read(0).action.dtype == np.float32
    )


# C10


def edited(root, change):
    import pyarrow.parquet as pq

    file = root / "meta" / "episodes" / "chunk-000" / "file-000.parquet"
    pq.write_table(change(pq.read_table(file)), file)


def test_lerobots_data_counts_where_its_index_is_wrong(tmp_path):
    """findings C10: a stale file_index, wrong lengths and from/to, no `tasks`, an episode that the index does not
    know."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    recordings = written.rows()
    path = written.lerobot_v3(tmp_path / "a", recordings)
    pq.write_table(
        pa.table({"task_index": [0, 1], "__index_level_0__": written.TASKS}), tmp_path / "a" / "meta" / "tasks.parquet"
    )

    def stale(table):
        wrong = {"data/file_index": [1, 1, 0], "data/chunk_index": [7, 7, None], "length": [1, 99, 4]}
        for name, values in wrong.items():
            table = table.set_column(table.column_names.index(name), name, pa.array(values, pa.int64()))
        wrong = {"dataset_from_index": [3, 3, 3], "dataset_to_index": [0, None, -1]}
        for name, values in wrong.items():
            table = table.append_column(name, pa.array(values, pa.int64()))
        return table.drop_columns(["tasks"])

    edited(tmp_path / "a", stale)
    found = read("lerobot_v3", path)
    for i, (episode, recording) in enumerate(zip(found, recordings, strict=True)):
        written.same(episode, recording)
        assert episode.meta["language"] == written.TASKS[i % 2], "by the task_index of its rows"
    edited(tmp_path / "a", lambda table: table.slice(0, 2))
    assert len(read("lerobot_v3", path)) == 3, "the data has it, so it is there"
    file = tmp_path / "a" / "data" / "chunk-000" / "file-000.parquet"
    table = pq.read_table(file)
    pq.write_table(table.take([7, 3, 1, 0, 2, 4, 6, 5]), file)
    for episode, recording in zip(read("lerobot_v3", path), recordings, strict=True):
        written.same(episode, recording)
    pq.write_table(table.take([0, 1, 3, 4, 5, 6, 7]), file)
    first, second, third = read("lerobot_v3", path)
    assert "frame_index: a row after 1 is missing" in str(first) and len(second) == 2 and len(third) == 3


# D


def canary(folder):
    return fuzz_inputs.Traps(folder)


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        ("external_storage", "its numbers lie in another file, which is not opened"),
        ("external_link", "a link to another file, which is not opened"),
        ("soft_link_out", "a link to another file, which is not opened"),
        ("other_files_rows", "rows of other files"),
        ("huge", "it declares"),
        ("huge_block", "a block: it declares"),
        ("bomb", "unpacks to more than"),
    ],
)
def test_hdf5_that_opens_other_files_or_explodes_is_refused_by_name(tmp_path, damage, words):
    """findings D1: external storage, external and soft links, virtual rows, declarations, bombs."""
    path, traps = made(tmp_path, "aloha_hdf5"), canary(tmp_path / "theirs")
    with h5py.File(path, "a") as file:
        data = file["observations/qpos"][()]
        del file["observations/qpos"]
        change = getattr(fuzz_inputs, damage)
        change.__wrapped__(file, "observations/qpos", data, np.random.default_rng(0), traps)
    text = written.refusal("aloha_hdf5", path)
    assert words in text and ("qpos" in text or "file: out: " in text), text


@pytest.mark.parametrize("write", [written.lerobot_v21, written.lerobot_v3], ids=lambda f: f.__name__)
@pytest.mark.parametrize("way", ["absolute", "climbs", "link", "format"])
def test_lerobot_reads_nothing_outside_of_its_folder(tmp_path, write, way):
    """findings D1: a data_path that is absolute, climbs or pads to a billion letters, and a link that leaves the
    data set."""
    traps = canary(tmp_path / "theirs")
    path = write(tmp_path / "a", written.rows())
    told = json.loads(path.read_text())
    if way == "link":
        file = next((tmp_path / "a" / "data").rglob("*.parquet"))
        file.unlink()
        file.symlink_to(traps.parquet)
    else:
        climb = os.path.relpath(traps.parquet, tmp_path / "a")
        told["data_path"] = {"absolute": str(traps.parquet), "climbs": climb, "format": "{episode_index:0999999999d}"}[
            way
        ]
        path.write_text(json.dumps(told))
    assert traps.parquet not in [p.resolve() for p in recordings.layout(write.__name__).parts(path)]
    found = list(accept.every(recordings.reader(write.__name__), path, {}))
    bad = [e for e in found if isinstance(e, EpisodeError)]
    if write is written.lerobot_v3 and way != "link":  # its data lie in data/*/*.parquet whatever the template says
        assert not bad and len(found) == 3
    else:
        assert bad and all("leaves the folder" in str(e) or way == "format" for e in bad)
    for e in set(found) - set(bad):
        assert not (np.abs(e.obs["state"] - fuzz_inputs.CANARY) < 1).any()


def test_what_is_inside_a_folder(tmp_path):
    """findings D1: links, climbing and absolute names; a Hugging Face cache is made of links to blobs beside it."""
    hub = tmp_path / "hub"
    (hub / "blobs").mkdir(parents=True)
    (hub / "snapshots" / "abc" / "data").mkdir(parents=True)
    (hub / "blobs" / "f00").write_text("x")
    root = hub / "snapshots" / "abc"
    (root / "data" / "a").symlink_to("../../../blobs/f00")
    (root / "data" / "b").symlink_to(tmp_path / "else")
    assert bounds.inside(root, "data/a", "").read_text() == "x"
    for name in ("data/b", "../x", "/etc/passwd", "data/../../x", tmp_path / "else"):
        with pytest.raises(EpisodeError, match=r"leaves the folder .*: not opened"):
            bounds.inside(root, name, "a.json")
    assert not bounds.within(root, root / "data" / "b") and bounds.within(root, root / "data" / "a")


def test_pictures_that_explode_are_refused(tmp_path):
    """findings D1: a PNG of 20,000 x 20,000 pixels in 60 KB, and one that Pillow itself calls a bomb."""
    import zlib

    from flywheel.frames import pictures

    def png(side):
        def part(kind, data):
            return len(data).to_bytes(4, "big") + kind + data + zlib.crc32(kind + data).to_bytes(4, "big")

        head = part(b"IHDR", side.to_bytes(4, "big") * 2 + b"\x08\x02\0\0\0")
        return b"\x89PNG\r\n\x1a\n" + head + part(b"IDAT", zlib.compress(bytes(60_000))) + part(b"IEND", b"")

    for side in (9_000, 20_000):
        with pytest.raises(EpisodeError, match="frame 0: .*(it declares 243,000,000 bytes|decompression bomb)"):
            pictures([png(side)])


# E


@pytest.mark.parametrize("name", ["lerobot_v3", "lerobot_v21", "replay_buffer_zarr", "minari_hdf5"])
def test_source_is_the_folder_of_a_data_set_or_of_many(tmp_path, name):
    """findings E1: source= takes what a user calls the data set."""
    folder = tmp_path / "sets"
    folder.mkdir()
    for number in (0, 1):
        if name == "minari_hdf5":
            written.minari(folder / f"s{number}", fuzz_inputs.recordings(number))
        else:
            fuzz_inputs.GOOD[name][1](folder / f"s{number}", number)
    one = take(tmp_path / "one", folder / "s0", name)
    assert one["metrics"]["added"] == 3 and one["status"] == "done"
    assert take(tmp_path / "two", folder, name)["metrics"]["added"] == 6
    assert take(tmp_path / "three", f"{folder}/s*", name)["metrics"]["added"] == 6


def test_robomimics_masks_and_other_actions_can_be_asked_for(tmp_path):
    """findings E1: filter_key= and action_key=, and formats that know neither say so."""
    path = made(tmp_path, "robomimic_hdf5")
    with h5py.File(path, "a") as file:
        for k, n in enumerate((5, 3, 4)):
            file[f"data/demo_{k}/actions_abs"] = np.full((n, 2), 0.5, np.float32)
    out = take(
        tmp_path / "store", path, "robomimic_hdf5", "obs_keys=[a,b]", "filter_key=train", "action_key=actions_abs"
    )
    held = list(run.Store(tmp_path / "store").corpus().at("latest"))
    assert out["metrics"]["added"] == 2 and {e.meta["demo"] for e in held} == {"demo_0", "demo_1"}
    assert all((e.action == 0.5).all() for e in held)
    assert "no mask/valid, which filter_key asks for; there is train" in written.refusal(
        "robomimic_hdf5", path, filter_key="valid"
    )
    with pytest.raises(ValueError, match="format=hand_dapg takes no filter_key; it takes origin, fps, outcome"):
        take(tmp_path / "store", made(tmp_path, "hand_dapg"), "hand_dapg", "filter_key=train")


def test_a_reader_that_is_dropped_at_exit_says_nothing(tmp_path):
    """findings E1: a reader with workers printed a traceback at exit."""
    code = f"""
import numpy as np
from corpus_cases import episode
from flywheel.corpus import Corpus
from flywheel.rl.source import Offline
corpus = Corpus({str(tmp_path / "c")!r}, create=True)
corpus.append([episode(i) for i in range(6)])
windows = corpus.windows(corpus.at("latest"), cache={str(tmp_path / "cache")!r})
windows.resident = 0
options = {{"obs_steps": 2, "action_steps": 2, "batch_size": 8, "workers": 2}}
source = Offline(windows, {{"all": np.arange(6)}}, {{"improve": {{"all": 1.0}}}}, **options)
print(source.batch("improve")["obs"].shape[0])
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parent, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "8\n", "")


def test_a_full_disk_names_the_file_and_a_store_to_be_read_needs_no_writing(tmp_path, monkeypatch):
    """findings E1: the message of ENOSPC has the path; corpus stats and its quantiles work where nothing can be
    written."""
    import errno

    from corpus_cases import episode

    from flywheel import store
    from flywheel.cli import curation

    place = run.Store(tmp_path / "store")
    place.corpus(create=True).append([episode(seed) for seed in range(4)])

    def full(descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def never(*words, **more):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(OSError, match=r"No space left on device: '.*/\.a\.json\..*tmp'"):
            store.write_atomic(tmp_path / "a.json", b"{}")
    with monkeypatch.context() as patch:
        for name in ("mkdir", "replace", "link"):
            patch.setattr(os, name, never)
        held = Corpus(place.corpus_path)
        assert curation.stats([], held, place)["metrics"]["episodes"] == 4
        assert len(curation.stats(["field=obs.state"], held, place)["columns"]) == 3
    assert not (place.root / "cache").exists()


# F7


def test_the_authors_policy_opens_the_door_and_nothing_else(tmp_path):
    """findings F7: hand_dapg_policy is refused in another task than the one that it is for."""
    out = take(tmp_path / "store", made(tmp_path, "hand_dapg_policy"), "hand_dapg_policy")
    assert out["status"] == "failed"
    assert "a policy for AdroitHandDoor-v1, and the task is fuzz:Any-v0" in reasons(tmp_path / "store", out)
