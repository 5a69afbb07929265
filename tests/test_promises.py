"""What a run, a name and an exit code promise, each where it was once broken."""

import json
import os
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import toy
from small import LITTLE, call, hashes, words

from flywheel import ending, stats, store
from flywheel.cli import app, config
from flywheel.runs import chain, identity, lineage, nightly, run
from flywheel.runs.names import Moved
from flywheel.runs.run import Store

PRETRAIN = ["pretrain", "algorithm.cadence.improve=40", "num_envs=8", "threads=1", *toy.TASK, *LITTLE]


def ingest(folder: Path, count: int, first: int = 900_000_000):
    toy.demonstrations(folder / f"demos{first}.hdf5", count, first)
    source = f"source={folder / f'demos{first}.hdf5'}"
    assert app.main(["ingest", source, "obs_keys=[position,goal]", f"store={folder / 'store'}", *toy.TASK]) == 0


def test_a_run_replays_once_the_corpus_has_grown(tmp_path, capsys):
    """findings A1: `corpus=latest` is resolved once; also in retrain, online and refit, whose config names the
    version."""
    ingest(tmp_path, 6)
    at = f"store={tmp_path / 'store'}"
    made = call(*PRETRAIN, at, capsys=capsys)[1]
    rounds = [
        "algorithm.cadence={rounds: 1, evaluate: 4, improve: 4}", "collect.episodes=4", "batch_size=8", "num_envs=8", "threads=1",
        *toy.TASK,
    ]  # fmt: skip
    runs = [
        made["run"],
        call("retrain", *rounds, at, capsys=capsys)[1]["run"],
        call("refit", *toy.TASK, at, capsys=capsys)[1]["run"],
    ]
    ingest(tmp_path, 4, 900_000_100)
    for name in runs:
        code, out = call("replay", name, at, capsys=capsys)
        assert code == 0 and out["metrics"]["different"] == 0 and out["metrics"]["equal"] > 1, out


def test_a_stage_gets_what_its_inputs_found():
    """findings A1: whatever a stage looks up again, it finds what was decided."""
    inputs = {
        "corpus": {"id": "c", "ref": "7"},
        "checkpoint": {"id": "x", "ref": "policy/a@1"},
        "question": {"id": "q"},
    }
    args = config.compose("pretrain", ["gamma=0.9"])
    assert run.pinned(args, inputs) == replace(args, corpus="7", checkpoint="policy/a@1")
    assert run.pinned(replace(args, data={"v": 1}), inputs).corpus == "latest"


def test_a_run_that_a_budget_cut_short_replays(tmp_path, capsys):
    """findings A2: where a budget ended a run is an output of it, and a replay ends there; without a budget the
    whole is another run."""
    ingest(tmp_path, 6)
    at = f"store={tmp_path / 'store'}"
    long = [*PRETRAIN, "algorithm.cadence.improve=1000000", at]
    code, cut = call(*long, "budget=1s", capsys=capsys)
    assert (code, cut["stopped"]) == (0, "budget") and cut["metrics"]["updates"] < 1_000_000
    code, out = call("replay", cut["run"], at, capsys=capsys)
    assert (code, out["metrics"]["different"]) == (0, 0), out
    assert call(*long, "budget=2s", capsys=capsys)[1]["status"] == "noop"
    place, cfg = Store(tmp_path / "store"), config.load("pretrain", long[1:], tmp_path)
    whole = run.plan("pretrain", cfg, place)
    assert whole["action"] == "miss" and run.plan("pretrain", cfg, place, bounded=True)["run"] == cut["run"]
    folder = place.root / "runs" / whole["run"]
    folder.mkdir()
    (folder / "_DONE.json").write_text("{}")  # as if somebody had done the whole of it
    assert run.plan("pretrain", cfg, place, bounded=True)["run"] == whole["run"]
    shutil.rmtree(folder)
    short = [*PRETRAIN, at]  # one that a budget did not touch is the same run without
    done = call(*short, "budget=9h", capsys=capsys)[1]
    assert "stopped" not in done and call(*short, capsys=capsys)[1]["status"] == "noop"


@pytest.fixture
def candidates(night, copied):
    """(Store, words, a name, checkpoints of it)."""
    _, _, done = night
    refs = [row["checkpoint"] for row in done["content"]["table"]]
    return copied[0], copied[1], refs[0].partition("@")[0], list(dict.fromkeys(refs))


