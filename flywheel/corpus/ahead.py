"""Forked processes that read ahead: arrays by number, in order, through memory that all see. Nothing is pickled."""

from __future__ import annotations

import atexit
import mmap
import multiprocessing
import os
from collections.abc import Callable, Iterator

import numpy as np


def ahead(
    read: Callable[[int], dict[str, np.ndarray]], number: int, workers: int, like: dict[str, np.ndarray]
) -> Iterator[dict[str, np.ndarray]]:
    """read(number), read(number + 1), ... by `workers` processes, each two ahead; shapes and types are those of `like`.

    What is yielded is written over when the next one is asked for. RuntimeError where a worker dies.
    """
    context, count = multiprocessing.get_context("fork"), 2 * workers
    slots = [{name: _shared(value.shape, value.dtype) for name, value in like.items()} for _ in range(count)]
    free, full = ([context.Semaphore(value) for _ in range(count)] for value in (1, 0))
    reads = (lambda turn: read(number + turn), workers, slots, free, full, os.getpid())
    running = [context.Process(target=_work, args=(worker, *reads), daemon=True) for worker in range(workers)]
    for one in running:
        one.start()
    unregister = atexit.unregister  # names of modules may be gone when the last batch is dropped

    def end() -> None:
        while running:
            one = running.pop()
            one.terminate()
            one.join()

    atexit.register(end)
    try:
        turn = 0
        while True:
            while not full[turn % count].acquire(timeout=1):
                if not running or not running[turn % workers].is_alive():
                    raise RuntimeError(f"reader: worker {turn % workers} died; what it said stands above")
            yield slots[turn % count]
            free[turn % count].release()
            turn += 1
    finally:
        end()
        unregister(end)


def _work(turn: int, read, workers: int, slots: list, free: list, full: list, parent: int) -> None:
    """Read each `workers`-th number from `turn` on, into its slot as soon as that is free."""
    while True:
        place = turn % len(slots)
        while not free[place].acquire(timeout=5):
            if os.getppid() != parent:  # it was killed, and nobody will ask again
                return
        for name, value in read(turn).items():
            slots[place][name][:] = value
        full[place].release()
        turn += workers


def _shared(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """Zeros that forked processes see alike."""
    return np.frombuffer(mmap.mmap(-1, max(1, dtype.itemsize * int(np.prod(shape)))), dtype).reshape(shape)
