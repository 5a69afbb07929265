"""Formats: each reader against small files in the layout that its authors document, to the last bit; refusals in
words."""

import json

import h5py
import numpy as np
import pytest
import toy

from flywheel.cli import config
from flywheel.episode import Episode, EpisodeError, check
from flywheel.intake import accept, recordings
from flywheel.runs import run
from flywheel.stages import ingest

LENGTHS = (5, 3, 4)  # rows of the three recordings in every file below


def rows(seed=0, lengths=LENGTHS, state=3, act=2):
    """[{state [n, 3], action [n, 2]} float32] a recording."""
    rng = np.random.default_rng(seed)
    return [
        {
            "state": rng.normal(size=(n, state)).astype(np.float32),
            "action": rng.uniform(-1, 1, (n, act)).astype(np.float32),
        }
        for n in lengths
    ]


def read(name, path, **options):
    """The episodes of a file, checked; errors as they come."""
    found = list(accept.every(recordings.reader(name), path, options))
    return [e if isinstance(e, EpisodeError) else check(e, name) for e in found]


def same(episode, recording, last=None):
    """The episode is the recording less its last action; or whole, with `last` as final observation."""
    state, action = recording["state"], recording["action"]
    state, action = (state, action[:-1]) if last is None else (np.concatenate([state, last[None]]), action)
    assert episode.obs["state"].dtype == episode.action.dtype == np.float32
    assert np.array_equal(episode.obs["state"], state) and np.array_equal(episode.action, action)


def refusal(name, path, **options):
    (error,) = read(name, path, **options)
    assert isinstance(error, EpisodeError) and str(path) in str(error)
    return str(error)


# ALOHA


def aloha(path, recording, packed=False, **attrs):
    with h5py.File(path, "w") as file:
        file.attrs.update(sim=False, compress=packed, **attrs)
        file["action"] = recording["action"]
        file["observations/qpos"], file["observations/qvel"] = recording["state"][:, :2], recording["state"][:, 2:]
        file["observations/images/top"] = np.arange(len(recording["action"]) * 12, dtype=np.uint8).reshape(-1, 2, 2, 3)


def test_aloha_is_one_file_an_episode_and_its_last_action_is_lost(tmp_path):
    (recording,) = rows(lengths=[5])
    aloha(tmp_path / "episode_0.hdf5", recording)
    (episode,) = read("aloha_hdf5", tmp_path / "episode_0.hdf5", cameras=["top"])
    same(episode, recording)
    assert (episode.success, episode.terminated, episode.fps) == (None, False, 50.0) and not episode.reward.any()
    assert episode.obs["top"].shape == (5, 2, 2, 3) and episode.obs["top"][4, 1, 1, 2] == 59
    (other,) = read("aloha_hdf5", tmp_path / "episode_0.hdf5", obs_keys=["qpos"], origin="human:vr", fps=25, cameras=[])
    assert other.obs["state"].shape == (5, 2) and (other.origin, other.fps) == ("human:vr", 25.0)
    assert list(other.obs) == ["state"]
    text = refusal("aloha_hdf5", tmp_path / "episode_0.hdf5", obs_keys=["qpos", "effort"])
    assert "no effort; there is qpos [5, 2], qvel [5, 1]" in text
    assert "no camera 'wrist'; there is top" in refusal("aloha_hdf5", tmp_path / "episode_0.hdf5", cameras=["wrist"])


def test_aloha_jpeg_rows_are_kept_and_decoded_as_opencv_had_them(tmp_path):
    import io

    from PIL import Image

    (recording,) = rows(lengths=[3])
    aloha(tmp_path / "e.hdf5", recording, packed=True)
    packed = []
    for level in (0, 100, 200):
        buffer = io.BytesIO()
        Image.new("RGB", (8, 8), (200 - level, level, level)).save(buffer, "JPEG", quality=100)
        packed.append(np.frombuffer(buffer.getvalue(), np.uint8))
    with h5py.File(tmp_path / "e.hdf5", "a") as file:
        del file["observations/images/top"]
        width = max(map(len, packed))
        file["observations/images/top"] = np.stack([np.pad(row, (0, width - len(row))) for row in packed])
    (episode,) = read("aloha_hdf5", tmp_path / "e.hdf5")
    np.testing.assert_allclose(episode.obs["top"][:, 0, 0], [[0, 0, 200], [100, 100, 100], [200, 200, 0]], atol=4)
    assert [blob.read() for blob in episode.obs["top"].blobs] == [row.tobytes() for row in packed]


# D4RL


def d4rl(path, recordings, **more):
    with h5py.File(path, "w") as file:
        file["observations"] = np.concatenate([r["state"] for r in recordings])
        file["actions"] = np.concatenate([r["action"] for r in recordings])
        number = len(file["actions"])
        for key, value in {
            "rewards": np.zeros(number, np.float32),
            "terminals": np.zeros(number, bool),
            **more,
        }.items():
            file[key] = value


def flags(*where, kind=bool):
    out = np.zeros(sum(LENGTHS), kind)
    out[list(where)] = 1
    return out


