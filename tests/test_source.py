"""Chunk transitions by hand, and where the bugs of others live: terminated against truncated, steps after success."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from flywheel.episode import Episode
from flywheel.rl import packed
from flywheel.rl.fit import At, Cadence, fit
from flywheel.rl.source import Offline, OnPolicy, Pool


def windows(*episodes, ended=False):
    """Episodes [(obs [T+1], reward [T])] as the corpus lays them out; the action at t is 10 * obs[t]; all `ended`, or none."""
    rows, start, length = [], [], []
    for obs, reward in episodes:
        start.append(sum(map(len, rows)))
        length.append(len(reward))
        block = np.zeros((len(obs), 3), np.float32)
        block[:, 0], block[:-1, 1], block[:-1, 2] = obs, 10 * np.asarray(obs[:-1]), reward
        rows.append(block)
    rows = np.concatenate(rows)

    def gather(index, offsets, low, high):
        return rows[np.clip(index[:, None] + offsets, low[:, None], high[:, None])]

    columns = {"obs.state": slice(0, 1), "action": slice(1, 2), "reward": slice(2, 3)}
    version = SimpleNamespace(hashes=[str(e) for e in episodes])
    return SimpleNamespace(
        rows=rows, start=np.array(start), length=np.array(length), columns=columns, gather=gather, version=version,
        table={"terminated": np.full(len(start), ended)},
    )  # fmt: skip


def source(held, **more):
    pools = {"all": np.arange(len(held.start))}
    mixture = {"evaluate": {"all": 1.0}, "improve": {"all": 1.0}}
    return Offline(held, pools, mixture, obs_steps=2, action_steps=2, gamma=0.5, **more)


def rows_by_step(held, n=400):
    """One transition of each step of the first episode, by its newest observation."""
    batch = source(held, seed=0).batch("evaluate", n)
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
    batch = source(held, seed=3).batch("evaluate", 500)
    for key in ("obs", "next_obs"):
        values = batch[key].numpy() > 50
        assert (values.all(axis=(1, 2)) | ~values.any(axis=(1, 2))).all()
    first, last = batch["action"].numpy()[:, 0, 0] > 500, batch["action"].numpy()[:, 1, 0] > 500
    assert (first == last).all()


def test_steps_are_drawn_uniformly_over_episodes_of_different_length():
    pool = Pool(windows(([0] * 10, [0] * 9), ([0] * 2, [0])), np.array([0, 1]), 0.9)
    episode, _ = pool.place(pool.draw(np.random.default_rng(0), 10_000))
    assert np.mean(episode == 0) == pytest.approx(0.9, abs=0.015)


def test_shares_of_empty_pools_go_to_the_others():
    held = windows(([1, 2, 3], [0, 0]))
    both = Offline(
        held, {"demos": np.array([0]), "own": np.zeros(0, int)}, {"improve": {"demos": 0.5, "own": 0.5}},
        obs_steps=1, action_steps=1,
    )  # fmt: skip
    assert both.batch("improve", 8)["obs"].shape == (8, 1, 1)
    with pytest.raises(ValueError, match="nothing to draw from: own hold no step"):
        Offline(held, {"own": np.zeros(0, int)}, {"improve": {"own": 1.0}}, obs_steps=1, action_steps=1).batch(
            "improve"
        )


def test_state_gives_the_next_batch():
    held = windows((list(range(30)), [0] * 29))
    one, two = source(held, seed=1), source(held, seed=2)
    one.batch("improve")
    two.load_state(one.state())
    assert np.array_equal(one.batch("improve")["obs"], two.batch("improve")["obs"])


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
    fit(scribe, scribe, Cadence(rounds=2, evaluate=2, improve=1))
    assert scribe.did == ["collect", "evaluate", "evaluate", "improve"] * 2


def test_a_gate_may_refuse_a_round():
    scribe = Scribe()
    fit(scribe, scribe, Cadence(1, 0, 1), gate=lambda before, learner: "worse")
    assert scribe.did == ["collect", "improve", "worse"]


@pytest.mark.parametrize("stop", range(1, 14))
def test_the_loop_can_be_left_and_entered_anywhere(stop):
    class Stop(Exception):
        pass

    whole, broken, count, at = Scribe(), Scribe(), [0], At()
    fit(whole, whole, Cadence(2, 2, 3))

    def pause(now):
        count[0] += 1
        if count[0] == stop:
            raise Stop

    try:
        fit(broken, broken, Cadence(2, 2, 3), at=at, pause=pause)
    except Stop:
        fit(broken, broken, Cadence(2, 2, 3), at=At(**vars(at)))
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
    source = OnPolicy(
        obs_steps=2, action_steps=2, gamma=0.5, gather_round=lambda learner, memory: episodes, memory={}, **more
    )
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
    other = OnPolicy(obs_steps=2, action_steps=2, gather_round=None, memory={}, batch_size=4)
    source.batch("improve")
    other.load_state(source.state(), source.data)
    assert torch.equal(source.batch("improve")["advantage"], other.batch("improve")["advantage"])


def test_the_environments_own_reward_counts_to_the_end_of_the_episode():
    held = windows(([1, 2, 3, 4], [0, 1, 0]))
    held.columns["extras.env_reward"] = held.columns["reward"]
    for ended in (False, True):
        held.table = {"terminated": np.array([ended])}
        batch = source(held, reward="env", seed=0).batch("evaluate", 200)
        at_3 = batch["obs"][:, 1, 0] == 3
        assert at_3.any() and (batch["discount"][at_3] == (0.0 if ended else 0.5)).all()
        assert set(batch["reward"].tolist()) == {0.5, 1.0, 0.0}


def test_the_first_rounds_may_only_evaluate_and_enough_ends_an_act():
    scribe = Scribe()
    fit(scribe, scribe, Cadence(rounds=2, evaluate=1, improve=1, warmup=1))
    assert scribe.did == ["collect", "evaluate", "collect", "evaluate", "improve"]

    class Sated(Scribe):
        def act(self, name, batch):
            super().act(name, batch)
            return name == "improve"

    sated = Sated()
    fit(sated, sated, Cadence(rounds=1, evaluate=2, improve=5))
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


def test_kept_transitions_follow_episodes_that_come_and_go(monkeypatch):
    monkeypatch.setattr(packed, "PIECE", 2)  # so that each episode takes several
    a, b, c = ([1, 2, 3, 4], [0, 0, 0]), ([5, 6, 7], [0, 1]), ([8, 9, 10, 11], [0, 0, 0])
    followed = source(windows(a, b))
    rows = followed.kept.rows.clone()
    for episodes in ((a, b, c), (b, c), (b,)):
        held = windows(*episodes)
        followed.use(held, {"all": np.arange(len(episodes))})
        if len(episodes) == 3:
            assert torch.equal(followed.kept.rows[: len(rows)], rows)
        fresh = source(held)
        fresh.load_state(followed.state())
        mine, other = followed.batch("improve", 64), fresh.batch("improve", 64)
        assert all(torch.equal(mine[k], other[k]) for k in other)
