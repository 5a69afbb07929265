"""Checkpoints of the log: a reader gets the same from them as from the log, and they may be lost or damaged at any
time."""

import shutil

import numpy as np
import pytest
from corpus_cases import episode, same

from flywheel.corpus import Corpus, CorpusError, pages, state
from flywheel.corpus.maintenance import compact, expire, fsck, gc


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    monkeypatch.setattr(state, "BASE", 2)


@pytest.fixture
def corpus(tmp_path):
    """40 versions: appends, tombstones, restored ones, a compact and an expire; the last entries are in no
    checkpoint."""
    corpus = Corpus(tmp_path / "corpus", create=True)
    for number in range(18):
        corpus.append([episode(2 * number, task=("lift", "push")[number % 2]), episode(2 * number + 1, success=None)])
        if number % 3 == 1:
            corpus.tombstone([episode(2 * number + 1, success=None).hash], f"bad {number}")
        if number % 6 == 4:
            corpus.append([episode(2 * number + 1, success=None)], restore=True)
    compact(corpus)
    expire(corpus, 1)
    while corpus.head < 39:
        corpus.append([episode(100 + corpus.head)])
    return corpus


def files(corpus):
    return sorted(path.name for path in (corpus.path / "checkpoints").iterdir())


def seen(corpus):
    """Everything that a reader can ask of the log."""
    found = []
    for number in range(corpus.head + 1):
        version = corpus.at(number)
        table = version.table
        known = () if number < corpus.head else ("task", "origin", "seed", "success", "terminated", "fps", "length", "return_", "meta")  # fmt: skip
        columns = {name: table[name].tolist() for name in ("hash", "added", *known)}
        found.append((version.id, version.hashes, version.rows.tolist(), version.segments(), columns))
    return found, corpus.log(), corpus.history.state.expired(), corpus.history.state.tip


def test_a_reader_gets_the_same_with_and_without_checkpoints(corpus):
    expected = seen(corpus)
    assert [name[:17] for name in files(corpus)][-1] == "00000037-00000038" and corpus.head == 39
    assert seen(Corpus(corpus.path)) == expected
    shutil.rmtree(corpus.path / "checkpoints")
    again = Corpus(corpus.path)
    assert seen(again) == expected
    assert [name[:17] for name in files(again)] == ["00000001-00000032", "00000033-00000034", "00000035-00000036", "00000037-00000038"]  # fmt: skip
    mapped = Corpus(corpus.path)
    assert mapped.head == 39 and [block.span for block in mapped.history.state.blocks] == [32, 2, 2, 2]
    assert seen(mapped) == expected and fsck(mapped) == []
    with pytest.raises(CorpusError, match=r"was removed in version 3 \('bad 1'\)"):
        mapped.tombstone([episode(3, success=None).hash[:9]], "again")
    refused = mapped.append([episode(3, success=None), episode(4), episode(9, success=None)])
    assert refused.refused == [(episode(3, success=None).hash, "bad 1")] and len(refused.duplicates) == 2


def test_columns_come_from_the_checkpoint_and_where_it_lacks_them_from_the_segment(corpus):
    head = Corpus(corpus.path).at("latest")
    expected = {name: head.table[name].tolist() for name in head.table if name not in ("meta", "cameras")}
    segments = set(head.segments())
    shutil.rmtree(corpus.path / "segments")
    fresh = Corpus(corpus.path).at("latest").select(np.arange(20))
    assert {name: fresh.table[name].tolist() for name in expected} == {k: v[:20] for k, v in expected.items()}
    assert len(fresh.select(task="lift", success=True)) == sum(
        task == "lift" and done == 1 for task, done in zip(expected["task"][:20], expected["success"], strict=False)
    )
    shutil.rmtree(corpus.path / "checkpoints")  # made anew without the segments, a checkpoint knows less and says so
    for _ in range(2):
        with pytest.raises(CorpusError, match=f"({'|'.join(segments)}).*is missing"):
            _ = Corpus(corpus.path).at("latest").table["task"]
    assert Corpus(corpus.path).at("latest").hashes == head.hashes


