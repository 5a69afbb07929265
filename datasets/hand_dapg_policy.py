"""hand_dapg's trained Adroit policies as numpy arrays (npz): rolled out into episodes labelled policy:dapg.

in_shift in_scale w0 b0 w1 b1 w2 b2 out_shift out_scale: a tanh MLP; its mean action is executed, without noise.
"""

from __future__ import annotations

import io
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from flywheel import bounds
from flywheel.env import rollout
from flywheel.env.gym_batch import GymBatch
from flywheel.episode import Episode, EpisodeError

KEYS = ("in_shift", "in_scale", "w0", "b0", "w1", "b1", "w2", "b2", "out_shift", "out_scale")
TASK = "AdroitHandDoor-v1"  # the one that its authors published policies for, and the only one it is rolled out in
FIRST_SEED = 900_000_000  # beyond collection, gate and report


class MeanPolicy:
    """The file's policy, acting as `rollout` wants it."""

    def __init__(self, path: Path):
        try:
            stored = Path(path).stat().st_size
            with zipfile.ZipFile(path) as packed:
                for about in packed.infolist():
                    bounds.allow(about.file_size, stored, f"{path}: {about.filename}")
                self.w = {key: _array(packed, key, str(path)) for key in KEYS}
        except EpisodeError:
            raise
        except Exception as error:  # what zipfile and numpy raise
            raise EpisodeError(f"{path}: {error!r}; expected an npz with {', '.join(KEYS)}") from error

    def reset(self, slots, seeds) -> None:
        """It remembers nothing."""

    def act(self, obs: np.ndarray, slots=None) -> np.ndarray:
        """obs [N, Do] -> mean action [N, Da]."""
        w = self.w
        x = (obs - w["in_shift"]) / (w["in_scale"] + 1e-8)
        for k in (0, 1):
            x = np.tanh(x @ w[f"w{k}"].T + w[f"b{k}"])
        return (x @ w["w2"].T + w["b2"]) * w["out_scale"] + w["out_shift"]


def _array(packed: zipfile.ZipFile, key: str, where: str) -> np.ndarray:
    """One array of numbers; what its header declares must be there, before it is made."""
    data = packed.read(f"{key}.npy")
    stream = io.BytesIO(data)
    version = np.lib.format.read_magic(stream)
    header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, _, dtype = header(stream)
    if dtype.kind not in "biuf" or dtype.itemsize * int(np.prod(shape, dtype=object)) != len(data) - stream.tell():
        raise EpisodeError(f"{where}: {key} declares {dtype} {list(shape)} and has {len(data) - stream.tell()} bytes")
    return np.load(io.BytesIO(data), allow_pickle=False)


def read(path: Path, task: str = TASK, rollouts: int = 6, seed: int = 1) -> Iterator[Episode]:
    """Roll the policy out `rollouts` times from the task's own reset; other episodes for another `seed`."""
    policy = MeanPolicy(path)
    if task != TASK:
        raise EpisodeError(f"{path}: a policy for {TASK}, and the task is {task}; say task=gym task.id={TASK}")
    env = GymBatch(task, num_envs=1, threads=1)
    seeds = [FIRST_SEED + 1000 * seed + i for i in range(rollouts)]
    episodes, _ = rollout(env, policy, seeds, origin="policy:dapg")
    env.close()
    for i, episode in enumerate(episodes):
        yield episode.replace(meta={**episode.meta, "file": Path(path).name, "demo": i})
