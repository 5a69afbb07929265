"""Tasks in this process, in others, on Ray, as jobs of submitit: the same results in the same order, whoever dies."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from flywheel import executors

ENGINES = ["processes", pytest.param("slurm", marks=pytest.mark.slow)]


def drawn(seed: int, size: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=size).cumsum()


def dies(marks: str, task: int, odd: int) -> int:
    """The square; the worker of each task that `odd` divides is killed the first time."""
    mark = Path(marks) / str(task)
    if task % odd == 0 and not mark.exists():
        mark.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return task * task


def doomed(task: int) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def wrong(task: int) -> int:
    if task == 1:
        raise ValueError(f"task {task} has no answer")
    return task


def resources(kind: str, folder) -> dict:
    return {"cluster": "local", "folder": str(folder), "minutes": 5, "stay": 0} if kind == "slurm" else {}


def mapped(kind: str, folder, function, tasks, workers: int = 2):
    if kind == "slurm":
        pytest.importorskip("submitit")
    return executors.bound(kind, workers, resources(kind, folder))(function, tasks)


@pytest.mark.parametrize("kind", ENGINES)
@pytest.mark.parametrize("workers", [1, 2, 5])
def test_results_are_equal_to_the_bit_and_in_order(kind, workers, tmp_path):
    tasks = [(seed, 1000 - 150 * seed) for seed in range(6)]
    here = executors.named("local")(drawn, tasks)
    there = mapped(kind, tmp_path, drawn, tasks, workers)
    assert all(a.tobytes() == b.tobytes() for a, b in zip(here, there, strict=True)) and len(there) == 6


@pytest.mark.parametrize("kind", ENGINES)
def test_tasks_of_killed_workers_are_done_again(kind, tmp_path):
    tasks = [(str(tmp_path), task, 3) for task in range(6)]
    assert mapped(kind, tmp_path, dies, tasks) == [task * task for task in range(6)]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["processes", "slurm"])
def test_workers_that_always_die_are_an_error_that_says_what_to_do(kind, tmp_path):
    with pytest.raises(RuntimeError, match=rf"executor={kind}: workers died 3 times, 0 of 2 tasks done\. .*emory"):
        mapped(kind, tmp_path, doomed, [(0,), (1,)], 1)


@pytest.mark.parametrize("kind", ["local", *ENGINES])
def test_a_tasks_own_error_comes_back_as_it_is(kind, tmp_path):
    with pytest.raises(ValueError, match="task 1 has no answer"):
        mapped(kind, tmp_path, wrong, [(0,), (1,), (2,)])


def test_a_second_start_of_a_job_changes_nothing(tmp_path):
    """Slurm may start a job twice: what is there stays, and no task is done again."""
    import pickle

    from flywheel.executors import slurm

    named = (drawn.__module__, drawn.__qualname__)
    (tmp_path / slurm.TASKS).write_bytes(pickle.dumps((sys.path, named, 1, [(1, 5), (2, 5)])))
    slurm.work(tmp_path, 0)
    first = {path.name: (path.stat().st_mtime_ns, path.read_bytes()) for path in tmp_path.glob("*.pickle")}
    slurm.work(tmp_path, 0)
    assert first == {path.name: (path.stat().st_mtime_ns, path.read_bytes()) for path in tmp_path.glob("*.pickle")}
    assert np.array_equal(slurm._taken(tmp_path, 1), drawn(2, 5)) and len(first) == 2


def asked(task: int) -> int:
    return os.getpid()


@pytest.mark.slow
def test_jobs_stay_for_the_next_call_and_one_that_died_is_replaced(tmp_path):
    """Also where all of a call's jobs have left tasks that a dead one had begun, and its double too."""
    pytest.importorskip("submitit")
    from flywheel.executors import slurm

    slurm.leave()
    do = executors.bound("slurm", 2, {**resources("slurm", tmp_path), "stay": 60})
    first = {pid for _ in range(4) for pid in do(asked, [(k,) for k in range(40)])}
    assert len(first) <= 2
    assert do(dies, [(str(tmp_path), task, 1) for task in range(4)]) == [0, 1, 4, 9]
    assert first.isdisjoint(do(asked, [(k,) for k in range(40)])) and executors.stays("slurm")
    (crew,) = slurm._crews.values()
    slurm.leave()
    assert not slurm._crews and not crew.folder.exists() and not executors.stays("slurm", {"stay": 0})


def test_a_job_takes_its_share_then_what_is_left_then_what_is_not_finished(tmp_path):
    """Of two jobs the second is stuck at task 1: the first does the others, and that one too, once."""
    from flywheel.executors import slurm

    stuck, first, third = (slurm.taking(tmp_path, 5, job, 2) for job in (1, 0, 1))
    assert next(stuck) == 1
    order = []
    for i in first:
        order.append(i)
        if i == 1:
            assert next(third, None) is None, "a task is at work twice at most"
        (tmp_path / f"{i}.pickle").touch()
    assert order == [0, 2, 4, 3, 1] and next(stuck, None) is None


