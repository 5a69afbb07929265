"""A robot without a simulator: recordings go in, trials come out, and the gate decides by these."""

import csv
import importlib.util
import json
import math
from pathlib import Path

import numpy as np
import pytest
import toy
from small import call

from flywheel import evalues, unpaired
from flywheel.args import Task, UsageError, build
from flywheel.env.robot import Robot
from flywheel.episode import Episode
from flywheel.rl import plateau, validation
from flywheel.runs.run import Store

WORDS = ["task=robot", "task.id=robot"]
LITTLE = ["policy=deterministic", "policy.width=32", "policy.depth=1", "pretrain.batch_size=32"]


def benchmark():
    path = Path(__file__).parent.parent / "benchmarks" / "robot.py"
    spec = importlib.util.spec_from_file_location("robot_benchmark", path)
    made = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(made)
    return made


def demonstrations(folder, count=24):
    from flywheel_datasets import robomimic_hdf5

    toy.demonstrations(folder / "demos.hdf5", count)
    return list(robomimic_hdf5.read(folder / "demos.hdf5", obs_keys=["position", "goal"]))


@pytest.fixture
def lab(tmp_path):
    made = benchmark()
    task = {"name": "gym", "id": "toy:Reach-v0", "max_steps": 20, "step_seconds": 0}
    one = made.Lab(task, demonstrations(tmp_path), tmp_path)
    yield made, one, Store(tmp_path / "store")
    one.env.close()


# -- the test of unpaired trials -----------------------------------------------------------------------------------------


def counts(k1, n1, k0, n0, won=0, lost=0, both=0):
    return unpaired.Counts(k1, n1, k0, n0, won, lost, both)


def reference(c, gain=0.0):
    """The least of 0.9 N + 0.1 U over a plain grid of both rates, term by term."""
    beta = lambda k, n: math.exp(math.lgamma(k + 1) + math.lgamma(n - k + 1) - math.lgamma(n + 2))  # noqa: E731
    least, pairs = math.inf, min(c.n1, c.n0)
    for p1 in np.linspace(0, 1, 201):
        for p0 in np.linspace(0, 1, 201):
            if p1 - p0 > gain + 1e-9:
                continue
            own = 0.0
            for bet, share in zip(evalues.BETS, evalues.SHARES, strict=True):
                b = bet / (1 + gain)
                value = share * (1 + b * (1 - gain)) ** c.won * (1 - bet) ** c.lost
                value *= (1 - b * gain) ** (pairs - c.won - c.lost)
                if c.n1 > c.n0:
                    good = c.k1 - c.won - c.both
                    value *= (1 + b * (1 - p0 - gain)) ** good * (1 + b * (-p0 - gain)) ** (c.n1 - c.n0 - good)
                else:
                    good = c.k0 - c.lost - c.both
                    value *= (1 + b * (p1 - 1 - gain)) ** good * (1 + b * (p1 - gain)) ** (c.n0 - c.n1 - good)
                own += value
            likely = p1**c.k1 * (1 - p1) ** (c.n1 - c.k1) * p0**c.k0 * (1 - p0) ** (c.n0 - c.k0)
            ratio = beta(c.k1, c.n1) * beta(c.k0, c.n0) / likely if likely else math.inf
            least = min(least, 0.9 * own + 0.1 * ratio)
    return least


def test_the_e_value_of_trials_is_the_least_over_all_rates():
    whole, more, fewer = counts(9, 10, 4, 10, 6, 1, 3), counts(11, 15, 1, 5, 3, 0, 1), counts(5, 6, 7, 14, 2, 1, 3)
    for c, gain in ((whole, 0.0), (more, -0.3), (fewer, 0.2)):
        assert math.exp(unpaired.log_e(c, gain)) == pytest.approx(reference(c, gain), rel=2e-3)
    assert math.exp(unpaired.log_e(counts(0, 0, 0, 0))) == pytest.approx(1)
    assert math.exp(unpaired.log_e(counts(3, 5, 0, 0))) <= 1, "of one alone nothing follows"


def test_whatever_is_tried_next_chance_promotes_no_more_often_than_ville_allows():
    """Equal policies, looked at after every trial; who is tried next depends on what was seen: the last to succeed."""
    rng, number, length = np.random.default_rng(0), 100, 40
    for p in (0.3, 0.85):
        y1, y0 = rng.random((2, number, length)) < p
        sums = [np.pad(y.cumsum(1), ((0, 0), (1, 0))) for y in (y1, y0, y1 & ~y0, y0 & ~y1, y1 & y0)]
        n1, n0, ever, row = (np.zeros(number, int) for _ in range(4))
        row = np.arange(number)
        for _ in range(length):
            first = (n1 == 0) | y1[row, np.maximum(n1 - 1, 0)]
            n1, n0 = n1 + first, n0 + ~first
            m = np.minimum(n1, n0)
            c = counts(sums[0][row, n1], n1, sums[1][row, n0], n0, *(s[row, m] for s in sums[2:]))
            ever |= unpaired.log_e(c) >= math.log(20)
        assert ever.mean() <= 0.05


