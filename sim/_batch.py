"""N environments of one task at once: one C++ call for all environments and all substeps of a control step.

                 readings [ns, N] --> controller --> control [N, fs, nc] --+
                     ^                                                     v
     obs, reward, success (numpy over N) <-- last readings <-- mujoco.rollout, nthread threads

Equal to the Gymnasium form (`_gym.TaskEnv`) to the last bit: `rollout` starts every call without the solver's warm
start, and so does the Gymnasium form."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import flywheel_sim
import mujoco
import numpy as np
from flywheel_sim._cameras import Cameras, shapes
from flywheel_sim._control import Controller
from flywheel_sim._render import Camera
from flywheel_sim._task import PHYSICS, Start, Task
from mujoco import rollout

CONTROL = mujoco.mjtState.mjSTATE_CTRL | mujoco.mjtState.mjSTATE_MOCAP_POS | mujoco.mjtState.mjSTATE_MOCAP_QUAT


class Batch:
    """`num_envs` environments of `task` (a name or a Task), stepped together.

    With `autoreset`, an environment that is done starts its next episode in the same step: row i of `obs` is then the
    first of the new episode, and `info["final_obs"][i]` the last of the old one. Environment i plays the seeds s_i, s_i
    + N, s_i + 2 N ..., where s_i is what `reset` gave it; `seeds=range(a, a + N)` therefore plays a, a + 1, a + 2 ...
    without gap or repetition. Without `autoreset` call `reset_at` for every done row before the next step.

    With `cameras` {"wrist": 64, "top": 64} (pixels a side) `look` draws what they see, and an observation is what the
    robot knows of itself alone, without where things are.

    It begins at `seeds` (0 ... N - 1 if None). `terminated` is False for ever unless `terminate_on_success`;
    `truncated` is True at `max_steps`."""

    def __init__(
        self,
        task: str | Task,
        num_envs: int,
        nthread: int = 2,
        autoreset: bool = True,
        seeds: Sequence[int] | None = None,
        terminate_on_success: bool = False,
        cameras: Mapping[str, int] | None = None,
    ):
        self._task = flywheel_sim.load(task) if isinstance(task, str) else task
        if num_envs < 1:
            raise ValueError(f"num_envs is {num_envs}; expected at least 1")
        model = self._task.model
        self.task, self.num_envs = self._task.name, num_envs
        self.cameras = shapes(cameras or {}, self.task)
        self._eyes = Cameras(self._task, cameras) if cameras else None
        self.seen = self._task.proprio if cameras else slice(None)
        self.obs_names, self.obs_units = (
            np.array(names, object)[self.seen].tolist() for names in (self._task.obs_names, self._task.obs_units)
        )
        self.obs_dim, self.action_dim = len(self.obs_names), self._task.action_dim
        self.action_low = np.full(self.action_dim, -1.0, np.float32)
        self.action_high = np.full(self.action_dim, 1.0, np.float32)
        self.max_steps, self.fps, self.success = self._task.max_steps, self._task.fps, self._task.success
        self.obs_shapes = {"state": (self.obs_dim,)}
        self.privileged_dim = len(self._task.obs_names) if cameras else 0
        self.autoreset, self.terminate_on_success = autoreset, terminate_on_success

        self._controller = Controller(self._task)
        self._threads = [mujoco.MjData(model) for _ in range(max(1, nthread))]
        self._pool = rollout.Rollout(nthread=nthread if nthread > 1 else 0)
        self._scratch = mujoco.MjData(model)
        self._camera = Camera(model)
        self._models = [model] * num_envs
        skip, nx = self._task.frame_skip, mujoco.mj_stateSize(model, PHYSICS)
        self._physics = np.zeros((num_envs, nx))
        self._readings = np.zeros((model.nsensordata, num_envs))
        self._goal = np.zeros((5, num_envs))
        self._control = np.zeros((num_envs, skip, mujoco.mj_stateSize(model, CONTROL)))
        self._states_out = np.zeros((num_envs, skip, nx))
        self._readings_out = np.zeros((num_envs, skip, model.nsensordata))
        self._steps = np.zeros(num_envs, np.int64)
        self._seeds = np.zeros(num_envs, np.int64)
        self.reset(range(num_envs) if seeds is None else seeds)

    def init(self, seed: int) -> dict[str, float]:
        """The initial conditions of `seed` by name, in m and rad."""
        return self._task.init(seed)

    def reset(self, seeds: Sequence[int]) -> np.ndarray:
        """Start environment i at `seeds[i]`; obs [N, Do] float32."""
        seeds = list(seeds)
        if len(seeds) != self.num_envs:
            raise ValueError(f"reset got {len(seeds)} seeds for {self.num_envs} environments; give one seed each")
        for i, seed in enumerate(seeds):
            self._begin(i, int(seed))
        return self._observe(slice(None))

    def reset_at(self, i: int, seed: int, state: dict[str, np.ndarray] | None = None) -> np.ndarray:
        """Start environment i at `seed`, or at `state` (from `get_state`) and call it `seed`; its obs [Do]."""
        self._begin(i, int(seed), state)
        return self._observe(slice(i, i + 1))[0]

    def step(
        self, action: np.ndarray, active: Sequence[int] | None = None
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, dict]:
        """One control step with action [N, Da] in -1..1 (clipped), of the environments `active` (all, if None).

        Returns obs [N, Do] float32, reward [N] (sum of the terms), terminated [N], truncated [N], and info with
        `success` [N], `terms` {name: [N]}, `final_obs` [N, Do] (the observations before any reset) and `seed` [N], the
        seeds of the episodes that this step belonged to. Rows that are not active cost nothing, stay where they are,
        and are 0."""
        action = np.asarray(action)
        if action.shape != (self.num_envs, self.action_dim):
            expected = f"[{self.num_envs}, {self.action_dim}] ({', '.join(self._task.action_names)})"
            raise ValueError(f"{self.task}: action is {list(action.shape)}; expected {expected}")
        everyone = active is None or len(active) == self.num_envs
        rows = slice(None) if everyone else np.asarray(active, np.intp)
        sensors = self._advance(action, rows)
        self._steps[rows] += 1

        obs = np.zeros((self.num_envs, self.obs_dim), np.float32)
        reward = np.zeros(self.num_envs)
        success, terminated, truncated = np.zeros((3, self.num_envs), bool)
        obs[rows] = self._task.observe(sensors, self._goal[:, rows])[:, self.seen]
        won = self._task.module.success(sensors)
        success[rows] = won
        terms = self._task.module.terms(sensors, won)
        reward[rows] = sum(terms.values())
        if self.terminate_on_success:
            terminated[rows] = success[rows]
        truncated[rows] = (self._steps[rows] >= self.max_steps) & ~terminated[rows]
        if not everyone:
            terms = {name: self._spread(value, rows) for name, value in terms.items()}
        info = {"success": success, "terms": terms, "final_obs": obs, "seed": self._seeds.copy()}
        done = np.flatnonzero(terminated | truncated)
        if self.autoreset and len(done):
            for i in done:
                self._begin(i, int(self._seeds[i]) + self.num_envs)
            obs = obs.copy()
            obs[done] = self._observe(done)
        return obs, reward, terminated, truncated, info

    def get_state(self, i: int) -> dict[str, np.ndarray]:
        """All that environment i needs to go on exactly as it would: physics [nx], mocap [nm], sensors [ns], goal
        [5]."""
        nu = self._task.model.nu
        return {
            "physics": self._physics[i].copy(),
            "mocap": self._control[i, 0, nu:].copy(),
            "sensors": self._readings[:, i].copy(),
            "goal": self._goal[:, i].copy(),
        }

    def set_state(self, i: int, state: dict[str, np.ndarray]) -> np.ndarray:
        """Put environment i at `state`, and return its obs [Do]; its seed and step counter stay as they are."""
        self._write(i, self._task.restore(self._scratch, state))
        return self._observe(slice(i, i + 1))[0]

    def hold_action(self, i: int) -> np.ndarray:
        """The action [Da] that moves nothing at an episode's start: the hand stays, the gripper, which is open, too."""
        return np.array([-1.0 if name == "gripper" else 0.0 for name in self._task.action_names], np.float32)

    def frame(self, i: int, width: int = 320, height: int = 240) -> np.ndarray:
        """A picture of environment i, uint8 [height, width, 3]; RuntimeError with what to do where there is no
        OpenGL."""
        self._task.restore(self._scratch, self.get_state(i))
        return self._camera.frame(self._scratch, width, height)

    def look(self, rows: Sequence[int]) -> dict[str, np.ndarray]:
        """What the cameras see in the environments `rows` [N] now: {camera: [N, H, W, 3] uint8}."""
        if not self._eyes:
            return {}
        rows = np.asarray(rows, np.intp)
        return self._eyes.draw(self._physics[rows], self._control[rows, 0, self._task.model.nu :])

    def privileged(self, rows: Sequence[int]) -> np.ndarray:
        """What only the simulator knows: all of the task's observation [N, Dp], which without cameras is `obs`, in the
        environments `rows` now."""
        rows = np.asarray(rows, np.intp)
        return self._task.observe(self._task.sensors(self._readings[:, rows]), self._goal[:, rows])

    def close(self) -> None:
        """Stop the threads and free the renderers; a closed batch cannot be stepped."""
        if self._eyes:
            self._eyes.close()
        self._pool.close()
        self._camera.close()

    def _advance(self, action: np.ndarray, rows: slice | np.ndarray) -> dict[str, np.ndarray]:
        """Step the environments `rows` and return their new sensors."""
        targets, goal = self._controller(self._readings[:, rows], self._goal[:, rows], action[rows])
        self._goal[:, rows] = goal
        count, nu = targets.shape
        if not count:
            return self._task.sensors(self._readings[:, rows])
        self._control[rows, :, :nu] = targets[:, None]
        self._pool.rollout(
            self._models[:count],
            self._threads,
            self._physics[rows],
            self._control[rows],
            control_spec=CONTROL,
            skip_checks=True,
            nstep=self._task.frame_skip,
            state=self._states_out[:count],
            sensordata=self._readings_out[:count],
        )
        self._physics[rows] = self._states_out[:count, -1]
        readings = np.ascontiguousarray(self._readings_out[:count, -1].T)
        self._readings[:, rows] = readings
        return self._task.sensors(readings)

    def _spread(self, value: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """[n] -> [N], 0 elsewhere."""
        spread = np.zeros(self.num_envs)
        spread[rows] = value
        return spread

    def _begin(self, i: int, seed: int, state: dict[str, np.ndarray] | None = None) -> None:
        task, data = self._task, self._scratch
        self._write(i, task.start(data, seed) if state is None else task.restore(data, state))
        self._seeds[i], self._steps[i] = seed, 0

    def _write(self, i: int, start: Start) -> None:
        self._physics[i] = start.physics
        self._control[i, :, self._task.model.nu :] = start.mocap
        self._readings[:, i] = start.sensors
        self._goal[:, i] = start.goal

    def _observe(self, rows: slice | np.ndarray) -> np.ndarray:
        return self._task.observe(self._task.sensors(self._readings[:, rows]), self._goal[:, rows])[:, self.seen]
