"""Where the data comes from. A source collects (or does not) and hands out batches of chunk transitions.

    time     t-1   t   t+1  t+2  t+3  t+4
    obs       o    o                          obs      [B, To, Do]
    action         a    a    a    a           action   [B, Ta, Da]
    reward         r    r    r    r           reward   [B]  sum_j gamma^j r_{t+j}, over the n <= Ta steps that are left
                                              action_mask [B, Da], of several robots: 1 where this one has a number (corpus.align)
    next                     o    o           next_obs [B, To, Do] ending at t+n, next_action [B, Ta, Da] from there
                                              discount [B]  gamma^n * (1 - terminated);  return [B]  to the episode's end

An episode ends for the learner where success was decided: that step has reward 1 and `terminated`; what came after is not used.
With reward "env" it is the environment's own reward that counts (extras.env_reward), to the episode's end. Where the environment
ended an episode for good, a fall say, nothing is to come either (discount 0); a time-out is no end.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from flywheel.rl.packed import Kept, pack, room

FIELDS = {  # of the window cache, by what is learnt from
    "success": ("obs.state", "action", "reward"),
    "env": ("obs.state", "action", "extras.env_reward"),
}


class Pool:
    """Rows of the window cache that belong to some episodes, in one fixed order, and how to draw from them."""

    def __init__(self, windows, which: np.ndarray, gamma: float, reward: str = "success"):
        rows, columns, own = windows.rows, windows.columns, reward == "env"
        self.which, self.column = which, columns[FIELDS[reward][-1]]
        self.start = windows.start[which].astype(np.int64)
        length = windows.length[which].astype(np.int64)
        terminated = np.array(windows.table["terminated"][which], bool)
        returns = []
        for e, (first, steps) in enumerate(zip(self.start, length, strict=True)):
            r = np.asarray(rows[first : first + steps, self.column]).ravel().astype(np.float64)
            if not own and (r > 0).any():
                steps = length[e] = int((r > 0).argmax()) + 1
                terminated[e], r = True, r[:steps]
            power = gamma ** np.arange(steps)
            returns.append((np.cumsum((r * power)[::-1])[::-1] / power).astype(np.float32))
        self.length, self.terminated = length, terminated
        self.ends = np.cumsum(length)
        self.returns = np.concatenate(returns) if returns else np.zeros(0, np.float32)

    def __len__(self) -> int:
        """Steps to draw from."""
        return int(self.ends[-1]) if len(self.ends) else 0

    def draw(self, rng: np.random.Generator, n: int) -> np.ndarray:
        """n steps, uniformly, counted through all episodes; [n]."""
        return rng.integers(len(self), size=n)

    def place(self, flat: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Where drawn steps are: the episode's index in this pool [n], the step in it [n]."""
        episode = np.searchsorted(self.ends, flat, side="right")
        return episode, flat - (self.ends[episode] - self.length[episode])


