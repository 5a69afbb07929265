"""On Slurm by submitit: an array of jobs that share a folder. A job writes each result as soon as it has it, so that
one which was lost, or cut off by its time, costs the task that it was at; who has done his share takes what nobody
has begun, then what others have begun and not finished, once: nobody waits for a slow machine.

Where there is no Slurm, `resources.cluster=local` starts the same jobs as processes of this machine; `auto` does so
where `sbatch` is absent, and says it."""

from __future__ import annotations

import contextlib
import os
import pickle
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from flywheel.ending import check
from flywheel.executors import TRIES, elsewhere, lost, needed, whose
from flywheel.log import say
from flywheel.store import write_atomic

JOBS = 64  # at most, where nobody says how many workers
TASKS, CLAIMS = "tasks", ("begun", "again")  # files beside the results
LOOK, ASK = 0.2, 2.0  # seconds between two looks at the folder, and between two questions who is at work


def map(function, tasks, workers=0, *, cpus=1, gpus=0, mem_gb=4, minutes=60, cluster="slurm", folder=None, **slurm):
    """The result of each task; `workers` jobs (0: one a task, 64 at most), each with `cpus`, `gpus`, `mem_gb` and
    `minutes`. `folder` is one that all machines see (default: ~/.cache/flywheel); `slurm` are further parameters of
    submitit: slurm_partition, slurm_account. RuntimeError where jobs die again and again."""
    submitit, cluster = needed("submitit", "slurm"), _cluster(cluster)
    place = Path(folder or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "flywheel").expanduser()
    place.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="slurm-", dir=place, ignore_cleanup_errors=True) as folder:
        results, tries = Path(folder), 0
        engine = submitit.AutoExecutor(results / "jobs", cluster=cluster)
        asked = {"timeout_min": minutes, "cpus_per_task": cpus, "gpus_per_node": gpus, "mem_gb": mem_gb, **slurm}
        engine.update_parameters(name="flywheel", **asked)
        write_atomic(results / TASKS, pickle.dumps([tuple(task) for task in tasks]), durable=False)
        while left := [i for i in range(len(tasks)) if not _file(results, i).exists()]:
            for mark in [path for claim in CLAIMS for path in results.glob(f"*.{claim}")]:
                mark.unlink()  # who set it is gone
            count = min(workers or JOBS, len(left))
            with engine.batch():
                jobs = [engine.submit(work, folder, sys.path, whose(function), k, count) for k in range(count)]
            _wait(jobs, results, left, cluster)
            if cluster == "slurm":
                _cancel(jobs, cluster)  # who is still at work does what nobody needs
            tries = 0 if any(_file(results, i).exists() for i in left) else tries + 1
            if tries == TRIES:
                raise lost("slurm", len(tasks) - len(left), len(tasks), _why(jobs))
        return [_taken(results, i) for i in range(len(tasks))]


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


def _wait(jobs: Sequence, results: Path, left: Sequence[int], cluster: str) -> None:
    """Until all is there, or no job is at work any more; jobs are cancelled where this ends by an error."""
    asked = time.monotonic()
    try:
        while not all(_file(results, i).exists() for i in left):
            check()
            if cluster == "local" or time.monotonic() - asked > ASK:
                if _over(jobs, cluster):
                    break
                asked = time.monotonic()
            time.sleep(LOOK)
        for i in left:
            if _file(results, i).exists():
                _taken(results, i)  # a task's own error ends it now
    except BaseException:
        _cancel(jobs, cluster)
        raise


def _over(jobs: Sequence, cluster: str) -> bool:
    """Is none of the jobs at work or waiting? Slurm's queue says so also where it keeps no accounts of jobs; if it
    cannot be reached they may be."""
    if cluster == "local":
        return all(job.done() for job in jobs)
    command = ["squeue", "--noheader", "--array", "--format=%i", f"--user={os.getuid()}"]
    queue = subprocess.run(command, capture_output=True, text=True)
    return queue.returncode == 0 and not {job.job_id for job in jobs} & set(queue.stdout.split())


def _cancel(jobs: Sequence, cluster: str) -> None:
    """End those that are not over."""
    if cluster == "local":
        for job in jobs:
            if not job.done():
                job.cancel(check=False)
    else:
        arrays = {job.job_id.partition("_")[0] for job in jobs}
        subprocess.run(["scancel", "--quiet", *arrays], capture_output=True)


def _why(jobs: Sequence) -> str:
    """What to do, with the last words of the first job."""
    said = ((jobs[0].stderr() or "").strip().splitlines() or ["nothing"])[-1]
    return f"Time or memory? Ask for more resources.minutes or resources.mem_gb. A job said: {said}"


def _file(results: Path, task: int) -> Path:
    return results / f"{task}.pickle"


def _taken(results: Path, task: int):
    """A task's result, or the error that it ended with."""
    good, result = pickle.loads(_file(results, task).read_bytes())
    if not good:
        raise result
    return result


def work(folder: str, path: list[str], named: tuple[str, str], job: int, jobs: int) -> None:
    """What a job does: its share of the tasks, then what others leave. A double writes the same bytes."""
    results = Path(folder)
    tasks = pickle.loads((results / TASKS).read_bytes())
    with contextlib.suppress(FileNotFoundError):  # the folder is gone: nobody waits for it
        for i in taking(results, len(tasks), job, jobs):
            finish(results, i, path, named, tasks[i])


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
