"""Who listens to a run's numbers: Weights & Biases, offline, read back from its own file; Trackio, by its own interface."""

import json
import re
import sys
import types

import pytest
import toy

from flywheel import log
from flywheel.cli import app
from flywheel.runs import lineage


def records(path):
    """The records of an offline run, as Weights & Biases reads them."""
    from wandb.proto import wandb_internal_pb2 as pb
    from wandb.sdk.internal.datastore import DataStore

    store = DataStore()
    store.open_for_scan(str(path))
    while (data := store.scan_data()) is not None:
        record = pb.Record()
        record.ParseFromString(data)
        yield record


def test_wandb_has_names_steps_commit_versions_tables_and_artifacts_by_reference(night, tmp_path, monkeypatch, capsys):
    pytest.importorskip("wandb")
    _, place, _ = night
    copy = lineage.scratch(place, tmp_path / "store", set())
    monkeypatch.delenv("WANDB_MODE", raising=False)
    monkeypatch.setenv("WANDB_API_KEY", "")
    monkeypatch.setenv("NETRC", str(tmp_path / "nothing"))
    monkeypatch.setenv("HOME", str(tmp_path))
    little = ["score_every=10", "score_episodes=4", "batch_size=16", "policy.width=16", "policy.depth=1"]
    words = ["pretrain", "log=wandb", "log.wandb.tags=[mine]", "algorithm.cadence.improve=20", "num_envs=4"]
    assert app.main([*words, *little, *toy.TASK, f"store={copy.root}"]) == 0
    assert "no key of Weights & Biases here: kept offline" in capsys.readouterr().err
    (file,) = copy.root.glob("runs/pretrain/*/wandb/offline-run-*/*.wandb")
    found = list(records(file))
    (run,) = [one.run for one in found if one.WhichOneof("record_type") == "run"][:1]
    key = file.parents[2].name
    assert run.display_name == f"pretrain toy:Reach-v0 {key[:6]}" and run.job_type == "pretrain"
    assert (run.run_group, list(run.tags)) == ("night-0", ["pretrain", "toy:Reach-v0", "mine"])
    config = {item.key: json.loads(item.value_json) for item in run.config.update}
    assert (
        config["versions"]["torch"] and re.fullmatch(r"[0-9a-f]{40}\+?", config["code"]) and config["inputs"]["corpus"]
    )
    steps = [one.metric for one in found if one.WhichOneof("record_type") == "metric"]
    assert ("curve/*", "curve/updates") in [(one.glob_name, one.step_metric) for one in steps]
    logged = {item.nested_key[0] if item.nested_key else item.key for one in found for item in one.history.item}
    assert {"curve/updates", "curve/success"} <= logged
    kept = [one.request.log_artifact.artifact for one in found if one.WhichOneof("record_type") == "request"]
    kept += [one.artifact for one in found if one.WhichOneof("record_type") == "artifact"]
    made = {one.name: one for one in kept if one.name}
    kinds = {one.type for one in made.values()}
    assert {"model", "dataset"} <= kinds, sorted(made)
    for one in made.values():
        assert all(entry.ref for entry in one.manifest.contents), "the bytes stay where they are"


class Board(types.ModuleType):
    """Trackio's interface, as its documentation has it."""

    def __init__(self):
        super().__init__("trackio")
        self.begun, self.told = None, []

    def init(self, project, name=None, group=None, space_id=None, config=None, resume="never", embed=True):
        self.begun = {"project": project, "name": name, "group": group, "config": config, "resume": resume}

    def log(self, metrics, step=None):
        self.told.append(metrics)

    def finish(self):
        self.told.append("finish")

    def Table(self, columns=None, data=None):
        return {"columns": columns, "data": data}

    def Video(self, value):
        return {"video": value}


def test_trackio_has_the_same_keys(tmp_path, monkeypatch):
    board = Board()
    monkeypatch.setitem(sys.modules, "trackio", board)
    settings = {
        "project": "flywheel",
        "name": "pretrain lift 12ab34",
        "group": "night-3",
        "job_type": "pretrain",
        "tags": ["a"],
        "config": {"seed": 1},
    }
    told = log.Log(tmp_path / "run" / "log.jsonl", {"trackio": settings})
    told("curve", updates=10, success=0.5, file="at_10")
    told.table("pairs", {"seed": [1, 2], "candidate": [True, False]})
    told.artifact("policy/lift@1234", tmp_path / "x", run="pretrain/12")
    told.close()
    assert (
        board.begun["config"] == {"seed": 1, "job_type": "pretrain", "tags": ["a"]}
        and board.begun["group"] == "night-3"
    )
    assert board.told[0] == {"curve/updates": 10, "curve/success": 0.5}
    assert board.told[1]["pairs"] == {"columns": ["seed", "candidate"], "data": [[1, True], [2, False]]}
    assert board.told[2]["artifacts"]["data"][0][:2] == ["policy/lift@1234", "model"] and board.told[-1] == "finish"
    assert [line["kind"] for line in log.read(tmp_path / "run" / "log.jsonl")] == ["curve"]


def test_who_is_not_there_is_named_with_what_to_do(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="There are: none, trackio, wandb"):
        log.Log(tmp_path / "log.jsonl", {"tensorboard": {}})
    monkeypatch.setitem(sys.modules, "trackio", None)
    with pytest.raises(ValueError, match=r"pip install 'robot-flywheel\[trackio\]'"):
        log.Log(tmp_path / "log.jsonl", {"trackio": {"project": "x"}})
