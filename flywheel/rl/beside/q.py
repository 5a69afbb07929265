"""q: an ensemble of values of action chunks; of a discrete policy that is the argmax of one (DQN), that very critic."""

from flywheel.policy.critic import Critic


def make(policy, algorithm, reward: str) -> Critic:
    if not policy.discrete:
        return Critic.of(policy, actions=True, **algorithm.critic)
    return getattr(policy, "critic", None) or Critic.of(policy, actions=True, **algorithm.critic, discrete=True)
