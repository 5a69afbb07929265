"""The guard's first level, between policy and environment: a chain of guards, each of which may change an action.

A guard is a file of env/guards/, and `guard.step` names those of the chain, in their order: {guard: arguments}.

    def guard(action, step, *, share=0.2):          # action [N, Da], step: what it may know (Step)
        return changed [N, Da], stepped_in [N]      # bool: where it had to

Where one of them stepped in that is an event: it is counted, and stands in the episode's meta["guard"]."""

from __future__ import annotations

import functools
import importlib
import inspect
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from flywheel import obs as observed
from flywheel.env import guards

DEFAULT: Mapping[str, Any] = {"finite": {}, "limits": {}}


@dataclass
class Step:
    """What a guard may know of one step of the slots `slots` [N]."""

    slots: np.ndarray
    low: np.ndarray  # [Da] the environment's action range
    high: np.ndarray
    last: np.ndarray  # [N, Da] executed in the step before; at first `rest`
    hold: Callable[[np.ndarray], np.ndarray]  # slots [N] -> [N, Da]
    obs: np.ndarray | None  # [N, Do]
    now: float  # seconds, of a clock that only goes on
    stepped_in: np.ndarray  # [N] bool: has a guard before this one changed the action?
    memories: dict[str, np.ndarray] = field(default_factory=dict)
    count: int = 0  # of all slots
    excused: np.ndarray | None = None  # [N] bool: steps that are not to be held against an episode

    @functools.cached_property
    def rest(self) -> np.ndarray:
        """What moves nothing now, [N, Da]."""
        return self.hold(self.slots)

    def memory(self, name: str, dtype: type = np.float64) -> np.ndarray:
        """What this guard keeps of each slot, [slots]; zero where an episode begins."""
        if name not in self.memories:
            self.memories[name] = np.zeros(self.count, dtype)
        return self.memories[name]


