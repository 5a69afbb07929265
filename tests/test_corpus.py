"""The corpus: versions, duplicates, tombstones, tags, selections, and episodes that come back equal to the last bit."""

import hashlib
import subprocess
import sys
import tempfile

import numpy as np
import pytest
from corpus_cases import episode, same
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from flywheel.corpus import Corpus, CorpusError
from flywheel.episode import Episode, EpisodeError


@pytest.fixture
def corpus(place):
    return Corpus(place, create=True)


def test_content_hash_by_hand():
    # obs.state [2, 1] float32, action [1, 1] float32, reward [1] float32, terminated bool, in the order of their names
    one = Episode(
        "t", {"state": np.array([[1], [2]], "f4")}, np.array([[3]], "f4"), np.array([4], "f4"), True, None, "a"
    )
    text = b"action <f4 (1, 1)\n" + b"\x00\x00\x40\x40"
    text += b"obs.state <f4 (2, 1)\n" + b"\x00\x00\x80\x3f\x00\x00\x00\x40"
    text += b"reward <f4 (1,)\n" + b"\x00\x00\x80\x40"
    text += b"terminated |b1 (1,)\n" + b"\x01" + b"t"
    assert one.hash == hashlib.sha256(text).hexdigest()
    assert one.replace(origin="b", seed=5, success=True, meta={"file": "x"}).hash == one.hash
    assert one.replace(task="u").hash != one.hash


def test_an_append_is_a_version_and_the_same_again_is_none(corpus):
    assert corpus.head == 0 and len(corpus.at("latest")) == 0
    first = corpus.append([episode(1), episode(2), episode(1)], message="two")
    assert (first.version, len(first.added), first.duplicates) == (1, 2, [episode(1).hash])
    again = corpus.append([episode(2, origin="copy:of"), episode(1)])
    assert (again.version, again.added, len(again.duplicates)) == (1, [], 2)
    assert corpus.append([episode(3)]).version == 2
    assert corpus.at(1).hashes == first.added == [episode(1).hash, episode(2).hash]
    assert len(corpus.at("2")) == len(Corpus(corpus.path).at("latest")) == 3
    assert [line["added"] for line in corpus.log()] == [2, 1] and corpus.log()[0]["message"] == "two"


def test_version_id_names_the_content_and_not_order_time_or_place(tmp_path):
    one, two = (Corpus(tmp_path / name, create=True) for name in "ab")
    one.append([episode(1), episode(2)])
    two.append([episode(2)], time="1999-01-01T00:00:00Z")
    two.append([episode(1)], author="somebody")
    assert one.at(1).id == two.at(2).id != two.at(1).id
    assert one.at(1).canonical().hashes == two.at(2).canonical().hashes
    by_hand = hashlib.sha256("\n".join(sorted([episode(1).hash, episode(2).hash])).encode()).hexdigest()
    assert one.at(1).id == by_hand
    assert one.at(1).select(seed=2).id == two.at(1).id


def test_tombstone_hides_refuses_and_restore_brings_back(corpus):
    corpus.append([episode(seed) for seed in range(4)])
    gone = episode(2).hash
    assert corpus.tombstone([gone[:10]], "gripper was loose", author="ann") == 2
    assert gone in corpus.at(1).hashes and gone not in corpus.at(2).hashes
    refused = corpus.append([episode(2), episode(9)])
    assert refused.refused == [(gone, "gripper was loose")] and refused.added == [episode(9).hash]
    with pytest.raises(CorpusError, match=r"was removed in version 2 \('gripper was loose'\)"):
        corpus.tombstone([gone], "again")
    back = corpus.append([episode(2)], restore=True)
    assert back.added == [gone]
    assert [gone in corpus.at(n).hashes for n in (1, 2, 3, 4)] == [True, False, False, True]
    same(corpus.at(4).read(gone), episode(2))
    assert len(Corpus(corpus.path).at(4)) == 5


