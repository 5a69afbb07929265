"""The command line: what it prints, how it refuses, what it leaves alone."""

import dataclasses
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import toy
from small import LITTLE, call, hashes, often, words

from flywheel import store
from flywheel.args import UsageError, plain
from flywheel.cli import app, config
from flywheel.runs import lineage, nightly


def test_evaluate_against_another_on_the_same_seeds(copied, capsys):
    copy, at = copied
    refs = [row["checkpoint"] for row in copy.runs("nightly")[0]["content"]["table"]]
    code, out = call(
        "evaluate", f"checkpoint={refs[2]}", f"against={refs[0]}", "episodes=6", at[3], capsys=capsys
    )  # task: its own
    assert (code, out["metrics"]["n"], out["metrics"]["against"]["n"]) == (0, 6, 6)
    assert set(out["metrics"]["paired"]) == {"won", "lost", "p"}
    assert out["inputs"] == {"checkpoint": refs[2], "against": refs[0]}


def test_gc_only_tells_until_it_is_told_to(copied, capsys):
    copy, at = copied
    left = copy.root / "runs" / "pretrain" / "0123456789abcdef"
    (left / "ckpt").mkdir(parents=True)
    for path in (left / "ckpt", left):
        os.utime(path, (0, 0))
    before = hashes(copy)
    code, out = call("gc", at[3], capsys=capsys)
    assert code == 0 and out["metrics"]["places"] >= 1 and left.exists()
    code, out = call("gc", "apply=true", at[3], capsys=capsys)
    assert out["metrics"]["applied"] and not left.exists()
    assert hashes(copy) == before


def test_what_only_looks_up_prints(copied, capsys):
    _, at = copied
    for line in (
        "runs",
        "report",
        "corpus log",
        "corpus show",
        "corpus diff 1 latest",
        "tasks",
        "formats",
        "algorithms",
        *(f"show algorithm={name}" for name in ("iql", "sac", "rlpd", "awac", "td3_bc", "rounds")),
    ):
        assert app.main([*line.split(), at[3]]) == 0, line
        assert capsys.readouterr().out.strip(), line


def test_the_corpus_is_checked_and_compacted_without_changing_what_it_holds(copied, capsys):
    copy, at = copied
    held = copy.corpus()
    for part in (0.5, 0.25):  # two more segments of the robot of the rollouts
        held.append([one.replace(action=one.action * np.float32(part)) for one in [held.at("latest").read(-1)]])
    before = held.at("latest").id
    assert call("corpus", "fsck", at[3], capsys=capsys)[1]["metrics"]["findings"] == 0
    assert call("corpus", "compact", at[3], capsys=capsys)[1]["metrics"]["merged"] > 1
    assert call("corpus", "expire", "keep=1", at[3], capsys=capsys)[1]["metrics"]["expired"] > 1
    assert copy.corpus().at("latest").id == before
    assert call("corpus", "gc", "apply=true", at[3], capsys=capsys)[1]["metrics"]["places"] == 0  # within the grace
    lines = call("corpus", "log", "last=2", at[3], capsys=capsys)[1]["log"]
    assert [line["op"] for line in lines] == ["compact", "expire"] and lines == copy.corpus().log()[-2:]
    assert app.main(["corpus", "log", "last=some", at[3]]) == app.main(["corpus", "gc", "now", at[3]]) == 2
    assert app.main(["corpus", "--help"]) == 0 and "expire keep=N" in capsys.readouterr().out
    shard = next(p for p in (copy.corpus_path / "segments").rglob("*") if p.is_file() and p.stat().st_size > 200)
    whole = shard.read_bytes()
    shard.unlink()  # the copy's files are hard links: its own one is damaged, not the other's
    shard.write_bytes(whole[:-1])
    code, out = call("corpus", "fsck", at[3], capsys=capsys)
    assert code == 1 and shard.name in out["error"]
    assert app.main(["corpus", "expire", at[3]]) == 2


