"""Environments in batches, and the one rollout that makes episodes: collection, gate, report and tests all use it.

A batch (a task of sim/, or any Gymnasium environment: `GymBatch`, in processes of its own: `Apart`) offers: task,
num_envs, obs_shapes (flywheel.obs: what is observed, packed in this order), obs_dim, obs_names and obs_units [Do],
action_dim, action_low, action_high, max_steps, fps, reset_at(i, seed, state=None) -> obs [Do], step(action [N, Da],
active) -> obs, reward, terminated, truncated, info["success"] [N], get_state(i), set_state(i, state), frame(i, width,
height), close(). `make` adds `reward`, what is learnt from: "success" or "env" (the environment's own); `success`,
which steps count (flywheel.success); and `tally` of faults."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from flywheel import executors, success
from flywheel import obs as observed
from flywheel.args import Acting, Task, build, plain
from flywheel.ending import check
from flywheel.env import ids
from flywheel.env.apart import Apart
from flywheel.env.faults import SHARE, Fault, Lost, Tally, finite
from flywheel.env.guard import StepGuard
from flywheel.env.gym_batch import GymBatch, TaskError
from flywheel.env.robot import Robot
from flywheel.env.trust import honours_seeds
from flywheel.episode import Episode
from flywheel.log import say

__all__ = ["drawn", "honours_seeds", "make", "opened", "rollout"]

STEP_SECONDS = 30.0


def make(task: Task | Mapping[str, Any], num_envs: int = 32, threads: int = 2, held=None):
    """The batch of a task: Task(name="lift"), Task(name="gym", id=...), or what says so in a plain dict; of
    Task(name="robot") what its card and the episodes `held` (a corpus Version) say of it, which nobody can play.

    With `reward: env` the return that counts as success may be given as `solved`. `step_seconds` is how long a step of
    a Gymnasium environment may take (0: it is stepped in this process, and nothing ends it)."""
    task = task if isinstance(task, Task) else build(Task, task, "task.")
    if task.solved is not None and task.learns != "env":
        raise ValueError(
            f"task.reward={task.learns} task.solved={task.solved:g}; expected solved, a return, only with reward=env, "
            "the environment's own"
        )
    if task.recorded:
        batch = Robot(task, held)
    elif task.name == "gym":
        batch = _gym(task, num_envs, threads)
    else:
        import flywheel_sim

        batch = flywheel_sim.make_batch(task.name, num_envs, threads, cameras=task.cameras, **task.kwargs)
        batch.task = ids.of_task(plain(task))
    batch.reward, batch.solved, batch.made = task.learns, task.solved, task
    batch.success = task.success or batch.success
    batch.tally = Tally(batch.task, SHARE if task.faults is None else task.faults)
    return batch


def opened(args: Acting, num_envs: int | None = None, held=None):
    """The batch that a stage is asked for; where its environments do not honour seeds that is said. `held`: the
    episodes that say what a robot is."""
    batch = make(args.task, num_envs or args.num_envs, args.threads, held)
    batch.guard = args.guard
    batch.executor, batch.workers, batch.resources = args.executor, args.workers, args.resources
    executors.bound(args.executor, args.workers, args.resources)  # refused now
    if args.executor != "local" and getattr(batch, "here", False):
        batch.close()
        raise ValueError(
            f"executor={args.executor}: {args.task.id} is registered in this process only, and others cannot make it; "
            "take executor=local, or name the module that registers it: task.id=MODULE:NAME"
        )
    if args.task.recorded:
        return batch
    StepGuard.of(batch)  # refused now, not with the first episode
    if args.task.name == "gym":
        honours_seeds(batch)
    return batch


def drawn(env):
    """A batch like `env` whose `frame` works: itself, or one environment in render_mode rgb_array. RuntimeError
    where it has none."""
    if not hasattr(env, "drawing"):
        return env
    more = env.drawing()
    if more is None:
        raise RuntimeError(f"{env.task} cannot be drawn: its metadata's render_modes name no rgb_array")
    if not more:
        return env
    return make(replace(env.made, kwargs={**env.made.kwargs, **more}), num_envs=1, threads=1)


def _gym(task: Task, num_envs: int, threads: int):
    """A Gymnasium environment in processes of its own, or in this one where it must be."""
    names = ("id", "max_steps", "success_key", "kwargs", "obs_keys")
    options = {name: getattr(task, name) for name in names if getattr(task, name) is not None} | {"reward": task.learns}
    seconds = STEP_SECONDS if task.step_seconds is None else task.step_seconds
    if not seconds:
        return GymBatch(num_envs=num_envs, threads=threads, **options)
    try:
        return Apart(seconds, threads, num_envs=num_envs, **options)
    except TaskError:
        gym = sys.modules.get("gymnasium")
        if gym is None or task.id not in gym.registry:
            raise
        batch = GymBatch(num_envs=num_envs, threads=threads, **options)  # or it says what is wrong
        say(f"  {task.id} is registered in this process only: it is stepped here, and a step that hangs is not ended")
        batch.here = True
        return batch


def rollout(
    env,
    policy,
    seeds: Sequence[int],
    *,
    origin: str,
    starts: Sequence[dict[str, Any] | None] | None = None,
    stop_at_success: bool = True,
    steps: int | None = None,
    fps: float | None = None,
    progress: Callable[[int], None] | None = None,
    watch: Callable[[int, np.ndarray], None] | None = None,
    late: Callable[[int], bool] | None = None,
    each: Callable[[Episode], Any] | None = None,
    film: bool = False,
) -> tuple[list[Episode], dict[str, int]]:
    """One episode for each seed, in the order of the seeds, and the guard's counts.

    Every episode counts, whenever it ends (no bias to short ones). reward is 1 at the step that decides success
    (`env.success`: any, last or held:N), which terminates the episode for the learner; `stop_at_success=False` goes on
    to the time limit to see whether success lasts (meta["success_at_end"]). The environment's own reward is kept in
    extras["env_reward"]; where that is learnt from, an episode ends only where the environment says so. `terminated` is
    the environment's own end, or success. `starts[k]`: {"state": ..., "meta": ...} to begin at a state, not at a reset.
    With `steps` no episode is begun once so many steps were made in all, with `late(k)` none from the first k on for
    which it is true: every one that was begun is finished and returned.

    An environment that does what no task may do (flywheel.faults) makes a failed episode with meta["cause"]: the steps
    before, or, where there is none, one of zeros. The others are as if nothing had happened; FaultsError where it is
    one of too many. `each(episode)` is called in the order of the seeds, as soon as those before have ended (in the
    order in which they end, failures would come last, all at once); `watch(k, obs)` before each step of the first
    environment's first episode.

    Where the environment has cameras ({name: (H, W, 3)}, `look(slots)`), `film` keeps what they saw, obs[name], and
    what only the simulator knows (`privileged(slots)`), extras["privileged"] [T+1, Dp].

    A policy is given the parts that it was trained on, by name. An episode keeps all that the environment observes, as
    obs["state"], and of a Dict the keys in this order with their shapes, as meta["obs_shapes"].
    """
    going = _Rollout(env, policy, seeds, origin, starts, stop_at_success, steps, fps, progress, late, each, film)
    going.play(watch)
    return [episode for episode in going.done if episode is not None], summed(going.counts)


def apart(env, policy, seeds: Sequence[int], *, origin: str, starts=None, film: bool = False) -> list[tuple]:
    """(episode, its counts) for each seed; counts["steps"] are those it took, also where it ended by a fault."""
    going = _Rollout(env, policy, seeds, origin, starts, True, None, None, None, None, None, film)
    going.play()
    return list(zip(going.done, going.counts, strict=True))


def summed(counts: Iterable[Counter | None]) -> dict[str, int]:
    """The guard's counts of all episodes together."""
    total: Counter[str] = Counter(steps=0, interventions=0)
    for one in counts:
        total.update(one or {})
    return dict(total)


