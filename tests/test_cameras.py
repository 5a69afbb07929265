"""Cameras in the corpus: bytes as they came, pixels as the source's own decoder gives them, and windows for
training."""

import shutil
from contextlib import contextmanager

import numpy as np
import pytest
from camera_cases import SIZE, decoded, encoded, film, raw, with_cameras
from corpus_cases import episode
from hypothesis import given, settings
from hypothesis import strategies as st

from flywheel import frames
from flywheel.corpus import Corpus, CorpusError, maintenance
from flywheel.episode import EpisodeError, check
from flywheel.rl import packed
from flywheel.rl.source import Offline

CAMERAS = ("front", "sim", "top")


@pytest.fixture
def corpus(tmp_path):
    """Two appends of 4 episodes with three cameras; each append has its own video."""
    corpus = Corpus(tmp_path / "corpus", create=True)
    for seed in (0, 10):
        corpus.append(with_cameras(tmp_path, seed)[0])
    return corpus


def media(corpus, pattern="*"):
    return sorted(corpus.path.glob(f"segments/*/media/{pattern}"))


def same(one, other):
    """Equal in bytes and in pixels."""
    assert one.hash == other.hash and one.obs.keys() == other.obs.keys()
    for key in one.obs:
        assert np.array_equal(np.asarray(one.obs[key]), np.asarray(other.obs[key])), key


def test_cameras_come_back_as_they_went_in_from_every_storage(place, tmp_path):
    given_, path = with_cameras(tmp_path)
    Corpus(place, create=True).append(given_)
    corpus = Corpus(place)
    version, whole, first = corpus.at("latest"), decoded(path), 0
    for one, back in zip(given_, version, strict=True):
        same(one, back)
        rows = len(one) + 1
        assert back.obs["top"].codec == "jpeg" and isinstance(back.obs["sim"], np.ndarray)
        assert np.array_equal(np.asarray(back.obs["front"]), whole[first : first + rows]), "PyAV's own pixels"
        assert back.obs["front"].blobs[0].read() == path.read_bytes()
        assert [blob.read() for blob in back.obs["top"].blobs] == [blob.read() for blob in one.obs["top"].blobs]
        first += rows
    assert corpus.append(given_).duplicates == [one.hash for one in given_]
    assert maintenance.fsck(corpus) == []
    found = version.cameras()
    assert {name: (about["codec"], about["shape"], about["episodes"]) for name, about in found.items()} == {
        name: (codec, [*SIZE, 3], 4) for name, codec in zip(CAMERAS, ("mp4", "raw", "jpeg"), strict=True)
    }
    assert found["front"]["bytes"] == path.stat().st_size
    assert set(version.table["cameras"]) == {"front sim top"}
    assert (len(version.select(cameras="*sim*")), len(version.select(cameras=["sim", "top"]))) == (4, 0)


def test_a_video_of_many_episodes_is_stored_once(corpus):
    assert len(media(corpus, "*.mp4")) == 2 and len(corpus.at("latest")) == 8


