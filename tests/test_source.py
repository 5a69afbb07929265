"""Chunk transitions by hand, and where the bugs of others live: terminated against truncated, steps after success."""

import multiprocessing
import os
import pickle
import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch

from flywheel.corpus import Corpus
from flywheel.episode import Episode
from flywheel.rl import packed
from flywheel.rl.fit import At, Cadence, loop
from flywheel.rl.source import FIELDS, Offline, OffPolicy, OnPolicy

CORPORA = tempfile.TemporaryDirectory()  # gone with the process


def corpus_of(*episodes, ended=False):
    """A corpus of episodes [(obs [T+1], reward [T])]; the action at t is 10 * obs[t]; all `ended`, or none."""
    corpus = Corpus(Path(tempfile.mkdtemp(dir=CORPORA.name)) / "corpus", create=True)
    append(corpus, *episodes, ended=ended)
    return corpus


def append(corpus, *episodes, ended=False):
    return corpus.append([episode(obs, reward, terminated=ended) for obs, reward in episodes]).added


def windows(*episodes, ended=False, reward="success", **more):
    corpus = corpus_of(*episodes, ended=ended)
    return corpus.windows(corpus.at("latest"), FIELDS[reward], cache=corpus.path.parent / "cache", **more)


def source(held, **more):
    pools = {"all": np.arange(len(held.start))}
    mixture = {"evaluate": {"all": 1.0}, "improve": {"all": 1.0}}
    return Offline(held, pools, mixture, **{"obs_steps": 2, "action_steps": 2, "gamma": 0.5, **more})


def rows_by_step(held, n=400):
    """One transition of each step of the first episode, by its newest observation."""
    batch = source(held, seed=0, batch_size=n).batch("evaluate")
    found = {}
    for i in range(n):
        found[float(batch["obs"][i, 1, 0])] = {
            k: v[i].squeeze(-1).tolist() for k, v in batch.items() if v[i].numel() > 1
        } | {k: v[i].item() for k, v in batch.items() if v[i].numel() == 1}
    return found


def test_a_time_out_bootstraps():
    # obs 1 2 3 4, actions 10 20 30, no success: cut off, not terminated. gamma 0.5, chunks of two
    found = rows_by_step(windows(([1, 2, 3, 4], [0, 0, 0])))
    assert found[1.0]["obs"] == [1.0, 1.0]  # the first observation is repeated
    assert found[1.0]["action"] == [10.0, 20.0]
    assert found[1.0]["next_obs"] == [2.0, 3.0]
    assert found[1.0]["next_action"] == [30.0, 30.0]
    assert found[1.0]["discount"] == 0.25  # gamma^2
    assert found[3.0]["action"] == [30.0, 30.0]  # the last action is repeated, the zero row never seen
    assert found[3.0]["next_obs"] == [3.0, 4.0]
    assert found[3.0]["discount"] == 0.5  # one step was left: gamma^1, and it goes on
    assert found[3.0]["return"] == 0.0


def test_an_end_without_success_is_an_end_in_every_mode():
    """findings C2: the value of a fall is not bootstrapped, whatever is learnt from; that of a time-out is."""
    for ended, expected in ((True, 0.0), (False, 0.5)):
        found = rows_by_step(windows(([1, 2, 3, 4], [0, 0, 0]), ended=ended))
        assert found[3.0]["discount"] == expected and found[1.0]["discount"] == 0.25  # gamma^2, in the middle
        for reward in ("success", "env"):
            _, whole = on_policy(episode([1, 2, 3, 4], [0, 0, 0], terminated=ended), reward=reward)
            assert whole["discount"] == [0.25, expected]


def test_on_policy_leaves_out_what_an_environment_spoilt():
    """findings B2: an episode with a cause is never learnt from."""
    good = episode([1, 2, 3, 4, 5, 6], [0, 0, 0, 1, 0])
    _, whole = on_policy(good, episode([9, 9, 9], [0, 0], meta={"cause": "it fell apart at step 2"}))
    assert whole["obs"] == [[1.0, 1.0], [2.0, 3.0]]


def test_success_terminates_and_what_comes_after_is_not_used():
    # success at the third of five steps
    found = rows_by_step(windows(([1, 2, 3, 4, 5, 6], [0, 0, 1, 0, 0])))
    assert set(found) == {1.0, 2.0, 3.0}
    assert found[2.0]["reward"] == 0.5  # 0 + gamma * 1
    assert found[2.0]["discount"] == 0.0
    assert found[3.0]["reward"] == 1.0 and found[3.0]["discount"] == 0.0
    assert found[1.0]["reward"] == 0.0 and found[1.0]["discount"] == 0.25
    assert [found[s]["return"] for s in (1.0, 2.0, 3.0)] == [0.25, 0.5, 1.0]


