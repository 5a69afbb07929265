"""Upkeep of a corpus: fsck names every kind of damage; compact, expire and gc lose nothing that is kept."""

import json
import os
import time

import numpy as np
import pytest
from camera_cases import seen
from corpus_cases import episode, same
from test_corpus_crash import finish, start
from test_corpus_windows import FIELDS, check

from flywheel.corpus import Corpus, CorpusError
from flywheel.corpus.maintenance import _check_segment, compact, expire, fsck, gc
from flywheel.log import progress


@pytest.fixture(autouse=True)
def no_fsync(monkeypatch):
    monkeypatch.setattr(os, "fsync", lambda fd: None)  # slow, and what it is for is in test_corpus_faults.py


@pytest.fixture
def corpus(tmp_path):
    """Three versions: two episodes, one more, and one of those removed; and a tag."""
    corpus = Corpus(tmp_path / "corpus", create=True)
    corpus.append([episode(1), episode(2)])
    corpus.append([episode(3, start={"qpos": np.array([1.0, 2.0])}, extras={"chain": episode(3).action})])
    corpus.tombstone([episode(2).hash], "gripper was loose")
    corpus.tag("clean", 2)
    return corpus


def flip(path, at=0.5):
    data = bytearray(path.read_bytes())
    data[int(at * (len(data) - 1))] ^= 1
    path.write_bytes(data)


def cut(path):
    path.write_bytes(path.read_bytes()[:-7])


def wheres(corpus):
    return [finding.where for finding in fsck(Corpus(corpus.path))]


def entry(corpus, number):
    return corpus.path / f"log/0000/{number:08d}.json"


def test_a_whole_corpus_has_no_findings_and_a_killed_writer_is_no_damage(corpus):
    assert fsck(corpus) == fsck(corpus, progress) == []
    (corpus.path / "segments/01AB.tmp-77").mkdir()
    (corpus.path / "segments/01AC").mkdir()
    entry(corpus, 4).with_name(".00000004.json.77-ab.tmp").write_bytes(b"half")
    (corpus.path / "tags/.x.json.77-ab.tmp").write_bytes(b"half")
    assert wheres(corpus) == []


@pytest.mark.parametrize("damage", [flip, cut, lambda path: path.unlink()], ids=["flip", "cut", "gone"])
def test_every_file_of_every_version_is_compared(corpus, damage):
    """Also those that only an older version shows: the segment of the tombstoned episode."""
    files = [path for path in (corpus.path / "segments").rglob("*") if path.is_file()]
    assert len(files) > 15
    for path in files:
        data = path.read_bytes()
        damage(path)
        assert wheres(corpus) == [str(path.relative_to(corpus.path))]
        path.write_bytes(data)
    assert wheres(corpus) == []


def test_a_finding_says_what_to_do_and_the_episode_is_not_served(corpus):
    first = corpus.history.state.segments()[0]
    flip(corpus.path / "segments" / first / "action/c.0.0")
    (finding,) = fsck(corpus)
    assert str(finding).startswith(f"segments/{first}/action/c.0.0: ")
    for words in ("bytes with sha256 ", "; expected sha256 ", "To do: restore it from a copy", "restore=true"):
        assert words in str(finding)
    with pytest.raises(CorpusError, match="the bytes changed on disk"):
        Corpus(corpus.path).at(1).read(0)
    same(Corpus(corpus.path).at(3).read(episode(3).hash), corpus.at(2).read(episode(3).hash))


def test_a_lost_segment_is_named_once(corpus):
    folder = corpus.path / "segments" / corpus.history.state.segments()[0]
    folder.rename(corpus.path / "elsewhere")
    (finding,) = fsck(corpus)
    assert (finding.where, finding.found) == (f"segments/{folder.name}", "no such folder")
    assert "version 1" in finding.expected


@pytest.mark.parametrize("number", [1, 2, 3])
def test_log_entries_that_changed_are_named(corpus, number):
    path, name = entry(corpus, number), f"log/0000/{number:08d}.json"
    data = path.read_bytes()
    for at in (0, 0.5, 1):
        flip(path, at)
        assert wheres(corpus) == [name]
        path.write_bytes(data)
    cut(path)
    assert wheres(corpus) == [name]
    path.unlink()
    assert wheres(corpus) == ([name] if number < 3 else [])  # the newest leaves no trace but what is tagged


