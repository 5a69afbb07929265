"""A policy: observations in, action chunks out, with its own normaliser inside its weights.

    time          t-1   t   t+1  t+2  t+3
    observation    o    o                     obs_steps (To) = 2, the newest last; before t = 0 the first again
    action              a    a    a    a      action_steps (Ta) = 4, all executed before the next chunk is asked for

`act` is the one way to use a policy: a robot, `flywheel evaluate` and collection all call it.
"""

from __future__ import annotations

import copy
import importlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from flywheel import obs as observed
from flywheel.log import say
from flywheel.policy.encoder import Encoder
from flywheel.policy.eyes import Seen
from flywheel.policy.nets import Normalised, Normaliser

SHAPE = (
    "obs",
    "action_dim",
    "obs_steps",
    "action_steps",
    "action_low",
    "action_high",
    "cameras",
    "eye",
)  # of a spec: what the task gives

FEWEST = 16  # rows that are worked out at once: an action then has the same bits however many act beside it


class Policy(Normalised):
    """Base of all policies. A member of the folder defines `noise_shape`, `sample` and `bc_loss`.

    One that is `ahead` 2 predicts the chunk after the next as well, and executes the first: it clones better, for what
    it does now has to lead where it wants to be (`bc_loss` is given both chunks; Chi et al., 2303.04137, predict 16
    steps and execute 8).

    obs {key: shape of a row}, Do numbers in all; action_dim Da, obs_steps To, action_steps Ta; action_low and
    action_high bound what is executed. obs_dim Do, for short, is one array without keys; older files have it, some with
    `obs_keys`. `condition` adds one input that says how good the imitated action was (RECAP, arXiv 2511.14759): +1
    good, -1 bad, 0 not said; acting asks for +1. A `greedy` policy acts without noise (the mean of a Gaussian).
    `explore` is 0 but for collection: what it means is the member's business. A `discrete` policy makes one-hot
    actions; a `fixed` one makes the same action of any noise. One with a `window` (first, last) imitates the actions
    from there to there, as steps from now; one that is not `by_row` says one loss for a whole batch; of a `partial` one
    an update may leave parameters alone, and buffers move (policy/lerobot.py). `spreads.of(seed)`, where it is set, is
    what an episode's noise is multiplied by (rl/spread.py). `robot` says which columns {"obs": [n], "action": [m]}
    are those of the robot that acts, where the policy learnt from several (corpus.align), and its "keys" are what that
    robot observes, as `obs`. `obs_shapes` {key: shape} is what `act` takes, and of
    each of `cameras` {name: (H, W, 3)} the newest frame, uint8, red first, which a net of the kind `eye` looks at."""

    discrete, fixed = False, False
    partial, window, by_row = False, None, True
    explore = 0.0
    spreads: Any = None
    knows = 0  # numbers that only the simulator has, which it asks for beside the frames
    fewest = FEWEST

    def __init__(
        self,
        *,
        action_dim: int,
        obs: Any = None,
        obs_dim: int | None = None,
        obs_steps: int = 2,
        action_steps: int = 4,
        action_low: Sequence[float] | float = -1.0,
        action_high: Sequence[float] | float = 1.0,
        condition: bool = False,
        greedy: bool = False,
        ahead: int = 1,
        robot: dict[str, list[int]] | None = None,
        obs_keys: Any = None,
        cameras: Mapping[str, Any] | None = None,
        eye: str = "small",
        **own,
    ):
        super().__init__()
        if robot and obs_keys:  # of an older file: they are the robot's
            robot, obs_keys = {**robot, "keys": observed.spec(observed.read(obs_keys=obs_keys))}, None
        shapes = observed.read(obs, obs_dim, obs_keys)
        low = np.broadcast_to(np.asarray(action_low, np.float64), (action_dim,)).tolist()
        high = np.broadcast_to(np.asarray(action_high, np.float64), (action_dim,)).tolist()
        self.spec = dict(
            kind=type(self).__module__.rsplit(".", 1)[-1],
            obs=observed.spec(shapes),
            action_dim=action_dim,
            obs_steps=obs_steps,
            action_steps=action_steps,
            action_low=low,
            action_high=high,
            condition=condition,
            greedy=greedy,
            **({"ahead": ahead} if ahead != 1 else {}),
            **({"robot": robot} if robot else {}),
            **({"cameras": {name: list(shape) for name, shape in cameras.items()}} if cameras else {}),
            **({"eye": eye} if eye != "small" else {}),
            **own,
        )
        self.robot, self.obs_shapes = None, shapes
        if robot:
            self.robot = {key: robot[key] for key in ("obs", "action")}
            self.obs_shapes = observed.read(robot.get("keys") or {observed.STATE: [len(robot["obs"])]})
        self._width = observed.size(self.obs_shapes)
        shape, *more = self.obs_shapes.values()
        self._alone = None if more else shape  # of an observation of one key
        own = torch.zeros(action_dim).index_fill(0, torch.tensor(robot["action"] if robot else range(action_dim)), 1.0)
        self.register_buffer("own", own, persistent=False)
        self.obs_dim, self.action_dim = observed.size(shapes), action_dim
        self.obs_steps, self.action_steps, self.condition = obs_steps, action_steps, condition
        self.horizon = ahead * action_steps  # steps that the net predicts, of which action_steps are executed
        if ahead not in (1, 2):
            raise ValueError(f"policy.ahead={ahead}; expected 1, or 2: the chunk after the next is predicted too")
        self._keep_bounds(low, high)
        self.encoder = Encoder(shapes, obs_steps, cameras, eye)
        self.cameras = self.encoder.cameras
        self.action_norm = Normaliser(action_dim, floor=2e-2)
        self.features = self.encoder.features + int(condition)

    def _keep_bounds(self, low: Sequence[float], high: Sequence[float]) -> None:
        """[Da] each, on the policy's device; in no file of weights."""
        for name, bound in (("low", low), ("high", high)):
            self.register_buffer(name, torch.tensor(bound, dtype=torch.float32), persistent=False)
        self.register_buffer("middle", (self.high + self.low) / 2, persistent=False)
        self.register_buffer("half_range", (self.high - self.low) / 2, persistent=False)

    # -- what a member of the folder defines ---------------------------------------------------------------------

    @property
    def noise_shape(self) -> tuple[int, ...]:
        """Shape of the standard normal noise that one chunk is made from."""
        return (self.horizon, self.action_dim)

    @property
    def greedy(self) -> bool:
        """Does `act` leave the noise out? Never while the policy explores."""
        return self.spec["greedy"] and not self.explore

    def sample(self, obs: Tensor, noise: Tensor) -> Tensor:
        """obs [B, To, Do], noise [B, *noise_shape] -> action chunk [B, Ta, Da] in the environment's units."""
        raise NotImplementedError

    def bc_loss(self, obs: Tensor, action: Tensor, generator: torch.Generator, condition: Tensor | None) -> Tensor:
        """obs [B, To, Do], action [B, ahead * Ta, Da], condition [B] or None -> imitation loss of each row [B].

        One that takes `mask` [B, Da] too can learn from robots that lack components of the action (`masked_mean`).
        """
        raise NotImplementedError

    def sample_with_log_prob(self, obs: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """As `sample`, and log pi of what was sampled [B], differentiable; only policies that have a density define
        it."""
        raise ValueError(
            f"a {self.spec['kind']} policy has no log pi(a): SAC and CQL need policy=tanh_gaussian; with "
            f"{self.spec['kind']} use algorithm={'dqn, iql or ppo' if self.discrete else 'iql, rounds, recap or dppo'}"
        )

    def chain(self, obs: Tensor, noise: Tensor) -> Tensor:
        """The steps by which `noise` becomes an action: [B, K + 1, ...], or [B, 1, ...] where there is one; what
        they are is the member's business."""
        raise ValueError(
            f"a {self.spec['kind']} policy has no log pi of the steps to its action: on-policy algorithms need "
            "policy=gaussian, tanh_gaussian, categorical, diffusion or flow"
        )

    def chain_log_prob(self, obs: Tensor, chain: Tensor) -> tuple[Tensor, Tensor]:
        """log pi of each step of a chain [B, K], and their entropy [B, K], both differentiable (DPPO, arXiv
        2409.00588)."""
        return self.chain(obs, chain)

    def ended(self, chain: Tensor) -> Tensor:
        """The action chunk that a chain makes: [B, Ta, Da] in the environment's units."""
        return self.action_norm.inverse(chain[:, -1, : self.action_steps])

    # -- shared --------------------------------------------------------------------------------------------------

    def fit_normaliser(self, obs, action, obs_mask=None, action_mask=None) -> None:
        """Freeze the normaliser on training rows: obs [R, Do], action [R, Da]; None (of one-hot numbers) leaves them
        as they are. The masks, as large, say which numbers count."""
        if obs is not None:
            _tell(observed.names(self.encoder.shapes), self.encoder.fit(obs, obs_mask))
        if action is not None:
            _tell([f"action[{i}]" for i in range(self.action_dim)], self.action_norm.fit(action, action_mask))

    def encode(self, obs: Tensor, condition: Tensor | None = None) -> Tensor:
        """obs [B, To, Do] -> the encoder's features, and the condition where there is one; [B, F (+ 1)]."""
        x = self.encoder(obs)
        if not self.condition:
            return x
        if condition is None:
            condition = torch.ones(len(x), device=x.device)
        return torch.cat([x, condition[:, None].to(x.dtype)], dim=1)

    def hidden(self, x: Tensor) -> Tensor:
        """An action on its way, [B, Ta, Da], with zeros in the columns that the robot has not got."""
        return x * self.own if self.robot else x

    def bounds(self, like: Tensor) -> tuple[Tensor, Tensor]:
        """The action range, [Da] each, on the device and in the type of `like`."""
        return self.low.to(like), self.high.to(like)

    def bounded(self, action: Tensor) -> Tensor:
        """`action` [..., Da] inside the range."""
        low, high = self.bounds(action)
        return action.clamp(low, high)

    @property
    def device(self) -> torch.device:
        return self.low.device

    def explores(self, amount: float) -> Policy:
        """From now on act with exploration (what `amount` means is the member's business), or, at 0, as when
        deployed."""
        self.explore, self.spec["greedy"] = amount, amount == 0
        return self

    def collecting(self, explore: float) -> Policy:
        """A copy that acts by chance, as it was trained to: for collection before there are critics. One that knows
        no chance (`fixed`) gets noise of `explore`, in half action ranges."""
        made = copy.deepcopy(self)
        made.spec["greedy"] = False
        if self.fixed:
            made.explore = explore
        return made

    def reset(self, slots: Sequence[int] | None = None, seeds: Sequence[int] | None = None) -> None:
        """Forget the past. For a batch of environments: begin an episode in each of `slots`, its noise drawn from its
        seed.

        An episode is a function of (weights, seed): it does not depend on which others run beside it.
        """
        slots = [0] if slots is None else list(slots)
        seeds = [0] * len(slots) if seeds is None else seeds
        size = max([*slots, -1]) + 1
        if not hasattr(self, "_cursor") or len(self._cursor) < size:
            old = len(getattr(self, "_cursor", ()))
            stack = np.zeros((size, self.obs_steps, self.obs_dim), np.float32)
            chunk = np.zeros((size, self.action_steps, self.action_dim), np.float32)
            cursor = np.full(size, -1)
            noise: list[_Noise | None] = [None] * size
            if old:
                stack[:old], chunk[:old], cursor[:old], noise[:old] = (
                    self._stack,
                    self._chunk,
                    self._cursor,
                    self._noise,
                )
            self._stack, self._chunk, self._cursor, self._noise = stack, chunk, cursor, noise
        for slot, seed in zip(slots, seeds, strict=True):
            self._cursor[slot] = -1
            self._noise[slot] = _Noise(seed, self.noise_shape, scale=self.spreads.of(seed) if self.spreads else 1.0)

    def noises(self, seed: int, count: int) -> np.ndarray:
        """The noise that `act` draws for the first `count` chunks of the episode with this seed; [count,
        *noise_shape]."""
        return _Noise(seed, self.noise_shape, count).ahead

    def _packed(self, obs: Any) -> tuple[np.ndarray, bool]:
        """Pack an observation, or N, into rows [1 or N, Do] float32; say also whether it was one. ValueError as
        `act`."""
        if isinstance(obs, Mapping):
            return observed.pack(obs, self.obs_shapes, "this policy was trained on")
        obs = np.asarray(obs, np.float32)
        single = obs.ndim < 2 or obs.shape == self._alone
        rows = obs.reshape(1 if single else len(obs), -1)
        if rows.shape[1] != self._width:
            raise ValueError(f"observation has {rows.shape[1]} numbers, this policy was trained on {self._width}")
        return rows, single

    def asks(self, slots: np.ndarray) -> np.ndarray:
        """Which of `slots` [N] decide at the next `act`: only what these see is looked at."""
        return (self._cursor[slots] < 0) | (self._cursor[slots] >= self.action_steps)

    def _seen(self, stack: np.ndarray, frames: Mapping[str, np.ndarray]) -> Tensor | Seen:
        """Rows [B, To, Do], of which the first have frames and the others look at those again."""
        numbers = torch.from_numpy(stack).to(self.device)
        if not frames:
            return numbers
        there = {name: torch.from_numpy(np.ascontiguousarray(one)).to(self.device) for name, one in frames.items()}
        return Seen(numbers, there, torch.arange(len(stack), device=self.device) % len(next(iter(there.values()))))

    def _looked(self, obs: Any, count: int) -> dict[str, np.ndarray]:
        """The frames of each camera in an observation, [count, H, W, 3] uint8. ValueError as `act`."""
        frames = {}
        for name, shape in self.cameras.items():
            there = obs.get(name) if isinstance(obs, Mapping) else None
            frame = np.asarray(there if there is not None else np.zeros(0))
            if frame.dtype != np.uint8 or frame.shape not in (shape, (count, *shape)):
                found = f"{list(frame.shape)} {frame.dtype}" if there is not None else "nothing"
                raise ValueError(f"camera {name!r} is {found}; this policy was trained on {list(shape)} uint8")
            frames[name] = frame.reshape(count, *shape)
        if self.knows:
            frames[observed.PRIVILEGED] = np.asarray(obs[observed.PRIVILEGED], np.float32).reshape(count, self.knows)
        return frames

    @torch.no_grad()
    def act(self, obs: Any, slots: Sequence[int] | None = None, frames: Mapping[str, Any] | None = None) -> np.ndarray:
        """Return the action to execute now, [Da], or for `slots` of a batch [N, Da].

        obs is what the environment gives: {key: [*shape]} with the keys that the policy learnt from (others are left
        out), or one array [Do]; of a batch {key: [N, *shape]}, or [N, Do]. The frames of cameras stand in `obs` under
        their names, or in `frames`. ValueError where a key is missing or a shape is another: it says what was found and
        what was expected.
        """
        given = obs if frames is None else frames
        obs, single = self._packed(obs)
        frames = self._looked(given, len(obs)) if self.cameras else {}
        if self.robot:
            wide = np.zeros((len(obs), self.obs_dim), np.float32)
            wide[:, self.robot["obs"]] = obs
            obs = wide
        slots = np.arange(len(obs)) if slots is None else np.asarray(slots)
        if not hasattr(self, "_cursor"):
            self.reset(range(len(obs)))
        new = self._cursor[slots] < 0
        self._stack[slots] = np.where(
            new[:, None, None],
            obs[:, None],
            np.concatenate([self._stack[slots, 1:], obs[:, None]], axis=1),
        )
        asked = new | (self._cursor[slots] >= self.action_steps)
        due, frames = slots[asked], {name: frame[asked] for name, frame in frames.items()}
        if len(due):
            shape = (len(due), *self.noise_shape)
            noise = np.zeros(shape, np.float32) if self.greedy else np.stack([self._noise[s].next() for s in due])
            stack, more = self._stack[due], self.fewest - len(due)
            if more > 0:  # matrices of few rows are multiplied in another way, and rounded otherwise
                stack, noise = (np.concatenate([x, np.repeat(x[:1], more, 0)]) for x in (stack, noise))
            self._chunk[due] = self.decided(due, self._seen(stack, frames), torch.from_numpy(noise).to(self.device))
            self._cursor[due] = 0
        action = self._chunk[slots, self._cursor[slots]]
        self._cursor[slots] += 1
        action = action[:, self.robot["action"]] if self.robot else action
        return action[0] if single else action

    def decided(self, slots: np.ndarray, obs: Tensor | Seen, noise: Tensor) -> np.ndarray:
        """The chunks [N, Ta, Da] that `slots` [N] execute from now on; obs and noise have rows beyond these where they
        are few."""
        return self.sample(obs, noise)[: len(slots)].float().cpu().numpy()


def _tell(names: list[str], out: dict[int, int]) -> None:
    """Say which columns {column: how many} hold values that are no part of their distribution."""
    for column, count in out.items():
        say(
            f"  {names[column]}: {count} {'value lies' if count == 1 else 'values lie'} far outside all others, and "
            f"{'does' if count == 1 else 'do'} not count "
            "in the normaliser; `flywheel corpus query` finds the episode"
        )


def masked_mean(error: Tensor, mask: Tensor | None) -> Tensor:
    """error [B, Ta, Da] -> [B]: the mean over the components that mask [B, Da] has; over all where it is None."""
    if mask is None:
        return error.mean((1, 2))
    return (error * mask[:, None]).sum((1, 2)) / (mask.sum(1).clamp_min(1) * error.shape[1])


class _Noise:
    """The random numbers of one episode, drawn some chunks ahead; how many ahead makes no difference to what they
    are."""

    def __init__(self, seed: int, shape: tuple[int, ...], count: int = 32, scale: float = 1.0):
        self.rng, self.shape, self.scale = np.random.default_rng([0x0F17, seed]), (count, *shape), np.float32(scale)
        self._draw()

    def _draw(self) -> None:
        self.ahead, self.at = self.rng.standard_normal(self.shape, dtype=np.float32) * self.scale, 0

    def next(self) -> np.ndarray:
        if self.at == len(self.ahead):
            self._draw()
        self.at += 1
        return self.ahead[self.at - 1]


def build(spec: dict) -> Policy:
    """The policy that `spec` describes; `spec["kind"]` is the name of its module in flywheel/policy/."""
    spec = dict(spec)
    kind = spec.pop("kind")
    kinds = names()
    if kind not in kinds:
        raise ValueError(f"no policy {kind!r} in flywheel/policy/. There are: {', '.join(kinds)}")
    module = importlib.import_module(f"flywheel.policy.{kind}")
    return module.make(**spec)


def names() -> list[str]:
    """The policies there are: the modules of this folder that have a `make`."""
    here = Path(__file__).parent
    return sorted(p.stem for p in here.glob("[!_]*.py") if "\nmake = " in p.read_text(encoding="utf-8"))


def save(policy: Policy, path: Path) -> None:
    """Write weights and spec to one safetensors file; equal weights give equal bytes."""
    from safetensors.torch import save as serialise

    from flywheel.store import write_atomic

    tensors = {k: v.detach().cpu().clone() for k, v in policy.state_dict().items()}
    write_atomic(Path(path), serialise(tensors, {"flywheel": json.dumps(policy.spec, sort_keys=True)}))


def load(path: Path, device: str = "cpu") -> Policy:
    """The policy in a safetensors file, ready to act. Runs no code from the file."""
    from safetensors import safe_open

    with safe_open(path, "pt") as file:
        meta = (file.metadata() or {}).get("flywheel")
        if meta is None:
            raise ValueError(f"{path}: a safetensors file, but not a policy of flywheel (no 'flywheel' in its header)")
        policy = build(json.loads(meta))
        weights = {k: file.get_tensor(k) for k in file.keys()}  # noqa: SIM118 (not a dict)
        # an encoder's statistics were called obs_norm before there were encoders
        policy.load_state_dict({k.replace("obs_norm.", "encoder.norm."): weight for k, weight in weights.items()})
    return policy.to(device).eval()
