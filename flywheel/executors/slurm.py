"""On Slurm by submitit: an array of jobs that share a folder, a crew. A job writes each result as soon as it has it, so
that one which was lost, or cut off by its time, costs the task that it was at; who has done his share takes what nobody
has begun, then what others have begun and not finished, once: nobody waits for a slow machine. Then it looks for the
next call, for `stay` seconds at most, so that a round of practice need not queue for each of its blocks.

Where there is no Slurm, `resources.cluster=local` starts the same jobs as processes of this machine; `auto` does so
where `sbatch` is absent, and says it."""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import pickle
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from flywheel.ending import check
from flywheel.executors import TRIES, elsewhere, lost, needed, whose
from flywheel.log import say
from flywheel.store import write_atomic

JOBS = 64  # at most, where nobody says how many workers
STAY = 120.0  # seconds that a job waits for the next call
TASKS, CLAIMS, LEFT, OVER = "tasks", ("begun", "again"), "left", "over"  # files beside the results
LOOK, ASK = 0.2, 2.0  # seconds between two looks at the folder, and between two questions who is at work

_crews: dict[str, Crew] = {}


def map(
    function,
    tasks,
    workers=0,
    *,
    cpus=1,
    gpus=0,
    mem_gb=4,
    minutes=60,
    stay=STAY,
    cluster="slurm",
    folder=None,
    **slurm,
):
    """The result of each task; `workers` jobs (0: one a task, 64 at most), each with `cpus`, `gpus`, `mem_gb` and
    `minutes`, which end when there was no task for `stay` seconds. `folder` is one that all machines see (default:
    ~/.cache/flywheel); `slurm` are further parameters of submitit: slurm_partition, slurm_account. RuntimeError where
    jobs die again and again."""
    submitit, cluster = needed("submitit", "slurm"), _cluster(cluster)
    place = Path(folder or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "flywheel").expanduser()
    asked = {"timeout_min": minutes, "cpus_per_task": cpus, "gpus_per_node": gpus, "mem_gb": mem_gb, **slurm}
    key = json.dumps([str(place), cluster, workers, stay, asked])
    crew = _crews.get(key) or _crews.setdefault(key, Crew(submitit, place, cluster, stay, asked))
    done: dict[int, Any] = {}
    tries = 0
    try:
        while left := [i for i in range(len(tasks)) if i not in done]:
            found = crew.call(function, [tuple(tasks[i]) for i in left], min(workers or JOBS, len(left)))
            done |= {left[number]: result for number, result in found.items()}
            tries = 0 if found else tries + 1
            if tries == TRIES:
                raise lost("slurm", len(done), len(tasks), crew.why())
    except BaseException:
        stay = 0
        raise
    finally:
        if not stay:
            _crews.pop(key).leave()
    return [done[i] for i in range(len(tasks))]


class Crew:
    """Jobs that share a folder, in which each call is a folder of its own: its tasks, and what became of them."""

    def __init__(self, submitit, place: Path, cluster: str, stay: float, asked: dict[str, Any]):
        place.mkdir(parents=True, exist_ok=True)
        self.folder, self.cluster, self.stay = Path(tempfile.mkdtemp(prefix="slurm-", dir=place)), cluster, stay
        self.engine = submitit.AutoExecutor(self.folder / "jobs", cluster=cluster)
        self.engine.update_parameters(name="flywheel", **asked)
        self.jobs: dict[int, Any] = {}  # by number: those that may be at work
        self.calls, self.begun, self.last = 0, 0, None

    def call(self, function, tasks: list[tuple], count: int) -> dict[int, Any]:
        """{number: result} of the tasks that are done when all are, or nobody is at work on them any more; `count`
        jobs do them, new ones where fewer are there. Raises a task's own error."""
        self.calls += 1
        results = self.folder / f"{self.calls:06d}"
        results.mkdir()
        self.jobs = self.working()
        lacking = range(self.begun, self.begun + max(0, count - len(self.jobs)))
        told = list(sys.path), whose(function), max(count, len(self.jobs)), tasks
        write_atomic(results / TASKS, pickle.dumps(told), durable=False)
        if lacking:
            with self.engine.batch():
                new = [self.engine.submit(serve, str(self.folder), job, self.stay) for job in lacking]
            self.jobs |= dict(zip(lacking, new, strict=True))
            self.begun, self.last = lacking.stop, new[0]
        self.wait(results, len(tasks))
        found = {i: _taken(results, i) for i in range(len(tasks)) if _file(results, i).exists()}
        shutil.rmtree(results, ignore_errors=True)  # who is still at work does what nobody needs
        return found

    def wait(self, results: Path, count: int) -> None:
        """Until all is there, or all that are at work have left these tasks."""
        asked = time.monotonic()
        while not all(_file(results, i).exists() for i in range(count)):
            check()
            if self.cluster == "local" or time.monotonic() - asked > ASK:
                self.jobs = self.working()
                if all((results / f"{job}.{LEFT}").exists() for job in self.jobs):
                    return
                asked = time.monotonic()
            time.sleep(LOOK)

    def working(self) -> dict[int, Any]:
        """The jobs that are at work or waiting. Slurm's queue says so also where it keeps no accounts of jobs; if it
        cannot be reached all may be."""
        if self.cluster == "local" or not self.jobs:
            return {number: job for number, job in self.jobs.items() if not job.done()}
        command = ["squeue", "--noheader", "--array", "--format=%i", f"--user={os.getuid()}"]
        queue = subprocess.run(command, capture_output=True, text=True)
        there = set(queue.stdout.split())
        return {n: job for n, job in self.jobs.items() if queue.returncode or job.job_id in there}

    def why(self) -> str:
        """What to do, with the last words of a job."""
        said = ((self.last.stderr() or "").strip().splitlines() or ["nothing"])[-1]
        return f"Time or memory? Ask for more resources.minutes or resources.mem_gb. A job said: {said}"

    def leave(self) -> None:
        """End the jobs, those by themselves that only wait, and remove what they share."""
        with contextlib.suppress(FileNotFoundError):
            (self.folder / OVER).touch()
        until = time.monotonic() + (10 * LOOK if self.cluster == "local" else 0)
        while (jobs := self.working()) and time.monotonic() < until:
            time.sleep(LOOK)
        for job in jobs.values() if self.cluster == "local" else ():
            job.cancel(check=False)
        if self.cluster == "slurm" and jobs:
            subprocess.run(["scancel", "--quiet", *(job.job_id for job in jobs.values())], capture_output=True)
        shutil.rmtree(self.folder, ignore_errors=True)


