"""What an adversary broke, each as it should be."""

import os
import shutil
import signal

import pytest
import toy
from small import LITTLE, call, words

from flywheel import log
from flywheel.args import UsageError
from flywheel.cli import complete, config
from flywheel.runs import chain, lineage, nightly, run, which
from flywheel.stages import promote


@pytest.fixture
def three(night, copied):
    """(Store, words that every stage on it needs, a name, three checkpoints of it)."""
    refs = list(dict.fromkeys(row["checkpoint"] for row in night[2]["content"]["table"]))
    return copied[0], copied[1], refs[0].partition("@")[0], refs[:3]


@pytest.mark.slow
def test_a_choice_that_a_budget_cut_short_replays(three, monkeypatch):
    """findings A2: also where it was cut after some had dropped out: what is told is how many seeds of the whole
    choice were played."""
    place, _, _, refs = three
    asked = []

    def spent(self, at):
        asked.append(at)
        if len(asked) == 2:
            self.stopped = {"why": "budget", "at": at}
        return len(asked) == 2

    cfg = config.load("choose", [f"checkpoints=[{','.join(refs)}]", "episodes=32", "num_envs=4", *toy.TASK], place.root)
    with monkeypatch.context() as patched:
        patched.setattr(run.Run, "out_of_time", spent)
        made = run.execute("choose", cfg, place, deadline=float("inf"))
    assert made["stopped"] == "budget" and asked == [4, 12]
    assert sorted(row["n"] for row in made["metrics"]["table"]) == [8, 12, 12]
    assert lineage.replay(made["run"], place)["metrics"]["different"] == 0


def test_a_choice_of_one_and_of_none(three, capsys):
    """findings B6: of one checkpoint, also named twice, it is that one and nothing is played; none, or what is no
    choice, is refused."""
    _, at, _, refs = three
    code, out = call("choose", f"checkpoints=[{refs[1]},{refs[1]}]", *at, capsys=capsys)
    assert (code, out["outputs"], out["metrics"]) == (0, {"checkpoint": refs[1]}, {})
    for wrong in (["checkpoints=[]"], [f"checkpoints={refs[0]}"], ["what=best"], ["episodes=2501"]):
        code, out = call("choose", f"checkpoints=[{','.join(refs)}]", *wrong, *at, capsys=capsys)
        assert code == 2 and "expected" in out["error"], out


def test_a_first_night_does_not_overrule_what_was_promoted_meanwhile(tmp_path, monkeypatch, capsys):
    """findings A3: nothing was in production when it began, and something is when its base is chosen: production
    stays, the gate compares with it, and table and metrics tell of it."""
    toy.demonstrations(tmp_path / "demos.hdf5")
    place, name = run.Store(tmp_path / "store"), "policy/Reach-v0"
    ingest = [f"source={tmp_path / 'demos.hdf5'}", "obs_keys=[position,goal]"]
    at = [f"store={place.root}", *toy.TASK]
    assert call("ingest", *ingest, *at, capsys=capsys)[0] == 0
    own = ["algorithm.cadence.improve=20", "seed=2", "num_envs=8"]
    other = call("pretrain", *own, *LITTLE, *at, capsys=capsys)[1]["outputs"]["checkpoint"]
    base = nightly._base

    def meanwhile(*given):
        found = base(*given)
        place.names.promote(name, other.partition("@")[2], "", "by another hand")
        return found

    monkeypatch.setattr(nightly, "_base", meanwhile)
    code, out = call(*words(tmp_path), capsys=capsys)
    decided = [(e["op"], e["run"]) for e in place.names.log(name) if e["op"] != "make"]
    assert code == 0 and decided[0] == ("promote", "") and decided[1][1].startswith("promote/") and len(decided) == 2
    rows = place.runs("nightly")[0]["content"]["table"]
    standing = out["outputs"]["checkpoint"]
    (row,) = [row for row in rows if row["checkpoint"] == standing]
    assert nightly.production(place, name) == standing and out["metrics"]["success"] == row["success"]
    if out["status"] == "refused":
        assert standing == other and row["policy"] == "production"


