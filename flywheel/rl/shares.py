"""Random numbers of a whole batch, in a process that has some of its rows."""

from __future__ import annotations

import torch
from torch.overrides import TorchFunctionMode


class Shares(TorchFunctionMode):
    """Inside it, random numbers from a generator whose first dimension is a multiple of `rows` are drawn for the batch
    of all `size` processes, and the rows of process `rank` are taken: rank, rank + size, ... So every process has the
    same generator, and a loss sees what it would see in one. Others, such as a choice of critics, are the same for
    all."""

    DRAWS = (torch.randn, torch.rand, torch.randint)

    def __init__(self, rank: int, size: int, rows: int):
        super().__init__()
        self.rank, self.size, self.rows = rank, size, rows

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        if function not in self.DRAWS or kwargs.get("generator") is None:
            return function(*args, **kwargs)
        bounds = args[:-1] if function is torch.randint else ()
        shape = args[-1] if function is torch.randint or not isinstance(args[0], int) else args
        each, rest = divmod(shape[0], self.rows)
        if rest or not each:
            return function(*args, **kwargs)
        whole = (self.size * self.rows, each, *shape[1:])  # `each` numbers of a row lie side by side
        drawn = function(*bounds, (whole[0] * each, *shape[1:]), **kwargs).view(whole)
        return drawn[self.rank :: self.size].reshape(tuple(shape))