def test_the_bounds_hold_and_the_wanted_trials_decide():
    better = unpaired.Counts.of(np.arange(40) < 34, np.arange(40) % 3 == 0)
    assert evalues.decided(unpaired.told(better, 0.05), 28.0, 0.01) == "better"
    low, high = unpaired.interval(better, 0.05)
    assert 0 < low < 34 / 40 - 14 / 40 < high < 1
    turned = unpaired.Counts.of(np.arange(40) % 3 == 0, np.arange(40) < 34)
    assert evalues.decided(unpaired.told(turned, 0.05), 28.0, 0.01) == "futile"
    few = unpaired.Counts.of(np.arange(10) < 8, np.arange(14) % 2 == 0)
    more = unpaired.wanted(few, 28.0, 0.01, 0.05)
    assert more[0] == more[1] + 4 and 10 < more[0] < 60
    near = unpaired.Counts.of(np.arange(60) % 2 == 0, np.arange(60) % 2 == 1)
    assert unpaired.wanted(near, 1e9, 0.0, 0.05) is None


# -- what it is ----------------------------------------------------------------------------------------------------------


def test_a_card_says_what_the_robot_is_and_what_it_cannot_be():
    card = {
        "obs": {"joints": 6, "grip": 1},
        "action": {"pan": [-100, 100], "lift": [0, 5]},
        "fps": 30,
        "cameras": {"front": [96, 128]},
    }
    robot = Robot(Task(name="robot", id="so101_pick", card=card))
    assert (robot.task, robot.obs_dim, robot.action_dim, robot.fps) == ("so101_pick", 7, 2, 30.0)
    assert robot.action_low.tolist() == [-100, 0] and robot.cameras == {"front": (96, 128, 3)}
    with pytest.raises(ValueError, match=r"without a simulator.*flywheel drive"):
        robot.step(np.zeros((1, 2)))
    with pytest.raises(ValueError, match="task.card has joints; expected obs, action"):
        Robot(Task(name="robot", card={"joints": 6}))
    with pytest.raises(ValueError, match=r"pan=\[1, 1\]; expected its limits"):
        Robot(Task(name="robot", card={"action": {"pan": [1, 1]}}))
    with pytest.raises(UsageError, match="that is for task=robot"):
        build(Task, {"name": "lift", "card": card})


def test_a_curve_of_errors_rises_where_it_falls_and_ends_where_it_does_not():
    rng = np.random.default_rng(0)
    level = rng.uniform(0.2, 0.4, 20)
    errors = [level + gap + rng.normal(0, 0.005, 20) for gap in (0.5, 0.3, 0.1)]
    assert plateau.moves(errors) == (True, False) and plateau.moves(errors[:1]) == (True, False)
    assert plateau.moves([*errors, errors[-1]]) == (False, False)
    assert plateau.moves([*errors, errors[0], errors[0]]) == (False, True)


def test_who_is_held_out_follows_from_hashes_alone(tmp_path):
    from flywheel.corpus import Corpus

    corpus = Corpus(tmp_path / "corpus", create=True)
    corpus.append(demonstrations(tmp_path))
    few = corpus.at("latest").canonical()
    pools, unseen = validation.split(few, {"demos": np.arange(len(few))}, 0.2)
    held = {few.hashes[k] for k in unseen}
    assert held and not held & {few.hashes[k] for k in pools["demos"]}
    half = few.select(np.arange(0, len(few), 2))
    _, again = validation.split(half, {"demos": np.arange(len(half))}, 0.2)
    assert {half.hashes[k] for k in again} >= held & set(half.hashes)
    with pytest.raises(ValueError, match="two episodes"):
        validation.split(few.select([0]), {"demos": np.arange(1)}, 0.2)


# -- the week --------------------------------------------------------------------------------------------------------------


def test_three_nights_of_a_robot_that_only_files_know(lab, capsys):
    made, one, place = lab

    def told(*words):
        code, out = call(*words, capsys=capsys)
        assert code == 0, out
        return out

    words = [*LITTLE, "pretrain.score_every=100", "pretrain.algorithm.cadence.improve=200", "threads=1"]
    days = made.week(one, place, words, (4, 8, 12), told, most=20)
    name = days[0]["production"].partition("@")[0]
    assert name == "policy/robot" and "nothing to try" in days[0]["said"]
    asked = [line for line in days if "candidate" in line]
    assert len(asked) == 2 and "trials wanted: " in days[1]["said"]
    truth = {ref: one.truth(place.load(ref), 100) for line in asked for ref in (line["candidate"], line["over"])}
    for line in asked:
        assert not (line["promoted"] and truth[line["candidate"]] < truth[line["over"]] - 0.1), (line, truth)
    for run in place.runs("pretrain"):
        curve, best = run["content"]["curve"], run["result"]["metrics"]
        assert best["error"] == min(point["error"] for point in curve) and len(best["error_by_phase"]) == 4
    assert place.runs("retrain") == place.runs("online") == []
    assert told("fsck", f"store={place.root}")["findings"] == []
    at = [f"store={place.root}", *WORDS]
    assert told("nightly", *at, *words)["status"] in ("noop", "done", "refused")
    assert told("nightly", *at, *words)["status"] == "noop", "no trial, no demonstration more"
    assert "in recorded trials" in (place.root / "report" / "index.html").read_text()