def test_d4rl_is_cut_where_episodes_ended(tmp_path):
    recordings, path = rows(), tmp_path / "a.hdf5"
    d4rl(path, recordings, terminals=flags(4), timeouts=flags(7), rewards=flags(4, kind=np.float32))
    one, two, three = read("d4rl_hdf5", path, fps=10.0)
    for episode, recording in zip((one, two, three), recordings, strict=True):
        same(episode, recording)
    assert one.reward.tolist() == [0, 0, 0, 1] and one.success and one.terminated, "told at the last step that is left"
    assert (two.success, two.terminated, three.success) == (False, False, False)
    assert three.meta == {"file": "a.hdf5", "demo": 2, "rows": [8, 12]}


def test_d4rl_with_next_observations_loses_nothing(tmp_path):
    recordings, path = rows(), tmp_path / "a.hdf5"
    after = np.concatenate([r["state"] for r in recordings]) + 1
    dense = np.linspace(0.1, 0.2, 12, dtype=np.float32)
    d4rl(path, recordings, terminals=flags(4), timeouts=flags(7), next_observations=after, rewards=dense)
    episodes = read("d4rl_hdf5", path)
    for episode, recording, stop in zip(episodes, recordings, (5, 8, 12), strict=True):
        same(episode, recording, last=after[stop - 1])
        assert episode.success is None and not episode.reward.any(), "a dense reward does not say who succeeded"
    assert np.array_equal(episodes[1].extras["env_reward"], dense[5:8])
    d4rl(path, recordings, terminals=flags(4), timeouts=flags(7), **{"infos/goal_achieved": flags(2, 6)})
    one, two, three = read("d4rl_hdf5", path)
    assert (one.success, two.success, three.success) == (True, True, False) and one.reward.argmax() == 2


def test_d4rl_refusals(tmp_path):
    d4rl(tmp_path / "a.hdf5", rows(), terminals=flags(0, 4), rewards=np.zeros(12, np.float32))
    first, *good = read("d4rl_hdf5", tmp_path / "a.hdf5")
    assert "episode 0: one row (row 0) and no next_observations" in str(first) and len(good) == 2
    d4rl(tmp_path / "b.hdf5", rows(), rewards=np.zeros(3, np.float32))
    assert "different length: actions [12, 2], observations [12, 3]" in refusal("d4rl_hdf5", tmp_path / "b.hdf5")
    with h5py.File(tmp_path / "c.hdf5", "w") as file:
        file["data"] = np.zeros(3)
    assert "no observations, actions, rewards, terminals; there is data [3]" in refusal(
        "d4rl_hdf5", tmp_path / "c.hdf5"
    )


# Minari


def minari(folder, recordings, nested=False, **more):
    path = folder / "data" / "main_data.hdf5"
    path.parent.mkdir(parents=True)
    with h5py.File(path, "w") as file:
        for i, r in enumerate(recordings):
            group, steps = file.create_group(f"episode_{i}"), len(r["action"]) - 1
            group.attrs.update(id=i, seed=100 + i, total_steps=steps)
            group["actions"] = r["action"][:-1]
            if nested:
                group["observations/observation"], group["observations/desired_goal"] = np.split(
                    r["state"], [2], axis=1
                )
            else:
                group["observations"] = r["state"]
            done = np.arange(steps) == steps - 1
            arrays = {
                "rewards": done.astype(np.float64),
                "terminations": done & (i == 0),
                "truncations": done & (i > 0),
            }
            for key, value in {**arrays, **more}.items():
                group[key] = value(steps) if callable(value) else value
    spec = json.dumps({"id": "Point-v0", "kwargs": {}})
    (path.parent / "metadata.json").write_text(json.dumps({"dataset_id": "D/point-v2", "env_spec": spec}))
    return path


def test_minari_has_the_final_observation_and_loses_nothing(tmp_path):
    recordings = rows()
    episodes = read("minari_hdf5", minari(tmp_path / "a", recordings))
    for i, (episode, recording) in enumerate(zip(episodes, recordings, strict=True)):
        same(episode, recording)
        assert (episode.success, episode.terminated, episode.seed) == (True, i == 0, 100 + i)
        assert episode.reward[-1] == 1 and episode.reward.sum() == 1 and episode.origin == "dataset:D/point-v2"
    assert episodes[2].meta == {
        "file": "main_data.hdf5",
        "demo": "episode_2",
        "dataset": "D/point-v2",
        "env": "Point-v0",
    }