def test_windows_never_reach_into_a_neighbour():
    held = windows(([1, 2, 3], [0, 0]), ([101, 102, 103, 104], [0, 0, 1]))
    batch = source(held, seed=3, batch_size=500).batch("evaluate")
    for key in ("obs", "next_obs"):
        values = batch[key].numpy() > 50
        assert (values.all(axis=(1, 2)) | ~values.any(axis=(1, 2))).all()
    first, last = batch["action"].numpy()[:, 0, 0] > 500, batch["action"].numpy()[:, 1, 0] > 500
    assert (first == last).all()


def test_steps_are_drawn_uniformly_over_episodes_of_different_length():
    held = source(windows(([0] * 10, [0] * 9), ([0] * 2, [0])), batch_size=10_000)
    episode, t = held.where(held.steps("evaluate", 0))
    assert np.mean(episode == 0) == pytest.approx(0.9, abs=0.015)
    count = np.bincount(t[episode == 0])
    assert len(count) == 9 and abs(count - 1000).max() < 5 * 1000**0.5


def test_shares_of_empty_pools_go_to_the_others():
    held = windows(([1, 2, 3], [0, 0]))
    options = {"obs_steps": 1, "action_steps": 1, "batch_size": 8}
    both = Offline(
        held, {"demos": np.array([0]), "own": np.zeros(0, int)}, {"improve": {"demos": 0.5, "own": 0.5}}, **options
    )
    assert both.batch("improve")["obs"].shape == (8, 1, 1)
    with pytest.raises(ValueError, match="nothing to draw from: own hold no step"):
        Offline(held, {"own": np.zeros(0, int)}, {"improve": {"own": 1.0}}, **options).batch("improve")


def test_a_batch_has_its_shares_and_each_part_of_it_comes_uniformly_from_its_pool():
    # of 1,000: 600 from a (2 + 6 steps), 300 from b (4 steps), the rest from c, which is a's second episode once more
    lengths = [2, 6, 4]
    held = windows(*((np.arange(n + 1) + 100 * n, [0] * n) for n in lengths))
    pools = {"a": [0, 1], "b": [2], "c": [1], "none": [0]}
    mixed = Offline(
        held,
        pools,
        {"improve": {"a": 0.6, "b": 0.3, "none": 0.0, "c": 0.1}},
        obs_steps=1,
        action_steps=1,
        batch_size=1000,
    )
    episode, t = mixed.where(mixed.steps("improve", 0, 100))
    counts = np.bincount(episode, minlength=3)
    expected = np.array([60_000 * 2 / 8, 60_000 * 6 / 8 + 10_000, 30_000])
    assert counts[2] == expected[2] and abs(counts - expected).max() < 5 * expected.max() ** 0.5
    for which, n in enumerate(lengths):
        inside = np.bincount(t[episode == which])
        assert len(inside) == n and abs(inside - inside.mean()).max() < 5 * inside.mean() ** 0.5


def test_state_gives_the_next_batch_in_whatever_mixture_of_acts():
    held = windows((list(range(30)), [0] * 29))
    one, two = source(held, seed=1), source(held, seed=1)
    for act in ("improve", "evaluate", *["improve"] * 37):
        one.batch(act)
    assert one.state() == {"taken": {"evaluate": 1, "improve": 38}}
    two.load_state(one.state())
    for act in ("evaluate", "improve"):
        assert torch.equal(one.batch(act)["obs"], two.batch(act)["obs"])
    other = source(held, seed=2)
    other.load_state(two.state())
    assert not torch.equal(one.batch("improve")["obs"], other.batch("improve")["obs"])
    assert not np.array_equal(one.steps("improve", 3), one.steps("evaluate", 3))
    before = one.state()
    assert torch.equal(one.draw({"all": 1.0}, 5)["obs"], two.draw({"all": 1.0}, 5)["obs"]) and one.state() == before


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_the_batches_of_all_ranks_are_those_of_one_reader(world_size):
    """Sample k * world_size + r of a reader alone is sample k of rank r: none is taken twice, none is left out."""
    held = windows((list(range(30)), [0] * 29), (list(range(50, 60)), [0] * 9))
    ranks = [source(held, seed=4, batch_size=8, rank=rank, world_size=world_size) for rank in range(world_size)]
    alone = source(held, seed=4, batch_size=8 * world_size)
    for number in (0, 1, 5):
        together = np.stack([one.steps("improve", number) for one in ranks], axis=1).ravel()
        assert np.array_equal(together, alone.steps("improve", number))
    with pytest.raises(ValueError, match="rank 3 of world_size 3"):
        source(held, rank=3, world_size=3)


