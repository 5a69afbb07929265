"""Batches for torch from the window cache: a map-style dataset of whole batches, read by 0 or more workers.

    obs      [B, To, Do]   rows t - To + 1 .. t, the first repeated before the episode's beginning
    action   [B, Ta, Da]   rows t .. t + Ta - 1, the last repeated behind its end
    action_mask            as action, where the windows have the field action.mask (several robots, see corpus.align)

A batch follows from its number alone (see corpus.sampling), so the order is the same with any number of workers, and going
on after batch k needs k. Workers are forked: they share the map of the rows and the index, and write batches into memory
that both sides see. Nothing is pickled.
"""

from __future__ import annotations

import mmap
import multiprocessing
import os
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from flywheel.corpus.sampling import Sampler
from flywheel.corpus.windows import Windows

if TYPE_CHECKING:
    import torch


class Batches:
    """`batches[k]` is batch k of a reader: {"obs": [B, To, Do], "action": [B, Ta, Da]}, float32 tensors.

    A sampler without weights gives every step once an epoch; the last batch of an epoch runs on into the next.
    """

    def __init__(
        self,
        windows: Windows,
        sampler: Sampler,
        *,
        obs_steps: int,
        action_steps: int,
        batch_size: int,
        obs: str = "obs.state",
    ):
        self.windows, self.sampler, self.batch_size = windows, sampler, batch_size
        self.offsets = {obs: np.arange(1 - obs_steps, 1), "action": np.arange(action_steps)}
        self.names = {obs: "obs", "action": "action"}
        if "action.mask" in windows.columns:
            self.offsets["action.mask"], self.names["action.mask"] = np.arange(action_steps), "action_mask"

    def __getitem__(self, number: int) -> dict[str, torch.Tensor]:
        return _tensors(self.arrays(number, 1))

    def shapes(self, count: int) -> dict[str, tuple[int, ...]]:
        """Those of `arrays`."""
        columns = {field: self.windows.columns[field] for field in self.names}
        size = count * self.batch_size
        return {self.names[f]: (size, len(self.offsets[f]), part.stop - part.start) for f, part in columns.items()}

    def arrays(self, number: int, count: int) -> dict[str, np.ndarray]:
        """`count` batches from `number` on, one after the other in one."""
        first, windows = number * self.batch_size, self.windows
        episode, step = self.sampler.at(np.arange(first, first + count * self.batch_size))
        low = windows.start[episode]
        here, high = low + step, low + windows.length[episode] - 1
        return {
            self.names[field]: windows.gather(here, offsets, low, high, columns=windows.columns[field])
            for field, offsets in self.offsets.items()
        }


class Loader:
    """Batches in order, for as long as they are asked for; `state` is exact, whatever workers have read ahead.

    `group` batches are read at once and given one by one, so that what it costs to ask is paid once. Each of `workers` reads
    two groups ahead. RuntimeError where a worker dies.
    """

    def __init__(self, batches: Batches, workers: int = 0, group: int = 16):
        self.batches, self.workers, self.group, self.given = batches, workers, group, 0

    def __iter__(self) -> Iterator[dict[str, torch.Tensor]]:
        for arrays in self._forked(self.given) if self.workers else self._here(self.given):
            size = self.batches.batch_size
            for at in range(0, self.group * size, size):
                self.given += 1
                batch = {name: value[at : at + size] for name, value in arrays.items()}
                yield _tensors({name: value.copy() for name, value in batch.items()} if self.workers else batch)

    def _here(self, number: int) -> Iterator[dict[str, np.ndarray]]:
        while True:
            yield self.batches.arrays(number, self.group)
            number += self.group

    def _forked(self, number: int) -> Iterator[dict[str, np.ndarray]]:
        """Groups out of a ring of slots: group j is of worker j % workers, in slot j % (2 * workers)."""
        context, count = multiprocessing.get_context("fork"), 2 * self.workers
        shapes = self.batches.shapes(self.group)
        slots = [{name: _shared(shape) for name, shape in shapes.items()} for _ in range(count)]
        free, full = ([context.Semaphore(value) for _ in range(count)] for value in (1, 0))

        parent = os.getpid()

        def work(worker: int) -> None:
            turn = worker
            while True:
                while not free[turn % count].acquire(timeout=5):
                    if os.getppid() != parent:  # it was killed, and nobody will ask again
                        return
                for name, value in self.batches.arrays(number + turn * self.group, self.group).items():
                    slots[turn % count][name][:] = value
                full[turn % count].release()
                turn += self.workers

        workers = [context.Process(target=work, args=(worker,), daemon=True) for worker in range(self.workers)]
        for one in workers:
            one.start()
        try:
            turn = 0
            while True:
                while not full[turn % count].acquire(timeout=1):
                    if not workers[turn % self.workers].is_alive():
                        raise RuntimeError(f"loader: worker {turn % self.workers} died; what it said stands above")
                yield slots[turn % count]
                free[turn % count].release()
                turn += 1
        finally:
            for one in workers:
                one.terminate()
                one.join()

    def state(self) -> dict[str, Any]:
        """What decides the next batch, as JSON values."""
        return {**self.batches.sampler.state(), "taken": self.given * self.batches.batch_size}

    def load_state(self, state: dict[str, Any]) -> None:
        self.batches.sampler.load_state(state)
        self.given = state["taken"] // self.batches.batch_size


def _shared(shape: tuple[int, ...]) -> np.ndarray:
    """float32 zeros that forked processes see alike."""
    return np.frombuffer(mmap.mmap(-1, 4 * int(np.prod(shape))), np.float32).reshape(shape)


def _tensors(arrays: dict[str, np.ndarray]) -> dict[str, torch.Tensor]:
    import torch

    return {name: torch.from_numpy(value) for name, value in arrays.items()}
