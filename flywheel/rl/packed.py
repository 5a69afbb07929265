"""Transitions that stay where they are learnt from: each made once, a row of one matrix on the device.

A batch is then one index sent to the device and one gather there, whatever it is made of.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

ROOM = 1 << 30  # bytes that transitions may take in memory; on a GPU, half of what is free
PIECE = 1 << 16  # transitions that are made at once


class Layout:
    """What is where in a row: fields by name, each with its shape."""

    def __init__(self, shapes: dict[str, tuple[int, ...]]):
        self.shapes, self.sizes = list(shapes.items()), [math.prod(shape) for shape in shapes.values()]

    def fields(self, rows: Tensor) -> dict[str, Tensor]:
        """Rows [N, D] -> fields [N, ...], views."""
        parts = zip(self.shapes, rows.split(self.sizes, 1), strict=True)
        return {name: part.view(len(part), *shape) for (name, shape), part in parts}


def pack(fields: dict[str, Tensor]) -> tuple[Tensor, Layout]:
    """Fields [N, ...] of one type -> rows [N, D] and what is where in them."""
    rows = torch.cat([field.reshape(len(field), -1) for field in fields.values()], 1)
    return rows, Layout({name: tuple(field.shape[1:]) for name, field in fields.items()})


def room(device: str) -> int:
    """Bytes that there are for transitions."""
    return torch.cuda.mem_get_info(device)[0] // 2 if device.startswith("cuda") else ROOM


class Kept:
    """The transitions of a list of episodes, known by their hashes: episodes that join at its end are added, nothing is made twice."""

    def __init__(self, device: str):
        self.device, self.hashes, self.begin = device, [], np.zeros(0, np.int64)
        self.rows, self.layout, self.used = torch.zeros(0, 0, device=device), None, 0

    def known(self, hashes: list[str]) -> int:
        """How many of these episodes, from the first on, are here; where they are not those that are here, 0 and all is forgotten."""
        if hashes[: len(self.hashes)] != self.hashes:
            self.__init__(self.device)
        return len(self.hashes)

    def follow(self, hashes: list[str], length: np.ndarray, make: Callable[[np.ndarray], dict[str, Tensor]]) -> None:
        """Hold these episodes' transitions: `length` steps of each that was not `known`, of which make(steps) gives some."""
        begin = self.used
        self.begin = np.concatenate([self.begin, begin + np.cumsum(length) - length])
        self.hashes, self.used = hashes, begin + int(length.sum())
        for first in range(begin, self.used, PIECE):
            last = min(first + PIECE, self.used)
            made, self.layout = pack(make(np.arange(first - begin, last - begin)))
            if last > len(self.rows):
                grown = made.new_empty((max(self.used, 2 * len(self.rows)), made.shape[1]), device=self.device)
                if first:
                    grown[:first] = self.rows[:first]
                self.rows = grown
            self.rows[first:last] = made

    def take(self, index: np.ndarray) -> dict[str, Tensor]:
        """The transitions in these rows."""
        rows = torch.from_numpy(index).to(self.device, non_blocking=True)
        return self.layout.fields(self.rows.index_select(0, rows))
