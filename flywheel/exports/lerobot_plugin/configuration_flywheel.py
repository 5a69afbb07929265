"""The configuration of a policy of flywheel: what its file says of it, as one string."""

from __future__ import annotations

from dataclasses import dataclass, field

from lerobot.configs.policies import PreTrainedConfig
from lerobot.configs.types import NormalizationMode

NOT_HERE = "a policy of flywheel is trained by flywheel: `flywheel pretrain checkpoint=NAME`; then export it again"


@PreTrainedConfig.register_subclass("flywheel")
@dataclass
class FlywheelConfig(PreTrainedConfig):
    """`spec` is the policy's own, as JSON (draccus has no free dicts); it normalises by itself."""

    spec: str = "{}"
    normalization_mapping: dict[str, NormalizationMode] = field(
        default_factory=lambda: dict.fromkeys(("STATE", "ENV", "VISUAL", "ACTION"), NormalizationMode.IDENTITY)
    )

    @property
    def observation_delta_indices(self) -> None:
        return None

    @property
    def action_delta_indices(self) -> None:
        return None

    @property
    def reward_delta_indices(self) -> None:
        return None

    def get_optimizer_preset(self):
        raise ValueError(NOT_HERE)

    def get_scheduler_preset(self):
        raise ValueError(NOT_HERE)

    def validate_features(self) -> None:
        """The policy itself says what does not fit."""
