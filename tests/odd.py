"""Environments that do what no task may do, at seeds that are told (`at`), for tests of how a rollout bears it."""

from __future__ import annotations

import ctypes
import os
import signal
import threading

import gymnasium as gym
import numpy as np
from toy import Reach


class Odd(Reach):
    """`does` something wrong in the episodes of the seeds in `at`, at step `when` (-1: at reset). `at=None`: in
    every one."""

    def __init__(self, does: str = "nothing", at=None, when: int = 2):
        super().__init__()
        self.does, self.at_seeds, self.when, self.odd = does, at, when, False

    def reset(self, *, seed=None, options=None):
        obs, info = super().reset(seed=seed)
        self.odd, self.t = self.at_seeds is None or seed in self.at_seeds, 0
        if self.odd and self.when < 0:
            return self.wrong(obs, 0.0, {})[0], info
        return obs, info

    def step(self, action):
        obs, reward, terminated, truncated, info = super().step(action)
        if self.odd and self.t == self.when:
            obs, reward, info = self.wrong(obs, reward, info)
        self.t += 1
        return obs, reward, terminated, truncated, info

    def wrong(self, obs, reward, info):
        said = {
            "success_nan": np.nan,
            "success_text": "yes",
            "success_array": np.array([True, False]),
            "success_half": 0.5,
        }
        if self.does in said:
            info = {"success": said[self.does]}
        elif self.does == "raise":
            raise ValueError("the joint is gone")
        elif self.does == "exit":
            raise SystemExit(3)
        elif self.does == "nan":
            obs[1] = np.nan
        elif self.does == "reward":
            reward = np.inf
        elif self.does == "narrow":
            obs = obs[:1]
        elif self.does == "wide":
            obs = np.zeros(9, np.float32)
        elif self.does == "wait":
            threading.Event().wait()
        elif self.does == "loop":
            while True:
                pass
        elif self.does == "hold_lock":  # C code that never lets go of the interpreter's lock
            ctypes.PyDLL(None).pause()
        elif self.does == "orphan":
            os.kill(os.getppid(), signal.SIGKILL)
            ctypes.PyDLL(None).pause()
        elif self.does == "die":
            os.kill(os.getpid(), signal.SIGSEGV)
        return obs, reward, info


class Seedless(Reach):
    """Ignores its seed, as Meta-World's MT1 does."""

    def reset(self, *, seed=None, options=None):
        super().reset(seed=int.from_bytes(os.urandom(4)))
        return self._obs(), {}


class Camera(Reach):
    """A Dict with a picture in it: a bright spot where the point is, `float` for one of another kind."""

    metadata = {"render_modes": ["rgb_array"], "render_fps": 10}

    def __init__(self, render_mode=None, flat: bool = False, float: bool = False):
        super().__init__()
        self.render_mode, box = render_mode, gym.spaces.Box
        spaces = {"agent_pos": box(-9, 9, (2,), np.float32), "goal": box(-9, 9, (2,), np.float32)}
        if not flat:
            spaces["pixels"] = box(0, 255, (96, 96, 3), np.float32 if float else np.uint8)
        self.observation_space = gym.spaces.Dict(spaces)

    def _obs(self):
        seen = {"goal": self.goal.astype(np.float32), "agent_pos": self.at.astype(np.float32)}
        if "pixels" not in self.observation_space.spaces:
            return seen
        picture = np.zeros((96, 96, 3), np.uint8)
        x, y = np.clip(48 + 20 * self.at, 0, 95).astype(int)
        picture[y, x] = 255
        return seen | {"pixels": picture}

    def render(self):
        return np.full((48, 64, 3), 100, np.uint8) if self.render_mode else None


class Falls(Reach):
    """Ends with a fall (no success) after 4 steps; says `succeed`, and with `name` something else."""

    def __init__(self, name: str = "succeed"):
        super().__init__()
        self.name = name

    def reset(self, *, seed=None, options=None):
        self.t = 0
        return super().reset(seed=seed)

    def step(self, action):
        obs, reward, _, _, info = super().step(action)
        self.t += 1
        return obs, reward, self.t == 4, False, {self.name: info["success"]}


class Position(Reach):
    """Actions are positions in 0.5..1.5: zero is none, and moves; one dimension is a thousand times as wide."""

    def __init__(self):
        super().__init__()
        self.action_space = gym.spaces.Box(np.float32([0.5, 0]), np.float32([1.5, 1000]))

    def hold_action(self):
        return np.array([0.75, 100.0])


for _cls in (Odd, Seedless, Camera, Falls, Position):
    if (_id := f"{_cls.__name__}-v0") not in gym.registry:
        gym.register(_id, entry_point=_cls, max_episode_steps=20)