class Offline:
    """Batches from a fixed set of episodes: `mixture` {act: {pool: share}}, `pools` {name: indices into `windows`}.

    Transitions are made once and kept on `device` where they fit; else each batch is gathered from the window cache.
    """

    def __init__(
        self,
        windows,
        pools: dict[str, np.ndarray],
        mixture: dict[str, dict[str, float]],
        *,
        obs_steps: int,
        action_steps: int,
        batch_size: int = 256,
        gamma: float = 0.99,
        seed: int = 0,
        reward: str = "success",
        device: str = "cpu",
    ):
        self.To, self.Ta, self.gamma, self.reward = obs_steps, action_steps, gamma, reward
        self.batch_size, self.mixture = batch_size, mixture
        self.rng, self.device, self.kept = np.random.default_rng(seed), device, None
        self.use(windows, pools)

    def use(self, windows, pools: dict[str, np.ndarray]) -> None:
        """Draw from these episodes from now on."""
        self.windows = windows
        self.pools = {
            name: Pool(windows, np.asarray(which, np.int64), self.gamma, self.reward) for name, which in pools.items()
        }
        if pools:
            self._keep(windows)

    def _keep(self, windows) -> None:
        """Make the transitions that are new, if all fit."""
        obs, action = (windows.columns[k].stop - windows.columns[k].start for k in ("obs.state", "action"))
        row = 4 * (2 * self.To * obs + 2 * self.Ta * action + 3)
        if int(windows.length.sum()) * row > room(self.device):
            self.kept = None
            return
        self.kept = self.kept or Kept(self.device)
        hashes = list(windows.version.hashes)
        new = Pool(windows, np.arange(self.kept.known(hashes), len(hashes)), self.gamma, self.reward)
        self.kept.follow(hashes, new.length, lambda steps: self._transitions(new, steps))
        for pool in self.pools.values():  # where each step's transition is
            first = self.kept.begin[pool.which] - (pool.ends - pool.length)
            pool.kept = np.repeat(first, pool.length) + np.arange(len(pool))

    def collect(self, learner) -> None:
        """Offline: nothing."""

    def batch(self, act: str, size: int | None = None) -> dict[str, torch.Tensor]:
        """One batch for an act, by its mixture."""
        return self.draw(self.mixture[act], size or self.batch_size)

    def draw(self, mixture: dict[str, float], size: int) -> dict[str, torch.Tensor]:
        """`size` transitions from pools by share; the shares of pools that are still empty go to the others."""
        shares = {n: w for n, w in mixture.items() if w > 0 and len(self.pools[n])}
        if not shares:
            raise ValueError(f"nothing to draw from: {', '.join(mixture)} hold no step")
        total, left, parts = sum(shares.values()), size, []
        for i, (name, share) in enumerate(shares.items()):
            n = left if i == len(shares) - 1 else min(left, round(size * share / total))
            left -= n
            if n:
                parts.append((self.pools[name], self.pools[name].draw(self.rng, n)))
        if self.kept:
            return self.kept.take(np.concatenate([pool.kept[flat] for pool, flat in parts]))
        made = [self._transitions(pool, flat) for pool, flat in parts]
        rows, layout = pack({k: torch.cat([part[k] for part in made]) for k in made[0]})
        return layout.fields(rows.to(self.device))

    def _transitions(self, pool: Pool, flat: np.ndarray) -> dict[str, torch.Tensor]:
        """The transitions of a pool's drawn steps, from the window cache."""
        episode, t = pool.place(flat)
        first, length = pool.start[episode], pool.length[episode]
        last = first + length  # the row of the final observation
        here = first + t
        left = np.minimum(self.Ta, length - t)  # n of the picture
        columns, gather = self.windows.columns, self.windows.gather
        obs, action = columns["obs.state"], columns["action"]
        stack, chunk = np.arange(1 - self.To, 1), np.arange(2 * self.Ta)
        rows = gather(here, chunk, first, last - 1)  # [n, 2 Ta, W]
        power = self.gamma ** np.arange(self.Ta)
        inside = np.arange(self.Ta) < left[:, None]
        reward = (rows[:, : self.Ta, pool.column][..., 0] * power * inside).sum(1)
        ends = pool.terminated[episode] & (t + left == length)
        mask = {"action_mask": rows[:, 0, columns["action.mask"]].copy()} if "action.mask" in columns else {}
        made = mask | {
            "obs": gather(here, stack, first, last)[..., obs].copy(),
            "action": rows[:, : self.Ta, action].copy(),
            "reward": reward.astype(np.float32),
            "next_obs": gather(here + left, stack, first, last)[..., obs].copy(),
            "next_action": rows[:, self.Ta :, action].copy(),
            "discount": (self.gamma**left * ~ends).astype(np.float32),
            "return": pool.returns[pool.ends[episode] - length + t],
        }
        return {k: torch.from_numpy(v) for k, v in made.items()}

    def state(self) -> dict[str, Any]:
        """What decides the next batch, as JSON values."""
        return {"rng": self.rng.bit_generator.state}

    def load_state(self, state: dict[str, Any]) -> None:
        self.rng.bit_generator.state = state["rng"]


class OffPolicy(Offline):
    """Each round first collects: `gather_round(learner, state)` rolls out, appends and returns the windows and pools to draw
    from next; its own memory is the JSON dict `state`."""

    def __init__(self, *args, gather_round: Callable, memory: dict[str, Any], **kwargs):
        super().__init__(*args, **kwargs)
        self.gather_round, self.memory = gather_round, memory

    def collect(self, learner) -> None:
        self.use(*self.gather_round(learner, self.memory))

    def state(self) -> dict[str, Any]:
        return {**super().state(), "memory": self.memory}

    def load_state(self, state: dict[str, Any]) -> None:
        super().load_state(state)
        self.memory.clear()
        self.memory.update(state["memory"])


