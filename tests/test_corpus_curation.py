"""Curation as data: queries, views that never move, splits that never move, what changed between versions."""

import json
import sys
from dataclasses import replace

import numpy as np
import pytest
import toy
from corpus_cases import episode
from hypothesis import given, settings
from hypothesis import strategies as st
from small import SMALL, call

from flywheel import selection
from flywheel.args import Task
from flywheel.cli import app, config
from flywheel.corpus import Corpus, CorpusError, compare, maintenance, quality, query, splits, views


@pytest.fixture
def corpus(tmp_path):
    held = Corpus(tmp_path / "corpus", create=True)
    held.append([episode(1, steps=3), episode(2, steps=4, success=False), episode(3, steps=5, origin="policy:a")])
    held.append([episode(4, steps=6, task="push", success=None, meta={"demo": "d"}).replace(seed=None)])
    return held


def table(version, folder):
    return query.table(version, quality.measured(version, folder))


def test_a_query_sees_columns_quality_and_what_is_unknown(corpus, tmp_path):
    episodes = table(corpus.at("latest"), tmp_path)
    found = query.ask(
        episodes, "SELECT task, count(*) AS n, sum(length) AS steps FROM episodes GROUP BY task ORDER BY task"
    )
    assert found.to_pylist() == [{"task": "lift", "n": 3, "steps": 12}, {"task": "push", "n": 1, "steps": 6}]
    (push,) = query.ask(episodes, "SELECT * FROM episodes WHERE task = 'push'").to_pylist()
    assert push["success"] is push["seed"] is push["tracking"] is None and json.loads(push["meta"]) == {"demo": "d"}
    assert push["hash"] == corpus.at(2).hashes[3] and push["added"] == 2 and push["terminated"] is False
    assert push["jerk"] == quality.measured(corpus.at(2), tmp_path)["jerk"][3] and 0 <= push["bucket"] < 1
    assert query.ask(table(Corpus(tmp_path / "empty", create=True).at(0), tmp_path), "FROM episodes").num_rows == 0


def test_a_query_finds_recordings_whose_streams_are_apart(corpus, tmp_path):
    late = {"file": "a", "skew_s": {"/tool": [0.01, 0.02], "/joints": [0.03, 0.2]}}
    corpus.append([episode(8, meta=late)])
    episodes = table(corpus.at("latest"), tmp_path)
    (found,) = query.ask(episodes, "SELECT hash, skew FROM episodes WHERE skew > 0.1").to_pylist()
    assert found == {"hash": episode(8).hash, "skew": 0.2}
    assert query.ask(episodes, "FROM episodes WHERE skew IS NULL").num_rows == 4
    (row,) = [r for r in compare.stats(corpus.at(3), quality.measured(corpus.at(3), tmp_path)) if r["task"] == "*"]
    assert row["skew"] == 0.2


def test_a_query_says_what_is_wrong_and_reaches_no_file(corpus, tmp_path):
    episodes = table(corpus.at("latest"), tmp_path)
    with pytest.raises(CorpusError, match=r"(?s)lenght.*Columns of episodes: hash, task, origin"):
        query.ask(episodes, "SELECT lenght FROM episodes")
    secret = tmp_path / "secret.csv"
    secret.write_text("a\n1\n")
    for sql in (f"SELECT * FROM '{secret}'", f"COPY episodes TO '{tmp_path}/out.csv'", f"ATTACH '{tmp_path}/x.db'"):
        with pytest.raises(CorpusError, match="disabled by configuration|does not exist"):
            query.ask(episodes, sql)
    assert not (tmp_path / "out.csv").exists()


def test_without_duckdb_it_is_said_how_to_get_it(corpus, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "duckdb", None)
    with pytest.raises(CorpusError, match="pip install duckdb"):
        query.ask(table(corpus.at(1), tmp_path), "FROM episodes")


def view(corpus, name, where, folder, ref="latest"):
    version = corpus.at(ref)
    return views.name(corpus, name, version, query.passing(table(version, folder), where), where)


