"""The gate: its arithmetic by hand, its promises by simulation, its looks and its ledger on a small store."""

import importlib.util
import math
from pathlib import Path

import numpy as np
import pytest
from small import call

from flywheel import ending, evalues
from flywheel.args import UsageError
from flywheel.cli import config
from flywheel.env import comparing
from flywheel.env.comparing import Gate
from flywheel.runs import lineage, nightly, run


def e(*counts):
    return math.exp(evalues.log_e(*counts))


# -- arithmetic --------------------------------------------------------------------------------------------------------


def test_the_e_value_by_hand():
    # bets 0.05 0.1 0.2 0.4 0.8 with shares 0.01 0.02 0.2 0.55 0.22; a win multiplies each by 1 + c, a loss by 1 - c
    assert e(0, 0) == pytest.approx(1)
    assert e(1, 0) == pytest.approx(0.01 * 1.05 + 0.02 * 1.1 + 0.2 * 1.2 + 0.55 * 1.4 + 0.22 * 1.8)  # 1.4385
    assert e(0, 1) == pytest.approx(2 - 1.4385)
    assert e(1, 1) == pytest.approx(1 - (0.01 * 0.0025 + 0.02 * 0.01 + 0.2 * 0.04 + 0.55 * 0.16 + 0.22 * 0.64))
    assert e(5, 2, 99) == pytest.approx(e(5, 2))  # pairs that are equal say nothing about "not better"


@pytest.mark.parametrize("gain", [-0.3, 0.0, 0.05, 0.4])
def test_the_e_value_is_what_the_bettors_own(gain):
    """Bet by bet, in any order; at fair odds the mean of what comes next is what there is (so Ville's bound holds)."""
    rng = np.random.default_rng(0)
    pairs = rng.choice([1, -1, 0], 60, p=[0.3, 0.2, 0.5])
    for order in (pairs, rng.permutation(pairs)):
        own = sum(
            share * np.prod(1 + c * (order - gain) / (1 + gain))
            for c, share in zip(evalues.BETS, evalues.SHARES, strict=True)
        )
        assert e((order > 0).sum(), (order < 0).sum(), (order == 0).sum(), gain) == pytest.approx(own)
    lost = 0.2
    won = lost + gain
    if won < 0:
        won, lost = 0.0, -gain
    next_ = won * e(8, 3, 20, gain) + lost * e(7, 4, 20, gain) + (1 - won - lost) * e(7, 3, 21, gain)
    assert next_ == pytest.approx(e(7, 3, 20, gain))


def test_levels_by_hand():
    """0.05 x 0.95 x 3/4 is 0.035625, 1 in 28.07; rank 2 has 1/4 x 2^-1.5 / (zeta(1.5) - 1) = 0.05482 of alpha."""
    assert evalues.needed(0.05, 1, 0) == pytest.approx(28.0702, abs=1e-4)
    assert evalues.share(2) == pytest.approx(0.25 * 0.353553 / 1.612375, rel=1e-5)
    assert evalues.level(0.05, 2, 3) == pytest.approx(0.05 * 0.95 * evalues.share(2) * 4)
    assert evalues.level(0.05, 1, 1) == evalues.level(0.05, 1, 99) == 0.05  # never more than alpha itself
    total = sum(evalues.share(t) for t in range(1, 100_001))
    assert 0.998 < total < 1


def test_an_answer_stops_early_either_way():
    gate = Gate()
    better, worse = evalues.told(20, 2, 100, gate.alpha), evalues.told(2, 20, 100, gate.alpha)
    assert evalues.decided(better, 28.0, gate.worth) == "better" and evalues.decided(better, 1e9, gate.worth) is None
    assert evalues.decided(worse, 28.0, gate.worth) == "futile" and worse["gain_ci"][1] < 0
    assert evalues.decided(evalues.told(5, 5, 100, gate.alpha), 28.0, gate.worth) is None
    assert [evalues.so_far(np.arange(100) < a, np.arange(100) < b)["verdict"] for a, b in ((60, 20), (20, 60), (9, 8))] == [
        "better",
        "worse",
        "undecided",
    ]  # fmt: skip


# -- promises, by simulation -------------------------------------------------------------------------------------------


def paths(won, lost, n, number, seed):
    """won, lost [number, n] after each pair."""
    u = np.random.default_rng(seed).random((number, n))
    return (u < won).cumsum(1), ((u >= won) & (u < won + lost)).cumsum(1)


def test_equal_policies_pass_no_more_often_than_ville_allows():
    """Looked at after every single pair."""
    for won, lost in ((0.25, 0.25), (0.05, 0.05), (0.1, 0.15)):
        ever = (evalues.log_e(*paths(won, lost, 500, 2000, 1)) >= math.log(20)).any(1)
        assert ever.mean() < 0.05


