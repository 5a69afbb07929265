"""A sweep: trials are runs, looked up if they are done; the table is of the same seeds, and stands on the page."""

import json
import re

import pytest
import toy
from small import call

from flywheel.args import UsageError
from flywheel.runs.run import Store
from flywheel.runs.sweep import parts, spelled

LITTLE = ["policy.width=16", "policy.depth=1", "batch_size=32", "score_episodes=0", "algorithm.cadence.improve=40"]


def test_values_are_split_where_no_bracket_holds_them():
    assert parts("1e-4,3e-4") == ["1e-4", "3e-4"] and parts("[1,2],{a: 1, b: 2}") == ["[1,2]", "{a: 1, b: 2}"]
    assert parts("'a,b'") == ["'a,b'"] and parts("") == [""]


def test_words_become_trials():
    words = spelled(["pretrain", "seed=1,2", "gamma=0.9,0.99", "task=push", "executor=processes", "episodes=5"])
    told = dict(word.split("=", 1) for word in words)
    trials = json.loads(told.pop("trials"))
    assert told == {"of": "pretrain", "task": "push", "executor": "processes", "episodes": "5"}
    assert len(trials) == 4 and trials[1] == ["seed=1", "gamma=0.99", "task=push"]
    with pytest.raises(UsageError, match="sweep pretrain: nothing varies; expected 'key=a,b'"):
        spelled(["pretrain", "seed=1"])
    with pytest.raises(UsageError, match="sweep lift; expected a stage"):
        spelled(["lift", "seed=1,2"])


def test_a_sweep_does_what_is_not_done_and_compares_on_the_same_seeds(tmp_path, capsys):
    toy.demonstrations(tmp_path / "demos.hdf5", 8)
    place = f"store={tmp_path / 'store'}"
    words = [f"source={tmp_path / 'demos.hdf5'}", "obs_keys=[position,goal]", place, *toy.TASK]
    assert call("ingest", *words, capsys=capsys)[0] == 0
    assert call("pretrain", *LITTLE, "algorithm.lr=0.001", place, *toy.TASK, capsys=capsys)[0] == 0
    sweep = ["sweep", "pretrain", *LITTLE, "algorithm.lr=0.001,0.00001", "episodes=40", place, *toy.TASK]
    code, first = call(*sweep, capsys=capsys)
    assert code == 0, first
    table = first["metrics"]["table"]
    assert {row["trial"]: row["status"] for row in table} == {
        "algorithm.lr=0.001": "noop",
        "algorithm.lr=0.00001": "done",
    }
    assert table[0]["best"] and first["outputs"]["checkpoint"] == table[0]["checkpoint"]
    assert table[0]["success"] >= table[1]["success"] and table[0]["n"] == table[1]["n"] == 40
    assert table[1]["won"] - table[1]["lost"] == round(40 * (table[0]["success"] - table[1]["success"]))
    code, again = call(*sweep, "executor=processes", "workers=2", capsys=capsys)
    assert (code, again["status"], again["run"]) == (0, "noop", first["run"])
    (done,) = Store(tmp_path / "store").runs("sweep")
    assert done["content"]["of"] == "pretrain"
    assert call("report", place, capsys=capsys)[0] == 0
    page = (tmp_path / "store" / "report" / "index.html").read_text()
    assert "The last sweep of pretrain" in page and re.search(r"<td>algorithm\.lr=0\.00001</td>", page)


@pytest.mark.slow
def test_a_sweep_with_a_trial_that_fails_is_no_result(tmp_path, capsys):
    toy.demonstrations(tmp_path / "demos.hdf5", 4)
    place = f"store={tmp_path / 'store'}"
    words = [f"source={tmp_path / 'demos.hdf5'}", "obs_keys=[position,goal]", place, *toy.TASK]
    assert call("ingest", *words, capsys=capsys)[0] == 0
    sweep = ["sweep", "pretrain", *LITTLE, "policy=flow,categorical", "episodes=4", place, *toy.TASK]
    code, out = call(*sweep, "executor=processes", "workers=2", capsys=capsys)
    assert code == 1 and "sweep: 1 of 2 trials failed, first policy=categorical" in out["error"]
    assert len(Store(tmp_path / "store").runs("pretrain")) == 1 and not Store(tmp_path / "store").runs("sweep")