def test_a_view_is_named_once_and_never_moves(corpus, tmp_path):
    named = view(corpus, "good", "success AND length < 5 -- short", tmp_path, 1)
    assert named.hashes == [episode(1, steps=3).hash] and (named.number, named.ref) == (1, "good")
    corpus.append([episode(7, steps=2)])
    corpus.tombstone([named.hashes[0]], "bad")
    again = Corpus(corpus.path).at("good")
    assert again.id == named.id and again.canonical().select(success=True).ref == "good"
    assert view(corpus, "good", "success AND length < 5 -- short", tmp_path, 1).id == named.id  # the same once more
    for where, ref in (("success", 1), ("success AND length < 5 -- short", 3), ("length = 3", 1)):
        with pytest.raises(CorpusError, match=r"'good' is a view of version 1 already"):
            view(corpus, "good", where, tmp_path, ref)
    with pytest.raises(CorpusError, match="'good' is a view of version 1 already"):
        corpus.tag("good", 1)
    with pytest.raises(CorpusError, match=r"none of the 3 episodes passes 'length > 99'"):
        view(corpus, "none", "length > 99", tmp_path, 1)
    assert corpus.tags() == {"good": 1}


def test_a_view_is_what_was_chosen_wherever_the_corpus_lies(place):
    corpus = Corpus(place, create=True)
    corpus.append([episode(seed, steps=2) for seed in range(21)])
    version, random = corpus.at(1), np.random.default_rng(0)
    for number in range(8):
        keep = random.random(21) < 0.4
        keep[number * 3 - 1] = True  # at the end, and at both sides of a byte
        views.name(corpus, f"v{number}", version, keep, "by hand")
        found = Corpus(place).at(f"v{number}")
        assert found.hashes == [one for one, kept in zip(version.hashes, keep, strict=True) if kept]
    assert maintenance.fsck(corpus) == [] and set(corpus.tags().values()) == {1}


def test_a_view_of_a_view_and_a_second_name(corpus, tmp_path):
    view(corpus, "lift", "task = 'lift'", tmp_path)
    short = view(corpus, "short", "length <= 4", tmp_path, "lift")
    assert short.hashes == corpus.at(2).hashes[:2]
    assert corpus.tag("kept", "short") == 2
    assert corpus.at("kept").id == short.id and corpus.at(2).id != short.id
    corpus.tag("all", 2)
    assert len(corpus.at("all")) == 4 and corpus.at("all").ref == 2


def test_a_view_keeps_its_version_and_one_that_does_not_fit_is_found(corpus, tmp_path):
    view(corpus, "good", "success", tmp_path, 1)
    maintenance.compact(corpus)
    maintenance.expire(corpus, 1)
    assert [one.hash for one in corpus.at("good")] == corpus.at("good").hashes
    assert maintenance.fsck(corpus) == []
    entry = json.loads(corpus.files.read("tags/good.json"))
    for bits in ("", "eJxjAAAAAQAB", entry["view"]["bits"][::-1]):
        entry["view"]["bits"] = bits
        corpus.files.replace("tags/good.json", json.dumps(entry).encode())
        with pytest.raises(CorpusError, match="view 'good' does not fit version 1"):
            corpus.at("good")
        assert [found.where for found in maintenance.fsck(corpus)] == ["tags/good.json"]


HASHES = st.lists(st.integers(0, 2**256 - 1).map(lambda number: f"{number:064x}"), min_size=1, max_size=30, unique=True)


@settings(max_examples=50, deadline=None)
@given(HASHES, st.data())
def test_an_episode_never_changes_its_bucket(hashes, data):
    whole = dict(zip(hashes, splits.bucket(hashes), strict=True))
    some = data.draw(st.permutations(hashes))[: data.draw(st.integers(0, len(hashes)))]
    assert splits.bucket(some).tolist() == [whole[one] for one in some]
    assert all(0 <= number < 1 for number in whole.values())


def test_a_split_stays_as_the_corpus_grows_and_shrinks(tmp_path):
    corpus, side = Corpus(tmp_path / "corpus", create=True), {}
    for turn in range(6):
        corpus.append([episode(100 * turn + number, steps=2) for number in range(40)])
        if turn == 3:
            corpus.tombstone(corpus.at("latest").hashes[::3], "thinned")
        version = corpus.at("latest")
        parts = splits.split(version, {"train": 0.8, "val": 0.2})
        assert sum(map(len, parts.values())) == len(version)
        for name, part in parts.items():
            for one in part.hashes:
                assert side.setdefault(one, name) == name
    assert 0.7 < len(parts["train"]) / len(version) < 0.9
    other = splits.split(version, {"train": 0.8, "val": 0.2}, salt="b")["train"]
    assert other.id != parts["train"].id
    for wrong in ({}, {"train": 0.9}, {"train": 1.5, "val": -0.5}):
        with pytest.raises(ValueError, match="expected positive numbers with sum 1"):
            splits.split(version, wrong)


