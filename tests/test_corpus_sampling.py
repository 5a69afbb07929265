"""Drawing steps: a function of a number, uniform over a pool's steps, in few bytes."""

import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flywheel.corpus.sampling import Growing, Pool, divided, fractions


def pool(*parts):
    """A pool of episodes (first step, length), in several goes."""
    made = Pool()
    for part in parts:
        made.add(*np.asarray(part, np.int64).reshape(-1, 2).T)
    return made


def test_the_steps_of_a_pool_by_hand():
    # episodes of 2 steps from 10, 1 from 5 and 3 from 20 are steps 10 11 | 5 | 20 21 22: a sixth of the way is one step
    made = pool([(10, 2), (5, 1)], [(20, 3)])
    at = (np.arange(6) + 0.5) / 6
    assert len(made) == 6 and made.at(at).tolist() == [10, 11, 5, 20, 21, 22]
    assert made.at(np.asarray([[0.0, 1 - 2**-53]])).tolist() == [[10, 22]]
    assert len(Pool()) == 0 and len(pool([(4, 0)])) == 0 and pool([(4, 0), (4, 2)]).at(at[[0, 5]]).tolist() == [4, 5]
    made = pool([(4, 2), (6, 3)], [(9, 1), (20, 2)])  # steps that follow each other are one piece: 4 ... 9 | 20 21
    assert len(made.ends) == 2 and made.at((np.arange(8) + 0.5) / 8).tolist() == [4, 5, 6, 7, 8, 9, 20, 21]


@settings(deadline=None)
@given(
    st.lists(st.lists(st.tuples(st.integers(0, 9), st.sampled_from([0, 0, 3])), max_size=5), max_size=6).filter(
        lambda parts: any(length for part in parts for length, _ in part)
    )
)
def test_a_pool_that_grew_is_the_one_that_was_made_at_once(parts):
    lengths, gaps = np.asarray([pair for part in parts for pair in part]).T
    first, at = np.cumsum(lengths + gaps) - lengths, np.linspace(0, 1, 50, endpoint=False)
    grown, begin = Pool(), 0
    for part in parts:
        grown.add(first[begin : begin + len(part)], lengths[begin : begin + len(part)])
        begin += len(part)
    assert np.array_equal(grown.at(at), pool(np.stack([first, lengths], 1)).at(at))
    steps = [low + n for low, count in zip(first.tolist(), lengths.tolist(), strict=True) for n in range(count)]
    assert list(dict.fromkeys(grown.at(np.linspace(0, 1, 10_000, endpoint=False)).tolist())) == steps


def test_numbers_give_fractions_that_look_random_and_differ_by_seed():
    one, two = (fractions(seed, np.arange(100_000)) for seed in (1, 2))
    assert one.min() >= 0 and one.max() < 1 and np.array_equal(one[500:600], fractions(1, np.arange(500, 600)))
    for found in (one, two):
        count = np.bincount((found * 100).astype(int), minlength=100)
        assert abs(count - 1000).max() < 5 * 1000**0.5 and abs(np.corrcoef(found[1:], found[:-1])[0, 1]) < 0.02
    assert abs(np.corrcoef(one, two)[0, 1]) < 0.02


def test_shares_of_a_batch_by_hand():
    pools = {"a": pool([(0, 5)]), "b": pool([(5, 1)]), "none": Pool()}
    assert divided({"a": 1, "b": 3}, pools, 8) == {"a": 2, "b": 6}
    assert divided({"a": 0.5, "none": 0.4, "b": 0.1}, pools, 12) == {
        "a": 10,
        "b": 2,
    }  # the share of `none` goes to the others
    assert divided({"a": 0.5, "b": 0.5}, pools, 5) == {"a": 2, "b": 3}  # what is rounded off goes to the last
    assert divided({"a": 0.0, "b": 0.5}, pools, 5) == {"b": 5}
    with pytest.raises(ValueError, match="nothing to draw from: none hold no step"):
        divided({"none": 1.0}, pools, 5)


def test_an_array_that_grows_is_copied_about_twice():
    made, moved = Growing(np.int64), 0
    for k in range(1000):
        before = made.room
        made.add(np.asarray([k, -k]))
        moved += len(before) if made.room is not before else 0
    assert made.all.tolist() == [n for k in range(1000) for n in (k, -k)] and moved <= 2 * 2000


def test_a_pool_takes_a_few_bytes_an_episode():
    length = np.full(10**6, 300)
    tracemalloc.start()
    made = Pool()
    made.add(np.arange(10**6) * 300, length)
    made.at(fractions(0, np.arange(1000)))
    kept, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert kept <= 17 * 10**6  # start, length and row of the windows are 24 more: 40 of 64
