"""A robot that nobody can simulate: what its card says of it, or else what the corpus holds.

    card   obs          {joints: 6, gripper: 1}           sizes of what is observed, side by side in this order
           action       {pan: [-100, 100], ...}           the numbers of an action and their limits, in order
           fps          30                                actions a second
           cameras      {front: [96, 128]}                height and width of those that are learnt from
           instruction  pick up the cube                  in words, for policies that read

It stands where an environment stands and answers what that answers about shapes, limits and rate; `reset_at` and
`step` refuse. Limits that nobody told are those of the recorded actions, and a twentieth of their range more."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from flywheel import obs as observed
from flywheel.args import Task, plain
from flywheel.env import ids
from flywheel.env.gym_batch import TaskError

KNOWN = ("obs", "action", "fps", "cameras", "instruction")
MARGIN = 0.05  # of the range of the recorded actions


class Robot:
    """A task's description, of its card and of the episodes `held` (a corpus Version, or None).

    obs_shapes, obs_dim, action_dim are None until the first episode is met, where neither says them."""

    num_envs, reward, success, max_steps = 1, "success", "last", None

    def __init__(self, task: Task, held=None):
        self.made, self.task, card = task, ids.of_task(plain(task)), checked(task.card)
        self.obs_shapes = {key: _shape(size) for key, size in card["obs"].items()} or None
        self.action_names, limits = list(card["action"]), list(card["action"].values())
        self.told = np.array(limits, np.float32).reshape(-1, 2) if limits else None
        self.fps, self.instruction = card["fps"], card["instruction"]
        wanted = card["cameras"] or task.cameras
        self.cameras = {name: (*_pixels(size), 3) for name, size in wanted.items()}
        self.seen = None  # limits of the recorded actions, [Da, 2]
        mine = held.select(task=self.task) if held is not None and len(held) else []
        whole = np.array([not meta.get("trial_only") for meta in mine.table["meta"]], bool) if len(mine) else []
        if np.any(whole):
            self._look(mine.select(whole))

    @property
    def obs_dim(self) -> int:
        return observed.size(self.obs_shapes) if self.obs_shapes else 0

    @property
    def action_dim(self) -> int:
        limits = self.told if self.told is not None else self.seen
        return 0 if limits is None else len(limits)

    @property
    def action_low(self) -> np.ndarray:
        return self._limits()[:, 0]

    @property
    def action_high(self) -> np.ndarray:
        return self._limits()[:, 1]

    @property
    def obs_names(self) -> list[str]:
        return observed.names(self.obs_shapes or {})

    @property
    def obs_units(self) -> list[str]:
        return [""] * self.obs_dim

    def meet(self, episode) -> None:
        """Take from an episode what nobody said yet, and no limits: those it may go beyond."""
        if self.obs_shapes is None and "state" in episode.obs:
            self.obs_shapes = {observed.STATE: tuple(episode.obs["state"].shape[1:])}
        if self.told is None:
            width = self.action_dim or episode.action.shape[1]
            self.seen = np.repeat(np.float32([[-np.inf, np.inf]]), width, axis=0)
        self.fps = self.fps or episode.fps

    def _look(self, held) -> None:
        """Take what the card leaves out from the corpus."""
        first = held.read(0)
        if self.obs_shapes is None and "state" in first.obs:
            said = first.meta.get("obs_shapes")
            self.obs_shapes = observed.read(said) if said else {observed.STATE: (first.obs["state"].shape[1],)}
        if self.told is None:
            told = held.statistics("action")
            low, high = np.float64(told["min"]), np.float64(told["max"])
            room = np.maximum(MARGIN * (high - low), 1e-3)
            self.seen = np.stack([low - room, high + room], axis=1).astype(np.float32)
        self.fps = self.fps or float(first.fps)

    def _limits(self) -> np.ndarray:
        limits = self.told if self.told is not None else self.seen
        if limits is None:
            self.step()
        return limits

    def step(self, *_: Any) -> None:
        """Refuse: TaskError."""
        raise TaskError(
            f"{self.task} is a robot without a simulator: it cannot be played here. Train with `flywheel pretrain`, "
            "try it with `flywheel drive`, ingest the trials with origin=policy:ID, and ask `flywheel promote` "
            "(docs/robot.md)"
        )

    reset_at = step

    def close(self) -> None:
        """Nothing is open."""


def checked(card: Mapping[str, Any]) -> dict[str, Any]:
    """The card with all of its entries; ValueError for what it cannot have."""
    if unknown := [key for key in card if key not in KNOWN]:
        raise ValueError(f"task.card has {', '.join(unknown)}; expected {', '.join(KNOWN)}")
    action = card.get("action") or {}
    if isinstance(action, (list, tuple)):
        action = {name: [-1, 1] for name in action}
    for name, limits in action.items():
        if len(np.ravel(limits)) != 2 or not np.ravel(limits)[0] < np.ravel(limits)[1]:
            raise ValueError(f"task.card.action.{name}={limits}; expected its limits, [low, high]")
    told = {"obs": dict(card.get("obs") or {}), "action": dict(action), "cameras": dict(card.get("cameras") or {})}
    return told | {"fps": float(card.get("fps") or 0.0), "instruction": str(card.get("instruction") or "")}


def _shape(size: Any) -> tuple[int, ...]:
    return tuple(int(n) for n in np.ravel(size))


def _pixels(size: Any) -> tuple[int, int]:
    """64 or [H, W] -> (H, W)."""
    sides = [int(n) for n in np.ravel(size)]
    return (sides[0], sides[-1])
