"""Who succeeded and what ended a task: the one rule for what a recording of any format says. numpy only.

In this order, the first that is there decides; what nobody says stays unknown (None), which is not failure:

    outcome=     what the user tells, by `rule`
    flag         the episode's own word, such as an attribute `success`: true, false, 0, 1; NaN is unknown
    flags        the same a step; any true step is success
    reward       where over the whole data set it is only 0 and 1 and somewhere 1: 1 is success, zeros are failure

A dense reward decides nothing. Rows beyond the last step (a layout without final observation loses its last action)
count at the step before. `docs/formats.md` has the table of cases, which is that of tests/outcome_cases.py."""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from flywheel.episode import EpisodeError

COMPARE = {
    ">": operator.gt,
    ">=": operator.ge,
    "<": operator.lt,
    "<=": operator.le,
    "==": operator.eq,
    "!=": operator.ne,
}
GRAMMAR = re.compile(r"\s*([\w./-]{1,200})\s*(>=|<=|==|!=|>|<)\s*([-+]?[\d.]+(?:[eE][-+]?\d+)?)\s*")
WORDS = {"true": True, "1": True, "success": True, "false": False, "0": False, "failure": False, "": None, "nan": None}


@dataclass(frozen=True)
class Rule:
    """What `outcome=` asks for: a value of each step or episode, and how it is compared (None: it is a flag itself)."""

    what: str
    compare: str | None = None
    value: float = 0.0


@dataclass(frozen=True)
class Said:
    """What a recording says of one episode; n rows, as many as steps or more.

    flag      the episode's own word on success, any spelling; None where there is none
    flags     [n] the same a step
    reward    [n] its own reward
    terminal  did it end for good? None where the format does not say
    done      the recording was stopped here, which is an end for good only after success
    """

    flag: Any = None
    flags: np.ndarray | None = None
    reward: np.ndarray | None = None
    terminal: bool | None = None
    done: bool = False


@dataclass(frozen=True)
class Outcome:
    """success True, False or None; reward [T] float32, 1 at the first success; flags [T] bool, or None where no step
    says."""

    success: bool | None
    terminated: bool
    reward: np.ndarray
    flags: np.ndarray | None

    @property
    def extras(self) -> dict[str, np.ndarray]:
        """{"success": flags} where they are known: a task that counts the last step or a held success needs them."""
        return {} if self.flags is None else {"success": self.flags}


def rule(told: Any) -> Rule | None:
    """The rule that `outcome=` names: last_reward, KEY, {key: KEY} or {success_when: "reward > 0.99"}; ValueError
    for others."""
    if told is None:
        return None
    if isinstance(told, dict) and set(told) == {"success_when"}:
        found = GRAMMAR.fullmatch(str(told["success_when"])[:300])
        if found:
            try:
                return Rule(found[1], found[2], float(found[3]))
            except ValueError:
                pass
    elif told == "last_reward":
        return Rule("last_reward", ">")
    elif isinstance(told, str) and told.strip():
        return Rule(told.strip())
    elif isinstance(told, dict) and set(told) == {"key"}:
        return Rule(str(told["key"]))
    raise ValueError(
        f"outcome={str(told)[:200]}; expected last_reward, the name of a recorded array, {{key: NAME}} or "
        '{success_when: "NAME > 0.99"} with one of > >= < <= == != and NAME reward, last_reward, return or an array'
    )


def sparse(rewards: Iterable[np.ndarray]) -> bool:
    """Does the reward of a whole data set, [n] an episode, say who succeeded: only 0 and 1, and somewhere a 1?"""
    some = False
    for reward in rewards:
        reward = np.asarray(reward)
        if reward.dtype.kind not in "biuf" or not np.isin(reward, (0, 1)).all():
            return False
        some |= bool((reward == 1).any())
    return some


