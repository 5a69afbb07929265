"""A folder that LeRobot loads (`lerobot-eval --policy.path=`, `lerobot-record --policy.path=`): config.json,
model.safetensors and its processors.

A policy of LeRobot's own is written as it is; any other by the plugin `lerobot_policy_flywheel`, which the wheel has,
and which LeRobot's commands find with --env.discover_packages_path= or --robot.discover_packages_path=. What LeRobot
then loads is compared with the policy (exports/_write.py)."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from torch import Tensor, nn

from flywheel import store
from flywheel.policy import _lerobot, base

SUFFIX = ""  # a folder
SPEC = "flywheel_policy.json"


def write(module: nn.Module, example: tuple[Tensor, Tensor], path: Path) -> None:
    """Write the policy of `module` into the folder `path`."""
    path.mkdir(exist_ok=True)
    policy = module.policy
    store.write_json(path / SPEC, policy.spec, indent=1)
    if policy.spec["kind"] == "lerobot":
        _lerobot.write(policy.net, *policy.around(), path)
        return
    robot = policy.robot or {}
    size = len(robot["obs"]) if robot else policy.obs_dim
    made = _lerobot.plugged(json.dumps(policy.spec), {_lerobot.STATE: size}, policy.cameras, policy.action_dim)
    made.inner.load_state_dict(policy.state_dict())
    _lerobot.write(made, *_lerobot.processors(made.config, {}), path)


def load(path: Path) -> Callable:
    """The folder, loaded as LeRobot does, as a function of observations and noise."""
    from flywheel.exports._write import Acting

    net, before, after = _lerobot.opened(path)
    policy = getattr(net, "inner", None)
    if policy is None:
        policy = base.build(store.read_json(path / SPEC))
        policy.net, policy.around = net, lambda: (before, after)
    return _lerobot.asked(Acting(policy.eval()))