def test_tombstone_needs_one_living_episode_and_a_reason(corpus):
    corpus.append([episode(1)])
    with pytest.raises(CorpusError, match="at least 6 digits"):
        corpus.tombstone([episode(1).hash[:5]], "why")
    with pytest.raises(CorpusError, match="is in no version"):
        corpus.tombstone(["0123456789"], "why")
    with pytest.raises(CorpusError, match="message is empty"):
        corpus.tombstone([episode(1).hash], " ")
    assert corpus.head == 1


def test_tags_are_made_once(corpus):
    corpus.append([episode(1)])
    corpus.append([episode(2)])
    assert corpus.tag("clean-1", 1) == 1
    assert corpus.tag("clean-1", 1) == 1
    assert corpus.tag("v2.final") == 2
    with pytest.raises(CorpusError, match="version 1 already"):
        corpus.tag("clean-1", 2)
    for bad in ("latest", "null", "true", "false", "7", "Clean", "a/b", "", "a,b"):
        with pytest.raises(CorpusError, match="expected lower-case"):
            corpus.tag(bad, 1)
    assert corpus.tags() == {"clean-1": 1, "v2.final": 2}
    assert corpus.at("clean-1").number == 1 and corpus.log()[0]["tags"] == ["clean-1"]


def test_errors_say_what_there_is(corpus, tmp_path):
    with pytest.raises(CorpusError, match=r"no version '1'\. There are: no version yet"):
        corpus.at(1)
    corpus.append([episode(1)])
    corpus.tag("good", 1)
    for ref in (2, "2", "godo", "-1", "latst", "../format"):
        with pytest.raises(CorpusError, match=r"There are: versions 1 to 1; latest; tags: good \(1\)"):
            corpus.at(ref)
    with pytest.raises(CorpusError, match=r"there is no corpus here.*flywheel ingest"):
        Corpus(tmp_path / "nowhere")
    with pytest.raises(CorpusError, match=r"'000000' matches 0 of the 1 episodes"):
        corpus.at(1).read("000000")
    with pytest.raises(ValueError, match=r"no column 'tsak'\. There are: added"):
        corpus.at(1).select(tsak="lift")


def test_select_and_table(corpus):
    corpus.append(
        [
            episode(1, steps=3),
            episode(2, steps=4, success=False, origin="policy:9bd1c0"),
            episode(3, steps=5, task="push", success=None),
            episode(4, steps=6, origin="human:spacemouse", meta={"demo": "demo_4"}).replace(seed=None),
        ]
    )
    version = corpus.at("latest")
    table = version.table
    assert table["length"].tolist() == [3, 4, 5, 6] and table["seed"].tolist() == [1, 2, 3, -1]
    assert table["success"].tolist() == [1, 0, -1, 1] and table["meta"][3] == {"demo": "demo_4"}
    assert table["return_"][0] == episode(1, steps=3).reward.sum(dtype=np.float64)

    def lengths(selection):
        return selection.table["length"].tolist()

    assert lengths(version.select(origin="human:*")) == [3, 5, 6]
    assert lengths(version.select(origin=["policy:*", "human:s*"], success=True)) == [6]
    assert lengths(version.select(success=None)) == [5]
    assert lengths(version.select(terminated=False)) == [4, 5]
    assert lengths(version.select(seed=[1, 3])) == [3, 5]
    assert lengths(version.select(lambda table: table["length"] > 3, task="lift")) == [4, 6]
    assert lengths(version.select(np.array([3, 0]))) == [6, 3]
    assert lengths(version.select(task="push").select(success=True)) == []
    assert len(version.select(task="nothing")) == 0 and list(version.select(task="nothing")) == []
    assert [e.seed for e in version.select(task="lift")] == [1, 2, None]
    with pytest.raises(ValueError, match=r"a mask of \[2\] for 4 episodes"):
        version.select(np.array([True, False]))