def test_a_promotion_against_another_incumbent_is_not_made(candidates, capsys, monkeypatch):
    """findings A3: production moved while the gate played; it asks again, against what production is now, on other
    seeds."""
    copy, at, name, refs = candidates
    from flywheel.stages import promote

    asked = []
    whole = promote._compare

    def meanwhile(cfg, run, who, question, **more):
        told = whole(cfg, run, who, question, **more)
        asked.append((who["incumbent"], np.load(run.out / "candidate.npz")["seed"][0]))
        if len(asked) == 1:
            copy.names.promote(name, refs[1].partition("@")[2], "", "by another hand")
        return {**told, "figures": {**told["figures"], "ended": "better"}}

    monkeypatch.setattr(promote, "_compare", meanwhile)
    code, out = call("promote", refs[2], "gate.pairs=8", *at, capsys=capsys)
    assert (code, out["status"]) == (0, "done")
    assert [ref for ref, _ in asked] == [refs[0], refs[1]] and asked[0][1] != asked[1][1]
    assert copy.names.log(name)[-1]["over"] == refs[1].partition("@")[2]
    with pytest.raises(Moved, match="production is"):
        copy.names.promote(name, refs[0].partition("@")[2], "r", "late", over=refs[1].partition("@")[2])


def test_against_measures_and_promotes_nothing(candidates, capsys):
    """findings A3: `against=` something else than production answers, and moves nothing; with force it does, and is
    recorded."""
    copy, at, name, refs = candidates
    assert nightly.production(copy, name) == refs[0]
    before = copy.names.log(name)
    for _ in range(2):  # each time on seeds of its own
        code, out = call("promote", refs[2], f"against={refs[1]}", "gate.pairs=8", *at, capsys=capsys)
        assert (code, out["status"], out["outputs"]) == (0, "done", {}) and out["metrics"]["n"] == 8
    assert copy.names.log(name) == before
    call("promote", refs[2], f"against={refs[1]}", "force=the customer insists", "gate.pairs=8", *at, capsys=capsys)
    assert nightly.production(copy, name) == refs[2] and copy.names.log(name)[-1]["forced"]


def test_a_decision_is_never_looked_up(candidates, capsys):
    """findings A13: force, rollback, force again moves the name again; alpha is bounded, and stands in the log; no
    two questions share seeds."""
    copy, at, name, refs = candidates
    for _ in range(2):
        assert call("promote", refs[1], "force=again", *at, capsys=capsys)[1]["status"] == "done"
        assert nightly.production(copy, name) == refs[1]
        call("rollback", name, f"store={copy.root}", capsys=capsys)
        assert nightly.production(copy, name) == refs[0]
    assert (
        app.main(["promote", refs[1], "gate.alpha=2", *at]) == 2 and "gate.alpha=2; expected" in capsys.readouterr().err
    )
    seeds = []
    for _ in range(2):
        out = call("promote", refs[2], "gate.pairs=8", *at, capsys=capsys)[1]
        assert out["status"] == "refused" and copy.names.log(name)[-1]["alpha"] == 0.05
        seeds += np.load(copy.root / "runs" / out["run"] / "out" / "candidate.npz")["seed"].tolist()
    assert len(set(seeds)) == 16
    assert not set(seeds) & {
        s for r in copy.runs("promote")[:1] for s in np.load(copy.dir(r) / "out" / "candidate.npz")["seed"].tolist()
    }


def test_a_gate_that_was_killed_after_its_decision_goes_on_with_it(candidates, capsys):
    """findings A3: the decision of a nightly's gate was written, its record not: the same question, the same answer,
    no second entry."""
    copy, at, name, refs = candidates
    cfg = config.load("promote", [f"checkpoint={refs[2]}", "gate.pairs=8", *at], copy.root)
    cfg = replace(cfg, asked_by="nightly/x")
    first = run.execute("promote", cfg, copy)
    entries = copy.names.log(name)
    (copy.root / "runs" / first["run"] / "_DONE.json").unlink()
    again = run.execute("promote", cfg, copy)
    assert {**again, "seconds": 0} == {**first, "seconds": 0} and copy.names.log(name) == entries


def test_what_only_steers_starts_no_new_night(night, capsys):
    """findings A5: log, threads, device of the same kind and budget are no part of what a night is."""
    folder, _, done = night
    for more in (["log=wandb"], ["threads=2"], ["device=cpu"], ["budget=3h"]):
        code, out = call(*words(folder), *more, capsys=capsys)
        assert (code, out["status"], out["run"]) == (0, "noop", f"nightly/{done['key']}"), more


