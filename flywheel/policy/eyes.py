"""What is seen: numbers and the frames of cameras, and the nets that look at these.

    frames [B, H, W, 3] uint8  ->  convolutions  ->  where each of K features is in the picture, [B, 2 K]

The last step is a spatial softmax: the mean position of each map's mass, in -1 ... 1 (Levine et al., arXiv 1504.00702).
In training each frame is shifted by up to a few pixels, its border repeated (DrQ, arXiv 2004.13649)."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from flywheel import not_intel
from flywheel.obs import PRIVILEGED
from flywheel.policy.nets import Rounded

MAPS = 32  # of the last convolution: so many places in a picture
LAYERS = ((32, 8, 4), (64, 3, 2), (MAPS, 3, 1))  # channels, kernel, stride
SHIFT = 1 / 16  # of a picture's side, at most, in training
SMALLEST = 16  # pixels a side
FEWEST = 4  # frames at once when it acts: what it sees must not depend on how many act beside it


class Seen:
    """Observations: numbers [B, To, Do] float32, and of each camera the newest frames {camera: [F, H, W, 3] uint8}, or
    what frozen eyes made of them already, `features` [B, F]; or both, for eyes that learn beside those that do not.

    Beside the frames may stand what only the simulator knows, "privileged" [F, Dp] float32, for critics alone. It
    offers what policies and losses use of a tensor. Frames are not copied where rows are repeated: `rows` [B] says
    which of the F is each row's, None that they are its own. With `rng` they are to be shifted."""

    def __init__(
        self,
        numbers: Tensor,
        frames: Mapping[str, Tensor] = {},
        rows: Tensor | None = None,
        rng: torch.Generator | None = None,
        features: Tensor | None = None,
    ):
        self.numbers, self.frames, self.rows, self.rng, self.features = numbers, dict(frames), rows, rng, features

    @property
    def device(self) -> torch.device:
        return self.numbers.device

    @property
    def dtype(self) -> torch.dtype:
        return self.numbers.dtype

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, which) -> Seen:
        features = None if self.features is None else self.features[which]
        rows = self._rows()[which] if self.frames else None
        return Seen(self.numbers[which], self.frames, rows, self.rng, features)

    def repeat_interleave(self, count: int, dim: int = 0) -> Seen:
        """Each row `count` times."""
        features = None if self.features is None else self.features.repeat_interleave(count, dim)
        rows = self._rows().repeat_interleave(count, dim) if self.frames else None
        return Seen(self.numbers.repeat_interleave(count, dim), self.frames, rows, self.rng, features)

    def _rows(self) -> Tensor:
        return torch.arange(len(self), device=self.device) if self.rows is None else self.rows

    def to(self, device: torch.device | str, **how: Any) -> Seen:
        """The same on another device."""
        rows, features = (None if x is None else x.to(device, **how) for x in (self.rows, self.features))
        frames = {name: frame.to(device, **how) for name, frame in self.frames.items()}
        return Seen(self.numbers.to(device, **how), frames, rows, self.rng, features)

    @property
    def known(self) -> Tensor:
        """What only the simulator knows, [B, Dp]."""
        known = self.frames[PRIVILEGED]
        return known if self.rows is None else known[self.rows]

    def new_zeros(self, *size: int) -> Tensor:
        return self.numbers.new_zeros(*size)

    def new_ones(self, *size: int) -> Tensor:
        return self.numbers.new_ones(*size)


@functools.cache
def gains(device: torch.device) -> bool:
    """Are convolutions faster in bfloat16 there? A processor needs tiles for that, or AMD's products."""
    if device.type != "cpu":
        return torch.cuda.is_bf16_supported()
    return torch.cpu._is_amx_tile_supported() or (not_intel() and torch.cpu._is_avx512_bf16_supported())


def shifted(frames: Tensor, rng: torch.Generator) -> Tensor:
    """Frames [B, H, W, C], each moved by up to SHIFT of its side in x and in y, its border repeated."""
    count, *sides, colours = frames.shape
    most = [max(1, round(side * SHIFT)) for side in sides]
    for axis, (side, by) in enumerate(zip(sides, most, strict=True), 1):
        first, last = (frames.narrow(axis, at, 1) for at in (0, side - 1))
        frames = torch.cat([first] * by + [frames] + [last] * by, axis)
    batch, row, column, colour = frames.stride()
    windows = frames.as_strided(
        (count, 2 * most[0] + 1, 2 * most[1] + 1, *sides, colours), (batch, row, column, row, column, colour)
    )
    y, x = (torch.randint(2 * by + 1, (count,), generator=rng, device=frames.device) for by in most)
    return windows[torch.arange(count, device=frames.device), y, x]


