"""What an adversary broke, each as it should be."""

import pytest
import toy
from small import call

from flywheel import config, lineage, run


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
