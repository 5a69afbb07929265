"""Any registered Gymnasium environment as a batch: copies of it, stepped by threads."""

from __future__ import annotations

import re
import threading
import time
import weakref
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from queue import SimpleQueue
from typing import Any

import numpy as np

from flywheel import obs as observed
from flywheel.env.faults import Fault, cause_of, truth
from flywheel.env.ids import find, identity, title
from flywheel.env.spaces import TaskError, box, parts, pictured, units

__all__ = ["Faster", "GymBatch", "TaskError", "find", "identity", "title"]

SUCCESS = ("success", "is_success", "succeed")  # what environments call it in `info`
NONE = "none"  # task.success_key: the environment says nothing about success, whatever its keys look like
MAKING = 10  # making an environment may take so many times as long as a step

TIMED, LASTED = 8, 0.05  # calls without threads at first, and seconds, and then as many with, before one way is taken
SLACK = (
    1.25  # threads that are so much slower are taken all the same: they fall into step for a while, and out of it again
)
AGAIN = 5000  # calls after which both are timed again: a busy neighbour may have come or gone


class Faster:
    """Whether threads shall step, by timing both ways: what holds the interpreter's lock for long only loses by
    them."""

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


class Helper(threading.Thread):
    """A thread that calls what lies in its inbox, (function, argument), and puts the exception, or None, into its
    outbox."""

    def __init__(self):
        super().__init__(daemon=True)
        self.inbox, self.outbox = SimpleQueue(), SimpleQueue()
        self.start()

    def run(self) -> None:
        while job := self.inbox.get():
            try:
                job[0](job[1])
                error = None
            except BaseException as caught:
                error = caught
            job = None  # what it holds may go
            self.outbox.put(error)


