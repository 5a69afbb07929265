"""Any registered Gymnasium environment as a batch: copies of it, stepped by threads."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from typing import Any

import numpy as np

TIMED, LASTED = 8, 0.05  # calls without threads at first, and seconds, and then as many with, before one way is taken
SLACK = (
    1.25  # threads that are so much slower are taken all the same: they fall into step for a while, and out of it again
)
AGAIN = 5000  # calls after which both are timed again: a busy neighbour may have come or gone


class TaskError(ValueError):
    """An environment that cannot be a task; the message names what it lacks."""


class Faster:
    """Whether threads shall step, by timing both ways: what holds the interpreter's lock for long only loses by them."""

    def __init__(self):
        self.calls, self.lasted, self.best = [0, 0], [0.0, 0.0], [float("inf")] * 2  # without threads, with

    def threads(self) -> bool:
        """Which way to take next."""
        for way in (False, True):
            if self.calls[way] < TIMED or self.lasted[way] < LASTED:
                return way
        return self.best[True] < SLACK * self.best[False]

    def took(self, way: bool, seconds: float, environments: int) -> None:
        """What a call that stepped so many environments took."""
        self.calls[way] += 1
        self.lasted[way] += seconds
        self.best[way] = min(self.best[way], seconds / environments)
        if sum(self.calls) >= AGAIN:
            self.__init__()


