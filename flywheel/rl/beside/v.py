"""v: one value of states."""

from flywheel.policy.critic import Critic


def make(policy, algorithm, reward: str) -> Critic:
    return Critic.of(policy, **{**algorithm.critic, "members": 1})