@pytest.mark.slow
def test_a_night_that_its_budget_cut_short_is_not_the_whole(tmp_path, capsys):
    """findings A2: found again by commands with a budget, and done as a whole by one without: another night, with
    seeds of its own."""
    toy.demonstrations(tmp_path / "demos.hdf5")
    cut = call(*words(tmp_path), "budget=0.001s", capsys=capsys)[1]
    assert cut["stopped"] == "budget"
    assert call(*words(tmp_path), "budget=9h", capsys=capsys)[1]["status"] == "noop"
    whole = call(*words(tmp_path), capsys=capsys)[1]
    assert "stopped" not in whole and whole["run"] != cut["run"]
    again = call(*words(tmp_path), capsys=capsys)[1]
    assert (again["status"], again["run"]) == ("noop", whole["run"])
    place = run.Store(tmp_path / "store")
    assert [r["content"]["night"] for r in place.runs("nightly")] == [0, 1]
    assert not any(r["result"].get("stopped") for r in place.runs("pretrain")[1:])


@pytest.mark.slow
def test_what_a_night_wrote_when_it_began_may_be_damaged(copied, night, capsys):
    """findings B6: it blocks no other night, and its number is not given out again."""
    place, (folder, _, done) = copied[0], night
    path = place.root / "runs" / "nightly" / done["key"] / "begin.json"
    path.unlink()
    path.write_bytes(b"")
    again = [w.replace(str(folder / "store"), str(place.root)) for w in words(folder, "retrain.batch_size=16")]
    assert call(*again, capsys=capsys)[0] == 0
    assert place.runs("nightly")[-1]["content"]["night"] == 1


def test_a_refusal_too_is_against_production_as_it_is(three, capsys, monkeypatch):
    """findings A3: production moved while the gate played: what would have been refused against the old one is asked
    again."""
    place, at, name, refs = three
    whole, asked = promote._compare, []

    def meanwhile(cfg, run, who, question, **more):
        told = whole(cfg, run, who, question, **more)
        asked.append(who["incumbent"])
        if len(asked) == 1:
            place.names.promote(name, refs[1].partition("@")[2], "", "by another hand")
        return {**told, "figures": {**told["figures"], "ended": "futile"}}

    monkeypatch.setattr(promote, "_compare", meanwhile)
    code, out = call("promote", refs[2], "gate.pairs=8", *at, capsys=capsys)
    assert (code, out["status"]) == (0, "refused") and asked == [refs[0], refs[1]]
    assert out["outputs"]["checkpoint"] == refs[1] and place.names.log(name)[-1]["over"] == refs[1].partition("@")[2]


def test_an_entry_that_is_gone_is_found(three, capsys):
    """findings A9: a hole in a log of names, or no first entry, is said; it does not make the log end there."""
    place, _, name, _ = three
    for number in (2, 1):
        file = place.names.path / name / f"0000000{number}.json"
        data = file.read_bytes()
        file.unlink()
        with pytest.raises(chain.ChainError, match="is gone, and later ones are there"):
            place.names.resolve(name)
        code, out = call("fsck", f"store={place.root}", capsys=capsys)
        assert code == 1 and any(f"0000000{number}.json: this entry is gone" in f for f in out["findings"])
        file.write_bytes(data)
    assert place.names.resolve(name)


@pytest.mark.parametrize("words_", [["nightly", "--quick"], ["nigtly"], [], ["rollback", "policy/x", "--dry-run"]])
def test_what_is_not_understood_ends_with_a_line_too(words_, capsys):
    """findings B6: an unknown flag, an unknown command, none at all, a dry run of what has none: code 2, one object."""
    code, out = call(*words_, capsys=capsys)
    assert code == 2 and out["status"] == "failed" and out["error"]


