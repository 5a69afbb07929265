"""A toy task made for tests: a point is to reach a goal. Demonstrations by a sloppy operator, in robomimic's layout.

Registered on import, so that `task=gym task.id=toy:Reach-v0` finds it. Learning on it takes seconds.
"""

from __future__ import annotations

from typing import ClassVar

import gymnasium as gym
import h5py
import numpy as np


class Reach(gym.Env):
    """obs: position [2], goal [2]; action: velocity [2] in -1..1; success within 0.1 of the goal; 20 steps."""

    metadata = {"render_modes": [], "render_fps": 10}

    def __init__(self):
        self.observation_space = gym.spaces.Box(-np.inf, np.inf, (4,), np.float32)
        self.action_space = gym.spaces.Box(-1, 1, (2,), np.float32)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.at = self.np_random.uniform(-1, 1, 2)
        self.goal = self.np_random.uniform(-1, 1, 2)
        return self._obs(), {}

    def step(self, action):
        self.at = self.at + 0.15 * np.clip(action, -1, 1)
        distance = float(np.linalg.norm(self.at - self.goal))
        return self._obs(), -distance, False, False, {"success": distance < 0.1}

    def _obs(self):
        return np.concatenate([self.at, self.goal]).astype(np.float32)


class Wide(Reach):
    """Sees the same, and 496 zeros."""

    def __init__(self):
        super().__init__()
        self.observation_space = gym.spaces.Box(-np.inf, np.inf, (500,), np.float32)

    def _obs(self):
        return np.pad(super()._obs(), (0, 496))


class Silent(Reach):
    """Says nothing about success."""

    def step(self, action):
        obs, reward, terminated, truncated, _ = super().step(action)
        return obs, reward, terminated, truncated, {"elsewhere": 1}


class Binary(Reach):
    def __init__(self):
        super().__init__()
        self.action_space = gym.spaces.MultiBinary(3)


class Keyed(Reach):
    """As Reach, with a Dict observation; Gymnasium puts its keys into the order goal, position."""

    metadata: ClassVar = {**Reach.metadata, "obs_units": {"position": "m", "goal": "m"}}

    def __init__(self):
        super().__init__()
        parts = ("position", "goal")
        self.observation_space = gym.spaces.Dict({key: gym.spaces.Box(-9, 9, (2,), np.float32) for key in parts})

    def _obs(self):
        return {"position": self.at.astype(np.float32), "goal": self.goal.astype(np.float32)}


class Corridor(gym.Env):
    """obs: the cell, one of 5; action: left or right; -1 a step until cell 4, which ends the episode; says nothing
    about success."""

    metadata = {"render_modes": [], "render_fps": 10}
    observation_space, action_space = gym.spaces.Discrete(5), gym.spaces.Discrete(2, start=1)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.cell = int(self.np_random.integers(3))
        return self.cell, {}

    def step(self, action):
        assert action in (1, 2)
        self.cell = max(0, self.cell + (1 if action == 2 else -1))
        return self.cell, -1.0, self.cell == 4, False, {}


for _id, _cls in (
    ("Reach-v0", Reach),
    ("Wide-v0", Wide),
    ("Silent-v0", Silent),
    ("Binary-v0", Binary),
    ("Keyed-v0", Keyed),
    ("Corridor-v0", Corridor),
):
    if _id not in gym.registry:
        gym.register(_id, entry_point=_cls, max_episode_steps=20)

TASK = ["task=gym", "task.id=toy:Reach-v0", "task.max_steps=20"]


def demonstrations(path, count: int = 12, first: int = 900_000_000) -> None:
    """Write `count` demonstrations: towards the goal with a wavering hand; obs keys `position` and `goal`."""
    env = Reach()
    with h5py.File(path, "w") as file:
        data = file.create_group("data")
        data.attrs["origin"] = "scripted:reach"
        for k in range(count):
            obs, _ = env.reset(seed=first + k)
            rng = np.random.default_rng(k)
            seen, acted, done, success = [obs], [], [], False
            while len(acted) < 20 and not success:
                aim = np.clip((obs[2:] - obs[:2]) * 4, -1, 1) + rng.normal(0, 0.3, 2)
                obs, _, _, _, info = env.step(np.clip(aim, -1, 1).astype(np.float32))
                acted.append(np.clip(aim, -1, 1).astype(np.float32))
                seen.append(obs)
                success = bool(info["success"])
                done.append(success)
            group = data.create_group(f"demo_{k}")
            group.attrs.update(seed=first + k, success=success)
            seen = np.array(seen)
            group["actions"], group["dones"] = np.array(acted), np.array(done)
            group["rewards"] = np.array(done, np.float32)
            for name, part in (("position", slice(0, 2)), ("goal", slice(2, 4))):
                group[f"obs/{name}"], group[f"next_obs/{name}"] = seen[:-1, part], seen[1:, part]
