"""What LeRobot puts before and behind a policy of flywheel: names and devices, nothing else."""

from __future__ import annotations

from lerobot.processor import (
    AddBatchDimensionProcessorStep,
    DeviceProcessorStep,
    PolicyProcessorPipeline,
    RenameObservationsProcessorStep,
)
from lerobot.processor.converters import policy_action_to_transition, transition_to_policy_action


def make_flywheel_pre_post_processors(config, dataset_stats=None, **_):
    """(batch -> batch, action -> action)."""
    before = [
        RenameObservationsProcessorStep(rename_map={}),
        AddBatchDimensionProcessorStep(),
        DeviceProcessorStep(device=config.device),
    ]
    behind = {"to_transition": policy_action_to_transition, "to_output": transition_to_policy_action}
    return (
        PolicyProcessorPipeline(steps=before, name="policy_preprocessor"),
        PolicyProcessorPipeline(steps=[DeviceProcessorStep(device="cpu")], name="policy_postprocessor", **behind),
    )