def test_trials_come_in_as_a_table(lab, capsys):
    _, one, place = lab
    at = [f"store={place.root}", *WORDS]
    assert call("ingest", *at, f"source={one.record(6)}", capsys=capsys)[1]["metrics"]["added"] == 6
    table = one.folder / "trials.csv"
    lines = [
        ["policy", "success", "episode", "x"],
        ["policy/robot@0123456789ab", "yes", 0, 0.1],
        ["0123456789ab", "0", 1, 0.2],
    ]
    with open(table, "w", newline="") as file:
        csv.writer(file).writerows(
            [*lines, ["nobody", "1", 2, 0], ["0123456789ab", "perhaps", 3, 0], ["0123456789ab", "1", 4, "left"]]
        )
    out = call("ingest", *at, f"source={table}", "format=trials_csv", capsys=capsys)[1]
    assert (out["metrics"]["added"], out["metrics"]["quarantined"]) == (2, 3)
    reasons = [bad["reason"] for bad in place.find(out["run"])["content"]["quarantined"]]
    assert [
        any(word in one for one in reasons) for word in ("policy is 'nobody'", "success is 'perhaps'", "x is 'left'")
    ] == [True] * 3
    with open(table, "w", newline="") as file:
        csv.writer(file).writerows([*lines, ["0123456789ab", "1", 2, 0.3]])
    out = call("ingest", *at, f"source={table}", "format=trials_csv", capsys=capsys)[1]
    assert (out["metrics"]["added"], out["metrics"]["duplicates"]) == (1, 2)
    held = place.corpus().at("latest").select(origin="policy:*")
    assert sorted((e.meta["start"]["x"], e.success) for e in held) == [(0.1, True), (0.2, False), (0.3, True)]
    from flywheel import selection
    from flywheel.cli import config

    args = config.compose("pretrain", WORDS)
    assert len(selection.demonstrations(args, place)) == 6, "an outcome is nothing to imitate"


def test_what_a_person_did_when_taking_over_is_a_pool_of_its_own(tmp_path):
    """A trial with corrections is no success, and only its corrected steps are imitated."""
    from flywheel import selection
    from flywheel.cli import config
    from flywheel.env import trials
    from flywheel.rl.source import Offline

    place = Store(tmp_path / "store")
    rng = np.random.default_rng(0)

    def episode(origin, **more):
        state = rng.normal(size=(11, 2)).astype(np.float32)
        reward = np.float32(np.arange(10) == 9)
        return Episode(
            task="robot", obs={"state": state}, action=np.zeros((10, 1), np.float32), reward=reward, terminated=True,
            success=True, origin=origin, fps=10.0, **more,
        )  # fmt: skip

    helped = np.zeros(10, bool)
    helped[[3, 4, 7]] = True
    mixed = episode("policy:0123456789ab", extras={"intervention": helped}, meta={"interventions": 3})
    mixed = mixed.replace(action=np.float32(helped)[:, None])
    place.corpus(create=True).append([*(episode("human") for _ in range(4)), mixed, episode("policy:0123456789ab")])
    task = Task(name="robot")
    assert trials.succeeded(trials.of(place, task, "policy/robot@0123456789ab")).sum() == 1
    args = config.compose("pretrain", [*WORDS, "corrections=0.5"])
    version, pools, shares = selection.pools(args, place)
    assert len(version) == 5 and shares == {"demos": 0.5, "corrections": 0.5}
    assert sorted(map(tuple, pools["corrections"][:, 1:].tolist())) == [(3, 2), (7, 1)]
    windows = selection.windows(place.corpus(), version, args, place)
    source = Offline(windows, pools, {"improve": shares}, obs_steps=1, action_steps=1, batch_size=64)
    assert source.batch("improve")["action"].mean() == 0.5
    assert "corrections" not in selection.pools(config.compose("pretrain", [*WORDS, "corrections=0"]), place)[1]


def test_lerobots_interventions_are_kept_under_one_name(lab):
    import pyarrow as pa
    import pyarrow.parquet as pq
    from flywheel_datasets import lerobot_v3

    _, one, _ = lab
    folder = one.record(2)
    (path,) = (folder / "data").glob("*/*.parquet")
    table = pq.read_table(path)
    helped = pa.array(np.arange(table.num_rows) % 4 == 0)
    pq.write_table(table.append_column("complementary_info.is_intervention", helped), path)
    info = json.loads((folder / "meta" / "info.json").read_text())
    info["features"]["complementary_info.is_intervention"] = {"dtype": "bool", "shape": [1], "names": None}
    (folder / "meta" / "info.json").write_text(json.dumps(info))
    first = next(iter(lerobot_v3.read(folder)))
    assert (
        first.extras["intervention"].dtype == bool and first.meta["interventions"] == first.extras["intervention"].sum()
    )
