"""Runs: looked up, resumed, replayed; a whole nightly in small; kill -9 at random moments."""

import json
import os
import random
import select
import signal
import subprocess
import sys
import time
from dataclasses import replace

import numpy as np
import pytest
import toy
from small import call, hashes, words

from flywheel import store
from flywheel.args import build
from flywheel.cli import app, config
from flywheel.runs import lineage, run
from flywheel.runs.run import Store

KILLS = 2  # `make soak`: more than a hundred


def test_a_nightly_ends_with_a_table_and_a_report(night):
    _, place, done = night
    table = done["content"]["table"]
    assert [row["policy"] for row in table] == ["pretrained", "retrained", "best-of-N", "online"]
    assert all(row["n"] == 8 and 0 <= row["ci95"][0] <= row["success"] <= row["ci95"][1] <= 1 for row in table)
    assert "p" not in table[0] and "p" in table[2]
    assert (place.root / "report" / "index.html").exists()
    assert [r.split("/")[0] for r in done["content"]["runs"]] == [
        "ingest",
        "pretrain",
        "retrain",
        "online",
        "choose",
        "promote",
        *["evaluate"] * 4,
    ]


def played(place):
    """Seeds of the episodes that policies made, but for what was tried again: (those, the others)."""
    table = place.corpus().at("latest").select(origin="policy:*").table
    again = np.array(["retry" in meta for meta in table["meta"]], bool)
    return table["seed"][~again].tolist(), table["seed"][again].tolist()


def test_its_seeds_never_overlap(night):
    _, place, done = night
    corpus, again = played(place)
    blocks = {"collect": corpus, "question": [], "report": []}
    for name in done["content"]["runs"]:
        stage = name.split("/")[0]
        for path in (place.root / "runs" / name / "out").glob("*.npz"):
            blocks["question" if stage == "promote" else "report"] += np.load(path)["seed"].tolist()
    assert (
        len(corpus) == len(set(corpus)) == 16 + 9 - len(again)
    )  # retrain's from the night's first, online's from its last
    assert set(again) <= set(corpus)
    assert all(s < 100_000_000 for s in blocks["collect"])
    assert all(s >= 300_000_000 for s in blocks["question"]) and blocks["question"]
    assert all(200_000_000 <= s < 300_000_000 for s in blocks["report"]) and blocks["report"]
    from flywheel.args import Acting
    from flywheel.seeds import NIGHT, seeds

    chosen_by = {s for b in ("gate", "collect", "report") for s in seeds(b, Acting(), 0, NIGHT)}
    assert not chosen_by & set(blocks["question"])
    assert not set(seeds("collect", Acting(), 0, 9)) & set(seeds("collect", Acting(night=1), 0, 9))


def test_the_same_nightly_is_a_noop_that_loads_neither_hydra_nor_torch(night):
    folder, place, _ = night
    before = hashes(place)
    code = f"import sys; sys.path.insert(0, {str(folder)!r}); from flywheel.cli.app import main; r = main({words(folder)!r} + ['--json']); print(r, sorted(set(sys.modules) & {{'hydra', 'torch', 'mujoco', 'zarr'}}))"
    env = {**os.environ, "PYTHONPATH": os.path.dirname(toy.__file__)}
    out = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=env
    ).stdout.splitlines()
    assert out[-1] == "0 []"
    assert json.loads(out[-2])["status"] == "noop"
    assert hashes(place) == before


def test_dry_run_says_hit_and_why_not(night, capsys):
    folder, place, done = night
    assert app.main([*words(folder), "--dry-run"]) == 0
    assert capsys.readouterr().out.count("hit") == 2
    pre = next(r for r in done["content"]["runs"] if r.startswith("pretrain"))
    cfg = place.find(pre)["identity"]["config"]
    planned = run.plan("pretrain", replace(place_cfg(place, pre), gamma=0.5), place)
    assert planned["action"] == "miss" and planned["why"] == f"config gamma {cfg['gamma']} -> 0.5"


def place_cfg(place, name):
    import yaml

    args = config.module(name.partition("/")[0]).Args
    return build(args, yaml.safe_load((place.root / "runs" / name / "config.yaml").read_text()))


def test_every_stage_replays_to_the_same_hashes_and_moves_no_name(night):
    _, place, done = night
    before = hashes(place)
    out = lineage.replay(f"nightly/{done['key']}", place)
    assert out["status"] == "done" and out["metrics"]["different"] == 0 and out["metrics"]["equal"] >= 20
    assert hashes(place) == before


