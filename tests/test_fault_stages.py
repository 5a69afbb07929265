"""Whole stages on environments that are at fault at some seeds: they go on, and nobody learns from what was spoilt."""

import numpy as np
import pytest
import small
import toy

from flywheel import selection
from flywheel.args import Acting, Task
from flywheel.cli import app
from flywheel.runs.run import Store
from flywheel.seeds import seeds

BAD = {
    block: [seeds(block, Acting(), k, 1)[0] for k in ks]
    for block, ks in (("collect", [1]), ("gate", [7500, 0]), ("report", [2]))
}


def nightly(folder, does="raise", at=None, *more):
    toy.demonstrations(folder / "demos.hdf5")
    seeds = sorted(seed for seeds in BAD.values() for seed in seeds) if at is None else at
    kwargs = f"++task.kwargs={{does:{does},at:{seeds},when:2}}".replace(" ", "")
    words = small.words(folder, "task.id=odd:Odd-v0", kwargs, *more)
    return app.main([w for w in words if w != "task.id=toy:Reach-v0"]), Store(folder / "store")


@pytest.fixture(scope="module")
def spoilt(tmp_path_factory):
    code, place = nightly(tmp_path_factory.mktemp("spoilt"))
    assert code == 0
    return place


def test_a_nightly_goes_on_and_keeps_the_fault_apart(spoilt):
    """findings B2: the episode is in the corpus with its cause; no round learns from it, and the page can count it."""
    version = spoilt.corpus().at("latest")
    causes = [
        (s, m["cause"]) for s, m in zip(version.table["seed"], version.table["meta"], strict=True) if "cause" in m
    ]
    assert causes == [(BAD["collect"][0], "ValueError: the joint is gone at step 2")]
    (retrained,) = spoilt.runs("retrain")
    hashes = {h for h, m in zip(version.hashes, version.table["meta"], strict=True) if "cause" in m}
    assert not hashes & set(retrained["content"]["episodes"])
    assert retrained["content"]["history"][0]["faults"] == [
        f"seed {BAD['collect'][0]}: ValueError: the joint is gone at step 2"
    ]
    task = Task(name="gym", id="odd:Odd-v0")
    assert len(selection.sound(version)) == len(version) - 1 and selection.title(task) == "odd:Odd-v0"


def test_scores_count_a_fault_as_a_failure_with_its_cause(spoilt):
    """findings B2: the gate and the report go on, and say why that episode failed."""
    done = spoilt.runs("evaluate")[-1]
    columns = np.load(spoilt.dir(done) / "out" / "checkpoint.npz")
    at = list(columns["seed"]).index(BAD["report"][0])
    assert columns["cause"][at] == "ValueError: the joint is gone at step 2" and not columns["success"][at]
    assert sum(c != "" for c in columns["cause"]) == 1
    assert done["result"]["metrics"]["faults"] == [f"seed {BAD['report'][0]}: ValueError: the joint is gone at step 2"]


@pytest.mark.slow
def test_an_environment_that_dies_again_and_again_ends_the_stage_with_a_sentence(tmp_path, capsys):
    """findings B2: one that cannot be used at all is an error that names causes and seeds, not an endless night."""
    code, _ = nightly(tmp_path, "die", [*range(10_000_000, 10_001_000), *range(110_000_000, 110_010_000)])
    told = capsys.readouterr().err
    assert code != 0 and "its process died: signal SIGSEGV at step #" in told and "task.faults=0.05" in told


def test_where_nothing_can_be_replayed_episodes_begin_at_resets(tmp_path, capsys):
    """findings F5: the base never succeeds, and the recordings hold neither seed nor start: said once, and on it
    goes."""
    from test_env import envs

    from flywheel.episode import Episode
    from flywheel.rl.backward import Backward, Rule
    from flywheel.rl.practice import Memory

    rows = np.zeros((4, 4), np.float32)
    demo = Episode(
        task="t",
        obs={"state": rows},
        action=rows[:3, :2],
        reward=np.float32([0, 0, 1]),
        terminated=True,
        success=True,
        origin="human",
    )
    batch = envs.make({"name": "gym", "id": "toy:Reach-v0"}, 1)
    back = Backward(Rule(own_every=4), 1, [demo, demo], batch, Memory())
    back.decide(0, 50)
    assert back.starts(4) is None and back.starts(4) is None
    told = capsys.readouterr().err
    assert told.count("2 of 2 demonstrations cannot be replayed") == 1 and "neither a start state nor a seed" in told
    batch.close()
