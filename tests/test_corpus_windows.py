"""The window cache: equal to naive slices, extended by new segments only, one file for every version."""

import gc
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from corpus_cases import episode

from flywheel.corpus import Corpus, CorpusError, Windows

FIELDS = ("obs.state", "action", "reward")


@pytest.fixture
def corpus(tmp_path):
    corpus = Corpus(tmp_path / "corpus", create=True)
    for first in (0, 4, 8):
        corpus.append([episode(seed) for seed in range(first, first + 4)])
    return corpus


def rows_of(one):
    """[T+1, W] what the cache must hold for an episode."""
    pad = np.zeros((1, one.action.shape[1] + 1), np.float32)
    return np.hstack([one.obs["state"], np.vstack([np.column_stack([one.action, one.reward]), pad])])


def check(windows):
    """Every episode of the windows' version has its rows, where start and length say."""
    assert len(windows) == len(windows.version)
    for one, start, length in zip(windows.version, windows.start, windows.length, strict=True):
        assert length == len(one)
        np.testing.assert_array_equal(windows.rows[start : start + length + 1], rows_of(one))


def test_rows_are_the_episodes_and_columns_say_where_the_fields_are(corpus, tmp_path):
    windows = corpus.windows(corpus.at("latest"), FIELDS, cache=tmp_path / "cache")
    assert windows.columns == {"obs.state": slice(0, 3), "action": slice(3, 5), "reward": slice(5, 6)}
    assert windows.rows.shape == ((windows.length + 1).sum(), 6) and windows.rows.dtype == np.float32
    assert windows.decoded == 3
    check(windows)
    backwards = corpus.at(2).select(np.arange(8)[::-1])
    check(corpus.windows(backwards, FIELDS, cache=tmp_path / "cache"))
    other = corpus.windows(corpus.at(1), ("action",), cache=tmp_path / "cache")
    np.testing.assert_array_equal(other.rows[other.start[1] : other.start[1] + len(episode(1))], episode(1).action)


@pytest.mark.parametrize("offsets", [[-3, -1, 0, 1, 2, 7], [-1, 0, 1, 2, 3], [0], list(range(-99, 100))])
def test_gather_clips_each_window_to_its_episode(corpus, tmp_path, offsets):
    windows = corpus.windows(corpus.at("latest"), FIELDS, cache=tmp_path / "cache")
    random = np.random.default_rng(0)
    which = random.integers(0, len(windows), 64)
    low, high = windows.start[which], windows.start[which] + windows.length[which]
    index = random.integers(low, high)
    got = windows.gather(index, offsets, low, high)
    assert got.shape == (64, len(offsets), 6) and got.dtype == np.float32 and got.flags.c_contiguous
    for row, at, e in zip(got, index, which, strict=True):
        rows, t = rows_of(windows.version.read(int(e))), at - windows.start[e]
        want = [rows[min(max(t + offset, 0), len(rows) - 1)] for offset in offsets]
        np.testing.assert_array_equal(row, want)
    part = windows.gather(index, offsets, low, high, columns=windows.columns["action"])
    assert part.flags.c_contiguous
    np.testing.assert_array_equal(part, got[..., 3:5])
    with pytest.raises(IndexError, match="0 <= low <= high"):
        windows.gather([0], [0], [0], [len(windows.rows)])


def test_a_parted_gather_is_two_gathers_whichever_part_is_asked_first(corpus, tmp_path):
    windows = corpus.windows(corpus.at("latest"), FIELDS, cache=tmp_path / "cache")
    low = np.repeat(windows.start, windows.length)
    high, columns = low + np.repeat(windows.length, windows.length) - 1, windows.columns["action"]
    index = low + np.concatenate([np.arange(n) for n in windows.length])
    early, late = (windows.gather(index, range(*span), low, high, columns=columns) for span in ((0, 3), (3, 8)))
    assert not np.array_equal(early, late[:, :3])
    first, second = windows.later(index, range(8), low, high, columns=columns).parted(3)
    for part in (slice(0, 7), slice(7, 20), slice(0, 7), slice(None)):
        np.testing.assert_array_equal(second[part], late[part])
        np.testing.assert_array_equal(first[part], early[part])
        np.testing.assert_array_equal(first[slice(2, 5)], early[2:5])


