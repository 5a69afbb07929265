"""Critics of observation stacks and action chunks, and a model of where these lead: ensembles that return every
member's opinion."""

from __future__ import annotations

from typing import Any

from torch import Tensor, cat

from flywheel import obs as observed
from flywheel.policy.encoder import Encoder, Known
from flywheel.policy.nets import Ensemble, Normalised, Normaliser


class Critic(Normalised):
    """E members; Q(obs [B, To, Do], action [B, Ta, Da]) -> [E, B]; with action_dim 0 a state value V(obs) -> [E, B].

    A call may ask only the members `which`. A `discrete` critic has an output for each of Da actions, one-hot; `every`
    gives them all. `obs` {key: shape of a row} is what it observes; obs_dim Do, for short, one array of numbers. One
    that `knows` Dp numbers looks at these, which only the simulator has, and at nothing else."""

    def __init__(
        self,
        *,
        obs: Any = None,
        obs_dim: int | None = None,
        obs_steps: int,
        action_dim: int = 0,
        action_steps: int = 0,
        members: int = 4,
        width: int = 256,
        depth: int = 2,
        activation: str = "silu",
        norm: bool = True,
        discrete: bool = False,
        cameras: Any = None,
        eye: str = "small",
        knows: int = 0,
    ):
        super().__init__()
        shapes = observed.read(obs, obs_dim)
        self.encoder = Known(knows) if knows else Encoder(shapes, obs_steps, cameras, eye)
        self.spec = dict(
            obs=observed.spec(shapes),
            obs_steps=obs_steps,
            action_dim=action_dim,
            action_steps=action_steps,
            members=members,
            width=width,
            depth=depth,
            activation=activation,
            norm=norm,
            discrete=discrete,
            **({"cameras": cameras} if cameras else {}),
            **({"eye": eye} if eye != "small" else {}),
            **({"knows": knows} if knows else {}),
        )
        self.discrete = discrete
        self.action_norm = Normaliser(action_dim, floor=2e-2)
        inputs = self.encoder.features + (0 if discrete else action_steps * action_dim)
        self.net = Ensemble(members, inputs, width, depth, activation, norm, outputs=action_dim if discrete else 0)

    @classmethod
    def of(cls, policy, actions: bool = False, **size) -> Critic:
        """A critic of what a policy sees and, with `actions`, of its chunks, behind the same frozen normaliser."""
        keys = ("obs", "obs_steps", "cameras", "eye", *(("action_dim", "action_steps") if actions else ()))
        shape = {key: policy.spec[key] for key in keys if key in policy.spec}
        return cls(**shape, **size).like(policy)

    def forward(self, obs: Tensor, action: Tensor | None = None, which: slice | Tensor | None = None) -> Tensor:
        if self.discrete:
            return (self.every(obs) * action[:, 0]).sum(-1)
        x = self.encoder(obs)
        if action is not None:
            x = cat([x, self.action_norm(action).flatten(1)], 1)
        return self.net(x, which)

    def every(self, obs: Tensor) -> Tensor:
        """The values of all actions of a discrete critic; [E, B, Da]."""
        return self.net(self.encoder(obs))


class TransitionModel(Normalised):
    """E members; (obs [B, To, Do], action [B, Ta, Da]) -> the stack of observations after the chunk [E, B, To, Do]."""

    def __init__(
        self,
        *,
        obs: Any = None,
        obs_dim: int | None = None,
        obs_steps: int,
        action_dim: int,
        action_steps: int,
        members: int = 5,
        width: int = 256,
        depth: int = 2,
    ):
        super().__init__()
        self.encoder = Encoder(observed.read(obs, obs_dim), obs_steps)
        self.action_norm = Normaliser(action_dim, floor=2e-2)
        size = self.encoder.features
        self.net = Ensemble(members, size + action_steps * action_dim, width, depth, outputs=size)

    @classmethod
    def of(cls, policy, **size) -> TransitionModel:
        """A model of what a policy sees and does, behind the same frozen normaliser."""
        shape = {key: policy.spec[key] for key in ("obs", "obs_steps", "action_dim", "action_steps")}
        return cls(**shape, **size).like(policy)

    def forward(self, obs: Tensor, action: Tensor) -> Tensor:
        x = self.encoder(obs)
        return self.encoder.decode(x + self.net(cat([x, self.action_norm(action).flatten(1)], 1)))
