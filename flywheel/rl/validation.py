"""How well a policy imitates episodes that it has not seen: the error of the actions that it would execute next.

Which episodes are held out follows from their hashes alone (corpus.splits), so that a corpus that grows keeps them
held out, and the curves of two nights are of the same kind. At each step of each of these the policy sees what was
recorded, and the mean of a few chunks of it is compared with what was done: |error| in standard deviations of the
recorded actions, by dimension and by phase of the episode (its quarters). A small error is no success; it is what there
is to choose by without a robot."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from flywheel.corpus.splits import bucket

DRAWS = 4  # chunks of which the mean is taken
PHASES = ("first quarter", "second quarter", "third quarter", "last quarter")
ROWS = 256  # steps that are looked at together


def split(version, pools: dict[str, np.ndarray], share: float) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Hold out `share` of the episodes [E] of `version`, one at least: (the pools without them, positions held out).

    ValueError where fewer than two episodes are demonstrated, or none are to be held out."""
    whole = np.unique(np.concatenate([which for which in pools.values() if which.ndim == 1]))
    if len(whole) < 2 or not share:
        raise ValueError(
            f"validate={share:g} of {len(whole)} episodes: none is left to hold out or to learn from, and without a "
            "simulator nothing else says which checkpoint is the best; expected a share above 0 and two episodes"
        )
    where = bucket(version.hashes, "validation")
    chosen = where < share
    if not chosen[whole].any():
        chosen[whole[np.argmin(where[whole])]] = True
    if chosen[whole].all():
        chosen[whole[np.argmax(where[whole])]] = False
    left = {name: which[~chosen[which if which.ndim == 1 else which[:, 0]]] for name, which in pools.items()}
    return left, whole[chosen[whole]]


def measure(version, unseen: np.ndarray, names: Sequence[str] = ()) -> Callable[[Any], dict[str, Any]]:
    """A function of a policy: {"error", "n" episodes, "error_by_dimension" {name: error}, "error_by_phase",
    "error_by_episode"}."""
    spread = np.asarray(version.statistics("action")["std"], np.float64)
    spread = np.where(spread > 1e-8, spread, 1.0)
    names = list(names) if len(names) == len(spread) else [f"action[{i}]" for i in range(len(spread))]

    def measured(policy) -> dict[str, Any]:
        errors = [_errors(policy, version.read(int(one)), number) / spread for number, one in enumerate(unseen)]
        phases = [np.array_split(rows, len(PHASES)) for rows in errors]
        by_phase = [np.concatenate([parts[i] for parts in phases]) for i in range(len(PHASES))]
        rows = np.concatenate(errors)
        return {
            "error": float(np.mean([one.mean() for one in errors])), "n": len(errors),
            "error_by_dimension": dict(zip(names, rows.mean(0).tolist(), strict=True)),
            "error_by_phase": {k: float(v.mean()) for k, v in zip(PHASES, by_phase, strict=True) if len(v)},
            "error_by_episode": [float(one.mean()) for one in errors],
        }  # fmt: skip

    return measured


def _errors(policy, episode, seed: int) -> np.ndarray:
    """|policy - recorded| [T, Da] of one episode, over the steps that a chunk begun there would execute."""
    import torch

    steps, state = len(episode), np.asarray(episode.obs["state"], np.float32)
    stack = state[np.maximum(np.arange(steps)[:, None] + np.arange(1 - policy.obs_steps, 1), 0)]
    frames = {name: np.asarray(episode.obs[name]) for name in policy.cameras}
    chunk = np.minimum(np.arange(steps)[:, None] + np.arange(policy.action_steps), steps - 1)
    inside = np.arange(steps)[:, None] + np.arange(policy.action_steps) < steps
    out = np.zeros((steps, policy.action_dim))
    for low in range(0, steps, ROWS):
        part = slice(low, min(low + ROWS, steps))
        count = part.stop - low
        seen = policy._seen(stack[part], {name: one[part] for name, one in frames.items()})
        with torch.no_grad():
            draws = [
                policy.sample(seen, torch.from_numpy(policy.noises(DRAWS * seed + k, count)).to(policy.device))
                for k in range(DRAWS)
            ]
        made = torch.stack(draws).mean(0).float().cpu().numpy()
        gap = np.abs(made - episode.action[chunk[part]])  # [count, Ta, Da]
        weight = inside[part][..., None]
        out[part] = (gap * weight).sum(1) / weight.sum(1)
    return out
