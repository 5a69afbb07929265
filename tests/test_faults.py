"""Bad rollouts are data, not death: every way in which an environment can be at fault, and that the others do not
notice."""

import os
import select
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import toy  # noqa: F401 (registers)
from test_env import Idle, Straight

from flywheel import env as envs
from flywheel.env.apart import SAYS
from flywheel.env.faults import FaultsError, Tally, truth
from flywheel.episode import check

SEEDS = list(range(100, 112))
CAUSES = {
    "raise": "ValueError: the joint is gone",
    "exit": "SystemExit: 3",
    "nan": "the observation (obs[1]) is not finite",
    "reward": "the reward is not finite",
    "narrow": "the observation has 1 numbers; expected 4",
    "wide": "the observation has 9 numbers; expected 4",
    "success_nan": "info['success'] is nan; expected true or false",
    "success_text": "info['success'] is 'yes'; expected true or false",
    "success_array": "info['success'] is array([ True, False]); expected true or false",
    "success_half": "info['success'] is 0.5; expected true or false",
    "wait": "hung: it took longer than task.step_seconds=1",
    "loop": "hung: it took longer than task.step_seconds=1",
    "hold_lock": "hung: it took longer than task.step_seconds=1",
    "die": "its process died: signal SIGSEGV",
}
HANGS = ("wait", "loop", "hold_lock")


def odd(does="nothing", at=(), when=2, n=4, threads=2, **more):
    kwargs = {"does": does, "at": None if at is None else list(at), "when": when}
    seconds = 1.0 if does in HANGS else 30.0
    task = {"name": "gym", "id": "odd:Odd-v0", "max_steps": 20, "step_seconds": seconds, "kwargs": kwargs}
    return envs.make({**task, **more}, n, threads)


def played(batch, policy=None, seeds=SEEDS):
    try:
        return envs.rollout(batch, policy or Idle(), seeds, origin="test")
    finally:
        batch.close()


@pytest.fixture(scope="module")
def behaved():
    return played(odd())[0]


@pytest.mark.parametrize("does", CAUSES)
def test_a_fault_is_a_failed_episode_and_the_others_are_equal_to_the_bit(does, behaved):
    """findings B2 and findings B3: it raises, exits, hangs (with and without the interpreter's lock), dies, or talks
    nonsense."""
    bad = {103} if does in HANGS else {103, 109}
    done, counts = played(odd(does, bad))
    assert [e.seed for e in done] == SEEDS and counts["faults"] == len(bad)
    for e, good in zip(done, behaved, strict=True):
        check(e)
        if e.seed not in bad:
            np.testing.assert_array_equal(e.obs["state"], good.obs["state"])
            np.testing.assert_array_equal(e.extras["env_reward"], good.extras["env_reward"])
            assert (e.success, e.terminated, e.meta) == (good.success, good.terminated, good.meta)
            continue
        assert e.meta["cause"] == f"{CAUSES[does]} at step 2"
        assert (e.success, e.terminated, len(e), e.reward.sum()) == (False, False, 2, 0)
        np.testing.assert_array_equal(e.obs["state"], good.obs["state"][:3])


MANY = range(300, 345)


@pytest.fixture(scope="module")
def many():
    return played(odd(n=4), Straight(), MANY)[0]


@pytest.mark.parametrize("does", ["nothing", "raise", "wait", "die"])
def test_two_groups_that_take_turns_make_the_same_episodes(does, many):
    """findings B3: 16 and more are stepped in halves, one while the other acts; faults in both halves, and in resets
    meanwhile."""
    bad = {"nothing": set(), "raise": {305, 331, 332}, "wait": {319}, "die": {304, 330}}[does]
    batch = odd(does, bad, when=-1 if does == "die" else 0, n=16)
    done, counts = played(batch, Straight(), MANY)
    assert [e.seed for e in done] == list(MANY) and counts.get("faults", 0) == len(bad)
    for e, good in zip(done, many, strict=True):
        assert ("cause" in e.meta) == (e.seed in bad)
        if e.seed not in bad:
            np.testing.assert_array_equal(e.obs["state"], good.obs["state"])
            assert (e.success, e.terminated, e.reward.tolist()) == (good.success, good.terminated, good.reward.tolist())