def both(version, folder):
    return version, quality.measured(version, folder)


def test_stats_by_hand(corpus, tmp_path):
    rows = compare.stats(*both(corpus.at("latest"), tmp_path))
    assert [(row["task"], row["origin"], row["episodes"]) for row in rows] == [
        ("lift", "human:vr", 2), ("lift", "policy:a", 1), ("push", "human:vr", 1), ("*", "*", 4)
    ]  # fmt: skip
    assert (rows[0]["success"], rows[0]["failure"], rows[0]["unknown"], rows[0]["steps"]) == (1, 1, 0, 7)
    assert rows[-1]["length"] == [3, 4.5, 6] and rows[-1]["unknown"] == 1 and rows[-1]["tracking"] is None
    found = quality.measured(corpus.at(2), tmp_path)["idle"]
    assert rows[0]["idle"] == found[:2].mean()
    (nothing,) = compare.stats(*both(corpus.at(0), tmp_path))
    assert nothing["episodes"] == 0


def test_distance_by_hand():
    assert compare.distance(np.array([1, 2, 3, 4]), np.array([1, 2, 3, 4])) == 0
    assert compare.distance(np.array([1, 2]), np.array([3, 4, 5])) == 1
    assert compare.distance(np.array([1, 2, 3, 4]), np.array([3, 4, 5, 6])) == 0.5  # at 2: 1/2 and 0; at 4: 1 and 1/2


def test_changes_by_hand_largest_first(tmp_path):
    corpus = Corpus(tmp_path / "corpus", create=True)
    corpus.append([episode(seed, steps=8) for seed in range(6)])
    corpus.append([episode(seed, steps=8, success=False, origin="policy:x") for seed in (10, 11)])
    rows = compare.changes(both(corpus.at(1), tmp_path), both(corpus.at(2), tmp_path))
    found = {(row["by"], row["value"]): (row["a"], row["b"], row["size"]) for row in rows}
    assert found["outcome", "failure"] == found["source", "policy"] == (0.0, 0.25, 0.25)
    assert found["origin", "human:vr"] == (1.0, 0.75, 0.25)
    assert not any(by in ("task", "length") for by, _ in found)  # one task, one length: nothing changed there
    assert [row["size"] for row in rows] == sorted((row["size"] for row in rows), reverse=True)

    corpus.append([episode(seed, steps=2, task="push") for seed in range(20, 28)])
    rows = compare.changes(both(corpus.at(2), tmp_path), both(corpus.at(3), tmp_path))
    assert [(row["task"], row["by"], row["value"], row["b"]) for row in rows] == [
        ("*", "task", "lift", 0.5), ("*", "task", "push", 0.5)
    ]  # fmt: skip
    assert compare.changes(both(corpus.at(0), tmp_path), both(corpus.at(1), tmp_path))[0]["size"] == 1.0


