"""Batches for torch from the window cache: a map-style dataset of whole batches, read by 0 or more workers.

    obs             [B, To, Do]            rows t - To + 1 .. t, the first repeated before the episode's beginning
    obs.cam_front   [B, To, H, W, 3] uint8   the same of a camera
    action          [B, Ta, Da]            rows t .. t + Ta - 1, the last repeated behind its end
    action_mask                            as action, where the windows have the field action.mask (several robots, see corpus.align)

A batch follows from its number alone (see corpus.sampling), so the order is the same with any number of workers, and going
on after batch k needs k. Workers are forked: they share the map of the rows and the index, and write batches into memory
that both sides see. Nothing is pickled.
"""

from __future__ import annotations

import atexit
import mmap
import multiprocessing
import os
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from flywheel.corpus.sampling import Sampler
from flywheel.corpus.windows import Windows

if TYPE_CHECKING:
    import torch


GROUP, GROUP_BYTES = 16, 8 * 2**20  # batches that are read at once: so many, or as many as take so much memory


class Batches:
    """`batches[k]` is batch k of a reader: {"obs": [B, To, Do], "action": [B, Ta, Da]}, float32 tensors.

    `cameras` are windows of a camera each, of the same episodes: {"obs.cam_front": [B, To, H, W, 3]} uint8. A sampler
    without weights gives every step once an epoch; the last batch of an epoch runs on into the next.
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
        cameras: Sequence[Windows] = (),
    ):
        self.windows, self.sampler, self.batch_size = windows, sampler, batch_size
        past, ahead = np.arange(1 - obs_steps, 1), np.arange(action_steps)
        # of each entry: its name, the windows, the field of these, offsets
        self.parts = [("obs", windows, obs, past), ("action", windows, "action", ahead)]
        if "action.mask" in windows.columns:
            self.parts.append(("action_mask", windows, "action.mask", ahead))
        for camera in cameras:
            if not (camera.row and np.array_equal(camera.version.rows, windows.version.rows)):
                raise ValueError(
                    f"batches: {camera.fields} are no windows of a camera of the episodes of {windows.fields}"
                )
            self.parts.append((camera.fields[0], camera, camera.fields[0], past))

    def __getitem__(self, number: int) -> dict[str, torch.Tensor]:
        return _tensors(self.arrays(number, 1))

    def shapes(self, count: int) -> dict[str, tuple[tuple[int, ...], np.dtype]]:
        """Shapes and dtypes of `arrays`."""
        return {
            name: ((count * self.batch_size, len(offsets), *_row(windows, field)), windows.dtype)
            for name, windows, field, offsets in self.parts
        }

    def arrays(self, number: int, count: int) -> dict[str, np.ndarray]:
        """`count` batches from `number` on, one after the other in one."""
        first = number * self.batch_size
        episode, step = self.sampler.at(np.arange(first, first + count * self.batch_size))
        out = {}
        for name, windows, field, offsets in self.parts:
            low = windows.start[episode]
            here, high = low + step, low + windows.length[episode] - 1
            rows = windows.gather(here, offsets, low, high, columns=windows.columns[field])
            out[name] = rows.reshape(*rows.shape[:2], *_row(windows, field))
        return out


def _row(windows: Windows, field: str) -> tuple[int, ...]:
    """Shape of a row of a field."""
    columns = windows.columns[field]
    return windows.row or (columns.stop - columns.start,)


class Loader:
    """Batches in order, for as long as they are asked for; `state` is exact, whatever workers have read ahead.

    `group` batches are read at once and given one by one, so that what it costs to ask is paid once; by default 16, fewer
    where they are large. Each of `workers` reads two groups ahead. RuntimeError where a worker dies.
    """

    def __init__(self, batches: Batches, workers: int = 0, group: int | None = None):
        size = sum(int(np.prod(shape)) * dtype.itemsize for shape, dtype in batches.shapes(1).values())
        self.batches, self.workers, self.given = batches, workers, 0
        self.group = group or max(1, min(GROUP, GROUP_BYTES // size))

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
        slots = [{name: _shared(*about) for name, about in shapes.items()} for _ in range(count)]
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
        unregister = atexit.unregister  # names of modules may be gone when the last batch is dropped

        def end() -> None:
            while workers:
                one = workers.pop()
                one.terminate()
                one.join()

        atexit.register(end)
        try:
            turn = 0
            while True:
                while not full[turn % count].acquire(timeout=1):
                    if not workers or not workers[turn % self.workers].is_alive():
                        raise RuntimeError(f"loader: worker {turn % self.workers} died; what it said stands above")
                yield slots[turn % count]
                free[turn % count].release()
                turn += 1
        finally:
            end()
            unregister(end)

    def state(self) -> dict[str, Any]:
        """What decides the next batch, as JSON values."""
        return {**self.batches.sampler.state(), "taken": self.given * self.batches.batch_size}

    def load_state(self, state: dict[str, Any]) -> None:
        self.batches.sampler.load_state(state)
        self.given = state["taken"] // self.batches.batch_size


def _shared(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """Zeros that forked processes see alike."""
    return np.frombuffer(mmap.mmap(-1, dtype.itemsize * int(np.prod(shape))), dtype).reshape(shape)


def _tensors(arrays: dict[str, np.ndarray]) -> dict[str, torch.Tensor]:
    import torch

    return {name: torch.from_numpy(value) for name, value in arrays.items()}