class StepGuard:
    """A chain of guards over `slots` episodes at once. `table` {guard: arguments}; `rest(slot)` [Da] is what moves
    nothing, by default zero, clipped into the range (no motion where actions are steps or velocities; where they are
    positions, an environment offers `hold_action()`).

    `names` {name of a number that is observed: its place}, for guards that look at some (`obs`).

    `count`: steps, and those at which each guard stepped in. After `most` interventions an episode is to end."""

    def __init__(
        self,
        low: np.ndarray,
        high: np.ndarray,
        slots: int,
        table: Mapping[str, Any] | None = None,
        rest: Callable[[int], np.ndarray] | None = None,
        most: int | None = None,
        clock: Callable[[], float] = time.monotonic,
        names: Mapping[str, int] = {},
    ):
        self.low, self.high, self.most, self.clock, self.hold = low, high, most, clock, rest
        told = {name: args for name, args in (table or DEFAULT).items() if args is not None}
        told = {name: placed(name, args, names) for name, args in told.items()}
        self.chain = [(name, named(guards, name, args, 2, "guard.step")) for name, args in told.items()]
        self.chain.sort(key=lambda part: part[0] == "burst")  # it counts what all others do
        self.memories: dict[str, dict[str, np.ndarray]] = {name: {} for name, _ in self.chain}
        self.last = np.tile(np.clip(0.0, low, high), (slots, 1)).astype(np.float32)
        self.time, self.spent = np.zeros(slots, int), np.zeros(slots, int)
        self.events: list[dict[str, list[int]]] = [{} for _ in range(slots)]
        self.count: Counter[str] = Counter()

    @classmethod
    def of(cls, env) -> StepGuard:
        """The guard of a batch: what it was told to be guarded by (`env.guard`), or the default. A batch waits for its
        policy, however long that takes: its clock stands still."""
        low, high = np.asarray(env.action_low, np.float32), np.asarray(env.action_high, np.float32)
        told = getattr(env, "guard", None)
        table, most = (told.step, told.interventions) if told else (None, None)
        hold, names = getattr(env, "hold_action", None), {}
        if shapes := getattr(env, "obs_shapes", None):
            names = dict(zip(observed.names(shapes), range(env.obs_dim), strict=True))
        names |= {name: i for i, name in enumerate(getattr(env, "obs_names", None) or [])}
        return cls(low, high, env.num_envs, table, hold, most, clock=lambda: 0.0, names=names)

    def begin(self, slot: int) -> None:
        """An episode begins in `slot`: what was executed in the one before is forgotten."""
        self.forget(slot)
        self.last[slot] = self.resting(np.array([slot]))[0]

    def resting(self, slots: np.ndarray) -> np.ndarray:
        """What moves nothing in `slots` [N] as they are now: [N, Da] float32."""
        held = [self.hold(int(slot)) if self.hold else np.zeros_like(self.low) for slot in slots]
        return np.clip(np.asarray(held, np.float32), self.low, self.high)

    def forget(self, slot: int) -> None:
        """What was counted in the slot's last episode is no more."""
        self.time[slot], self.spent[slot], self.events[slot] = 0, 0, {}
        for memory in self.memories.values():
            for kept in memory.values():
                kept[slot] = 0

    def __call__(self, proposed: np.ndarray, slots: np.ndarray, obs: np.ndarray | None = None) -> np.ndarray:
        """proposed [N, Da] for `slots` [N], which observe [N, Do] -> executed [N, Da] float32."""
        action, stepped_in = proposed, np.zeros(len(slots), bool)
        step = Step(
            slots, self.low, self.high, self.last[slots], self.resting, obs, self.clock(), stepped_in,
            count=len(self.last),
        )  # fmt: skip
        for name, guard in self.chain:
            step.memories = self.memories[name]
            action, changed = guard(action, step)
            if changed.any():
                self.count[name] += int(changed.sum())
                step.stepped_in = step.stepped_in | changed
                for slot in slots[changed]:
                    event = self.events[slot].setdefault(name, [0, int(self.time[slot])])
                    event[0] += 1
        executed = action.astype(np.float32)
        self.count["steps"] += len(slots)
        self.time[slots] += 1
        held_against = step.stepped_in if step.excused is None else step.stepped_in & ~step.excused
        self.spent[slots] += held_against
        self.last[slots] = executed
        return executed

    def ends(self, slots: np.ndarray) -> np.ndarray:
        """Which of `slots` [N] have used up the interventions of an episode."""
        return self.spent[slots] >= self.most if self.most else np.zeros(len(slots), bool)

    def counted(self, slot: int) -> Counter[str]:
        """Of the slot's episode: steps, those at which each guard stepped in, and those at which any did."""
        each = {name: steps for name, (steps, _) in self.events[slot].items()}
        return Counter(steps=int(self.time[slot]), interventions=int(self.spent[slot]), **each)

    def told(self, slot: int) -> dict[str, Any]:
        """What to keep of the slot's episode: meta["guard"] {guard: [steps, the first of them]}, and whether it ended
        it."""
        if not self.events[slot]:
            return {}
        over = self.ends(np.array([slot]))[0]
        ended = {"guard_ended": f"{self.spent[slot]} interventions"} if over else {}
        return {"guard": dict(self.events[slot]), **ended}


def placed(guard: str, args: Mapping[str, Any] | None, names: Mapping[str, int]) -> Mapping[str, Any] | None:
    """A guard's arguments, with places for the names in `obs`; ValueError with the names there are."""
    if not args or not isinstance(args.get("obs"), (list, tuple)):
        return args
    if unknown := [name for name in args["obs"] if isinstance(name, str) and name not in names]:
        raise ValueError(
            f"guard.step.{guard}.obs names {', '.join(unknown)}; what is observed here: {', '.join(names) or 'nothing'}"
        )
    return {**args, "obs": [names[name] if isinstance(name, str) else name for name in args["obs"]]}


def named(package: Any, name: str, args: Mapping[str, Any] | None, given: int, key: str) -> Callable:
    """The function `guard` of NAME.py in a package's folders, with its arguments, which come after `given` others;
    ValueError with what there is."""
    there = sorted({path.stem for folder in package.__path__ for path in Path(folder).glob("[!_]*.py")})
    if name not in there:
        raise ValueError(f"{key} names {name!r}; there are: {', '.join(there)}")
    found, args = importlib.import_module(f"{package.__name__}.{name}").guard, dict(args or {})
    known = list(inspect.signature(found).parameters.values())[given:]
    if unknown := set(args) - {one.name for one in known}:
        listed = ", ".join(one.name for one in known) or "none"
        raise ValueError(f"{key}.{name} has no {', '.join(sorted(unknown))}; it has: {listed}")
    if absent := [one.name for one in known if one.default is one.empty and one.name not in args]:
        raise ValueError(f"{key}.{name} needs {', '.join(absent)}")
    return functools.partial(found, **args)
