"""Upkeep of a corpus: fsck names every kind of damage."""

import json

import pytest
from corpus_cases import episode, same

from flywheel.corpus import Corpus, CorpusError
from flywheel.corpus.maintenance import fsck
from flywheel.log import progress


@pytest.fixture
def corpus(tmp_path):
    """Three versions: two episodes, one more, and one of those removed; and a tag."""
    corpus = Corpus(tmp_path / "corpus", create=True)
    corpus.append([episode(1), episode(2)])
    corpus.append([episode(3, start={"qpos": [1.0, 2.0]}, extras={"chain": episode(3).action})])
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
    first = corpus.history.segments[0]
    flip(corpus.path / "segments" / first / "action/c.0.0")
    (finding,) = fsck(corpus)
    assert str(finding).startswith(f"segments/{first}/action/c.0.0: ")
    for words in ("bytes with sha256 ", "; expected sha256 ", "To do: restore it from a copy", "restore=true"):
        assert words in str(finding)
    with pytest.raises(CorpusError, match="the bytes changed on disk"):
        Corpus(corpus.path).at(1).read(0)
    same(Corpus(corpus.path).at(3).read(episode(3).hash), corpus.at(2).read(episode(3).hash))


def test_a_lost_segment_is_named_once(corpus):
    folder = corpus.path / "segments" / corpus.history.segments[0]
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
    from flywheel.corpus.maintenance import _check_segment

    part = corpus.history.entries[0]["add"][0]
    folder, found = corpus.path / "segments" / part["segment"], []
    for wrong in (
        {"hashes": part["hashes"][:1]},
        {"steps": part["steps"] + 1},
        {"hashes": [part["hashes"][1], part["hashes"][0]]},
    ):
        _check_segment(folder, 1, {**part, **wrong}, lambda where, *words: found.append((where.name, *words[:2])))
    assert [line[0] for line in found] == [folder.name] * 4
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
