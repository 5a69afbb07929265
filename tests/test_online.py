"""The online stage: killed, it ends as if it had not been; replayed, it is the same; what it collects is a corpus."""

import random
import time

import numpy as np
import pytest
import toy
from small import LITTLE, call, hashes, rarely
from test_runs import child

from flywheel.runs import lineage, run
from flywheel.runs.run import Store

REACH = [
    *toy.TASK,
    "task.reward=env",
    "checkpoint=none",
    "warmup=100",
    "num_envs=4",
    "threads=1",
    "batch_size=32",
    "score_episodes=4",
]
CADENCE = "algorithm.cadence={rounds: 6, evaluate: 10, improve: 10}"


def words(kind):
    policy, algorithm = kind
    more = [
        f"policy={policy}",
        f"algorithm={algorithm}",
        CADENCE,
        "policy.width=16",
        "policy.depth=1",
        "algorithm.collect.steps=80",
        "algorithm.schedule=decay",
    ]
    return ["online", *REACH, *more]


KINDS = [rarely(("tanh_gaussian", "sac")), rarely(("tanh_gaussian", "ppo"))]  # a night's online part: test_runs


@pytest.mark.parametrize("kind", KINDS, ids=lambda k: k[1])
def test_killed_at_random_moments_it_ends_with_the_same_hashes(kind, tmp_path, monkeypatch):
    monkeypatch.setattr(run.Run.due, "__defaults__", (0.0,))  # save as often as it can: more places to be killed in
    began = time.monotonic()
    assert child([*words(kind), f"store={tmp_path / 'whole'}"], 600)
    whole = time.monotonic() - began
    rng = random.Random(1)
    at = f"store={tmp_path / 'killed'}"
    for _ in range(3):
        child([*words(kind), at], rng.uniform(0.3, 1.0) * whole)
    assert child([*words(kind), at], 600)
    assert hashes(Store(tmp_path / "killed")) == hashes(Store(tmp_path / "whole"))


@pytest.mark.parametrize("kind", KINDS, ids=lambda k: k[1])
def test_a_run_replays_to_the_same_hashes_and_all_that_it_did_is_in_the_corpus(kind, tmp_path, capsys):
    code, out = call(*words(kind), f"store={tmp_path / 's'}", capsys=capsys)
    assert (code, out["metrics"]["rounds"]) == (0, 6)
    place = Store(tmp_path / "s")
    table = place.corpus().at("latest").table
    assert len(table["hash"]) == out["metrics"]["episodes"] and table["length"].sum() == out["metrics"]["steps"]
    assert len(np.unique(table["seed"])) == len(table["seed"])
    assert lineage.replay(out["run"], place)["metrics"]["different"] == 0


@pytest.mark.slow
def test_a_guarded_run_that_was_killed_ends_with_the_same_hashes(copied, tmp_path, capsys, monkeypatch):
    """ogpo from a checkpoint, under a guard that undoes updates: what it went back to is saved, too."""
    copy, at = copied
    made = call("pretrain", "policy=flow", "algorithm.cadence.improve=40", *LITTLE, *at, capsys=capsys)[1]
    other = lineage.scratch(copy, tmp_path / "other", set())
    table = ["algorithm=ogpo", "algorithm.cadence={rounds: 4, evaluate: 8, improve: 8, warmup: 1}"]
    table += [
        "algorithm.collect.steps=60",
        "algorithm.collect.n=4",
        "algorithm.critic={members: 2, width: 16, depth: 1}",
    ]
    guard = ["guard.every=3", "guard.trips=2", "guard.update.drift.most=0.0", "guard.interventions=15"]
    words = [
        "online",
        f"checkpoint={made['outputs']['checkpoint']}",
        *table,
        *guard,
        "batch_size=16",
        "score_episodes=4",
    ]
    words += [*toy.TASK, "num_envs=4", "threads=1", "algorithm.advantage.group_advantage={states: 2, samples: 4}"]
    monkeypatch.setattr(run.Run.due, "__defaults__", (0.0,))
    began = time.monotonic()
    assert child([*words, f"store={copy.root}"], 600)
    whole, rng = time.monotonic() - began, random.Random(2)
    for _ in range(3):
        child([*words, f"store={other.root}"], rng.uniform(0.3, 1.0) * whole)
    assert child([*words, f"store={other.root}"], 600)
    assert hashes(other) == hashes(copy)
    events = copy.runs("online")[-1]["content"]["guard"]
    assert events and all(e["guard"] == "drift" and "undone" in e["reason"] for e in events)


def test_exploration_ends_where_the_table_says(tmp_path, capsys):
    words = [
        "online",
        "task=gym",
        "task.id=toy:Corridor-v0",
        "task.max_steps=20",
        "task.reward=env",
        "policy=greedy_q",
        "algorithm=dqn",
    ]
    more = [
        "checkpoint=none",
        "algorithm.cadence={rounds: 4, evaluate: 2, improve: 0}",
        "algorithm.collect.steps=200",
        "policy.width=8",
    ]
    explore = [
        "algorithm.collect.explore=0.0",
        "algorithm.collect.explore_from=1.0",
        "algorithm.collect.explore_until=0.5",
    ]
    call(*words, *more, *explore, "score_episodes=2", "threads=1", f"store={tmp_path / 's'}", capsys=capsys)
    corpus = Store(tmp_path / "s").corpus().at("latest")
    last = [e for e in corpus if e.meta["round"] == 3]
    by_state = {}
    for e in last:
        for state, action in zip(e.obs["state"].argmax(1), e.action.argmax(1), strict=False):
            by_state.setdefault(int(state), set()).add(int(action))
    assert all(len(actions) == 1 for actions in by_state.values())  # greedy: one action in each cell


def test_a_run_that_destroyed_its_policy_is_refused(copied, capsys):
    """findings F4: what was destroyed is said, and the start handed over; findings C7: success is told on seeds that
    chose nothing."""
    copy, at = copied
    made = call("pretrain", "algorithm.cadence.improve=600", "policy=tanh_gaussian", "policy.width=32", "policy.depth=2", "score_every=300",
                "score_episodes=8", "batch_size=32", "algorithm.lag.policy=0.02", *at, capsys=capsys)[1]  # fmt: skip
    start = f"checkpoint={made['outputs']['checkpoint']}"
    online = ["online", start, "algorithm=ppo", "algorithm.cadence={rounds: 2, evaluate: 4, improve: 40}", "algorithm.collect.steps=80",
              "algorithm.collect.explore=1.0", "task.reward=env", "score_episodes=16", "batch_size=32", "score_every=1",
              "algorithm.improve.policy.clipped_surrogate.target_kl=null"]  # fmt: skip
    code, out = call(*online, "algorithm.lr=0.3", *at, capsys=capsys)
    assert (code, out["status"], out["outputs"]["checkpoint"]) == (0, "refused", made["outputs"]["checkpoint"]), out
    assert out["metrics"]["kept_at"] == 0 and "return_at_the_end" in out["metrics"]
    assert not any(e["run"] == out["run"] for e in copy.names.log("policy/Reach-v0"))
    code, out = call(*online, "algorithm.lr=1e-12", "name=policy/gently", *at, capsys=capsys)
    told = copy.names.resolve(out["outputs"]["checkpoint"])["tried"]
    assert (out["status"], out["metrics"]["n"], told["n"]) == ("done", 16, 16), "of equal points the last is kept"
    from flywheel.args import Acting
    from flywheel.seeds import FINAL, SCORING, seeds

    assert not set(seeds("gate", Acting(), FINAL, 1250)) & set(seeds("gate", Acting(), SCORING, 1250))