def test_the_kind_of_device_is_part_of_a_run():
    """findings A5: what a GPU makes is not what a processor makes."""
    kinds = [
        identity.fingerprint(config.stages()["evaluate"], {"device": d})["device"]
        for d in ("cpu", "cuda:1", "cuda", "meta")
    ]
    assert kinds == ["cpu", "cuda", "cuda", "meta"]
    import torch

    assert identity.device_kind("auto") == ("cuda" if torch.cuda.is_available() else "cpu")


def test_the_environments_code_is_an_input(copied, tmp_path, monkeypatch):
    """findings A4: another version of the user's environment is another run; so is another sim/ behind a Gymnasium
    id."""
    (tmp_path / "mine.py").write_text(
        "import toy\nclass Reach(toy.Reach):\n    pass\ntoy.gym.register('Mine-v0', entry_point=Reach, max_episode_steps=20)\n"
    )
    code = "import sys; from flywheel.cli import config; from flywheel.runs import identity; print(identity.fingerprint(config.stages()['evaluate'], {'task': {'name': 'gym', 'id': sys.argv[1]}}))"

    def seen(id_):
        env = {**os.environ, "PYTHONPATH": f"{tmp_path}:{Path(toy.__file__).parent}"}
        return subprocess.run(
            [sys.executable, "-c", code, id_], capture_output=True, text=True, check=True, env=env, cwd=tmp_path
        ).stdout

    before = seen("mine:Mine-v0")
    assert seen("mine:Mine-v0") == before
    (tmp_path / "mine.py").write_text((tmp_path / "mine.py").read_text().replace("pass", "heavier = True"))
    assert seen("mine:Mine-v0") != before
    assert seen("flywheel/Lift-v0") != seen("flywheel/Push-v0")


def test_dry_run_and_run_ask_one_function(night, tmp_path, capsys):
    """findings A6: what a dry run says of a nightly is what the nightly then does: noop, hits up to the first miss,
    and nothing else."""
    folder, place, _ = night
    code, out = call(*words(folder), "--dry-run", capsys=capsys)
    assert code == 0 and [s["action"] for s in out["stages"]] == ["hit"] and out["run"].startswith("nightly/")
    copy = lineage.scratch(place, tmp_path / "store", set())
    again = [w.replace(str(folder / "store"), str(copy.root)) for w in words(folder, "retrain.batch_size=16")]
    before = sorted(p for p in copy.root.rglob("*") if "cache" not in p.parts)
    out = call(*again, "--dry-run", capsys=capsys)[1]
    assert [s["action"] for s in out["stages"]] == ["hit", "miss"]
    assert sorted(p for p in copy.root.rglob("*") if "cache" not in p.parts) == before  # it only looked
    planned = out["stages"]
    assert app.main(again) == 0
    done = copy.runs("nightly")[-1]["content"]["runs"]
    for number, line in enumerate(planned):
        assert done[number] == line["run"]


def test_a_budget_needs_its_unit(capsys):
    """findings A7: 4 is not taken for something else in silence."""
    for bad in ("4", "4d", "-3m", "0s", "soon"):
        assert app.main(["nightly", f"budget={bad}", "store=/nowhere"]) == 2
        assert "expected a duration with its unit" in capsys.readouterr().err


def test_a_budget_bounds_gate_and_evaluation_too(candidates, capsys):
    """findings A7: no further block of episodes once it is spent; how many were played is an output, and replays."""
    copy, at, _, refs = candidates
    at = [w for w in at if not w.startswith("num_envs")] + ["num_envs=4"]
    many = (
        ["evaluate", f"checkpoint={refs[2]}", "episodes=10000"],
        ["promote", refs[2], "gate.pairs=9999", "gate.look=4"],
    )
    for command in many:
        code, out = call(*command, "budget=1s", *at, capsys=capsys)
        assert (
            code == 0
            and out["stopped"] == "budget"
            and 4 <= out["metrics"]["n"] < 4000
            and out["metrics"]["n"] % 4 == 0
        )
        code, again = call("replay", out["run"], f"store={copy.root}", capsys=capsys)
        assert (code, again["metrics"]["different"]) == (0, 0), again["different"]


