"""Samplers and the loader: exact state, shards that are complete and do not overlap, mixtures in their shares."""

import multiprocessing
import os
import pickle
import tracemalloc

import numpy as np
import pytest
from corpus_cases import episode
from hypothesis import given, settings
from hypothesis import strategies as st

from flywheel.corpus import Corpus
from flywheel.corpus.loader import Batches, Loader
from flywheel.corpus.sampling import Sampler, mixture, permute

LENGTHS = st.lists(st.integers(0, 40), min_size=1, max_size=20).filter(any).map(np.asarray)


def pairs(episodes, steps):
    return list(zip(episodes.tolist(), steps.tolist(), strict=True))


@settings(deadline=None)
@given(st.integers(1, 3000), st.integers(0, 2**64 - 1))
def test_a_permutation_hits_each_number_once(size, key):
    assert sorted(permute(np.arange(size), size, np.full(size, key, np.uint64)).tolist()) == list(range(size))


def test_a_permutation_is_no_order_and_differs_by_key():
    one, two = (permute(np.arange(10_000), 10_000, np.full(10_000, key, np.uint64)) for key in (1, 2))
    assert abs(np.corrcoef(np.arange(10_000), one)[0, 1]) < 0.05 and abs(np.corrcoef(one, two)[0, 1]) < 0.05
    assert abs(np.corrcoef(one[1:], one[:-1])[0, 1]) < 0.05


@settings(deadline=None)
@given(LENGTHS, st.integers(1, 5), st.integers(0, 100))
def test_shards_do_not_overlap_and_are_complete(length, world_size, seed):
    """Over world_size epochs every reader takes `steps` samples; together each step comes world_size times, once an epoch."""
    readers = [Sampler(length, seed=seed, rank=rank, world_size=world_size) for rank in range(world_size)]
    steps = int(length.sum())
    everything = [(e, t) for e, n in enumerate(length.tolist()) for t in range(n)]
    taken = [pairs(*reader.take(steps)) for reader in readers]
    in_order = [pair for several in zip(*taken, strict=True) for pair in several]
    for epoch in range(world_size):
        assert sorted(in_order[epoch * steps : (epoch + 1) * steps]) == everything
    assert in_order == pairs(*Sampler(length, seed=seed).take(steps * world_size))


@settings(deadline=None)
@given(LENGTHS, st.booleans(), st.lists(st.integers(1, 5000), max_size=4), st.integers(1, 20))
def test_a_state_goes_on_with_the_next_sample(length, weighted, takes, more):
    weights = mixture(length, {"all": (length > 0, 1.0)}) if weighted else None
    one = Sampler(length, weights, seed=3)
    for count in takes:
        one.take(count)
    other = Sampler(length, weights, seed=9)
    other.load_state(one.state())
    assert pairs(*other.take(more)) == pairs(*one.take(more)) == pairs(*one.at(np.arange(one.taken - more, one.taken)))
    with pytest.raises(ValueError, match="these episodes have"):
        Sampler(np.append(length, 7)).load_state(one.state())


def test_a_mixture_comes_in_its_shares_and_uniformly_within():
    length = np.asarray([10, 30, 5, 0, 100, 7])
    parts = {"human": ([0, 1], 0.6), "rollouts": (np.asarray([0, 0, 1, 0, 1, 0], bool), 0.3), "none": ([5], 0.0), "lift": ([0], 0.1)}  # fmt: skip
    # of 100,000: episode 0 has 0.6 * 10/40 + 0.1, episode 1 0.6 * 30/40, episodes 2 and 4 0.3 * 5/105 and 0.3 * 100/105
    expected = {0: 0.25, 1: 0.45, 2: 0.3 * 5 / 105, 4: 0.3 * 100 / 105}
    which, step = Sampler(length, mixture(length, parts), seed=1).take(100_000)
    assert set(np.unique(which).tolist()) == expected.keys()
    for one, share in expected.items():
        mine = step[which == one]
        assert abs(len(mine) / 1e5 - share) < 5 * (share * (1 - share) / 1e5) ** 0.5
        count = np.bincount(mine, minlength=length[one])
        assert len(count) == length[one] and abs(count - count.mean()).max() < 5 * count.mean() ** 0.5
    with pytest.raises(ValueError, match="nobody has 0 steps and the share 0.5"):
        mixture(length, {"nobody": ([3], 0.5)})
    for bad, says in ((np.zeros(6), "no step"), (np.ones(5), "weights"), (-length, "none negative")):
        with pytest.raises(ValueError, match=says):
            Sampler(length, bad)
    with pytest.raises(ValueError, match="rank 2 of world_size 2"):
        Sampler(length, rank=2, world_size=2)


def test_a_sampler_takes_a_few_bytes_an_episode():
    length = np.full(10**6, 300)
    tracemalloc.start()
    weights = mixture(length, {"a": (slice(0, 1000), 0.5), "b": (slice(1000, None), 0.5)})
    sampler = Sampler(length, weights)
    sampler.take(1000)
    kept, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert kept <= 17 * 10**6  # weights and their sums; start, length and row of the windows are 24 more: 40 of 64


@pytest.fixture
def windows(tmp_path):
    corpus = Corpus(tmp_path / "corpus", create=True)
    corpus.append([episode(seed) for seed in range(12)])
    return corpus.windows(corpus.at("latest"), cache=tmp_path / "cache")


def batches(windows, **more):
    return Batches(windows, Sampler(windows.length, seed=5, **more), obs_steps=2, action_steps=4, batch_size=8)


def test_a_batch_is_what_the_episodes_say(windows):
    held = batches(windows)
    which, step = held.sampler.at(np.arange(8, 16))
    for e, t, obs, action in zip(which, step, held[1]["obs"].numpy(), held[1]["action"].numpy(), strict=True):
        one = windows.version.read(int(e))
        np.testing.assert_array_equal(obs, one.obs["state"][[max(0, t - 1), t]])
        np.testing.assert_array_equal(action, one.action[np.minimum(np.arange(t, t + 4), len(one) - 1)])


def test_workers_give_the_same_batches_and_pickle_nothing(windows):
    with pytest.raises((TypeError, AttributeError), match="pickle"):  # maps and callbacks: a copy would be a mistake
        pickle.dumps(windows)
    loader = Loader(batches(windows), workers=2, group=2)
    kept = [
        batch for _, batch in zip(range(19), loader, strict=False)
    ]  # a slot that is used again changes none of them
    for number, batch in enumerate(kept):
        for name, value in batches(windows)[number].items():
            assert value.equal(batch[name])
    state = loader.state()
    assert state["taken"] == 19 * 8 and not multiprocessing.active_children()
    again = Loader(batches(windows))
    again.load_state(state)
    assert next(iter(again))["obs"].equal(batches(windows)[19]["obs"])


@pytest.mark.filterwarnings("ignore")
def test_a_worker_that_dies_is_an_error(windows):
    class Broken(Batches):
        def arrays(self, number, count):
            if number > 3:
                os._exit(3)
            return super().arrays(number, count)

    held = Broken(windows, Sampler(windows.length), obs_steps=2, action_steps=4, batch_size=8)
    with pytest.raises(RuntimeError, match="worker 0 died"):
        for _ in Loader(held, workers=1, group=2):
            pass