def decide(
    said: Said, steps: int, *, sparse: bool = False, rule: Rule | None = None,
    find: Callable[[str], Any] | None = None, where: str = "episode",
) -> Outcome:  # fmt: skip
    """The outcome of an episode of `steps` steps; `find(name)` gives a recorded array that the rule names."""
    if rule:
        flag, flags = _asked(said, rule, find, where)
    else:
        flag, flags = said.flag, said.flags
        binary = said.reward is not None and bool(np.isin(said.reward, (0, 1)).all())
        if flags is None and binary and (sparse or _truth(flag, where) is not None):
            flags = said.reward
    won = _truth(flag, where)
    told = None
    if flags is not None:
        told = _truths(flags, where)
        if len(told) < steps:
            raise EpisodeError(f"{where}: success has {len(told)} rows; expected {steps}, one a step")
    if won is None and told is not None:
        won = True if (told == 1).any() else None if np.isnan(told).any() else False
    kept = None
    if told is not None and not np.isnan(told).any() and bool((told == 1).any()) == won:
        kept = told[:steps] == 1
        kept[-1:] |= (told[steps:] == 1).any()
    reward = np.zeros(steps, np.float32)
    if won and steps:
        first = np.flatnonzero(told == 1) if told is not None else []
        reward[min(int(first[0]), steps - 1) if len(first) else -1] = 1.0
    ended = bool(won) and said.done if said.terminal is None else bool(said.terminal)
    return Outcome(won, ended, reward, kept)


def _asked(said: Said, rule: Rule, find, where: str) -> tuple[Any, np.ndarray | None]:
    """(flag, flags) by the user's rule."""
    if rule.what in ("reward", "last_reward", "return"):
        if said.reward is None or not len(said.reward):
            raise EpisodeError(f"{where}: outcome= asks for the {rule.what}, and no reward was recorded")
        reward = np.asarray(said.reward, np.float64)
        value = {"reward": reward, "last_reward": reward[-1], "return": reward.sum()}[rule.what]
    else:
        value = find(rule.what) if find else None
        if value is None:
            raise EpisodeError(f"{where}: outcome= asks for {rule.what!r}, which was not recorded")
        value = np.asarray(value)
        value = value.reshape(len(value), -1).any(axis=1) if value.ndim > 1 and rule.compare is None else value
    if rule.compare is None:
        return (value.reshape(-1)[0], None) if value.size == 1 else (None, value)
    numbers = np.asarray(value)
    if numbers.dtype.kind not in "biuf":
        raise EpisodeError(f"{where}: outcome= compares {rule.what}, which is {numbers.dtype}; expected numbers")
    numbers = numbers.astype(np.float64)
    numbers = numbers.reshape(len(numbers), -1).max(axis=1) if numbers.ndim > 1 else numbers
    flags = np.where(np.isnan(numbers), np.nan, COMPARE[rule.compare](numbers, rule.value))
    return (float(flags), None) if flags.ndim == 0 else (None, flags)


def _truth(flag: Any, where: str) -> bool | None:
    """One word on success as True, False or None; EpisodeError for what is neither."""
    if flag is None:
        return None
    value = flag.decode(errors="replace") if isinstance(flag, bytes) else flag
    value = np.asarray(value).reshape(-1)
    if value.size == 1 and value.dtype.kind in "US" and str(value[0]).strip().lower() in WORDS:
        return WORDS[str(value[0]).strip().lower()]
    if value.size == 1 and value.dtype.kind in "biuf":
        found = _truths(value, where)[0]
        return None if np.isnan(found) else bool(found)
    raise EpisodeError(f"{where}: success is {str(flag)[:60]!r}; expected true or false")


def _truths(flags: Any, where: str) -> np.ndarray:
    """[n] float64 of 0, 1 and NaN (unknown); EpisodeError for other numbers, which are a score and no flag."""
    flags = np.asarray(flags)
    if flags.dtype.kind not in "biuf":
        raise EpisodeError(f"{where}: success is of {flags.dtype}; expected true or false")
    flags = flags.reshape(len(flags), -1).astype(np.float64)
    flags = np.where(
        np.isnan(flags).all(axis=1), np.nan, np.where((flags == 1).any(axis=1), 1.0, flags.max(axis=1, initial=0))
    )
    if wrong := [float(value) for value in flags[:100_000] if value not in (0, 1) and not np.isnan(value)]:
        raise EpisodeError(
            f"{where}: success is {wrong[0]:g}; expected 0 or 1. Where it is a score, say from where on it counts: "
            "outcome={success_when: 'NAME > 0.9'}"
        )
    return flags