class OnPolicy:
    """Only what the policy that acts now has just done: `gather_round(learner, memory)` returns the round's whole episodes.

    Advantages are made once a round (`learner.advantage`), then batches go through the round's chunks in a shuffled order, again
    and again. A chunk's log-probabilities are those of the noise that it was made from, which an episode's seed gives back.
    """

    def __init__(
        self,
        *,
        obs_steps: int,
        action_steps: int,
        gather_round: Callable,
        memory: dict[str, Any],
        batch_size: int = 256,
        gamma: float = 0.99,
        seed: int = 0,
        reward: str = "success",
        device: str = "cpu",
    ):
        self.To, self.Ta, self.gamma, self.reward, self.batch_size = obs_steps, action_steps, gamma, reward, batch_size
        self.gather_round, self.memory, self.device = gather_round, memory, device
        self.rng = np.random.default_rng(seed)

    def collect(self, learner) -> None:
        self.use(self.gather_round(learner, self.memory), learner)

    def use(self, episodes, learner) -> None:
        """Learn from these episodes from now on; what the learner's nets say of them is fixed here."""
        policy = learner.nets["policy"]
        episodes = [
            episode for episode in episodes if "cause" not in episode.meta
        ]  # an environment's fault is no lesson
        if not episodes:
            raise ValueError(
                "every episode of this round failed by the environment's fault: there is nothing to learn from"
            )
        parts = [self._chunks(episode, policy) for episode in episodes]
        whole = {k: torch.from_numpy(np.concatenate([p[k] for p in parts])).to(self.device) for k in parts[0]}
        whole |= learner.advantages(whole)
        self.hold({k: whole[k] for k in ("obs", "action", "chain", "log_prob", "advantage", "return")})

    def hold(self, data: dict[str, torch.Tensor]) -> None:
        """Draw from these chunks [N, ...] from now on, all in the type of the observations."""
        self.rows, self.layout = pack({k: v.to(self.device, data["obs"].dtype) for k, v in data.items()})
        self.order = np.zeros(0, np.int64)

    @property
    def data(self) -> dict[str, torch.Tensor]:
        """The chunks of this round, [N, ...]."""
        return {k: v.cpu().contiguous() for k, v in self.layout.fields(self.rows).items()}

    def _chunks(self, episode, policy) -> dict[str, np.ndarray]:
        """An episode, chunk by chunk: n of them, the last one perhaps cut short."""
        reward, steps, ended = episode.reward, len(episode), episode.terminated
        if self.reward == "env":
            reward = episode.extras["env_reward"]
        elif episode.success:
            steps, ended = int(reward.argmax()) + 1, True
        at = np.arange(0, steps, self.Ta)
        left = np.minimum(self.Ta, steps - at)
        inside = np.arange(self.Ta) < left[:, None]
        index = np.minimum(at[:, None] + np.arange(self.Ta), steps - 1)
        stack, state = np.arange(1 - self.To, 1), episode.obs["state"]
        last = at + self.Ta >= steps
        return {
            "obs": state[np.maximum(at[:, None] + stack, 0)],
            "next_obs": state[np.maximum((at + left)[:, None] + stack, 0)],
            "action": episode.action[index],
            "reward": (reward[index] * self.gamma ** np.arange(self.Ta) * inside).sum(1).astype(np.float32),
            "discount": (self.gamma**left * ~(last & ended)).astype(np.float32),
            "last": last,
            "noise": policy.noises(episode.seed, len(at)),
        }

    def batch(self, act: str, size: int | None = None) -> dict[str, torch.Tensor]:
        """The next batch of a pass through the round's chunks; a pass leaves out the rest that fills no batch."""
        size = min(size or self.batch_size, len(self.rows))
        if len(self.order) < size:
            self.order = self.rng.permutation(len(self.rows))
        taken, self.order = self.order[:size], self.order[size:]
        return self.layout.fields(self.rows.index_select(0, torch.from_numpy(taken).to(self.device)))

    def state(self) -> dict[str, Any]:
        """What decides the next batch, as JSON values; `data` beside it."""
        return {"rng": self.rng.bit_generator.state, "order": self.order.tolist(), "memory": self.memory}

    def load_state(self, state: dict[str, Any], data: dict[str, torch.Tensor]) -> None:
        self.rng.bit_generator.state = state["rng"]
        self.hold(data)
        self.order = np.array(state["order"], np.int64)
        self.memory.clear()
        self.memory.update(state["memory"])
