"""Storage that fails at every call in turn, and storage that forgets what was not synced."""

import builtins
import errno
import io
import os
import re

import pytest
from corpus_cases import episode, same

from flywheel import store
from flywheel.corpus import Corpus, CorpusError
from flywheel.corpus.maintenance import compact, expire, fsck, gc

CALLS = ("fsync", "link", "rename", "replace", "mkdir")
CLEANUP = ("unlink", "rmdir")


@pytest.fixture(autouse=True, params=[1])
def folder(request, monkeypatch):
    monkeypatch.setattr("flywheel.corpus.log.FOLDER", request.param)  # 1: every commit makes a folder, too


class Faults:
    """While `on`, the call number `at` that changes the disk fails: a full disk once, a read-only one from then on.

    A write that fails has written half of its bytes. `failed` names the call.
    """

    def __init__(self, monkeypatch):
        self.on, self.failed = False, None
        monkeypatch.setattr(os, "fsync", lambda fd: None)  # this disk needs none, and a test of it is 5 times as fast
        for name in (*CALLS, *CLEANUP):
            monkeypatch.setattr(os, name, self._wrap(name, getattr(os, name)))
        faults = self

        class File(io.FileIO):
            def write(self, data):
                return faults._call("write", super().write, data)

        def opened(path, mode):
            return faults._call("open", File, path, mode) if mode == "wb" else builtins.open(path, mode)

        monkeypatch.setattr(store, "open", opened, raising=False)

    def arm(self, at, code):
        self.on, self.failed, self.left, self.code = True, None, at, code

    def _wrap(self, name, call):
        return lambda *words, **more: self._call(name, call, *words, **more)

    def _call(self, name, call, *words, **more):
        if self.on:
            counted = name not in CLEANUP
            self.left -= counted
            if (self.left == 0 and counted) or (self.left < 0 and self.code == errno.EROFS):
                self.failed = self.failed or name
                if name == "write":
                    call(words[0][: len(words[0]) // 2])
                raise OSError(self.code, os.strerror(self.code))
        return call(*words, **more)


@pytest.fixture
def faults(monkeypatch):
    return Faults(monkeypatch)


@pytest.fixture
def corpus(tmp_path):
    corpus = Corpus(tmp_path / "corpus", create=True)
    corpus.append([episode(1), episode(2)])
    corpus.tag("first")
    return corpus


def contents(corpus):
    """{path: bytes} of everything but segments and what was written aside. fsck at the end compares the segments."""
    found = {path: b"" for path in (corpus.path / "segments").iterdir() if path.name in corpus.history.state.segments()}
    for path in (*corpus.path.glob("*.json"), *corpus.path.glob("log/*/[!.]*"), *corpus.path.glob("tags/[!.]*")):
        found[path] = path.read_bytes()
    return found


def each_call_fails(faults, corpus, code, operation, again):
    """`operation(n)` with its first, second, ... call failing, until one goes through; the calls that failed.

    After each the corpus is what it was, or, if the entry's name was made already, has the whole operation; and
    `again(n)` must work.
    """
    failed = []
    while True:
        before, number = contents(corpus), len(failed)
        faults.arm(number + 1, code)
        try:
            operation(number)
        except CorpusError as error:
            assert re.search(
                rf"failed, the storage says: .*{os.strerror(code)}.*Every version is as it was\. Make", str(error)
            )
        else:
            assert faults.failed is None
            return failed
        finally:
            faults.on = False
        failed.append(faults.failed)
        after = contents(corpus)
        assert before.items() <= after.items()
        new = after.keys() - before.keys()
        assert len(new) <= 1, new  # no more than the entry itself, and that only when just its folder's fsync failed
        if new:
            assert faults.failed == "fsync" and "link" in failed
        again(number)


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EROFS], ids=["full", "read-only"])
def test_an_append_whose_every_call_fails_in_turn(faults, corpus, code):
    def one(number):
        return episode(100 + number, steps=2)

    def again(number):
        """With the same object, which lived through the error: the episode is in, once."""
        done = corpus.append([one(number)])
        assert done.added + done.duplicates == [one(number).hash]

    failed = each_call_fails(faults, corpus, code, lambda number: corpus.append([one(number)]), again)
    assert set(failed) == {"open", "write", *CALLS} - {"replace"} and len(failed) > 30
    assert fsck(corpus) == []
    made = [episode(1), episode(2), *map(one, range(len(failed) + 1))]
    for left, right in zip(Corpus(corpus.path).at("latest"), made, strict=True):
        same(left, right)
    if code == errno.ENOSPC:  # what was written aside is removed again; whole segments may be left
        assert not [path for path in corpus.path.rglob("*") if path.name.startswith(".") or ".tmp-" in path.name]


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EROFS], ids=["full", "read-only"])
def test_a_tombstone_and_a_tag_whose_every_call_fails_in_turn(faults, corpus, code):
    corpus.append([episode(10 + number) for number in range(12)])

    def tombstone(number):
        corpus.tombstone([episode(10 + number).hash], "bad")

    def tombstone_again(number):
        if episode(10 + number).hash in corpus.at("latest").hashes:
            tombstone(number)
        assert episode(10 + number).hash not in Corpus(corpus.path).at("latest").hashes

    failed = each_call_fails(faults, corpus, code, tombstone, tombstone_again)
    assert {"open", "write", "fsync", "link"} <= set(failed)

    def tag(number):
        corpus.tag(f"t{number}", 2)

    assert each_call_fails(faults, corpus, code, tag, tag) == ["open", "write", "fsync", "link", "fsync"]
    assert set(corpus.tags().values()) == {1, 2} and fsck(corpus) == []