def test_the_command_line_curates_and_a_view_is_a_corpus_for_every_stage(copied, capsys, tmp_path):
    copy, at = copied
    held = copy.corpus()
    rows = call("corpus", "stats", "at=1", at[3], capsys=capsys)[1]["stats"]
    assert rows[-1]["episodes"] == len(held.at(1)) and (copy.cache / f"quality-{quality.REVISION}").is_dir()
    sql = "SELECT count(*) AS n FROM episodes WHERE success = true"
    (row,) = call("corpus", "query", sql, "at=1", at[3], capsys=capsys)[1]["rows"]
    good = held.at(1).select(success=True)
    assert row["n"] == len(good)
    assert app.main(["corpus", "query", "SELECT task, idle FROM episodes LIMIT 2", at[3]]) == 0
    assert capsys.readouterr().out.splitlines()[0].split() == ["task", "idle"]
    code, out = call("corpus", "view", "good", "success = true", "at=1", at[3], capsys=capsys)
    assert (code, out["id"], out["metrics"]) == (0, good.id, {"episodes": len(good), "of": len(held.at(1))})
    code, out = call(
        "export", "corpus=good", f"out={tmp_path / 'out'}", "format=robomimic_hdf5", *at[:4], capsys=capsys
    )
    assert (code, out["inputs"]["corpus"], out["metrics"]["episodes"]) == (0, "good", len(good))

    found = call("corpus", "diff", "1", "latest", at[3], capsys=capsys)[1]["diff"]
    assert any(c["by"] in ("source", "origin") and c["size"] > 0.2 for c in found["changes"][:2])
    (score, *_) = found["policies"]["a"]
    assert score["run"].startswith("pretrain/") and score["checkpoint"].startswith("policy/") and score["success"] >= 0
    assert any(score["scored"] == "evaluate" for score in found["policies"]["a"])
    (first, *_) = call("corpus", "stats", "field=action", "at=good", at[3], capsys=capsys)[1]["columns"]
    actions = np.concatenate([one.action[:, 0] for one in good]).astype(float)
    assert (first["count"], first["max"]) == (len(actions), actions.max())
    assert abs(first["q50"] - np.quantile(actions, 0.5, method="lower")) <= 0.01 * abs(first["q50"]) + 1e-9
    assert app.main(["corpus", "query", at[3]]) == app.main(["corpus", "view", "good", at[3]]) == 2
    assert call("corpus", "query", "SELECT nothing", at[3], capsys=capsys)[0] == 1


def test_pretraining_draws_from_views_by_share(copied, capsys):
    copy, at = copied
    held, most = copy.corpus(), ["score_episodes=0", "algorithm.cadence.improve=4", "score_every=4", *at]
    for name, where in (("won", "success = true"), ("lost", "NOT success")):
        assert call("corpus", "view", name, where, at[3], capsys=capsys)[0] == 0
    words = ["pretrain", "data={won: 0.75, lost: 0.25}", "batch_size=8", *most]
    code, out = call(*words, capsys=capsys)
    assert (code, out["inputs"]["corpus"]) == (0, "0.75 won + 0.25 lost")
    both = {*held.at("won").hashes, *held.at("lost").hashes}
    assert out["metrics"]["demonstrations"] == len(both)
    assert call(*words, capsys=capsys)[1]["status"] == "noop"
    assert call("replay", out["run"], at[3], capsys=capsys)[1]["metrics"]["different"] == 0
    other = call("pretrain", "data={won: 0.25, lost: 0.75}", "batch_size=8", *most, capsys=capsys)[1]
    assert other["status"] == "done" and other["outputs"]["checkpoint"] != out["outputs"]["checkpoint"]

    args = config.compose("pretrain", ["data={won: 3, lost: 1}", "batch_size=8", *toy.TASK])
    version, pools, shares = selection.pools(args, copy)
    assert shares == {"view won": 3.0, "view lost": 1.0} and sorted(version.hashes) == version.hashes
    for name, which in pools.items():
        assert sorted(version.hashes[i] for i in which) == sorted(held.at(name.removeprefix("view ")).hashes)
    table = {"evaluate": {"all": 1.0}, "improve": {"demos": 0.5, "own": 0.5}}
    halves = {"view won": 0.375, "view lost": 0.125, "own": 0.5}
    assert selection.mixed(table, shares, 16) == {"evaluate": {"all": 1.0}, "improve": halves}
    assert list(selection.mixed(table, shares, 16)["improve"]) == list(halves)  # who draws noise first stays first
    assert selection.mixed(table, {"demos": 1.0}, 1) == table
    with pytest.raises(ValueError, match=r"share of lost in .* is 0\.0792 of a batch of 8; expected at least 2"):
        selection.mixed({"improve": {"demos": 1.0}}, {"won": 1, "lost": 0.01}, 8)
    with pytest.raises(ValueError, match="data=won; expected {key: value, ...}"):
        config.compose("pretrain", ["data=won"])
    with pytest.raises(ValueError, match="won has no episode of lift"):
        selection.pools(replace(args, task=Task()), copy)


