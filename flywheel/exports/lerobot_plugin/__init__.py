"""flywheel for LeRobot: policies of flywheel as `type: flywheel`, its tasks as `--env.type=flywheel`.

    lerobot-eval --env.discover_packages_path=lerobot_policy_flywheel --env.type=flywheel --env.task=lift \\
        --policy.path=EXPORTED --eval.batch_size=10 --eval.n_episodes=200 --seed=210000000

The names of modules, classes and functions here are LeRobot's lookup contract."""

from lerobot_policy_flywheel.configuration_flywheel import FlywheelConfig
from lerobot_policy_flywheel.env_flywheel import FlywheelEnv

__all__ = ["FlywheelConfig", "FlywheelEnv"]