def test_the_chain_names_an_entry_that_was_written_anew(corpus, tmp_path):
    other = Corpus(tmp_path / "other", create=True)
    other.append([episode(7)])
    path = entry(corpus, 1)
    path.write_bytes(entry(other, 1).read_bytes())
    found = [str(finding) for finding in fsck(corpus)]
    assert any("00000001.json: parent" in line and "the hash of version 0" in line for line in found)
    assert any("00000002.json: parent" in line and "the hash of version 1" in line for line in found)
    assert any("00000003.json: 1 episodes such as" in line and "cannot tombstone" in line for line in found)
    assert any("no such folder" in line for line in found)
    path.write_bytes(entry(corpus, 2).read_bytes())
    assert "the entry of version 2; expected that of version 1" in str(fsck(corpus)[0])


def test_a_log_that_disagrees_with_its_segment(corpus):
    """The bytes are whole and the log names other episodes than they hold."""
    part = corpus.history.entry(1)["add"][0]
    found = []
    for wrong in (
        {"hashes": part["hashes"][:1]},
        {"steps": part["steps"] + 1},
        {"hashes": [part["hashes"][1], part["hashes"][0]]},
    ):
        _check_segment(corpus.files, 1, {**part, **wrong}, lambda *words: found.append(words[:3]))
    assert [line[0] for line in found] == [f"segments/{part['segment']}"] * 4
    assert found[0][1].startswith("2 episodes of") and found[1][1].startswith("2 episodes of")
    assert found[2][1] == f"episode 0 with content hash {part['hashes'][0][:12]}"
    assert found[3][2] == f"{part['hashes'][0][:12]}, as in the log of version 1"


def test_tags_point_at_versions(corpus):
    path = corpus.path / "tags/clean.json"
    for bad, says in (
        (b'{"version":4}', "version 4; expected a version from 0 to 3"),
        (b'{"version":"2"}', "version '2'; expected a version"),
        (b'{"ver', 'expected {"version": N}'),
        (b"[]", 'expected {"version": N}'),
    ):
        path.write_bytes(bad)
        (finding,) = fsck(corpus)
        assert finding.where == "tags/clean.json" and says in str(finding)
    path.write_bytes(json.dumps({"version": 0}).encode())
    assert fsck(corpus) == []


def test_files_that_are_no_entries_are_named(corpus):
    (corpus.path / "log/0000/notes.txt").write_bytes(b"")
    (corpus.path / "log/0001").mkdir()
    (corpus.path / "log/0001/00000003.json").write_bytes(entry(corpus, 3).read_bytes())
    assert wheres(corpus) == ["log/0000/notes.txt", "log/0001/00000003.json"]


def names(corpus):
    """The segments on disk."""
    return {path.name for path in (corpus.path / "segments").iterdir()}


@pytest.fixture
def small(tmp_path):
    """Version 1 to 5 added an episode each (3 is of another schema), 6 removed the second."""
    corpus = Corpus(tmp_path / "corpus", create=True)
    for seed in (1, 2, 3, 4, 5):
        corpus.append([episode(seed, width=5 if seed == 3 else 3, meta={"z": seed, "a": None})])
    corpus.tombstone([episode(2).hash], "gripper was loose")
    return corpus


