"""Hindsight (Andrychowicz et al., arXiv 1707.01495): an episode that missed its goal is one that reached another; one
that did not reached its own nearly, and where it ended exactly.

    achieved        a0 a1 a2 ... aT        desired   g  g  g ... g        failed
    in hindsight    a0 a1 a2 ... aT                  aT aT aT ... aT      success, decided once it stayed there

Such a copy is an episode of its own in the corpus, of origin "hindsight:ID" where its policy is "policy:ID", with the
hash of what was played in meta["of"]. It is learnt from, and counts in no rate of success. Of a success the copy is
imitated: who imitates what ended just inside of the tolerance ends just outside (goal-conditioned supervised learning,
Ghosh et al., 1912.06088)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from flywheel import obs as observed
from flywheel import success
from flywheel.args import UsageError
from flywheel.episode import Episode
from flywheel.obs import STATE
from flywheel.rl.table import Goal

ORIGIN = "hindsight:"
LEAST = 0.25  # of the way that was asked for: what moved less does not say how to move
NEAR = 0.1  # of the way that it moved: so near to where it ended, it was there


def goals(keys: Goal, env, learns: str) -> tuple[slice, slice]:
    """Where the goal that is there and the one that is wanted are in a row of the state. UsageError where a task has
    no such keys, or is learnt from by another reward than success."""
    if learns == "env":
        raise UsageError("collect.hindsight: a goal is reached or not, and task.reward=env says neither; take it away")
    shapes = env.obs_shapes
    if not {keys.achieved, keys.desired} <= shapes.keys() or shapes[keys.achieved] != shapes[keys.desired]:
        raise UsageError(
            f"collect.hindsight needs two parts of the observation that have one shape, {keys.achieved} and "
            f"{keys.desired}; {env.task} has {observed.listed(shapes)}. Name them: "
            "collect.hindsight={achieved: KEY, desired: KEY}"
        )
    return observed.columns(shapes)[keys.achieved], observed.columns(shapes)[keys.desired]


def relabelled(episodes: Sequence[Episode], achieved: slice, desired: slice, mode: str | None = None) -> list[Episode]:
    """A copy of each episode whose outcome is known, and which moved something: where that ended was its goal. The
    task's `mode` of success says how long it must have been there."""
    steps = success.parse(mode)[1]
    return [made for e in episodes if e.success is not None and (made := _relabelled(e, achieved, desired, steps))]


def imitated(hashes: Sequence[str], won: np.ndarray, meta: Sequence[dict]) -> np.ndarray:
    """Which of some episodes [n] are imitated: those that succeeded; where there is a copy of one, that alone. Copies
    of what failed are not: most of it was too slow."""
    known, of = np.array(hashes, dtype=str), np.array([one.get("of", "") for one in meta], dtype=str)
    copy = of != ""
    return won & np.where(copy, np.isin(of, known[won & ~copy]), ~np.isin(known, of))


def _relabelled(episode: Episode, achieved: slice, desired: slice, steps: int) -> Episode | None:
    state = np.array(episode.obs[STATE])
    begin, end, wanted = state[0, achieved], state[-1, achieved], state[0, desired]
    moved = np.linalg.norm(end - begin)
    if not moved or moved < LEAST * np.linalg.norm(wanted - begin):
        return None
    there = np.linalg.norm(state[1:, achieved] - end, axis=1) <= NEAR * moved  # [T]
    state[:, desired] = end
    reward = np.zeros_like(episode.reward)
    reward[success.arrived(there, steps)] = 1.0
    return episode.replace(
        obs={**episode.obs, STATE: state}, reward=reward, success=True,
        origin=ORIGIN + episode.origin.removeprefix("policy:"),
        extras={key: value for key, value in episode.extras.items() if key != "env_reward"},
        meta={**episode.meta, "of": episode.hash},
    )  # fmt: skip