def test_term_in_the_gate_stops_the_night(tmp_path, night):
    """findings A8: TERM saves and stops, exit code 143, no further stage; the same command ends with the same
    hashes."""
    toy.demonstrations(tmp_path / "demos.hdf5")
    code = (
        "import os, signal, sys\n"
        "from flywheel.cli import app\n"
        "from flywheel.stages import promote\n"
        "whole = promote._compare\n"
        "def asked(*given, **more):\n"
        "    os.kill(os.getpid(), signal.SIGTERM)\n"
        "    return whole(*given, **more)\n"
        "promote._compare = asked\n"
        "sys.exit(app.main(sys.argv[1:]))\n"
    )
    env = {**os.environ, "PYTHONPATH": str(Path(toy.__file__).parent)}
    done = subprocess.run(
        [sys.executable, "-c", code, *words(tmp_path), "--json"], capture_output=True, text=True, env=env
    )
    assert done.returncode == 143, done.stderr
    told = json.loads(done.stdout.splitlines()[-1])
    assert told["status"] == "stopped" and "SIGTERM" in told["error"]
    place = Store(tmp_path / "store")
    assert not place.runs("evaluate") and not place.runs("nightly")
    assert app.main(words(tmp_path)) == 0
    assert hashes(place) == hashes(night[1])


def test_weights_are_compared_with_their_hash(candidates, capsys):
    """findings A9: damaged weights are refused wherever they are loaded, and found by fsck, as are damaged runs,
    names and ledger."""
    copy, at, name, refs = candidates
    at_store = f"store={copy.root}"
    assert call("fsck", at_store, capsys=capsys)[1]["metrics"]["findings"] == 0
    file = copy.checkpoint(refs[0])["file"]
    whole = file.read_bytes()
    file.unlink()  # the copy's files are hard links
    file.write_bytes(whole[:-1500] + bytes(1500))
    import flywheel

    with pytest.raises(ValueError, match="are damaged"):
        flywheel.load(refs[0], store=str(copy.root))
    for command in (
        ["evaluate", f"checkpoint={refs[0]}", "episodes=4", "first=99"],
        ["promote", refs[2], "gate.pairs=4"],
    ):
        code, out = call(*command, *at, capsys=capsys)
        assert code == 1 and "are damaged" in out["error"]
    found = call("fsck", at_store, capsys=capsys)
    assert found[0] == 1 and any("weights are damaged" in f for f in found[1]["findings"])
    assert any("is not what was written" in f for f in found[1]["findings"])
    entry = copy.names.path / name / "00000002.json"
    told = json.loads(entry.read_text())
    entry.write_text(json.dumps({**told, "reason": "better, honestly"}))
    with pytest.raises(chain.ChainError, match="00000002.json"):
        copy.names.resolve(name)
    assert any("00000002.json" in f for f in call("fsck", at_store, capsys=capsys)[1]["findings"])


def test_the_reports_lineage_is_the_commands(tmp_path, capsys):
    """findings A10: a second file with the same rows is no parent; both ask one function, which follows who added
    the episodes."""
    from flywheel.runs import ancestry

    ingest(tmp_path, 6)
    place = Store(tmp_path / "store")
    (first,) = place.runs("ingest")
    (tmp_path / "again").mkdir()
    shutil.copy(tmp_path / "demos900000000.hdf5", tmp_path / "again" / "demos900000000.hdf5")
    toy.demonstrations(tmp_path / "again" / "other.hdf5", 3, 900_000_200)
    words_ = [f"source={tmp_path / 'again'}/*.hdf5", "obs_keys=[position,goal]", f"store={place.root}", *toy.TASK]
    made = call(*PRETRAIN, f"store={place.root}", capsys=capsys)[1]
    assert app.main(["ingest", *words_]) == 0
    nodes, _ = ancestry.graph(place, place.runs(), made["outputs"]["checkpoint"])
    assert [n["title"] for n in nodes if n["title"].startswith("ingest/")] == [f"ingest/{first['key']}"]
    lines = lineage.lineage(made["outputs"]["checkpoint"], place)
    assert any("demos900000000.hdf5" in line["detail"] and "other" not in line["detail"] for line in lines)


def test_nights_never_share_a_number(night, tmp_path, capsys):
    """findings A11: the ledger gives each night its number for ever, also where a folder was deleted; gc waits for
    the lock."""
    folder, place, done = night
    copy = lineage.scratch(place, tmp_path / "store", set())
    shutil.rmtree(copy.root / "runs" / "nightly" / done["key"])
    again = [w.replace(str(folder / "store"), str(copy.root)) for w in words(folder, "retrain.batch_size=16")]
    assert app.main(again) == 0
    assert copy.runs("nightly")[-1]["content"]["night"] == 1
    with store.Lock(copy.root, "nightly"):
        assert call("gc", "apply=true", f"store={copy.root}", capsys=capsys)[0] == 1


