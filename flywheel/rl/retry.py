"""Starts at which practice failed are tried again, beside new ones, until an episode from there succeeds.

    episodes of a round:   new, failed before, new, failed before, ...     `share` of them at most tried again

Where most episodes succeed a new start teaches little, and the few that fail teach what is missing (prioritized level
replay, arXiv 2010.03934, with failure as the score). What is tried again is learnt from and kept, with meta["retry"],
but does not count as how practice does: those starts are harder than the task's own."""

from __future__ import annotations

from collections.abc import Sequence

KEPT = 500  # starts that wait, at most: the newest


def with_failed(new: Sequence[int], failed: Sequence[int], share: float, count: int) -> tuple[list[int], set[int]]:
    """(the seeds of a round of some `count` episodes, those that are tried again): as many as `new`, at most `share` of
    `count` of them from the front of `failed`, spread over the first `count`."""
    again = list(failed[: min(int(share * count), len(new))])
    seeds, rest = [], list(new[: len(new) - len(again)])
    every = max(1, count // len(again)) if again else 0
    for at, seed in enumerate(again):
        seeds += [*rest[at * (every - 1) : (at + 1) * (every - 1)], seed]
    return seeds + rest[len(again) * (every - 1) :], set(again)


def waiting(failed: Sequence[int], done: Sequence) -> list[int]:
    """The starts that wait after the episodes `done`: what failed goes to the end, what succeeded is off; an
    environment's fault says nothing."""
    told = [e for e in done if "cause" not in e.meta and "start_from" not in e.meta]
    played = {e.seed for e in told}
    return ([seed for seed in failed if seed not in played] + [e.seed for e in told if not e.success])[-KEPT:]


def words(done: Sequence) -> str | None:
    """What became of those that were tried again: "23 of 30"."""
    won = [bool(e.success) for e in done if "retry" in e.meta]
    return f"{sum(won)} of {len(won)}" if won else None