def test_diff_counts_what_changed(corpus):
    corpus.append([episode(1, steps=3), episode(2, steps=4)])
    corpus.append([episode(3, steps=5, task="push", success=None, origin="policy:x")])
    corpus.tombstone([episode(1, steps=3).hash], "bad")
    changed = corpus.diff(1, "latest")
    assert changed["added"] == [episode(3, steps=5, task="push", success=None).hash]
    assert changed["removed"] == [episode(1, steps=3).hash]
    added = {"episodes": 1, "steps": 5, "task": {"push": 1}, "origin": {"policy:x": 1}, "success": {"unknown": 1}}
    assert changed["counts"]["added"] == added
    assert changed["counts"]["removed"]["success"] == {"true": 1}
    assert corpus.diff(2, 2)["counts"]["added"]["episodes"] == 0


def test_episodes_of_other_schemas_live_in_one_version(corpus):
    wide = episode(2, width=5, extras={"chain": np.ones((4, 2, 3), np.float16)}, steps=4)
    longer = episode(3, extras={"chain": np.ones((5, 2, 3), np.float16)}, steps=4)
    assert corpus.append([episode(1), wide, longer, episode(4)]).version == 1
    for one in (episode(1), wide, longer, episode(4)):
        same(corpus.at(1).read(one.hash), one)
    assert len(corpus.files.children("segments")) == 3


def test_a_large_append_is_cut_into_segments_of_bounded_size(corpus, monkeypatch):
    monkeypatch.setattr("flywheel.corpus.SEGMENT_BYTES", 200)
    made = [episode(seed) for seed in range(12)]
    assert corpus.append(iter(made)).version == 1
    assert len(corpus.history.state.segments()) > 3
    for one, back in zip(made, Corpus(corpus.path).at(1), strict=True):
        same(one, back)


def test_a_bad_episode_adds_nothing_and_is_named(corpus):
    bad = episode(2, meta={"demo": "demo_2"})
    bad.obs["state"][1] = np.nan
    with pytest.raises(EpisodeError, match=r"demo_2: obs\['state'\] is not finite at row 1"):
        corpus.append([episode(1), bad])
    for more, says in (
        ({"extras": {"text": np.array(["a", "b", "c"])}}, "extras.text has dtype <U1"),
        ({"extras": {"a/b": np.zeros(3)}}, "key 'a/b'"),
        ({"meta": {"x": np.zeros(2)}}, "meta is not JSON"),
    ):
        with pytest.raises(EpisodeError, match=says):
            corpus.append([episode(3, steps=3, **more)])
    assert corpus.head == 0


def test_statistics_merge_to_those_of_all_rows(corpus):
    made = [episode(seed) for seed in range(9)]
    corpus.append(made[:4])
    corpus.append(made[4:])
    for field, rows in (
        ("obs.state", np.concatenate([one.obs["state"] for one in made])),
        ("action", np.concatenate([one.action for one in made])),
    ):
        found = corpus.at("latest").statistics(field)
        rows = rows.astype(np.float64)
        assert found["count"] == len(rows)
        np.testing.assert_allclose(found["mean"], rows.mean(axis=0), rtol=1e-12)
        np.testing.assert_allclose(found["std"], rows.std(axis=0), rtol=1e-12)
        assert (found["min"] == rows.min(axis=0)).all() and (found["max"] == rows.max(axis=0)).all()
    with pytest.raises(CorpusError, match=r"There are: obs\.state, action, reward"):
        corpus.at(1).statistics("obs.stat")