def test_the_newest_is_what_the_record_says(night, tmp_path):
    """findings A12: a copied store, whose files are all of one time or in another order, has the same order of runs."""
    _, place, _ = night
    names = [f"{r['stage']}/{r['key']}" for r in place.runs()]
    copy = lineage.scratch(place, tmp_path / "store", set())
    for number, name in enumerate(reversed(names)):
        path = copy.root / "runs" / name / "_DONE.json"
        data = path.read_bytes()
        path.unlink()
        path.write_bytes(data)
        os.utime(path, (number, number))
    assert [f"{r['stage']}/{r['key']}" for r in copy.runs()] == names


def test_a_gradient_that_is_not_finite_is_left_out_and_ends_no_run_for_good(tmp_path, capsys, monkeypatch):
    """findings B4: single updates are left out; ten in a row end the run, which hands over the best of its curve and
    says why."""
    import torch

    from flywheel.policy.flow import Flow

    ingest(tmp_path, 6)
    at = f"store={tmp_path / 'store'}"
    whole, calls = Flow.bc_loss, []

    def bc_loss(self, *given, **more):
        calls.append(1)
        bad = len(calls) in (7, 8) or len(calls) > 11
        return whole(self, *given, **more) * (float("nan") if bad else 1.0)

    monkeypatch.setattr(Flow, "bc_loss", bc_loss)
    code, out = call(*PRETRAIN, "algorithm.cadence.improve=200", at, capsys=capsys)
    assert (code, out["status"]) == (0, "done") and "was not finite in 10 updates in a row" in out["stopped"]
    policy = Store(tmp_path / "store").load(out["outputs"]["checkpoint"])
    assert out["metrics"]["updates"] == 10 and all(torch.isfinite(p).all() for p in policy.parameters())


@pytest.mark.parametrize(
    "error", [AttributeError("'x' has no y"), RecursionError(), MemoryError(), KeyError("q"), SystemExit(3)]
)
def test_whatever_happens_there_is_a_sentence_a_line_and_a_code(error, capsys, monkeypatch, tmp_path):
    """findings B6: any class of exception ends in one sentence, one JSON line and exit code 1."""
    from flywheel.cli import commands

    def runs(words, place):
        raise error

    monkeypatch.setattr(commands, "runs", runs)
    code, out = call("runs", f"store={tmp_path}", capsys=capsys)
    assert code == 1 and out["status"] == "failed" and type(error).__name__ in out["error"]


def test_a_crash_of_a_stage_leaves_its_traceback_beside_the_run(candidates, capsys, monkeypatch):
    """findings B6: an exception that nobody foresaw names the file with its traceback; a damaged saved state begins
    again."""
    copy, at, _, refs = candidates

    def score(*given, **more):
        raise AttributeError("no such thing")

    monkeypatch.setattr("flywheel.env.scoring.score", score)
    code, out = call("evaluate", f"checkpoint={refs[0]}", "episodes=4", "first=9", *at, capsys=capsys)
    path = Path(out["error"].rsplit(" ", 1)[1])
    assert code == 1 and "no such thing" in path.read_text() and path.is_relative_to(copy.root)


def test_damaged_leftovers_block_nothing(copied, capsys):
    """findings B6: a cut-off saved state, an empty cached command, an empty record of another run."""
    copy, at = copied
    words_ = [*PRETRAIN, "gamma=0.9", *at]
    planned = run.plan("pretrain", config.load("pretrain", words_[1:], copy.root), copy)
    folder = copy.root / "runs" / planned["run"]
    (folder / "ckpt").mkdir(parents=True)
    (folder / "ckpt" / "state.safetensors").write_bytes(b"\x10\x00")
    for path in (copy.cache / "commands").glob("*.json"):
        path.unlink()
        path.write_bytes(b"")
    other = copy.root / "runs" / "evaluate" / "damaged" / "_DONE.json"
    other.parent.mkdir()
    other.write_bytes(b"")
    code, out = call(*words_, capsys=capsys)
    assert (code, out["status"]) == (0, "done"), out
    assert app.main(["runs", f"store={copy.root}"]) == 0
    assert any("damaged/_DONE.json" in f for f in call("fsck", f"store={copy.root}", capsys=capsys)[1]["findings"])


def test_a_nightly_without_demonstrations_has_failed(tmp_path, capsys):
    """findings B7: all recordings quarantined, or none usable, is exit code 1; the sentence says which filter took
    how many."""
    toy.demonstrations(tmp_path / "demos.hdf5", 3)
    at = [w for w in words(tmp_path) if not w.startswith("ingest.obs_keys")]
    code, out = call(*at, "ingest.obs_keys=[position]", capsys=capsys)
    assert code == 1 and out["status"] == "failed" and "quarantined" in out["error"], out
    code, out = call(*words(tmp_path), "demos.origin=human:*", capsys=capsys)
    assert code == 1 and "3 of toy:Reach-v0" in out["error"] and "0 of origin human:*" in out["error"], out