def test_compact_makes_one_segment_and_every_version_reads_as_before(small, tmp_path):
    before = {number: [small.at(number).read(found) for found in small.at(number).hashes] for number in range(1, 7)}
    ids = [small.at(number).id for number in range(7)]
    windows = small.windows(small.at(6).select(seed=[1, 4, 5]), FIELDS, cache=tmp_path / "cache")
    done = compact(small, message="nightly", author="cron")
    assert (done.version, done.merged, done.episodes, len(done.segments)) == (7, 3, 3, 1)
    for corpus in (small, Corpus(small.path)):
        assert [corpus.at(number).id for number in range(8)] == [*ids, ids[6]]
        for number, made in before.items():
            for one in made:
                same(corpus.at(number).read(one.hash), one)
        for one in before[6]:
            same(corpus.at(7).read(one.hash), one)
        table = corpus.at(7).canonical().table
        assert table["added"].tolist() == corpus.at(6).canonical().table["added"].tolist()
        assert corpus.diff(6, 7)["added"] == corpus.diff(6, 7)["removed"] == []
        assert set(corpus.at(7).select(seed=[1, 4, 5]).segments()) == {*done.segments}
        with pytest.raises(CorpusError, match=r"was removed in version 6 \('gripper was loose'\)"):
            corpus.tombstone([episode(2).hash], "again")
        extended = windows.extend(corpus.at(7).select(seed=[1, 4, 5]))
        check(extended)
    check(windows)
    line = small.log()[-1]
    assert [line[key] for key in ("op", "added", "removed", "live", "steps", "message")] == [
        "compact",
        0,
        0,
        4,
        0,
        "nightly",
    ]
    np.testing.assert_allclose(
        small.at(7).select(seed=[1, 4, 5]).statistics("action")["mean"],
        small.at(6).select(seed=[1, 4, 5]).statistics("action")["mean"],
        rtol=1e-12,
    )
    assert fsck(small) == []
    assert compact(small).version == 7 and compact(small).merged == 0


def test_large_segments_stay_and_new_ones_are_of_bounded_size(small, monkeypatch):
    size = {one.seed: (len(one) + 1) * (3 + 2 + 1) * 4 for one in small.at(6).select(seed=[1, 4, 5])}
    assert compact(small, small=min(size.values())).version == 6
    monkeypatch.setattr("flywheel.corpus.maintenance.SEGMENT_BYTES", size[1] + size[4])
    done = compact(small)
    assert done.merged == 2 and len(done.segments) == 1
    assert set(small.at(7).select(seed=[1, 4]).segments()) == {*done.segments}


def test_compact_keeps_what_others_do_meanwhile(small):
    """Another writer removes one, removes and restores one, and adds one, after the new segment was written."""
    commit, other = small.history.commit, Corpus(small.path)

    def late(make):
        other.tombstone([episode(1).hash], "bad")
        other.tombstone([episode(4).hash], "bad")
        other.append([episode(4)], restore=True)
        other.append([episode(9)])
        return commit(make)

    small.history.commit = late
    done = compact(small)
    small.history.commit = commit
    assert (done.version, done.episodes, small.head) == (11, 1, 11)
    assert small.at(11).id == other.at(10).id
    assert {one.seed for one in Corpus(small.path).at(11)} == {3, 4, 5, 9} and fsck(small) == []


def test_of_two_compacts_at_once_the_second_adds_nothing(small):
    commit = small.history.commit
    first = []
    small.history.commit = lambda make: (first.append(compact(Corpus(small.path))), commit(make))[1]
    assert (compact(small).version, first[0].version, small.at(7).id) == (7, 7, small.at(6).id)
    assert len(small.orphans()) == 1
    assert [garbage.why for garbage in gc(small, grace=0, dry_run=False)] == ["orphan"]
    assert small.orphans() == {} and fsck(small) == []


def test_compact_does_not_copy_damage(small):
    flip(small.path / "segments" / small.history.state.segments()[3] / "action/c.0.0")
    with pytest.raises(CorpusError, match="the bytes changed on disk"):
        compact(Corpus(small.path))
    assert small.head == 6


def test_appends_at_the_same_moment_as_compacts_lose_nothing(tmp_path):
    corpus = Corpus(tmp_path, create=True)
    writer = start(tmp_path, 100, 15)
    while writer.poll() is None:
        compact(corpus)
        expire(corpus, 1)
        gc(corpus, grace=3600, dry_run=False)
    status, lines = finish(writer)
    assert status == 0 and len(lines) == 15
    compact(corpus)
    head = Corpus(tmp_path).at("latest")
    assert sorted(head.hashes) == sorted(seen(seed).hash for _, seed, _ in lines)
    for version, seed, _ in lines:
        assert seen(seed).hash in corpus.at(version).hashes
        same(head.read(seen(seed).hash), seen(seed))
    assert fsck(corpus) == [] and len(head.segments()) == 2  # with cameras and without


