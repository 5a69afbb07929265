"""How far candidates scatter: a bandit over spreads, by hand and in a real round."""

import json
from types import SimpleNamespace

import numpy as np
import pytest

from flywheel.args import UsageError
from flywheel.rl.spread import MEMORY, NEARLY, PRIOR, Shares, Spreads, by_spread


def ended(spread: float, won: bool, **meta):
    return SimpleNamespace(success=won, meta={"spread": spread, **meta})


def test_counts_and_the_best_by_hand():
    """Each arm begins with 8 episodes at the base's success and half of each outcome; older outcomes fade; of nearly
    equal ones a wider is best."""
    arms = Spreads([1.0, 0.5, 0.0], seed=1)
    assert arms.best(0.5) == arms.best(None) == 1.0, "of equal ones the first"
    seen = [ended(0.5, True), ended(0.5, True), ended(0.0, False), ended(1.0, False, cause="it hung")]
    arms.saw(seen)
    assert arms.counts == [[0, 0], [2, 0], [0, 1]], "what an environment spoilt says nothing"
    assert arms.best(0.5) == 0.5 and by_spread(seen[:3]) == {"0.5": "2 of 2", "0": "0 of 1"}
    arms.saw([ended(0.0, True)] * 10)
    kept = (1 - 1 / MEMORY) ** 10
    np.testing.assert_allclose(arms.counts, [[0, 0], [2 * kept, 0], [10, kept]])
    # at 1: (4.8 + 0.5) / 9 + 0.05 = 0.64; at 0.5: 7.1 / 10.8 + 0.025 = 0.68; at 0: 15.3 / 19.9 = 0.77
    assert arms.best(0.6) == 0.0
    # 7.7 / 9 + 0.05 = 0.906; 9.5 / 10.8 + 0.025 = 0.905; 17.7 / 19.9 = 0.889: nothing says that 1 is worse
    assert (PRIOR, NEARLY) == (8, 0.05) and arms.best(0.9) == 1.0
    assert arms.told() == {"1": [0, 0], "0.5": [round(2 * kept, 3), 0], "0": [10, round(kept, 3)]}
    arms.fade()
    np.testing.assert_allclose(arms.counts, [[0, 0], [kept, 0], [5, kept / 2]])


def test_a_rounds_shares_are_the_chances_to_be_the_best():
    arms = Spreads([1.0, 0.0], seed=3)
    even = arms.shares(0.6, round=0)
    assert sum(even.shares) == pytest.approx(1) and 0.75 < even.shares[0] < 0.95, "the wider one teaches more"
    arms.saw([ended(1.0, False)] * 20 + [ended(0.0, True)] * 20)
    later = arms.shares(0.6, round=1)
    assert later == arms.shares(0.6, round=1), "a replay sees the same"
    assert later.shares[0] < 0.001
    drawn = [Shares((1.0, 0.0), (0.25, 0.75), 7).of(seed) for seed in range(4000)]
    assert np.mean(np.array(drawn) == 1.0) == pytest.approx(0.25, abs=0.03)


def test_a_wide_spread_that_falls_below_what_the_guard_promises_has_no_bonus():
    """Of a start at 0.97, 0.8 at the widest spread and 0.96 at the next: with a bonus of 0.25 the widest would have more
    than a quarter of a round."""
    seen = [ended(1.0, k >= 20) for k in range(100)] + [ended(0.5, k >= 4) for k in range(100)]
    shares = {}
    for below in (None, 0.05):
        arms = Spreads([1.0, 0.5], seed=3, below=below)
        arms.saw(seen)
        shares[below] = arms.shares(0.97, round=2).shares[0]
        assert arms.shares(0.5, round=2).shares[0] > 0.2, "far above its start a policy may look wider"
    assert shares[None] > 0.25 and shares[0.05] < 0.05
    assert arms.shares(None, round=2).shares[0] > 0.2, "before the start is known nothing is promised"


@pytest.mark.parametrize("spreads", [[], ["wide"], [-0.1], [True], [11]])
def test_spreads_that_are_none_are_refused(spreads):
    with pytest.raises(UsageError, match=r"collect\.spreads=.*expected numbers from 0 to 10"):
        Spreads(spreads, 0)


def test_an_episodes_noise_is_its_spread_times_as_large_and_at_0_a_policy_does_what_it_does_by_itself():
    import torch

    from flywheel.policy.base import build
    from flywheel.policy.best_of_n import BestOfN
    from flywheel.policy.critic import Critic

    torch.manual_seed(0)
    flow = build({"kind": "flow", "obs_dim": 3, "action_dim": 2, "width": 8, "depth": 1, "greedy": True}).eval()
    obs = np.linspace(-1, 1, 6).reshape(2, 3)
    alone = flow.act(obs)
    by_chance = flow.collecting(0.1)
    by_chance.spreads = Shares((0.0, 1.0), (1.0, 0.0), 0)
    by_chance.reset([0, 1], [5, 6])
    np.testing.assert_array_equal(by_chance.act(obs), alone)
    by_chance.spreads = Shares((0.5,), (1.0,), 0)
    by_chance.reset([0], [5])
    plain = flow.collecting(0.1).noises(5, 4)
    np.testing.assert_array_equal(by_chance._noise[0].next(), plain[0] * np.float32(0.5))

    critic = Critic.of(flow, actions=True, members=2, width=8)
    near, wide = (BestOfN.of(flow, critic, flow, n=8, spread=s).eval() for s in (0.0, 1.0))
    assert near.spec["spread"] == 0.0 and "spread" not in wide.spec, "older files are as they were"
    np.testing.assert_allclose(near.act(obs), alone, atol=1e-6)
    assert np.abs(wide.act(obs) - alone).max() > 1e-3
    again = build(near.spec)
    again.load_state_dict(near.state_dict())
    np.testing.assert_allclose(again.eval().act(obs), alone, atol=1e-6)


def test_who_goes_on_from_a_best_of_n_begins_with_what_was_seen_of_it(tmp_path):
    """And keeps it through a stop; where critics begin to choose, what was seen of others is forgotten."""
    from flywheel.rl.practice import Practice
    from flywheel.runs.run import Run, Store
    from flywheel.stages.retrain import Args

    run = Run("retrain", "0" * 16, Args(), Store(tmp_path), {})
    run.begin()
    first, second, fresh = (Practice(run.args, run, None, None, [], {}) for _ in range(3))
    first.spread(collecting=True, judged=False)
    first.spreads.saw([ended(1.0, True)])
    assert first.spreads.told()["1"] == [1, 0]
    first.spread(collecting=True, judged=True)
    assert first.spreads.told()["1"] == [0.5, 0], "others act from now on: it counts half"
    first.spreads.saw([ended(0.25, True)] * 3)
    assert first.spread(collecting=False, judged=True) == 0.25
    second.scattered(first.spreads.told())
    second.spread(collecting=True, judged=True)
    assert second.spreads.told() == first.spreads.told()
    fresh.load_state(json.loads(json.dumps(second.state())))
    assert fresh.spread(True, True) == second.spread(True, True) and fresh.spreads.best(0.5) == 0.25
    run.log.close()