def test_a_dry_run_does_nothing(three, capsys):
    """findings A6: of commands that are no stages there is none: it is refused, where it did the thing."""
    place, _, name, refs = three
    place.names.promote(name, refs[1].partition("@")[2], "", "by hand")
    at = f"store={place.root}"
    for command in (["rollback", name], ["gc", "apply=true"], ["corpus", "tombstone", "x", "message=y"], ["report"]):
        assert call(*command, "--dry-run", at, capsys=capsys)[0] == 2
    assert nightly.production(place, name) == refs[1]


def test_a_replay_with_changes_reads_and_checks_them(three, capsys):
    """findings A5: gamma=0.99 is the number that it was, batch_size=abc is refused, a nightly is no stage."""
    place, _, _, _ = three
    at, made = f"store={place.root}", place.runs("pretrain")[0]
    name = f"pretrain/{made['key']}"
    code, out = call("replay", name, "gamma=0.99", "demos={origin: null, failures: false}", at, capsys=capsys)
    assert (code, out["status"], out["run"]) == (0, "noop", name)
    for wrong in (
        [name, "batch_size=abc"],
        [name, "budget=4"],
        [f"nightly/{place.runs('nightly')[0]['key']}", "seed=2"],
    ):
        code, out = call("replay", *wrong, at, capsys=capsys)
        assert code == 2, out


def test_completion_looks_into_the_store_that_is_typed(three, tmp_path):
    """findings E: names come from store=DIR where the line has it."""
    place, _, name, refs = three
    found = complete.candidates(f"flywheel evaluate store={place.root} checkpoint={name}@", tmp_path / "none")
    assert {f"checkpoint={ref}" for ref in refs} <= set(found)


def test_rounds_end_where_the_seeds_of_a_night_do(three, capsys, monkeypatch):
    """findings B4: more rounds than a night has seeds for end with what they have, in place of failing for good."""
    _, at, _, refs = three
    from flywheel import seeds
    from flywheel.rl import practice, rounds
    from flywheel.stages import retrain

    for module in (seeds, practice, rounds, retrain):
        monkeypatch.setattr(module, "NIGHT", 8)
    monkeypatch.setattr(retrain, "SCORING", 0)
    own = [
        "algorithm.cadence={rounds: 5, evaluate: 2, improve: 2}",
        "collect.episodes=4",
        "batch_size=8",
        "score_episodes=0",
    ]
    code, out = call("retrain", f"checkpoint={refs[0]}", *own, *at, capsys=capsys)
    assert code == 0 and out["metrics"]["rounds"] == 2, out


@pytest.mark.parametrize(
    "words_",
    [
        "pretrain algorithm.lr=abc", "pretrain algorithm.lr=-1", "pretrain algorithm.lr={policy: x}", "pretrain algorithm.optimiser=adam",
        "pretrain task.success=sometimes", "pretrain task.reward=dense", "pretrain demos.failures=maybe", "retrain prior=perhaps",
        "retrain rounds=+1", "retrain rounds=0", "nightly rounds=-1", "nightly rounds=+0", "nightly rounds=2.5",
        "nightly retrain.algorithm.lr=-1", "online algorithm.collect.steps=0",
    ],
)  # fmt: skip
def test_a_wrong_value_is_refused_before_anything_begins(words_, tmp_path):
    """findings E: with what it is and what was expected; also where a nightly hands it to a stage of hours later."""
    stage, _, word = words_.partition(" ")
    with pytest.raises(UsageError, match="expected"):
        config.load(stage, [word, *toy.TASK], tmp_path)


@pytest.mark.parametrize(
    "words_",
    [
        "pretrain task.step_seconds=0", "pretrain algorithm.lr={policy: 1e-4}", "pretrain algorithm.schedule=null", "nightly rounds=+2",
        "nightly rounds=3", "retrain rounds=3", "retrain prior=true", "pretrain task.success=held:5", "nightly task.reward=env",
    ],
)  # fmt: skip
def test_a_right_value_is_not_refused(words_, tmp_path):
    """findings E: task.step_seconds=0 steps environments in this process, as the message about a dead one says."""
    stage, _, word = words_.partition(" ")
    config.load(stage, [word, *toy.TASK], tmp_path)