def test_promote_forced_rollback_and_refusals(night, copied, capsys):
    _, _, done = night
    copy, _ = copied
    at = f"store={copy.root}"
    refs = [row["checkpoint"] for row in done["content"]["table"]]
    code, out = call("promote", refs[1], *toy.TASK, "force=shown to the customer", at, capsys=capsys)
    assert (code, out["status"], out["outputs"]["checkpoint"]) == (0, "done", refs[1])
    name = refs[0].split("@")[0]
    assert nightly.production(copy, name) == refs[1]
    code, out = call("rollback", name, at, capsys=capsys)
    assert out["outputs"]["checkpoint"] == nightly.production(copy, name) != refs[1]
    code, out = call("promote", f"{name}@123456", *toy.TASK, at, capsys=capsys)
    assert code == 1 and "no checkpoint of that id" in out["error"]


def test_bad_usage_is_exit_code_2(tmp_path, capsys):
    at = f"store={tmp_path}"
    for bad, text in [
        (["nightli"], "no command 'nightli'; did you mean nightly? There are: choose, distil"),
        (["pretrain", "task=pusj", at], "no task 'pusj'. There are: assemble, gym, insert, lift, push"),
        (["pretrain", "polizy=flow", at], "polizy"),
        (["retrain", "rounds=many", at], "expected a whole number"),
        (["evaluate", at], "evaluate needs checkpoint=..."),
        (["pretrain", "task=lift", "task.id=x", at], "id"),
        (["nightly", "budget=soon", at], "expected a duration"),
        (["ingest", "--fast"], "no flag --fast"),
    ]:
        assert app.main(bad) == 2, bad
        assert text in capsys.readouterr().err, bad


def test_failures_are_exit_code_1_and_say_what_to_do(tmp_path, capsys):
    at = f"store={tmp_path}"
    code, out = call("pretrain", "task=lift", at, capsys=capsys)
    assert (code, out["status"]) == (1, "failed") and "corpus" in out["error"]
    code, out = call("ingest", "source=/nowhere/*.hdf5", at, capsys=capsys)
    assert code == 1 and "names no file" in out["error"]


def test_a_second_nightly_says_who_holds_the_store(night, tmp_path, capsys):
    _, place, _ = night
    copy = lineage.scratch(place, tmp_path / "store", set())
    toy.demonstrations(tmp_path / "demos.hdf5", 13)
    with store.Lock(copy.root, "nightly"):
        code, out = call(*words(tmp_path), capsys=capsys)
    assert code == 1 and str(os.getpid()) in out["error"]


@pytest.mark.slow
def test_wandb_mirrors_a_run_offline(night, tmp_path):
    pytest.importorskip("wandb")
    _, place, done = night
    copy = lineage.scratch(place, tmp_path / "store", set())
    ref = done["content"]["table"][0]["checkpoint"]
    assert (
        app.main(
            [
                "evaluate",
                f"checkpoint={ref}",
                "episodes=3",
                "log=wandb",
                "log.wandb.mode=offline",
                *toy.TASK,
                f"store={copy.root}",
            ]
        )
        == 0
    )
    made = list(copy.root.glob("runs/evaluate/*/wandb/offline-run-*/*.wandb"))
    assert len(made) == 1 and made[0].stat().st_size > 0


def test_the_worked_example_of_an_algorithm_works(copied, tmp_path, monkeypatch, capsys):
    """The table of CONTRIBUTING.md, word for word, in a folder of one's own: shown, on the map, and run."""
    page = (Path(__file__).parent.parent / "CONTRIBUTING.md").read_text().split("## An algorithm")[1]
    table = page.split("```yaml\n")[1].split("```")[0]
    assert len([line for line in table.splitlines() if line and line[0] != "#"]) <= 10
    (tmp_path / "own" / "algorithm").mkdir(parents=True)
    (tmp_path / "own" / "algorithm" / "sarsa_awr.yaml").write_text(table)
    monkeypatch.setenv("FLYWHEEL_CONF", str(tmp_path / "own"))
    assert app.main(["algorithms"]) == 0 and "sarsa_awr" in capsys.readouterr().out
    assert app.main(["show", "algorithm=sarsa_awr"]) == 0
    assert "def data_action(" in capsys.readouterr().out
    cadence = "algorithm.cadence={rounds: 1, evaluate: 20, improve: 10}"
    code, out = call("pretrain", "algorithm=sarsa_awr", cadence, *LITTLE, *copied[1], capsys=capsys)
    assert (code, out["status"]) == (0, "done"), out
    monkeypatch.setenv("FLYWHEEL_CONF", str(tmp_path / "elsewhere"))
    assert app.main(["pretrain", *copied[1]]) == 2 and "FLYWHEEL_CONF=" in capsys.readouterr().err


