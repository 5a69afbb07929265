"""Plain networks: an MLP, an ensemble of MLPs as one batched matmul, an embedding of time, a normaliser."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional as F

ACTIVATIONS = {"silu": nn.SiLU, "relu": nn.ReLU, "tanh": nn.Tanh}
FAR = 10.0  # widths of a column: what lies further outside is a glitch, not data
PIECE = 2**18  # numbers of training rows that are in memory at once
LARGE = 11_000  # weights of the largest hidden layer, of all members, from which on bfloat16 is faster at 256 rows


def hidden(name: str) -> nn.Module:
    """The activation `name` of hidden layers; ValueError with the list where there is none."""
    if name not in ACTIVATIONS:
        raise ValueError(f"no activation {name!r}. There are: {', '.join(ACTIVATIONS)}")
    return ACTIVATIONS[name]()


def multiplies_bf16(device: str | torch.device) -> bool:
    """Whether the processor of `device` has instructions for products of bfloat16."""
    if torch.device(device).type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()


class Rounded(nn.Module):
    """A stack of layers that can compute its hidden ones in bfloat16: with half the memory, and on processors that
    multiply it, at twice the rate or more. What goes into a product is then rounded to 8 bits; sums, the last layer and
    all that is kept are not.

    Its owner gives it the copies, `twins` {parameter: in bfloat16}, and keeps them equal (rl/learner.py); they are used
    while `on`."""

    on = False  # for all, while a learner learns
    twins: dict[Tensor, Tensor] | None = None

    @property
    def rounds(self) -> bool:
        return Rounded.on and bool(self.twins)

    def inner(self) -> list[nn.Parameter]:
        """The parameters of the hidden layers, if they are large enough for it to pay."""
        raise NotImplementedError


def mlp(
    inputs: int, outputs: int, width: int = 256, depth: int = 3, activation: str = "silu", last_scale: float = 1.0
) -> MLP:
    """`depth` hidden layers of `width` units; [B, inputs] -> [B, outputs]. The last layer begins `last_scale` times
    its usual size: 0.01 in a policy begins near its middle whatever it observes (Andrychowicz et al., 2006.05990,
    section 3.2)."""
    layers: list[nn.Module] = []
    for i in range(depth):
        layers += [nn.Linear(inputs if i == 0 else width, width), hidden(activation)]
    last = nn.Linear(width, outputs)
    with torch.no_grad():
        for p in last.parameters():
            p.mul_(last_scale)
    return MLP(*layers, last)


class MLP(Rounded, nn.Sequential):
    """Linear layers with activations between them."""

    def inner(self) -> list[nn.Parameter]:
        layers = [layer for layer in self[:-1] if isinstance(layer, nn.Linear)]
        if not any(layer.weight.numel() >= LARGE for layer in layers):
            return []
        return [p for layer in layers for p in (layer.weight, layer.bias)]

    def forward(self, x: Tensor) -> Tensor:
        if not self.rounds:
            return super().forward(x)
        for layer in self:
            if isinstance(layer, nn.Linear):
                weight, bias = (self.twins.get(p, p) for p in (layer.weight, layer.bias))
                x = F.linear(x.to(weight.dtype), weight, bias)
            else:
                x = layer(x)
        return x


class Ensemble(Rounded):
    """E independent MLPs computed together; [B, inputs] -> [E, B], or with `outputs` [E, B, outputs].

    `norm`: LayerNorm before each activation bounds what a critic says far from its data (RLPD, arXiv 2302.02948).
    `depth` 0 is a table over one-hot inputs: linear, without bias, zero at first."""

    def __init__(
        self,
        members: int,
        inputs: int,
        width: int = 256,
        depth: int = 2,
        activation: str = "silu",
        norm: bool = True,
        outputs: int = 0,
    ):
        super().__init__()
        self.act, self.outputs = hidden(activation), outputs
        sizes = [inputs] + [width] * depth + [outputs or 1]
        self.weight = nn.ParameterList()
        self.bias = nn.ParameterList()
        self.gain = nn.ParameterList()
        self.shift = nn.ParameterList()
        for i, (n, m) in enumerate(itertools.pairwise(sizes)):
            bound = 1 / math.sqrt(n) if depth else 0.0
            self.weight.append(nn.Parameter(torch.empty(members, n, m).uniform_(-bound, bound)))
            self.bias.append(nn.Parameter(torch.zeros(members, 1, m), requires_grad=depth > 0))
            if norm and i < depth:
                self.gain.append(nn.Parameter(torch.ones(members, 1, m)))
                self.shift.append(nn.Parameter(torch.zeros(members, 1, m)))

        self._walk()

    def _walk(self) -> None:
        """Remember the parameters as lists, which are quicker to walk through."""
        self._parts = [list(part) for part in (self.weight, self.bias, self.gain, self.shift)]

    def _apply(self, *args, **kwargs):
        """Moved to another device the parameters may be other objects."""
        moved = super()._apply(*args, **kwargs)
        self._walk()
        return moved

    def inner(self) -> list[nn.Parameter]:
        hidden = range(len(self.weight) - 1)
        if not any(self.weight[i].numel() >= LARGE for i in hidden):
            return []
        return [part[i] for i in hidden for part in self._parts if i < len(part)]

    def forward(self, x: Tensor, which: slice | Tensor | None = None) -> Tensor:
        """[B, inputs] -> [E, B], of all members or of `which`."""
        parts = self._parts
        if self.rounds:
            parts = [[self.twins.get(p, p) for p in part] for part in parts]
        if which is not None:
            parts = [[p[which] for p in part] for part in parts]
        weight, bias, gain, shift = parts
        x = x.expand(len(weight[0]), *x.shape)
        for i in range(len(weight) - 1):
            x = torch.baddbmm(bias[i], x.to(weight[i].dtype), weight[i])
            if gain:
                x = torch.addcmul(shift[i], F.layer_norm(x, x.shape[-1:]), gain[i])
            x = self.act(x)
        x = x.to(weight[-1].dtype)
        if self.outputs:
            return torch.baddbmm(bias[-1], x, weight[-1])
        return (x * weight[-1].mT).sum(-1) + bias[-1].squeeze(-1)  # one output: faster than a matmul


def time_embedding(t: Tensor, size: int = 32) -> Tensor:
    """Sines and cosines of t in [0, 1]; [B] -> [B, size] (Vaswani et al. 2017, section 3.5)."""
    half = size // 2
    freq = torch.exp(torch.arange(half, device=t.device, dtype=t.dtype) * (-math.log(1000.0) / (half - 1)))
    angle = 1000.0 * t[:, None] * freq
    return torch.cat([angle.sin(), angle.cos()], dim=-1)


class Normaliser(nn.Module):
    """Frozen mean and standard deviation, kept inside the weights; `x -> (x - mean) / std`, bounded by `clip`."""

    def __init__(self, size: int, clip: float = 10.0, floor: float = 5e-3):
        super().__init__()
        self.clip, self.floor = clip, floor
        self.register_buffer("mean", torch.zeros(size))
        self.register_buffer("std", torch.ones(size))

    @torch.no_grad()
    def fit(self, rows, mask=None) -> dict[int, int]:
        """Set mean and std from `rows` [R, size]; a column that hardly moves gets the floor, not a huge gain.

        With `mask` [R, size] from its 1s only; a column without any gets mean 0 and std 1. Values far outside all
        others of their column (`usual`) do not count, since one of them would make all others look alike; {column: how
        many} of these. Rows and mask are read a slice at a time, three times: they may be larger than memory
        (corpus.windows.Steps)."""
        low, high = self.usual(rows)
        count, mean, m2, far = (torch.zeros(len(self.mean), dtype=torch.float64) for _ in range(4))
        for part, piece in self._pieces(rows):
            out = (piece < low) | (piece > high)
            keep = (~out if mask is None else torch.as_tensor(mask[part]).bool() & ~out).double()
            n = keep.sum(0)
            here = (piece * keep).sum(0) / n.clamp_min(1)
            total, apart = (count + n).clamp_min(1), here - mean
            m2 += ((piece - here).square() * keep).sum(0) + apart.square() * count * n / total  # Chan's update
            mean += apart * n / total
            count, far = count + n, far + out.sum(0)
        self.mean.copy_(mean)
        self.std.copy_(torch.where(count > 0, (m2 / count.clamp_min(1)).sqrt(), 1.0).clamp_min(self.floor))
        return {column: int(n) for column, n in enumerate(far.tolist()) if n}

    def usual(self, rows) -> tuple[Tensor, Tensor]:
        """(least, most) [size] each that is not far outside: FAR times the width of the column from it, where the
        width leaves out the outermost value (of many: thousandth) on each side. No bounds for fewer than 20 rows."""
        ends = torch.full((2, len(self.mean)), torch.inf, dtype=torch.float64)
        if len(rows) < 20:
            return -ends[0], ends[1]
        cut = max(1, len(rows) // 1000) + 1
        least, most = ends[:, :0].new_empty(2, 0, len(self.mean))
        for _, piece in self._pieces(rows):
            least, most = (
                torch.cat([so_far, piece]).topk(min(cut, len(so_far) + len(piece)), 0, largest).values
                for so_far, largest in ((least, False), (most, True))
            )
        low, high = least.amax(0), most.amin(0)
        reach = FAR * (high - low).clamp_min(20 * self.floor)
        return low - reach, high + reach

    def _pieces(self, rows) -> Iterator[tuple[slice, Tensor]]:
        """Slices of rows, and what is there in float64."""
        size = max(1, PIECE // max(1, len(self.mean)))
        for first in range(0, len(rows), size):
            part = slice(first, first + size)
            yield part, torch.as_tensor(rows[part], dtype=torch.float64)

    def forward(self, x: Tensor) -> Tensor:
        return ((x - self.mean) / self.std).clamp(-self.clip, self.clip)

    def inverse(self, x: Tensor) -> Tensor:
        return x * self.std + self.mean


class Normalised(nn.Module):
    """What has an `encoder` of observations (flywheel/policy/encoder.py) and a normaliser of actions, `action_norm`."""

    def like(self, other: Normalised):
        """Take over the frozen statistics of `other`."""
        self.encoder.like(other.encoder)
        if self.action_norm.mean.numel():
            self.action_norm.load_state_dict(other.action_norm.state_dict())
        return self


class Temperature(nn.Module):
    """A positive number that can be learnt: exp of one parameter."""

    def __init__(self, start: float = 1.0):
        super().__init__()
        self.log = nn.Parameter(torch.tensor(math.log(start)))

    def forward(self) -> Tensor:
        return self.log.exp()
