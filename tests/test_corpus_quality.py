"""Quality of an episode: each metric by hand, near-duplicates, the cache."""

from contextlib import nullcontext

import numpy as np
import pytest
from corpus_cases import episode
from hypothesis import given, settings
from hypothesis import strategies as st

from flywheel.corpus import Corpus, quality

STILL = np.zeros((5, 1))  # a state [T+1, 1] for 4 actions


def measured(state, action, proposed=None, fps=10.0):
    numbers = quality.measure(np.asarray(state, float), np.asarray(action, float), proposed, fps)
    return dict(zip(quality.METRICS, numbers, strict=True))


def test_jerk_by_hand():
    # third difference of 0, 0, 0, 1 is 1 - 3*0 + 3*0 - 0 = 1; of the other dimension 2: (1 + 4) / 1
    assert measured(STILL, [[0, 0], [0, 0], [0, 0], [1, 2]])["jerk"] == 5.0
    # 0 1 8 27 64: third differences of t^3 are 6 and 6
    assert measured(np.zeros((6, 1)), [[0], [1], [8], [27], [64]])["jerk"] == 36.0
    assert np.isnan(measured(np.zeros((4, 1)), [[0], [1], [8]])["jerk"])


def test_sparc_by_hand():
    # one impulse has a flat spectrum: the arc is the straight line over the normalised frequencies, of length 1
    assert quality.sparc(np.array([0.0, 1.0, 0.0]), 20.0) == pytest.approx(-1.0)
    assert measured(STILL, [[0], [0], [1], [1]], fps=20.0)["sparc"] == pytest.approx(-1.0)
    assert np.isnan(quality.sparc(np.zeros(4), 20.0)) and np.isnan(quality.sparc(np.ones(4), 0.0))
    # two impulses d samples apart: V = |cos(pi f d / fps)|; d / fps = 0.1 s, up to 10 Hz: down to 0 at 5 Hz and up
    # again.
    # cells of 20 / 128 Hz; arc of |cos| over a period
    speed = np.zeros(5)
    speed[[1, 3]] = 1.0
    x = np.arange(65) * (20.0 / 128)
    v = np.abs(np.cos(np.pi * x * 0.1))
    by_hand = -np.sqrt(np.diff(x / 10) ** 2 + np.diff(v) ** 2).sum()
    assert quality.sparc(speed, 20.0) == pytest.approx(by_hand)


def test_sparc_prefers_one_stroke_to_many_at_any_amplitude_and_speed():
    at = np.linspace(0, 1, 101)
    stroke = 30 * at**2 * (1 - at) ** 2  # the speed of a minimum-jerk reach of one second
    smooth = quality.sparc(stroke, 100.0)
    assert smooth == pytest.approx(quality.sparc(5 * stroke, 100.0)) and -1.7 < smooth < -1.3
    assert quality.sparc(stroke * (1 + np.sin(40 * at)), 100.0) < smooth - 0.2


def test_idle_saturation_and_tracking_by_hand():
    # the first dimension has range 1: moves of 0.001 of it are idle; 2 of 4 steps
    state = [[0, 5], [0.001, 5], [0.5, 5], [0.5, 5], [1, 5]]
    found = measured(state, [[1, 0], [0.5, -1], [0.2, 0.3], [-1, 0]], np.zeros((4, 2)))
    assert found["idle"] == 0.5
    assert found["saturation"] == 3 / 8
    assert found["tracking"] == pytest.approx(np.sqrt((1 + 0.25 + 1 + 0.04 + 0.09 + 1) / 8))
    assert np.isnan(measured(STILL, [[0], [0], [3], [0]])["saturation"])  # a range that we do not know
    assert np.isnan(measured(STILL, [[0], [0], [1], [0]])["tracking"])
    assert measured(STILL, [[0], [0], [1], [0]])["idle"] == 1.0
    assert np.isnan(measured(np.zeros((5, 0)), [[0], [0], [1], [0]])["idle"])


