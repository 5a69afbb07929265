"""A gradient as one compiled function: fewer calls, and what lies between two products in one pass through memory."""

from __future__ import annotations

import functools
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx
from torch.overrides import TorchFunctionMode

from flywheel.log import say

COMPILERS = {"darwin": "clang++", "win32": "cl"}


def compiler() -> str | None:
    """The C++ compiler that torch.compile would call; None, with a line that says so, where there is none."""
    wanted = os.environ.get("CXX") or COMPILERS.get(sys.platform, "g++")
    found = shutil.which(wanted)
    if not found:
        say(f"  compile=true, but there is no C++ compiler ({wanted}; CXX names another): updates run uncompiled")
    return found


class Draws(TorchFunctionMode):
    """Inside it, random numbers from a generator are noted as `made` [(how, what)]; with `given`, these are what is
    drawn."""

    def __init__(self, given: Iterator[Tensor] | None = None):
        super().__init__()
        self.made, self.given = [], given

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if kwargs.get("generator") is None or any(isinstance(arg, Tensor) for arg in args):
            return function(*args, **kwargs)
        how = functools.partial(function, *args, **kwargs)
        self.made.append((how, how() if self.given is None else next(self.given)))
        return self.made[-1][1]


class Traced:
    """`gradient(batch) -> (loss, stops, gradient, ...)` as a graph of tensor operations, right for batches with these
    shapes.

    Random numbers are drawn outside, from the same generator in the same order; what a loss leaves in the batch is left
    there."""

    def __init__(self, gradient: Callable[[dict[str, Any]], tuple], batch: dict[str, Any]):
        rng, after = batch["rng"], dict(batch)
        before = rng.get_state()
        with Draws() as drawn:
            gradient(after)
        rng.set_state(before)
        self.given, self.left = [key for key in batch if key != "rng"], [key for key in after if key not in batch]
        self.draws = [how for how, _ in drawn.made]

        def of_tensors(*tensors: Tensor) -> tuple:
            batch = dict(zip(self.given, tensors, strict=False)) | {"rng": rng}
            with Draws(iter(tensors[len(self.given) :])):
                total, stops, grads, _ = gradient(batch)
            return total, stops, grads, [batch[key] for key in self.left]

        self.graph = make_fx(of_tensors)(*(batch[key] for key in self.given), *(what for _, what in drawn.made))

    @torch.no_grad()
    def __call__(self, batch: dict[str, Any]) -> tuple:
        total, stops, grads, left = self.graph(*(batch[key] for key in self.given), *(draw() for draw in self.draws))
        batch.update(zip(self.left, left, strict=True))
        return total, stops, grads, ()


class Compiled:
    """`gradient(batch)` of one row of a table, compiled once for each shape of batch that it meets. What torch
    cannot trace or compile runs as it is, and a line says so."""

    def __init__(self, name: str, gradient: Callable[[dict[str, Any]], tuple], policy: Any = None):
        self.name, self.gradient, self.policy = name, gradient, policy
        self.made: dict[tuple, Callable] = {}

    def __call__(self, batch: dict[str, Any]) -> tuple:
        key = tuple((name, value.shape) for name, value in batch.items() if name != "rng")
        if "chain" in batch:
            key += (self.policy.explore,)  # a number of the policy that its chain's density depends on
        if key not in self.made:
            self.made[key] = self._make(batch)
        return self.made[key](batch)

    def _make(self, batch: dict[str, Any]) -> Callable:
        begin, before = time.monotonic(), batch["rng"].get_state()
        try:
            made = Traced(self.gradient, batch)
            made.graph = torch.compile(made.graph, fullgraph=True, dynamic=False)
            made(dict(batch))
            say(f"  {self.name}: compiled in {time.monotonic() - begin:.0f} s")
        except RuntimeError as error:
            say(f"  {self.name} runs uncompiled: {str(error).strip().splitlines()[0]}")
            made = self.gradient
        batch["rng"].set_state(before)
        return made