def test_the_file_is_extended_by_new_segments_only_and_serves_every_version(corpus, tmp_path):
    first = corpus.windows(corpus.at(1), FIELDS, cache=tmp_path / "cache")
    assert first.decoded == 1
    second = first.extend(corpus.at("latest"))
    assert second.decoded == 2
    corpus.append([episode(20), episode(21)])
    corpus.tombstone([episode(1).hash, episode(20).hash], "bad")
    third = second.extend(corpus.at("latest"))
    assert third.decoded == 1
    again = Corpus(corpus.path).windows(Corpus(corpus.path).at("latest"), FIELDS, cache=tmp_path / "cache")
    assert again.decoded == 0
    assert episode(20).hash not in third.table["hash"] and len(third) == 12
    assert len(list((tmp_path / "cache").glob("*/rows-*.f32"))) == len(FIELDS)
    for windows in (first, second, third, again, third.extend(corpus.at(2))):
        check(windows)


def test_an_append_costs_the_cache_its_own_rows_and_a_log_that_went_another_way_is_read_anew(corpus, tmp_path):
    first = corpus.windows(corpus.at("latest"), FIELDS, cache=tmp_path / "cache")
    sizes = {path.name: path.stat().st_size for path in first.folder.iterdir()}
    older = shutil.copytree(corpus.path, tmp_path / "older")
    corpus.append([episode(20, steps=5)])
    check(first.extend(corpus.at("latest")))
    grown = {path.name: path.stat().st_size - sizes[path.name] for path in first.folder.iterdir()}
    assert abs(grown.pop("index.json")) < 20 and sorted(grown.values()) == [0, 6 * 4, 32, 6 * 2 * 4, 6 * 3 * 4]
    other = Corpus(older)  # the same id, another version 4
    other.append([episode(21, steps=5), episode(22)])
    again = other.windows(other.at("latest"), FIELDS, cache=tmp_path / "cache")
    assert again.decoded == 4
    check(again)


@pytest.mark.slow
@pytest.mark.parametrize("fields", [FIELDS, ("obs.sim",)])
def test_memory_stays_bounded_as_rows_outgrow_it(tmp_path, fields):
    corpus = Corpus(tmp_path / "corpus", create=True)
    for first in range(0, 40, 10):
        more = [episode(seed, steps=2500, width=100 if fields == FIELDS else 3) for seed in range(first, first + 10)]
        if fields != FIELDS:
            frames = np.random.default_rng(first).integers(0, 256, (2501, 12, 12, 3), np.uint8)
            more = [one.replace(obs={"sim": frames}) for one in more]
        corpus.append(more)

    def most(resident):
        """Bytes of the rows that were in this process's memory while every part of them was read, at most."""
        gc.collect()  # the map of the call before
        windows = Windows(corpus.at("latest"), fields, tmp_path / "cache", resident)
        seen, random = 0, np.random.default_rng(0)
        for _ in range(300):
            which = random.integers(0, 40, 4)
            low = windows.start[which]
            windows.gather(low + random.integers(0, 2400, 4), range(16), low, low + windows.length[which])
            maps = Path("/proc/self/smaps").read_text().split(str(windows.folder))[1:]
            seen = max(seen, sum(1024 * int(re.search(r"Rss: +(\d+) kB", one)[1]) for one in maps))
        return seen

    assert most(2**40) > 30e6
    assert most(16 * 2**20) <= 16 * 2**20


