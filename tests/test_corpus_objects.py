"""The corpus on object stores: what test_corpus.py does not ask of every place. Real servers, started by
tests/servers.py."""

import contextlib
import os
import shutil
import signal
import threading
from pathlib import Path

import pytest
import servers
from corpus_cases import episode, same
from test_corpus_crash import check, finish, start
from test_corpus_windows import FIELDS
from test_corpus_windows import check as check_windows

from flywheel.cli import app
from flywheel.corpus import Corpus, CorpusError, state
from flywheel.corpus.copies import Copies
from flywheel.corpus.maintenance import compact, expire, fsck, gc
from flywheel.corpus.objects import Objects

remote = pytest.mark.parametrize("place", ["s3", "az"], indirect=True)


@remote
def test_of_eight_creates_at_the_same_moment_exactly_one_wins(place, tmp_path):
    """The promise that everything rests on, of the server itself, through eight clients."""
    clients = [Objects(place, tmp_path / str(n)) for n in range(8)]
    for name in map(str, range(25)):
        won, together = [], threading.Barrier(8)

        def create(n, name=name, won=won, together=together):
            together.wait()
            if clients[n].create(name, b"%d" % n):
                won.append(n)

        threads = [threading.Thread(target=create, args=(n,)) for n in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(won) == 1 and clients[0].read(name) == b"%d" % won[0]
        assert clients[won[0]].create(name, b"%d" % won[0])  # sent again because the answer was lost: it is still ours


@pytest.mark.parametrize("place", ["folder", "s3", "az"], indirect=True)
def test_upkeep_is_the_same_everywhere(place, tmp_path, monkeypatch):
    monkeypatch.setattr(state, "BASE", 2)
    corpus = Corpus(place, create=True)
    for seed in range(5):
        corpus.append([episode(seed)])
    corpus.tombstone([episode(2).hash], "bad")
    corpus.tag("two", 2)
    before = [corpus.at(number).id for number in range(7)]
    corpus.files.tree("segments/01ORPHAN", {"action/c.0.0": b"12345", "episodes.json": b"{}"})
    done = compact(corpus)
    assert (done.version, done.merged, done.episodes) == (7, 4, 4)
    assert expire(corpus, 1)[0] == 8 and len(gc(corpus)) == 0
    freed = gc(corpus, grace=-60, dry_run=False)
    assert [(garbage.bytes > 0, garbage.why) for garbage in freed] == [(True, "orphan")] + 3 * [(True, "expired")]
    assert gc(corpus, grace=-60, dry_run=False) == []
    fresh = Corpus(place)
    assert [fresh.at(number).id for number in range(9)] == [*before, before[6], before[6]] and fsck(fresh) == []
    assert fresh.history.state.blocks and all(block.file for block in fresh.history.state.blocks)
    for one in fresh.at("latest"):
        same(one, episode(one.seed))
    check_windows(fresh.windows(fresh.at("latest"), FIELDS, cache=tmp_path / "cache"))
    with pytest.raises(CorpusError, match="is gone, no version that was kept by the expire of version 8"):
        Corpus(place).at(4).read(episode(3).hash)
    (damaged,) = (name for name in fresh.files.names("segments") if done.segments[0] in name and "reward/c" in name)
    whole = fresh.files.read(damaged)
    fresh.files.remove(damaged)
    assert [finding.where for finding in fsck(Corpus(place))] == [damaged]
    fresh.files.replace(damaged, whole[:-1])
    assert [finding.where for finding in fsck(Corpus(place))] == [damaged]


@remote
def test_what_was_read_is_kept_and_a_damaged_copy_is_fetched_again(place, tmp_path, monkeypatch):
    corpus = Corpus(place, create=True)
    corpus.append([episode(1)])
    same(corpus.at(1).read(0), episode(1))
    copies = [path for path in (tmp_path / "objects").rglob("*") if path.is_file()]
    assert len(copies) > 5
    for path in copies:
        path.write_bytes(path.read_bytes()[:-1] + b"?")
    same(Corpus(place).at(1).read(0), episode(1))  # fetched again
    elsewhere = Objects(place, tmp_path / "elsewhere")
    for name in elsewhere.names("segments"):
        elsewhere.remove(name)
    same(Corpus(place).at(1).read(0), episode(1))  # from the cache
    shutil.rmtree(tmp_path / "objects")
    with pytest.raises(CorpusError, match="is missing; restore the segment"):
        Corpus(place).at(1).read(0)


@pytest.mark.parametrize("place", ["s3"], indirect=True)
def test_copies_take_no_more_room_than_they_may(place, tmp_path, monkeypatch):
    corpus = Corpus(place, create=True)
    for seed in range(6):
        corpus.append([episode(seed, steps=400)])
    copies = tmp_path / "objects"

    def held():
        return sum(path.stat().st_size for path in copies.rglob("*") if path.is_file())

    assert [one.hash for one in Corpus(place).at("latest")] == corpus.at("latest").hashes
    everything = held()
    shutil.rmtree(copies)
    monkeypatch.setenv("FLYWHEEL_CACHE_GB", str(everything / 2 / 1e9))
    assert [one.hash for one in Corpus(place).at("latest")] == corpus.at("latest").hashes
    assert everything / 4 < held() <= everything / 2
    with pytest.raises(CorpusError, match="FLYWHEEL_CACHE_GB='much'"):
        monkeypatch.setenv("FLYWHEEL_CACHE_GB", "much")
        Corpus(place)


def test_what_was_used_longest_ago_goes_first(tmp_path, monkeypatch):
    monkeypatch.setenv("FLYWHEEL_CACHE_GB", str(10_000 / 1e9))
    first, other = (Copies(url, tmp_path) for url in ("s3://a/x", "s3://b/x"))  # two corpora, one limit
    for age, name in enumerate("abcd"):
        os.utime(first.keep(name, bytes(2000)), ns=(age, age))
    os.utime(first.path("a"), ns=(9, 9))
    other.keep("large", bytes(4000))
    assert sorted(path.name for path in tmp_path.rglob("*") if path.is_file()) == ["a", "d", "large"]
    other.keep("huge", bytes(99_000))  # what the caller is about to open stays
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == ["huge"]


@pytest.mark.slow
@remote
def test_writers_on_an_object_store_lose_nothing(place):
    """Three at the same moment, then two that are killed with -9 at random points."""
    Corpus(place, create=True)
    ended = [finish(writer) for writer in [start(place, 100 * (n + 1), 6) for n in range(3)]]
    assert [status for status, _ in ended] == [0, 0, 0]
    lines = [line for _, part in ended for line in part]
    killed = [finish(writer) for writer in [start(place, 1000 * (n + 1) + 1, 50, 9_000 * (n + 1)) for n in range(2)]]
    assert [status for status, _ in killed] == [-signal.SIGKILL] * 2
    lines += [line for _, part in killed for line in part]
    corpus = check(place, lines)
    added = [version for version, _, new in lines if new]
    assert len(added) == len(set(added)) and corpus.head in (len(added), len(added) + 1, len(added) + 2)
    gc(corpus, grace=-60, dry_run=False)
    assert corpus.orphans() == {} and fsck(corpus) == []


@pytest.mark.slow
@pytest.mark.parametrize("place", ["s3"], indirect=True)
def test_a_nightly_on_an_object_store_writes_no_credential_anywhere(place, tmp_path, monkeypatch, capfd):
    import small
    import toy

    monkeypatch.setenv("FLYWHEEL_CORPUS", place)
    toy.demonstrations(tmp_path / "demos.hdf5")
    for words in (
        small.words(tmp_path, "--dry-run"),
        small.words(tmp_path, "--json"),
        small.words(tmp_path),
        *(["corpus", act, f"store={tmp_path / 'store'}", "--json"] for act in ("log", "show", "fsck", "compact")),
        *([act, f"store={tmp_path / 'store'}", "--json"] for act in ("gc", "report", "runs")),
        ["show", "algorithm=bc"],
    ):
        assert app.main(words) == 0, words
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")  # nobody answers: the error is told
    monkeypatch.setenv("AWS_SESSION_TOKEN", "127.0.0.1:9")  # as if the store's message held a secret
    assert app.main(["corpus", "log", f"store={tmp_path / 'store'}"]) == 1
    out = "".join(capfd.readouterr())
    assert "$AWS_SESSION_TOKEN" in out
    monkeypatch.undo()
    written = [path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()]
    assert len(written) > 30 and Path(tmp_path / "store/runs").exists() and not (tmp_path / "store/corpus").exists()
    assert not [data for data in (*written, out.encode()) if servers.S3_SECRET.encode() in data]


@pytest.mark.parametrize("place", ["s3"], indirect=True)
def test_no_object_holds_a_credential(place):
    corpus = Corpus(place, create=True)
    corpus.append([episode(1)])
    corpus.tag("one")
    names = [name for folder in ("segments", "log", "tags") for name in corpus.files.names(folder)]
    assert len(names) > 8
    for name in (*names, "format.json"):
        assert servers.S3_SECRET.encode() not in corpus.files.read(name)


@pytest.mark.parametrize("url", ["s3://key:hidden@bucket/x", "s3://bucket/x?sas=hidden", "http://hidden/x", "s3://"])
def test_a_url_with_more_in_it_is_refused_and_not_repeated(url):
    with pytest.raises(CorpusError, match="expected s3, gs, az://BUCKET/PREFIX and nothing else") as told:
        Corpus(url)
    assert "hidden" not in str(told.value)


def test_a_replay_does_not_write_into_a_corpus_that_others_use(monkeypatch, tmp_path):
    from flywheel.runs import lineage, run

    monkeypatch.setenv("FLYWHEEL_CORPUS", "s3://bucket/x")
    with pytest.raises(run.RunError, match="copy it into .* and unset FLYWHEEL_CORPUS"):
        lineage.scratch(run.Store(tmp_path), tmp_path / "copy", set())


def test_gs_is_understood(monkeypatch, tmp_path):
    """gs:// was never tried against a server; this much shows that the URL reaches obstore's client for it."""
    monkeypatch.setenv("GOOGLE_SKIP_SIGNATURE", "true")
    with contextlib.suppress(OSError):  # of a client that wants credentials at once
        assert str(Objects("gs://bucket/x", tmp_path)) == "gs://bucket/x"
    assert os.listdir(tmp_path) == []