def slots(env, seeds: Sequence[int], steps: int | None) -> int:
    """How many episodes are played at once: of a bounded round so many that those which are begun need not be cut."""
    return min(env.num_envs, len(seeds), *([max(1, steps // env.max_steps)] if steps else []))


class _Rollout:
    """Episodes under way: slot i of n plays episode[i], an index into seeds (-1: none), and has made step[i] steps
    of it."""

    def __init__(
        self, env, policy, seeds, origin, starts, stop_at_success, steps, fps, progress, late, each, film
    ):  # fmt: skip
        self.env, self.policy, self.seeds, self.origin, self.starts = env, policy, seeds, origin, starts
        self.own, self.stop = getattr(env, "reward", "success") == "env", stop_at_success
        self.late, self.each, self.told = late, each, 0
        self.steps, self.fps, self.progress = steps, env.fps if fps is None else fps, progress
        self.mode, self.tally = getattr(env, "success", "any"), getattr(env, "tally", None) or Tally(env.task)
        cameras, self.eyes = getattr(env, "cameras", {}), getattr(policy, "cameras", {})
        if any(cameras.get(name) != shape for name, shape in self.eyes.items()):
            raise ValueError(
                f"the policy sees {observed.listed(self.eyes)}, task {env.task} shows {observed.listed(cameras)}; "
                f"take task.cameras={{{', '.join(f'{name}: {shape[0]}' for name, shape in self.eyes.items())}}}"
            )
        self.names = getattr(env, "obs_names", None) or [f"obs[{i}]" for i in range(env.obs_dim)]
        shapes = getattr(env, "obs_shapes", None)
        self.picked = observed.picked(policy.obs_shapes, shapes) if shapes and hasattr(policy, "obs_shapes") else None
        self.layout = {"obs_shapes": observed.spec(shapes)} if shapes and list(shapes) != [observed.STATE] else {}
        kind, self.needed = success.parse(self.mode)
        self.early = stop_at_success and not self.own and kind != "last"
        n = slots(env, seeds, steps)
        self.guard = StepGuard.of(env)
        self.action = np.zeros((env.num_envs, env.action_dim), np.float32)
        self.obs = np.zeros((env.num_envs, env.obs_dim), np.float32)
        self.all_obs = np.zeros((n, env.max_steps + 1, env.obs_dim), np.float32)
        self.executed = np.zeros((n, env.max_steps, env.action_dim), np.float32)
        self.proposed = np.zeros_like(self.executed)
        self.own_reward = np.zeros((n, env.max_steps), np.float32)
        kept = cameras if film else {}
        self.film = {key: np.zeros((n, env.max_steps + 1, *shape), np.uint8) for key, shape in kept.items()}
        self.known = np.zeros((n, env.max_steps + 1, getattr(env, "privileged_dim", 0) if film else 0), np.float32)
        self.flags, self.ended = np.zeros((n, env.max_steps), bool), np.zeros(n, bool)
        self.episode, self.step, self.streak = np.full(n, -1), np.zeros(n, int), np.zeros(n, int)
        self.done: list[Episode | None] = [None] * len(seeds)
        self.counts: list[Counter | None] = [None] * len(seeds)
        self.waiting, self.made = iter(range(len(seeds))), 0
        self.due: dict[int, int | None] = dict.fromkeys(
            range(n)
        )  # slots to begin in, and what: None is the next that waits

    def play(self, watch: Callable[[int, np.ndarray], None] | None = None) -> None:
        """Until all are done."""
        self.fill()
        while (self.episode >= 0).any():
            check()
            if watch and self.episode[0] == 0:
                watch(int(self.step[0]), self.obs[0])
            self.turn()

    def _next(self) -> int:
        """The next episode to begin, -1 for none."""
        if self.steps and self.made >= self.steps:
            return -1
        k = next(self.waiting, -1)
        if k > 0 and self.late and self.late(k):
            self.waiting = iter(())
            return -1
        return k

    def fill(self) -> None:
        """Begin an episode in each slot that is due."""
        while self.due:
            slot = next(iter(self.due))
            k = self.due.pop(slot)
            if k is None:
                k = self._next()
                self.tally.begun += k >= 0
            self.episode[slot], self.step[slot], self.streak[slot], self.ended[slot] = k, 0, 0, False
            if k < 0:
                continue
            start = (self.starts[k] if self.starts else None) or {}
            self.guard.forget(slot)
            self.all_obs[slot, 0] = 0
            try:
                first = self.env.reset_at(slot, self.seeds[k], start.get("state"))
                finite(first, self.names)
            except Fault as fault:
                self.fail(slot, str(fault), "at reset")
            except Lost as lost:
                self.lose(lost, "at reset")
            else:
                self.obs[slot] = self.all_obs[slot, 0] = first
                self.look(np.array([slot]))
                self.policy.reset([slot], [self.seeds[k]])
                self.guard.begin(slot)

    def turn(self) -> None:
        """All that play act, and are stepped."""
        active = np.flatnonzero(self.episode >= 0)
        seen = self.obs[active] if self.picked is None else self.obs[active[:, None], self.picked]
        wish = self.policy.act(seen, active, frames=self.seen(active)) if self.eyes else self.policy.act(seen, active)
        self.action[active] = self.guard(wish, active, self.obs[active])
        t = self.step[active]
        self.proposed[active, t], self.executed[active, t] = wish, self.action[active]
        try:
            came = self.env.step(self.action, active)
        except Lost as lost:
            self.lose(lost)
        else:
            self.take(active, *came)
        if self.due:
            self.fill()

    def take(self, active: np.ndarray, new, reward, ended, truncated, info) -> None:
        """What a step of the slots `active` brought, [N, ...] each: keep it, and finish the episodes that are over."""
        t = self.step[active]
        faults = dict(info.get("faults") or {})
        new, reward, won = new[active], reward[active], info["success"][active]
        for j in np.flatnonzero(~(np.isfinite(new).all(axis=1) & np.isfinite(reward))):
            what = "the reward" if np.isfinite(new[j]).all() else f"the observation ({self._first_odd(new[j])})"
            faults.setdefault(int(active[j]), f"{what} is not finite")
        self.obs[active], self.all_obs[active, t + 1] = new, new
        self.own_reward[active, t], self.flags[active, t] = reward, won
        self.streak[active] = np.where(won, self.streak[active] + 1, 0)
        self.ended[active] = ended[active]
        self.step[active] += 1
        self.look(active)
        self.made += len(active)
        over = truncated[active] | ended[active] | (self.step[active] >= self.env.max_steps)
        over |= self.guard.ends(active)
        if self.early:
            over |= self.streak[active] >= self.needed
        for slot in active[over] if not faults else active:
            if slot in faults:
                self.step[slot] -= 1  # it does not count
                self.fail(slot, faults[slot])
            elif over[active == slot][0]:
                self.finish(slot)

    def seen(self, active: np.ndarray) -> dict[str, np.ndarray]:
        """What the policy sees in the slots `active` [N]: [N, H, W, 3] each, drawn where it decides now."""
        if self.film:
            known = {observed.PRIVILEGED: self.known} if self.policy.knows else {}
            kept = {name: self.film[name] for name in self.eyes} | known
            return {name: rows[active, self.step[active]] for name, rows in kept.items()}
        asks = np.flatnonzero(self.policy.asks(active))
        frames = {name: np.zeros((len(active), *shape), np.uint8) for name, shape in self.eyes.items()}
        for name, drawn in self.env.look(active[asks]).items() if len(asks) else ():
            if name in frames:
                frames[name][asks] = drawn
        return frames

    def look(self, slots: np.ndarray) -> None:
        """Film what the cameras of `slots` [N] see now, and keep what only the simulator knows."""
        if self.film:
            for key, frames in self.env.look(slots).items():
                self.film[key][slots, self.step[slots]] = frames
        if self.known.size:
            self.known[slots, self.step[slots]] = self.env.privileged(slots)

    def _first_odd(self, obs: np.ndarray) -> str:
        return self.names[int(np.flatnonzero(~np.isfinite(obs))[0])]

    def finish(self, slot: int) -> None:
        """The slot's episode is over: record it."""
        length = self.step[slot]
        flags, ended = self.flags[slot, :length], bool(self.ended[slot])
        if self.own and self.env.solved is not None:
            flags = np.zeros(length, bool)
            flags[-1] = self.own_reward[slot, :length].sum() >= self.env.solved
            at = length - 1 if flags[-1] else None
        else:  # what the environment itself ends while it succeeds cannot be held any longer
            at = success.recorded(flags, self.mode, label=ended and bool(flags[-1]))
        reward = np.zeros(length, np.float32)
        if at is not None:
            reward[at] = 1.0
        terminated = ended or (not self.own and self.stop and at is not None)
        self._keep(slot, length, reward, terminated, at is not None, success_at_end=bool(flags[-1]))

    def fail(self, slot: int, cause: str, when: str | None = None) -> None:
        """The slot's environment is at fault: record what there is as a failed episode."""
        k, length = self.episode[slot], int(self.step[slot])
        cause = f"{cause} {when or f'at step {length}'}"
        if not length:  # an episode has at least one step
            length = 1
            self.all_obs[slot, 1] = self.all_obs[slot, 0]
            for rows in (self.executed, self.proposed, self.own_reward):
                rows[slot, 0] = 0
        say(f"  seed {self.seeds[k]}: {cause}: a failed episode; the environment is made anew")
        self._keep(slot, length, np.zeros(length, np.float32), False, False, success_at_end=False, cause=cause)
        self.counts[k]["faults"] += 1
        self.tally.add(int(self.seeds[k]), cause)

    def lose(self, lost: Lost, when: str | None = None) -> None:
        """All environments are new: episodes that were under way begin again, but for those that are to blame."""
        for slot in np.flatnonzero(self.episode >= 0):
            if slot in lost.causes:
                self.fail(slot, lost.causes[slot], when)
            else:
                self.made -= int(self.step[slot])
                self.due[int(slot)] = int(self.episode[slot])
        for slot in self.due:
            self.step[slot] = 0

    def _keep(self, slot: int, length: int, reward: np.ndarray, terminated: bool, won: bool, **meta: Any) -> None:
        k = self.episode[slot]
        start = (self.starts[k] if self.starts else None) or {}
        extras = {"proposed": self.proposed[slot, :length], "env_reward": self.own_reward[slot, :length]}
        if self.known.size:
            extras[observed.PRIVILEGED] = self.known[slot, : length + 1]
        self.done[k] = Episode(
            task=self.env.task,
            obs={key: rows[slot, : length + 1].copy() for key, rows in {"state": self.all_obs, **self.film}.items()},
            action=self.executed[slot, :length].copy(),
            reward=reward,
            terminated=terminated,
            success=won,
            origin=self.origin,
            seed=int(self.seeds[k]),
            fps=self.fps,
            extras={key: value.copy() for key, value in extras.items()},
            meta={**meta, **self.guard.told(slot), **self.layout, **(start.get("meta") or {})},
        )
        self.counts[k] = self.guard.counted(slot)
        self.episode[slot], self.due[int(slot)] = -1, None
        if self.progress:
            self.progress(1)
        while self.each and self.told < len(self.done) and (episode := self.done[self.told]) is not None:
            self.told += 1
            self.each(episode)
