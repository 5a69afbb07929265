"""A policy drives a robot: the rate, the guard, the watchdog, the record. Clock and sleep are the tests' own."""

import json

import numpy as np
import pytest
from small import call
from test_policy import make

from flywheel.args import Guard, Task
from flywheel.env import loopback
from flywheel.env.drive import drive

REAL = {"finite": {}, "limits": {}, "rate": {"share": 0.2}, "watchdog": {"seconds": 0.1}}
TOY = Task(name="gym", id="toy:Reach-v0", max_steps=20, step_seconds=0)


class Clock:
    """A time that only sleeping, and what somebody `spends`, moves on."""

    def __init__(self):
        self.now, self.slept = 100.0, []

    def __call__(self):
        return self.now

    def sleep(self, seconds):
        self.slept.append(round(seconds, 6))
        self.now += seconds


class Robot:
    """Keeps what it was told; what it observes is given."""

    def __init__(self, seen=None, ends=None):
        self.seen, self.ends, self.told, self.closed, self.reads = seen or {}, ends or {}, [], False, 0

    def reset(self):
        return self._see()

    def read(self):
        self.reads += 1
        return self._see()

    def _see(self):
        return {"state": np.float32(self.seen.get(self.reads, [1.0, 2.0, 3.0]))}

    def write(self, action):
        self.told.append(action.tolist())

    def outcome(self):
        return self.ends.get(self.reads)

    def close(self):
        self.closed = True


def slow(policy, clock, **spent):
    """A policy whose k-th action takes so many seconds: slow(policy, clock, a3=0.05), others 4 ms."""
    act, count = policy.act, [-4]  # three calls to warm up

    def timed(obs):
        count[0] += 1
        clock.now += spent.get(f"a{count[0]}", 0.004)
        return act(obs)

    policy.act = timed
    return policy


def driven(robot, clock, policy=None, steps=5, guard=REAL, **more):
    policy = slow(make("deterministic"), clock) if policy is None else policy
    interventions = more.pop("interventions", None)
    told = Guard(step=guard, interventions=interventions)
    return drive(robot, policy, told, hz=50, steps=steps, clock=clock, sleep=clock.sleep, **more)


def test_an_action_each_50th_of_a_second_whatever_it_costs():
    clock, robot = Clock(), Robot()
    made = driven(robot, clock)
    assert clock.slept == [0.016] * 5 and made.due == pytest.approx([0, 0.02, 0.04, 0.06, 0.08])
    assert made.timing() == {
        "late_p50_ms": 4.0, "late_p99_ms": 4.0, "late_worst_ms": 4.0, "jitter_p50_ms": 0.0, "jitter_p99_ms": 0.0,
        "jitter_worst_ms": 0.0, "act_p50_ms": 4.0, "act_p99_ms": 4.0, "act_worst_ms": 4.0, "missed": 0,
    }  # fmt: skip
    assert len(robot.told) == 6 and robot.told[-1] == [0.0, 0.0] and robot.closed, "at last it rests"
    assert (len(made.obs), len(made.executed), made.ended, made.outcome) == (6, 5, "time", None)


def test_a_late_action_is_not_executed_and_moves_all_that_follow():
    """0.15 s for the third: beyond the watchdog's 0.1 s it is stale; the fourth comes when it is done, not at once twice."""
    clock, robot = Clock(), Robot()
    made = driven(robot, clock, slow(make("deterministic"), clock, a2=0.15))
    assert made.stepped_in["watchdog"] == 1 and robot.told[2] == [0.0, 0.0]
    assert made.due == pytest.approx([0, 0.02, 0.04, 0.19, 0.21]) and made.timing()["missed"] == 1
    assert made.timing()["late_worst_ms"] == 150.0
    assert made.guard["guard"]["watchdog"] == [1, 2]


def test_the_guard_bounds_what_is_written_and_both_are_kept():
    clock, robot, policy = Clock(), Robot(), make("deterministic")
    policy.act = lambda obs: np.float32([1.0, -0.1])
    made = driven(robot, clock, policy, steps=3)
    np.testing.assert_allclose(robot.told[:3], [[0.4, -0.1], [0.8, -0.1], [1.0, -0.1]], atol=1e-6)
    assert np.stack(made.proposed).tolist() == [[1.0, np.float32(-0.1)]] * 3 and made.stepped_in == {"rate": 2}
    episode = made.episode("toy", policy.obs_shapes, origin="policy:abc", seed=3, fps=50.0)
    assert episode.success is None and episode.reward.sum() == 0 and episode.meta["guard"] == {"rate": [2, 0]}
    assert episode.extras["written"].tolist() == pytest.approx([0, 0.02, 0.04])
    many = driven(Robot(), Clock(), policy, steps=9, interventions=2)
    assert (len(many.executed), many.ended) == (2, "the guard") and many.guard["guard_ended"] == "2 interventions"


def test_an_episode_ends_where_the_driver_says_so_or_somebody_asks():
    made = driven(Robot(ends={3: True}), Clock(), steps=9)
    assert (len(made.executed), made.ended, made.outcome) == (3, "success", True)
    assert made.episode("toy", {"state": (3,)}, origin="policy:a").reward.tolist() == [0, 0, 1]
    assert driven(Robot(ends={1: False}), Clock(), steps=9).ended == "failure"
    asked = iter([False, True])
    assert driven(Robot(), Clock(), steps=9, stopping=lambda: next(asked)).ended == "a signal"