def test_no_lock_through_a_link_and_a_group_may_share(tmp_path):
    """findings D1: store/lock is no way to truncate another file; its mode is left to the umask."""
    victim = tmp_path / "precious"
    victim.write_text("keep me")
    (tmp_path / "store").mkdir()
    (tmp_path / "store" / "lock").symlink_to(victim)
    with pytest.raises(store.LockError, match="is a link to"), store.Lock(tmp_path / "store"):
        pass
    assert victim.read_text() == "keep me"
    before = os.umask(0o002)
    try:
        with store.Lock(tmp_path / "shared"):
            assert (tmp_path / "shared" / "lock").stat().st_mode & 0o777 == 0o664
    finally:
        os.umask(before)


def test_what_only_reads_runs_beside_others(candidates, capsys):
    """findings F8: no stage waits for another; for gc, which takes away, they do, and it for them."""
    copy, at, _, refs = candidates
    with store.Lock(copy.root, "nightly", shared=True):
        assert call("evaluate", f"checkpoint={refs[0]}", "episodes=4", "first=50", *at, capsys=capsys)[0] == 0
        assert call("promote", refs[2], "gate.pairs=4", *at, capsys=capsys)[0] == 0
        assert call("gc", "apply=true", f"store={copy.root}", capsys=capsys)[0] == 1
    with store.Lock(copy.root, "gc"):
        code, out = call("evaluate", f"checkpoint={refs[0]}", "episodes=4", "first=60", *at, capsys=capsys)
        assert code == 1 and "in use by gc" in out["error"]


def test_signals_are_told_apart():
    assert ending.told(ending.Stopped(signal.SIGTERM))[1] == 143
    assert ending.told(KeyboardInterrupt())[1] == 130
    assert ending.told(ending.Failed("no good", {"metrics": {"added": 0}})) == (
        {"metrics": {"added": 0}, "status": "failed", "error": "no good"},
        1,
    )


def test_fishers_test_by_hand():
    """Of 3 and 3 episodes 3 and 0 succeed: one of C(6, 3) = 20 ways."""
    won, lost = np.ones(3, bool), np.zeros(3, bool)
    assert stats.fisher(won, lost)["p"] == pytest.approx(1 / 20)
    assert stats.fisher(lost, won)["p"] == 1.0
    assert stats.fisher(np.array([1, 1, 0], bool), np.array([1, 0, 0], bool))["p"] == pytest.approx((9 + 1) / 20)


def test_values_are_refused_by_their_key(capsys):
    """findings E2: a wrong value names its key, what it is, and what was expected; so does a key that nobody reads."""
    for bad, text in [
        (["pretrain", "batch_size=abc"], "batch_size=abc; expected a whole number from 1"),
        (["pretrain", "gamma=2"], "gamma=2; expected a number from 0 to 1"),
        (["evaluate", "checkpoint=x", "num_envs=0"], "num_envs=0; expected"),
        (["retrain", "collect.n=0"], "collect.n=0; expected"),
        (["pretrain", "policy.widht=3"], "did you mean policy.width=?"),
        (["pretrain", "algorithm.compil=true"], "did you mean algorithm.compile=?"),
        (["pretrain", "task=gym", "task.id=x", "task.kwarg={}"], "did you mean task.kwargs=?"),
        (["nightly", "algorithm.lr=1"], "pretrain.algorithm= or retrain.algorithm="),
        (["nightly", "collect.episodes=1.5"], "retrain.collect.episodes=1.5; expected a whole number"),
        (["nightly", "policy=[flow,flaw]"], "no policy 'flaw'"),
        (["nightly", "policy=[flow,gaussian]", "begin=act"], "policy=[flow, gaussian]"),
        (["ingest", "source=x", "outcome={success_when: reward > 0.99}"], "needs quotes of its own"),
    ]:
        assert app.main([*bad, "store=/nowhere"]) == 2, bad
        assert text in capsys.readouterr().err, bad


