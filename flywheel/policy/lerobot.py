"""LeRobot's policies (ACT, diffusion, VQ-BeT, SmolVLA, pi0 ...) as one kind: `type` which, `settings` what differs.

    numbers [B, To, Do]  ->  observation.state, observation.environment_state (the same, where no camera is)
    frames  {camera: [B, H, W, 3] uint8}  ->  observation.images.CAMERA [B, 3, H, W], 0 ... 1
    action  [B, H, Da], from `window`[0] to `window`[1] steps from now, and where that is outside the episode

Stacks, chunks and chance are this kind's own, a slot each (policy/base.py): of LeRobot's net only its loss and its next
chunk are asked for, between the processors that LeRobot puts around it, with statistics that lie in the weights. An ACT
with a `temporal_ensemble_coeff` asks at every step, and executes the average of what all chunks say of it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from flywheel import obs as observed
from flywheel.policy import _lerobot
from flywheel.policy.base import Policy
from flywheel.policy.encoder import Encoder
from flywheel.policy.eyes import Seen

ROWS = 100_000  # that quantiles are worked out from, at most


class Lerobot(Policy):
    """`type` act, diffusion, vqbet, smolvla, pi0 ...; `settings` {key: value} of its configuration, else its defaults.

    `inputs` {LeRobot's key: [first, last]} are the numbers that it is given under that name, by default all as its
    state; `instruction` is what a type that reads is told to do. obs_steps and action_steps are those of the
    configuration, unless they are given."""

    partial = True  # an update may leave parameters alone, and there are buffers that move

    def __init__(
        self,
        *,
        type: str = "act",
        settings: Mapping[str, Any] | None = None,
        inputs: Mapping[str, Any] | None = None,
        instruction: str = "",
        obs: Any = None,
        obs_dim: int | None = None,
        obs_steps: int | None = None,
        action_steps: int | None = None,
        action_dim: int,
        cameras: Mapping[str, Any] | None = None,
        **base,
    ):
        if base.get("condition") or base.get("robot"):
            raise ValueError("policy=lerobot takes no condition and rows of one robot only; use policy=flow for these")
        size, cameras = observed.size(observed.read(obs, obs_dim, None)), dict(cameras or {})
        given = _lerobot.parts(type)[0]
        own = dict(settings or {})
        own |= {"n_obs_steps": obs_steps} if obs_steps else {}
        if action_steps:
            own[next(name for name in _lerobot.STEPS if hasattr(given, name))] = action_steps
        names = [_lerobot.STATE, *([] if cameras else [_lerobot.ENV])]
        inputs = dict(inputs or {name: [0, size] for name in names})
        made = _lerobot.configured(type, own, {k: b - a for k, (a, b) in inputs.items()}, cameras, action_dim)
        _checked(made, cameras)
        super().__init__(
            obs=obs, obs_dim=obs_dim, action_dim=action_dim, obs_steps=made.n_obs_steps,
            action_steps=getattr(made, _lerobot.steps(made)), type=type, settings=_lerobot.told(made),
            inputs={key: list(part) for key, part in inputs.items()}, instruction=instruction, **base,
        )  # fmt: skip
        if cameras:  # it looks at them by itself
            self.spec["cameras"] = {name: list(shape) for name, shape in cameras.items()}
        self.cameras = {name: tuple(shape) for name, shape in sorted(cameras.items())}
        self.encoder = Encoder(self.obs_shapes, self.obs_steps)  # of critics beside it
        self.net = _lerobot.made(made)
        self.fixed = type in _lerobot.FIXED
        self.by_row = _lerobot.by_row(self.net)
        self.window = (made.action_delta_indices[0], made.action_delta_indices[-1])
        kinds = len(_lerobot.STATISTICS)
        self.register_buffer("numbers", torch.zeros(kinds, self.obs_dim))
        self.register_buffer("actions", torch.zeros(kinds, action_dim))
        self.register_buffer("updates", torch.zeros((), dtype=torch.long))
        for row, value in ((1, 1.0), (3, 1.0), (-1, 1.0)):  # max, std, q99: until rows were seen nothing is changed
            self.numbers[row], self.actions[row] = value, value
        coefficient = getattr(made, "temporal_ensemble_coeff", None)
        self.averages = None if coefficient is None else Averages(coefficient, made.chunk_size)
        self._frozen = [p for p in self.net.parameters() if not p.requires_grad]
        self._around: tuple[Any, Any, Any] = (None, None, None)

    def requires_grad_(self, on: bool = True) -> Lerobot:
        super().requires_grad_(on)
        for p in self._frozen:  # a vision tower, as its configuration says
            p.requires_grad_(False)
        return self

    @property
    def noise_shape(self) -> tuple[int, ...]:
        length = _lerobot.noise_size(self.net)[0]
        return (max(length, self.action_steps), self.action_dim)

    # -- statistics --------------------------------------------------------------------------------------------------

    def fit_normaliser(self, obs, action, obs_mask=None, action_mask=None) -> None:
        super().fit_normaliser(obs, action, obs_mask, action_mask)
        for table, rows, norm in ((self.numbers, obs, self.encoder.norm), (self.actions, action, self.action_norm)):
            if rows is not None:
                table.copy_(statistics(rows, norm.floor))

    def like(self, other: Policy) -> Lerobot:
        super().like(other)
        if isinstance(other, Lerobot):
            self.numbers.copy_(other.numbers)
            self.actions.copy_(other.actions)
        return self

    def around(self) -> tuple[Any, Any]:
        """LeRobot's processors with the statistics as they are now."""
        now = (self.numbers._version, self.actions._version, str(self.device))
        if self._around[0] != now:
            told = {key: self._of(self.numbers, a, b) for key, (a, b) in self.spec["inputs"].items()}
            told |= {_lerobot.ACTION: self._of(self.actions, 0, self.action_dim)}
            picture = {k: torch.tensor(v).view(3, 1, 1) for k, v in _lerobot.PICTURES.items()}
            told |= {f"{_lerobot.IMAGE}{name}": picture for name in self.cameras}
            self.net.config.device = now[-1]
            self._around = (now, *_lerobot.processors(self.net.config, told))
        return self._around[1:]

    def _of(self, table: Tensor, first: int, last: int) -> dict[str, Tensor]:
        rows = table[:, first:last].detach().cpu()
        return {name: row.clone() for name, row in zip(_lerobot.STATISTICS, rows, strict=True)}

    # -- acting and learning -----------------------------------------------------------------------------------------

    def batch(self, obs: Tensor | Seen) -> dict[str, Any]:
        """Observations [B, To, Do] as LeRobot names them, before its processors."""
        seen = isinstance(obs, Seen)
        numbers = obs.numbers if seen else obs
        stacked = self.net.config.observation_delta_indices is not None
        made = {
            k: (x if stacked else x[:, -1]) for k, (a, b) in self.spec["inputs"].items() for x in [numbers[..., a:b]]
        }
        for name in self.cameras:
            frames = obs.frames[name] if obs.rows is None else obs.frames[name][obs.rows]
            picture = frames.permute(0, 3, 1, 2).float() / 255
            made[f"{_lerobot.IMAGE}{name}"] = picture[:, None] if stacked else picture
        return made | {"task": [self.spec["instruction"]] * len(numbers)}

    @torch.no_grad()
    def sample(self, obs: Tensor | Seen, noise: Tensor) -> Tensor:
        return self._out(self._chunk_of(obs, noise)[:, : self.action_steps], noise)

    @torch.no_grad()
    def decided(self, slots: np.ndarray, obs: Tensor | Seen, noise: Tensor) -> np.ndarray:
        if self.averages is None:
            return super().decided(slots, obs, noise)
        chunks, new = self._chunk_of(obs, noise)[: len(slots)], self._cursor[slots] < 0
        rows = zip(slots.tolist(), chunks, new.tolist(), strict=True)
        averaged = torch.stack([self.averages.next(slot, chunk, fresh) for slot, chunk, fresh in rows])
        return self._out(averaged[:, None], noise[: len(slots)]).cpu().numpy()

    def _chunk_of(self, obs: Tensor | Seen, noise: Tensor) -> Tensor:
        """The chunk [B, T, Da] that LeRobot's net makes, before the processors behind it."""
        learning = self.net.training
        given = noise[:, : _lerobot.noise_size(self.net)[0]] if _lerobot.takes_noise(self.net) else None
        with _lerobot.ByRow(seeds(noise), self.device):
            if given is not None and (more := _lerobot.noise_size(self.net)[1] - self.action_dim):
                given = torch.cat([given, torch.randn(*given.shape[:2], more, device=given.device)], 2)
            chunk = _lerobot.chunk(self.net, self.around()[0](self.batch(obs)), given)
        if learning:
            self.net.train()
        return chunk

    def _out(self, chunk: Tensor, noise: Tensor) -> Tensor:
        """A chunk [B, Ta, Da] in the environment's units, with the noise of exploration."""
        action = self.around()[1](chunk).to(self.device, torch.float32)
        if not self.explore:
            return action
        return self.bounded(action + self.explore * self.half_range * noise[:, : self.action_steps])

    def bc_loss(self, obs, action, generator, condition=None, pad=None):
        """action [B, H, Da] over `window`; pad [B, H] is 1 where that is outside the episode."""
        pad = torch.zeros(action.shape[:2], device=action.device) if pad is None else pad
        batch = self.batch(obs) | {_lerobot.ACTION: action, "action_is_pad": pad > 0}
        seed = int(torch.randint(2**62, (), generator=generator, device=generator.device))
        devices = [self.device] if self.device.type == "cuda" else []
        learning = self.net.training
        with torch.random.fork_rng(devices):
            torch.manual_seed(seed)
            loss = _lerobot.loss(self.net.train(), self.around()[0](batch), int(self.updates))
        self.net.train(learning)
        self.updates += 1
        return loss.expand(len(pad))

    def optimiser(self, updates: int) -> tuple[torch.optim.Optimizer, Any, float]:
        """What LeRobot trains this type with: the optimiser and its groups, its schedule, where gradients are cut."""
        return _lerobot.presets(self.net, updates)


class Averages:
    """What the chunks of an episode say of a step, averaged (temporal ensembling: ACT, arXiv 2304.13705, algorithm 2):

        a_t = sum_i w_i a_t^i / sum_i w_i,    w_i = exp(-coefficient i),    a_t^0 of the oldest chunk that reaches t

    summed as LeRobot sums it, a slot each."""

    def __init__(self, coefficient: float, steps: int):
        self.weights = torch.exp(-coefficient * torch.arange(steps))
        self.sums, self.steps = torch.cumsum(self.weights, 0), steps
        self.ahead: dict[int, Tensor] = {}  # of each slot: the averages of the steps to come [n, Da]
        self.counts: dict[int, Tensor] = {}  # and of how many chunks each is [n, 1]

    def next(self, slot: int, chunk: Tensor, new: bool) -> Tensor:
        """Take the newest chunk [T, Da], `new` of an episode's first; what is executed now, [Da]."""
        if new:
            made, counts = chunk.clone(), torch.ones(self.steps, 1, dtype=torch.long)
        else:
            made, counts = self.ahead[slot], self.counts[slot]
            weights, sums = (x.to(chunk.device) for x in (self.weights, self.sums))
            made = (made * sums[counts - 1] + chunk[:-1] * weights[counts]) / sums[counts]
            made = torch.cat([made, chunk[-1:]])
            counts = torch.cat([(counts + 1).clamp(max=self.steps), torch.ones_like(counts[-1:])])
        self.ahead[slot], self.counts[slot] = made[1:], counts[1:]
        return made[0]


def _checked(chosen: Any, cameras: Mapping[str, Any]) -> None:
    """ValueError for what a configuration asks of whoever acts, and this kind does not do."""
    if cameras and chosen.n_obs_steps > 1:
        raise ValueError(
            f"policy.settings.n_obs_steps={chosen.n_obs_steps} with cameras: the newest frame is seen; take 1"
        )


def seeds(noise: Tensor) -> list[int]:
    """A seed of each row [B] of noise, by its first bits."""
    bits = noise.detach().float().flatten(1)[:, :2].cpu().contiguous().view(torch.int32).numpy().view(np.uint32)
    return [int(a) << 31 ^ int(b) for a, b in bits.tolist()]


def statistics(rows: Any, floor: float) -> Tensor:
    """LeRobot's statistics of rows [R, D]: one row each of STATISTICS. A column that hardly moves gets `floor` as its
    deviation; quantiles are those of rows evenly spread, where there are many."""
    count, every = len(rows), max(1, len(rows) // ROWS)
    total, square, low, high, some = 0.0, 0.0, None, None, []
    for first in range(0, count, every * 4096):
        part = np.asarray(rows[first : first + every * 4096], np.float64)
        total, square = total + part.sum(0), square + (part**2).sum(0)
        low = part.min(0) if low is None else np.minimum(low, part.min(0))
        high = part.max(0) if high is None else np.maximum(high, part.max(0))
        some.append(part[::every])
    mean = total / count
    std = np.sqrt(np.maximum(square / count - mean**2, 0)).clip(min=floor)
    quantiles = np.quantile(np.concatenate(some), [0.01, 0.1, 0.5, 0.9, 0.99], axis=0)
    return torch.from_numpy(np.stack([low, high, mean, std, *quantiles])).float()


def adopted(folder: Path, shape: Mapping[str, Any]) -> Lerobot:
    """The policy of a folder that LeRobot wrote, for what a task gives (`shape`: obs, action_dim, cameras ...).

    ValueError where it observes or does something else, or its weights are not all there."""
    kind, own, features, weights, told = _lerobot.read(Path(folder))
    sizes = {key: one["shape"] for key, one in features["inputs"].items()}
    size, cameras = observed.size(observed.read(shape["obs"])), shape.get("cameras") or {}
    pictures = {f"{_lerobot.IMAGE}{name}": [c, h, w] for name, (h, w, c) in cameras.items()}
    seen = {key: list(one) for key, one in sizes.items() if key.startswith(_lerobot.IMAGE)}
    numbers = {key: one[0] for key, one in sizes.items() if key not in seen}
    whole = all(width == size for width in numbers.values())
    if (not whole and sum(numbers.values()) != size) or seen != pictures or features["action"] != shape["action_dim"]:
        raise ValueError(
            f"{folder}: it observes {sizes} and makes {features['action']} numbers; the task gives {size} numbers"
            f"{f' and {pictures}' if pictures else ''}, and takes {shape['action_dim']}"
        )
    ends = np.cumsum([0, *numbers.values()])
    inputs = {key: [0, size] if whole else ends[i : i + 2].tolist() for i, key in enumerate(numbers)}
    policy = Lerobot(type=kind, settings=own, inputs=inputs, **shape)
    known = policy.net.state_dict()
    if absent := [key for key in known if key not in weights]:
        raise ValueError(f"{folder}/{_lerobot.MODEL}: it lacks {len(absent)} weights, such as {absent[0]}")
    if other := [key for key in weights if key not in known]:
        raise ValueError(f"{folder}/{_lerobot.MODEL}: it has {len(other)} weights that {kind} has not: {other[0]}")
    policy.net.load_state_dict(weights)
    for table, parts in ((policy.numbers, inputs), (policy.actions, {_lerobot.ACTION: [0, policy.action_dim]})):
        for key, (first, last) in parts.items():
            for row, name in enumerate(_lerobot.STATISTICS):
                if name in told.get(key, {}):
                    table[row, first:last] = told[key][name].float()
    mean, std = (_lerobot.STATISTICS.index(name) for name in ("mean", "std"))
    for norm, table in ((policy.encoder.norm, policy.numbers), (policy.action_norm, policy.actions)):
        norm.mean.copy_(table[mean])
        norm.std.copy_(table[std].clamp_min(norm.floor))
    return policy


make = Lerobot