def test_minari_takes_a_dict_apart_and_reads_success_from_infos(tmp_path):
    recordings = rows()
    solved = {"infos/success": lambda steps: np.arange(steps + 1) == 2, "rewards": lambda steps: np.full(steps, 0.5)}
    path = minari(tmp_path / "a", recordings, nested=True, **solved)
    episodes = read("minari_hdf5", path)
    assert np.array_equal(episodes[0].obs["state"], np.roll(recordings[0]["state"], 1, axis=1)), "sorted: goal first"
    assert episodes[0].reward.tolist() == [0, 1, 0, 0], "infos have a first row of the reset"
    same(read("minari_hdf5", path, obs_keys=["observation", "desired_goal"])[0], recordings[0])
    with h5py.File(path, "a") as file:  # newer files keep infos as texts
        del file["episode_0/infos"]
        file["episode_0/infos"] = ["{}", '{"success": false}', '{"success": true}', "{}", '{"success": true}']
    assert read("minari_hdf5", path)[0].reward.tolist() == [0, 1, 0, 0]
    wrong = read("minari_hdf5", path, obs_keys=["goal"])
    assert len(wrong) == 3 and "episode_1: no goal; there is desired_goal [3, 1], observation [3, 2]" in str(wrong[1])
    with h5py.File(path, "a") as file:
        del file["episode_0/actions"]
        file["episode_0/actions"] = np.arange(4)
        del file["episode_1/actions"]
    first, second, third = read("minari_hdf5", path)
    assert first.action.tolist() == [[0], [1], [2], [3]] and first.action.dtype == np.int64, "ingest makes them one-hot"
    assert "episode_1: no actions" in str(second) and len(third) == 3


# Diffusion policy's replay buffer


def buffer(folder, recordings, **more):
    import zarr

    group = zarr.open_group(str(folder), mode="w", zarr_format=2)
    arrays = {key: np.concatenate([r[key] for r in recordings]) for key in ("state", "action")}
    for key, value in {**arrays, **more}.items():
        group.create_array(f"data/{key}", data=value, chunks=(4, *value.shape[1:]))
    group.create_array("meta/episode_ends", data=np.cumsum([len(r["action"]) for r in recordings]))
    return folder / "meta" / "episode_ends" / ".zarray"


def test_replay_buffer_folder_and_zip(tmp_path):
    import shutil

    recordings = rows()
    image = np.arange(12 * 12, dtype=np.uint8).reshape(12, 2, 2, 3)
    path = buffer(tmp_path / "reach.zarr", recordings, img=image)
    assert path.is_file(), "the layout is Zarr v2"
    shutil.make_archive(str(tmp_path / "reach.zarr"), "zip", tmp_path / "reach.zarr")
    for source in (path, tmp_path / "reach.zarr", tmp_path / "reach.zarr.zip"):
        for episode, recording in zip(read("replay_buffer_zarr", source), recordings, strict=True):
            same(episode, recording)
            assert (episode.success, episode.terminated) == (None, False) and not episode.reward.any()
    episode = read(
        "replay_buffer_zarr", path, cameras=["img"], obs_keys=["action", "state"], origin="human:vr", fps=10
    )[1]
    assert np.array_equal(episode.obs["img"], image[5:8]) and episode.obs["state"].shape == (3, 5)
    meta = {"file": "reach.zarr", "demo": 1, "obs_shapes": [["action", [2]], ["state", [3]]]}
    assert (episode.origin, episode.fps, episode.meta) == ("human:vr", 10.0, meta)


def test_replay_buffer_refusals(tmp_path):
    path = buffer(tmp_path / "a.zarr", rows())
    assert "no keypoint; there is action [12, 2], state [12, 3]" in refusal(
        "replay_buffer_zarr", path, obs_keys=["keypoint"]
    )
    next((tmp_path / "a.zarr" / "data" / "state").glob("1.*")).write_bytes(b"no chunk")
    found = read("replay_buffer_zarr", path)
    assert all(isinstance(e, EpisodeError) and f"{path}: episode" in str(e) for e in found[:2]) and len(found) == 3
    short = buffer(tmp_path / "b.zarr", [*rows(), {"state": np.zeros((0, 3)), "action": np.zeros((0, 2))}])
    *good, empty = read("replay_buffer_zarr", short)
    assert [len(e) for e in good] == [4, 2, 3] and "episode 3: 0 rows, and no final observation" in str(empty)


# LeRobotDataset, by hand from the documented layout

TASKS = ["reach the cube", "lift it"]


def features(**more):
    """info.json's features; width 1 is a plain column."""
    wide = {"observation.state": ("float32", 3), "action": ("float32", 2), **more}
    kept = {
        "timestamp": ("float32", 1),
        **{k: ("int64", 1) for k in ("frame_index", "episode_index", "index", "task_index")},
    }
    return {key: {"dtype": dtype, "shape": [n], "names": None} for key, (dtype, n) in {**wide, **kept}.items()}


def columns(recording, number, begin, **more):
    """The pyarrow columns of one recording."""
    import pyarrow as pa

    n = len(recording["action"])
    out = {
        "observation.state": pa.FixedSizeListArray.from_arrays(recording["state"].ravel(), 3),
        "action": pa.array(list(recording["action"]), pa.list_(pa.float32())),
        "timestamp": np.arange(n, dtype=np.float32) / 10,
        "frame_index": np.arange(n),
        "episode_index": np.full(n, number),
        "index": begin + np.arange(n),
        "task_index": np.full(n, number % 2),
    }
    return pa.table({**out, **{key: value(number, n) for key, value in more.items()}})