def test_replay_tells_what_differs(night, tmp_path):
    _, place, done = night
    copy = lineage.scratch(place, tmp_path / "copy", set())
    name = next(r for r in done["content"]["runs"] if r.startswith("evaluate"))
    path = copy.root / "runs" / name / "_DONE.json"
    record = store.read_json(path)
    record["files"]["checkpoint.npz"] = "0" * 64
    path.unlink()
    store.write_json(path, record)
    out = lineage.replay(name, copy)
    assert out["status"] == "failed" and "checkpoint.npz" in out["different"][0]


def test_lineage_walks_back_to_the_demonstrations(night, capsys):
    folder, place, done = night
    ref = done["content"]["table"][2]["checkpoint"]
    lines = lineage.lineage(ref, place)
    assert lines[0]["what"] == ref
    assert any("demos.hdf5" in line["detail"] and "scripted:reach" in line["detail"] for line in lines)
    assert app.main(["lineage", ref, f"store={folder / 'store'}"]) == 0
    assert "demos.hdf5" in capsys.readouterr().out


def test_load_is_the_path_that_evaluation_uses(night):
    import flywheel

    folder, _place, done = night
    policy = flywheel.load(done["content"]["table"][0]["checkpoint"], store=str(folder / "store"))
    policy.reset()
    assert policy.act(np.zeros(4, np.float32)).shape == (2,)
    with pytest.raises(ValueError, match="There are: policy/Reach-v0"):
        flywheel.load("policy/nothing", store=str(folder / "store"))


def test_new_demonstrations_and_further_rounds_are_new_nights(night, tmp_path):
    _folder, place, _ = night
    copy = lineage.scratch(place, tmp_path / "store", set())
    toy.demonstrations(tmp_path / "demos.hdf5", 14)  # two more
    assert app.main(words(tmp_path)) == 0
    nights = copy.runs("nightly")
    assert [n["content"]["night"] for n in nights] == [0, 1]
    assert app.main(words(tmp_path, "rounds=+1")) == 0
    third = copy.runs("nightly")[-1]
    assert third["content"]["night"] == 2 and third["content"]["table"][0]["policy"] == "incumbent"
    seeds, again = played(copy)
    online = sum(r["result"]["metrics"]["episodes"] for r in copy.runs("online"))
    assert len(set(seeds)) == len(seeds) == 16 + 16 + 8 + online - len(again) and set(again) <= set(seeds)


