"""What an adversary broke, each as it should be."""

import pytest
import toy
from small import LITTLE, call, words

from flywheel import config, lineage, nightly, run


@pytest.fixture
def three(night, copied):
    """(Store, words that every stage on it needs, a name, three checkpoints of it)."""
    refs = list(dict.fromkeys(row["checkpoint"] for row in night[2]["content"]["table"]))
    return copied[0], copied[1], refs[0].partition("@")[0], refs


def test_a_choice_that_a_budget_cut_short_replays(three, monkeypatch):
    """findings A2: also where it was cut after some had dropped out: what is told is how many seeds of the whole choice were played."""
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
    """findings B6: of one checkpoint, also named twice, it is that one and nothing is played; none, or what is no choice, is refused."""
    _, at, _, refs = three
    code, out = call("choose", f"checkpoints=[{refs[1]},{refs[1]}]", *at, capsys=capsys)
    assert (code, out["outputs"], out["metrics"]) == (0, {"checkpoint": refs[1]}, {})
    for wrong in (["checkpoints=[]"], [f"checkpoints={refs[0]}"], ["what=best"], ["episodes=2501"]):
        code, out = call("choose", f"checkpoints=[{','.join(refs)}]", *wrong, *at, capsys=capsys)
        assert code == 2 and "expected" in out["error"], out


def test_a_first_night_does_not_overrule_what_was_promoted_meanwhile(tmp_path, monkeypatch, capsys):
    """findings A3: nothing was in production when it began, and something is when its base is chosen: production stays, the gate compares
    with it, and table and metrics tell of it."""
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


def test_a_night_that_its_budget_cut_short_is_not_the_whole(tmp_path, capsys):
    """findings A2: found again by commands with a budget, and done as a whole by one without: another night, with seeds of its own."""
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


def test_what_a_night_wrote_when_it_began_may_be_damaged(copied, night, capsys):
    """findings B6: it blocks no other night, and its number is not given out again."""
    place, (folder, _, done) = copied[0], night
    path = place.root / "runs" / "nightly" / done["key"] / "begin.json"
    path.unlink()
    path.write_bytes(b"")
    again = [w.replace(str(folder / "store"), str(place.root)) for w in words(folder, "retrain.batch_size=16")]
    assert call(*again, capsys=capsys)[0] == 0
    assert place.runs("nightly")[-1]["content"]["night"] == 1
