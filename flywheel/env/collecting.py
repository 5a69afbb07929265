"""Episodes of practice by the batch's executor: equal to the bit to those of this process.

What is done elsewhere is a block of episodes that all begin at once: who of them is begun is decided before, what
they say (an alarm, faults) is heard after, in the order of the seeds, as it is here."""

from __future__ import annotations

import dataclasses
import io
import os
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

from flywheel import executors
from flywheel.args import Guard, Task, build, plain


def pays(env, count: int) -> bool:
    """Can `count` episodes be played elsewhere: do all begin at once, and are the executor's workers there already?"""
    return count <= env.num_envs and executors.stays(getattr(env, "executor", "local"))


def collected(
    env,
    policy,
    seeds: Sequence[int],
    *,
    origin: str,
    starts: Sequence[dict[str, Any] | None] | None = None,
    progress: Callable[[int], None] | None = None,
    late: Callable[[int], bool] | None = None,
    each: Callable[[Any], Any] | None = None,
    film: bool = False,
) -> tuple[list, dict[str, int]]:
    """What `rollout` returns for at most `env.num_envs` seeds, made by the executor; arguments as there."""
    import torch

    count = next((k for k in range(1, len(seeds)) if late and late(k)), len(seeds))
    buffer = io.BytesIO()
    torch.save(policy, buffer)
    task = dataclasses.replace(env.made, faults=1.0)  # faults are counted over all, below
    told = plain({"task": task, "guard": env.guard})
    size = -(-count // (env.workers or os.cpu_count() or 1))
    parts = [slice(k, min(k + size, count)) for k in range(0, count, size)]
    tasks = [
        (buffer.getvalue(), told, list(seeds[part]), list(starts[part]) if starts else None, origin, film)
        for part in parts
    ]
    done, counts = [], Counter()
    for episodes, n in executors.bound(env.executor, env.workers, env.resources)(played, tasks):
        done += episodes
        counts.update(n)
    env.tally.begun += count
    for episode in done:
        if cause := episode.meta.get("cause"):
            env.tally.add(episode.seed, cause)
        if each:
            each(episode)
        if progress:
            progress(1)
    return done, counts


def played(policy: bytes, told: dict[str, Any], seeds: list[int], starts, origin: str, film: bool) -> tuple[list, dict]:
    """Some of the episodes, in whatever process: a policy, in an environment of its own."""
    import torch

    from flywheel import env as envs

    env = envs.make(build(Task, told["task"]), len(seeds), 1)
    env.guard = build(Guard, told["guard"])
    try:
        actor = torch.load(io.BytesIO(policy), weights_only=False)
        return envs.rollout(env, actor, seeds, origin=origin, starts=starts, film=film)
    finally:
        env.close()