def test_a_nightly_refuses_at_once_what_a_later_stage_would(night, copied, capsys):
    """findings E: an algorithm that retraining cannot take, something to measure against that is not there."""
    place, (folder, _, _) = copied[0], night
    before = len(place.runs())
    for wrong in ("retrain.algorithm=ppo", "promote.against=policy/none"):
        again = [w.replace(str(folder / "store"), str(place.root)) for w in words(folder, wrong)]
        again = [w for w in again if not w.startswith("retrain.algorithm.")] if "ppo" in wrong else again
        code, out = call(*again, capsys=capsys)
        assert code == 1 and len(place.runs()) == before, out


def test_term_at_any_moment_ends_with_a_line(tmp_path, capsys, monkeypatch):
    """findings B6: asked to stop while it still reads its configuration: code 143, one object, nothing begun."""
    whole = config.load

    def load(*given):
        os.kill(os.getpid(), signal.SIGTERM)
        return whole(*given)

    monkeypatch.setattr(config, "load", load)
    code, out = call("pretrain", f"store={tmp_path}", *toy.TASK, capsys=capsys)
    assert (code, out["status"]) == (143, "stopped") and not (tmp_path / "runs").exists()


def test_a_store_of_an_older_flywheel_keeps_its_name(night, copied, capsys):
    """findings A12: where production has the name that an older flywheel gave to the task, the night goes on from
    it, not from nothing."""
    place, (folder, _, done) = copied[0], night
    old, new = "policy/toy-Reach-v0", "policy/Reach-v0"
    (place.names.path / new).rename(place.names.path / old)
    shutil.rmtree(place.root / "runs" / "nightly")
    again = [w.replace(str(folder / "store"), str(place.root)) for w in words(folder, "retrain.batch_size=16")]
    code, out = call(*again, capsys=capsys)
    assert code == 0 and place.names.names() == [old]
    assert out["inputs"]["checkpoint"] == done["result"]["outputs"]["checkpoint"].replace(new, old)


def test_a_budget_bounds_the_fitting_of_critics(three, monkeypatch):
    """findings A7: offline RL whose budget is spent while critics are fitted ends there, hands over what it has, and
    replays."""
    place, _, _, _ = three
    asked, whole = [], run.Run.out_of_time

    def spent(self, at):
        asked.append(at)
        self.deadline = float("inf") if len(asked) < 4 else 0.0
        return whole(self, at)

    own = ["algorithm=iql_one_step", "policy=gaussian", "algorithm.cadence={rounds: 1, evaluate: 9, improve: 10}"]
    cfg = config.load("pretrain", [*own, *LITTLE, *toy.TASK, "num_envs=4"], place.root)
    with monkeypatch.context() as patched:
        patched.setattr(run.Run, "out_of_time", spent)
        patched.setattr(log, "BEAT", -1.0)  # progress is told at each update: to read a loss must leave no trace
        made = run.execute("pretrain", cfg, place, deadline=float("inf"))
    assert (made["stopped"], made["metrics"]["updates"], len(asked)) == ("budget", 0, 4) and asked[-1] == [0, 1, 4]
    assert lineage.replay(made["run"], place)["metrics"]["different"] == 0


@pytest.mark.parametrize(
    "word",
    [
        "pretrain.demos.origin=*",
        "retrain.corpus=1",
        "retrain.prior=true",
        "online.checkpoint=policy/x@1",
        "pretrain.night=3",
    ],
)
def test_what_a_night_decides_itself_is_refused(word, tmp_path):
    """Of a stage it would have no effect; said of the whole night it has one."""
    cfg = config.load("nightly", ["task=lift", "distil={}", word], tmp_path)
    with pytest.raises(UsageError, match="a nightly decides that itself"):
        which.refuse_decided(cfg)
    which.refuse_decided(config.load("nightly", ["task=lift", "distil={}", "demos.origin=*"], tmp_path))
