"""A bad rollout is data, not death: what an environment did wrong, how often, and when that is too often. numpy only.

An environment that raises, hangs, dies, says what is not finite, changes its shapes or talks nonsense about success
makes a failed episode with its cause in meta["cause"]. Nobody imitates it or learns from it; the environment is made
anew, the others go on."""

from __future__ import annotations

import re
from collections.abc import Sequence
from numbers import Number

import numpy as np

SHARE = 0.05  # of all episodes that were begun: more than so many faults end the stage
ALWAYS = 3  # so many faults are borne whatever their share


class Fault(Exception):
    """An environment did what no task may do; the text is the cause."""


class Lost(Exception):
    """The process that stepped a batch has ended; {slot: cause} says for which environments, all others begin anew."""

    def __init__(self, causes: dict[int, str]):
        super().__init__("; ".join(f"environment {i}: {cause}" for i, cause in causes.items()) or "no one knows why")
        self.causes = causes


class FaultsError(ValueError):
    """Too many episodes of an environment failed by its own fault; the message names the most common causes."""


class Tally:
    """How many episodes of a batch were begun, and which failed by the environment's fault."""

    def __init__(self, task: str, share: float = SHARE):
        self.task, self.share, self.begun = task, share, 0
        self.seeds: dict[str, list[int]] = {}

    def add(self, seed: int, cause: str) -> None:
        """Count a fault; FaultsError where there are more than `share` of the episodes that were begun, and more
        than ALWAYS."""
        self.seeds.setdefault(re.sub(r"\d+(\.\d+)?", "#", cause), []).append(seed)
        count = sum(map(len, self.seeds.values()))
        if count > max(ALWAYS, self.share * self.begun):
            common = sorted(self.seeds.items(), key=lambda item: -len(item[1]))[:3]
            named = "; ".join(f"{len(seeds)} x {cause!r} (seeds {listed(seeds)})" for cause, seeds in common)
            raise FaultsError(
                f"{self.task}: {count} of {self.begun} episodes failed by the environment's fault, more than "
                "task.faults="
                f"{self.share:g} allows. Most common: {named}. Mend the environment, or bear more: task.faults=0.2"
            )


def listed(seeds: Sequence[int], most: int = 5) -> str:
    """Seeds as text: all, or the first few and how many more."""
    more = f" and {len(seeds) - most} more" if len(seeds) > most else ""
    return ", ".join(map(str, seeds[:most])) + more


def cause_of(error: BaseException) -> str:
    """An exception as a cause, on one line: "ValueError: the joint is gone"."""
    if isinstance(error, Fault):
        return str(error)
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}"[:200].rstrip(": ")


def truth(value, what: str) -> bool:
    """A flag of an environment as a bool: a bool, or a number that is 0 or 1. Fault for anything else."""
    if isinstance(value, bool | np.bool_):
        return bool(value)
    if isinstance(value, np.ndarray) and value.ndim == 0:
        value = value.item()
    if isinstance(value, Number) and value in (0, 1):
        return bool(value)
    raise Fault(f"{what} is {' '.join(repr(value).split()):.60}; expected true or false")


def finite(obs: np.ndarray, names: Sequence[str]) -> None:
    """Fault unless an observation [Do] is finite."""
    if not np.isfinite(obs).all():
        i = int(np.flatnonzero(~np.isfinite(obs))[0])
        raise Fault(f"the observation is not finite: {names[i]} is {obs[i]}")
