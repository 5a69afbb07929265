"""Which step comes next: a function of (seed, number of the sample) alone, so that a state is a number.

A sample is a number in [0, 1), drawn by counter, and a pool's step at that fraction of its steps: with replacement,
every step of a pool as likely as any other. Of `world_size` readers, reader r takes the samples r, r + world_size, ...:
no two take the same one, together they take all.
"""

from __future__ import annotations

import numpy as np


class Growing:
    """An array [N] that grows at its end, each number copied about twice in its life; `all` is a view."""

    def __init__(self, dtype: type):
        self.room, self.used = np.zeros(0, dtype), 0

    def __len__(self) -> int:
        return self.used

    @property
    def all(self) -> np.ndarray:
        return self.room[: self.used]

    def add(self, values: np.ndarray) -> None:
        last = self.used + len(values)
        if last > len(self.room):
            grown = np.empty(max(last, 2 * self.used if self.used else 0), self.room.dtype)
            grown[: self.used] = self.all
            self.room = grown
        self.room[self.used : last] = values
        self.used = last


class Pool:
    """Episodes whose steps are drawn; at most 16 bytes an episode: those whose steps follow each other are one piece.
    Steps have numbers; an episode's follow each other."""

    def __init__(self):
        self.ends, self.shift = Growing(np.int64), Growing(np.int64)

    def __len__(self) -> int:
        """Steps to draw from."""
        return int(self.ends.all[-1]) if len(self.ends) else 0

    def add(self, first: np.ndarray, length: np.ndarray) -> None:
        """Draw from these episodes too: `first` [E] is the number of each one's first step, `length` [E] its steps."""
        ends = len(self) + np.cumsum(length)
        shift = first - (ends - length)
        if len(shift) and len(self.shift) and self.shift.all[-1] == shift[0]:
            self.ends.used, self.shift.used = len(self.ends) - 1, len(self.shift) - 1  # this piece goes on
        last = np.append(shift[1:] != shift[:-1], True)[: len(shift)]
        self.ends.add(ends[last])
        self.shift.add(shift[last])

    def at(self, fraction: np.ndarray) -> np.ndarray:
        """The steps [...] at fractions [...] in [0, 1) of all."""
        inside = np.minimum((fraction * len(self)).astype(np.int64), len(self) - 1)
        return inside + self.shift.all[np.searchsorted(self.ends.all, inside, side="right")]


def divided(mixture: dict[str, float], pools: dict[str, Pool], size: int) -> dict[str, int]:
    """Divide `size` samples among pools by share; shares of pools without a step go to the others, the rest to the
    last."""
    shares = {name: share for name, share in mixture.items() if share > 0 and len(pools[name])}
    if not shares:
        raise ValueError(f"nothing to draw from: {', '.join(mixture)} hold no step")
    total, left, out = sum(shares.values()), size, {}
    for name, share in shares.items():
        out[name] = min(left, round(size * share / total))
        left -= out[name]
    out[name] += left
    return out


def fractions(seed: int, number: np.ndarray) -> np.ndarray:
    """A number in [0, 1) for each sample's number [n]; seeds give unrelated ones."""
    return (mix(mix(np.uint64(seed)) + number.astype(np.uint64)) >> np.uint64(11)) * 2.0**-53


def mix(number: np.ndarray) -> np.ndarray:
    """64 bits that look random for each number (splitmix64: Steele, Lea and Flood, 2014)."""
    with np.errstate(over="ignore"):
        number = number + np.uint64(0x9E3779B97F4A7C15)
        number = (number ^ (number >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        number = (number ^ (number >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return number ^ (number >> np.uint64(31))