def info(root, version, data_path, video_path=None, **more):
    out = {"codebase_version": version, "robot_type": "so100", "fps": 10, "total_episodes": 3, "total_frames": 12}
    out |= {"chunks_size": 2, "data_path": data_path, "video_path": video_path, "features": features(**more)}
    (root / "meta").mkdir(parents=True)
    (root / "meta" / "info.json").write_text(json.dumps(out))
    return root / "meta" / "info.json"


def lerobot_v21(root, recordings, kinds=None, **more):
    import pyarrow.parquet as pq

    pattern = "data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet"
    path = info(root, "v2.1", pattern, **(kinds or {}))
    listing = [
        {"episode_index": i, "tasks": [TASKS[i % 2]], "length": len(r["action"])} for i, r in enumerate(recordings)
    ]
    (root / "meta" / "episodes.jsonl").write_text("".join(json.dumps(row) + "\n" for row in listing))
    for i, recording in enumerate(recordings):
        file = root / pattern.format(episode_chunk=i // 2, episode_index=i)
        file.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(columns(recording, i, sum(LENGTHS[:i]), **more), file)
    return path


def lerobot_v3(root, recordings, kinds=None, **more):
    import pyarrow as pa
    import pyarrow.parquet as pq

    pattern = "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"
    path = info(root, "v3.0", pattern, **(kinds or {}))
    tables = [columns(r, i, sum(LENGTHS[:i]), **more) for i, r in enumerate(recordings)]
    for number, parts in enumerate([tables[:2], tables[2:]]):  # the first file holds two episodes
        file = root / pattern.format(chunk_index=0, file_index=number)
        file.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.concat_tables(parts), file)
    listing = {
        "episode_index": [0, 1, 2],
        "tasks": [[TASKS[i % 2]] for i in range(3)],
        "length": list(LENGTHS),
        "data/chunk_index": [0, 0, 0],
        "data/file_index": [0, 0, 1],
        "stats/action/mean": [[0.0, 0.0]] * 3,
    }
    (root / "meta" / "episodes" / "chunk-000").mkdir(parents=True)
    pq.write_table(pa.table(listing), root / "meta" / "episodes" / "chunk-000" / "file-000.parquet")
    return path


LEROBOT = pytest.mark.parametrize("write", [lerobot_v21, lerobot_v3], ids=lambda f: f.__name__)


@LEROBOT
def test_lerobot_to_the_last_bit(tmp_path, write):
    recordings = rows()
    last = {
        "next.done": lambda i, n: np.arange(n) == n - 1,
        "next.success": lambda i, n: (np.arange(n) == n - 1) & (i != 1),
    }
    rest = {"next.reward": lambda i, n: np.linspace(0, 0.5, n, dtype=np.float32)}
    rest["observation.effort"] = lambda i, n: np.arange(n, dtype=np.float64) + 0.1
    kinds = {"next.done": ("bool", 1), "next.success": ("bool", 1), "next.reward": ("float32", 1)}
    path = write(tmp_path / "reach", recordings, {**kinds, "observation.effort": ("float64", 1)}, **last, **rest)
    episodes = read(write.__name__, path)
    for i, (episode, recording) in enumerate(zip(episodes, recordings, strict=True)):
        same(episode, recording)
        n = len(recording["action"])
        assert (episode.success, episode.terminated, episode.fps) == (i != 1, i != 1, 10.0)
        assert episode.reward.tolist() == [0.0] * (n - 2) + [float(i != 1)], "told at the last step that is left"
        assert np.array_equal(episode.extras["env_reward"], np.linspace(0, 0.5, n, dtype=np.float32)[:-1])
        assert np.array_equal(episode.obs["effort"], np.arange(n) + 0.1), "other observations keep name and dtype"
        assert episode.meta.pop("skew_s") == {"rows": [0.0, 0.0]}
        assert episode.meta == {"file": "reach", "demo": i, "language": TASKS[i % 2], "robot": "so100"}
    both = read(
        write.__name__, tmp_path / "reach", obs_keys=["effort", "observation.state"], fps=20, origin="human:leader"
    )
    assert both[0].obs["state"].shape == (5, 4) and list(both[0].obs) == ["state"]
    assert (both[0].fps, both[0].origin) == (20.0, "human:leader")


@LEROBOT
def test_lerobot_rows_that_came_late_are_told(tmp_path, write):
    late = {"timestamp": lambda i, n: (5 + np.arange(n) / 10 + 0.03 * (np.arange(n) >= n - 1 - i)).astype(np.float32)}
    found = read(write.__name__, write(tmp_path / "a", rows(lengths=LENGTHS), **late))
    # 1 of 5 rows, 2 of 3, 3 of 4 are 0.03 s behind the first row's clock
    assert [e.meta["skew_s"]["rows"] for e in found] == [
        pytest.approx(two, abs=1e-5) for two in ([0, 0.03], [0.03, 0.03], [0.03, 0.03])
    ]


@LEROBOT
def test_lerobot_without_success_a_sparse_reward_says_who_succeeded(tmp_path, write):
    kinds = {"next.reward": ("float32", 1)}
    for name, reward, success in [
        ("sparse", lambda i, n: ((np.arange(n) == 1) & (i == 0)).astype(np.float32), [True, False, False]),
        ("dense", lambda i, n: np.linspace(0, 1, n, dtype=np.float32), [None] * 3),
        ("empty", lambda i, n: np.zeros(n, np.float32), [None] * 3),
    ]:
        path = write(tmp_path / name, rows(), kinds, **{"next.reward": reward})
        assert [e.success for e in read(write.__name__, path)] == success, name


