"""States of the corpus, each labelled once with what a teacher does there: its own action beside the one that was
done."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from flywheel.log import progress
from flywheel.rl.source import Offline

ROWS = 256  # states that a teacher looks at, at once


class Labelled(Offline):
    """As Offline; batches have `chosen` [B, Ta, Da] too, the mean of what `teacher` does in `draws` tries.

    What a best of N draws for one state costs as much as some thousand updates of its student cost for one row: where
    transitions are kept, a state is labelled when it comes in, not whenever it is drawn. The noise of a label follows
    from seed and step alone. A teacher that acts without noise (`greedy`), or whose action knows no mean (`discrete`),
    has a single try."""

    def __init__(self, *args: Any, teacher, draws: int = 4, **drawn: Any):
        self.teacher = teacher
        self.draws = 1 if teacher.greedy or teacher.discrete else draws
        super().__init__(*args, **drawn)

    def _transitions(self, steps: np.ndarray) -> dict[str, np.ndarray]:
        made = super()._transitions(steps)
        parts = range(0, len(steps), ROWS)
        with progress("label", len(steps)) as tick:
            chosen = [self._chosen(made["obs"][i : i + ROWS], steps[i : i + ROWS], tick) for i in parts]
        return made | {"chosen": np.concatenate(chosen)}

    @torch.no_grad()
    def _chosen(self, obs: np.ndarray, steps: np.ndarray, tick) -> np.ndarray:
        """obs [n, To, Do] at `steps` [n] -> the teacher's action chunks [n, Ta, Da]."""
        shape = (self.draws, *self.teacher.noise_shape)
        if self.teacher.greedy:
            noise = np.zeros((len(steps), *shape), np.float32)
        else:
            streams = (np.random.default_rng([self.seed, int(step)]) for step in steps)
            noise = np.stack([rng.standard_normal(shape, np.float32) for rng in streams])
        seen = torch.from_numpy(obs).to(self.device)
        tries = [self.teacher.sample(seen, torch.from_numpy(noise[:, i]).to(self.device)) for i in range(self.draws)]
        tick(len(steps))
        return torch.stack(tries).mean(0).cpu().numpy()