def gathered(held, **more):
    """A source whose windows leave no room for transitions."""
    held.resident = 0
    return source(held, **more)


def test_workers_give_the_same_batches_go_on_from_a_number_and_pickle_nothing():
    held = windows((list(range(30)), [0] * 29), (list(range(50, 60)), [0] * 8 + [1]))
    with pytest.raises((TypeError, AttributeError), match="pickle"):  # maps and callbacks: a copy would be a mistake
        pickle.dumps(held)
    others = {one.pid for one in multiprocessing.active_children()}  # of an executor's pool, that another test left
    here, away = (gathered(held, batch_size=8, workers=workers) for workers in (0, 2))
    here.groups = away.groups = {False: 2, True: 2}
    acts = ["evaluate", "improve"] * 9
    kept = [(here.batch(act), away.batch(act)) for act in acts]  # a slot that is used again changes none of them
    assert len({one.pid for one in multiprocessing.active_children()} - others) == 4  # two an act
    for mine, theirs in kept:
        assert all(torch.equal(mine[name], theirs[name]) for name in mine)
    again = gathered(held, batch_size=8, workers=1)
    again.load_state(away.state())
    del away
    assert torch.equal(again.batch("improve")["obs"], here.batch("improve")["obs"])
    again.load_state(here.state())
    assert not {one.pid for one in multiprocessing.active_children()} - others


@pytest.mark.filterwarnings("ignore")
def test_a_worker_that_dies_is_an_error():
    class Broken(Offline):
        def _transitions(self, steps):
            if multiprocessing.parent_process():
                os._exit(3)
            return super()._transitions(steps)

    held = windows((list(range(30)), [0] * 29))
    held.resident = 0
    broken = Broken(held, {"all": [0]}, {"improve": {"all": 1.0}}, obs_steps=2, action_steps=2, batch_size=8, workers=1)
    with pytest.raises(RuntimeError, match="worker 0 died"):
        broken.batch("improve")


class Scribe:
    """Writes down what the loop does."""

    def __init__(self):
        self.did = []

    def collect(self, learner):
        self.did.append("collect")

    def batch(self, act):
        return act

    def act(self, name, batch):
        self.did.append(name)

    def begin_improve(self):
        pass

    def snapshot(self):
        return list(self.did)

    def restore(self, before, reason):
        self.did.append(reason)


def test_the_loop_is_rounds_of_collect_evaluate_improve():
    scribe = Scribe()
    loop(scribe, scribe, Cadence(rounds=2, evaluate=2, improve=1))
    assert scribe.did == ["collect", "evaluate", "evaluate", "improve"] * 2


def test_a_gate_may_refuse_a_round():
    scribe = Scribe()
    loop(scribe, scribe, Cadence(1, 0, 1), gates=[lambda before, learner: "worse"])
    assert scribe.did == ["collect", "improve", "worse"]


@pytest.mark.parametrize("stop", range(1, 14))
def test_the_loop_can_be_left_and_entered_anywhere(stop):
    class Stop(Exception):
        pass

    whole, broken, count, at = Scribe(), Scribe(), [0], At()
    loop(whole, whole, Cadence(2, 2, 3))

    def pause(now):
        count[0] += 1
        if count[0] == stop:
            raise Stop

    try:
        loop(broken, broken, Cadence(2, 2, 3), at=at, pause=pause)
    except Stop:
        loop(broken, broken, Cadence(2, 2, 3), at=At(**vars(at)))
    assert broken.did == whole.did


class Still:
    """A policy as far as an on-policy source looks at it: the noise is the seed."""

    @staticmethod
    def noises(seed, count):
        return np.full((count, 1), seed, np.float32)


class Fixed:
    """A learner whose advantages are the rewards."""

    nets = {"policy": Still()}

    @staticmethod
    def advantages(whole):
        made = {
            "chain": whole["noise"],
            "log_prob": whole["noise"],
            "advantage": whole["reward"],
            "return": whole["discount"],
        }
        Fixed.whole = whole
        return made


