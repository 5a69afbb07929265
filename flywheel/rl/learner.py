"""A learner: nets, the optimiser of each, slow copies (`lag`), and the tables that say which loss moves which net."""

from __future__ import annotations

import copy
import functools
import inspect
import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from flywheel.parallel import ALONE, Peers
from flywheel.policy.eyes import Seen
from flywheel.policy.nets import Rounded, multiplies_bf16
from flywheel.rl import advantage, evaluate, gate, improve
from flywheel.rl.compiled import Compiled, compiler
from flywheel.rl.optimiser import KINDS, Grouped
from flywheel.rl.shares import Shares
from flywheel.selection import SEEN

ACTS = {"evaluate": evaluate, "improve": improve, "advantage": advantage, "gate": gate}
PARTS = ("next_value", "baseline")  # functions, named: state_value, or with arguments: {smoothed: {noise: 0.2}}
TOLD = 8  # of so many updates one says its numbers: they are small kernels, too
PRECISIONS = ("bf16", "float32")
SKIPS = 10  # updates of a net in a row whose gradient is not finite, and then nothing is to be hoped for


def resolve(act: str, name: str, args: dict[str, Any]):
    """The loss `name` of an act, with its arguments; ValueError with the list where there is none."""
    module = ACTS[act]
    losses = {k: f for k, f in vars(module).items() if inspect.isfunction(f) and f.__module__ == module.__name__}
    if name not in losses:
        raise ValueError(f"no {name!r} in rl/{act}.py. There are: {', '.join(sorted(losses))}")
    args = dict(args or {})
    known = inspect.signature(losses[name]).parameters
    if unknown := set(args) - set(known):
        raise ValueError(f"{name} has no {', '.join(sorted(unknown))}; it has: {', '.join(list(known)[2:]) or 'none'}")
    for part in PARTS:
        if part in args:
            args[part] = _function(module, args[part])
    return losses[name], args


def _function(module, spec: str | dict[str, Any]):
    """The function of `module` that NAME or {NAME: args} names; ValueError with the list where there is none."""
    name, args = next(iter(spec.items())) if isinstance(spec, dict) else (spec, {})
    found = getattr(module, name, None)
    if not inspect.isfunction(found):
        there = [k for k, f in vars(module).items() if inspect.isfunction(f) and f.__module__ == module.__name__]
        raise ValueError(f"no function {name!r} in {module.__name__}. There are: {', '.join(sorted(there))}")
    return functools.partial(found, **args) if args else found


def gradient(
    losses: list[tuple], nets: dict[str, nn.Module], leaves: list[Tensor], partial: bool, batch: dict[str, Any]
) -> tuple:
    """One row of a table: (the sum of its losses, what they say of `stop`, the gradient of the sum with respect to
    `leaves` and to nothing else, and of each loss its name, value and info). Of a `partial` net it is None where a leaf
    has no part in the loss."""
    parts = [(name, *loss(nets, batch, **args)) for name, loss, args in losses]
    total = functools.reduce(torch.add, [value for _, value, _ in parts])
    stops = [info.pop("stop") for *_, info in parts if "stop" in info]
    if not partial:
        return total, stops, torch.autograd.grad(total, leaves), parts
    used = [p for p in leaves if p.requires_grad]
    found = dict(zip(used, torch.autograd.grad(total, used, allow_unused=True), strict=True))
    return total, stops, [found.get(p) for p in leaves], parts


def look(batch: dict[str, Any], rng: torch.Generator | None = None) -> None:
    """Put a batch's frames, "obs.wrist" [B, 1, H, W, 3], or what frozen eyes made of them, "obs.seen" [B, F], where
    policies look for them. With `rng` frames are to be shifted."""
    parts = [key for key in batch if "." in key]
    for obs in ("obs", "next_obs") if parts else ():
        there = {key.removeprefix(f"{obs}."): batch.pop(key) for key in parts if key.startswith(f"{obs}.")}
        features = there.pop(SEEN, None)
        features = features if features is None else features[:, -1]
        if features is not None or there:
            frames = {name: frame[:, -1] for name, frame in there.items()}
            batch[obs] = Seen(batch[obs], frames, rng=rng, features=features)


