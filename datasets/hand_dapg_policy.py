"""hand_dapg's trained Adroit policies as numpy arrays (npz): rolled out into episodes labelled policy:dapg.

in_shift in_scale w0 b0 w1 b1 w2 b2 out_shift out_scale: a tanh MLP; its mean action is executed, without noise.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from flywheel.env import rollout
from flywheel.episode import Episode, EpisodeError
from flywheel.gym_task import GymBatch

KEYS = ("in_shift", "in_scale", "w0", "b0", "w1", "b1", "w2", "b2", "out_shift", "out_scale")
FIRST_SEED = 900_000_000  # beyond collection, gate and report


class MeanPolicy:
    """The file's policy, acting as `rollout` wants it."""

    def __init__(self, path: Path):
        try:
            with np.load(path, allow_pickle=False) as arrays:
                self.w = {key: arrays[key] for key in KEYS}
        except (KeyError, ValueError, OSError) as error:
            raise EpisodeError(f"{path}: {error}; expected an npz with {', '.join(KEYS)}") from error

    def reset(self, slots, seeds) -> None:
        """It remembers nothing."""

    def act(self, obs: np.ndarray, slots=None) -> np.ndarray:
        """obs [N, Do] -> mean action [N, Da]."""
        w = self.w
        x = (obs - w["in_shift"]) / (w["in_scale"] + 1e-8)
        for k in (0, 1):
            x = np.tanh(x @ w[f"w{k}"].T + w[f"b{k}"])
        return (x @ w["w2"].T + w["b2"]) * w["out_scale"] + w["out_shift"]


def read(path: Path, task: str = "AdroitHandDoor-v1", rollouts: int = 6, seed: int = 1) -> Iterator[Episode]:
    """Roll the policy out `rollouts` times from the task's own reset; other episodes for another `seed`."""
    policy = MeanPolicy(path)
    env = GymBatch(task, num_envs=1, threads=1)
    seeds = [FIRST_SEED + 1000 * seed + i for i in range(rollouts)]
    episodes, _ = rollout(env, policy, seeds, origin="policy:dapg")
    env.close()
    for i, episode in enumerate(episodes):
        yield episode.replace(meta={**episode.meta, "file": Path(path).name, "demo": i})