@pytest.mark.parametrize("apart", [False, True, "blind"])
@pytest.mark.parametrize("field", ["obs.sim", "lanes", "several"])
def test_others_decode_into_the_same_file(field, apart, tmp_path, monkeypatch):
    """Tasks of one segment and of several, in an order that is not theirs, one of them done twice; equal to the byte.
    Apart from the cache they send what they decode; who does not see the corpus either says so."""
    monkeypatch.setattr("flywheel.corpus.windows.TASK_BYTES", 3000 if field == "several" else 1)
    fields, corpus = (field,) if field == "obs.sim" else FIELDS, Corpus(tmp_path / "corpus", create=True)
    frames = np.random.default_rng(1).integers(0, 256, (41, 6, 6, 3), np.uint8)
    for first in range(0, 12, 3):
        made = [episode(seed, steps=40) for seed in range(first, first + 3)]
        corpus.append([one.replace(obs={**one.obs, "sim": frames + np.uint8(one.seed)}) for one in made])

    def backwards(function, tasks):
        assert len(tasks) == (2 if field == "several" else 4)
        if apart == "blind":
            tasks = [((f"{tmp_path}/elsewhere", tasks[0][0][1]), *tasks[0][1:]), *tasks[1:]]
        made = {k: function(*tasks[k]) for k in [*reversed(range(len(tasks))), 0]}
        return [made[k] for k in range(len(tasks))]

    here = corpus.windows(corpus.at("latest"), fields, cache=tmp_path / "here")
    there = corpus.windows(corpus.at("latest"), fields, cache=tmp_path / "there", map=backwards, apart=bool(apart))
    assert there.blind == (apart == "blind")
    for number in (*range(len(fields)), None):
        one, other = (windows._file(windows._index, number).read_bytes() for windows in (here, there))
        assert one == other and len(one) > 300
    assert (here.start == there.start).all() and (here.rows == there.rows).all()
    corpus.append([episode(90, steps=3).replace(obs={**episode(90, steps=3).obs, "sim": frames[:4]})])
    assert there.extend(corpus.at("latest")).decoded == 1  # one task: here


def test_a_segment_that_cannot_be_decoded_is_the_error_of_who_asked(corpus, tmp_path):
    from flywheel import executors

    corpus.append([episode(30, task="push", width=5)])
    with pytest.raises(CorpusError, match="obs.state is .* wide in schema"):
        corpus.windows(corpus.at("latest"), FIELDS, cache=tmp_path / "cache", map=executors.bound("processes", 2))
    check(corpus.windows(corpus.at(3), FIELDS, cache=tmp_path / "cache"))


def test_only_the_segments_of_a_selection_are_decoded(corpus, tmp_path):
    corpus.append([episode(30, task="push", width=5), episode(31, task="push", width=5)])
    push = corpus.windows(corpus.at("latest").select(task="push"), FIELDS, cache=tmp_path / "cache")
    assert push.decoded == 1 and push.rows.shape[1] == 8
    lift = push.extend(corpus.at("latest").select(task="lift"))
    assert lift.decoded == 3
    check(push)
    check(lift)


@pytest.mark.parametrize("damage", ["rows", "short", "index", "gone", "tail"])
def test_a_damaged_cache_is_built_again_and_the_old_map_stays(corpus, tmp_path, damage):
    old = corpus.windows(corpus.at("latest"), FIELDS, cache=tmp_path / "cache")
    rows, index = next((tmp_path / "cache").glob("*/rows-*-0.f32")), next((tmp_path / "cache").glob("*/index.json"))
    if damage == "rows":
        with open(rows, "r+b") as file:
            file.seek(40)
            file.write(b"\x01\x02\x03")
    elif damage == "short":
        rows.write_bytes(rows.read_bytes()[:-8])
    elif damage == "index":
        index.write_bytes(index.read_bytes().replace(b'"rows":', b'"rows": 1'))
    elif damage == "gone":
        rows.unlink()
    else:  # a writer that was killed before it published: no damage
        with open(rows, "ab") as file:
            file.write(b"half a row")
    new = corpus.windows(corpus.at("latest"), FIELDS, cache=tmp_path / "cache")
    assert new.decoded == (0 if damage == "tail" else 3)
    check(new)
    corpus.append([episode(40)])
    more = new.extend(corpus.at("latest"))
    check(more)
    assert more.same(new) and new.same(old) == (damage == "tail")
    if damage == "gone":
        check(old)


def test_errors_name_the_field_and_the_tasks(corpus, tmp_path):
    corpus.append([episode(30, task="push", width=5)])
    with pytest.raises(CorpusError, match=r"obs.state is 3 wide in .*task lift.* and 5 in .*task push.*select"):
        corpus.windows(corpus.at("latest"), FIELDS, cache=tmp_path)
    with pytest.raises(CorpusError, match=r"no field 'obs.pose' in the episodes of task lift\. There are: obs\.state"):
        corpus.windows(corpus.at(1), ("obs.pose",), cache=tmp_path)
    with pytest.raises(CorpusError, match="no episode is selected from version 1"):
        corpus.windows(corpus.at(1).select(task="push"), FIELDS, cache=tmp_path)