def test_resources_that_an_executor_does_not_take_are_refused():
    with pytest.raises(ValueError, match=r"executor=processes takes no resources\.gpus; it takes: none"):
        executors.bound("processes", 2, {"gpus": 1})
    with pytest.raises(ValueError, match=r"executor=ray takes no resources\.minutes; it takes: cpus, gpus, mem_gb"):
        executors.bound("ray", 2, {"minutes": 5})
    assert executors.bound("slurm", 2, {"minutes": 5, "slurm_partition": "long"}).keywords["minutes"] == 5


@pytest.mark.parametrize(("kind", "package"), [("ray", "ray"), ("slurm", "submitit")])
def test_an_engine_that_is_not_installed_names_its_extra(kind, package, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ValueError, match=rf"executor={kind} needs {package}.*pip install 'robot-flywheel\[{kind}\]'"):
        executors.named(kind)(wrong, [(0,)])


def test_without_slurm_nobody_falls_back_unasked(monkeypatch, tmp_path, capsys):
    from flywheel.executors.slurm import _cluster

    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ValueError, match=r"there is no sbatch on this machine.*resources\.cluster=local"):
        _cluster("slurm")
    assert _cluster("auto") == "local" and "resources.cluster=auto" in capsys.readouterr().err
    with pytest.raises(ValueError, match=r"resources\.cluster=here; expected slurm, local or auto"):
        _cluster("here")


@pytest.mark.slow
def test_ray_of_three_nodes_whose_workers_and_one_node_are_killed(tmp_path):
    """On loopback, in a process of its own that ends with it (tests/ray_nodes.py)."""
    pytest.importorskip("ray")
    script = Path(__file__).with_name("ray_nodes.py")
    done = subprocess.run([sys.executable, script, tmp_path], capture_output=True, text=True, cwd=script.parent)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.splitlines()[-1] == "equal"


@pytest.mark.slow
def test_slurm_of_two_nodes_whose_jobs_are_killed_and_one_node_lost(tmp_path):
    """On loopback, in a process of its own (tests/slurm_nodes.py), without accounts of jobs."""
    import slurm_nodes

    pytest.importorskip("submitit")
    if why := slurm_nodes.missing():
        pytest.skip(why)
    script = Path(slurm_nodes.__file__)
    done = subprocess.run([sys.executable, script, tmp_path], capture_output=True, text=True, cwd=script.parent)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.splitlines()[-1] == "equal"


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["processes", "ray", "slurm"])
def test_a_policy_scores_the_same_wherever_it_is_played(kind, tmp_path, monkeypatch):
    import toy  # noqa: F401 (registers the task)

    from flywheel.args import Acting, Task
    from flywheel.env import opened
    from flywheel.env.scoring import score
    from flywheel.policy.base import build
    from flywheel.rl.build import shape

    pytest.importorskip({"ray": "ray", "slurm": "submitit"}.get(kind, "numpy"))
    task = Task(name="gym", id="toy:Reach-v0", max_steps=20)
    here = opened(Acting(task=task))
    policy = build({"kind": "flow", "width": 16, "depth": 1, **shape(here)}).eval()
    wanted = score(policy, here, range(70), what="")
    there = opened(Acting(task=task, executor=kind, workers=2, resources=resources(kind, tmp_path)))
    found = score(policy, there, range(70), what="")
    assert list(found) == list(wanted) and all(found[key].tobytes() == wanted[key].tobytes() for key in wanted)


@pytest.mark.parametrize(
    "kind", ["processes", *(pytest.param(kind, marks=pytest.mark.slow) for kind in ("ray", "slurm"))]
)
def test_practice_collects_the_same_wherever_it_is_played(kind, tmp_path):
    """The best of N, as it explores, each episode at its spread; who is begun is decided here, and what they say is
    heard in the order of the seeds. A round that does not begin at once is played here."""
    import toy  # noqa: F401 (registers the task)

    from flywheel.args import Acting, Task
    from flywheel.env import collecting, opened, rollout
    from flywheel.policy.base import build
    from flywheel.policy.best_of_n import BestOfN
    from flywheel.policy.critic import Critic
    from flywheel.rl.build import shape
    from flywheel.rl.spread import Shares

    pytest.importorskip({"ray": "ray", "slurm": "submitit"}.get(kind, "numpy"))
    task = Task(name="gym", id="toy:Reach-v0", max_steps=20)
    here = opened(Acting(task=task, num_envs=16))
    stay = {**resources(kind, tmp_path), "stay": 60} if kind == "slurm" else {}
    there = opened(Acting(task=task, num_envs=16, executor=kind, workers=3, resources=stay))
    spec = {key: value for key, value in shape(here).items() if not key.startswith("action_")}
    policy = build({"kind": "flow", "width": 16, "depth": 1, **shape(here)}).eval()
    critic = Critic(
        **spec, action_dim=here.action_dim, obs_steps=policy.obs_steps, action_steps=policy.action_steps, width=16
    )
    actor = BestOfN.of(policy, critic, policy, n=4).eval()
    actor.explore, actor.spreads = 0.3, Shares((1.0, 0.1), (0.5, 0.5), 7)
    heard, ticks = {"here": [], "there": []}, []
    how = {"origin": "policy:x", "film": True, "late": lambda k: k >= 11}
    wanted, counts = rollout(here, actor, range(16), each=lambda e: heard["here"].append(e.seed), **how)
    found, told = collecting.play(
        there, actor, range(16), each=lambda e: heard["there"].append(e.seed), progress=ticks.append, **how
    )
    assert [e.hash for e in found] == [e.hash for e in wanted] and len(found) == 11 == len(ticks) == there.tally.begun
    assert told == counts and heard["here"] == heard["there"] == list(range(11))
    for env in (here, there):
        env.close()