@atexit.register
def leave() -> None:
    """End the jobs of all calls."""
    while _crews:
        _crews.popitem()[1].leave()


def _cluster(asked: str) -> str:
    """Where jobs go: slurm or local; ValueError where there is no Slurm and nobody asked for less."""
    if asked not in ("slurm", "local", "auto"):
        raise ValueError(f"resources.cluster={asked}; expected slurm, local or auto")
    if asked == "local" or shutil.which("sbatch"):
        return "slurm" if asked == "auto" else asked
    if asked == "slurm":
        raise ValueError(
            "executor=slurm: there is no sbatch on this machine. Give the command on a machine of the cluster, or take "
            "resources.cluster=local: the same jobs as processes of this one"
        )
    say("  executor=slurm: there is no sbatch here, the jobs are processes of this machine (resources.cluster=auto)")
    return "local"


def _file(results: Path, task: int) -> Path:
    return results / f"{task}.pickle"


def _taken(results: Path, task: int):
    """A task's result, or the error that it ended with."""
    good, result = pickle.loads(_file(results, task).read_bytes())
    if not good:
        raise result
    return result


def serve(folder: str, job: int, stay: float) -> None:
    """What a job does: its share of each call that comes, until none has come for `stay` seconds."""
    crew, done, since = Path(folder), 0, time.monotonic()
    while crew.exists() and not (crew / OVER).exists():  # else nobody waits for it
        calls = [int(name) for name in os.listdir(crew) if name.isdigit() and (crew / name / TASKS).exists()]
        if (newest := max(calls, default=0)) > done:
            done = newest
            work(crew / f"{done:06d}", job)
            since = time.monotonic()
        elif time.monotonic() - since >= stay:
            return
        else:
            time.sleep(LOOK)


def work(results: Path, job: int) -> None:
    """A call's tasks: the job's share, then what others leave. A double writes the same bytes."""
    with contextlib.suppress(FileNotFoundError):  # the folder is gone: nobody waits for it
        path, named, jobs, tasks = pickle.loads((results / TASKS).read_bytes())
        for i in taking(results, len(tasks), job % jobs, jobs):
            finish(results, i, path, named, tasks[i])
        (results / f"{job}.{LEFT}").touch()


def taking(results: Path, count: int, job: int, jobs: int) -> Iterator[int]:
    """The tasks that are for this job to do, each as it comes to it: no other has begun it, or one other at most."""
    for i in range(job, count, jobs):
        if not _file(results, i).exists() and _claimed(results, i, CLAIMS[0]):
            yield i
    for claim in CLAIMS:
        there = {name.partition(".")[0] for name in os.listdir(results) if name.endswith((".pickle", f".{claim}"))}
        left = [i for i in range(count) if str(i) not in there]  # it only shrinks
        begin = job * len(left) // jobs
        for i in left[begin:] + left[:begin]:
            if not _file(results, i).exists() and _claimed(results, i, claim):
                yield i


def _claimed(results: Path, task: int, claim: str) -> bool:
    """Is it this process that leaves the mark?"""
    try:
        (results / f"{task}.{claim}").touch(exist_ok=False)
    except FileExistsError:
        return False
    return True


def finish(results: Path, i: int, path: list[str], named: tuple[str, str], task: tuple) -> None:
    """Do a task and keep its result, or the error that it ended with."""
    try:
        result = True, elsewhere(path, *named, task)
    except Exception as error:
        result = False, error
    try:
        kept = pickle.dumps(result)
        pickle.loads(kept)
    except Exception as error:  # an error that cannot travel
        kept = pickle.dumps((False, RuntimeError(f"{type(result[1]).__name__}: {result[1]} ({error})")))
    write_atomic(_file(results, i), kept, durable=False)