@LEROBOT
def test_lerobot_refusals(tmp_path, write):
    path = write(tmp_path / "a", rows())
    other = {"lerobot_v21": "lerobot_v3", "lerobot_v3": "lerobot_v21"}[write.__name__]
    assert f"Read it with format={write.__name__}" in refusal(other, path)
    assert "no observation.images; there is observation.state [3]" in refusal(write.__name__, path, obs_keys=["images"])
    (tmp_path / "a" / "data" / "chunk-000").joinpath(
        {"lerobot_v21": "episode_000001.parquet", "lerobot_v3": "file-000.parquet"}[write.__name__]
    ).unlink()
    found = read(write.__name__, path)
    lost = {"lerobot_v21": [1], "lerobot_v3": [0, 1]}[write.__name__]
    assert [i for i, e in enumerate(found) if isinstance(e, EpisodeError)] == lost
    assert all(f"{path}: episode {i}" in str(found[i]) and ".parquet" in str(found[i]) for i in lost)
    assert "no meta/info.json" in refusal(write.__name__, tmp_path / "a" / "meta" / "episodes")


@LEROBOT
def test_lerobot_frames_of_a_video_are_those_of_the_rows(tmp_path, write):
    """findings C10: also where the index says null of which video they are in, and there is one."""
    import av

    path = write(tmp_path / "a", rows())
    told = json.loads(path.read_text())
    told["features"]["observation.images.top"] = {"dtype": "video", "shape": [64, 64, 3], "names": None}
    v3 = write is lerobot_v3
    told["video_path"] = "v/{video_key}-{chunk_index}.mp4" if v3 else "v/{video_key}-{episode_index}.mp4"
    path.write_text(json.dumps(told))
    (tmp_path / "a" / "v").mkdir()
    number = sum(LENGTHS) if v3 else 4
    with av.open(str(tmp_path / "a" / "v" / f"observation.images.top-{0 if v3 else 2}.mp4"), "w") as file:
        stream = file.add_stream("mpeg4", rate=10)
        stream.width = stream.height = 64
        for i in range(number):
            level = 20 * i if v3 else 20 * (i + 8)
            frame = av.VideoFrame.from_ndarray(np.full((64, 64, 3), level, np.uint8), format="rgb24")
            file.mux(stream.encode(frame))
        file.mux(stream.encode())
    if v3:
        import pyarrow as pa
        import pyarrow.parquet as pq

        listing = tmp_path / "a" / "meta" / "episodes" / "chunk-000" / "file-000.parquet"
        table = pq.read_table(listing)
        for key, values in {"chunk_index": [0] * 3, "file_index": [0] * 3, "from_timestamp": [0.0, 0.5, 0.8]}.items():
            table = table.append_column(f"videos/observation.images.top/{key}", pa.array(values))
        pq.write_table(table, listing)
    *others, last = read(write.__name__, path, cameras=["observation.images.top"])
    image = last.obs["top"]
    assert image.shape == (4, 64, 64, 3) and image.dtype == np.uint8
    np.testing.assert_allclose(np.asarray(image).mean(axis=(1, 2, 3)), [160, 180, 200, 220], atol=4)
    if v3:
        assert np.abs(others[1].obs["top"][0].mean() - 100) < 4
        assert others[0].obs["top"].blobs == image.blobs, "one file, read once"
        place = tmp_path / "a" / "videos" / "observation.images.top" / "chunk-000" / "file-000.mp4"
        place.parent.mkdir(parents=True)
        place.write_bytes((tmp_path / "a" / "v" / "observation.images.top-0.mp4").read_bytes())
        for key in ("chunk_index", "file_index", "from_timestamp"):
            at = table.column_names.index(f"videos/observation.images.top/{key}")
            table = table.set_column(at, f"videos/observation.images.top/{key}", pa.nulls(3))
        pq.write_table(table, listing)
        *_, again = read(write.__name__, path, cameras=["top"])
        assert np.array_equal(np.asarray(again.obs["top"]), np.asarray(image)), "by the rows' own index"
    else:
        assert "episode_index" not in str(others[0]) and "top-0.mp4" in str(others[0])


class Evil:
    def __reduce__(self):
        return (print, ("this ran",))


def test_a_replay_buffer_runs_nothing(tmp_path, capsys, monkeypatch):
    import pickle

    import numcodecs.pickles

    monkeypatch.setattr(numcodecs.pickles, "ALLOW_UNSAFE_PICKLE_DECODE", True, raising=False)  # as older releases are
    path = buffer(tmp_path / "a.zarr", rows())
    for name in ("meta/episode_ends", "data/state"):
        folder = tmp_path / "a.zarr" / name
        told = json.loads((folder / ".zarray").read_text())
        told |= {"dtype": "|O", "filters": [{"id": "vlen-utf8"}, {"id": "pickle", "protocol": 2}], "compressor": None}
        (folder / ".zarray").write_text(json.dumps(told | {"fill_value": None}))
        for chunk in folder.glob("[0-9]*"):
            chunk.write_bytes(pickle.dumps(Evil()))
    assert "is kept as pickles, which could run code" in refusal("replay_buffer_zarr", path)
    assert "this ran" not in capsys.readouterr().out