def test_the_confidence_sequence_covers_at_all_times():
    """That the true gain is ever excluded, after any of 300 pairs, happens in at most 5 % of the sequences."""
    for won, lost in ((0.3, 0.2), (0.04, 0.01), (0.02, 0.1)):
        w, k = paths(won, lost, 300, 2000, 2)
        ties = np.arange(1, 301) - w - k
        above = evalues.log_e(w, k, ties, won - lost) >= math.log(2 / 0.05)  # the lower end lies above
        below = evalues.log_e(k, w, ties, lost - won) >= math.log(2 / 0.05)
        assert (above | below).any(1).mean() <= 0.05
        low, high = evalues.interval(int(w[0, -1]), int(k[0, -1]), 300, 0.05)
        assert -1 <= low < (w[0, -1] - k[0, -1]) / 300 < high <= 1
        assert (low > won - lost) == above[0, -1] and (high < won - lost) == below[0, -1]


def test_false_promotions_are_a_small_share_and_power_is_as_told():
    path = Path(__file__).parent.parent / "benchmarks" / "gate.py"
    spec = importlib.util.spec_from_file_location("simulated", path)
    simulated = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(simulated)
    rng = np.random.default_rng(3)
    for scatter in (0.0, 0.03):
        told = simulated.history(20, 0.9, scatter, 200, rng)["1,000 pairs, E"]
        assert (told["false"] / np.maximum(1, told["made"])).mean() <= 0.05
    won, lost, at = simulated.counts(*simulated.cells(0.5, 0.6, 0.0), 500, 1000, rng)
    yes, pairs = simulated.played(evalues.log_e(won, lost), won, lost, at, evalues.needed(0.05, 1, 0))
    assert yes.mean() > 0.88 and pairs.mean() < 480
    assert sum(simulated.cells(0.5, 0.6, 0.5)) < sum(simulated.cells(0.5, 0.6, 0.0)) == pytest.approx(0.5)
    old, _ = simulated._mcnemar(np.full(4000, 0.25), np.full(4000, 0.25), rng)
    assert 0.025 < old.mean() < 0.05


# -- the stage ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def shop(night, copied, monkeypatch):
    """(Store, words, name, three ids, rates by id to set, looks played): each policy succeeds on a seed by a coin of its
    own, which falls as its rate says."""
    place, at = copied
    refs = list(dict.fromkeys(row["checkpoint"] for row in night[2]["content"]["table"]))
    name, ids = refs[0].partition("@")[0], [ref.partition("@")[2] for ref in refs[:3]]
    rates, looks = {}, []

    def score(policy, env, seeds, *, what, **options):
        looks.append((what, seeds[0], len(seeds)))
        id_ = what.partition("@")[2]
        coins = [np.random.default_rng([seed, ids.index(id_)]).random() for seed in seeds]
        rows = np.array(coins) < rates[id_]
        return {"seed": np.array(seeds), "success": rows, "length": np.full(len(seeds), 10)}

    monkeypatch.setattr(comparing, "score", score)
    return place, at, name, ids, rates, looks


def test_a_better_one_is_promoted_and_a_stranger_can_check_it(shop, capsys):
    place, at, name, (a, b, c), rates, _ = shop
    rates |= {a: 0.5, b: 0.8, c: 0.2}
    before = len(place.ledger.taken("gate"))
    code, out = call("promote", f"{name}@{b}", *at, capsys=capsys)
    told = place.names.log(name)[-1]
    assert (code, out["status"], told["op"], told["ended"]) == (0, "done", "promote", "better")
    assert nightly.production(place, name) == f"{name}@{b}" and told["over"] == a
    assert told["pairs"] == 20 * told["looks"] < 1000 and told["e"] >= told["needed"] == evalues.needed(0.05, 2, 0)
    assert (told["number"], told["t"], told["promotions"]) == (2, 2, 0)  # the night's own question was refused
    assert told["seeds"]["count"] == told["pairs"] and told["success"]["candidate"][1] == told["pairs"]
    assert evalues.differs(told) == []
    for key, value in (("won", told["won"] - 9), ("promotions", 7), ("op", "refuse"), ("e", 1e9)):
        assert evalues.differs({**told, key: value}), key
    code, out = call("promote", f"{name}@{c}", *at, capsys=capsys)
    told = place.names.log(name)[-1]
    assert (out["status"], told["ended"], told["t"], told["promotions"]) == ("refused", "futile", 2, 1)
    assert call("fsck", f"store={place.root}", capsys=capsys)[1]["metrics"]["findings"] == 0
    assert len(place.ledger.taken("gate")) == before + 2
    assert lineage.replay(out["run"], place)["metrics"]["different"] == 0


def asked(place, name):
    """What the gate answered about a name: (op, number, t, promotions)."""
    return [(x["op"], x["number"], x["t"], x["promotions"]) for x in place.names.log(name) if "t" in x]