class Flat:
    """The parameters of a net that can be learnt, from now on views into one vector: clipping, Adam and the slow copy
    are one kernel each. Each begins at 64 bytes, as if it stood alone: a matrix product may depend on it in the last
    bit.

    With `rounded` the net's stacks compute with bfloat16 copies of their hidden parameters, and gradients are taken of
    these."""

    def __init__(self, net: nn.Module, rounded: bool = False, learnt: bool = True):
        self.params = [p for p in net.parameters() if p.requires_grad]
        sizes = [-(-p.numel() // 16) * 16 for p in self.params]
        self.values = self.params[0].new_zeros(sum(sizes), requires_grad=False)
        self.values.grad = torch.zeros_like(self.values)
        self.grads = [
            part[: p.numel()].view_as(p) for p, part in zip(self.params, self.values.grad.split(sizes), strict=True)
        ]
        for p, part in zip(self.params, self.values.split(sizes), strict=True):
            p.data = part[: p.numel()].view_as(p).copy_(p.data)
            p.requires_grad_(learnt)
        self.half, self.leaves = None, self.params
        stacks = [module for module in net.modules() if isinstance(module, Rounded) and module.inner()]
        if rounded and stacks and self.values.dtype == torch.float32:
            self.half = self.values.bfloat16()
            parts, twins = dict(zip(self.params, self.half.split(sizes), strict=True)), {}
            for module in stacks:
                inner = [p for p in module.inner() if p in parts]  # what is frozen stays as it is
                module.twins = {p: parts[p][: p.numel()].view_as(p).requires_grad_(learnt) for p in inner}
                twins |= module.twins
            self.leaves = [twins.get(p, p) for p in self.params]

    def refresh(self) -> None:
        """After the values changed: the rounded copies follow."""
        if self.half is not None:
            self.half.data.copy_(self.values)

    def take(self, slices: Sequence[Sequence[Tensor | None]], peers: Peers = ALONE, ordered: bool = False) -> float:
        """Take over the gradient of the leaves, the mean over slices of a batch, of all processes that train together;
        its norm. `ordered`: summed in the order of the slices, whoever had them. `moves` says which leaves have one."""
        rows = []
        for gradient in slices:
            self.moves = [g is not None for g in gradient]
            if not all(self.moves):
                gradient = [torch.zeros_like(p) if g is None else g for p, g in zip(self.params, gradient, strict=True)]
            torch._foreach_copy_(self.grads, gradient)
            if ordered:
                rows.append(self.values.grad.clone())
        if ordered:
            self.values.grad.copy_(peers.mean(torch.stack(rows)))
        else:
            peers.average(self.values.grad)
        return torch.linalg.vector_norm(self.values.grad).item()

    def cut(self, norm: float, most: float) -> None:
        """Shorten a gradient of this norm to at most `most`."""
        if norm + 1e-6 > most:
            self.values.grad *= most / (norm + 1e-6)


class Learner:
    """`nets` {name: module}, `evaluate` and `improve` {net: {loss: args}}, `lag` {net: rate}, `lr` one rate or {net:
    rate}. `optimiser` adamw, or sgd: plain steps, without decay or a cut gradient; None is adamw, or what a policy
    brings for so many `updates` in all (rl/optimiser.py, Grouped).

    `advantage` {name: args} is what a clipped surrogate asks for; where the batch does not bring it, it is made of the
    policy as it was when the round's improvement began, `policy.old`. With `restart` each round's improvement begins
    from the policy as it is now (the anchor), not from the last round's. `precision` bf16 lets a processor that
    multiplies bfloat16 do so in the hidden layers of an update; weights, losses and all that acts stay float32.
    `compile` makes each row's gradient one compiled function, where a C++ compiler is there (rl/compiled.py); an update
    that is told, each eighth, is not. `peers` train the same nets on other rows of each batch (parallel.py), each on
    its share of the batch's `slices`, whose gradients are summed in one order."""

    def __init__(
        self,
        nets: dict[str, nn.Module],
        *,
        evaluate: dict,
        improve: dict,
        lag: dict[str, float],
        lr: float | dict[str, float] = 3e-4,
        clip: float = 10.0,
        weight_decay: float = 1e-4,
        seed: int = 0,
        device: str = "cpu",
        restart: bool = False,
        optimiser: str | None = None,
        advantage: dict | None = None,
        precision: str = "bf16",
        compile: bool = False,
        peers: Peers = ALONE,
        slices: int = 1,
        updates: int = 1,
    ):
        if optimiser == "sgd":
            clip, weight_decay = float("inf"), 0.0
        if precision not in PRECISIONS:
            raise ValueError(f"no precision {precision!r}. There are: {', '.join(PRECISIONS)}")
        self.nets = {name: net.to(device) for name, net in nets.items()}
        self.lag, self.clip, self.device, self.advantage, self.peers = dict(lag), clip, device, None, peers
        self._copies(advantage)
        self.tables = {"evaluate": self._table("evaluate", evaluate), "improve": self._table("improve", improve)}
        moved = {net for table in self.tables.values() for net in table}
        rounded = precision == "bf16" and multiplies_bf16(device)
        self.flat = {
            name: Flat(net, rounded, learnt=name in moved)
            for name, net in self.nets.items()
            if name in moved or name.endswith(".lag")
        }
        rates = lr if isinstance(lr, dict) else dict.fromkeys(moved, lr)
        self.optim = {
            net: Grouped(self.flat[net], *self.nets[net].optimiser(updates))
            if optimiser is None and hasattr(self.nets[net], "optimiser")
            else KINDS[optimiser or "adamw"](self.flat[net].values, rates[net], weight_decay)
            for net in sorted(moved)
        }
        self.rates = {net: optim.lr for net, optim in self.optim.items()}
        self.rows = {
            (act, net): functools.partial(
                gradient, losses, self.nets, self.flat[net].leaves, getattr(self.nets[net], "partial", False)
            )
            for act, table in self.tables.items()
            for net, losses in table.items()
        }
        self.ordered, self.whole = slices > 1, max(slices, peers.size)
        self.mine = range(peers.rank, self.whole, peers.size)  # numbers of this process's slices
        self.quick = self._compiled() if compile and self.whole == 1 else self.rows  # where nothing is told
        self.rng = torch.Generator(device).manual_seed(seed)
        self.anchor = copy.deepcopy(self.nets["policy"].state_dict()) if restart else None
        self.sums: dict[str, Tensor] = {}  # of what losses logged since the last `metrics`
        self.counts: dict[str, int] = {}
        self.acts: dict[str, int] = defaultdict(int)  # since the last `metrics`
        self.skipped: dict[str, int] = defaultdict(int)  # updates of a net in a row that were left out: {net: n}

    def _compiled(self) -> dict:
        """The rows of the tables, compiled where that can be."""
        policy = self.nets.get("policy")
        if not compiler() or getattr(policy, "cameras", None):
            return self.rows
        return {(act, net): Compiled(f"{net} of {act}", row, policy) for (act, net), row in self.rows.items()}

    def _copies(self, advantage: dict | None) -> None:
        """The slow copies, and the policy as it was when a round's improvement began, for what is made of that."""
        for name in self.lag:
            if name not in self.nets:
                raise ValueError(f"lag names {name!r}; there are the nets: {', '.join(self.nets)}")
            self.nets[f"{name}.lag"] = copy.deepcopy(self.nets[name])
        if advantage:
            ((name, args),) = advantage.items()
            function, filled = resolve("advantage", name, args)
            self.advantage = functools.partial(function, **filled)
            self.nets["policy.old"] = copy.deepcopy(self.nets["policy"]).requires_grad_(False)

    def _table(self, act: str, rows: dict) -> dict:
        table = {}
        for net, losses in (rows or {}).items():
            if net not in self.nets:
                raise ValueError(f"{act} names the net {net!r}; there are: {', '.join(self.nets)}")
            table[net] = [(name, *resolve(act, name, args)) for name, args in losses.items()]
        return table

    def act(self, act: str, batch: dict[str, Tensor]) -> bool:
        """One update of every net in the act's table, in the table's order; then the slow copies follow.

        True, and nothing more is moved, if a loss says `stop`: enough of this act for this round.
        """
        Rounded.on = True
        try:
            return self._act(act, batch)
        finally:
            Rounded.on = False

    def _each(self, call: Callable[[dict], Any], slices: list[dict]) -> list:
        """What is made of each of this process's slices of a batch; random numbers are those of the whole batch."""
        if self.whole == 1:
            return [call(slices[0])]
        begin, made = self.rng.get_state(), []
        for number, one in zip(self.mine, slices, strict=True):
            self.rng.set_state(begin)
            with Shares(number, self.whole, len(one["action"])):
                made.append(call(one))
        return made

    def _act(self, act: str, batch: dict[str, Tensor]) -> bool:
        n = len(self.mine)
        slices = [batch] if n == 1 else [{k: v[i::n].contiguous() for k, v in batch.items()} for i in range(n)]
        slices = self._each(functools.partial(self.complete, act), slices)
        told = self.acts[act] % TOLD == 0
        self.acts[act] += 1
        for net in self.tables[act]:
            made = self._each((self.rows if told else self.quick)[act, net], slices)
            if any(any(stops) for _, stops, _, _ in made):
                return True
            for name, value, info in (part for *_, parts in made for part in parts) if told else ():
                for key, number in ({name: lambda value=value: value} | info).items():
                    self._note(f"{net}.{key}", number())
            flat = self.flat[net]
            norm = flat.take([grads for _, _, grads, _ in made], self.peers, self.ordered)
            if not math.isfinite(norm):  # left out: the weights stay what they are
                self.skipped[net] += 1
                if self.skipped[net] >= SKIPS:
                    raise FloatingPointError(
                        f"{act}: the gradient of {net} was not finite in {SKIPS} updates in a row (loss "
                        f"{made[0][0].item():.3g}). Look for "
                        "values far outside the others in the data (`flywheel corpus stats`), or take a smaller "
                        "algorithm.lr"
                    )
                continue
            self.skipped[net] = 0
            flat.cut(norm, getattr(self.optim[net], "clip", self.clip))
            self.optim[net].step()
            flat.refresh()
        for net, rate in self.lag.items():
            if net in self.tables[act]:
                self._follow(net, rate)
        return False

    def advantages(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """The table's advantage of a whole round's data."""
        return self.advantage(self.nets, {k: v.to(self.device) for k, v in batch.items()} | {"rng": self.rng})

    def complete(self, act: str, batch: dict[str, Tensor]) -> dict[str, Any]:
        """A batch on the device, with the random generator and, to improve, the advantages that it does not bring."""
        batch = {k: v.to(self.device, non_blocking=True) for k, v in batch.items()} | {"rng": self.rng}
        look(batch, self.rng)
        if act == "improve" and self.advantage and "advantage" not in batch:
            batch |= self.advantage(self.nets, batch)
        return batch

    @torch.no_grad()
    def _follow(self, net: str, rate: float) -> None:
        slow = self.flat[f"{net}.lag"]
        slow.values.lerp_(self.flat[net].values, rate)
        slow.refresh()
        if getattr(self.nets[net], "partial", False):  # its buffers move
            for kept, now in zip(self.nets[f"{net}.lag"].buffers(), self.nets[net].buffers(), strict=True):
                kept.copy_(now)

    def _note(self, key: str, value: Tensor) -> None:
        self.sums[key] = self.sums.get(key, 0.0) + value.detach().float()
        self.counts[key] = self.counts.get(key, 0) + 1

    def mean(self, key: str) -> float | None:
        """The mean of what a loss logged under this key since the last `metrics`; None where it did not."""
        return float(self.sums[key]) / self.counts[key] if key in self.sums else None

    def metrics(self) -> dict[str, float]:
        """Means since the last call, over every eighth update."""
        means = {key: float(total) / self.counts[key] for key, total in self.sums.items()}
        if self.peers.size > 1 and means:
            of_all = torch.tensor([means[key] for key in sorted(means)], device=self.device)
            self.peers.average(of_all)
            means = dict(zip(sorted(means), of_all.tolist(), strict=True))
        for kept in (self.sums, self.counts, self.acts):
            kept.clear()
        return means

    def slow(self, share: float) -> None:
        """Move the policy at this share of its learning rate from now on."""
        self.optim["policy"].lr = share * self.rates["policy"]

    def scale_rates(self, share: float) -> None:
        """Multiply all learning rates by this, for good."""
        for net, optim in self.optim.items():
            self.rates[net] *= share
            optim.lr *= share

    def begin_improve(self) -> None:
        """Remember the policy as it is (`policy.old`, where there is one). With an anchor: the policy, its slow copy
        and its optimiser begin this round where they began the first."""
        if "policy.old" in self.nets:
            self.nets["policy.old"].load_state_dict(self.nets["policy"].state_dict())
        if self.anchor is not None:
            for name in ("policy", "policy.lag"):
                if name in self.nets:
                    self.nets[name].load_state_dict(self.anchor)
                    self.flat[name].refresh()
            for slot in self.optim["policy"].slots.values():
                slot.zero_()

    def try_all(self, batches: dict[str, dict[str, Tensor]]) -> None:
        """Run every loss once on a tiny batch, without a step: what cannot work fails in the first second."""
        before = self.rng.get_state()
        for act, batch in batches.items():
            batch = self.complete(act, batch)
            for net, losses in self.tables[act].items():
                for name, loss, args in losses:
                    try:
                        value, _ = loss(self.nets, batch, **args)
                    except KeyError as error:
                        raise ValueError(
                            f"{act}.{net}.{name} needs the net or batch entry {error}; nets: {', '.join(self.nets)}; "
                            f"batch: {', '.join(batch)}. Add it to the algorithm's table (or to lag, for NAME.lag); a "
                            "teacher comes with `flywheel distil`"
                        ) from error
                    if getattr(self.nets[net], "partial", False) and not self._moved(net, value):
                        raise ValueError(
                            f"{act}.{net}.{name} has no gradient with respect to {net}: LeRobot's policies are sampled "
                            "without one. Imitate (algorithm=bc, rounds), or put a residual over it"
                        )
        self.rng.set_state(before)

    def _moved(self, net: str, value: Tensor) -> bool:
        """Does this value depend on the net's parameters?"""
        leaves = [p for p in self.flat[net].leaves if p.requires_grad]
        return value.requires_grad and any(g is not None for g in torch.autograd.grad(value, leaves, allow_unused=True))

    # -- state -------------------------------------------------------------------------------------------------------

    def state(self) -> dict[str, Tensor]:
        """Everything that decides what comes next, as flat tensors."""
        flat = {f"nets/{n}/{k}": v for n, net in self.nets.items() for k, v in net.state_dict().items()}
        for net, optim in self.optim.items():
            flat |= {f"optim/{net}/{k}": v for k, v in optim.slots.items()}
        flat["rng"] = self.rng.get_state()
        flat |= {f"sums/{k}": v for k, v in self.sums.items()}
        flat |= {f"counts/{k}": torch.tensor(v) for k, v in self.counts.items()}
        flat |= {f"acts/{k}": torch.tensor(v) for k, v in self.acts.items()}
        flat |= {f"skipped/{k}": torch.tensor(v) for k, v in self.skipped.items()}
        return {k: v.detach().cpu().clone() for k, v in flat.items()}

    def load_state(self, flat: dict[str, Tensor]) -> None:
        """Take over what `state` returned. ValueError where that was on another kind of device, whose random numbers
        these are not."""
        if flat["rng"].shape != self.rng.get_state().shape:
            raise ValueError(
                f"this run was begun on another kind of device than {self.device}: its random numbers go on only "
                "there. Name that one with device=, or remove the run's folder to begin again"
            )
        for kept in (self.sums, self.counts, self.acts, self.skipped):
            kept.clear()
        nets: dict[str, dict] = defaultdict(dict)
        for key, value in flat.items():
            if key.startswith("nets/"):
                _, net, name = key.split("/", 2)
                nets[net][name] = value
            elif key.startswith("optim/"):
                _, net, name = key.split("/", 2)
                self.optim[net].slots[name].copy_(value)
            elif key.startswith("sums/"):
                self.sums[key.removeprefix("sums/")] = value.to(self.device)
            elif key.startswith(("counts/", "acts/", "skipped/")):
                kind, name = key.split("/", 1)
                getattr(self, kind)[name] = int(value)
        for net, state in nets.items():
            self.nets[net].load_state_dict(state)
            if net in self.flat:
                self.flat[net].refresh()
        self.rng.set_state(flat["rng"])

    def snapshot(self) -> dict[str, Tensor]:
        return self.state()

    def restore(self, before: dict[str, Tensor], reason: str) -> None:
        """Roll everything back: weights, optimiser, normaliser, random state."""
        self.load_state(before)
