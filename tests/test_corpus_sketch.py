"""Quantiles that merge exactly: against numpy, however the rows are cut; of a version, with a cache."""

import numpy as np
import pytest
from corpus_cases import episode
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from flywheel.corpus import Corpus, CorpusError, sketch

ROWS = hnp.arrays(
    np.float64, st.tuples(st.integers(1, 40), st.integers(1, 3)),
    elements=st.floats(-1e9, 1e9) | st.floats(-1, 1) | st.sampled_from([0.0, -0.0, 1e-13, 1e300, -1e300, 5e-324]),
)  # fmt: skip
Q = st.lists(st.floats(0, 1), min_size=1, max_size=5)


@settings(max_examples=200, deadline=None)
@given(ROWS, Q)
def test_quantiles_are_within_one_per_cent_of_numpys(rows, q):
    found = sketch.sketch(rows).quantiles(q)
    true = np.quantile(rows, q, axis=0, method="lower")
    assert found.shape == true.shape
    assert (np.abs(found - true) <= sketch.ERROR * np.abs(true) * (1 + 1e-9) + sketch.ZERO).all()


@settings(max_examples=100, deadline=None)
@given(ROWS, st.data())
def test_merging_is_exact_in_any_cut_and_order(rows, data):
    whole = sketch.sketch(rows)
    cuts = sorted(data.draw(st.lists(st.integers(1, len(rows)), max_size=4)))
    parts = [sketch.sketch(part) for part in np.split(rows, cuts) if len(part)]
    parts = data.draw(st.permutations(parts))
    some = data.draw(st.integers(1, len(parts)))
    for merged in (sketch.merge(parts), sketch.merge([sketch.merge(parts[:some]), *parts[some:]])):
        assert merged.keys.tobytes() == whole.keys.tobytes() and merged.counts.tobytes() == whole.counts.tobytes()


def test_a_sketch_by_hand():
    # g = 1.01 / 0.99: 1 = g^0 is in bucket 0, whose value is 2 / (g + 1) = 0.99; so is -1, mirrored
    found = sketch.sketch(np.array([[1.0], [-1.0], [0.0]]))
    assert found.counts.tolist() == [1, 1, 1]
    np.testing.assert_allclose(found.quantiles([0, 0.5, 1])[:, 0], [-0.99, 0, 0.99])
    with pytest.raises(ValueError, match=r"2 sketches of \[1, 2\] columns"):
        sketch.merge([found, sketch.sketch(np.zeros((1, 2)))])


@pytest.fixture
def corpus(tmp_path):
    return Corpus(tmp_path / "corpus", create=True)


def test_of_a_version_as_of_all_its_rows_with_or_without_cache(corpus, tmp_path):
    made = [episode(seed) for seed in range(9)]
    corpus.append(made[:4])
    corpus.append(made[4:])
    corpus.tombstone([made[2].hash, made[7].hash], "bad")
    left = [one for number, one in enumerate(made) if number not in (2, 7)]
    for field, rows in (("obs.state", [one.obs["state"] for one in left]), ("action", [one.action for one in left])):
        whole = sketch.sketch(np.concatenate(rows))
        for _ in range(2):  # made, then read
            found = sketch.of(corpus.at("latest"), field, tmp_path)
            assert (found.width, found.keys.tolist(), found.counts.tolist()) == (
                whole.width, whole.keys.tolist(), whole.counts.tolist()
            )  # fmt: skip
    kept = sorted((tmp_path / "sketch-1").glob("*.npz"))
    assert len(kept) == 4  # two segments, two streams
    for path in kept:
        path.write_bytes(b"damaged")
    assert sketch.of(corpus.at("latest"), "action", tmp_path).counts.sum() == 2 * sum(len(one) for one in left)


def test_what_has_no_quantiles_is_said(corpus, tmp_path):
    with pytest.raises(CorpusError, match="has no episode"):
        sketch.of(corpus.at(0), "action", tmp_path)
    corpus.append([episode(1), episode(2), episode(3, width=5)])
    with pytest.raises(CorpusError, match="of 3 episodes 2 have 3 numbers a row, 1 have 5 numbers a row"):
        sketch.of(corpus.at(1), "obs.state", tmp_path)
    with pytest.raises(CorpusError, match="of 3 episodes 3 have none"):
        sketch.of(corpus.at(1), "obs.stat", tmp_path)
    assert sketch.of(corpus.at(1), "action", tmp_path).width == 2
