"""What a run of rounds remembers, and when its episodes go into the corpus."""

import json

import numpy as np
import pytest
from corpus_cases import episode

from flywheel.corpus import CorpusError
from flywheel.rl.practice import Practice
from flywheel.runs.run import Run, Store
from flywheel.stages.online import Args


@pytest.fixture
def run(tmp_path):
    made = Run("online", "0" * 16, Args(), Store(tmp_path), {})
    made.begin()
    yield made
    made.log.close()


def keep(practice, *seeds, cause=None):
    """The hashes that a round of these episodes leaves to learn from."""
    done = [episode(seed).replace(meta={"cause": cause} if cause else {}) for seed in seeds]
    return [one.hash for one in practice.keep(done, {}, {})]


def rounds(run, demos=()):
    return Practice(run.args, run, None, None, [], {"demos": list(demos)})


def test_a_round_leaves_what_is_new_and_whole_and_was_not_removed(run):
    practice = rounds(run)
    corpus, memory = practice.corpus, practice.memory
    hashes = [episode(seed).hash for seed in range(6)]
    corpus.append([episode(0), episode(1)])
    corpus.tombstone([hashes[1]], "bad")
    assert keep(practice, 0, 1, 2, 2) == [
        hashes[0],
        hashes[2],
    ]  # 0 is in the corpus and new to this run, 1 was removed
    assert keep(practice, 2, 3) == [hashes[3]]
    assert keep(practice, 4, cause="it fell apart") == []
    assert memory.episodes == [hashes[0], hashes[2], hashes[3]]
    assert (memory.round, memory.begun, [note["round"] for note in memory.history]) == (3, 7, [0, 1, 2])


def test_a_memory_that_was_loaded_knows_its_episodes(run):
    practice, again = rounds(run), rounds(run)
    keep(practice, 0, 1)
    again.load_state(json.loads(json.dumps(practice.state())))
    assert keep(again, 1, 2) == [episode(2).hash] and again.memory.episodes == [episode(s).hash for s in (0, 1, 2)]


def test_episodes_wait_and_are_one_version_with_their_rounds(run):
    practice = rounds(run, [episode(0).hash])
    corpus, memory = practice.corpus, practice.memory
    keep(practice, 0, 1)
    keep(practice, 2)
    assert corpus.head == 0
    practice.settle()
    practice.settle()  # nothing waits any more
    (entry,) = corpus.log()
    assert (entry["message"], entry["author"], entry["added"]) == (f"{run.name} rounds 0 to 1", run.name, 3)
    assert [one.meta["round"] for one in corpus.at(1)] == [0, 0, 1]
    keep(practice, 3)
    practice.settle()
    assert corpus.log()[-1]["message"] == f"{run.name} round 2"
    windows, pools, cameras = practice.held()
    won = np.flatnonzero(windows.table["success"] == 1)
    assert windows.version.hashes == memory.episodes and pools["demos"].tolist() == [0]
    assert pools["rollouts"].tolist() == [1, 2, 3] and pools["own"].tolist() == [e for e in won if e]
    assert cameras == [] and rounds(run).held() == (None, {}, ())


def test_episodes_are_found_by_their_hashes_also_when_they_were_removed_since(run):
    corpus, hashes = run.store.corpus(create=True), [episode(seed).hash for seed in range(4)]
    for seed in range(3):
        corpus.append([episode(seed)])
    corpus.tombstone(hashes[:1], "bad")
    assert corpus.holding([hashes[2], hashes[0]]).hashes == [hashes[2], hashes[0]]
    assert corpus.refused(hashes) == {hashes[0]}
    with pytest.raises(CorpusError, match=f"no version has episode {hashes[3][:12]}"):
        corpus.holding([hashes[1], hashes[3]])


class Still:
    """Never moves: at the toy task it never succeeds."""

    def reset(self, slots, seeds):
        pass

    def act(self, obs, slots=None):
        return np.zeros((len(obs), 2))


def test_a_policy_that_falls_is_sent_back_at_once_to_where_it_last_acted_well(run):
    import torch
    import toy  # noqa: F401  (registers the task)

    from flywheel import env as envs
    from flywheel.policy import base
    from flywheel.rl.guarding import Guarding
    from flywheel.rl.learner import Learner

    policy = base.build({"kind": "deterministic", "obs_dim": 4, "action_dim": 2, "width": 16, "depth": 1})
    learner = Learner({"policy": policy}, evaluate={}, improve={"policy": {"imitate": {}}}, lag={}, lr=0.01)
    env = envs.make({"name": "gym", "id": "toy:Reach-v0", "max_steps": 20}, 4)
    practice = Practice(run.args, run, env, learner, [], {"demos": []})
    practice.guard = Guarding(learner, run.args.guard, run, anchored=True, reward="success")
    practice.began_at(0.9, 20)  # tried too seldom: not known
    assert practice.memory.base is None
    practice.began_at(0.95, 100)
    practice.memory.outcomes = "1" * 54 + "0" * 6  # as it explores it is a little worse: that is what the alarm is of
    practice.watch_over()
    assert (practice.memory.base, practice.memory.acted, practice.slump.base) == (0.95, 0.9, 0.9)
    well, more = learner.state(), lambda done: {}
    with torch.no_grad():  # it learns something that is no good
        learner.flat["policy"].values += 1.0
    practice.good = well
    done, _ = practice.play(Still(), range(200), "policy:x", more)
    assert 5 < len(done) < 30  # no further episode was begun
    assert all(torch.equal(a, b) for a, b in zip(well.values(), learner.state().values(), strict=True))
    assert learner.optim["policy"].lr == 0.005
    (event,) = practice.guard.events
    assert event["guard"] == "slump" and "of the start's 0.900: back to the last good policy" in event["reason"]
    assert len(practice.waiting) == len(done)  # what was collected is kept
    practice.play(Still(), range(1000, 1060), "policy:x", more)
    n = (
        len(practice.memory.outcomes) - 60 - len(done)
    )  # the one that it went back to does no better: that is the measure
    assert practice.memory.acted == pytest.approx(1.96**2 / (n + 1.96**2), abs=1e-3)  # Wilson's upper end of 0 of n
    assert learner.optim["policy"].lr == 0.005
    assert practice.told()["guard"] == len(practice.guard.events) == 2
    again = Practice(run.args, run, env, learner, [], {"demos": []})
    again.load_state(json.loads(json.dumps(practice.state())), practice.tensors())
    assert again.slump.base == practice.memory.acted and again.memory.outcomes == practice.memory.outcomes
    env.close()


