"""Batches for torch from the window cache: a map-style dataset of whole batches, read by 0 or more workers.

    obs      [B, To, Do]   rows t - To + 1 .. t, the first repeated before the episode's beginning
    action   [B, Ta, Da]   rows t .. t + Ta - 1, the last repeated behind its end

A batch follows from its number alone (see corpus.sampling), so the order is the same with any number of workers, and going
on after batch k needs k. Workers are forked: they share the map of the rows and the index, and hand tensors over in shared
memory. Nothing of the data is ever pickled.
"""

from __future__ import annotations

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

    def __getitem__(self, number: int) -> dict[str, torch.Tensor]:
        return self.several(number, 1)

    def several(self, number: int, count: int) -> dict[str, torch.Tensor]:
        """`count` batches from `number` on, one after the other in one batch."""
        first = number * self.batch_size
        return self.gather(*self.sampler.at(np.arange(first, first + count * self.batch_size)))

    def gather(self, episode: np.ndarray, step: np.ndarray) -> dict[str, torch.Tensor]:
        """The batch of these steps [B] of these episodes [B]."""
        import torch

        windows, low = self.windows, self.windows.start[episode]
        here, high = low + step, low + windows.length[episode] - 1
        return {
            self.names[field]: torch.from_numpy(
                windows.gather(here, offsets, low, high, columns=windows.columns[field])
            )
            for field, offsets in self.offsets.items()
        }


class Loader:
    """Batches in order, for as long as they are asked for; `state` is exact, whatever workers have read ahead.

    `group` batches are read at once and given one by one: what it costs to ask is paid once.
    """

    def __init__(self, batches: Batches, workers: int = 0, group: int = 16):
        self.batches, self.workers, self.group, self.given = batches, workers, group, 0

    def __iter__(self) -> Iterator[dict[str, torch.Tensor]]:
        from torch.utils.data import DataLoader

        groups = range(self.given, 2**62, self.group)
        if self.workers:
            source = _Groups(self.batches, self.group)
            forked = {"num_workers": self.workers, "multiprocessing_context": "fork"}
            several = DataLoader(source, batch_size=None, sampler=groups, **forked)
        else:
            several = (self.batches.several(number, self.group) for number in groups)
        size = self.batches.batch_size
        for one in several:
            for at in range(0, self.group * size, size):
                self.given += 1
                yield {name: value[at : at + size] for name, value in one.items()}

    def state(self) -> dict[str, Any]:
        """What decides the next batch, as JSON values."""
        return {**self.batches.sampler.state(), "taken": self.given * self.batches.batch_size}

    def load_state(self, state: dict[str, Any]) -> None:
        self.batches.sampler.load_state(state)
        self.given = state["taken"] // self.batches.batch_size


class _Groups:
    """What workers ask for: several batches by the number of the first."""

    def __init__(self, batches: Batches, count: int):
        self.batches, self.count = batches, count

    def __getitem__(self, number: int) -> dict[str, torch.Tensor]:
        return self.batches.several(number, self.count)