def test_a_compact_whose_every_call_fails_in_turn(faults, corpus):
    corpus.append([episode(3), episode(4)])
    corpus.append([episode(5, width=4)])
    ids = {corpus.at("latest").id}
    failed = each_call_fails(
        faults, corpus, errno.ENOSPC, lambda _: compact(corpus), lambda _: ids.add(Corpus(corpus.path).at("latest").id)
    )
    assert set(failed) == {"open", "write", *CALLS} - {"replace"} and len(failed) > 30
    assert len(ids) == 1 and corpus.head == 4 and fsck(corpus) == []
    gc(corpus, grace=0, dry_run=False)
    assert corpus.orphans() == {}


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EROFS], ids=["full", "read-only"])
def test_a_checkpoint_whose_every_call_fails_in_turn_is_done_without(faults, corpus, monkeypatch, code):
    monkeypatch.setattr("flywheel.corpus.state.BASE", 1)
    made, failed = [1, 2], []
    while len(failed) < 5 or failed[-1]:
        linked = len(failed) + 1
        link = store.link_new
        with monkeypatch.context() as patch:  # the entry is in: what is written from here on is the checkpoint
            patch.setattr(store, "link_new", lambda *words, link=link, n=linked: (link(*words), faults.arm(n, code))[0])
            assert corpus.append([episode(200 + linked)]).added
        faults.on = False
        failed.append(faults.failed)
        made.append(200 + linked)
        corpus = Corpus(corpus.path)
        assert [one.seed for one in corpus.at("latest")] == made and fsck(corpus) == []
    assert {"mkdir", "write", "fsync", "replace"} <= set(failed)


def test_a_failing_source_is_not_blamed_on_the_corpus(corpus):
    def broken():
        yield episode(3)
        raise OSError(errno.EIO, "the camera's disk")

    with pytest.raises(OSError, match="the camera's disk"):
        corpus.append(broken())
    assert corpus.head == 1


class Forgetful:
    """What a disk holds after a power cut, in the worst case that POSIX allows: only what was fsynced.

    A file's bytes are those of its last fsync (none: empty), a folder's names those of its last fsync. `links` runs
    at every os.link, before it, with (the source, the target).
    """

    def __init__(self, monkeypatch):
        self.bytes, self.names, self.held, self.links = {}, {}, [], None
        link = os.link

        def record(fd):
            self.held.append(os.dup(fd))  # so that no other file gets this inode
            number = os.fstat(fd).st_ino
            path = f"/proc/self/fd/{fd}"
            if os.path.isdir(path):
                self.names[number] = {entry.name: entry.inode() for entry in os.scandir(path)}
            else:
                with builtins.open(path, "rb") as file:
                    self.bytes[number] = file.read()

        def linked(source, target):
            if self.links:
                self.links(source, target)
            link(source, target)

        monkeypatch.setattr(os, "fsync", record)
        monkeypatch.setattr(os, "link", linked)

    def cut(self, root, copy, also=None):
        """Copy what is durable of `root` to `copy`; `also` is (source, target), a link that made it to the disk."""
        names = dict(self.names)
        if also:
            folder = os.stat(os.path.dirname(also[1])).st_ino
            names[folder] = names.get(folder, {}) | {os.path.basename(also[1]): os.stat(also[0]).st_ino}

        def restore(number, path):
            if number in self.folders or number in names:
                path.mkdir(parents=True)
                for name, inner in names.get(number, {}).items():
                    restore(inner, path / name)
            else:
                path.write_bytes(self.bytes.get(number, b""))

        self.folders = {os.stat(path).st_ino for path in (root, *root.rglob("*")) if path.is_dir()}
        above = names.get(os.stat(root.parent).st_ino, {})
        if root.name in above:
            restore(above[root.name], copy)
        return copy


@pytest.fixture
def disk(monkeypatch):
    disk = Forgetful(monkeypatch)
    yield disk
    for fd in disk.held:
        os.close(fd)