def test_every_question_stands_in_one_ledger(shop, capsys):
    """A refusal spends a rank, whoever asked; a promotion spends none; to measure or to force is no question."""
    place, at, name, (a, b, c), rates, _ = shop
    rates |= {a: 0.3, b: 0.7, c: 0.95}
    call("promote", f"{name}@{b}", *at, capsys=capsys)
    call("promote", f"{name}@{c}", f"against={name}@{a}", *at, capsys=capsys)
    call("promote", f"{name}@{c}", *at, capsys=capsys)
    call("promote", f"{name}@{b}", *at, capsys=capsys)
    call("promote", f"{name}@{a}", "force=why not", *at, capsys=capsys)
    call("promote", f"{name}@{b}", "gate.pairs=20", "high_water=0", *at, capsys=capsys)
    assert asked(place, name) == [
        ("refuse", 1, 1, 0),  # the night's own
        ("promote", 2, 2, 0),
        ("promote", 3, 2, 1),
        ("refuse", 4, 2, 2),
        ("refuse", 5, 3, 2),
    ]
    seeds = [x["seeds"] for x in place.names.log(name) if "t" in x]
    used = [s for one in seeds for s in range(one["first"], one["first"] + one["count"])]
    assert len(used) == len(set(used))
    assert call("fsck", f"store={place.root}", capsys=capsys)[1]["metrics"]["findings"] == 0


def test_fsck_finds_an_answer_that_does_not_follow(shop, capsys):
    place, at, name, (a, b, c), rates, _ = shop
    rates |= {a: 0.5, b: 0.8}
    call("promote", f"{name}@{b}", *at, capsys=capsys)
    true = place.names.log(name)[-1]
    figures = {k: v for k, v in true.items() if k not in ("op", "id", "run", "reason", "time", "hash", "over")}
    place.names.promote(name, c, "promote/other", "trust me", **{**figures, "number": 3, "won": 99})
    found = call("fsck", f"store={place.root}", capsys=capsys)[1]["findings"]
    assert any("follows as" in f for f in found) and any("the ledger has no gate question 3" in f for f in found)
    assert any("promotions 1" in f for f in found) and all("promote/other" in f for f in found), found


def test_steps_and_time_are_caps_and_a_replay_ends_at_the_same_look(shop, capsys):
    place, at, name, (a, b, c), rates, looks = shop
    rates |= {a: 0.5, b: 0.5, c: 0.5}
    out = call("promote", f"{name}@{b}", "gate.steps=1000", "gate.look=10", *at, capsys=capsys)[1]
    assert (out["metrics"]["ended"], out["metrics"]["environment_steps"], out["metrics"]["n"]) == ("steps", 1000, 50)
    out = call("promote", f"{name}@{b}", "gate.budget=0.001s", "gate.look=30", *at, capsys=capsys)[1]
    assert (out["metrics"]["ended"], out["metrics"]["n"]) == ("budget", 30) and "stopped" not in out
    looks.clear()
    assert lineage.replay(out["run"], place)["metrics"]["different"] == 0 and len(looks) == 2
    slow = config.load("promote", [f"checkpoint={name}@{b}", "gate.look=30", *at], place.root)
    out = run.execute("promote", slow, place, deadline=0.0)
    assert (out["metrics"]["ended"], out["metrics"]["n"], out["stopped"]) == ("budget", 30, "budget")
    assert lineage.replay(out["run"], place)["metrics"]["different"] == 0
    for wrong, text in (("gate.budget=5", "expected a duration"), ("gate.worth=2", "gate.worth=2; expected a number")):
        with pytest.raises(UsageError, match=text):
            config.compose("promote", [f"checkpoint={name}@{b}", wrong])
    told = config.compose("nightly", ["promote.gate.budget=5m", "gate.pairs=300"]).promote.gate
    assert (told.budget, told.pairs, told.alpha) == ("5m", 300, 0.05)


def test_a_gate_that_was_killed_goes_on_at_its_look(shop, monkeypatch):
    """It plays no look twice, has the same seeds and rank, and comes to the same answer."""
    place, at, name, (a, b, _), rates, looks = shop
    rates |= {a: 0.5, b: 0.62}
    cfg = config.load("promote", [f"checkpoint={name}@{b}", "asked_by=nightly/x", *at], place.root)
    whole, copy = comparing.score, lineage.scratch(place, place.root.parent / "copy", set())
    expected = run.execute("promote", cfg, copy)
    number = len(looks)
    looks.clear()

    def killed(policy, env, seeds, **more):
        if len(looks) == 7:
            raise ending.Stopped()
        return whole(policy, env, seeds, **more)

    with monkeypatch.context() as patched, pytest.raises(ending.Stopped):
        patched.setattr(comparing, "score", killed)
        run.execute("promote", cfg, place)
    made = run.execute("promote", cfg, place)
    assert {**made, "seconds": 0} == {**expected, "seconds": 0} and number > 8
    assert len(looks) == number + 1  # the candidate's fourth look came without the incumbent's
    strip = [{k: v for k, v in x.names.log(name)[-1].items() if k not in ("time", "hash")} for x in (place, copy)]
    assert strip[0] == strip[1] and len(place.ledger.taken("gate")) == len(copy.ledger.taken("gate"))