def child(argv, seconds):
    """Fork; the child runs the nightly; after `seconds` it is killed with -9. True if it had ended by itself."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(reader)
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, 1)
        os.dup2(null, 2)
        code = 1
        try:
            code = app.main(argv)
        finally:
            os._exit(code)
    os.close(writer)  # the child holds the other end: the pipe says when it is gone
    ended = bool(select.select([reader], [], [], seconds)[0])
    if not ended:
        os.kill(pid, signal.SIGKILL)
    os.close(reader)
    _, status = os.waitpid(pid, 0)
    if ended:
        assert os.WIFEXITED(status) and os.WEXITSTATUS(status) == 0
    return ended


def test_what_a_killed_writer_left_is_no_output(tmp_path):
    (tmp_path / "policy.safetensors").write_bytes(b"whole")
    (tmp_path / ".policy.safetensors.4098-3f2bfbc1.tmp").write_bytes(b"ha")
    assert list(run.hashes(tmp_path)) == ["policy.safetensors"]


def test_killed_at_random_moments_it_ends_with_the_same_hashes(night, tmp_path, monkeypatch):
    _, place, _ = night
    expected = hashes(place)
    monkeypatch.setattr(run.Run.due, "__defaults__", (0.0,))  # save as often as it can: more places to be killed in
    toy.demonstrations(tmp_path / "demos.hdf5")
    began = time.monotonic()
    assert child(words_in(tmp_path / "whole", tmp_path), 600)
    whole = time.monotonic() - began
    rng = random.Random(0)
    kills = night_number = 0
    while kills < KILLS:
        night_number += 1
        where = tmp_path / f"night{night_number}"
        while not child(words_in(where, tmp_path), rng.uniform(0, whole / 3) if kills < KILLS else 600):
            kills += 1
        assert hashes(Store(where)) == expected


def words_in(where, folder):
    return [f"store={where}" if w.startswith("store=") else w for w in words(folder)]


def test_a_budget_still_ends_in_gate_and_report(tmp_path, capsys):
    toy.demonstrations(tmp_path / "demos.hdf5")
    long = ["retrain.algorithm.cadence.rounds=1000", "budget=1s"]
    code, out = call(*words(tmp_path, *long), capsys=capsys)
    assert code == 0 and out["status"] in ("done", "refused") and out["metrics"]["n"] == 8
    place = Store(tmp_path / "store")
    (retrained,) = place.runs("retrain")
    assert 1 <= retrained["result"]["metrics"]["rounds"] < 1000
    assert (place.root / "report" / "index.html").exists()


def test_it_gets_better(tmp_path, capsys):
    """A real nightly on the toy task: rounds lift what six sloppy demonstrations teach."""
    toy.demonstrations(tmp_path / "demos.hdf5", 6)
    more = [
        "pretrain.algorithm.cadence.improve=400", "pretrain.score_every=400", "retrain.algorithm.cadence={rounds: 3, evaluate: 300, improve: 300}",
        "pretrain.algorithm.lag.policy=0.02", "retrain.algorithm.lag={q: 0.02, policy: 0.02}", "retrain.algorithm.lr=0.002", "retrain.algorithm.critic.width=64",
        "retrain.collect.episodes=48", "promote.gate.pairs=100", "evaluate.episodes=100", "policy.width=64", "policy.depth=2",
    ]  # fmt: skip
    code, out = call(*words(tmp_path, *more), capsys=capsys)
    table = Store(tmp_path / "store").find(out["run"])["content"]["table"]
    print([(row["policy"], row["success"], row.get("p")) for row in table])
    assert code == 0 and out["status"] == "done" and table[2]["p"] < 0.01, table


def test_an_interrupted_run_goes_on(night, tmp_path):
    _, place, done = night
    name = next(r for r in done["content"]["runs"] if r.startswith("pretrain"))
    cfg = place_cfg(place, name)
    copy = lineage.scratch(place, tmp_path / "store", {name})
    asked = run.Run.due
    calls = []

    class Stopped(run.Run):
        def due(self, seconds=20.0):
            calls.append(1)
            if len(calls) == 25:
                os.kill(os.getpid(), signal.SIGINT)  # Ctrl-C: saves, then stops
            return asked(self, seconds)

    original, run.Run = run.Run, Stopped
    try:
        with pytest.raises(KeyboardInterrupt):
            run.execute("pretrain", cfg, copy)
    finally:
        run.Run = original
    assert (copy.root / "runs" / name / "ckpt" / "state.safetensors").exists()
    assert run.plan("pretrain", cfg, copy)["action"] == "resume"
    again = run.execute("pretrain", cfg, copy)
    assert again["outputs"] == place.find(name)["result"]["outputs"]
    assert not config.seconds(None)


@pytest.mark.slow
def test_rl100_is_one_experiment_from_imitation_to_one_step(tmp_path, capsys):
    """Imitation, rounds that grow the corpus and ask the model, PPO online, one step; each a row, each replayable."""
    toy.demonstrations(tmp_path / "demos.hdf5", 12)
    short = ["online.algorithm.collect.steps=60", "online.rounds=2", "online.algorithm.cadence.warmup=0"]
    short += ["online.algorithm.cadence.evaluate=4", "online.algorithm.cadence.improve=4", "online.score_episodes=8"]
    short += ["distil.algorithm.cadence.improve=40", "distil.score_episodes=8", "distil.batch_size=32"]
    mine = [word for word in words(tmp_path, "experiment=rl100", *short) if word != "policy=flow"]
    assert app.main([*mine, "--json"]) == 0
    capsys.readouterr()
    place = Store(tmp_path / "store")
    done = place.runs("nightly")[-1]
    kinds = [name.split("/")[0] for name in done["content"]["runs"]]
    assert kinds[:5] == ["ingest", "pretrain", "retrain", "online", "distil"]
    parts = {name.split("/")[0]: place.find(name) for name in done["content"]["runs"]}
    table = parts["retrain"]["identity"]["config"]["algorithm"]
    assert (table["name"], table["act"], table["cadence"]["improve"]) == ("rl100_rounds", "policy", 20)
    log = [json.loads(line) for line in (place.root / "runs" / parts["retrain"]["result"]["run"] / "log.jsonl").open()]
    assert len([line for line in log if line["kind"] == "gate"]) == 2  # the model was asked in each round
    made = [row["policy"] for row in done["content"]["table"]]
    assert made[0] == "pretrained" and made[-1] == "one-step" and "best-of-N" not in made
    assert parts["distil"]["inputs"]["corpus"]["episodes"] > 12  # the students' states are those of the rounds, too
    for name in ("retrain", "online"):
        assert "outcomes" in parts[name]["content"]
        assert call("replay", parts[name]["result"]["run"], f"store={place.root}", capsys=capsys)[0] == 0