class GymBatch:
    """N copies of a registered Gymnasium environment with Box (or Dict of Box) or Discrete observations, Box or Discrete actions.

    Discrete(n) is one-hot, [n]: the largest entry of an action is the one that is taken. Threads step them: MuJoCo lets go
    of the interpreter's lock in mj_step, and nothing is pickled. `success_key` names the entry of `info`; by default
    "success", else "is_success"; where `reward` is "env" the environment may be silent about success.
    """

    reward = "success"

    def __init__(
        self,
        id: str,
        max_steps: int | None = None,
        success_key: str | None = None,
        num_envs: int = 32,
        threads: int = 2,
        kwargs: dict[str, Any] | None = None,
    ):
        import flywheel_sim
        import gymnasium as gym

        flywheel_sim.register()
        if id not in gym.registry and ":" not in id:  # else they are not needed: seconds, and their own warnings
            for package in ("gymnasium_robotics", "metaworld"):
                try:
                    gym.register_envs(__import__(package))
                except ImportError:
                    continue
        self._kwargs = dict(kwargs or {})
        if max_steps:
            self._kwargs["max_episode_steps"] = max_steps
        try:
            self._envs = [gym.make(id, **self._kwargs) for _ in range(num_envs)]
        except gym.error.Error as error:
            raise TaskError(
                f"task.id={id!r} is not a registered Gymnasium environment here: {error}. Adroit, Fetch and "
                "Kitchen come with the extra [adroit], Meta-World with [metaworld]"
            ) from error
        env = self._envs[0]
        self.task, self.num_envs, self.success_key = id, num_envs, success_key
        obs, action = env.observation_space, env.action_space
        self.one_hot = obs if isinstance(obs, gym.spaces.Discrete) else None
        self.discrete = action if isinstance(action, gym.spaces.Discrete) else None
        obs, action = (_box(space) for space in (obs, action))
        boxes = list(obs.spaces.values()) if isinstance(obs, gym.spaces.Dict) else [obs]
        if not boxes or not all(isinstance(box, gym.spaces.Box) for box in boxes):
            raise TaskError(
                f"{id}: observation space {obs} is neither Box, Dict of Box nor Discrete; flywheel learns from arrays"
            )
        if not isinstance(action, gym.spaces.Box):
            raise TaskError(
                f"{id}: action space {action} is neither Box nor Discrete; flywheel's policies make one of these"
            )
        if not (np.isfinite(action.low).all() and np.isfinite(action.high).all()):
            raise TaskError(f"{id}: action space {action} has no finite limits; wrap it so that it has")
        self._keys = list(obs.spaces) if isinstance(obs, gym.spaces.Dict) else None
        self.obs_dim = int(sum(np.prod(box.shape) for box in boxes))
        self.action_dim = int(np.prod(action.shape))
        self._action_shape = action.shape
        self.action_low, self.action_high = action.low.ravel(), action.high.ravel()
        self.max_steps = max_steps or (env.spec.max_episode_steps if env.spec else None)
        if not self.max_steps:
            raise TaskError(f"{id} has no step limit of its own; give one with task.max_steps=200")
        self.fps = float(env.unwrapped.metadata.get("render_fps") or 0)
        self._threads = min(threads, num_envs)
        self._pool = ThreadPoolExecutor(self._threads - 1) if self._threads > 1 else None
        self._faster = Faster()

    def _flat(self, obs) -> np.ndarray:
        if self.one_hot is not None:
            return (np.arange(self.obs_dim) == obs - self.one_hot.start).astype(np.float32)
        if self._keys is None:
            return np.array(obs, np.float32).ravel()
        return np.concatenate([np.asarray(obs[key], np.float32).ravel() for key in self._keys])

    def _success(self, info: dict[str, Any]) -> bool:
        key = self.success_key or ("success" if "success" in info else "is_success")
        if key in info:
            return bool(info[key])
        if self.reward == "env" and not self.success_key:
            return False
        raise TaskError(
            f"{self.task}: info has no {self.success_key or 'success or is_success'!r}; it has: {', '.join(info) or 'nothing'}. "
            "Name the right one with task.success_key=..., or learn from the environment's own reward: task.reward=env"
        )

    def reset(self, seeds: Sequence[int]) -> np.ndarray:
        """Begin an episode in each environment; [N, Do] float32."""
        return np.stack([self.reset_at(i, seed) for i, seed in enumerate(seeds)])

    def reset_at(self, i: int, seed: int, state: dict[str, np.ndarray] | None = None) -> np.ndarray:
        """Begin an episode in environment `i`, at its own random start or at `state`; [Do] float32."""
        obs = self._flat(self._envs[i].reset(seed=int(seed))[0])
        return obs if state is None else self.set_state(i, state)

    def step(self, action: np.ndarray, active: Iterable[int] | None = None):
        """action [N, Da] -> obs [N, Do], reward [N], terminated [N], truncated [N], info; rows not `active` stay 0."""
        active = list(range(self.num_envs) if active is None else active)
        obs = np.zeros((self.num_envs, self.obs_dim), np.float32)
        reward = np.zeros(self.num_envs)
        terminated, truncated, success = np.zeros((3, self.num_envs), bool)

        def some(rows):
            for i in rows:
                o, reward[i], terminated[i], truncated[i], info = self._envs[i].step(
                    self.discrete.start + action[i].argmax() if self.discrete else action[i].reshape(self._action_shape)
                )
                obs[i], success[i] = self._flat(o), self._success(info)

        choice = self._pool is not None and len(active) > 1
        began, together = time.perf_counter(), choice and self._faster.threads()
        if together:
            rows = iter(active)  # whichever thread is free takes the next, this one too
            others = [self._pool.submit(some, rows) for _ in range(self._threads - 1)]
            try:
                some(rows)
            finally:
                wait(others)  # nobody may close an environment that is being stepped
            for other in others:
                other.result()
        else:
            some(active)
        if choice:
            self._faster.took(together, time.perf_counter() - began, len(active))
        return obs, reward, terminated, truncated, {"success": success}

    def _mujoco(self, i: int):
        env = self._envs[i].unwrapped
        if not (hasattr(env, "model") and hasattr(env, "data") and hasattr(env, "_get_obs")):
            raise TaskError(f"{self.task} cannot set its state: it is not a MuJoCo environment of Gymnasium's kind")
        return env

    def physics(self, i: int):
        """MuJoCo's (model, data) of environment `i`."""
        env = self._mujoco(i)
        return env.model, env.data

    def get_state(self, i: int) -> dict[str, np.ndarray]:
        """Everything that decides what environment `i` does next."""
        import mujoco

        env = self._mujoco(i)
        physics = np.empty(mujoco.mj_stateSize(env.model, mujoco.mjtState.mjSTATE_INTEGRATION))
        mujoco.mj_getState(env.model, env.data, physics, mujoco.mjtState.mjSTATE_INTEGRATION)
        return {"physics": physics, "body_pos": env.model.body_pos.copy(), "site_pos": env.model.site_pos.copy()}

    def set_state(self, i: int, state: dict[str, np.ndarray]) -> np.ndarray:
        """Put environment `i` into `state`; returns its observation [Do].

        `state` comes from `get_state`, or from a recording: qpos, qvel, body_pos.NAME [3] for bodies that a reset
        places, and site_pos.NAME [3], where a site was seen: entries of qpos that are NaN are solved from it.
        """
        import mujoco

        env = self._mujoco(i)
        model, data = env.model, env.data
        if "physics" in state:
            model.body_pos[:], model.site_pos[:] = state["body_pos"], state["site_pos"]
            mujoco.mj_setState(model, data, state["physics"], mujoco.mjtState.mjSTATE_INTEGRATION)
            mujoco.mj_forward(model, data)
            return self._flat(env._get_obs())
        for key, value in state.items():
            if key.startswith("body_pos."):
                model.body(key.removeprefix("body_pos.")).pos[:] = value
        unknown = np.flatnonzero(np.isnan(state["qpos"]))
        data.qpos[:] = np.nan_to_num(state["qpos"])
        data.qvel[:] = state["qvel"]
        for key, value in state.items():
            if key.startswith("site_pos.") and len(unknown):
                site = model.site(key.removeprefix("site_pos.")).id
                for _ in range(10):
                    mujoco.mj_forward(model, data)
                    jacobian = np.zeros((3, model.nv))
                    mujoco.mj_jacSite(model, data, jacobian, None, site)
                    move = np.linalg.lstsq(jacobian[:, unknown], value - data.site_xpos[site], rcond=None)[0]
                    data.qpos[unknown] += move
        mujoco.mj_forward(model, data)
        return self._flat(env._get_obs())

    def frame(self, i: int, width: int = 320, height: int = 240) -> np.ndarray:
        """What environment `i` looks like now; [H, W, 3] uint8. RuntimeError without OpenGL, or where MuJoCo does not make it."""
        import mujoco

        env = self._envs[i].unwrapped
        if not hasattr(env, "model"):
            raise RuntimeError(f"{self.task} is not a MuJoCo environment; only these are drawn")
        try:
            if not hasattr(self, "_renderer"):
                self._renderer = mujoco.Renderer(env.model, height, width)
            self._renderer.update_scene(env.data, camera=-1)
            return self._renderer.render()
        except Exception as error:
            raise RuntimeError(f"no OpenGL here to draw with ({error}); install EGL or set MUJOCO_GL=osmesa") from error

    def close(self) -> None:
        if hasattr(self, "_renderer"):
            self._renderer.close()
        for env in self._envs:
            env.close()
        if self._pool:
            self._pool.shutdown()


def _box(space):
    """Discrete(n) as the box of one-hot vectors; any other space as it is."""
    import gymnasium as gym

    return gym.spaces.Box(0.0, 1.0, (int(space.n),), np.float32) if isinstance(space, gym.spaces.Discrete) else space