def test_an_answer_that_is_an_error_leaves_nothing_under_way():
    """An error of a step was once waited for again, for ever."""
    from flywheel.env.gym_batch import TaskError

    batch = envs.make({"name": "gym", "id": "toy:Silent-v0"}, 16)
    for _ in range(2):
        with pytest.raises(TaskError, match="info has no"):
            envs.rollout(batch, Idle(), range(16), origin="t")
    assert batch.reset_at(0, 3).shape == (4,)
    batch.close()


@pytest.mark.parametrize(
    ("does", "when"), [("raise", -1), ("nan", -1), ("hold_lock", -1), ("raise", 0), ("narrow", 0), ("die", 0)]
)
def test_an_episode_without_a_step_is_one_of_zeros(does, when, behaved):
    """findings B2: where the fault is in reset, or in the first step, the record still holds one step."""
    done, _ = played(odd(does, {104}, when))
    (e,) = [e for e in done if e.seed == 104]
    check(e)
    assert len(e) == 1 and not e.action.any() and e.meta["cause"].endswith("at reset" if when < 0 else "at step 0")
    if when < 0:
        assert not e.obs["state"].any()
    for e, good in zip(done, behaved, strict=True):
        assert e.seed == 104 or np.array_equal(e.obs["state"], good.obs["state"])


def test_too_many_faults_end_the_stage_with_the_most_common_causes():
    """findings B2: beyond task.faults the stage stops, and says which causes and which seeds."""
    with pytest.raises(
        FaultsError, match=r"4 of \d+ episodes .* task.faults=0.05 .* 4 x 'ValueError: the joint is gone at step #'"
    ):
        played(odd("raise", None))
    done, counts = played(odd("raise", None, faults=1.0))
    assert counts["faults"] == len(done) == len(SEEDS)


def test_the_tally_by_hand():
    tally = Tally("t", share=0.05)
    tally.begun = 100
    for seed, cause in enumerate(["a at step 1", "a at step 2", "b", "a at step 9", "c"]):
        tally.add(seed, cause)
    with pytest.raises(
        FaultsError, match=r"6 of 100 .* 3 x 'a at step #' \(seeds 0, 1, 3\); 1 x 'b' \(seeds 2\); 1 x 'c' \(seeds 4\)"
    ):
        tally.add(5, "d")


def test_what_is_true():
    assert (
        truth(True, "x")
        and truth(np.True_, "x")
        and truth(1.0, "x")
        and truth(np.float32(1), "x")
        and truth(np.array(1), "x")
    )
    assert not (truth(False, "x") or truth(0, "x") or truth(np.float64(0), "x"))


def test_a_setting_that_makes_a_hang_impossible_to_end_steps_in_this_process():
    from flywheel.env.apart import Apart
    from flywheel.env.gym_batch import GymBatch

    assert isinstance(odd(step_seconds=0), GymBatch) and isinstance(odd(), Apart)
    done, _ = played(odd("raise", {104}, step_seconds=0))
    assert [e.seed for e in done if "cause" in e.meta] == [104]


def test_faults_are_borne_by_sims_own_batches_too(monkeypatch):
    """findings B2: a reading of our own simulation that is not finite is a fault of that episode, not the end."""
    batch = envs.make({"name": "lift"}, 4)
    step = batch.step

    def broken(action, active):
        obs, *rest = step(action, active)
        if (batch._steps == 5).any():
            obs[(batch._steps == 5) & (batch._seeds == 2)] = np.nan
        return obs, *rest

    monkeypatch.setattr(batch, "step", broken)
    done, _ = envs.rollout(batch, Idler(5), range(6), origin="test")
    assert [("cause" in e.meta, len(e)) for e in done] == [(False, 80)] * 2 + [(True, 4)] + [(False, 80)] * 3
    assert done[2].meta["cause"] == "the observation (robot0_eef_pos[0]) is not finite at step 4"
    batch.close()


class Idler(Idle):
    def __init__(self, width):
        super().__init__()
        self.width = width

    def act(self, obs, slots=None):
        return np.zeros((len(obs), self.width), np.float32)