# Export, and back

BEGUN = {"qpos": np.arange(3.0), "door": np.float32([[1], [2]])}


def episodes(start=False, fps=10.0):
    """Four episodes that are hard to keep: float64 beside float32, a rollout's extras, unknown success, an early
    end."""
    out = []
    for i, r in enumerate(rows(lengths=(5, 2, 7, 3), state=4)):
        steps = len(r["action"]) - 1
        out.append(
            Episode(
                task="toy:Reach-v0",
                obs={"state": r["state"], "effort": r["state"][:, :1].astype(np.float64) / 3},
                action=r["action"][:-1],
                reward=(np.arange(steps) == steps - 1).astype(np.float32) * (i in (0, 2)),
                terminated=i in (0, 3),
                success=[True, False, True, None][i],
                origin=["human:vr", "human:vr", "policy:9bd1c0a1b2c3", "scripted:reach"][i],
                seed=None if i == 3 else 2**40 + i,
                fps=fps,
                extras={
                    "env_reward": np.linspace(0, 1, steps),
                    "contact": np.arange(steps + 1) % 2 == 0,
                    "force": np.full((steps, 1), 1 / 3, np.float32),
                    **({"chain": np.ones((steps, 2, 2), np.float32)} if i == 2 else {}),
                },
                start=BEGUN if start and i == 0 else {},
                meta={"file": "a.hdf5", "demo": i, "language": "reach the goal" if i else "reach it", "note": "ü"},
            )
        )
    return out


def stored(folder, held):
    run.Store(folder).corpus(create=True).append(held, message="made by hand")
    return folder


def export(store, out, format, *more):
    cfg = config.compose("export", [*toy.TASK, f"out={out}", f"format={format}", *more])
    return run.execute("export", cfg, run.Store(store))


SOURCE = {"lerobot_v3": "meta/info.json", "replay_buffer_zarr": "replay_buffer.zarr/meta/episode_ends/.zarray"}


@pytest.mark.parametrize("format", SOURCE)
def test_a_round_trip_is_equal_to_the_last_bit(tmp_path, capsys, format):
    held = episodes(start=True)
    out = export(stored(tmp_path / "store", held), tmp_path / "out", format)
    assert (out["status"], out["metrics"]["episodes"], out["metrics"]["steps"]) == ("done", 4, 13)
    said = capsys.readouterr().err
    assert "not in this export: extras.chain: only 1 of 4 episodes" in said and "start, the simulator state" in said
    assert "kept where only flywheel looks: final observation" in said
    back = read(format, tmp_path / "out" / SOURCE[format])
    assert [e.hash for e in back] == sorted(e.hash for e in held), "in the order of their hashes"
    by_hash = {e.hash: e for e in held}
    for episode in back:
        was = by_hash[episode.hash]
        for name in ("task", "success", "terminated", "origin", "seed", "fps"):
            assert getattr(episode, name) == getattr(was, name), name
        assert episode.meta == {**was.meta, "exported": "out" if format == "lerobot_v3" else "replay_buffer.zarr"}
        assert set(episode.extras) == {"env_reward", "contact", "force"}
        for key, value in episode.extras.items():
            assert value.dtype == was.extras[key].dtype and np.array_equal(value, was.extras[key]), key
    mark = json.loads((tmp_path / "out" / "flywheel.json").read_text())
    assert mark["episodes"] == sorted(by_hash) and len(mark["lost"]) == out["metrics"]["lost"]


def test_robomimic_hdf5_keeps_everything(tmp_path, capsys):
    held = episodes(start=True)
    export(stored(tmp_path / "store", held), tmp_path / "out", "robomimic_hdf5")
    assert "success, unknown of 1 episodes" in capsys.readouterr().err
    by_hash = {e.hash: e for e in held}
    with h5py.File(tmp_path / "out" / "demos.hdf5") as file:
        assert (file["data"].attrs["total"], file["data"].attrs["fps"]) == (13, 10.0)
        demos = sorted(file["data"])
        assert len(demos) == 4
        assert file["data/demo_0/obs/state"].shape == file["data/demo_0/next_obs/state"].shape
    back = read("robomimic_hdf5", tmp_path / "out" / "demos.hdf5")
    assert sorted(e.hash for e in back) == sorted(by_hash)
    for episode in back:
        was = by_hash[episode.hash]
        assert (episode.origin, episode.seed, episode.success) == (was.origin, was.seed, was.success)
        assert set(episode.extras) == set(was.extras) and set(episode.start) == set(was.start)
        for key, value in {**episode.extras, **episode.start}.items():
            assert np.array_equal(value, {**was.extras, **was.start}[key]), key
    for episode in read("robomimic_hdf5", tmp_path / "out" / "demos.hdf5", obs_keys=["state"]):
        assert any(np.array_equal(episode.obs["state"], e.obs["state"]) and np.array_equal(episode.action, e.action) and
                   np.array_equal(episode.reward, e.reward) for e in held)  # fmt: skip


