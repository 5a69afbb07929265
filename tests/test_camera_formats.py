"""Cameras of every format: read as the source's own bytes, kept in a corpus, and written again for others."""

import json

import av
import h5py
import numpy as np
import pytest
import test_formats
import toy
from camera_cases import decoded, encoded, film, raw
from small import often
from test_formats import SOURCE, aloha, export, read, rows, stored

from flywheel import frames
from flywheel.cli import config
from flywheel.corpus import Corpus, maintenance
from flywheel.episode import Episode, EpisodeError
from flywheel.runs import run

SIZE = (64, 64)  # what LeRobot encodes
LENGTHS = test_formats.LENGTHS


def pixels(number):
    return raw(number, LENGTHS[number], SIZE)


# a recording of three episodes with a camera `top` in each format: its source=, and what the pixels and the bytes must
# be


def robomimic(folder):
    with h5py.File(folder / "a.hdf5", "w") as file:
        for number, one in enumerate(rows()):
            demo = file.create_group(f"data/demo_{number}")
            demo["actions"], demo["obs/state"], demo["obs/top"] = one["action"], one["state"], pixels(number)
    return folder / "a.hdf5", [pixels(i) for i in range(3)], None


def aloha_raw(folder, packed=False):
    for number, one in enumerate(rows()):
        aloha(folder / f"{number}.hdf5", one, packed)
        with h5py.File(folder / f"{number}.hdf5", "a") as file:
            del file["observations/images/top"]
            file["observations/images/top"] = kept = pixels(number) if not packed else padded(encoded(pixels(number)))
            assert kept is not None
    return folder / "0.hdf5", [pixels(0)], None


def padded(data):
    width = max(map(len, data)) + 3
    return np.stack([np.frombuffer(one.ljust(width, b"\0"), np.uint8) for one in data])


def aloha_jpeg(folder):
    data = encoded(pixels(0))
    return aloha_raw(folder, packed=True)[0], [np.asarray(frames.pictures(data))[..., ::-1]], [data]


def zarr_floats(folder):
    image = np.concatenate([pixels(i) for i in range(3)]).astype(np.float32)
    return test_formats.buffer(folder / "a.zarr", rows(), top=image), [pixels(i) for i in range(3)], None


def pictured(write, kind):
    def make(folder):
        import pyarrow as pa

        data = [encoded(pixels(i), kind) for i in range(3)]

        def column(number, count):
            return pa.array([{"bytes": one, "path": None} for one in data[number]])

        path = write(folder / "a", rows(), {}, **{"observation.images.top": column})
        feature(path, "image")
        return path, [np.asarray(frames.pictures(one)) for one in data], data

    return make


def feature(path, dtype, **more):
    told = json.loads(path.read_text()) | more
    told["features"]["observation.images.top"] = {"dtype": dtype, "shape": [*SIZE, 3], "names": None}
    path.write_text(json.dumps(told))


def filmed_v21(folder):
    path, whole = test_formats.lerobot_v21(folder / "a", rows()), []
    feature(path, "video", video_path="videos/{video_key}/{episode_index}.mp4")
    (folder / "a/videos/observation.images.top").mkdir(parents=True)
    for number in range(3):
        file = film(folder / f"a/videos/observation.images.top/{number}.mp4", pixels(number))
        whole.append((decoded(file), file.read_bytes()))
    return path, [one for one, _ in whole], [[data] for _, data in whole]


def filmed_v3(folder):
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = test_formats.lerobot_v3(folder / "a", rows())
    feature(path, "video", video_path="videos/{video_key}/{chunk_index}-{file_index}.mp4")
    (folder / "a/videos/observation.images.top").mkdir(parents=True)
    file = film(folder / "a/videos/observation.images.top/0-0.mp4", np.concatenate([pixels(i) for i in range(3)]))
    listing = folder / "a/meta/episodes/chunk-000/file-000.parquet"
    table, ends = pq.read_table(listing), np.cumsum(LENGTHS)
    begins = {"chunk_index": [0] * 3, "file_index": [0] * 3, "from_timestamp": (ends - LENGTHS) / 10}
    for key, values in begins.items():
        table = table.append_column(f"videos/observation.images.top/{key}", pa.array(values))
    pq.write_table(table, listing)
    return path, np.split(decoded(file), ends[:-1]), [[file.read_bytes()]] * 3


def mcap(folder):
    pytest.importorskip("mcap_ros2")
    import test_formats_mcap

    test_formats_mcap.record(folder / "a.mcap")
    test_formats_mcap.carded(folder, cameras={"top": "/camera"})
    shown = [np.full((4, 6, 3), 10 * k, np.uint8) for k in range(10)]
    return folder / "a.mcap", [np.stack(shown)], None