@pytest.mark.parametrize("where", ["header", "first page", "crcs", "cut", "empty"])
def test_a_damaged_checkpoint_is_found_named_and_made_anew(corpus, where):
    shutil.rmtree(corpus.path / "checkpoints")
    expected = seen(Corpus(corpus.path))
    victim = corpus.path / "checkpoints" / files(corpus)[0]
    data = bytearray(victim.read_bytes())
    size = 8 + int.from_bytes(data[:8], "little")
    if where in ("cut", "empty"):
        data = data[:-5] if where == "cut" else b""
    else:
        columns, _ = pages.decode(bytes(data), victim.name, lambda: None)
        at = {"header": 20, "first page": size, "crcs": len(data) - 1}[where]
        if where == "first page":
            at = bytes(data).index(columns["hash"].all().tobytes()) + 3
        elif where == "crcs":
            at = bytes(data).index(
                np.concatenate([column.crcs for _, column in sorted(columns.load().items())]).tobytes()
            )
        data[at] ^= 1
    victim.write_bytes(data)
    assert [finding.where for finding in fsck(Corpus(corpus.path))] == [f"checkpoints/{victim.name}"]
    fresh = Corpus(corpus.path)
    if where == "first page":  # found when it is read: the checkpoint goes, and the second time all is well
        with pytest.raises(CorpusError, match=r"the bytes of this checkpoint changed on disk.*do it again"):
            seen(fresh)
        assert not victim.exists()
    assert seen(fresh) == seen(Corpus(corpus.path)) == expected
    assert files(corpus) and fsck(Corpus(corpus.path)) == []


def test_a_log_that_went_back_and_another_way_is_not_read_from_the_old_checkpoints(corpus, tmp_path):
    copy = shutil.copytree(corpus.path, tmp_path / "copy")
    for number in range(30, 40):
        (copy / f"log/0000/{number:08d}.json").unlink()
    older = Corpus(copy)
    assert older.head == 29 and older.at(29).id == corpus.at(29).id
    for number in range(12):
        older.append([episode(500 + number)])
    fresh = Corpus(copy)
    assert fresh.head == 41 and fresh.at("latest").hashes == older.at("latest").hashes
    assert {finding.where[:12] for finding in fsck(fresh)} <= {"checkpoints/"}
    for version in (20, 29, 41):
        assert fresh.at(version).id == older.at(version).id


def test_each_row_is_written_a_few_times_and_old_checkpoints_go(corpus):
    while corpus.head < 130:
        corpus.append([episode(1000 + corpus.head)])
    assert len(files(corpus)) <= 4 * 2 + 4 + 3
    opened = Corpus(corpus.path)
    assert opened.head == 130 and [block.span for block in opened.history.state.blocks] == [128, 2]


def test_read_only_storage_makes_no_checkpoint_and_reads_all_the_same(corpus, monkeypatch):
    expected = seen(corpus)
    shutil.rmtree(corpus.path / "checkpoints")

    def refuse(*_):
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr("flywheel.store.write_atomic", refuse)
    reader = Corpus(corpus.path)
    assert seen(reader) == expected and not list((corpus.path / "checkpoints").glob("*"))
    same(reader.at("latest").read(episode(0).hash), episode(0))


@pytest.mark.slow
def test_two_hashes_with_the_same_first_bytes_and_many_pages():
    """2 * 65,536 hashes, of which groups share their first 8 bytes, are found in a block of several pages of keys."""
    random = np.random.default_rng(0)
    hashes = random.integers(0, 256, (70_000, 32), dtype=np.uint8)
    hashes[:30_000, :8] = hashes[0, :8]
    text = [row.tobytes().hex() for row in hashes]
    held = state.State("id", lambda *_: None)
    part = {"segment": "0" * 26, "sha256": "ab" * 32, "hashes": text}
    for version in (1, 2):
        half = {**part, "hashes": text[:35_000] if version == 1 else text[35_000:]}
        held.apply({"version": version, "op": "append", "add": [half], "remove": []}, f"{version}")
    assert len(held.blocks) == 1 and len(held.blocks[0].columns["fence"]) == 9
    pick = random.integers(0, 70_000, 300)
    assert held.newest([text[i] for i in pick]).tolist() == pick.tolist()
    assert held.newest(["00" * 32, "ff" * 32]).tolist() == [-1, -1]
    assert held.starting(text[40_000][:10]) == {text[40_000]: 40_000}
    assert len(held.starting(text[0][:16])) == 30_000


def test_gc_leaves_the_checkpoints(corpus):
    gc(corpus, grace=0, dry_run=False)
    assert Corpus(corpus.path).at("latest").id == corpus.at("latest").id and fsck(corpus) == []


def test_a_corpus_that_nobody_holds_lets_its_maps_go_at_once(tmp_path):
    import gc
    import weakref

    corpus = Corpus(tmp_path / "corpus", create=True)
    for seed in range(4):
        corpus.append([episode(seed)])
    fresh = Corpus(tmp_path / "corpus")
    assert len(fresh.at(2)) == 2 and fresh.history.state.blocks[0].file
    held = weakref.ref(fresh.history.state.blocks[0])
    gc.disable()
    try:
        del fresh
        assert held() is None
    finally:
        gc.enable()