def test_changed_bytes_are_named_and_never_served(corpus):
    corpus.append([episode(1)])
    (shard,) = (name for name in corpus.files.names("segments") if "/action/c" in name)
    data = bytearray(corpus.files.read(shard))
    data[len(data) // 2] ^= 1
    corpus.files.remove(shard)
    corpus.files.replace(shard, bytes(data))
    with pytest.raises(CorpusError, match=r"action.*the bytes changed on disk"):
        Corpus(corpus.path).at(1).read(0)
    entry = "log/0000/00000001.json"
    corpus.files.replace(entry, corpus.files.read(entry).replace(b'"message":""', b'"message":"x"'))
    with pytest.raises(CorpusError, match="version 1 is damaged"):
        Corpus(corpus.path).at(1)


def test_the_log_goes_on_in_the_next_folder(corpus, monkeypatch):
    monkeypatch.setattr("flywheel.corpus.log.FOLDER", 3)
    for seed in range(7):
        assert corpus.append([episode(seed)]).version == seed + 1
    assert sorted(corpus.files.children("log")) == ["0000", "0001", "0002"]
    assert Corpus(corpus.path).at("latest").id == corpus.at(7).id


def test_a_look_up_imports_neither_zarr_nor_torch(corpus):
    corpus.append([episode(1)])
    program = (
        "import sys; from flywheel.corpus import Corpus; import flywheel.runs.names\n"
        "version = Corpus(sys.argv[1]).at('latest'); print(version.id, len(version.table['task']))\n"
        "print(sorted({'zarr', 'torch', 'h5py', 'hydra'} & set(sys.modules)))"
    )
    found = subprocess.run(
        [sys.executable, "-c", program, str(corpus.path)], capture_output=True, text=True, check=True
    )
    assert found.stdout == f"{corpus.at(1).id} 1\n[]\n"


DTYPES = st.sampled_from(["<f4", "<f8", "<f2", "<i4", "<i8", "|u1", "|b1", "<u2"])
KEYS = st.text("abcxyz_.0é", min_size=1, max_size=6).filter(lambda key: key[0] != ".")


@st.composite
def episodes(draw):
    steps = draw(st.integers(1, 5))

    def array(rows, finite, dtype=None):
        dtype = np.dtype(draw(DTYPES) if dtype is None else dtype)
        shape = (*rows, *draw(st.lists(st.integers(0, 3), max_size=2)))
        numbers = hnp.from_dtype(dtype, allow_nan=not finite, allow_infinity=not finite)
        return draw(hnp.arrays(dtype, shape, elements=numbers))

    return Episode(
        task=draw(st.text("ab-é", min_size=1, max_size=4)),
        obs={key: array((steps + 1,), True) for key in draw(st.lists(KEYS, min_size=1, max_size=2, unique=True))},
        action=draw(hnp.arrays(np.float32, (steps, draw(st.integers(0, 3))), elements=st.floats(-1, 1, width=32))),
        reward=draw(hnp.arrays(np.float32, (steps,), elements=st.floats(-1, 1, width=32))),
        terminated=draw(st.booleans()),
        success=draw(st.sampled_from([True, False, None])),
        origin=draw(st.text(max_size=6)),
        seed=draw(st.none() | st.integers(-(2**63) + 1, 2**63 - 1)),
        fps=draw(st.floats(0, 1000)),
        extras={
            key: array((steps + draw(st.integers(0, 1)),), False)
            for key in draw(st.lists(KEYS, max_size=2, unique=True))
        },
        start={key: array((), False) for key in draw(st.lists(KEYS, max_size=2, unique=True))},
        meta=draw(st.dictionaries(st.text(max_size=4), st.none() | st.integers() | st.text(max_size=4), max_size=3)),
    )


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(episodes(), min_size=1, max_size=3, unique_by=lambda episode: episode.hash))
def test_any_episode_comes_back_equal_to_the_last_bit(made):
    with tempfile.TemporaryDirectory() as folder:
        added = Corpus(folder, create=True).append(made)
        assert added.added == [one.hash for one in made]
        version = Corpus(folder).at(added.version)
        for one in made:
            same(version.read(one.hash), one)
        assert sorted(version.table["hash"].tolist()) == sorted(added.added)