def test_rounds_and_online_learning_draw_from_views_the_same_every_time(copied, capsys):
    copy, at = copied
    for name, where in (("won", "success = true"), ("lost", "NOT success")):
        assert call("corpus", "view", name, where, at[3], capsys=capsys)[0] == 0
    parts = {*copy.corpus().at("won").hashes, *copy.corpus().at("lost").hashes}
    small = ["batch_size=16", "rounds=1", "algorithm.critic.width=16", "algorithm.critic.members=2", *at]
    made = {}
    for share in (0.75, 0.25):
        data = f"data={{won: {share}, lost: {1 - share}}}"
        rounds = ["algorithm.cadence.evaluate=4", "algorithm.cadence.improve=4", "collect.episodes=4", "collect.n=4"]
        rounds += ["algorithm.mixture.improve={demos: 0.5, own: 0.5}"]  # a quarter of a tenth of 16 is no row
        code, out = call("retrain", data, *rounds, *small, capsys=capsys)
        assert code == 0 and out["inputs"]["corpus"] == f"{share:g} won + {1 - share:g} lost"
        assert (
            set(copy.corpus().at("latest").hashes) >= parts
        )  # the same policy on the same seeds makes the same episodes
        made[share] = out
        assert call("replay", out["run"], at[3], capsys=capsys)[1]["metrics"]["different"] == 0
    assert made[0.75]["outputs"]["policy"] != made[0.25]["outputs"]["policy"]
    words = ["online", "algorithm=rlpd", "policy=tanh_gaussian", "checkpoint=none", "score_episodes=0", "warmup=40"]
    words += ["algorithm.cadence.evaluate=2", "algorithm.collect.steps=40", "data={won: 0.5, lost: 0.5}"]
    code, out = call(*words, *small, capsys=capsys)
    assert code == 0 and out["inputs"]["corpus"] == "0.5 won + 0.5 lost"
    assert call("replay", out["run"], at[3], capsys=capsys)[1]["metrics"]["different"] == 0
    code, out = call(*words[:1], "algorithm=sac", *words[2:], *small, "task.reward=env", capsys=capsys)
    assert code == 1 and "algorithm sac draws from no demonstrations" in out["error"]


def test_a_nightly_draws_from_views(copied, capsys):
    copy, at = copied
    assert call("corpus", "view", "won", "success = true", "at=1", at[3], capsys=capsys)[0] == 0
    words = ["nightly", "source=null", "data={won: 1.0}", *SMALL, *at[:4]]
    code, out = call(*words, capsys=capsys)
    assert code == 0 and out["status"] in ("done", "refused")
    done = {run["stage"]: run for run in copy.runs() if run["inputs"].get("corpus", {}).get("version") == "1 won"}
    assert done.keys() == {"pretrain", "retrain", "online"}
    assert done["pretrain"]["inputs"]["corpus"]["id"] == copy.corpus().at("won").id
    assert call(*words, capsys=capsys)[1]["status"] == "noop"


def test_every_corpus_command_has_help_and_json(copied, capsys, tmp_path):
    from flywheel.cli.commands import CORPUS

    _, at = copied
    commands = {
        "log": ["last=1"], "show": [], "stats": [], "diff": ["1", "latest"], "query": ["SELECT count(*) AS n FROM episodes"],
        "view": ["all", "true", "at=1"], "export": [f"out={tmp_path / 'out'}", "format=zarr", "at=1", *at[:3]],
        "tag": ["first", "1"], "tombstone": [copied[0].corpus().at(1).hashes[0], "message=bad"], "fsck": [], "compact": [],
        "expire": ["keep=1"], "gc": [],
    }  # fmt: skip
    assert {*commands} == {words.split()[0] for words in CORPUS}
    for name, words in commands.items():
        assert app.main(["corpus", name, "--help"]) == 0 and name in capsys.readouterr().out
        code, out = call("corpus", name, *words, at[3], capsys=capsys)
        assert code == 0 and {"status", "run", "inputs", "outputs", "metrics", "seconds"} <= out.keys(), name
    exported = call("export", f"out={tmp_path / 'out'}", "format=zarr", "corpus=1", *at[:4], capsys=capsys)[1]
    assert exported["status"] == "noop" and exported["run"].startswith("export/")  # the same run under both names