def test_with_schedule_decay_the_policys_rate_falls_with_the_rounds_or_steps_that_are_behind(run):
    import dataclasses

    from flywheel.policy import base
    from flywheel.rl.learner import Learner

    policy = base.build({"kind": "deterministic", "obs_dim": 4, "action_dim": 2, "width": 16, "depth": 1})
    learner = Learner({"policy": policy}, evaluate={}, improve={"policy": {"imitate": {}}}, lag={}, lr=0.01)
    table = dataclasses.replace(run.args.algorithm, source="off_policy", schedule="decay")
    args = dataclasses.replace(run.args, algorithm=table, rounds=12, max_steps=600)
    practice = Practice(args, run, None, learner, [], {"demos": []})
    for rounds, steps, rate in ((8, 0, 0.01), (10, 0, 0.005), (10, 550, 0.0025), (12, 0, 0.0001)):
        practice.memory.round, practice.memory.steps = rounds, steps
        practice.after_round(rounds - 1)
        assert learner.optim["policy"].lr == pytest.approx(rate)
    practice.memory.round, practice.memory.steps = 10, 0
    practice.after_round(9)
    practice.memory.round, practice.memory.steps = 11, 590  # the next round is collected, and there the run is stopped
    again = Practice(args, run, None, learner, [], {"demos": []})
    learner.slow(1.0)
    again.load_state(json.loads(json.dumps(practice.state())))
    again.begin(None)
    assert learner.optim["policy"].lr == pytest.approx(0.005), "the round goes on at the rate that it began with"


def test_the_anchor_acts_until_there_are_critics_that_have_learnt():
    """Alone in the rounds of warm-up; then the policy and it, half and half, and no noise is left when it is scored."""
    import torch

    from flywheel.policy import base
    from flywheel.policy.best_of_n import BestOfN
    from flywheel.policy.critic import Critic
    from flywheel.rl import acting
    from flywheel.rl.spread import Shares
    from flywheel.rl.table import Collect

    flow = base.build({"kind": "flow", "obs_dim": 3, "action_dim": 2, "width": 8, "depth": 1, "greedy": True})
    start, how = acting.taken_apart(flow, "cpu"), Collect(explore=0.1, n=6, k=2.0)
    nets = {"policy": flow.explores(0.1), "policy.lag": start.anchor, "q.lag": Critic.of(flow, actions=True, width=8)}
    assert not start.judged and start.whole is start.anchor is not flow and not start.anchor.explore
    assert acting.best_of_n(nets, start.anchor, how, 0.0, judged=False) is start.anchor
    shares = Shares((1.0, 0.0), (0.5, 0.5), 0)
    collecting = acting.best_of_n(nets, start.anchor, how, 0.1, judged=False, spread=shares)
    assert not collecting.greedy and collecting.spreads is shares, "it collects by chance, each episode by its own"
    assert not start.anchor.spreads
    chosen = acting.best_of_n(nets, start.anchor, how, 0.1, judged=True, spread=shares)
    assert (chosen.n, chosen.k, chosen.explore, chosen.jitter, chosen.spread) == (6, 2.0, 0.1, 0.0, 1.0)
    assert (
        chosen.spreads is shares
        and acting.best_of_n(nets, start.anchor, how, 0.0, judged=True, spread=0.5).spread == 0.5
    )
    used = acting.best_of_n(nets, start.anchor, how, 0.0, judged=True)
    assert used.explore == used.jitter == 0.0
    used = acting.best_of_n(nets, start.anchor, Collect(explore=0.1, jitter=0.05), 0.0, judged=True)
    assert used.jitter == used.spec["jitter"] == 0.05, "collect.jitter stays in what is handed over"
    assert not used.guarded
    sure = Collect(explore=0.1, guarded_in_use=True)
    used = acting.best_of_n(nets, start.anchor, sure, 0.0, judged=True)
    assert used.guarded and used.spec["guarded"]
    assert not acting.best_of_n(nets, start.anchor, sure, 0.1, judged=True, spread=shares).guarded, "it collects freely"

    again = acting.taken_apart(chosen, "cpu")
    assert again.judged and again.policy is chosen.base and again.nets == {"q": chosen.critic}
    assert isinstance(again.whole, BestOfN) and again.anchor is again.whole.base is not chosen.base
    assert not any(p.requires_grad for p in again.whole.parameters())
    torch.testing.assert_close(again.anchor.state_dict(), chosen.base.state_dict())