def test_expire_and_gc_free_what_no_kept_version_shows(small, tmp_path):
    old = small.history.state.segments()
    (new,) = compact(small).segments
    assert expire(small, 6) == (7, []) and gc(small, grace=0) == []  # versions 2 to 7 show them all
    small.tag("two", 2)
    version, given = expire(small, 1)
    assert version == 8 and given == sorted([old[3], old[4]])  # 1 and 2 by the tag, 3 was not merged
    with pytest.raises(CorpusError, match="version 5 was expired in version 8"):
        small.tag("late", 5)
    assert gc(small) == []  # within the grace
    later = time.time() + 25 * 3600
    planned = gc(small, now=later)
    assert {(garbage.name, garbage.why) for garbage in planned} == {(f"segments/{name}", "expired") for name in given}
    assert all(garbage.bytes > 1000 for garbage in planned) and names(small) == {*old, new}
    assert gc(small, now=later, dry_run=False) == planned and names(small) == {*old[:3], new}
    assert gc(small, grace=0, dry_run=False) == []
    fresh = Corpus(small.path)
    assert fsck(fresh) == []
    assert [one.seed for one in fresh.at("two")] == [1, 2]
    assert sorted(one.seed for one in fresh.at("latest")) == [1, 3, 4, 5]
    assert fresh.at("latest").table["added"].tolist() == [3, 1, 4, 5]
    check(fresh.windows(fresh.at(8).select(seed=[1, 4, 5]), FIELDS, cache=tmp_path / "cache"))
    assert fresh.at(4).id == small.at(4).id  # the log still knows; the bytes are gone
    with pytest.raises(CorpusError, match=r"is gone, no version that was kept by the expire of version 8 shows it"):
        fresh.at(4).read(episode(4).hash)
    done = fresh.append([episode(4), episode(2), episode(6)])
    assert (done.added, done.duplicates) == ([episode(6).hash], [episode(4).hash])
    assert expire(fresh, 1) == (9, [])
    with pytest.raises(CorpusError, match="keep is 0"):
        expire(fresh, 0)


def test_a_tag_made_at_the_moment_of_an_expire_keeps_its_segments(small):
    compact(small)
    (small.path / "tags/late.json").write_bytes(b'{"version":6}')
    saved = (small.path / "tags/late.json").rename(small.path / "late")
    assert len(expire(small, 1)[1]) == 4
    saved.rename(small.path / "tags/late.json")  # its writer had looked before the expire
    assert [garbage.name for garbage in gc(small, grace=0, dry_run=False)] == [
        f"segments/{small.history.state.segments()[1]}"
    ]
    assert sorted(one.seed for one in Corpus(small.path).at("late")) == [1, 3, 4, 5]


def test_gc_frees_what_a_killed_writer_left_and_not_what_one_at_work_has(small):
    segments = small.path / "segments"
    left = [
        segments / "01AA",
        segments / "01AB.tmp-7",
        small.path / "log/0000/.00000007.json.7-ab.tmp",
        small.path / "tags/.x.json.7-ab.tmp",
    ]
    for path in left[:2]:
        (path / "action").mkdir(parents=True)
        (path / "action/c.0.0").write_bytes(b"12345")
    for path in left[2:]:
        path.write_bytes(b"12345")
    assert gc(small) == []
    for path in left:
        for one in (path, *path.rglob("*")):
            os.utime(one, (0, time.time() - 25 * 3600))
    os.utime(left[0] / "action/c.0.0")  # its writer is at work
    found = gc(small, dry_run=False)
    assert [(small.path / garbage.name, garbage.bytes, garbage.why) for garbage in found] == [
        (left[1], 5, "orphan"),
        (left[2], 5, "aside"),
        (left[3], 5, "aside"),
    ]
    assert [path.exists() for path in left] == [True, False, False, False]
    assert fsck(small) == [] and small.at(6).id == Corpus(small.path).at(6).id


def test_an_append_whose_segment_was_freed_too_early_is_no_version(small):
    commit = small.history.commit
    small.history.commit = lambda make: (gc(Corpus(small.path), grace=0, dry_run=False), commit(make))[1]
    with pytest.raises(CorpusError, match="gc freed the new segment .* nothing was added, do it again"):
        small.append([episode(7)])
    small.history.commit = commit
    assert small.append([episode(7)]).version == 7