def test_steps_that_were_lost_do_not_count():
    """findings B3: with a bound on steps, episodes that begin anew after a hang have made none."""
    plain = envs.rollout(odd(n=3), Idle(), range(200, 230), origin="t", steps=120)[0]
    hung = envs.rollout(odd("wait", {204}, n=3), Idle(), range(200, 230), origin="t", steps=120)[0]
    assert [e.seed for e in hung][: len(plain)] == [e.seed for e in plain]
    assert all(
        np.array_equal(a.obs["state"], b.obs["state"]) for a, b in zip(plain, hung, strict=False) if b.seed != 204
    )


def test_a_worker_serves_the_next_batch():
    one = odd()
    process = one._parts[0]._worker.process
    one.close()
    assert odd()._parts[0]._worker.process is process
    del one


@pytest.mark.skipif(not hasattr(os, "pidfd_open"), reason="needs Linux")
def test_a_worker_ends_with_its_process_whatever_it_hangs_in():
    """findings B3: SIGKILL of a stage leaves nobody behind, not even where C code holds the interpreter's lock."""
    code = (
        "import sys; sys.path[:0] = [sys.argv[1]]\nfrom test_faults import odd, played\nbatch = odd('orphan', None, step_seconds=1e6)\n"
        "print(batch._parts[0]._worker.process.pid, flush=True)\nplayed(batch)"
    )
    here = subprocess.Popen([sys.executable, "-c", code, str(Path(__file__).parent)], stdout=subprocess.PIPE, text=True)
    worker = os.pidfd_open(int(here.stdout.readline()))
    assert here.wait() == -9
    gone = select.poll()
    gone.register(worker, select.POLLIN)
    assert gone.poll(60_000), "the worker lives on"
    os.close(worker)


def test_only_as_many_environments_are_made_as_there_are_episodes():
    """findings F8: 32 environments for 8 episodes."""
    batch = odd(n=32, step_seconds=0)
    envs.rollout(batch, Straight(), range(3), origin="test")
    assert sum(e is not None for e in batch._envs) == 3


@pytest.mark.parametrize("id", ["toy:Corridor-v0", "toy:Reach-v0", "odd:Position-v0"])
def test_a_batch_apart_says_what_one_here_says(id):
    apart, here = (envs.make({"name": "gym", "id": id, "reward": "env", "step_seconds": s}, 2, 1) for s in (30, 0))
    for key in (*SAYS, "reward", "solved"):
        np.testing.assert_array_equal(getattr(apart, key), getattr(here, key))
    for key in ("one_hot", "discrete", "hold_action"):
        assert bool(getattr(apart, key, None)) == bool(getattr(here, key, None))
    action = np.tile(apart.action_high, (2, 1))
    np.testing.assert_array_equal(apart.reset([3, 4]), here.reset([3, 4]))
    for a, b in zip(apart.step(action)[:4], here.step(action)[:4], strict=True):
        np.testing.assert_array_equal(a, b)
    apart.close()
    here.close()


def test_other_processes_faults_are_counted_together():
    """Two of 32 in each block are borne alone; the fourth of 42 is more than task.faults=5 %, whoever plays them."""
    from flywheel.args import Guard
    from flywheel.env.scoring import score
    from flywheel.policy.base import build
    from flywheel.rl.build import shape

    batch = odd("raise", [1, 2, 40, 41, 70, 71], when=0, n=8)
    batch.guard, batch.executor, batch.workers = Guard(), "processes", 2
    policy = build({"kind": "deterministic", "width": 8, "depth": 1, **shape(batch)}).eval()
    try:
        with pytest.raises(FaultsError, match=r"4 of 42 episodes failed.*seeds 1, 2, 40, 41"):
            score(policy, batch, range(96), what="")
        batch.tally = type(batch.tally)(batch.task, 0.2)
        assert (score(policy, batch, range(64), what="")["cause"] != "").sum() == 4 and batch.tally.begun == 64
    finally:
        batch.close()


def test_a_task_that_only_this_process_knows_is_refused_to_others():
    import gymnasium
    from odd import Odd

    from flywheel.args import Acting, Task
    from flywheel.env import opened

    gymnasium.register("OnlyHere-v0", lambda **kwargs: Odd(**kwargs), max_episode_steps=20)
    with pytest.raises(ValueError, match="executor=processes: OnlyHere-v0 is registered in this process only"):
        opened(Acting(task=Task(name="gym", id="OnlyHere-v0"), executor="processes"))
    opened(Acting(task=Task(name="gym", id="OnlyHere-v0"))).close()
