"""One environment of a task in Gymnasium's form, stepped by mj_step; importing this module registers all tasks.

env = gymnasium.make("flywheel_sim._gym:flywheel/Lift-v0", render_mode="rgb_array")
"""

from __future__ import annotations

from typing import Any, ClassVar

import flywheel_sim
import gymnasium
import mujoco
import numpy as np
from flywheel_sim._control import Controller
from flywheel_sim._render import Camera
from flywheel_sim._task import PHYSICS, READING, Task


class TaskEnv(gymnasium.Env):
    """Observation [Do] float32, action [Da] in -1..1. `info` has `success` and the reward's `terms` at every step, and
    the initial conditions by name, `init`, and `seed` at reset.

    `terminated` is False for ever unless `terminate_on_success`; `truncated` is True at the task's `max_steps`.
    """

    metadata: ClassVar[dict[str, Any]] = {"render_modes": ["rgb_array"]}

    def __init__(
        self,
        task: str | Task,
        render_mode: str | None = None,
        width: int = 320,
        height: int = 240,
        terminate_on_success: bool = False,
    ):
        if render_mode not in (None, "rgb_array"):
            raise ValueError(f"render_mode is {render_mode!r}; this environment has 'rgb_array' or None")
        self.task = flywheel_sim.load(task) if isinstance(task, str) else task
        self.metadata = {**self.metadata, "render_fps": int(self.task.fps), "success": self.task.success}
        self.metadata |= {"obs_names": self.task.obs_names, "obs_units": self.task.obs_units}
        self.render_mode, self.width, self.height = render_mode, width, height
        self.terminate_on_success = terminate_on_success
        self.observation_space = gymnasium.spaces.Box(-READING, READING, (self.task.obs_dim,), np.float32)
        self.action_space = gymnasium.spaces.Box(-1.0, 1.0, (self.task.action_dim,), np.float32)
        self._data = mujoco.MjData(self.task.model)
        self._controller = Controller(self.task)
        self._camera = Camera(self.task.model)
        self._goal = np.zeros((5, 1))
        self._readings = np.zeros((self.task.model.nsensordata, 1))
        self._steps = 0

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[np.ndarray, dict]:
        """Start the episode of `seed`; without one, of a seed drawn from this environment's own generator.
        `options={"state": ...}` starts from a state that `get_state` gave."""
        super().reset(seed=seed)
        seed = int(self.np_random.integers(2**31)) if seed is None else int(seed)
        start = self.task.start(self._data, seed)
        self._goal, self._readings, self._steps = start.goal[:, None], start.sensors[:, None], 0
        if options and options.get("state") is not None:
            self.set_state(options["state"])
        return self._observe()[0], {"init": self.task.init(seed), "seed": seed}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict]:
        action = np.asarray(action)
        if action.shape != (self.task.action_dim,):
            expected = f"[{self.task.action_dim}] ({', '.join(self.task.action_names)})"
            raise ValueError(f"{self.task.name}: action is {list(action.shape)}; expected {expected}")
        targets, self._goal = self._controller(self._readings, self._goal, action[None])
        self._data.ctrl[:] = targets[0]
        self._data.qacc_warmstart[:] = 0.0  # as rollout does: its state does not carry the solver's warm start
        mujoco.mj_step(self.task.model, self._data, nstep=self.task.frame_skip)
        self._readings = self._data.sensordata[:, None].copy()
        self._steps += 1

        sensors = self.task.sensors(self._readings)
        won = self.task.module.success(sensors)
        success = bool(won[0])
        terms = {name: float(value[0]) for name, value in self.task.module.terms(sensors, won).items()}
        terminated = success and self.terminate_on_success
        truncated = self._steps >= self.task.max_steps and not terminated
        obs = self.task.observe(sensors, self._goal)[0]
        return obs, sum(terms.values()), terminated, truncated, {"success": success, "terms": terms}

    def get_state(self) -> dict[str, np.ndarray]:
        """All that is needed to go on exactly: physics [nx], mocap [nm], sensors [ns], goal [5]."""
        physics = np.empty(mujoco.mj_stateSize(self.task.model, PHYSICS))
        mujoco.mj_getState(self.task.model, self._data, physics, PHYSICS)
        mocap = np.concatenate([self._data.mocap_pos.ravel(), self._data.mocap_quat.ravel()])
        return {
            "physics": physics,
            "mocap": mocap,
            "sensors": self._readings[:, 0].copy(),
            "goal": self._goal[:, 0].copy(),
        }

    def set_state(self, state: dict[str, np.ndarray]) -> None:
        """Put the environment at `state`; its step counter stays as it is."""
        start = self.task.restore(self._data, state)
        self._goal, self._readings = start.goal[:, None], start.sensors[:, None]

    def hold_action(self) -> np.ndarray:
        """The action [Da] that moves nothing at an episode's start."""
        return np.array([-1.0 if name == "gripper" else 0.0 for name in self.task.action_names], np.float32)

    def render(self) -> np.ndarray | None:
        """uint8 [height, width, 3] in mode "rgb_array"; RuntimeError with what to do where there is no OpenGL."""
        if self.render_mode is None:
            return None
        return self._camera.frame(self._data, self.width, self.height)

    def close(self) -> None:
        self._camera.close()

    def _observe(self) -> np.ndarray:
        return self.task.observe(self.task.sensors(self._readings), self._goal)


flywheel_sim.register()