def test_a_command_seen_before_has_its_tables_in_the_same_order(tmp_path):
    """The nets of an act move, and draw noise, in the table's order: a look-up must not sort them."""
    words = ["algorithm=sac", "checkpoint=none"]
    first, again = (config.load("online", words, tmp_path) for _ in range(2))
    assert first == again and list(first.algorithm.improve) == list(again.algorithm.improve) == [
        "policy",
        "alpha",
    ]


def test_what_a_file_takes_of_the_environment_is_asked_each_time(monkeypatch):
    for place in ("/one", "/two"):
        monkeypatch.setenv("FLYWHEEL_DEMOS", place)
        assert config.compose("nightly", ["experiment=adroit_door_policy"]).source.startswith(place)


def test_what_was_composed_is_composed_anew_where_a_default_changed():
    """The key of a kept command covers each file that defines an argument, wherever that lies."""
    found = {"/".join(path.parts[-2:]) for path in config.sources(config.module("retrain").Args)}
    assert found == {"flywheel/args.py", "stages/retrain.py", "rl/table.py", "rl/rounds.py", "rl/backward.py"}
    assert "rl/offline.py" in {"/".join(p.parts[-2:]) for p in config.sources(config.module("distil").Args)}


def test_completion_in_a_shell(night, monkeypatch, capsys):
    """findings E1: commands, keys, choices and names are completed; bash itself does it with the script that is
    printed."""
    from flywheel.cli import complete

    _, place, done = night
    ref = done["content"]["table"][0]["checkpoint"]
    assert complete.candidates("flywheel pre", place.root) == ["pretrain"]
    assert "batch_size=" in complete.candidates("flywheel pretrain ba", place.root)
    assert complete.candidates("flywheel pretrain policy=ga", place.root) == ["policy=gaussian"]
    assert f"checkpoint={ref}" in complete.candidates("flywheel evaluate checkpoint=pol", place.root)
    assert ref in complete.candidates("flywheel promote ", place.root) and ref in complete.candidates(
        "flywheel lineage ", place.root
    )
    script = "source <(flywheel completion bash); COMP_LINE='flywheel online al'; COMP_POINT=${#COMP_LINE}; _flywheel; echo ${COMPREPLY[0]}"
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    out = subprocess.run(["bash", "-c", script], capture_output=True, text=True, env={**os.environ, "PATH": path})
    assert out.stdout.strip() == "algorithm=", out
    assert app.main(["completion", "csh"]) == 2


@pytest.mark.parametrize("stage", often(["nightly", "pretrain"], "pretrain"))
def test_a_free_table_takes_keys_one_by_one_and_as_a_whole(stage):
    """Every key of a stage whose default is a table: KEY.MORE=1 and KEY={MORE: 1} come to the same."""
    for key, field in config.fields(stage).items():
        made = field.default_factory
        if made is dataclasses.MISSING or not isinstance(made(), dict):
            continue
        told = []
        for word in (f"{key}.made_up=1", f"{key}={{made_up: 1}}"):
            try:
                told.append(plain(getattr(config.compose(stage, [word]), key)))
            except UsageError as error:  # a key that is needed, or what stands there knows its keys
                assert "does not know" not in str(error)
                told.append(str(error))
        assert told[0] == told[1], key
