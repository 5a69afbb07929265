"""What an environment promises, tried before anybody relies on it: that a seed decides an episode, that a state can
be set."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np

from flywheel.env.faults import Fault, Lost
from flywheel.log import say

SEEDS = (7, 8)  # two episodes that are tried
STEPS = 5


def honours_seeds(env) -> tuple[bool, str]:
    """(whether one seed makes one episode, what was found): two resets with it, another between them, and a few equal
    steps.

    Pairing, replay and the gate's paired test rest on it; Meta-World's MT1 is one that ignores seeds. Tried once a
    batch, and said where it does not hold."""
    return _once(
        env,
        "honours_seeds",
        _honours_seeds,
        "seeds do not decide its episodes: scores cannot be paired, runs not replayed",
    )


def keeps_state(env) -> tuple[bool, str]:
    """(whether set_state brings back what get_state saw, what was found): set, step, and compare with how it went on.

    What lies outside the simulator's state is lost, such as Fetch's goal; then no episode can begin along another.
    """
    return _once(
        env, "keeps_state", _keeps_state, "its states cannot be set again, so that episodes begin at resets only"
    )


def _once(env, name: str, test, consequence: str) -> tuple[bool, str]:
    tried = env.__dict__.setdefault("tried", {})
    if name not in tried:
        try:
            reason = test(env)
        except (Fault, Lost) as error:
            reason = f"it could not be tried: {error}"
        tried[name] = (not reason, reason or "tried: it does")
        if reason:
            say(f"  {env.task}: {reason}; {consequence}")
    return tried[name]


def _honours_seeds(env) -> str:
    first, _, again = (_play(env, partial(env.reset_at, 0, seed)) for seed in (SEEDS[0], SEEDS[1], SEEDS[0]))
    where = _difference(env, first, again)
    return where and f"reset twice with seed {SEEDS[0]}, {where}"


def _keeps_state(env) -> str:
    _play(env, partial(env.reset_at, 0, SEEDS[0]), 2)
    try:
        state = env.get_state(0)
        here = _play(env, None)
        env.reset_at(0, SEEDS[1])
        again = _play(env, partial(env.set_state, 0, state))
    except (ValueError, AttributeError, TypeError, RuntimeError, KeyError) as error:
        return f"{type(error).__name__}: {error}"
    where = _difference(env, here[1:], again[1:], 1)
    return where and f"set back to an earlier state of it, {where}"


def _play(env, begin, steps: int = STEPS) -> list[np.ndarray]:
    """Observations [Do + 3] (with reward, terminated, success) of environment 0: at the beginning, and after each of
    a few fixed actions."""
    rng, action = np.random.default_rng(0), np.zeros((env.num_envs, env.action_dim), np.float32)
    obs = np.zeros(env.obs_dim, np.float32) if begin is None else begin()
    seen: list[np.ndarray] = [np.append(obs, [0.0, 0.0, 0.0])]
    for _ in range(steps):
        action[0] = rng.uniform(env.action_low, env.action_high)
        new, reward, ended, cut, info = env.step(action, [0])
        if cause := (info.get("faults") or {}).get(0):
            raise Fault(cause)
        seen.append(np.append(new[0], [reward[0], ended[0], info["success"][0]]))
        if ended[0] or cut[0]:
            break
    return seen


def _difference(env, one: list[np.ndarray], two: list[np.ndarray], first: int = 0) -> str:
    """Where two such recordings part, in words; "" where they do not."""
    names: list[Any] = [*env.obs_names, "the reward", "terminated", "success"]
    for k, (a, b) in enumerate(zip(one, two, strict=False), start=first):
        odd = np.flatnonzero((a != b) & ~(np.isnan(a) & np.isnan(b)))
        if len(odd):
            when = f"after {k} equal steps " if k else ""
            return f"{when}{names[odd[0]]} is {a[odd[0]]:.6g} and {b[odd[0]]:.6g}"
    return (
        ""
        if len(one) == len(two)
        else f"it ends after {len(one) - 1 + first} and after {len(two) - 1 + first} equal steps"
    )
