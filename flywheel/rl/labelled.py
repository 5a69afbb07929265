"""States of the corpus, each labelled once with what a teacher does there: its own action beside the one that was
done."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from flywheel.log import progress
from flywheel.obs import PRIVILEGED
from flywheel.policy.eyes import Seen
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
        with progress("label", len(steps)) as tick:
            parts = np.split(np.arange(len(steps)), range(ROWS, len(steps), ROWS))
            chosen = [self._chosen(self._seen(made["obs"][part], steps[part]), steps[part], tick) for part in parts]
        return made | {"chosen": np.concatenate(chosen)}

    def _seen(self, obs: np.ndarray, steps: np.ndarray) -> torch.Tensor | Seen:
        """What the teacher sees at `steps` [n], where the student's numbers are obs [n, To, Do]."""
        column = f"extras.{PRIVILEGED}"
        if column in self.rows.columns:  # it knows what only the simulator does
            episode, t = self.where(steps)
            first, stack = self.start.all[episode], np.arange(1 - self.teacher.obs_steps, 1)
            last = first + self.length.all[episode]
            obs = self.rows.gather(first + t, stack, first, last, columns=self.rows.columns[column])
        numbers = torch.from_numpy(obs).to(self.device)
        if not getattr(self.teacher, "cameras", None):
            return numbers
        frames = {k.removeprefix("obs."): v[:, -1] for k, v in self.looked(steps).items()}
        return Seen(numbers, {k: torch.from_numpy(v).to(self.device) for k, v in frames.items()})

    @torch.no_grad()
    def _chosen(self, seen: torch.Tensor | Seen, steps: np.ndarray, tick) -> np.ndarray:
        """What the teacher sees at `steps` [n] -> its action chunks [n, Ta, Da]."""
        shape = (self.draws, *self.teacher.noise_shape)
        if self.teacher.greedy:
            noise = np.zeros((len(steps), *shape), np.float32)
        else:
            streams = (np.random.default_rng([self.seed, int(step)]) for step in steps)
            noise = np.stack([rng.standard_normal(shape, np.float32) for rng in streams])
        tries = [self.teacher.sample(seen, torch.from_numpy(noise[:, i]).to(self.device)) for i in range(self.draws)]
        tick(len(steps))
        return torch.stack(tries).mean(0).cpu().numpy()