def test_a_large_export_is_several_files_and_rates_may_differ(tmp_path, monkeypatch, capsys):
    from flywheel_datasets import lerobot_v3, replay_buffer_zarr

    for name, value in (("FILE_BYTES", 0), ("CHUNK_FILES", 3)):
        monkeypatch.setattr(lerobot_v3, name, value)
    monkeypatch.setattr(replay_buffer_zarr, "FLUSH_BYTES", 0)
    held = episodes()
    held[1] = held[1].replace(fps=5.0)
    stored(tmp_path / "store", held)
    for format in SOURCE:
        export(tmp_path / "store", tmp_path / format, format)
        back = read(format, tmp_path / format / SOURCE[format])
        assert [(e.hash, e.fps) for e in back] == sorted((e.hash, e.fps) for e in held)
    files = [
        p.relative_to(tmp_path / "lerobot_v3" / "data") for p in (tmp_path / "lerobot_v3" / "data").rglob("*.parquet")
    ]
    assert sorted(map(str, files)) == [
        "chunk-000/file-000.parquet", "chunk-000/file-001.parquet", "chunk-000/file-002.parquet", "chunk-001/file-000.parquet",
    ]  # fmt: skip
    assert "rates other than 10 Hz, of 1 episodes: LeRobot has one rate" in capsys.readouterr().err


