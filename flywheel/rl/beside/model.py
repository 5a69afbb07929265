"""model: an ensemble of transitions, from an observation and an action chunk to the next observation."""

from flywheel.policy.critic import TransitionModel


def make(policy, algorithm, reward: str) -> TransitionModel:
    return TransitionModel.of(policy)