READERS = {
    "robomimic": ("robomimic_hdf5", robomimic, None),
    "aloha": ("aloha_hdf5", aloha_raw, None),
    "aloha, compressed": ("aloha_hdf5", aloha_jpeg, "jpeg"),
    "zarr": ("replay_buffer_zarr", zarr_floats, None),
    "lerobot v2.1, PNG": ("lerobot_v21", pictured(test_formats.lerobot_v21, "png"), "png"),
    "lerobot v3.0, JPEG": ("lerobot_v3", pictured(test_formats.lerobot_v3, "jpeg"), "jpeg"),
    "lerobot v2.1, video": ("lerobot_v21", filmed_v21, "mp4"),
    "lerobot v3.0, video": ("lerobot_v3", filmed_v3, "mp4"),
    "mcap": ("ros2_mcap", mcap, "png"),
}


@pytest.mark.parametrize("name", READERS)
def test_every_reader_gives_cameras_as_they_are(tmp_path, name):
    format, make, codec = READERS[name]
    path, expected, data = make(tmp_path)
    found = read(format, path)
    assert len(found) == len(expected)
    for number, (episode, shown) in enumerate(zip(found, expected, strict=True)):
        top = episode.obs["top"]
        assert set(episode.obs) == {"state", "top"} and len(top) == len(episode) + 1
        assert (top.codec if codec else type(top)) == (codec or np.ndarray) and top.dtype == np.uint8
        assert np.array_equal(np.asarray(top), shown)
        if data:
            blobs = [blob.read() for blob in top.blobs]
            assert blobs == data[number] if codec == "mp4" else [blobs[i] for i in top.at] == data[number]
    assert [set(one.obs) for one in read(format, path, cameras=[])] == [{"state"}] * len(found)
    assert [one.hash for one in read(format, path, cameras=["top"])] == [one.hash for one in found]
    error = read(format, path, cameras=["wrist"])[0]
    assert (
        isinstance(error, EpisodeError) and "no camera" in str(error) and "wrist" in str(error) and "top" in str(error)
    )
    corpus = Corpus(tmp_path / "corpus", create=True)
    assert len(corpus.append(found).added) == len(found)
    back = Corpus(corpus.path).at("latest")
    assert [one.hash for one in back] == [one.hash for one in found] and maintenance.fsck(corpus) == []
    for one, shown in zip(back, expected, strict=True):
        assert np.array_equal(np.asarray(one.obs["top"]), shown)
    if name == "lerobot v3.0, video":
        assert len(list(corpus.path.rglob("*.mp4"))) == 1


def test_ingest_takes_cameras_and_the_corpus_says_which(tmp_path, capsys):
    from flywheel.cli import app

    path, _, _ = robomimic(tmp_path)
    with h5py.File(path, "a") as file:
        for demo in file["data"].values():
            del demo["obs/state"]
            demo["obs/state"] = np.arange(4 * len(demo["actions"]), dtype=np.float32).reshape(-1, 4)
    for more, cameras in (("cameras=[]", None), ("cameras=[top]", "top")):
        store = tmp_path / (cameras or "none")
        cfg = config.compose("ingest", [f"source={path}", *toy.TASK, "obs_keys=[state]", more])
        assert run.execute("ingest", cfg, run.Store(store))["metrics"] | {"added": 3, "quarantined": 0}
        capsys.readouterr()
        for words in (["show"], ["stats"], ["query", "SELECT cameras, count(*) AS n FROM episodes GROUP BY cameras"]):
            if words[0] == "query":
                pytest.importorskip("duckdb")
            assert app.main(["corpus", *words, f"store={store}", "--json"]) == 0
            told = json.loads(capsys.readouterr().out.splitlines()[-1])
            found = {
                "show": lambda told: ",".join(told["metrics"].get("cameras", ())) or None,
                "stats": lambda told: told["stats"][0]["cameras"],
                "query": lambda told: told["rows"][0]["cameras"] or None,
            }[words[0]](told)
            assert found == cameras, words


def test_a_policy_of_states_learns_beside_cameras_that_it_never_reads(copied, capsys):
    import shutil

    from small import LITTLE, call

    place, at = copied
    corpus = place.corpus()
    seen = [
        one.replace(
            obs={**one.obs, "top": frames.pictures(encoded(raw(number, len(one) + 1)))}, origin="scripted:filmed"
        )
        for number, one in enumerate(corpus.at("latest").select(success=True))
    ]
    assert len(corpus.append(seen).added) == len(seen) > 4
    assert len({corpus.reader.segment(part).robot for part in range(2)}) == 1, "the same robot, filmed or not"
    shutil.rmtree(next(corpus.path.glob("segments/*/media")))
    words = ["pretrain", "algorithm.cadence.improve=10", "demos.origin=scripted:filmed", *LITTLE, *at]
    code, out = call(*words, capsys=capsys)
    assert (code, out["status"]) == (0, "done")


