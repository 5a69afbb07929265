"""What the references share: nets written out member by member, weights copied from a learner's nets, Adam with decay."""

import torch
from torch import nn
from torch.nn import functional as F


class Net(nn.Module):
    """Linear, SiLU, ..., Linear; a copy of a policy's `net`."""

    def __init__(self, layers):
        super().__init__()
        linear = [layer for layer in layers if isinstance(layer, nn.Linear)]
        self.weight = nn.ParameterList([layer.weight.detach().clone() for layer in linear])
        self.bias = nn.ParameterList([layer.bias.detach().clone() for layer in linear])

    def forward(self, x):
        for i, (w, b) in enumerate(zip(self.weight, self.bias, strict=True)):
            x = x @ w.T + b
            x = F.silu(x) if i + 1 < len(self.weight) else x
        return x


class Value(nn.Module):
    """One member of an ensemble: Linear, LayerNorm, SiLU, ..., Linear to one number, or to `every` action's."""

    def __init__(self, ensemble, member, every=False):
        super().__init__()
        self.every = every
        parts = ("weight", "bias", "gain", "shift")
        for part in parts:
            copied = [p.detach()[member].clone() for p in getattr(ensemble, part)]
            setattr(self, part, nn.ParameterList(copied))

    def forward(self, *inputs):
        x = torch.cat(inputs, 1)
        for i, (w, b) in enumerate(zip(self.weight, self.bias, strict=True)):
            x = x @ w + b
            if i + 1 < len(self.weight):
                mean, var = x.mean(1, keepdim=True), x.var(1, unbiased=False, keepdim=True)
                x = F.silu((x - mean) / (var + 1e-5).sqrt() * self.gain[i] + self.shift[i])
        return x if self.every else x[:, 0]


def adam(params, lr):
    return torch.optim.AdamW(list(params), lr=lr, weight_decay=1e-4)


def follow(slow, fast, rate):
    with torch.no_grad():
        for s, f in zip(slow.parameters(), fast.parameters(), strict=True):
            s += rate * (f - s)


def step(optim, loss, clip=10.0):
    """One update with the gradient's norm cut at `clip`."""
    params = optim.param_groups[0]["params"]
    for p, g in zip(params, torch.autograd.grad(loss, params), strict=True):
        p.grad = g
    nn.utils.clip_grad_norm_(params, clip)
    optim.step()


def squashed(net, obs, noise):
    """a = tanh(u), u = mean + std * noise, for actions in -1..1; and log pi(a)."""
    mean, raw = net(obs).chunk(2, 1)
    log_std = -1.5 + 3.5 * torch.tanh(raw)
    u = mean + log_std.exp() * noise
    normal = torch.distributions.Normal(mean, log_std.exp())
    a = torch.tanh(u)
    return a, (normal.log_prob(u) - 2 * (torch.log(torch.tensor(2.0, dtype=u.dtype)) - u - F.softplus(-2 * u))).sum(1)