def work(root, acknowledged):
    """Operations on a new corpus; `acknowledged` is told the corpus after each."""
    corpus = Corpus(root, create=True)
    acknowledged(corpus)
    for operation in (
        lambda: corpus.append([episode(1), episode(2, width=4)]),
        lambda: corpus.append([episode(3)]),
        lambda: corpus.tag("two"),
        lambda: corpus.tombstone([episode(1).hash], "bad"),
        lambda: corpus.append([episode(1)], restore=True),
        lambda: corpus.append([episode(4)]),
        lambda: compact(corpus),
        lambda: expire(corpus, 1),
    ):
        operation()
        acknowledged(corpus)
    assert gc(corpus, grace=0, dry_run=False)
    acknowledged(corpus)


def look(root):
    """What a reader finds: ids of all versions, tags, and every episode equal to the last bit."""
    corpus = Corpus(root)
    head = corpus.at("latest")
    for one in head:
        same(one, episode(one.seed, width=one.obs["state"].shape[1]))
    assert fsck(corpus) == []
    return [corpus.at(number).id for number in range(head.number + 1)], corpus.tags()


@pytest.mark.parametrize("folder, base", [(1, 32), (2, 1), (4096, 2)], indirect=["folder"])
def test_what_was_acknowledged_survives_a_power_cut(disk, tmp_path, base, monkeypatch):
    """Cut after each answer, and at each link: without its name the corpus is as before, with it it is whole.
    Checkpoints after each `base` versions are whole or absent (look runs fsck)."""
    monkeypatch.setattr("flywheel.corpus.state.BASE", base)
    seen, at_links, copies = [([], {})], [], iter(range(99))

    def linking(source, target):
        source, target = map(str, (source, target))
        if not target.endswith("format.json"):
            assert look(disk.cut(tmp_path / "c", tmp_path / f"copy{next(copies)}")) == seen[-1]
            at_links.append(look(disk.cut(tmp_path / "c", tmp_path / f"copy{next(copies)}", (source, target))))

    def acknowledged(corpus):
        seen.append(look(corpus.path))
        assert look(disk.cut(corpus.path, tmp_path / f"copy{next(copies)}")) == seen[-1]

    disk.links = linking
    work(tmp_path / "c", acknowledged)
    assert at_links == seen[2:-1] and [len(ids) for ids, _ in seen[1:]] == [1, 2, 3, 3, 4, 5, 6, 7, 8, 8]


def test_a_checkpoint_that_was_not_synced_is_found_out(disk, tmp_path, monkeypatch):
    monkeypatch.setattr("flywheel.corpus.state.BASE", 1)
    monkeypatch.setattr(
        store, "write_atomic", lambda path, data: (path.write_bytes(data), store.fsync_dir(path.parent))
    )
    corpus = Corpus(tmp_path / "c", create=True)
    corpus.append([episode(1)])
    copy = disk.cut(corpus.path, tmp_path / "copy")
    assert [finding.where[:12] for finding in fsck(Corpus(copy))] == ["checkpoints/"]
    assert Corpus(copy).at(1).hashes == [episode(1).hash]


@pytest.mark.parametrize("lazy", ["files", "folders"])
def test_the_power_cut_would_show_a_missing_fsync(disk, tmp_path, monkeypatch, lazy):
    fsync = os.fsync
    monkeypatch.setattr(
        os, "fsync", lambda fd: None if os.path.isdir(f"/proc/self/fd/{fd}") == (lazy == "folders") else fsync(fd)
    )
    corpus = Corpus(tmp_path / "c", create=True)
    corpus.append([episode(1)])
    with pytest.raises((CorpusError, ValueError, FileNotFoundError)):
        look(disk.cut(corpus.path, tmp_path / "copy"))


@pytest.mark.parametrize("what", ["append", "tag"])
def test_an_answer_that_rests_on_another_writers_link_is_durable_too(disk, tmp_path, monkeypatch, what):
    """A writer dies between link and fsync. The next finds its version or tag there and must not trust that it
    stays."""
    corpus = Corpus(tmp_path / "c", create=True)
    corpus.append([episode(0)])

    def operate(corpus):
        return corpus.append([episode(1)]) if what == "append" else corpus.tag("t")

    sync = store.fsync_dir
    linked = []

    def died(folder):
        if linked:
            raise KeyboardInterrupt
        sync(folder)

    disk.links = lambda source, target: linked.append(target)
    with monkeypatch.context() as patch:
        patch.setattr(store, "fsync_dir", died)
        with pytest.raises(KeyboardInterrupt):
            operate(corpus)
    disk.links = None
    before = look(disk.cut(corpus.path, tmp_path / "before"))
    operate(Corpus(corpus.path))
    assert look(disk.cut(corpus.path, tmp_path / "after")) == look(corpus.path) != before