def test_groups_are_connected_components():
    labels = np.array([[1, 10], [2, 10], [2, 20], [3, 30], [4, 40], [3, 41]])
    assert quality.groups(labels).tolist() == [0, 0, 0, 3, 4, 3]
    assert quality.groups(np.zeros((0, 2), int)).tolist() == []


@settings(max_examples=20, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), min_size=1, max_size=12))
def test_groups_agree_with_a_plain_search(labels):
    found = quality.groups(np.asarray(labels))
    for start in range(len(labels)):
        seen, todo = {start}, [start]
        while todo:
            one = labels[todo.pop()]
            more = {i for i, two in enumerate(labels) if one[0] == two[0] or one[1] == two[1]} - seen
            seen |= more
            todo += more
        assert found[start] == min(seen)


def test_near_duplicates_share_a_hash_and_others_do_not():
    random = np.random.default_rng(0)
    hits = others = 0
    for _ in range(300):
        state, action = random.normal(size=(41, 6)).cumsum(axis=0), random.uniform(-1, 1, (40, 3))
        own = quality.coarse("lift", state, action)
        noise = random.normal(size=(40, 9))
        noise *= 0.01 / np.linalg.norm(noise[np.linspace(0, 39, 16).astype(int)])
        near = quality.coarse("lift", state + np.pad(noise[:, :6], ((0, 1), (0, 0))), action + noise[:, 6:])
        hits += any(a == b for a, b in zip(own, near, strict=True))
        far = quality.coarse("lift", state + 1.0, action)
        others += any(a == b for a, b in zip(own, far, strict=True))
        assert own == quality.coarse("lift", state, action) != quality.coarse("push", state, action)
    assert hits >= 290 and others == 0


@pytest.fixture
def corpus(tmp_path):
    return Corpus(tmp_path / "corpus", create=True)


def test_a_version_is_measured_once_and_only_what_is_new(corpus, tmp_path):
    first, second = episode(1, steps=30), episode(2, steps=9, task="push")
    twin = first.replace(action=first.action + np.float32(1e-5), origin="policy:x")
    image = {"extras": {"frames": np.zeros((4, 64, 64, 3), np.uint8)}}
    corpus.append([first, second, episode(3, steps=4, width=5, **image)])
    found = quality.measured(corpus.at(1), tmp_path)
    state, action = first.obs["state"], first.action
    assert [found[name][0] for name in quality.METRICS[:3]] == list(quality.measure(state, action, None, 20.0))[:3]
    assert found["near"].tolist() == [0, 0, 0]

    corpus.append([twin])
    read = []

    def told(what, total):
        read.append(total)
        return nullcontext(lambda: None)

    again = quality.measured(corpus.at(2), tmp_path, told)
    assert read == [1] and again["near"].tolist() == [1, 0, 0, 1]
    assert again["near_group"][0] == again["near_group"][3] != again["near_group"][1]
    quality.measured(corpus.at(1), tmp_path, told)
    assert read == [1]

    for path in (tmp_path / f"quality-{quality.REVISION}").glob("*.npy"):  # a cache that is damaged is made again
        path.write_bytes(path.read_bytes()[:100])
    third = quality.measured(corpus.at(2), tmp_path, told)
    assert read == [1, 4] and all((third[name].tobytes() == again[name].tobytes()) for name in again)


def test_the_cache_stays_a_few_files(corpus, tmp_path, monkeypatch):
    monkeypatch.setattr(quality, "PARTS", 3)
    for seed in range(8):
        corpus.append([episode(seed)])
        quality.measured(corpus.at("latest"), tmp_path)
        assert len(list((tmp_path / f"quality-{quality.REVISION}").glob("*.npy"))) <= 4
    assert len(quality.measured(corpus.at("latest"), tmp_path)["jerk"]) == 8


def test_an_empty_version(corpus, tmp_path):
    assert {len(column) for column in quality.measured(corpus.at("latest"), tmp_path).values()} == {0}
