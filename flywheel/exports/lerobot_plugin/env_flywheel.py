"""Tasks of flywheel under lerobot-eval: `--env.type=flywheel --env.task=lift [--env.cameras='{"wrist": 64}']`.

An episode is the one that `flywheel evaluate` plays on its seed: same start, same guard, same rule of success. It ends
where success is decided; info["is_success"] says it, and the text of the task has the seed, so that a policy of
flywheel draws the noise of that episode."""

from __future__ import annotations

from dataclasses import dataclass

import gymnasium as gym
import numpy as np
import yaml
from lerobot.configs.types import FeatureType, PolicyFeature
from lerobot.envs.configs import EnvConfig

from flywheel import env as envs
from flywheel import success
from flywheel.args import Task, build
from flywheel.env.guard import StepGuard

ID = "flywheel/Lerobot-v0"
HERE = np.array([0])


@EnvConfig.register_subclass("flywheel")
@dataclass
class FlywheelEnv(EnvConfig):
    """`task` of sim/; `cameras` and `options` (further keys of task=, for gym: id, max_steps ...) as YAML reads them:
    draccus has no free dicts, and makes text of them. Without `render` the frames of LeRobot's videos are black."""

    task: str | None = "lift"
    cameras: str = "{}"
    options: str = "{}"
    render: bool = True

    def __post_init__(self) -> None:
        one = Playing(**self.gym_kwargs)
        self.fps = int(one.metadata["render_fps"])
        size, action = one.batch.obs_dim, one.batch.action_dim
        kinds = {"agent_pos": FeatureType.STATE, "environment_state": FeatureType.ENV}
        self.features = {key: PolicyFeature(kind, (size,)) for key, kind in kinds.items()}
        self.features |= {f"pixels/{k}": PolicyFeature(FeatureType.VISUAL, s) for k, s in one.cameras.items()}
        self.features["action"] = PolicyFeature(FeatureType.ACTION, (action,))
        self.features_map = {"agent_pos": "observation.state", "environment_state": "observation.environment_state"}
        self.features_map |= {f"pixels/{k}": f"observation.images.{k}" for k in one.cameras} | {"action": "action"}
        one.close()

    @property
    def package_name(self) -> str:
        return "lerobot_policy_flywheel"

    @property
    def gym_id(self) -> str:
        return ID

    @property
    def gym_kwargs(self) -> dict:
        told, cameras = ({} if not text else yaml.safe_load(text) for text in (self.options, self.cameras))
        told = {"name": self.task, **told, **({"cameras": cameras} if cameras else {})}
        return {"told": told, "shown": self.render}


class Playing(gym.Env):
    """One environment of a task: observes {agent_pos, environment_state [Do], pixels {name: [H, W, 3]}}."""

    def __init__(self, told: dict, shown: bool = True):
        self.batch, self.shown = envs.make(build(Task, told, "task."), 1, 1), shown
        self.guard = StepGuard.of(self.batch)
        self.metadata = {"render_modes": ["rgb_array"], "render_fps": self.batch.fps or 20}
        self.render_mode, self.cameras = "rgb_array", dict(getattr(self.batch, "cameras", None) or {})
        self._max_episode_steps, self.seed = self.batch.max_steps, 0
        self.kind, self.needed = success.parse(self.batch.success)
        numbers = gym.spaces.Box(-np.inf, np.inf, (self.batch.obs_dim,), np.float32)
        spaces = {"agent_pos": numbers, "environment_state": numbers}
        if self.cameras:
            pixels = {name: gym.spaces.Box(0, 255, shape, np.uint8) for name, shape in self.cameras.items()}
            spaces["pixels"] = gym.spaces.Dict(pixels)
        self.observation_space = gym.spaces.Dict(spaces)
        low, high = np.asarray(self.batch.action_low, np.float32), np.asarray(self.batch.action_high, np.float32)
        self.action_space = gym.spaces.Box(low, high)

    @property
    def task_description(self) -> str:
        """What is to be done, and on which seed."""
        return f"{self.batch.task}, seed {self.seed}"

    @property
    def task(self) -> str:
        """The same: LeRobot 0.6 asks environments in processes of their own for both, and one that lacks either
        ends."""
        return self.task_description

    def reset(self, *, seed: int | None = None, options: dict | None = None):
        super().reset(seed=seed)
        self.seed = int(self.np_random.integers(2**31)) if seed is None else int(seed)
        self.guard.forget(0)
        self.obs = np.array(self.batch.reset_at(0, self.seed, None), np.float32)
        self.guard.begin(0)
        self.flags: list[bool] = []
        return self._observed(), {"is_success": False}

    def step(self, action):
        executed = self.guard(np.asarray(action, np.float32)[None], HERE, self.obs[None])
        obs, reward, ended, truncated, info = self.batch.step(executed, HERE)
        self.obs = np.array(obs[0], np.float32)
        self.flags.append(bool(info["success"][0]))
        flags = np.array(self.flags)
        decided = self.kind != "last" and success.decide(flags, self.batch.success) is not None
        last = bool(truncated[0]) or len(flags) >= self.batch.max_steps or bool(self.guard.ends(HERE)[0])
        won = success.recorded(flags, self.batch.success, label=bool(ended[0]) and bool(flags[-1])) is not None
        told = {"is_success": won and (decided or last or bool(ended[0]))}
        return self._observed(), float(reward[0]), bool(ended[0]) or decided, last, told

    def _observed(self) -> dict:
        made = {"agent_pos": self.obs, "environment_state": self.obs}
        if self.cameras:
            made["pixels"] = {name: np.array(frames[0]) for name, frames in self.batch.look(HERE).items()}
        return made

    def render(self) -> np.ndarray:
        """A frame [240, 320, 3] for LeRobot's videos; black where nothing draws."""
        try:
            return np.array(self.batch.frame(0, 320, 240)) if self.shown else np.zeros((64, 64, 3), np.uint8)
        except (RuntimeError, ValueError, AttributeError):
            self.shown = False
            return np.zeros((240, 320, 3), np.uint8)

    def close(self) -> None:
        self.batch.close()


if ID not in gym.registry:
    gym.register(ID, entry_point="lerobot_policy_flywheel.env_flywheel:Playing", order_enforce=False)
