"""Where the data comes from. A source collects (or does not) and hands out batches of chunk transitions.

    time     t-1   t   t+1  t+2  t+3  t+4
    obs       o    o                          obs      [B, To, Do]
    action         a    a    a    a           action   [B, Ta, Da]
    reward         r    r    r    r           reward   [B]  sum_j gamma^j r_{t+j}, over the n <= Ta steps that are left
                                              action_mask [B, Da], of several robots: 1 where this one has a number
                                              (corpus.align)
    next                     o    o           next_obs [B, To, Do] ending at t+n, next_action [B, Ta, Da] from there
                                              discount [B]  gamma^n * (1 - terminated);  return [B]  to the episode's
                                              end

An episode ends for the learner where success was decided: that step has reward 1 and `terminated`; what came after is
not used. With reward "env" it is the environment's own reward that counts (extras.env_reward), to the episode's end.
Where the environment ended an episode for good, a fall say, nothing is to come either (discount 0); a time-out is no
end."""

from __future__ import annotations

import weakref
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from flywheel.corpus.ahead import ahead
from flywheel.corpus.rows import Rows
from flywheel.corpus.sampling import Growing, Pool, divided, fractions
from flywheel.obs import PRIVILEGED
from flywheel.rl import packed
from flywheel.rl.hindsight import imitated
from flywheel.rl.packed import Kept, pack
from flywheel.selection import FIELDS, SEEN

GROUP, GROUP_BYTES = 32, 8 * 2**20  # batches that are read ahead at once: so many, or as many as take so much memory
WORKED = 4  # times as many are worked out at once where they are copied a piece at a time
PIECE_BYTES = 2 * 2**20  # of these are copied at once, into memory of their own
ANEW = (
    "the window cache was built anew while it was trained from; give the same command again: it goes on from its last "
    "state"
)
PLACE = 2**18  # bytes of a map that come into memory with each sample, about
WHOLE = slice(None)


@dataclass
class Reading:
    """How far an act is read: the group that is worked out, its piece that is copied, or who reads ahead."""

    group: int | None = None
    later: dict[str, Any] = field(default_factory=dict)  # what the group is made of
    places: dict[str, np.ndarray] = field(default_factory=dict)  # of its frames
    piece: int = -1
    batches: list[dict[str, torch.Tensor]] = field(default_factory=list)
    stream: Any = None
    arrays: dict[str, np.ndarray] = field(default_factory=dict)  # what it read last


