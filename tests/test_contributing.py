"""CONTRIBUTING.md, word for word: what it says is one file is one file, and works where it is put."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch
import toy
from small import LITTLE, call

from flywheel.runs.run import Store

PAGE = (Path(__file__).parent.parent / "CONTRIBUTING.md").read_text()


def example(section: str, kind: str = "python") -> str:
    """The first block of code of a section."""
    return re.search(rf"```{kind}\n(.*?)```", PAGE.split(f"\n## {section}")[1], re.S)[1]


@pytest.fixture
def own(tmp_path, monkeypatch):
    """A folder of one's own tables and stages."""
    monkeypatch.setenv("FLYWHEEL_CONF", str(tmp_path / "mine"))
    (tmp_path / "mine" / "stage").mkdir(parents=True)
    return tmp_path / "mine"


def test_a_stage_is_one_file(own, tmp_path, capsys):
    from flywheel.cli import app

    (own / "stage" / "handover.py").write_text(example("A stage"))
    store = f"store={tmp_path / 'store'}"
    toy.demonstrations(tmp_path / "demos.hdf5", 8)
    keys = "obs_keys=[position,goal]"
    assert call("ingest", f"source={tmp_path / 'demos.hdf5'}", keys, store, *toy.TASK, capsys=capsys)[0] == 0
    assert call("pretrain", "algorithm.cadence.improve=10", *LITTLE, store, *toy.TASK, capsys=capsys)[0] == 0
    assert app.main(["--help"]) == 0
    assert "handover   A checkpoint for a robot that has no store." in capsys.readouterr().out
    assert app.main(["handover", "--help"]) == 0
    assert re.search(r"indent: int = 1 +spaces in spec.json \(0 to 8\)", capsys.readouterr().out)
    assert app.main(["handover", "checkpoint=x", "indent=9", store]) == 2
    assert "indent=9; expected a whole number from 0 to 8" in capsys.readouterr().err
    words = ["handover", "checkpoint=policy/Reach-v0", store]
    code, out = call(*words, capsys=capsys)
    assert code == 0 and out["metrics"] == {"obs_dim": 4, "action_dim": 2}, out
    assert call(*words, capsys=capsys)[1]["status"] == "noop"
    assert call("replay", out["run"], store, capsys=capsys)[1]["metrics"]["different"] == 0


def test_a_net_that_a_table_names_is_one_file(tmp_path, monkeypatch):
    from flywheel.args import build
    from flywheel.policy import base
    from flywheel.rl import beside
    from flywheel.rl.build import table_nets
    from flywheel.rl.table import Algorithm

    (tmp_path / "doubt.py").write_text(example("A net beside the policy"))
    monkeypatch.setattr(beside, "__path__", [*beside.__path__, str(tmp_path)])
    policy = base.build({"kind": "gaussian", "obs_dim": 3, "action_dim": 2, "width": 8, "depth": 1})
    made = table_nets(build(Algorithm, {"evaluate": {"doubt": {"returns": {}}}}), policy)
    assert made["doubt"](torch.zeros(5, policy.obs_steps, 3)).shape == (7, 5)


def test_a_guard_is_one_file(tmp_path, monkeypatch):
    from flywheel.env import guards
    from flywheel.env.guard import StepGuard

    (tmp_path / "deadband.py").write_text(example("A guard"))
    monkeypatch.setattr(guards, "__path__", [*guards.__path__, str(tmp_path)])
    guard = StepGuard(np.float32([-1, -1]), np.float32([1, 1]), 1, {"limits": {}, "deadband": {"least": 0.05}})
    assert guard(np.array([[0.09, 0.2]]), np.array([0])).tolist() == [[0.0, np.float32(0.2)]]
    assert guard.count == {"steps": 1, "deadband": 1}


def test_an_executor_is_one_file(tmp_path, monkeypatch, capsys):
    from flywheel import executors

    (tmp_path / "threads.py").write_text(example("An executor"))
    monkeypatch.setattr(executors, "__path__", [*executors.__path__, str(tmp_path)])
    store = f"store={tmp_path / 'store'}"
    toy.demonstrations(tmp_path / "demos.hdf5", 8)
    keys = "obs_keys=[position,goal]"
    assert call("ingest", f"source={tmp_path / 'demos.hdf5'}", keys, store, *toy.TASK, capsys=capsys)[0] == 0
    assert call("pretrain", "algorithm.cadence.improve=10", *LITTLE, store, *toy.TASK, capsys=capsys)[0] == 0
    words = ["evaluate", "checkpoint=policy/Reach-v0", "episodes=40", store, *toy.TASK]
    code, here = call(*words, capsys=capsys)
    columns = dict(np.load(tmp_path / "store" / "runs" / here["run"] / "out" / "checkpoint.npz"))
    for kind in ("threads", "processes"):
        (tmp_path / "store" / "runs" / here["run"] / "_DONE.json").unlink()  # who plays decides nothing: the same run
        code, there = call(*words, f"executor={kind}", "workers=2", capsys=capsys)
        assert code == 0 and there["run"] == here["run"] and there["metrics"] == here["metrics"], there
        with np.load(tmp_path / "store" / "runs" / here["run"] / "out" / "checkpoint.npz") as again:
            assert all(np.array_equal(columns[key], again[key]) for key in columns)
    code, out = call(*words, "executor=pbs", "episodes=41", capsys=capsys)
    assert code != 0 and "no executor 'pbs'. There are: local, processes, ray, slurm, threads" in out["error"]


def test_a_writer_of_a_format_is_one_file(tmp_path, monkeypatch, capsys):
    import flywheel_datasets

    folder = tmp_path / "formats"
    folder.mkdir()
    (folder / "npz_episode.py").write_text(example("A format") + "\n\n" + example("A writer"))
    monkeypatch.setattr(flywheel_datasets, "__path__", [*flywheel_datasets.__path__, str(folder)])
    store = f"store={tmp_path / 'store'}"
    toy.demonstrations(tmp_path / "demos.hdf5", 3)
    keys = "obs_keys=[position,goal]"
    assert call("ingest", f"source={tmp_path / 'demos.hdf5'}", keys, store, *toy.TASK, capsys=capsys)[0] == 0
    words = ["export", "format=npz_episode", f"out={tmp_path / 'out'}", store, *toy.TASK]
    assert call(*words, capsys=capsys)[0] == 0
    held = Store(tmp_path / "store").corpus().at("latest")
    files = sorted((tmp_path / "out").glob("*.npz"))
    assert len(files) == len(held) == 3
    with np.load(files[0]) as first:
        np.testing.assert_array_equal(first["action"], next(iter(held.canonical())).action)
