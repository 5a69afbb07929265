"""TorchScript: a traced graph with its weights. Needs PyTorch (or libtorch, from C++) to run, and nothing else."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

SUFFIX = ".pt"


def write(module: nn.Module, example: tuple[Tensor, Tensor], path: Path) -> None:
    """Trace `module` on `example`, weights as constants, and write it."""
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # a trace is of one shape: that is what it is for
        torch.jit.save(torch.jit.freeze(torch.jit.trace(module, example, check_trace=False)), str(path))


def load(path: Path) -> Callable:
    """The file as a function of numpy arrays."""
    graph = torch.jit.load(str(path))

    @torch.no_grad()
    def run(*given):
        return graph(*map(torch.from_numpy, given)).numpy()

    return run