class Source:
    """What every source is told: chunks of `action_steps` (Ta) after `obs_steps` (To) observations, `batch_size` of
    them at once on `device`, and what they earn: `reward` ("success" or "env"), less by `gamma` each step."""

    def __init__(
        self,
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
        self.batch_size, self.seed, self.device = batch_size, seed, device


class Offline(Source):
    """Batches from a fixed set of episodes: `mixture` {act: {pool: share}}, `pools` {name: positions among `windows`,
    or rows (position, first step, steps) for parts of episodes}.

    Batch k of an act follows from seed and k alone (corpus.sampling), so that `state` is a number an act, and is the
    same with any number of `workers` (processes that read ahead). Transitions are made once and kept on `device` where
    there is room for all of them; else they are gathered from the window cache, a few batches at once. `cameras` are
    windows of a camera each, of the same episodes: batches have their last `frames` (To) too, {"obs.front": [B, frames,
    H, W, 3]} uint8. With a `window` (first, last) they have the actions of these steps from now too, "window" [B, H,
    Da], and where that is outside the episode, "window_pad" [B, H]. Of `world_size` readers, this is `rank`."""

    collects, data = False, {}  # does a policy act for it? what it holds that no corpus has

    def __init__(
        self,
        windows,
        pools: dict[str, np.ndarray],
        mixture: dict[str, dict[str, float]],
        *,
        cameras: Sequence = (),
        frames: int | None = None,
        window: tuple[int, int] | None = None,
        workers: int = 0,
        rank: int = 0,
        world_size: int = 1,
        **drawn: Any,
    ):
        super().__init__(**drawn)
        if not 0 <= rank < world_size:
            raise ValueError(f"source: rank {rank} of world_size {world_size}; expected 0 <= rank < world_size")
        self.mixture, self.workers, self.rank, self.world_size = mixture, workers, rank, world_size
        self.frames = self.To if frames is None else frames
        self.window = None if window is None else np.arange(window[0], window[1] + 1)
        self.power = (self.gamma ** np.arange(self.Ta + 1)).astype(np.float32)
        self.taken = dict.fromkeys(mixture, 0)  # batches given
        self.use(windows, pools, cameras)

    def use(self, windows, pools: dict[str, np.ndarray], cameras: Sequence = ()) -> None:
        """Draw from these episodes from now on."""
        self.rows, self.cameras, self.pools = None, {}, {}
        self.first, self.start, self.length = (Growing(np.int64) for _ in range(3))  # of each episode
        self.terminated, self.rewards, self.returns = Growing(bool), Growing(np.float32), Growing(np.float32)
        self.episode = Growing(np.int32)  # of each step
        self.kept, self.read, self.groups = Kept(self.device), {}, {}
        self.add(windows, pools, cameras)

    def add(self, rows, pools: dict[str, np.ndarray], cameras: Sequence = ()) -> None:
        """Draw from these episodes too, at the cost of these alone. Where transitions are not kept, rows are Windows
        over one file."""
        if not pools:
            return
        if self.kept is None and not rows.same(self.rows):
            raise ValueError(ANEW)
        self.rows, self.read = rows, {}
        for camera in cameras:
            if not (camera.row and np.array_equal(camera.length, rows.length)):
                raise ValueError(f"{camera.fields} are no windows of a camera of the episodes of {rows.fields}")
            earlier, starts = self.cameras.get(camera.fields[0], (None, Growing(np.int64)))
            if earlier is not None and not camera.same(earlier):
                raise ValueError(ANEW)
            starts.add(camera.start)
            self.cameras[camera.fields[0]] = camera, starts
        before = len(self.returns)
        length, terminated = self._decided(rows)
        first = before + np.cumsum(length) - length
        self.episode.add(np.repeat(np.arange(len(self.first), len(self.first) + len(length)), length))
        for column, values in (("first", first), ("start", rows.start), ("length", length), ("terminated", terminated)):
            getattr(self, column).add(values)
        for name, which in pools.items():
            which = np.asarray(which, np.int64)
            begin, steps = 0, length[which if which.ndim == 1 else which[:, 0]]
            if which.ndim == 2:  # some steps of episodes, [n, 3]: the episode, the first of them, how many
                which, begin, steps = which[:, 0], which[:, 1], np.clip(steps - which[:, 1], 0, which[:, 2])
            self.pools.setdefault(name, Pool()).add(first[which] + begin, steps)
        total = len(self.returns)
        shown = self.frames * sum(camera.bytes for camera, _ in self.cameras.values())
        for early, size, times in ((False, self._bytes(rows), WORKED), (True, self._bytes(rows) + shown, 1)):
            samples = min(times * GROUP_BYTES // size, rows.resident // PLACE)
            self.groups[early] = max(1, min(times * GROUP, samples // self.batch_size))
        self.piece = max(1, PIECE_BYTES // self._bytes(rows) // self.batch_size)
        if not self.fits(rows, total):
            self.kept = None
            return
        for low in range(before, total, packed.PIECE):
            made = self._transitions(np.arange(low, min(low + packed.PIECE, total)))
            self.kept.add({k: torch.from_numpy(v[:]) for k, v in made.items()}, total)

    def _bytes(self, rows) -> int:
        """Of a transition."""
        obs, action, mask, seen, known = (
            len(range(*rows.columns.get(k, slice(0)).indices(rows.width)))
            for k in ("obs.state", "action", "action.mask", f"extras.{SEEN}", f"extras.{PRIVILEGED}")
        )
        window = 0 if self.window is None else len(self.window) * (action + 1)
        return 4 * (2 * self.To * obs + 2 * self.Ta * action + window + mask + 2 * seen + 2 * known + 3)

    def fits(self, rows, total: int) -> bool:
        """Can `total` transitions from such rows be kept?"""
        return self.kept is not None and total * self._bytes(rows) <= packed.room(self.device, rows.resident)

    def _decided(self, rows) -> tuple[np.ndarray, np.ndarray]:
        """Of each episode: the steps that are learnt from, and whether nothing comes after them. What these steps
        earn, over a chunk and to the end, is kept: with the episode of each, 12 bytes a step."""
        length, terminated = rows.length.astype(np.int64), np.array(rows.terminated, bool)
        for e, (first, steps) in enumerate(zip(rows.start.tolist(), length.tolist(), strict=True)):
            r = rows.read(first, first + steps, rows.columns[FIELDS[self.reward][-1]]).ravel().astype(np.float64)
            if self.reward != "env" and (r > 0).any():
                steps = length[e] = int((r > 0).argmax()) + 1
                terminated[e], r = True, r[:steps]
            power = self.gamma ** np.arange(steps)
            self.returns.add((np.cumsum((r * power)[::-1])[::-1] / power).astype(np.float32))
            earned = np.zeros(steps)
            for later in range(min(self.Ta, steps)):
                earned[: steps - later] += self.gamma**later * r[later:]
            self.rewards.add(earned.astype(np.float32))
        return length, terminated

    def collect(self, learner) -> None:
        """Offline: nothing."""

    @property
    def group(self) -> int:
        """Batches that are read at once; by processes that read ahead, with their frames."""
        return self.groups[self.workers > 0]

    def batch(self, act: str) -> dict[str, torch.Tensor]:
        """The next batch of an act, by its mixture."""
        group, inside = divmod(self.taken[act], self.group)
        self.taken[act] += 1
        now = self.read.setdefault(act, Reading())
        if now.group != group:
            ahead_pays = self.workers and (self.kept is None or self.cameras)
            if ahead_pays and now.stream is None:
                like = self._arrays(act, group)
                own = weakref.proxy(self)  # no cycle: the workers of a source that nobody holds end at once
                now.stream = ahead(lambda number: own._arrays(act, number), group, self.workers, like)
            if now.stream:
                now.arrays = next(now.stream)
            else:
                steps = self.steps(act, group * self.group, self.group)
                now.later, now.places = self._of(steps), self._places(steps)
            now.group, now.piece = group, -1
        size = 1 if now.stream else self.piece
        piece, at = divmod(inside, size)
        if now.piece != piece:
            part = self._part(piece, size)
            arrays = _cut(now.arrays if now.stream else now.later, part)
            if now.stream:  # another group will be written there
                arrays = {name: value.copy() for name, value in arrays.items()}
            now.batches, now.piece = self._batches(arrays), piece
        if not now.places:
            return now.batches[at]
        here = self._part(inside)
        return now.batches[at] | self._tensors(self._shown({name: rows[here] for name, rows in now.places.items()}))

    def _batches(self, arrays: dict[str, np.ndarray]) -> list[dict[str, torch.Tensor]]:
        """These samples on the device, a batch each."""
        whole = self._tensors(arrays)
        parts = zip(*(tensor.chunk(len(tensor) // self.batch_size) for tensor in whole.values()), strict=True)
        return [dict(zip(whole, part, strict=True)) for part in parts]

    def _part(self, number: int, batches: int = 1) -> slice:
        """Where the samples of a batch are, or of so many at once."""
        size = self.batch_size * batches
        return slice(number * size, (number + 1) * size)

    def steps(self, act: str, number: int, count: int = 1) -> np.ndarray:
        """The steps that batches `number`, `number` + 1, ... of an act are made of, [count * B]."""
        size = self.batch_size * self.world_size  # of all readers: a pool's share is one of the whole batch
        samples = np.arange(count * size) + number * size
        drawn = fractions(self.seed ^ zlib.crc32(act.encode()) << 32, samples).reshape(count, -1)
        return self._drawn(self.mixture[act], drawn)[:, self.rank :: self.world_size].ravel()

    def draw(self, mixture: dict[str, float], size: int) -> dict[str, torch.Tensor]:
        """`size` transitions from pools by share, the same each time; no batch is taken for it."""
        steps = self._drawn(mixture, fractions(self.seed, np.arange(size))[None])[0]
        return self._tensors(_cut(self._of(steps)) | self.looked(steps))

    def _drawn(self, mixture: dict[str, float], drawn: np.ndarray) -> np.ndarray:
        """The steps [N, B] at fractions [N, B], each row by the mixture."""
        counts = divided(mixture, self.pools, drawn.shape[1])
        parts = np.split(drawn, np.cumsum([*counts.values()])[:-1], axis=1)
        return np.concatenate([self.pools[name].at(part) for name, part in zip(counts, parts, strict=True)], axis=1)

    def _arrays(self, act: str, group: int) -> dict[str, np.ndarray]:
        """A group of batches of an act, one after the other in one, with frames."""
        steps = self.steps(act, group * self.group, self.group)
        arrays = _cut(self._of(steps))
        if self.kept and self.device == "cpu":
            arrays = {name: value.numpy() for name, value in self._tensors(arrays).items()}
        return arrays | self.looked(steps)

    def _of(self, steps: np.ndarray) -> dict[str, Any]:
        """What batches of these steps are made of beside frames: the steps themselves where their transitions are
        kept."""
        return {"steps": steps} if self.kept else self._transitions(steps)

    def looked(self, steps: np.ndarray) -> dict[str, np.ndarray]:
        """What the cameras saw at steps [n]: {"obs.front": [n, frames, H, W, 3]}."""
        return self._shown(self._places(steps))

    def _places(self, steps: np.ndarray) -> dict[str, np.ndarray]:
        """The rows of each camera's windows that steps [n] look at, {"obs.front": [n, frames]}."""
        if not self.cameras:
            return {}
        episode, t = self.where(steps)
        back = np.maximum(t[:, None] + np.arange(1 - self.frames, 1), 0)
        return {name: starts.all[episode][:, None] + back for name, (_, starts) in self.cameras.items()}

    def _shown(self, places: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """The frames in these rows, {"obs.front": [n, frames, H, W, 3]}."""
        made = {}
        for name, rows in places.items():
            camera = self.cameras[name][0]
            made[name] = camera.take(rows).reshape(*rows.shape, *camera.row)
        return made

    def _tensors(self, arrays: dict[str, np.ndarray]) -> dict[str, torch.Tensor]:
        """Samples on the device: one copy to there, and one for each camera."""
        frames = {k: torch.from_numpy(arrays[k]).to(self.device) for k in self.cameras if k in arrays}
        if "steps" in arrays:
            return self.kept.take(arrays["steps"]) | frames
        made = {k: torch.from_numpy(v) for k, v in arrays.items() if k not in frames}
        if made and self.device != "cpu":
            rows, layout = pack(made)
            made = layout.fields(rows.to(self.device))
        return made | frames

    def where(self, steps: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Where steps [n] are: the episode [n], in the order in which episodes were added, and the step in it [n]."""
        episode = self.episode.all[steps]
        return episode, steps - self.first.all[episode]

    def _transitions(self, steps: np.ndarray) -> dict[str, Any]:
        """The transitions of some steps, from the window cache: arrays, and what is one where it is asked for a part
        (corpus.rows.Later)."""
        episode, t = self.where(steps)
        first, length = self.start.all[episode], self.length.all[episode]
        here, last = first + t, first + length  # the row of the final observation
        left = np.minimum(self.Ta, length - t)  # n of the picture
        columns, gather, later = self.rows.columns, self.rows.gather, self.rows.later
        stack, chunk = np.arange(1 - self.To, 1), np.arange(self.Ta)
        ends = self.terminated.all[episode] & (t + left == length)
        mask = {}
        if "action.mask" in columns:
            mask = {"action_mask": gather(here, chunk[:1], first, last, columns=columns["action.mask"])[:, 0]}
        seen = {}
        for what in (SEEN, PRIVILEGED):
            for name, at in (("obs", here), ("next_obs", here + left)) if f"extras.{what}" in columns else ():
                seen[f"{name}.{what}"] = gather(at, chunk[:1], first, last, columns=columns[f"extras.{what}"])
        if self.window is not None:
            there = later(here, self.window, first, last - 1, columns=columns["action"])
            outside = (t[:, None] + self.window < 0) | (t[:, None] + self.window >= length[:, None])
            seen |= {"window": there, "window_pad": outside.astype(np.float32)}
        both = later(here, np.arange(2 * self.Ta), first, last - 1, columns=columns["action"])
        action, following = both.parted(self.Ta)
        return (
            mask
            | seen
            | {
                "obs": later(here, stack, first, last, columns=columns["obs.state"]),
                "action": action,
                "reward": self.rewards.all[steps],
                "next_obs": later(here + left, stack, first, last, columns=columns["obs.state"]),
                "next_action": following,
                "discount": np.where(ends, 0, self.power[left]),
                "return": self.returns.all[steps],
            }
        )

    def state(self) -> dict[str, Any]:
        """What decides the next batch, as JSON values: how many batches of each act were taken."""
        return {"taken": dict(self.taken)}

    def load_state(self, state: dict[str, Any], data: dict[str, torch.Tensor] | None = None) -> None:
        """Go on where another source stood; `data` is what it held that no corpus has."""
        self.taken, self.read = dict(state["taken"]), {}


def _cut(batch: dict[str, Any], part: slice = WHOLE) -> dict[str, np.ndarray]:
    """This part of a batch."""
    return {name: value[part] for name, value in batch.items()}


class OffPolicy(Offline):
    """Each round first collects: `play(learner)` rolls out and returns the episodes to learn from besides.
    `held(hashes, windows)` gives windows (those, extended), pools and cameras of episodes out of the corpus, of all by
    default: it is asked at first, and once transitions have outgrown the room for them. `looked(episodes)` are the
    windows of each camera over a round's episodes, for eyes that learn."""

    collects = True

    def __init__(
        self,
        mixture: dict[str, dict[str, float]],
        *,
        play: Callable,
        held: Callable[..., tuple],
        looked: Callable[[list], Sequence] = lambda episodes: (),
        **drawn: Any,
    ):
        self.play, self.held, self.looked_at = play, held, looked
        windows, pools, cameras = held()
        super().__init__(windows, pools, mixture, cameras=cameras, frames=1, **drawn)

    def collect(self, learner) -> None:
        if not (new := self.play(learner)):
            return
        rows = Rows(new, self.rows.fields if self.rows is not None else FIELDS[self.reward])
        if self.kept is None:
            self.add(*self.held([episode.hash for episode in new], self.rows))
        elif not self.fits(rows, len(self.returns) + int(rows.length.sum())):
            self.use(*self.held())
        else:
            index, won = np.arange(len(new)), np.asarray([bool(episode.success) for episode in new])
            own = index[imitated([episode.hash for episode in new], won, [episode.meta for episode in new])]
            self.add(rows, {"own": own, "rollouts": index, "all": index}, self.looked_at(new))

    def load_state(self, state: dict[str, Any], data: dict[str, torch.Tensor] | None = None) -> None:
        super().load_state(state)
        self.use(*self.held())


class OnPolicy(Source):
    """Only what the policy that acts now has just done: `play(learner)` returns the round's whole episodes.

    Advantages are made once a round (`learner.advantage`), then batches go through the round's chunks in a shuffled
    order, again and again. A chunk's log-probabilities are those of the noise that it was made from, which an episode's
    seed gives back."""

    collects = True

    def __init__(self, *, play: Callable, **drawn: Any):
        super().__init__(**drawn)
        self.play, self.rng = play, np.random.default_rng(self.seed)

    def collect(self, learner) -> None:
        self.use(self.play(learner), learner)

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
        return {"rng": self.rng.bit_generator.state, "order": self.order.tolist()}

    def load_state(self, state: dict[str, Any], data: dict[str, torch.Tensor]) -> None:
        self.rng.bit_generator.state = state["rng"]
        self.hold(data)
        self.order = np.array(state["order"], np.int64)
