"""Critics of observation stacks and action chunks: an ensemble that returns every member's opinion."""

from __future__ import annotations

from torch import Tensor, cat, nn

from flywheel.nets import Ensemble, Normaliser


class Critic(nn.Module):
    """E members; Q(obs [B, To, Do], action [B, Ta, Da]) -> [E, B]; with action_dim 0 a state value V(obs) -> [E, B]."""

    def __init__(
        self,
        *,
        obs_dim: int,
        obs_steps: int,
        action_dim: int = 0,
        action_steps: int = 0,
        members: int = 4,
        width: int = 256,
        depth: int = 2,
        activation: str = "silu",
        norm: bool = True,
    ):
        super().__init__()
        self.spec = dict(
            obs_dim=obs_dim, obs_steps=obs_steps, action_dim=action_dim, action_steps=action_steps,
            members=members, width=width, depth=depth, activation=activation, norm=norm,
        )  # fmt: skip
        self.obs_norm = Normaliser(obs_dim)
        self.action_norm = Normaliser(action_dim, floor=2e-2)
        self.net = Ensemble(members, obs_steps * obs_dim + action_steps * action_dim, width, depth, activation, norm)

    def like(self, policy) -> Critic:
        """Take over the frozen normaliser of `policy`."""
        self.obs_norm.load_state_dict(policy.obs_norm.state_dict())
        if self.action_norm.mean.numel():
            self.action_norm.load_state_dict(policy.action_norm.state_dict())
        return self

    def forward(self, obs: Tensor, action: Tensor | None = None) -> Tensor:
        x = self.obs_norm(obs).flatten(1)
        if action is not None:
            x = cat([x, self.action_norm(action).flatten(1)], 1)
        return self.net(x)
