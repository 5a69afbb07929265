"""Writers that are killed with -9 at random points, and writers at the same moment: nothing acknowledged is ever lost.

Run as a program this file is such a writer; see `write`.
"""

import os
import random
import signal
import subprocess
import sys

from camera_cases import seen
from corpus_cases import same

from flywheel.corpus import Corpus, segment, state
from flywheel.corpus.maintenance import compact, expire, fsck, gc

MANY = 10**9


def write(folder, first, count, events, upkeep=False):
    """Append `count` episodes from seed `first`, one a version, printing each as it is acknowledged.

    After `events` Python or C calls from the first append on the process kills itself with -9: a random point, the same
    one each time; every other version makes a checkpoint. Seeds that are multiples of 5 are the same for all writers.
    With `upkeep` it compacts, expires and frees after every second append, which is for one writer alone."""
    state.BASE = 2
    corpus = Corpus(folder)
    segment.encode([seen(0)])  # imports zarr: not the part where a kill is of interest
    left = [int(events)]

    def tick(*_):
        left[0] -= 1
        if left[0] <= 0:
            os.kill(os.getpid(), signal.SIGKILL)

    sys.setprofile(tick)
    for seed in range(int(first), int(first) + int(count)):
        shared = seed % 100 if seed % 5 == 0 else seed
        done = corpus.append([seen(shared)])
        print(done.version, shared, len(done.added), flush=True)
        if upkeep and seed % 2:
            compact(corpus)
            expire(corpus, 1)
            gc(corpus, grace=0, dry_run=False)
    sys.setprofile(None)


def start(folder, first, count, events=MANY, *upkeep):
    command = [sys.executable, __file__, *map(str, (folder, first, count, events, *upkeep))]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=os.path.dirname(__file__))


def finish(writer):
    """(exit status, acknowledged [(version, seed, added)]); a line cut short was not acknowledged."""
    lines = writer.communicate()[0].splitlines(keepends=True)
    return writer.returncode, [tuple(map(int, line.split())) for line in lines if line.endswith("\n")]


def check(folder, acknowledged):
    """Every acknowledged episode is in its version, equal to the last bit, and once."""
    corpus = Corpus(folder)
    head = corpus.at("latest")
    assert len(set(head.hashes)) == len(head.hashes)
    for version, seed, _ in acknowledged:
        one = seen(seed)
        assert one.hash in corpus.at(version).hashes
        same(head.read(one.hash), one)
    for one in head:
        same(one, seen(one.seed))
    return corpus


def test_ten_kills_of_two_writers_lose_nothing(tmp_path):
    corpus = Corpus(tmp_path, create=True)
    corpus.append([seen(0)])
    chance = random.Random(3)
    acknowledged = []
    for turn in range(5):
        # an append is some 8,000 calls
        writers = [start(tmp_path, 1000 * (2 * turn + n) + 1, 50, chance.randrange(50_000)) for n in (0, 1)]
        for writer in writers:
            status, lines = finish(writer)
            assert status == -signal.SIGKILL
            acknowledged += lines
        check(tmp_path, acknowledged)
    assert acknowledged
    freed = gc(corpus, grace=0, dry_run=False)
    assert freed and all(garbage.name.rpartition("/")[2] not in corpus.history.state.segments() for garbage in freed)
    assert corpus.orphans() == {} and fsck(corpus) == []
    assert not [path for path in tmp_path.rglob("*") if path.name.startswith(".") or ".tmp-" in path.name]
    more = Corpus(tmp_path).append([seen(99_999)])
    assert more.version == Corpus(tmp_path).head == corpus.head


def test_writers_at_the_same_moment_lose_nothing_and_add_nothing_twice(tmp_path):
    Corpus(tmp_path, create=True)
    writers = [start(tmp_path, 100 * (n + 1), 12) for n in range(3)]
    ended = [finish(writer) for writer in writers]
    assert [status for status, _ in ended] == [0, 0, 0]
    lines = [line for _, part in ended for line in part]
    assert len(lines) == 36
    corpus = check(tmp_path, lines)
    # each writer has 9 seeds of its own and 3 (0, 5, 10) that all have
    added = [version for version, _, new in lines if new]
    assert len(added) == len(set(added)) == corpus.head == len(corpus.at("latest")) == 3 * 9 + 3


def test_kills_of_compact_expire_and_gc_lose_nothing(tmp_path):
    Corpus(tmp_path, create=True)
    chance = random.Random(5)
    acknowledged = []
    for turn in range(4):
        status, lines = finish(start(tmp_path, 1000 * turn + 1, 50, chance.randrange(20_000, 100_000), "upkeep"))
        assert status == -signal.SIGKILL
        acknowledged += lines
        corpus = Corpus(tmp_path)
        head = corpus.at("latest")
        for version, seed, _ in acknowledged:
            assert seen(seed).hash in corpus.at(version).hashes
            same(head.read(seen(seed).hash), seen(seed))
        assert fsck(corpus) == []
    compact(corpus)
    expire(corpus, 1)
    gc(corpus, grace=0, dry_run=False)
    assert fsck(corpus) == [] and len(list((tmp_path / "segments").iterdir())) == 2  # with cameras and without
    assert {"append", "compact", "expire"} == {line["op"] for line in corpus.log()}


if __name__ == "__main__":
    write(*sys.argv[1:])
