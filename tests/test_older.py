"""A store that an older flywheel (606a004) made opens: corpus, names, lineage, policies; its runs are listed, and
can be built upon."""

import tarfile
from pathlib import Path

import numpy as np
import pytest
import toy
from small import call

import flywheel
from flywheel.runs import lineage
from flywheel.runs.run import Store

NAME = "policy/toy-Reach-v0"


@pytest.fixture
def older(tmp_path):
    with tarfile.open(Path(__file__).parent / "fixtures" / "store_606a004.tar.xz") as file:
        file.extractall(tmp_path / "store", filter="data")
    return Store(tmp_path / "store")


def test_corpus_names_and_runs_are_there(older):
    version = older.corpus().at("latest")
    assert len(version) == len(older.corpus().at(1)) + 16 and {e.task for e in version} == {"toy:Reach-v0"}
    assert {run["stage"] for run in older.runs()} == {"ingest", "pretrain", "retrain", "promote", "evaluate", "nightly"}
    assert older.names.names() == [NAME] and older.names.production(NAME) == "fd35477a34e3"
    made = [entry["id"] for entry in older.names.log(NAME) if entry["op"] == "make"]
    for id_ in made:
        lines = lineage.lineage(f"{NAME}@{id_}", older)
        assert lines[0]["what"].endswith(id_) and any("demos.hdf5" in line["detail"] for line in lines), lines


def test_its_policies_act_and_are_evaluated(older, capsys):
    at = [f"store={older.root}", *toy.TASK, "num_envs=4"]
    for entry in [entry for entry in older.names.log(NAME) if entry["op"] == "make"]:
        ref = f"{NAME}@{entry['id']}"
        policy = flywheel.load(ref, store=str(older.root))
        policy.reset([0], [1])
        assert np.isfinite(policy.act(np.zeros((1, 4), np.float32))).all()
        code, out = call("evaluate", f"checkpoint={ref}", "episodes=4", *at, capsys=capsys)
        assert code == 0 and out["metrics"]["n"] == 4, out


def test_it_is_gone_on_with(older, capsys):
    at = [f"store={older.root}", *toy.TASK, "num_envs=4"]
    words = ["score_episodes=4", "score_every=10", "algorithm.cadence.improve=20", "policy.width=16", "policy.depth=1"]
    code, out = call("pretrain", *words, *at, capsys=capsys)
    assert code == 0 and out["outputs"]["checkpoint"].startswith(f"{NAME}@"), out


def test_answers_of_the_gate_before_are_read_beside_those_of_this_one(older, capsys):
    """An exact test's p stands where it stood; it counts among no ranks."""
    production = older.names.production(NAME)
    other = next(e["id"] for e in older.names.log(NAME) if e["op"] == "make" and e["id"] != production)
    exact = {"alpha": 0.05, "p": 1.0, "test": "mcnemar", "over": production}  # as versions after 606a004 wrote it
    older.names.refuse(NAME, other, "promote/then", "won 0, lost 0, p = 1, alpha = 0.05", **exact)
    at = [f"store={older.root}", *toy.TASK, "num_envs=4"]
    assert call("promote", f"{NAME}@{other}", "gate.pairs=8", *at, capsys=capsys)[0] == 0
    entry = older.names.log(NAME)[-1]
    assert (entry["number"], entry["t"], entry["promotions"], entry["over"]) == (1, 1, 0, production)
    assert call("report", f"store={older.root}", capsys=capsys)[0] == 0
    page = (older.root / "report" / "index.html").read_text()
    assert (
        "won 0, lost 0, p = 1</div>" in page
        and "p = 1, alpha = 0.05" in page
        and "needed 28.1 (rank 1, 0 promotions before)" in page
    )
    assert call("lineage", NAME, f"store={older.root}", capsys=capsys)[0] == 0
    found = call("fsck", f"store={older.root}", capsys=capsys)[1]["findings"]
    assert not any("question" in f or "follows as" in f for f in found), found
