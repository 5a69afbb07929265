"""What a task costs beside its work, and what rollouts gain: each executor in one run.

Overhead: so many tasks that do nothing, by workers that are there already, less what they take in this process;
median of the turns. Rollouts: a block of seeds is a task of a Gymnasium environment that Python steps
(HalfCheetah-v5); 2 workers against 1 of the same executor, taking turns. Engines that are not installed are left out;
slurm's jobs are processes of this machine (`cluster=local`), and start anew for each call: that is told apart."""

from __future__ import annotations

import argparse
import importlib.util
import os
import time
from statistics import median

os.environ.setdefault("OMP_NUM_THREADS", "1")
NEEDS = {"ray": "ray", "slurm": "submitit"}
TARGET = {"processes": 5.0, "ray": 20.0}  # ms a task


def nothing(task: int) -> int:
    return task


def elapsed(call, *args) -> float:
    """Seconds that a call takes."""
    began = time.perf_counter()
    call(*args)
    return time.perf_counter() - began


def overhead(kind: str, tasks: int, turns: int) -> tuple[float, float]:
    """(ms a task, s of a call with two tasks) with 2 workers."""
    from flywheel import executors

    call = executors.bound(kind, 2, {"cluster": "local", "minutes": 10} if kind == "slurm" else {})
    call(nothing, [(k,) for k in range(8)])  # the workers begin
    few = median(elapsed(call, nothing, [(0,), (1,)]) for _ in range(turns))
    many = median(elapsed(call, nothing, [(k,) for k in range(tasks)]) for _ in range(turns))
    return 1e3 * max(0.0, many - few) / (tasks - 2), few


def rollouts(kind: str, workers: int, episodes: int, policy) -> float:
    """Seconds of `episodes` by this executor."""
    from flywheel.args import Acting, Task
    from flywheel.env import opened
    from flywheel.env.scoring import score

    task = Task(name="gym", id="HalfCheetah-v5", reward="env", max_steps=200, step_seconds=0.0)
    batch = opened(Acting(task=task, executor=kind, workers=workers, num_envs=8))
    policy = policy or made(batch)
    score(policy, batch, range(64), what="")  # the workers begin
    try:
        return elapsed(lambda: score(policy, batch, range(episodes), what=""))
    finally:
        batch.close()


def made(batch):
    """A net of 64 x 2, one action a step."""
    from flywheel.policy.base import build
    from flywheel.rl.build import shape

    return build({"kind": "deterministic", "width": 64, "depth": 2, **shape(batch)}).eval()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kinds", nargs="*", default=["processes", "ray", "slurm"], help="default: all three")
    parser.add_argument("--tasks", type=int, default=400)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--episodes", type=int, default=128, help="of rollouts; 0: none")
    args = parser.parse_args()
    for kind in args.kinds:
        if kind in NEEDS and not importlib.util.find_spec(NEEDS[kind]):
            print(f"{kind:10} left out: {NEEDS[kind]} is not installed")
            continue
        each, call = overhead(kind, args.tasks, args.turns)
        bound = f", bound {TARGET[kind]:g} ms: {'kept' if each <= TARGET[kind] else 'MISSED'}" if kind in TARGET else ""
        print(f"{kind:10} {each:7.2f} ms a task{bound}; a call of two tasks {call:.3f} s", flush=True)
    for kind in args.kinds if args.episodes else ():
        if kind == "slurm" or (kind in NEEDS and not importlib.util.find_spec(NEEDS[kind])):
            continue
        ratios = []
        for _ in range(args.turns):
            one, two = (rollouts(kind, workers, args.episodes, None) for workers in (1, 2))
            ratios.append(one / two)
        print(
            f"{kind:10} rollouts by 2 workers: {median(ratios):.2f} x those by one ({os.cpu_count()} cores)", flush=True
        )


if __name__ == "__main__":
    main()
