"""Transitions that stay where they are learnt from: each made once, a row of one matrix on the device.

A batch is then one index sent to the device and one gather there, whatever it is made of.
"""

from __future__ import annotations

import math

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


def room(device: str, resident: int) -> int:
    """Bytes that there are for transitions, of `resident` that data may take in memory."""
    return torch.cuda.mem_get_info(device)[0] // 2 if device.startswith("cuda") else min(ROOM, resident)


class Kept:
    """The transitions of steps 0, 1, 2 ..., as many as were added."""

    def __init__(self, device: str):
        self.device, self.layout, self.used = device, None, 0
        self.rows = torch.zeros(0, 0, device=device)

    def add(self, made: dict[str, Tensor], total: int) -> None:
        """The transitions of the next steps; `total` will be added in all, as far as is known."""
        new, self.layout = pack(made)
        last = self.used + len(new)
        if last > len(self.rows):
            grown = new.new_empty((max(total, 2 * len(self.rows)), new.shape[1]), device=self.device)
            if self.used:
                grown[: self.used] = self.rows[: self.used]
            self.rows = grown
        self.rows[self.used : last] = new
        self.used = last

    def take(self, steps: np.ndarray) -> dict[str, Tensor]:
        """The transitions of these steps [B]."""
        rows = torch.from_numpy(steps).to(self.device, non_blocking=True)
        return self.layout.fields(self.rows.index_select(0, rows))
