"""Several policies on the same seeds, for as long as there is time: what evaluate, the gate and a tournament have in common."""

from __future__ import annotations

from typing import Any

import numpy as np

from flywheel.stages.evaluate import score

Columns = dict[str, np.ndarray]


def scored(
    run, env, policies: dict[str, Any], seeds: list[int], what: dict[str, str], *, played: int = 0, **options
) -> dict[str, Columns]:
    """One episode a seed and policy; {kind: columns [n]}. Once the run's budget is spent no further block of seeds is begun, so that
    n is less than asked for; all policies have the same n, and at least one block. `played` seeds of
    the same question came before.

    An episode depends on weights and seed alone, so blocks change nothing in what comes out.
    """
    bounded = run.deadline is not None or "stopped" in run.recorded
    block = max(1, env.num_envs) if bounded else len(seeds)
    parts: dict[str, list[Columns]] = {kind: [] for kind in policies}
    for begin in range(0, len(seeds), block):
        if begin and run.out_of_time(played + begin):
            break
        for kind, policy in policies.items():
            part = seeds[begin : begin + block]
            parts[kind].append(score(policy, env, part, what=what[kind], **options))
    return {kind: {k: np.concatenate([p[k] for p in blocks]) for k in blocks[0]} for kind, blocks in parts.items()}