def test_one_spelling_of_one_act(tmp_path):
    """findings E2: options that no YAML lists, and dictionaries, are given like any other; a nightly hands a key to
    the stage that has it."""
    cfg = config.load(
        "pretrain",
        [
            "algorithm.compile=true",
            "algorithm.critic.activation=relu",
            "policy.activation=relu",
            "task=gym",
            "task.id=x",
            "task.kwargs={a: 1}",
        ],
        tmp_path,
    )
    assert (cfg.algorithm.compile, cfg.policy["activation"], cfg.task.kwargs) == (True, "relu", {"a": 1})
    cfg = config.load(
        "nightly", ["obs_keys=[a,b]", "collect.n=4", "policy=[flow,gaussian]", "policy.log_std=-2"], tmp_path
    )
    assert cfg.ingest.obs_keys == ["a", "b"] and cfg.retrain.collect.n == 4
    assert list(cfg.policies) == ["flow", "gaussian"] and cfg.policies["gaussian"]["log_std"] == -2
    assert "log_std" not in cfg.policies["flow"]


@pytest.mark.parametrize("stage", ["retrain", "online"])
@pytest.mark.parametrize(
    ("word", "where", "means"),
    [
        (".mixture.improve={own: 1.0}", ("mixture", "improve"), {"own": 1.0}),
        ("={mixture: {improve: {own: 1.0}}}", ("mixture", "improve"), {"own": 1.0}),
        (".mixture={improve: {own: 1.0}}", ("mixture", "improve"), {"own": 1.0}),
        (".evaluate={q: {td: {next_value: state_value}}}", ("evaluate", "q"), {"td": {"next_value": "state_value"}}),
        (".improve={policy: {imitate: {successes: true}}}", ("improve", "policy"), {"imitate": {"successes": True}}),
        (".improve.policy={imitate: {}}", ("improve", "policy"), {"imitate": {}}),
        (".evaluate.q.td={next_value: soft}", ("evaluate", "q"), {"td": {"next_value": "soft"}}),
        (
            ".evaluate.q.td.next_value=soft",
            ("evaluate", "q"),
            {"td": {"next_value": "soft", "lower_bound": True}},
        ),
        (".advantage={gae: {lam: 1e-1}}", ("advantage",), {"gae": {"lam": 0.1}}),
        (".lag={policy: 0.5}", ("lag", "policy"), 0.5),
    ],
)
def test_a_table_of_losses_or_shares_takes_the_place_of_another_in_a_stage_and_in_a_night(
    stage, word, where, means, tmp_path
):
    """A stage mixed them ({demos: 0.1, own: 1.0}), a night did not: the same words were two algorithms."""
    name = "rounds" if stage == "retrain" else "ogpo"
    alone = config.load(stage, [f"algorithm={name}", f"algorithm{word}"], tmp_path).algorithm
    night = config.load("nightly", [f"{stage}.algorithm={{name: {name}}}", f"{stage}.algorithm{word}"], tmp_path)
    within = getattr(night, stage).algorithm
    for found in (alone, within):
        value = getattr(found, where[0])
        for key in where[1:]:
            value = value[key]
        assert value == means
    assert alone.mixture == within.mixture and alone.evaluate == within.evaluate and alone.improve == within.improve
    assert alone.lag == within.lag and alone.advantage == within.advantage


def test_a_name_is_refused_before_the_training(tmp_path, capsys):
    """findings D1: name=../../x is refused at once, nothing is begun."""
    ingest(tmp_path, 3)
    for stage in ("pretrain", "retrain", "online", "refit"):
        more = ["algorithm=rlpd"] if stage == "online" else []
        code, out = call(stage, "name=../../x", *more, *toy.TASK, f"store={tmp_path / 'store'}", capsys=capsys)
        assert code == 1 and "name '../../x'; expected" in out["error"], out
        assert not (tmp_path / "store" / "runs" / stage).exists()


def test_the_base_is_the_best_imitation_there_is(tmp_path, capsys):
    """findings F1: each class is trained, compared on the same seeds by successive halving, and the winner is what
    all is compared with; practice begins with the one that is named."""
    toy.demonstrations(tmp_path / "demos.hdf5")
    four = ["policy=[flow,deterministic,diffusion,gaussian]", "choose.episodes=16", "begin=diffusion"]
    at = [w for w in words(tmp_path) if w != "policy=flow"]
    code, out = call(*at, *four, capsys=capsys)
    place = Store(tmp_path / "store")
    done = place.find(out["run"])
    table = done["content"]["tournament"]
    assert code == 0 and [row["policy"] for row in table] == ["flow", "deterministic", "diffusion", "gaussian"]
    (best,) = [row for row in table if row["chosen"]]
    assert done["content"]["table"][0]["checkpoint"] == best["checkpoint"] and best["n"] == 16
    assert sorted(row["n"] for row in table) == [4, 4, 16, 16] and best["success"] == max(
        r["success"] for r in table if r["n"] == 16
    )
    began = next(r for r in place.runs("retrain"))["inputs"]["checkpoint"]["ref"]
    assert place.load(began).spec["kind"] == "diffusion"
    seeds = {
        s for r in place.runs("evaluate") for s in np.load(place.dir(r) / "out" / "checkpoint.npz")["seed"].tolist()
    }
    from flywheel.args import Acting
    from flywheel.seeds import seeds as block
    from flywheel.stages import choose

    for what in choose.OFFSET:
        assert not seeds & set(block("gate", Acting(), choose.OFFSET[what], 2500))
    assert "The best imitation there is" in (place.root / "report" / "index.html").read_text()