def on_policy(*episodes, **more):
    source = OnPolicy(obs_steps=2, action_steps=2, gamma=0.5, play=lambda learner: episodes, **more)
    source.collect(Fixed())
    return source, {k: v.squeeze(-1).tolist() for k, v in Fixed.whole.items()}


def episode(obs, reward, own=None, **more):
    obs = np.asarray(obs, np.float32)[:, None]
    return Episode(
        task="t", obs={"state": obs}, action=10 * obs[:-1], reward=np.asarray(reward, np.float32), terminated=False,
        success=bool(np.sum(reward)), origin="test", seed=7, extras={"env_reward": np.asarray(own or reward, np.float32)},
    ).replace(**more)  # fmt: skip


def test_on_policy_chunks_by_hand():
    # five steps in chunks of two; success at the fourth: what came after is not used, and the last chunk ends there
    _, whole = on_policy(episode([1, 2, 3, 4, 5, 6], [0, 0, 0, 1, 0]))
    assert whole["obs"] == [[1.0, 1.0], [2.0, 3.0]] and whole["next_obs"] == [[2.0, 3.0], [4.0, 5.0]]
    assert whole["action"] == [[10.0, 20.0], [30.0, 40.0]]
    assert whole["reward"] == [0.0, 0.5] and whole["discount"] == [0.25, 0.0]
    assert whole["last"] == [False, True] and whole["noise"] == [7.0, 7.0]


def test_on_policy_a_time_out_bootstraps_and_an_end_does_not():
    # three steps, own rewards 1 2 4: the second chunk has one step left
    for ended, expected in ((False, [0.25, 0.5]), (True, [0.25, 0.0])):
        _, whole = on_policy(episode([1, 2, 3, 4], [0, 0, 0], [1, 2, 4], terminated=ended), reward="env")
        assert whole["reward"] == [2.0, 4.0] and whole["discount"] == expected


def test_on_policy_batches_go_through_the_round_in_a_shuffled_order():
    source, _ = on_policy(episode(range(17), [0] * 16, list(range(16))), reward="env", batch_size=4, seed=3)
    first = torch.cat([source.batch("improve")["advantage"] for _ in range(2)])
    again = torch.cat([source.batch("improve")["advantage"] for _ in range(2)])
    assert sorted(first.tolist()) == sorted(again.tolist()) == sorted(source.data["advantage"].tolist())
    assert first.tolist() != again.tolist()
    other = OnPolicy(obs_steps=2, action_steps=2, play=None, batch_size=4)
    source.batch("improve")
    other.load_state(source.state(), source.data)
    assert torch.equal(source.batch("improve")["advantage"], other.batch("improve")["advantage"])


def test_the_environments_own_reward_counts_to_the_end_of_the_episode():
    for ended in (False, True):
        held = windows(([1, 2, 3, 4], [0, 1, 0]), reward="env", ended=ended)
        batch = source(held, reward="env", seed=0, batch_size=200).batch("evaluate")
        at_3 = batch["obs"][:, 1, 0] == 3
        assert at_3.any() and (batch["discount"][at_3] == (0.0 if ended else 0.5)).all()
        assert set(batch["reward"].tolist()) == {0.5, 1.0, 0.0}


def test_the_first_rounds_may_only_evaluate_and_enough_ends_an_act():
    scribe = Scribe()
    loop(scribe, scribe, Cadence(rounds=2, evaluate=1, improve=1, warmup=1))
    assert scribe.did == ["collect", "evaluate", "collect", "evaluate", "improve"]

    class Sated(Scribe):
        def act(self, name, batch):
            super().act(name, batch)
            return name == "improve"

    sated = Sated()
    loop(sated, sated, Cadence(rounds=1, evaluate=2, improve=5))
    assert sated.did == ["collect", "evaluate", "evaluate", "improve"]


def test_kept_transitions_are_those_that_are_gathered_and_give_way_where_there_is_no_room(monkeypatch):
    held = windows(([1, 2, 3, 4], [0, 0, 0]), ([5, 6, 7], [0, 1]))
    drawn = (
        {"a": np.array([0]), "b": np.array([1]), "none": np.array([], int)},
        {"evaluate": {"a": 0.5, "b": 0.5, "none": 1.0}},
    )
    options = {"obs_steps": 2, "action_steps": 2, "gamma": 0.5, "batch_size": 32}
    kept = Offline(held, *drawn, **options)
    monkeypatch.setattr(packed, "ROOM", 100)
    plain = Offline(held, *drawn, **options)
    assert kept.kept and not plain.kept
    for _ in range(3):
        mine, theirs = kept.batch("evaluate"), plain.batch("evaluate")
        assert mine.keys() == theirs.keys() and all(torch.equal(mine[k], theirs[k]) for k in mine)