class Aims:
    """Goes straight to the goal, which is nearer or farther."""

    def reset(self, slots, seeds):
        pass

    def act(self, obs, slots):
        return np.clip(4 * (obs[:, 2:] - obs[:, :2]), -1, 1)


@pytest.mark.parametrize(
    ("when", "alarm", "workers"),
    [
        (-1, None, 2),
        (3, 4, 2),
        pytest.param(3, 4, 1, marks=pytest.mark.slow),
        pytest.param(3, 4, 5, marks=pytest.mark.slow),
    ],
)
def test_who_is_begun_is_who_this_process_would_begin(when, alarm, workers):
    """More episodes than fit beside each other, a bound of steps, an alarm on what was heard before, environments that
    raise at their reset or later: the same episodes, counts and faults."""
    import odd  # noqa: F401 (registers the task)

    from flywheel.args import Acting, Task
    from flywheel.env import collecting, opened, rollout

    odd_ones = {"does": "raise", "at": list(range(0, 40, 5)), "when": when}
    task = Task(name="gym", id="odd:Odd-v0", max_steps=20, faults=1.0, kwargs=odd_ones)
    told = []
    for play, how in ((rollout, {}), (collecting.play, {"executor": "processes", "workers": workers})):
        env, heard, ticks = opened(Acting(task=task, num_envs=6, **how)), [], []
        found, counts = play(
            env, Aims(), range(40), origin="policy:x", steps=120, film=True, progress=ticks.append,
            each=lambda e, heard=heard: heard.append((e.seed, "cause" in e.meta)),
            late=lambda k, heard=heard: bool(alarm) and sum(fault for _, fault in heard) >= alarm,
        )  # fmt: skip
        told.append(([e.hash for e in found], counts, heard, len(ticks), vars(env.tally)))
        env.close()
    assert told[0] == told[1]
    hashes, counts, heard, _, _ = told[0]
    assert len({len(e) for e in found}) > 5 and counts["faults"] == sum(fault for _, fault in heard) > 2
    assert 6 < len(hashes) < 40


@pytest.mark.slow
def test_a_night_by_processes_is_the_night_of_this_one(night, tmp_path, capsys):
    """Rounds of retraining included: 8 episodes at once, in blocks of 8 at most."""
    import small
    import toy

    from flywheel.runs.run import Store

    toy.demonstrations(tmp_path / "demos.hdf5")
    assert small.call(*small.words(tmp_path, "executor=processes", "workers=2"), capsys=capsys)[0] == 0
    assert small.hashes(Store(tmp_path / "store")) == small.hashes(night[1])


def test_files_that_others_read_are_taken_as_if_one_had_read_them(tmp_path):
    """Also a file that is none, one that cannot be read now, and the same file again."""
    import toy

    from flywheel.cli import config
    from flywheel.runs.run import Store, execute

    for k in range(3):
        toy.demonstrations(tmp_path / f"demos_{k}.hdf5", 3, 900_000_000 + 10 * k)
    (tmp_path / "demos_3.hdf5").write_bytes(b"no recording")
    told = {}
    for kind in ("local", "processes"):
        words = [f"source={tmp_path}/demos_*.hdf5", "obs_keys=[position,goal]", f"executor={kind}", "workers=2"]
        place = Store(tmp_path / kind)
        execute("ingest", config.compose("ingest", [*words, *toy.TASK]), place)
        (done,) = place.runs("ingest")
        version = place.corpus().at("latest")
        told[kind] = list(version.hashes), done["key"], done["result"]["metrics"], done["content"], done["files"]
    assert told["local"] == told["processes"] and len(told["local"][0]) == 9
    assert told["local"][2]["quarantined"] == 1
