"""Processes that train one policy together, each on its rows of every batch; torchrun starts them.

    torchrun --nproc-per-node 2 -m flywheel.cli.app pretrain ...

The global batch is `batch_size`, of which process r of n has the rows r, r + n, ...; gradients are averaged, so that
all have the same weights. Only the first one writes, scores and commits: the others do what it says. The weights are
those of one process, but for the order in which sums are rounded; with `slices=4` they are, to the bit, those of 1, 2
or 4. With `shards=true` each has segments of its own, for a corpus whose rows are too many for a machine's disk."""

from __future__ import annotations

import datetime
import functools
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

PATIENCE = datetime.timedelta(days=1)  # the others wait while the first one scores
STAGES = ("pretrain",)  # that several processes can do
WHOLE = {  # losses that look at the batch as a whole: {loss: the argument that makes it so, None: always}
    "clipped_surrogate": None,
    "advantage_conditioned": None,
    "imitate": "successes",
    "maximize_q": "scale",
}


@dataclass(frozen=True)
class Peers:
    """This process, `rank` of `size`."""

    rank: int = 0
    size: int = 1

    def first(self, call: Callable[[], Any]) -> Any:
        """Give all what `call()` gives in the first process, or raise what it raises there."""
        if self.size == 1:
            return call()
        import torch.distributed as dist

        told: list[Any] = [None]
        if self.rank == 0:
            try:
                told = [(True, call())]
            except Exception as error:
                told = [(False, error)]
        dist.broadcast_object_list(told, 0)
        good, answer = told[0]
        if not good:
            raise answer
        return answer

    def mean(self, rows):
        """The mean [P] over the slices of all processes, rows [L, P] each, in the order of the slices: process r of n
        has r, r + n, ..."""
        if self.size > 1:
            import torch
            import torch.distributed as dist

            of_all = [torch.empty_like(rows) for _ in range(self.size)]
            dist.all_gather(of_all, rows)
            rows = torch.stack(of_all, 1).flatten(0, 1)
        return rows.sum(0) / len(rows)

    def average(self, values) -> None:
        """Replace a tensor by its mean over the processes, in place."""
        if self.size > 1:
            import torch.distributed as dist

            dist.all_reduce(values)
            values /= self.size


ALONE = Peers()


def leads() -> bool:
    """Is this the first of the processes that torchrun started, or the only one? It alone speaks."""
    return "TORCHELASTIC_RUN_ID" not in os.environ or int(os.environ.get("RANK") or 0) == 0


@functools.cache
def joined() -> Peers:
    """The processes that torchrun started with this one, which meet here; ALONE where it did not."""
    size = int(os.environ.get("WORLD_SIZE") or 1)
    if size == 1 or "TORCHELASTIC_RUN_ID" not in os.environ:
        return ALONE
    import torch
    import torch.distributed as dist

    backend = "gloo"
    if torch.cuda.is_available():
        here, gpus = int(os.environ.get("LOCAL_WORLD_SIZE") or size), torch.cuda.device_count()
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]) % gpus)
        backend = "cpu:gloo,cuda:nccl" if here <= gpus else "gloo"  # NCCL takes one process of each GPU
    where = os.environ.get("FLYWHEEL_RENDEZVOUS") or "env://"  # file:///a/shared/file: nobody listens for it
    rank = int(os.environ["RANK"])
    dist.init_process_group(backend, init_method=where, rank=rank, world_size=size, timeout=PATIENCE)
    return Peers(rank, size)


def refuse(peers: Peers, algorithm, batch_size: int, slices: int = 1) -> None:
    """ValueError for what several processes, or slices of a batch, would learn otherwise than one: by a loss that is no
    mean over rows, or a judge of rounds; or from a batch that cannot be divided."""
    if slices > 1 and (batch_size % slices or slices % peers.size):
        raise ValueError(
            f"slices={slices} of batch_size={batch_size} for {peers.size} processes; expected a divisor of the batch "
            "and a multiple of the processes: each has as many"
        )
    if max(peers.size, slices) == 1:
        return
    if batch_size % peers.size:
        raise ValueError(
            f"batch_size={batch_size} of {peers.size} processes; expected a multiple: each has its share of every batch"
        )
    whole = [key for key in ("advantage", "gate") if getattr(algorithm, key)]
    for act in ("evaluate", "improve"):
        for net, losses in getattr(algorithm, act).items():
            for loss, told in losses.items():
                if loss in WHOLE and (WHOLE[loss] is None or (told or {}).get(WHOLE[loss])):
                    whole.append(f"{act}.{net}.{loss}")
    if whole:
        raise ValueError(
            f"algorithm {algorithm.name}: {', '.join(whole)} looks at a batch as a whole, and each of "
            f"{max(peers.size, slices)} processes or slices has a part of it; train it with one (without torchrun, "
            "slices=1), or take another table"
        )


def share(peers: Peers, version, pools: dict):
    """The episodes of this process, where each has segments of its own: every `size`-th segment of the version.
    (version, pools); ValueError for a pool of which it would have none."""
    import numpy as np

    parts = version.corpus.history.state.parts(version.rows)
    segments, number = np.unique(parts, return_inverse=True)
    mine = np.flatnonzero(number % peers.size == peers.rank)
    place = np.full(len(version), -1)
    place[mine] = np.arange(len(mine))
    kept = {}
    for name, which in pools.items():
        position = which if which.ndim == 1 else which[:, 0]
        if without := set(range(peers.size)).difference((number[position] % peers.size).tolist()) if len(which) else ():
            raise ValueError(  # in all of them
                f"shards=true: process {min(without)} of {peers.size} has no episode of {name}: {len(segments)} "
                "segments hold them all. Take fewer processes, or shards=false"
            )
        at = place[position]
        kept[name] = at[at >= 0] if which.ndim == 1 else np.column_stack([at, which[:, 1:]])[at >= 0]
    return version.select(mine), kept
