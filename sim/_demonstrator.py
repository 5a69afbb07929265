"""A person at a joystick: follows the task's script, with a flaw in some episodes, and dawdles in others.

The script (`demonstrate` in the task's file) sees what a policy sees and yields actions. This file adds what is human:
a hand that wavers (noise that is smooth in time), a joystick of 8 bits, pauses and detours.
"""

from __future__ import annotations

import numpy as np
from flywheel_sim._control import STEP, TURN
from flywheel_sim._task import Task

FLAWED = 0.24  # share of episodes with a flaw
DAWDLES = 0.24  # share of episodes with pauses or a detour
WAVER, MEMORY = 0.15, 0.8  # size (of full action) and autocorrelation of the hand's noise


def towards(see, point, *, speed: float, grip: float, yaw: float | None = None) -> np.ndarray:
    """The action [dx, dy, dz(, dyaw), gripper] that moves the controller's goal to `point` (m), and the hand to
    `yaw` (rad)."""
    delta = (np.asarray(point) - see["robot0_eef_pos"] - see["robot0_eef_lag"]) / STEP
    delta *= min(1.0, speed / max(float(np.abs(delta).max()), 1e-9))
    if "robot0_eef_yaw" not in see:
        return np.array([*delta, grip])
    cos, sin = see["robot0_eef_yaw"]
    error = 0.0 if yaw is None else yaw - float(np.arctan2(sin, cos))
    return np.array([*delta, np.clip(0.5 * error / (2 * TURN), -speed, speed), grip])


def hold(see, *, grip: float) -> np.ndarray:
    """Stay where you are."""
    return np.array([0.0] * (4 if "robot0_eef_yaw" in see else 3) + [grip])


def quarter(four: np.ndarray) -> float:
    """The angle (rad, within 45 degrees of 0) whose fourfold has the cosine and sine `four`: a square's yaw."""
    return float(np.arctan2(four[1], four[0])) / 4


class Demonstrator:
    """One episode's operator; everything it will do wrong is drawn from `seed`.

    flaw      one of the task's FLAWS or None: what goes wrong
    dawdles   True if it pauses or wanders on the way
    """

    def __init__(self, task: Task, seed: int):
        self._task = task
        self._rng = rng = np.random.default_rng([seed, 3])
        mood = rng.random()
        self.flaw = str(rng.choice(task.module.FLAWS)) if mood < FLAWED else None
        self.dawdles = FLAWED <= mood < FLAWED + DAWDLES
        self._script = None
        self._see: dict[str, np.ndarray] = {}
        self._noise = np.zeros(task.action_dim - 1)
        self._time = 0
        pauses = rng.integers(1, 3) if self.dawdles else 0
        self._breaks = {int(rng.integers(2, 30)): self._whim() for _ in range(pauses)}
        self._whim_left, self._drift = 0, np.zeros(3)
        self._grip = 0.0

    def _whim(self) -> tuple[int, np.ndarray]:
        """How many steps to interrupt the work, and where to wander meanwhile (zero: a pause)."""
        wander = self._rng.random() < 0.4
        drift = self._rng.uniform(-0.5, 0.5, 3) * [1, 1, 0.4] if wander else np.zeros(3)
        return int(self._rng.integers(8, 13) if wander else self._rng.integers(10, 22)), drift

    def act(self, obs: np.ndarray) -> np.ndarray:
        """Action [Da] float32 for one observation [Do]."""
        self._see.update(self._task.split(obs.astype(np.float64)))
        if self._script is None:
            self._script = self._task.module.demonstrate(self._see, self._rng, self.flaw)
        if self._time in self._breaks:
            self._whim_left, self._drift = self._breaks[self._time]
        self._time += 1
        if self._whim_left:
            self._whim_left -= 1
            action = hold(self._see, grip=self._grip)
            action[:3] = self._drift
        else:
            action = next(self._script)
        self._grip = action[-1]
        size = self._noise.size
        self._noise = MEMORY * self._noise + np.sqrt(1 - MEMORY**2) * WAVER * self._rng.standard_normal(size)
        # a hand wavers when it moves, not when it rests
        action[:-1] += self._noise * min(1.0, 0.15 + float(np.abs(action[:-1]).max()))
        return (np.round(np.clip(action, -1, 1) * 127) / 127).astype(np.float32)

    def outcome(self, success: bool) -> str:
        """In one word: clean, dawdles or recovers (a success in spite of a flaw); else the flaw, or fumbles."""
        if success:
            return "recovers" if self.flaw else "dawdles" if self.dawdles else "clean"
        return self.flaw or "fumbles"