def small() -> nn.Module:
    """Three convolutions: what a processor can learn in minutes."""
    layers, before = [], 3
    for channels, kernel, stride in LAYERS:
        pad = kernel // 2 if kernel % 2 else (kernel - stride) // 2
        layers += [nn.Conv2d(before, channels, kernel, stride, pad), nn.ReLU(inplace=True)]
        before = channels
    return nn.Sequential(*layers[:-1])


def resnet18() -> nn.Module:
    """ResNet18 (arXiv 1512.03385) with GroupNorm (16 channels a group) for BatchNorm, its weights random, up to the
    last map; a GPU's."""
    from torchvision.models import resnet18 as make

    whole = make(weights=None, norm_layer=lambda channels: nn.GroupNorm(channels // 16, channels))
    return nn.Sequential(*list(whole.children())[:-2], nn.Conv2d(512, MAPS, 1))


NETS = {"small": small, "resnet18": resnet18}


class Eye(nn.Module):
    """Looks at the frames of one camera: [B, H, W, 3] uint8 -> [B, F], F = 2 MAPS. `kind` is one of NETS."""

    def __init__(self, height: int, width: int, kind: str = "small"):
        super().__init__()
        if min(height, width) < SMALLEST:
            raise ValueError(f"a camera of {height} x {width} pixels; expected at least {SMALLEST} a side")
        if kind not in NETS:
            raise ValueError(f"policy.eye={kind}; there are: {', '.join(NETS)}")
        self.net = NETS[kind]()
        with torch.no_grad():
            size = self.net(torch.zeros(1, 3, height, width)).shape[2:]
        self.features = 2 * MAPS
        places = [torch.linspace(-1, 1, side) for side in size]
        y, x = torch.meshgrid(*places, indexing="ij")
        self.register_buffer("places", torch.stack([x.flatten(), y.flatten()], 1), persistent=False)  # [h * w, 2]

    def forward(self, frames: Tensor) -> Tensor:
        learning = Rounded.on and gains(frames.device)
        x = frames.permute(0, 3, 1, 2).to(torch.float32).div_(255).sub_(0.5)  # in memory it is channels last as it is
        with torch.autocast(frames.device.type, torch.bfloat16, enabled=learning):
            maps = self.net(x)
        weight = maps.float().flatten(2).softmax(2)  # [B, K, h * w]
        return (weight @ self.places).flatten(1)


class Eyes(nn.Module):
    """One Eye a camera; `features` is what they see in all. Those that `move` look at frames themselves, whatever
    others made of them. `fewest` frames are worked out at once, at least."""

    move, fewest = False, FEWEST

    def __init__(self, cameras: Mapping[str, tuple[int, ...]], kind: str = "small"):
        super().__init__()
        self.each = nn.ModuleDict({name: Eye(*shape[:2], kind) for name, shape in cameras.items()})
        self.features = sum(eye.features for eye in self.each.values())

    def forward(self, seen: Seen) -> Tensor:
        """Features [B, F] of each row."""
        if seen.features is not None and not self.move:
            return seen.features
        if not self.each.keys() <= seen.frames.keys():
            raise ValueError(
                "eyes that learn have to see what comes after an action, too, and batches have no frames of that; take "
                "algorithm.encoder=frozen, or a loss whose next value is of the data's action"
            )
        parts = []
        for name, eye in self.each.items():
            frames = seen.frames[name]
            if seen.rng is not None:
                frames = shifted(frames, seen.rng)
            if torch.is_grad_enabled():
                parts.append(eye(frames))
                continue
            less = -len(frames) % self.fewest
            whole = torch.cat([frames, frames[:1].expand(less, *frames.shape[1:])]) if less else frames
            made = torch.cat([eye(part) for part in whole.split(self.fewest)])
            parts.append(made[: len(frames)])
        features = torch.cat(parts, 1)
        return features if seen.rows is None else features[seen.rows]

    def seen(self, frames: Mapping[str, Any], device: torch.device) -> Tensor:
        """Features [T, F] of an episode's frames {camera: [T, H, W, 3]}, as they are when it acts."""
        there = {name: torch.from_numpy(np.ascontiguousarray(frames[name])).to(device) for name in self.each}
        count = len(next(iter(there.values())))
        with torch.no_grad():
            return self(Seen(torch.zeros(count, 1, 0, device=device), there))