def test_episodes_that_join_are_what_they_would_be_from_the_start(monkeypatch):
    monkeypatch.setattr(packed, "PIECE", 2)  # so that each episode takes several
    a, b, c = ([1, 2, 3, 4], [0, 0, 0]), ([5, 6, 7], [0, 1]), ([8, 9, 10, 11], [0, 0, 0])
    corpus = corpus_of(a)
    first = corpus.windows(corpus.at("latest"), cache=corpus.path.parent / "cache")
    mixture = {"improve": {"all": 0.5, "new": 0.5}}
    options = {"obs_steps": 2, "action_steps": 2, "gamma": 0.5, "batch_size": 64}
    for room in (packed.ROOM, 0):
        first.resident = room
        grown = Offline(first, {"all": [0], "new": []}, mixture, **options)
        rows = grown.kept and grown.kept.rows.clone()
        for one in (b, c):
            new = first.extend(corpus.holding([episode(*one).hash] if room == 0 else append(corpus, one)))
            assert len(new) == 1 and new.resident == room
            grown.add(new, {"all": [0], "new": [0]})
        assert rows is None or torch.equal(grown.kept.rows[: len(rows)], rows)
        whole = Offline(new.extend(corpus.at("latest")), {"all": [0, 1, 2], "new": [1, 2]}, mixture, **options)
        assert (grown.kept is None) == (whole.kept is None) == (room == 0)
        mine, other = grown.batch("improve"), whole.batch("improve")
        assert mine.keys() == other.keys()
        assert all(torch.equal(mine[k], other[k]) for k in other)


def test_a_window_cache_that_was_built_anew_is_not_mixed_with_the_old_one():
    corpus = corpus_of(([1, 2, 3, 4], [0, 0, 0]))
    cache = corpus.path.parent / "cache"
    held = corpus.windows(corpus.at("latest"), cache=cache)
    grown = gathered(held)
    append(corpus, ([5, 6, 7], [0, 1]))
    next(cache.glob("*/index.json")).unlink()
    with pytest.raises(ValueError, match="window cache was built anew.*give the same command again"):
        grown.add(corpus.windows(corpus.at("latest"), cache=cache), {"all": [0, 1]})


@pytest.mark.parametrize("room", [packed.ROOM, 700, 0])
def test_a_round_adds_what_it_gathered_whether_transitions_are_kept_outgrow_their_room_or_never_had_any(
    monkeypatch, room
):
    # a transition is 4 (2 + 2 * 1 + 3 numbers) = 28 bytes: 700 hold 25 of them, and there are 3 + 2 * 20
    corpus, start = corpus_of(([1, 2, 3, 4], [0, 0, 0])), ([1, 2, 3, 4], [0, 0, 0])
    cache = corpus.path.parent / "cache"
    rounds = [[], [(range(20 * k, 20 * k + 11), [0] * 9 + [k % 2]) for k in (1, 2)], [(range(90, 111), [0] * 20)]]
    gone = iter(rounds)

    def held(hashes=None, windows=None):
        version = corpus.holding([episode(*start).hash, *memory["episodes"]] if hashes is None else hashes)
        index, won = np.arange(len(version)), version.table["success"] == 1
        return corpus.windows(version, cache=cache), {"own": index[won], "rollouts": index, "all": index}, ()

    def play(learner):
        new = [episode(*one) for one in next(gone)]
        if new:
            memory["episodes"] += corpus.append(new).added
        return new

    monkeypatch.setattr(packed, "ROOM", room)
    memory, mixture = {"episodes": []}, {"improve": {"own": 0.5, "all": 0.5}}
    options = {"obs_steps": 1, "action_steps": 1, "held": held, "play": play, "batch_size": 64}
    practice = OffPolicy(mixture, **options)
    steps = []
    for _ in rounds:
        practice.collect(None)
        steps.append((len(practice.pools["own"]), len(practice.pools["all"])))
        if steps[-1][0]:
            fresh = OffPolicy(mixture, **options)
            fresh.load_state(practice.state())
            mine, other = practice.batch("improve"), fresh.batch("improve")
            assert all(torch.equal(mine[k], other[k]) for k in other)
    assert steps == [(0, 3), (10, 23), (10, 43)] and (practice.kept is None) == (room < 10**6)