def test_an_observation_that_is_no_number_ends_it_at_rest():
    robot = Robot(seen={2: [1.0, np.nan, 3.0]})
    made = driven(robot, Clock(), steps=9)
    assert made.ended == "an observation is not finite" and robot.told[-1] == [0.0, 0.0] and robot.closed
    assert (len(made.obs), len(made.executed), len(made.due)) == (2, 1, 1) and np.isfinite(np.stack(made.obs)).all()


def test_a_driver_that_raises_is_at_rest_and_closed():
    """And what it did until then is kept: each action whose outcome was observed."""
    robot, read = Robot(), Robot.read
    robot.read = lambda: read(robot) if robot.reads < 3 else 1 / 0
    made = driven(robot, Clock(), steps=9)
    assert made.ended == "ZeroDivisionError: division by zero" and isinstance(made.error, ZeroDivisionError)
    assert (len(made.obs), len(made.executed), len(made.due), made.outcome) == (4, 3, 3, None)
    assert robot.told[-1] == [0.0, 0.0] and robot.closed
    stuck = Robot()
    stuck.write = lambda action: 1 / 0
    made = driven(stuck, Clock())
    assert made.executed == [] and made.error and stuck.closed


def test_what_a_driver_did_before_it_raised_is_an_episode_of_the_corpus(tmp_path, monkeypatch, copied, capsys):
    (tmp_path / "loose.py").write_text(
        '"""loose: a cable."""\nfrom flywheel.args import Task\nfrom flywheel.env.loopback import Loopback\n\n\n'
        "class Arm(Loopback):\n    reads = 0\n\n    def __init__(self):\n"
        "        super().__init__(Task(name='gym', id='toy:Reach-v0', max_steps=20, step_seconds=0), fps=500)\n\n"
        "    def read(self):\n        self.reads += 1\n        if self.reads > 4:\n"
        "            raise OSError('the cable is loose')\n        return super().read()\n"
    )
    monkeypatch.chdir(tmp_path)
    copy, at = copied
    ref = copy.runs("retrain")[-1]["result"]["outputs"]["checkpoint"]
    code, out = call("drive", f"checkpoint={ref}", "driver=loose:Arm", "hz=500", "seconds=600", at[3], capsys=capsys)
    assert code == 1 and "the cable is loose; the 4 actions before are episode" in out["error"], out
    kept = list(copy.corpus().at("latest"))[-1]
    assert len(kept) == 4 and kept.meta["ended"] == "OSError: the cable is loose" and kept.success is None


def test_the_loopback_goes_on_by_its_clock():
    clock = Clock()
    robot = loopback.Loopback(TOY, seed=3, clock=clock)  # 10 steps a second
    first = robot.reset()["state"].copy()
    robot.write(np.float32([1, 0]))
    clock.now += 0.05
    assert np.array_equal(robot.read()["state"], first), "not a tenth of a second"
    clock.now += 0.25
    np.testing.assert_allclose(robot.read()["state"][:2], first[:2] + np.float32([0.45, 0]), atol=1e-6)
    assert len(robot.flags) == 3 and robot.outcome() is None
    clock.now += 9
    robot.read()
    assert len(robot.flags) == 20 and robot.outcome() is any(robot.flags)
    robot.close()


def test_a_driver_that_is_not_there_or_takes_other_arguments_is_refused():
    for name in ("nowhere:Arm", "json:Arm", "json"):
        with pytest.raises(ValueError, match=f"driver={name}: .*expected loopback, or module:Class"):
            loopback.driver(name, TOY, {})
    with pytest.raises(ValueError, match="driver_args=.*Loopback: got an unexpected keyword argument 'speed'"):
        loopback.driver("loopback", TOY, {"speed": 2})


def test_drive_records_its_episode_and_is_never_looked_up(copied, capsys):
    copy, at = copied
    ref = copy.runs("retrain")[-1]["result"]["outputs"]["checkpoint"]
    words = ["drive", f"checkpoint={ref}", "hz=1000", "seconds=0.5", "driver_args={fps: 1000, seed: 5}", at[3]]
    assert [call(*words, capsys=capsys)[1]["status"] for _ in range(2)] == ["done", "done"]
    done = copy.runs("drive")[-1]
    code, out = call(*words, "record=false", "guard.interventions=1", capsys=capsys)
    assert code == 0 and "corpus" not in out["outputs"] and out["metrics"]["late_worst_ms"] > 0
    kept = copy.corpus().at("latest").read(done["result"]["outputs"]["episode"])
    assert kept.task == "toy:Reach-v0" and kept.fps == 1000 and kept.origin == f"policy:{ref.partition('@')[2]}"
    code, out = call("replay", out["run"], at[3], capsys=capsys)
    assert code == 1 and "not driven by a replay" in json.dumps(out)


def test_the_example_of_the_documentation_works(tmp_path, monkeypatch, copied, capsys):
    """docs/robot.md: the driver that it shows, as it stands."""
    import re
    from pathlib import Path

    text = (Path(__file__).parent.parent / "docs" / "robot.md").read_text()
    (example,) = re.findall(r"```python\n(\"\"\"my_arm.*?)```", text, re.S)
    (tmp_path / "my_arm.py").write_text(example)
    monkeypatch.chdir(tmp_path)
    copy, at = copied
    ref = copy.runs("retrain")[-1]["result"]["outputs"]["checkpoint"]
    words = [
        "drive",
        f"checkpoint={ref}",
        "driver=my_arm:Arm",
        "driver_args={goal: [0.5, 0.5]}",
        "hz=500",
        "seconds=0.1",
    ]
    code, out = call(*words, at[3], capsys=capsys)
    assert code == 0 and out["metrics"]["steps"] > 0 and out["outputs"]["corpus"], out
