"""In processes of this machine, which stay for the next tasks. One that dies is replaced, its tasks are done again."""

from __future__ import annotations

import functools
import multiprocessing
import os
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool

from flywheel.executors import TRIES, lost, one_thread

STAY = True  # workers are there from one call to the next: what takes seconds may be done by them, too


def map(function, tasks, workers=0):
    """The result of each task; `workers` 0: one a core. RuntimeError where processes die again and again."""
    done, tries = {}, 0
    while len(done) < len(tasks):
        pool, going, before = _pool(workers or os.cpu_count() or 1), {}, len(done)
        try:
            for i in (i for i in range(len(tasks)) if i not in done):
                going[i] = pool.submit(function, *tasks[i])
        except BrokenProcessPool:  # one died while it waited
            _pool.cache_clear()
        for i, future in going.items():
            try:
                done[i] = future.result()
            except BrokenProcessPool:
                _pool.cache_clear()
        tries = 0 if len(done) > before else tries + 1
        if tries == TRIES:
            raise lost("processes", len(done), len(tasks), "Memory? Take fewer workers=, or executor=local")
    return [done[i] for i in range(len(tasks))]


@functools.cache
def _pool(workers: int) -> ProcessPoolExecutor:
    return ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), one_thread)
