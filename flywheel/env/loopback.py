"""A driver whose robot is a task's simulation in real time: to try a policy, a guard and a clock before there is a
robot.

The world goes on whether or not anybody acts: each reading first makes the control steps that have passed since, with
the action that was written last."""

from __future__ import annotations

import importlib
import inspect
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from flywheel import env as envs
from flywheel import obs as observed
from flywheel import success
from flywheel.args import Task


class Loopback:
    """One environment of `task`, reset at `seed`, `fps` control steps a second (by default the task's own: with more
    it is a faster world than the real one)."""

    def __init__(
        self, task: Task, seed: int = 0, fps: float | None = None, clock: Callable[[], float] = time.monotonic
    ):
        self.env, self.seed, self.clock = envs.make(task, 1, 1), seed, clock
        self.fps = float(fps or self.env.fps)
        self.shapes = self.env.obs_shapes
        if hasattr(self.env, "hold_action"):
            self.hold_action = self.env.hold_action
        self.action = np.zeros((1, self.env.action_dim), np.float32)
        self.flags: list[bool] = []
        self.over = False

    def reset(self) -> dict[str, np.ndarray]:
        """Begin the episode; the world starts to move."""
        self.obs, self.flags, self.over = self.env.reset_at(0, self.seed), [], False
        self.begun = self.clock()
        return self._seen()

    def read(self) -> dict[str, np.ndarray]:
        """What is observed now."""
        self._go_on()
        return self._seen()

    def _seen(self) -> dict[str, np.ndarray]:
        frames = self.env.look([0]) if getattr(self.env, "cameras", None) else {}
        return observed.unpack(self.obs, self.shapes) | {name: frame[0] for name, frame in frames.items()}

    def write(self, action: np.ndarray) -> None:
        """From now on this action is executed, until another is written."""
        self._go_on()
        self.action[0] = action

    def outcome(self) -> bool | None:
        """True once the task was done, False at its time limit or where it ended otherwise."""
        if success.decide(np.array(self.flags, bool), self._mode()) is not None:
            return True
        return False if self.over else None

    def close(self) -> None:
        self.env.close()

    def _mode(self) -> str | None:
        """`last` is decided at the end only."""
        return "held:1000000" if success.parse(self.env.success)[0] == "last" and not self.over else self.env.success

    def _go_on(self) -> None:
        while not self.over and len(self.flags) < int((self.clock() - self.begun) * self.fps + 1e-6):
            obs, _, terminated, truncated, info = self.env.step(self.action, np.array([0]))
            self.obs = obs[0].copy()
            self.flags.append(bool(info["success"][0]))
            self.over = bool(terminated[0] or truncated[0]) or len(self.flags) >= self.env.max_steps


def driver(name: str, task: Task, args: dict[str, Any]):
    """The driver that `name` says, loopback or module:Class, made with `args`; ValueError where there is none."""
    if name == "loopback":
        made, args = Loopback, {"task": task, **args}
    else:
        made = _named(name)
    try:
        inspect.signature(made).bind(**args)
    except TypeError as error:
        raise ValueError(f"driver_args={args}: {made.__name__}: {error}") from error
    return made(**args)


def _named(name: str) -> Callable[..., Any]:
    """The class of module:Class, from the current folder too."""
    if "" not in sys.path and str(Path.cwd()) not in sys.path:
        sys.path.append(str(Path.cwd()))
    module, colon, kind = name.partition(":")
    try:
        if not colon:
            raise ImportError("no module:Class")
        return getattr(importlib.import_module(module), kind)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"driver={name}: {error}; expected loopback, or module:Class (docs/robot.md)") from error