class GymBatch:
    """N copies of a registered Gymnasium environment with Box, Dict of Box or Discrete observations, Box or Discrete
    actions. A Dict's boxes of [H, W, 3] uint8 are cameras: `look` gives what they saw last.

    Discrete(n) is one-hot, [n]: the largest entry of an action is the one that is taken. Of a Dict, `obs_keys` names
    the keys to take, in order (default: all, in the space's). Threads step them: MuJoCo lets go of the interpreter's
    lock in mj_step, and nothing is pickled. `success_key` names the entry of `info`, by default the first there is of
    SUCCESS; where `reward` is "env" the environment may be silent about success. A copy is made when it is first
    needed, and anew after a fault.

    `marks` [N] float64, if given, says since when each environment has been stepped (time.monotonic(), 0: it is not);
    `limit` is how long that may take, for those who watch.
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
        obs_keys: Sequence[str] | None = None,
        reward: str = "success",
        limit: float = 0.0,
        marks: np.ndarray | None = None,
    ):
        find(id)
        self.id, self.task, self.reward = id, title(id, kwargs, obs_keys), reward
        self._kwargs = {**(kwargs or {}), **({"max_episode_steps": max_steps} if max_steps else {})}
        self.num_envs, self.success_key, self.limit = num_envs, success_key, limit
        self.marks = np.zeros(num_envs) if marks is None else marks
        self._envs: list[Any] = [None] * num_envs
        self._infos: set[tuple[str, ...]] = set()
        try:
            env = self._env(0)
        except (TaskError, KeyboardInterrupt):
            raise
        except BaseException as error:
            raise TaskError(
                f"task.id={id!r} cannot be made with task.kwargs={kwargs or {}}: {cause_of(error)}"
            ) from error
        self._look(env, obs_keys)
        self.max_steps = max_steps or (env.spec.max_episode_steps if env.spec else None)
        if not self.max_steps:
            raise TaskError(f"{id} has no step limit of its own; give one with task.max_steps=200")
        metadata = env.unwrapped.metadata or {}
        self.fps = float(metadata.get("render_fps") or 0)
        self.success = metadata.get("success", "any")  # which steps count (flywheel.success)
        if hasattr(env.unwrapped, "hold_action"):
            self.hold_action = self._hold_action
        alone = pictured(env.observation_space)  # who draws: OpenGL of several threads at once may end the process
        self._threads = 1 if alone else min(threads, num_envs)
        self._helpers = [Helper() for _ in range(self._threads - 1)]
        self._faster = Faster()
        weakref.finalize(self, _stop, self._helpers)

    def _look(self, env, obs_keys: Sequence[str] | None) -> None:
        """What the environment's spaces say; TaskError for what cannot be learnt from."""
        import gymnasium as gym

        obs, action = env.observation_space, env.action_space
        self.one_hot = obs if isinstance(obs, gym.spaces.Discrete) else None
        self.discrete = action if isinstance(action, gym.spaces.Discrete) else None
        obs, action = (box(space) for space in (obs, action))
        (boxes, self.cameras), metadata = parts(self.id, obs, obs_keys), env.unwrapped.metadata or {}
        self.pictures = {key: np.zeros((self.num_envs, *shape), np.uint8) for key, shape in self.cameras.items()}
        if not isinstance(action, gym.spaces.Box):
            raise TaskError(
                f"{self.id}: action space {action} is neither Box nor Discrete; flywheel's policies make one of these"
            )
        if not (np.isfinite(action.low).all() and np.isfinite(action.high).all()):
            raise TaskError(f"{self.id}: action space {action} has no finite limits; wrap it so that it has")
        self.obs_shapes = {key: space.shape for key, space in boxes.items()}
        self.obs_dim, self.action_dim = observed.size(self.obs_shapes), int(np.prod(action.shape))
        self._keyed = isinstance(obs, gym.spaces.Dict)
        named = {} if self._keyed or self.one_hot is not None else metadata
        self.obs_names = list(named.get("obs_names") or observed.names(self.obs_shapes))
        self.obs_units = units(self.id, obs, self.obs_shapes, metadata.get("obs_units"))
        if self.one_hot is not None:
            self.obs_names = [f"obs is {self.one_hot.start + i}" for i in range(self.one_hot.n)]
        if len(self.obs_names) != self.obs_dim:
            found = f"metadata's obs_names has {len(self.obs_names)} names"
            raise TaskError(f"{self.id}: {found}; expected {self.obs_dim}, one a number observed")
        self._action_shape = action.shape
        self.action_low, self.action_high = action.low.ravel(), action.high.ravel()

    def _env(self, i: int):
        """Environment `i`, made where it is not there yet."""
        if self._envs[i] is None:
            import gymnasium as gym

            began, self.marks[i] = self.marks[i], time.monotonic() + (MAKING - 1) * self.limit
            try:
                self._envs[i] = gym.make(self.id, **self._kwargs)
            except gym.error.Error as error:
                raise TaskError(
                    f"task.id={self.id!r} is not a registered Gymnasium environment here: {error}. Adroit, Fetch and "
                    "Kitchen come with the extra [adroit], Meta-World with [metaworld]; one of your own is "
                    "task.id=module:id, where importing `module` (an installed package, or a file in the current "
                    "folder) registers it"
                ) from error
            finally:
                self.marks[i] = began
        return self._envs[i]

    def _hold_action(self, i: int) -> np.ndarray:
        """The action [Da] that moves environment `i` nowhere, where it offers one."""
        return np.asarray(self._env(i).unwrapped.hold_action(), np.float32).ravel()

    def _drop(self, i: int) -> None:
        """Give environment `i` up: the next reset makes it anew."""
        env, self._envs[i] = self._envs[i], None
        with suppress(Exception):  # it is broken: what it says to that does not matter
            env.close()

    def look(self, rows: Sequence[int]) -> dict[str, np.ndarray]:
        """What the cameras saw last in the environments `rows` [N]: {camera: [N, H, W, 3] uint8}."""
        return {key: frames[np.asarray(rows, np.intp)] for key, frames in self.pictures.items()}

    def _flat(self, obs, i: int) -> np.ndarray:
        """What environment `i` observes as [Do] float32, its pictures kept; Fault where it has not got the shapes that
        the space promised."""
        for key, frames in self.pictures.items():
            picture = np.asarray(obs.get(key) if isinstance(obs, Mapping) else None)
            if picture.shape != frames.shape[1:] or picture.dtype != np.uint8:
                found, expected = list(picture.shape), list(frames.shape[1:])
                raise Fault(f"the picture {key} is {found} {picture.dtype}; expected {expected} uint8")
            frames[i] = picture
        if self.one_hot is not None:
            flat = (np.arange(self.obs_dim) == obs - self.one_hot.start).astype(np.float32)
            if flat.sum() != 1:
                raise Fault(f"the observation is {obs!r:.40}; expected one of {self.one_hot}")
            return flat
        if not self._keyed:
            flat = np.array(obs, np.float32).ravel()
            if len(flat) != self.obs_dim:
                raise Fault(f"the observation has {len(flat)} numbers; expected {self.obs_dim}")
            return flat
        try:
            rows, single = observed.pack(obs, self.obs_shapes)
        except ValueError as error:
            raise Fault(f"the {error}") from error
        if not single:
            raise Fault(f"the observation has rows of {observed.listed(self.obs_shapes)}; expected one")
        return rows[0].copy()

    def _success(self, info: dict[str, Any]) -> bool:
        for key in (self.success_key,) if self.success_key else SUCCESS:
            if key in info:
                return truth(info[key], f"info[{key!r}]")
        if self.success_key == NONE or (self.reward == "env" and not self.success_key and self._silent(tuple(info))):
            return False
        raise TaskError(
            f"{self.task}: info has no {self.success_key or ', '.join(SUCCESS)!r}; it has: "
            f"{', '.join(info) or 'nothing'}. "
            "Name the right one with task.success_key=..., or learn from the environment's own reward: task.reward=env"
        )

    def _silent(self, keys: tuple[str, ...]) -> bool:
        """Whether none of info's keys may mean success; TaskError where one looks like it, for it would count as 0."""
        if keys not in self._infos:
            if like := [key for key in keys if re.search("succe|solved|goal_achieved", str(key), re.I)]:
                raise TaskError(
                    f"{self.task}: info has {like[0]!r}, which looks like success. Say which it is: "
                    f"task.success_key={like[0]}, or "
                    f"task.success_key={NONE} where the environment says nothing about success"
                )
            self._infos.add(keys)
        return True

    def reset(self, seeds: Sequence[int]) -> np.ndarray:
        """Begin an episode in each environment; [N, Do] float32."""
        return np.stack([self.reset_at(i, seed) for i, seed in enumerate(seeds)])

    def reset_at(self, i: int, seed: int, state: dict[str, np.ndarray] | None = None) -> np.ndarray:
        """Begin an episode in environment `i`, at its own random start or at `state`; [Do] float32. Fault where it
        cannot."""
        self.marks[i] = time.monotonic()
        try:
            obs = self._flat(self._env(i).reset(seed=int(seed))[0], i)
            return obs if state is None else self.set_state(i, state)
        except (TaskError, KeyboardInterrupt):
            raise
        except BaseException as error:
            self._drop(i)
            raise Fault(cause_of(error)) from error
        finally:
            self.marks[i] = 0

    def step(self, action: np.ndarray, active: Iterable[int] | None = None):
        """action [N, Da] -> obs [N, Do], reward [N], terminated [N], truncated [N], info; rows not `active` stay 0.

        info["faults"] {i: cause} names environments that did what no task may do; their rows mean nothing.
        """
        active = list(range(self.num_envs) if active is None else active)
        obs = np.zeros((self.num_envs, self.obs_dim), np.float32)
        reward = np.zeros(self.num_envs)
        terminated, truncated, success = np.zeros((3, self.num_envs), bool)
        faults: dict[int, str] = {}
        out = (obs, reward, terminated, truncated, success)

        def one(i: int) -> None:
            obs, reward, terminated, truncated, success = out
            o, reward[i], ended, cut, info = self._envs[i].step(
                self.discrete.start + action[i].argmax() if self.discrete else action[i].reshape(self._action_shape)
            )
            obs[i], success[i] = self._flat(o, i), self._success(info)
            terminated[i] = ended if ended is True or ended is False else truth(ended, "terminated")
            truncated[i] = cut if cut is True or cut is False else truth(cut, "truncated")

        def some(rows) -> None:
            for i in rows:
                self.marks[i] = time.monotonic()
                try:
                    one(i)
                except (TaskError, KeyboardInterrupt):
                    raise
                except BaseException as error:
                    faults[i] = cause_of(error)
                    self._drop(i)
                finally:
                    self.marks[i] = 0

        self._share_out(some, active)
        return obs, reward, terminated, truncated, {"success": success, "faults": faults}

    def _share_out(self, some, active: list[int]) -> None:
        """Call some(rows) until all of `active` are done, by threads where these are faster."""
        choice = bool(self._helpers) and len(active) > 1
        began, together = time.perf_counter(), choice and self._faster.threads()
        if together:
            rows = iter(active)  # whichever thread is free takes the next, this one too
            for helper in self._helpers:
                helper.inbox.put((some, rows))
            try:
                some(rows)
            finally:  # nobody may close an environment that is being stepped
                errors = [helper.outbox.get() for helper in self._helpers]
            for error in filter(None, errors):
                raise error
        else:
            some(active)
        if choice:
            self._faster.took(together, time.perf_counter() - began, len(active))

    def _mujoco(self, i: int):
        env = self._env(i).unwrapped
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
            return self._flat(env._get_obs(), i)
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
        return self._flat(env._get_obs(), i)

    @property
    def draws(self) -> str | None:
        """How `frame` makes a picture: "mujoco", "render" (in mode rgb_array), or None: `drawing` says what to do."""
        env = self._env(0)
        if env.render_mode == "rgb_array":
            return "render"
        return "mujoco" if hasattr(env.unwrapped, "model") and hasattr(env.unwrapped, "data") else None

    def drawing(self) -> dict[str, Any] | None:
        """What kwargs an environment needs beside its own to be drawn: {} for none; None where it cannot be."""
        if self.draws:
            return {}
        modes = (self._env(0).unwrapped.metadata or {}).get("render_modes") or []
        return {"render_mode": "rgb_array"} if "rgb_array" in modes else None

    def frame(self, i: int, width: int = 320, height: int = 240) -> np.ndarray:
        """What environment `i` looks like now; [H, W, 3] uint8, of its own size where it draws itself. RuntimeError
        where nothing can."""
        how, env = self.draws, self._env(i)
        if how == "render":
            picture = np.asarray(env.render())
            if picture.ndim != 3 or picture.shape[2] != 3 or picture.dtype != np.uint8:
                raise RuntimeError(f"{self.task} draws {list(picture.shape)} {picture.dtype}; expected [H, W, 3] uint8")
            return picture
        if not how:
            raise RuntimeError(f"{self.task} cannot be drawn: its metadata's render_modes name no rgb_array")
        from flywheel_sim._render import opened

        env = env.unwrapped
        try:
            if not hasattr(self, "_renderer"):
                self._renderer = opened(env.model, width, height)
            self._renderer.update_scene(env.data, camera=-1)
            return self._renderer.render()
        except (ValueError, TypeError) as error:
            raise RuntimeError(f"{self.task} cannot be drawn: {error}") from error

    def close(self) -> None:
        if hasattr(self, "_renderer"):
            self._renderer.close()
        for i, env in enumerate(self._envs):
            if env is not None:
                self._drop(i)
        _stop(self._helpers)


def _stop(helpers: list[Helper]) -> None:
    for helper in helpers:
        helper.inbox.put(None)