# export, and back


def episodes(folder, kind):
    """Three episodes with a camera that is raw, pictures, or their stretch of one video."""
    ends = np.cumsum(LENGTHS)
    path = film(folder / "front.mp4", np.concatenate([pixels(i) for i in range(3)]))
    out = []
    for number, one in enumerate(rows(state=4)):
        shown = {
            "raw": lambda n: pixels(n),
            "jpeg": lambda n: frames.pictures(encoded(pixels(n))),
            "bgr": lambda n: frames.pictures(encoded(pixels(n)), channels="bgr"),
            "png": lambda n: frames.pictures(encoded(pixels(n), "png")),
            "mp4": lambda n: frames.video(path, (ends[n] - LENGTHS[n]) / 10, LENGTHS[n], 10.0),
            "backwards": lambda n: frames.video(path, (ends[n] - LENGTHS[n]) / 10, LENGTHS[n], 10.0).take(
                slice(None, None, -1)
            ),
        }[kind](number)
        steps = len(one["action"]) - 1
        out.append(
            Episode(
                task="toy:Reach-v0",
                obs={"state": one["state"], "top": shown},
                action=one["action"][:-1],
                reward=np.zeros(steps, np.float32),
                terminated=False,
                success=False,
                origin="human:vr",
                fps=10.0,
            )
        )
    return sorted(out, key=lambda one: one.hash), path


FILE = SOURCE | {"robomimic_hdf5": "demos.hdf5"}


@pytest.mark.parametrize(
    ("format", "kind"),
    [("lerobot_v3", kind) for kind in ("raw", "jpeg", "bgr", "png", "mp4", "backwards")]
    + [(format, kind) for format in ("replay_buffer_zarr", "robomimic_hdf5") for kind in ("raw", "bgr", "mp4")],
)
def test_cameras_go_out_and_come_back(tmp_path, capsys, format, kind):
    held, video = episodes(tmp_path, kind)
    export(stored(tmp_path / "store", held), tmp_path / "out", format)
    said = capsys.readouterr().err
    back = read(format, tmp_path / "out" / FILE[format])
    for one, other in zip(held, back, strict=True):
        assert np.array_equal(np.asarray(one.obs["top"]), np.asarray(other.obs["top"])), "pixels always"
    whole = kind == "raw" or (format == "lerobot_v3" and kind in ("jpeg", "png", "mp4"))
    assert [one.hash == other.hash for one, other in zip(held, back, strict=True)] == [whole] * 3
    assert ("not in this export: obs.top: " in said) == (not whole)
    if not whole:
        told = {"bgr": "jpeg (bgr)", "backwards": "mp4"}.get(kind, kind)
        assert f"obs.top: {told} as it is (its pixels are there" in said
    if kind == "mp4" and format == "lerobot_v3":
        (copy,) = (tmp_path / "out").rglob("*.mp4")
        assert copy.read_bytes() == video.read_bytes(), "never encoded again"


@pytest.mark.parametrize("kind", often(["raw", "jpeg", "mp4"], "mp4"))
def test_lerobot_itself_sees_the_same_pixels(tmp_path, monkeypatch, kind):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    held, _ = episodes(tmp_path, kind)
    export(stored(tmp_path / "store", held), tmp_path / "out", "lerobot_v3")
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

    data = LeRobotDataset("somebody/reach", root=tmp_path / "out", video_backend="pyav")
    assert data.meta.camera_keys == ["observation.images.top"] and len(data) == sum(len(one) for one in held)
    assert len(data.meta.video_keys) == (kind == "mp4")
    begin = 0
    for one in held:
        for step in range(len(one)):
            seen = data[begin + step]["observation.images.top"]
            assert seen.shape == (3, *SIZE)
            assert np.array_equal(
                (seen.numpy() * 255).round().astype(np.uint8), one.obs["top"][step].transpose(2, 0, 1)
            )
        begin += len(one)
    everything = np.concatenate([np.asarray(one.obs["top"])[:-1] for one in held]) / 255
    np.testing.assert_allclose(data.meta.stats["observation.images.top"]["mean"][:, 0, 0], everything.mean((0, 1, 2)))
    np.testing.assert_allclose(data.meta.stats["observation.images.top"]["std"][:, 0, 0], everything.std((0, 1, 2)))
    assert data.meta.stats["observation.images.top"]["max"].shape == (3, 1, 1)
    if kind == "mp4":
        with av.open(next((tmp_path / "out").rglob("*.mp4"))) as file:
            assert (
                data.meta.info["features"]["observation.images.top"]["info"]["video.codec"]
                == file.streams.video[0].codec.canonical_name
            )