def test_a_flipped_byte_is_found_named_and_never_served(corpus, tmp_path):
    fields = ("obs.state", "action")
    whole = corpus.windows(corpus.at("latest"), fields, cache=tmp_path / "cache").rows.copy()
    for victim in media(corpus):
        data = bytearray(victim.read_bytes())
        data[len(data) // 2] ^= 4
        keep, _ = victim.read_bytes(), victim.write_bytes(bytes(data))
        frames.CACHE = frames.Bounded(frames.CACHE_BYTES)
        fresh = Corpus(corpus.path)
        name = str(victim.relative_to(corpus.path))
        assert [finding.where for finding in maintenance.fsck(fresh)] == [name]
        camera = "front" if victim.suffix == ".mp4" else "top"
        version = fresh.at("latest").select(np.arange(4) + 4 * (victim in media(corpus)[len(media(corpus)) // 2 :]))
        with pytest.raises(CorpusError, match=f"{victim.name}: the bytes changed on disk"):
            np.asarray(version.read(0).obs[camera])
        with pytest.raises(CorpusError, match=victim.name):
            fresh.windows(version, (f"obs.{camera}",), cache=tmp_path / "cache")
        victim.write_bytes(keep)
    shutil.rmtree(tmp_path / "cache")
    for folder in corpus.path.glob("segments/*/media"):
        shutil.rmtree(folder)
    fresh = Corpus(corpus.path)
    blind = fresh.windows(fresh.at("latest"), fields, cache=tmp_path / "cache")
    assert np.array_equal(blind.rows, whole), "who learns from the state reads no camera"


def test_compact_keeps_bytes_and_gc_frees_what_nobody_shows(corpus, tmp_path):
    more = with_cameras(tmp_path, 10)[0]  # the same video again, in another append
    rest = [one.replace(action=one.action + 1) for one in more]
    corpus.append(rest)
    assert len(media(corpus, "*.mp4")) == 3
    before = {
        one.hash: one.replace(obs={key: np.asarray(value) for key, value in one.obs.items()})
        for one in corpus.at("latest")
    }
    gone = corpus.at("latest").hashes[:4]
    corpus.tombstone(gone, "blurred")
    maintenance.compact(corpus)
    assert len({path.name for path in media(corpus, "*.mp4")}) == 2
    _, expired = maintenance.expire(corpus, 1)
    assert len(expired) == 3
    for waste in maintenance.gc(corpus, grace=0, dry_run=False):
        assert waste.why == "expired"
    assert len(media(corpus, "*.mp4")) == 1 and len(media(corpus)) == 2, "what the tombstoned episodes showed is gone"
    corpus = Corpus(corpus.path)
    assert maintenance.fsck(corpus) == []
    for digest, one in zip(corpus.at("latest").hashes, corpus.at("latest"), strict=True):
        assert one.hash == digest
        for key, value in before[digest].obs.items():
            assert np.array_equal(np.asarray(one.obs[key]), value), key
    assert {*corpus.at("latest").hashes} == {*before} - {*gone}


def test_gc_frees_the_media_of_a_killed_writer(corpus, tmp_path):
    from flywheel.corpus import segment

    segment.write(corpus.files, with_cameras(tmp_path, 20)[0])
    assert len(media(corpus, "*.mp4")) == 3
    (waste,) = maintenance.gc(corpus, grace=0, dry_run=False)
    assert waste.why == "orphan" and len(media(corpus, "*.mp4")) == 2 and maintenance.fsck(corpus) == []


PICTURES = encoded(raw(1, 5)) + encoded(raw(2, 3), "png")


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.lists(st.integers(0, 4), min_size=2, max_size=6), min_size=1, max_size=4),
    st.sampled_from(["rgb", "bgr"]),
)
def test_pictures_are_kept_to_the_last_byte_in_any_order_and_number(tmp_path_factory, several, channels):
    episodes = []
    for number, shown in enumerate(several):
        one = episode(number, steps=len(shown) - 1)
        episodes.append(one.replace(obs={"top": frames.pictures([PICTURES[i] for i in shown], channels)}))
    corpus = Corpus(tmp_path_factory.mktemp("corpus"), create=True)
    corpus.append(episodes)
    for one, back, shown in zip(episodes, Corpus(corpus.path).at("latest"), several, strict=True):
        assert one.hash == back.hash
        top = back.obs["top"]
        assert [top.blobs[i].read() for i in top.at] == [PICTURES[i] for i in shown]
        pixels = np.asarray(top)
        assert np.array_equal(pixels, np.asarray(one.obs["top"])) and len(top.blobs) == len(set(shown))
        for rows in (slice(1, None), [0, -1], -1):
            assert np.array_equal(top[rows], pixels[rows])
        check(back)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_the_hash_covers_every_byte_of_a_picture(data):
    shown = data.draw(st.lists(st.integers(0, 4), min_size=2, max_size=4))
    parts = [bytearray(PICTURES[i]) for i in shown]
    victim = data.draw(st.integers(0, len(parts) - 1))
    at = data.draw(st.integers(0, len(parts[victim]) - 1))

    def hashed():
        blobs = [frames.Blob(lambda part=bytes(part): part, len(part)) for part in parts]
        one = frames.Frames("jpeg", SIZE, blobs, np.arange(len(blobs)))
        return episode(0, steps=len(blobs) - 1).replace(obs={"top": one}).hash

    before = hashed()
    parts[victim][at] ^= 1 << data.draw(st.integers(0, 7))
    assert hashed() != before


@pytest.mark.parametrize(("codec", "gop"), [("libx264", 1), ("libx264", 5), ("libx264", 100), ("mpeg4", 6)])
def test_any_frames_of_a_video_are_those_of_the_whole(tmp_path, codec, gop):
    count = 23
    path = film(tmp_path / "a.mp4", raw(0, count), codec=codec, gop=gop)
    whole, seen = decoded(path), frames.video(path, 0.0, count, 10.0)
    assert np.array_equal(np.asarray(seen), whole) and seen.shape == whole.shape
    random = np.random.default_rng(0)
    for _ in range(20):
        rows = random.integers(0, count, random.integers(1, 6))
        assert np.array_equal(seen[rows], whole[rows])
    assert np.array_equal(frames.video(path, 0.7, 9, 10.0)[:], whole[7:16])
    assert np.array_equal(frames.video(path, 0.1, 4, 5.0)[:], whole[[1, 3, 5, 7]]), "another rate: the nearest frames"


def test_what_cannot_be_decoded_is_said(tmp_path):
    path = film(tmp_path / "a.mp4", raw(0, 12), gop=100)
    with pytest.raises(EpisodeError, match=r"a.mp4: 12 frames from 0.000 s on; expected 13"):
        frames.video(path, 0.0, 13, 10.0)
    (tmp_path / "b.mp4").write_bytes(b"no video")
    with pytest.raises(EpisodeError, match="no video that can be read"):
        frames.video(tmp_path / "b.mp4", 0.0, 1, 10.0)
    seen = frames.video(path, 0.0, 12, 10.0)
    frames.CACHE = frames.Bounded(frames.CACHE_BYTES)
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    with pytest.raises(EpisodeError, match="the video changed while it was read"):
        seen[0]
    with pytest.raises(EpisodeError, match="frame 1: 4 bytes that are no picture"):
        frames.pictures([PICTURES[0], b"none"])
    with pytest.raises(EpisodeError, match=r"pictures of .kind, height, width. .*expected JPEG or PNG of one size"):
        frames.pictures([PICTURES[0], PICTURES[-1]])
    short = frames.pictures([PICTURES[0]])
    short.blobs[0] = frames.Blob(lambda: PICTURES[0][: len(PICTURES[0]) // 3], 0)
    with pytest.raises(EpisodeError, match="picture 0 cannot be decoded"):
        short[0]


def test_the_cache_of_frames_is_bounded(tmp_path, monkeypatch):
    frame = SIZE[0] * SIZE[1] * 3
    path = film(tmp_path / "a.mp4", raw(0, 60), gop=10)
    monkeypatch.setattr(frames, "CACHE", frames.Bounded(path.stat().st_size + 12 * frame))
    whole, seen = decoded(path), frames.video(path, 0.0, 60, 10.0)
    for number in [*range(60), 3, 59]:
        assert np.array_equal(seen[number], whole[number])
        assert frames.CACHE.bytes <= frames.CACHE.limit
    kept = frames.Bounded(10)
    kept.put("a", 1, 6), kept.put("b", 2, 6)
    assert (kept.find("a"), kept.find("b"), kept.bytes) == (None, 2, 6)
    kept.put("c", 3, 99)
    assert (kept.find("b"), kept.find("c")) == (None, 3), "one that is larger than all of it is kept alone"


@pytest.mark.parametrize("camera", CAMERAS)
def test_windows_of_a_camera(corpus, tmp_path, camera):
    version, cache = corpus.at("latest"), tmp_path / "cache"
    told = []

    @contextmanager
    def progress(what, total):
        told.append([what, total, 0])
        yield lambda: told[-1].append(told[-1].pop() + 1)

    first = corpus.windows(corpus.at(1), (f"obs.{camera}",), cache=cache, progress=progress)
    windows = first.extend(version)
    assert told == [["window cache", 4, 4]] * 2
    assert (first.decoded, windows.decoded, windows.row, windows.rows.dtype) == (1, 1, (*SIZE, 3), np.uint8)
    for one, start, length in zip(version, windows.start, windows.length, strict=True):
        rows = windows.rows[start : start + length + 1].reshape(-1, *SIZE, 3)
        assert np.array_equal(rows, np.asarray(one.obs[camera]))
    index, high = windows.start[[3, 7]] + 1, windows.start[[3, 7]] + windows.length[[3, 7]]
    got = windows.gather(index, [-2, -1, 0, 1], windows.start[[3, 7]], high)
    naive = [windows.rows[np.clip(i + np.arange(-2, 2), i - 1, h)] for i, h in zip(index, high, strict=True)]
    assert got.dtype == np.uint8 and np.array_equal(got, naive)


@pytest.mark.parametrize("kept", [True, False])
def test_batches_with_cameras_are_the_same_with_workers(corpus, tmp_path, kept, monkeypatch):
    monkeypatch.setattr("flywheel.rl.packed.ROOM", packed.ROOM if kept else 0)
    version = corpus.at("latest")
    low = corpus.windows(version, cache=tmp_path / "cache")
    cameras = [corpus.windows(version, (f"obs.{name}",), cache=tmp_path / "cache") for name in CAMERAS]
    drawn = low, {"all": np.arange(len(low))}, {"improve": {"all": 1.0}}
    options = {"obs_steps": 2, "action_steps": 4}

    def reader(**more):
        return Offline(*drawn, seed=3, cameras=cameras, **options, **more)

    found = {}
    for workers in (0, 2):
        source = reader(batch_size=5, workers=workers)
        source.groups = {False: 2, True: 2}
        found[workers] = [source.batch("improve") for _ in range(7)]
    for one, other in zip(found[0], found[2], strict=True):
        assert {"obs", "action", *(f"obs.{name}" for name in CAMERAS)} <= set(one)
        for name in one:
            assert one[name].dtype == other[name].dtype and one[name].equal(other[name]), name
    for number, (which, step) in enumerate(zip(*source.where(source.steps("improve", 0)), strict=True)):
        one = version.read(int(which))
        assert np.array_equal(found[0][0]["obs"][number].numpy(), one.obs["state"][[max(0, step - 1), step]])
        for name in CAMERAS:
            expected = np.asarray(one.obs[name])[[max(0, step - 1), step]]
            assert np.array_equal(found[0][0][f"obs.{name}"][number].numpy(), expected), name
    assert (reader(batch_size=5).group, reader(batch_size=5, workers=2).group) == (128, 32)
    assert reader(batch_size=36_000).group == 1 == reader(batch_size=3000, workers=2).group, "of large batches is small"
    with pytest.raises(ValueError, match="are no windows of a camera of the episodes"):
        Offline(*drawn, cameras=[low], **options)


def test_one_damaged_picture_costs_one_episode(corpus, tmp_path):
    one = episode(77, steps=2)
    torn = [PICTURES[0], PICTURES[1][:-12], PICTURES[2]]
    corpus.append([one.replace(obs={**one.obs, "top": frames.pictures(torn)}), *with_cameras(tmp_path, 30)[0]])
    version = corpus.at("latest")
    with pytest.raises(
        CorpusError, match=f"obs.top of episode {version.hashes[8][:12]}: .*picture 1 cannot be decoded.*tombst"
    ):
        corpus.windows(version, ("obs.top",), cache=tmp_path / "cache")
    corpus.tombstone(version.hashes[8:9], "torn")
    assert len(corpus.windows(corpus.at("latest"), ("obs.top",), cache=tmp_path / "cache")) == 12


def test_windows_refuse_cameras_that_differ(corpus, tmp_path):
    one = episode(99)
    corpus.append([one.replace(obs={**one.obs, "sim": raw(0, len(one) + 1, (24, 16))})])
    with pytest.raises(CorpusError, match=r"obs.sim is .16, 24, 3. wide .* and .24, 16, 3. in schema"):
        corpus.windows(corpus.at("latest"), ("obs.sim",), cache=tmp_path / "cache")
    with pytest.raises(CorpusError, match="obs.sim is a camera and has windows of its own"):
        corpus.windows(corpus.at(1), ("obs.state", "obs.sim"), cache=tmp_path / "cache")
    with pytest.raises(CorpusError, match=r"no field 'obs.wrist'.*There are: .*obs.front"):
        corpus.windows(corpus.at(1), ("obs.wrist",), cache=tmp_path / "cache")