def test_the_better_half_goes_on():
    from flywheel.stages.choose import better

    won = {
        "a": np.array([1, 0, 0, 0]),
        "b": np.array([1, 1, 0, 0]),
        "c": np.array([1, 1, 1, 0]),
        "d": np.array([0, 1, 0, 0]),
    }
    assert (
        better(list("abcd"), won) == ["c", "b"]
        and better(list("ab"), won) == ["b"]
        and better(list("ad"), won) == ["a"]
    )


def test_the_gate_is_asked_about_the_best_candidate_and_a_refused_night_is_not_lost(night, tmp_path, capsys):
    """findings F6: retrained, best-of-N and, beside an incumbent, the base are compared; after a refusal rounds=+N
    goes on from what was refused."""
    folder, place, done = night
    assert done["result"]["status"] == "refused"
    choice = next(r for r in place.runs("choose"))
    assert choice["inputs"]["checkpoints"]["refs"] == [row["checkpoint"] for row in done["content"]["table"][1:]]
    asked = next(r for r in place.runs("promote"))["inputs"]["checkpoint"]["ref"]
    assert asked == choice["result"]["outputs"]["checkpoint"] == done["content"]["candidate"]
    copy = lineage.scratch(place, tmp_path / "store", set())
    again = [w.replace(str(folder / "store"), str(copy.root)) for w in words(folder, "rounds=+1")]
    assert app.main(again) == 0
    assert copy.runs("retrain")[-1]["inputs"]["checkpoint"]["ref"] == asked
    assert copy.runs("nightly")[-1]["content"]["table"][0]["checkpoint"] == done["result"]["outputs"]["checkpoint"]


def test_what_no_seed_decides_is_tested_unpaired_and_not_compared(tmp_path, monkeypatch, capsys):
    """findings C4: an environment that ignores its seeds: the gate sets each episode against the next of the other, and says so; a replay says
    what it cannot compare."""
    (tmp_path / "restless.py").write_text(
        "import numpy as np, toy\n"
        "class Restless(toy.Reach):\n"
        "    def reset(self, *, seed=None, options=None):\n"
        "        return super().reset(seed=None if seed is None else int(np.random.default_rng().integers(2**31)))\n"
        "toy.gym.register('Restless-v0', entry_point=Restless, max_episode_steps=20)\n"
    )
    toy.demonstrations(tmp_path / "demos.hdf5")
    monkeypatch.syspath_prepend(str(tmp_path))
    at = ["task=gym", "task.id=restless:Restless-v0", "task.max_steps=20", f"store={tmp_path / 'store'}"]

    def flywheel(*given):
        code = app.main([*given, *(at if given[0] != "replay" else at[3:]), "--json"])
        out, said = capsys.readouterr()
        assert code == 0, said
        return json.loads(out.splitlines()[-1]), said

    assert flywheel("ingest", f"source={tmp_path / 'demos.hdf5'}", "obs_keys=[position,goal]")[0]["status"] == "done"
    little = ["algorithm.cadence.improve=20", "num_envs=4", "threads=1", *LITTLE]
    refs = [flywheel("pretrain", f"seed={s}", *little)[0]["outputs"]["checkpoint"] for s in (1, 2)]
    assert flywheel("promote", refs[0])[0]["status"] == "done"
    out, said = flywheel("promote", refs[1], "gate.pairs=8", "num_envs=4", "threads=1")
    assert "does not honour seeds" in said and "that no seed pairs" in said and out["metrics"]["n"] == 8
    out, said = flywheel("replay", out["run"])
    assert out["status"] == "done" and out["metrics"]["different"] == 0 and out["metrics"]["not_comparable"] >= 1, out
    assert "does not honour its seeds" in said
