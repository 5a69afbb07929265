"""A simulated cluster drives the real bookkeeping of `executor=slurm`: 1,000 workers in virtual time, of which some are
slow, some are preempted, some jobs are started twice, and every result goes through a slow store.

Only Slurm is simulated (an engine with submitit's interface). Which tasks are left, what a job does and skips, files of
results, rounds, errors are flywheel/executors/slurm.py as it is. Told are the work that was delivered as a share of what
the workers could have done until the end, what was wasted, and whether a result was lost, or is another than this
process computes. Virtual time: a task's own is lognormal around `--seconds`."""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import heapq
import pickle
import sys
import tempfile
import time
import types
from pathlib import Path

import numpy as np

from flywheel import executors
from flywheel.executors import slurm


def digest(number: int) -> str:
    """A task: an id by content."""
    return hashlib.sha256(str(number).encode()).hexdigest()


class Job:
    """A job that is over: its results lie in the folder, as far as it came."""

    def done(self) -> bool:
        return True

    def stderr(self) -> str:
        return "preempted"

    def cancel(self, check: bool = True) -> None:
        """Nothing is left to cancel."""


class Cluster:
    """Slurm in virtual time: jobs of a batch begin together, each on a worker of its own."""

    def __init__(self, asked):
        self.asked, self.rng = asked, np.random.default_rng(asked.seed)
        self.now = self.delivered = self.lost = self.twice = self.paid = 0.0
        self.rounds = self.preempted = self.doubled = 0
        self.seen: set[int] = set()
        self.waiting: list[tuple] = []

    def update_parameters(self, **told) -> None:
        """Time and memory are not simulated."""

    def submit(self, function, *told) -> Job:
        self.waiting.append(told)
        return Job()

    @contextlib.contextmanager
    def batch(self):
        """All jobs of a batch, event by event: a worker ends its task, and asks for the next as a job does."""
        yield
        began, asked, rng, events = self.now, self.asked, self.rng, []
        doubles = [one for one in self.waiting if rng.random() < asked.doubles]
        self.doubled += len(doubles)
        for number, (folder, job, _) in enumerate(self.waiting + doubles):
            results = max(path.parent for path in Path(folder).glob(f"[0-9]*/{slurm.TASKS}"))
            if number == 0:
                path, named, jobs, told = pickle.loads((results / slurm.TASKS).read_bytes())
            tasks = slurm.taking(results, len(told), job % jobs, jobs)
            slow = asked.slower if rng.random() < asked.stragglers else 1.0
            gone = began + rng.exponential(3600 / asked.preempted)
            heapq.heappush(events, (began, number, None, 0.0, (tasks, slow, gone)))
        while events:
            when, number, task, cost, worker = heapq.heappop(events)
            tasks, slow, gone = worker
            if when >= gone:
                self.preempted, self.lost, self.paid = self.preempted + 1, self.lost + cost, self.paid + gone - began
                continue
            if task is not None:
                slurm.finish(results, task, path, named, told[task])
                (one,) = told[task]
                self.twice += cost if one in self.seen else 0.0
                self.delivered += 0.0 if one in self.seen else cost / slow
                self.seen.add(one)
                self.now = max(self.now, when if len(self.seen) == asked.tasks and not self.over else self.now)
                self.over = len(self.seen) == asked.tasks
            if (task := next(tasks, None)) is None:
                self.paid += when - began
                continue
            cost = slow * rng.lognormal(np.log(asked.seconds), 0.3)
            done = min(when + cost + rng.exponential(asked.store), gone)
            heapq.heappush(events, (done, number, task, cost, worker))
        self.rounds, self.waiting = self.rounds + 1, []

    over = False  # is all there?


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, default=1000)
    parser.add_argument("--tasks", type=int, default=10_000)
    parser.add_argument("--seconds", type=float, default=60.0, help="of a task, in virtual time")
    parser.add_argument("--stragglers", type=float, default=0.02, help="share of workers that are slow")
    parser.add_argument("--slower", type=float, default=3.0, help="times")
    parser.add_argument("--preempted", type=float, default=0.05, help="of the workers, an hour")
    parser.add_argument("--store", type=float, default=2.0, help="s that a result takes on its way, on average")
    parser.add_argument("--doubles", type=float, default=0.01, help="share of jobs that are started twice")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    run = Cluster(args)
    sys.modules["submitit"] = types.SimpleNamespace(AutoExecutor=lambda folder, cluster: run)
    slurm.LOOK = 0.0
    began, tasks = time.perf_counter(), [(k,) for k in range(args.tasks)]
    with tempfile.TemporaryDirectory() as folder:
        told = {"cluster": "local", "folder": folder}
        found = executors.bound("slurm", args.workers, told)(digest, tasks)
    took = time.perf_counter() - began
    lost = sum(a is None for a in found)
    equal = found == executors.named("local")(digest, tasks)
    share = run.delivered / (run.now * args.workers)
    print(f"{args.workers:,} workers, {args.tasks:,} tasks: {run.now / 60:.1f} minutes, {run.rounds} round(s)")
    print(f"  {args.tasks / run.now:.1f} tasks a second; work delivered: {share:.1%} of the cluster's time")
    print(f"  {run.preempted} jobs preempted, {run.doubled} started twice; of the time at work lost {run.lost / run.paid:.2%}, "
          f"done a second time {run.twice / run.paid:.2%}")  # fmt: skip
    print(
        f"  lost {lost}, {'equal to the bit' if equal else 'DIFFERENT'}; {1e3 * took / args.tasks:.2f} ms a task here"
    )
    sys.exit(0 if equal and not lost else 1)


if __name__ == "__main__":
    main()
