"""A policy of flywheel behind LeRobot's interface. It acts by `Policy.act`: stacks, chunks and chance are its own.

Where LeRobot's `task` text ends in "seed N" (env_flywheel.py), an episode draws its noise from N: it is then the
episode that `flywheel evaluate` plays on this seed. Elsewhere slot i draws from i."""

from __future__ import annotations

import json
import re
from pathlib import Path

import torch
from lerobot.configs.policies import PreTrainedConfig
from lerobot.policies.pretrained import PreTrainedPolicy
from lerobot_policy_flywheel.configuration_flywheel import NOT_HERE, FlywheelConfig
from safetensors.torch import load_file, save_file
from torch import Tensor

from flywheel.policy import base

MODEL = "model.safetensors"
STATE, IMAGE = "observation.state", "observation.images."


class FlywheelPolicy(PreTrainedPolicy):
    """`inner` is the policy of flywheel that the configuration's spec describes."""

    config_class, name = FlywheelConfig, "flywheel"

    def __init__(self, config: FlywheelConfig, **_):
        super().__init__(config)
        self.inner = base.build(json.loads(config.spec)).eval()
        self.begun = False

    def reset(self) -> None:
        """An episode begins in every slot, with the next action that is asked for."""
        self.begun = False

    @torch.no_grad()
    def select_action(self, batch: dict, noise: Tensor | None = None, **_) -> Tensor:
        """{observation.state [B, D], observation.images.NAME [B, 3, H, W] in 0 ... 1, task} -> [B, Da]."""
        numbers = batch[STATE].detach().cpu().numpy()
        slots = range(len(numbers))
        if not self.begun:
            self.inner.reset(slots, seeds(batch.get("task"), len(numbers)))
            self.begun = True
        frames = {}
        for name in self.inner.cameras:
            pixels = batch[f"{IMAGE}{name}"].detach().cpu().permute(0, 2, 3, 1)
            frames[name] = (pixels * 255).round().clamp(0, 255).to(torch.uint8).numpy()
        return torch.from_numpy(self.inner.act(numbers, slots, **({"frames": frames} if frames else {})))

    def predict_action_chunk(self, batch: dict, **_) -> Tensor:
        raise ValueError("a policy of flywheel keeps the chunks of each slot itself; ask it with select_action")

    def forward(self, batch: dict) -> tuple:
        raise ValueError(NOT_HERE)

    def get_optim_params(self) -> dict:
        raise ValueError(NOT_HERE)

    # -- files: strict, and each tensor by itself (LeRobot loads what is missing as random) --------------------------

    def _save_pretrained(self, save_directory: Path, **_) -> None:
        self.config._save_pretrained(Path(save_directory))
        weights = {name: value.detach().cpu().clone() for name, value in self.inner.state_dict().items()}
        save_file(weights, Path(save_directory) / MODEL)

    @classmethod
    def from_pretrained(cls, pretrained_name_or_path: str | Path, *, config=None, **_) -> FlywheelPolicy:
        """The policy in a folder. ValueError for what is none: nothing is looked for on a hub."""
        folder = Path(pretrained_name_or_path)
        if not (folder / MODEL).exists():
            raise ValueError(f"{folder}: no {MODEL}; expected a folder of `flywheel export format=lerobot_policy`")
        made = cls(config if config is not None else PreTrainedConfig.from_pretrained(folder))
        made.inner.load_state_dict(load_file(folder / MODEL))
        return made.to(made.config.device).eval()


def seeds(task: str | list[str] | None, count: int) -> list[int]:
    """The seed of each of `count` slots, by what LeRobot tells of the task there."""
    texts = [task] * count if isinstance(task, str) or task is None else list(task)
    found = [re.search(r"seed (\d+)$", text or "") for text in texts]
    return [int(one[1]) if one else slot for slot, one in enumerate(found)]