@pytest.mark.parametrize("format", ["lerobot_v3", "robomimic_hdf5", "zarr"])
def test_an_export_is_a_run(tmp_path, format):
    from flywheel.runs import lineage

    store, out = stored(tmp_path / "store", episodes()), tmp_path / "out"
    first = export(store, out, format)
    again = export(store, out, format)
    assert (again["status"], again["run"]) == ("noop", first["run"])
    assert lineage.replay(first["run"], run.Store(store))["status"] == "done", "the same bytes"
    files = run.Store(store).find(first["run"])["content"]["files"]
    for path in sorted(out.rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    assert export(store, out, format)["status"] == "done", "what was deleted is made again"
    assert export(store, out, format)["status"] == "noop" and not list(tmp_path.glob(".*"))
    assert run.hashes(out) == files


def test_export_refuses_in_the_first_second(tmp_path):
    store, out = stored(tmp_path / "store", episodes()), tmp_path / "out"
    with pytest.raises(
        ValueError, match="format='parquet' cannot be written. There are: lerobot_v3, replay_buffer_zarr"
    ):
        export(store, out, "parquet")
    with pytest.raises(
        ValueError, match="no episode of toy:Reach-v0 of origin human:glove. It holds: toy:Reach-v0 .4."
    ):
        export(store, out, "zarr", "origin=human:glove")
    out.mkdir()
    (out / "thesis.tex").write_text("")
    with pytest.raises(ValueError, match="out: it exists and is no export of flywheel"):
        export(store, out, "zarr")
    export(store, tmp_path / "two", "zarr", "origin=human:*")
    assert len(read("replay_buffer_zarr", tmp_path / "two" / SOURCE["replay_buffer_zarr"])) == 2
    with pytest.raises(
        ValueError, match="two: it holds another export .replay_buffer_zarr of corpus .*name a new folder"
    ):
        export(store, tmp_path / "two", "zarr")
    held = [e.replace(fps=0.0, task="toy:Reach-v0") for e in episodes()]
    slow = stored(tmp_path / "slow", held)
    with pytest.raises(ValueError, match="4 episodes do not know their control rate, and LeRobot needs one; say fps="):
        export(slow, tmp_path / "three", "lerobot_v3")
    assert not (tmp_path / "three").exists() and not list(tmp_path.glob(".*")), "nothing half done"
    assert export(slow, tmp_path / "three", "lerobot_v3", "fps=10")["status"] == "done"
    wide = [e.replace(action=np.zeros((len(e), 3), np.float32)) for e in held[:1]]
    stored(slow, wide)
    with pytest.raises(ValueError, match=r"action differs: .*1 episodes with <f4 \[3\].*one export has one robot"):
        export(slow, tmp_path / "four", "zarr")


@pytest.mark.parametrize("format", ["lerobot_v3", "replay_buffer_zarr", "robomimic_hdf5"])
def test_a_corpus_that_goes_out_and_comes_back_is_the_same_version(tmp_path, format):
    toy.demonstrations(tmp_path / "a.hdf5", 4)

    def take(store, source, format, *more):
        cfg = config.compose("ingest", [f"source={source}", *toy.TASK, f"format={format}", *more])
        assert run.execute("ingest", cfg, run.Store(store))["metrics"]["quarantined"] == 0
        return run.Store(store).corpus().at("latest")

    first = take(tmp_path / "one", tmp_path / "a.hdf5", "robomimic_hdf5", "obs_keys=[position,goal]", "fps=10")
    export(tmp_path / "one", tmp_path / "out", format)
    again = take(tmp_path / "two", tmp_path / "out" / SOURCE.get(format, "demos.hdf5"), format)
    assert again.id == first.id and len(again) == 4
    for name in ("seed", "origin", "success", "fps"):
        a, b = (version.canonical().table[name].tolist() for version in (first, again))
        assert a == b, name


# The real LeRobotDataset: ten seconds to import, so all that needs it is here


def test_lerobot_itself_reads_ours_and_we_read_its(tmp_path, monkeypatch):
    """findings C10: and its own data set with an index that is stale."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    held = episodes()
    export(stored(tmp_path / "store", held), tmp_path / "out", "lerobot_v3")
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

    ours = LeRobotDataset("somebody/reach", root=tmp_path / "out")
    held = sorted(held, key=lambda e: e.hash)
    assert (ours.num_episodes, ours.num_frames, ours.fps) == (4, 13, 10)
    items = [ours[i] for i in range(13)]
    begin = 0
    for number, episode in enumerate(held):
        part = items[begin : begin + len(episode)]
        begin += len(episode)
        expected = {
            "observation.state": episode.obs["state"][:-1],
            "observation.effort": episode.obs["effort"][:-1, 0],
            "action": episode.action,
            "next.reward": episode.reward,
            "next.done": np.arange(len(episode)) == len(episode) - 1,
            "next.success": episode.reward > 0,
            "extras.env_reward": episode.extras["env_reward"],
            "extras.contact": episode.extras["contact"][:-1],
            "episode_index": np.full(len(episode), number),
            "frame_index": np.arange(len(episode)),
        }
        for key, value in expected.items():
            exact = ours.hf_dataset.with_format("arrow")[begin - len(part) : begin][key].to_pylist()
            assert ours.features[key]["dtype"] == value.dtype.name and np.array_equal(exact, value), key
            seen = np.array([item[key].numpy() for item in part])  # torch makes float32 of a lone float64
            assert np.array_equal(seen, value.astype(seen.dtype)), key
        assert {item["task"] for item in part} == {episode.meta["language"]}
    chunked = LeRobotDataset(
        "somebody/reach", root=tmp_path / "out", delta_timestamps={"action": [0.0, 0.1]}, episodes=[1]
    )
    assert np.array_equal(chunked[0]["action"].numpy(), held[1].action[[0, min(1, len(held[1]) - 1)]])
    mean = np.concatenate([e.action for e in held]).astype(np.float64).mean(0)
    np.testing.assert_allclose(ours.meta.stats["action"]["mean"], mean)

    spec = {
        key: {"dtype": "float32", "shape": (n,), "names": None} for key, n in (("observation.state", 3), ("action", 2))
    }
    theirs = LeRobotDataset.create("somebody/lift", fps=20, features=spec, root=tmp_path / "lift", use_videos=False)
    recordings = rows()
    for i, r in enumerate(recordings):
        for state, action in zip(r["state"], r["action"], strict=True):
            theirs.add_frame({"observation.state": state, "action": action, "task": TASKS[i % 2]})
        theirs.save_episode()
    theirs.finalize()
    found = read("lerobot_v3", tmp_path / "lift" / "meta" / "info.json")
    for i, (episode, recording) in enumerate(zip(found, recordings, strict=True)):
        same(episode, recording)
        assert (episode.meta["language"], episode.fps, episode.success) == (TASKS[i % 2], 20.0, None)
    import pyarrow as pa
    import pyarrow.parquet as pq

    (listing,) = (tmp_path / "lift" / "meta" / "episodes").rglob("*.parquet")
    table = pq.read_table(listing)
    for name in ("data/file_index", "dataset_from_index", "dataset_to_index"):
        table = table.set_column(table.column_names.index(name), name, pa.array([5, 6, 7]))
    pq.write_table(table.drop_columns(["tasks"]), listing)
    for one, other in zip(read("lerobot_v3", tmp_path / "lift"), found, strict=True):
        assert one.hash == other.hash and one.meta == other.meta, "the data's own columns and tasks.parquet count"


@pytest.mark.parametrize("name", ["lerobot_v3", "lerobot_v21", "replay_buffer_zarr", "ros2_mcap"])
def test_a_recording_of_many_files_is_known_by_all_of_them(tmp_path, name):
    """A frame that somebody edits in place makes another input, although the file that source= names is the same."""
    folder = tmp_path / "set"
    named = {
        "lerobot_v3": "meta/info.json",
        "lerobot_v21": "meta/info.json",
        "replay_buffer_zarr": "meta/episode_ends/.zarray",
    }
    source = folder / named.get(name, "a.mcap")
    other = folder / {"ros2_mcap": "ros2_mcap.yaml"}.get(name, "data/0")
    for path in (source, other):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("one")
    before = ingest.inputs(ingest.Args(format=name, source=str(source)), None)
    assert ingest.inputs(ingest.Args(format=name, source=str(source)), None) == before
    other.write_text("two")
    assert ingest.inputs(ingest.Args(format=name, source=str(source)), None)["source"]["id"] != before["source"]["id"]
