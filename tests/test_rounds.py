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
    windows, pools = practice.held()
    won = np.flatnonzero(windows.table["success"] == 1)
    assert windows.version.hashes == memory.episodes and pools["demos"].tolist() == [0]
    assert pools["rollouts"].tolist() == [1, 2, 3] and pools["own"].tolist() == [e for e in won if e]
    assert rounds(run).held() == (None, {})


def test_episodes_are_found_by_their_hashes_also_when_they_were_removed_since(run):
    corpus, hashes = run.store.corpus(create=True), [episode(seed).hash for seed in range(4)]
    for seed in range(3):
        corpus.append([episode(seed)])
    corpus.tombstone(hashes[:1], "bad")
    assert corpus.holding([hashes[2], hashes[0]]).hashes == [hashes[2], hashes[0]]
    assert corpus.refused(hashes) == {hashes[0]}
    with pytest.raises(CorpusError, match=f"no version has episode {hashes[3][:12]}"):
        corpus.holding([hashes[1], hashes[3]])


def test_the_anchor_acts_until_there_are_critics_that_have_learnt():
    """Alone in the rounds of warm-up; then the policy and it, half and half, and no noise is left when it is scored."""
    import torch

    from flywheel.policy import base
    from flywheel.policy.best_of_n import BestOfN
    from flywheel.policy.critic import Critic
    from flywheel.rl import acting
    from flywheel.rl.table import Collect

    flow = base.build({"kind": "flow", "obs_dim": 3, "action_dim": 2, "width": 8, "depth": 1, "greedy": True})
    start, how = acting.taken_apart(flow, "cpu"), Collect(explore=0.1, n=6, k=2.0)
    nets = {"policy": flow.explores(0.1), "policy.lag": start.anchor, "q.lag": Critic.of(flow, actions=True, width=8)}
    assert not start.judged and start.whole is start.anchor is not flow and not start.anchor.explore
    assert acting.best_of_n(nets, start.anchor, how, 0.0, judged=False) is start.anchor
    assert not acting.best_of_n(nets, start.anchor, how, 0.1, judged=False).greedy, "it collects by chance"
    chosen = acting.best_of_n(nets, start.anchor, how, 0.1, judged=True)
    assert (chosen.n, chosen.k, chosen.explore, chosen.jitter) == (6, 2.0, 0.1, 0.0)
    assert acting.best_of_n(nets, start.anchor, how, 0.0, judged=True).explore == 0.0

    again = acting.taken_apart(chosen, "cpu")
    assert again.judged and again.policy is chosen.base and again.nets == {"q": chosen.critic}
    assert isinstance(again.whole, BestOfN) and again.anchor is again.whole.base is not chosen.base
    assert not any(p.requires_grad for p in again.whole.parameters())
    torch.testing.assert_close(again.anchor.state_dict(), chosen.base.state_dict())