def test_a_gate_that_was_killed_after_production_moved_asks_anew(shop, monkeypatch):
    """What was played against the old one is not taken for the new one's; a replay asks as often."""
    place, at, name, (a, b, c), rates, _ = shop
    rates |= {a: 0.4, b: 0.45, c: 0.9}
    cfg = config.load("promote", [f"checkpoint={name}@{b}", "asked_by=nightly/x", "gate.pairs=60", *at], place.root)
    whole, seen = comparing.score, []

    def moved(policy, env, seeds, **more):
        if len(seen) == 4:
            place.names.promote(name, c, "", "by another hand")
            raise ending.Stopped()
        return seen.append(more["what"]) or whole(policy, env, seeds, **more)

    with monkeypatch.context() as patched, pytest.raises(ending.Stopped):
        patched.setattr(comparing, "score", moved)
        run.execute("promote", cfg, place)
    out = run.execute("promote", cfg, place)
    entry = place.names.log(name)[-1]
    assert (out["status"], entry["over"], entry["number"], entry["t"]) == ("refused", c, 3, 3)
    assert entry["success"]["incumbent"][0] > 0.8 * entry["pairs"] and entry["lost"] > entry["won"]
    assert lineage.replay(out["run"], place)["metrics"]["different"] == 0


def test_production_goes_back_to_the_best_that_ever_stood_there(shop, capsys):
    place, at, name, (a, b, c), rates, _ = shop
    rates |= {a: 0.9, b: 0.5, c: 0.4}
    call("promote", f"{name}@{c}", *at, capsys=capsys)  # the gate sees a, in production
    assert place.names.high_water(name) is None
    call("promote", f"{name}@{b}", "force=the customer insists", *at, capsys=capsys)
    assert place.names.high_water(name)[0] == a
    words = ["promote", f"{name}@{c}", "high_water=3", *at]
    out = call(*words, capsys=capsys)[1]
    entry = place.names.log(name)[-1]
    assert (out["status"], out["outputs"]["checkpoint"]) == ("refused", f"{name}@{a}")
    assert (entry["op"], entry["id"], entry["from"], entry["best"], entry["ended"]) == ("rollback", a, b, a, "better")
    assert (entry["number"], entry["t"], entry["promotions"]) == (1, 1, 0) and evalues.differs(entry) == []
    assert nightly.production(place, name) == f"{name}@{a}" and place.names.high_water(name) is None
    assert lineage.replay(out["run"], place)["metrics"]["different"] == 0
    assert call("fsck", f"store={place.root}", capsys=capsys)[1]["metrics"]["findings"] == 0


def test_production_that_is_not_shown_worse_is_kept(shop, capsys):
    place, at, name, (a, b, c), rates, _ = shop
    rates |= {a: 0.6, b: 0.6, c: 0.3}
    call("promote", f"{name}@{c}", *at, capsys=capsys)
    call("promote", f"{name}@{b}", "force=as good", *at, capsys=capsys)
    out = call("promote", f"{name}@{c}", "high_water=1", *at, capsys=capsys)[1]
    entry = place.names.log(name)[-1]
    assert (entry["op"], entry["id"], entry["best"]) == ("keep", b, a) and evalues.differs(entry) == []
    assert out["outputs"]["checkpoint"] == nightly.production(place, name) == f"{name}@{b}"
    assert lineage.replay(out["run"], place)["metrics"]["different"] == 0
    page = call("report", f"store={place.root}", capsys=capsys)
    assert page[0] == 0 and "kept" in (place.root / "report" / "index.html").read_text()
    assert call("rollback", name, f"store={place.root}", capsys=capsys)[0] == 0
    assert nightly.production(place, name) == f"{name}@{a}"


def test_an_evaluation_says_so_far(night, copied, capsys):
    place, at = copied
    refs = list(dict.fromkeys(row["checkpoint"] for row in night[2]["content"]["table"]))
    asked_before = len(place.ledger.taken("gate"))
    out = call("evaluate", f"checkpoint={refs[0]}", f"against={refs[1]}", "episodes=8", *at, capsys=capsys)[1]
    told = out["metrics"]["so_far"]
    assert told["verdict"] == "undecided" and told["pairs"] == 8 and told["gain_ci"][0] < 0 < told["gain_ci"][1]
    assert len(place.ledger.taken("gate")) == asked_before
