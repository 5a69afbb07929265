"""Which step comes next: a function of (seed, number of the sample) alone, so that a sampler's state is one number.

Without weights a sampler goes through all steps in a random order, an epoch after the other: the order is a pseudo-random
permutation that is computed (a Feistel network, walked until it falls into the range), never stored. With weights it
draws with replacement, a step of episode e with a probability in proportion to weight[e]. Either way reader r of
`world_size` takes the samples r, r + world_size, ...: no two readers take the same one, together they take all.
"""

from __future__ import annotations

from typing import Any

import numpy as np

ROUNDS = 4  # of the Feistel network: enough that neighbours look unrelated (Luby and Rackoff, 1988)
BLOCK = 4096  # samples computed at once


class Sampler:
    """Samples (episode, step) of episodes of `length` [E] steps; in memory 16 bytes an episode with weights, 8 without.

    weights [E] >= 0: see `mixture`. None: every step once an epoch. ValueError where there is nothing to draw.
    """

    def __init__(
        self,
        length: np.ndarray,
        weights: np.ndarray | None = None,
        *,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
    ):
        if not 0 <= rank < world_size:
            raise ValueError(f"sampler: rank {rank} of world_size {world_size}; expected 0 <= rank < world_size")
        length = np.asarray(length, np.int64)
        if weights is not None and (np.shape(weights) != length.shape or not (np.asarray(weights) >= 0).all()):
            raise ValueError(f"sampler: weights {np.shape(weights)}; expected {length.shape} numbers, none negative")
        self.seed, self.rank, self.world_size, self.taken = seed, rank, world_size, 0
        self.weights = None if weights is None else np.asarray(weights, np.float64)
        self.ends = np.cumsum(length if weights is None else length * self.weights)
        self.steps = int(length.sum())
        if not len(length) or not self.ends[-1] > 0:
            raise ValueError("sampler: no step to draw; look at the selection and its weights")
        self._block: tuple[int, np.ndarray, np.ndarray] | None = None

    def take(self, count: int) -> tuple[np.ndarray, np.ndarray]:
        """The next `count` samples: episode [n], step in it [n]."""
        self.taken += count
        return self.at(np.arange(self.taken - count, self.taken))

    def at(self, number: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Samples of this reader by number [n], which `take` counts; any, in any order."""
        first, last = int(number[0]) // BLOCK * BLOCK, int(number[-1])
        if not (np.diff(number) == 1).all() or last >= first + BLOCK:
            return self._compute(number)
        if self._block is None or self._block[0] != first:
            self._block = first, *self._compute(np.arange(first, first + BLOCK))
        inside = slice(int(number[0]) - first, last - first + 1)
        return self._block[1][inside], self._block[2][inside]

    def state(self) -> dict[str, Any]:
        """What decides the next sample, as JSON values."""
        return {"seed": self.seed, "taken": self.taken, "steps": self.steps}

    def load_state(self, state: dict[str, Any]) -> None:
        """Go on where another sampler over the same episodes stood."""
        if state["steps"] != self.steps:
            raise ValueError(f"sampler: a state over {state['steps']} steps, these episodes have {self.steps}")
        self.seed, self.taken, self._block = state["seed"], state["taken"], None

    def _compute(self, number: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        number = number.astype(np.int64) * self.world_size + self.rank
        if self.weights is None:
            epoch, inside = np.divmod(number, self.steps)
            flat = permute(inside, self.steps, mix(np.uint64(self.seed)) ^ epoch.astype(np.uint64))
            episode = np.searchsorted(self.ends, flat, side="right")
            return episode, flat - np.where(episode > 0, self.ends[episode - 1], 0)
        key = mix(np.uint64(self.seed)) + number.astype(np.uint64)
        total = self.ends[-1]
        point = np.minimum((mix(key) >> np.uint64(11)) * 2.0**-53 * total, np.nextafter(total, 0.0))  # in [0, total)
        episode = np.searchsorted(self.ends, point, side="right")
        before = np.where(episode > 0, self.ends[episode - 1], 0.0)
        mass = self.ends[episode] - before
        steps = np.rint(mass / self.weights[episode])
        return episode, np.minimum((point - before) / mass * steps, steps - 1).astype(np.int64)


def mixture(length: np.ndarray, shares: dict[str, tuple[np.ndarray, float]]) -> np.ndarray:
    """Weights [E] with which samples come from {name: (positions or mask of episodes, share)} in these shares.

    Within one part every step is as likely as another; an episode in two parts comes from both. ValueError for a part
    without a step and a share above 0.
    """
    weights = np.zeros(len(length))
    for name, (which, share) in shares.items():
        steps = int(np.asarray(length)[which].sum())
        if share < 0 or (share > 0 and not steps):
            raise ValueError(f"mixture: {name} has {steps} steps and the share {share}; expected a step, and 0 or more")
        if share:
            weights[which] += share / steps
    return weights


def mix(number: np.ndarray) -> np.ndarray:
    """64 bits that look random for each number (splitmix64: Steele, Lea and Flood, 2014)."""
    with np.errstate(over="ignore"):
        number = number + np.uint64(0x9E3779B97F4A7C15)
        number = (number ^ (number >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        number = (number ^ (number >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return number ^ (number >> np.uint64(31))


def permute(number: np.ndarray, size: int, key: np.ndarray) -> np.ndarray:
    """Where numbers [n] below `size` go in the pseudo-random permutations of 0 .. size - 1 that keys [n] name."""
    keys = [mix(mix(key) + np.uint64(step)) for step in range(ROUNDS)]
    half = np.uint64(max(1, (int(size - 1).bit_length() + 1) // 2))
    low = np.uint64((1 << int(half)) - 1)
    out = number.astype(np.uint64)
    todo = np.arange(len(out))
    while len(todo):  # of 4 at most 3 fall outside: walk on until all are inside
        left, right = out[todo] >> half, out[todo] & low
        for one in keys:
            left, right = right, left ^ (mix(right ^ one[todo]) & low)
        out[todo] = (left << half) | right
        todo = todo[out[todo] >= np.uint64(size)]
    return out.astype(np.int64)
