"""A policy drives a robot, guarded, at a fixed rate: one episode.

    due        0      1/hz      2/hz      3/hz
               read -> act -> guard -> write, then sleep until the next is due
    driver     reset() -> obs, read() -> obs, write(action [Da]), close();   obs is {key: array}, as the policy observes

A driver may have `outcome()`, which ends the episode by saying True or False (None: it goes on), and `hold_action(0)`,
what moves nothing [Da] where that is not zero. Of a policy that sees, the frames that it saw are kept, in memory until
the episode ends. However an episode ends, what moves nothing is written last, and then
the driver is closed; also where driver or policy raises, and then what was done before is kept. Clock and sleep are
arguments: a test's need no time."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from flywheel import obs as observed
from flywheel.args import Guard
from flywheel.env.guard import StepGuard
from flywheel.episode import Episode


@dataclass
class Driven:
    """What an episode was: rows and when they were made, in seconds from the first that was due."""

    period: float  # s, as asked for
    obs: list[np.ndarray] = field(default_factory=list)  # T + 1 of [Do]
    frames: dict[str, list[np.ndarray]] = field(default_factory=dict)  # of each camera T + 1 of [H, W, 3] uint8
    proposed: list[np.ndarray] = field(default_factory=list)  # T of [Da]
    executed: list[np.ndarray] = field(default_factory=list)
    due: list[float] = field(default_factory=list)
    read: list[float] = field(default_factory=list)
    written: list[float] = field(default_factory=list)
    outcome: bool | None = None
    ended: str = "time"
    error: Exception | None = None  # of driver or policy
    guard: dict[str, Any] = field(default_factory=dict)  # for the episode's meta
    stepped_in: dict[str, int] = field(default_factory=dict)  # {guard: steps}

    def timing(self) -> dict[str, float]:
        """How punctual it was, in ms: `late` is an action after it was due, `jitter` how far the time between two
        actions is from what was asked for, `act` from observation to action. `missed`: actions later than the next."""
        due, read, written = (1e3 * np.array(part) for part in (self.due, self.read, self.written))
        late, period = written - due, 1e3 * self.period
        jitter = np.abs(np.diff(written) - period) if len(due) > 1 else np.zeros(1)
        told = {}
        for name, values in (("late", late), ("jitter", jitter), ("act", written - read)):
            told |= {f"{name}_p50_ms": np.percentile(values, 50), f"{name}_p99_ms": np.percentile(values, 99)}
            told |= {f"{name}_worst_ms": values.max()}
        missed = int((late > period).sum())
        return {key: round(float(value), 3) for key, value in told.items()} | {"missed": missed}

    def episode(self, task: str, shapes: observed.Shapes, **about: Any) -> Episode:
        """The record of it: reward 1 at the last step where the driver said that it succeeded."""
        reward = np.zeros(len(self.executed), np.float32)
        reward[-1] = float(bool(self.outcome))
        layout = {"obs_shapes": observed.spec(shapes)} if list(shapes) != [observed.STATE] else {}
        return Episode(
            task=task,
            obs={"state": np.stack(self.obs), **{name: np.stack(frames) for name, frames in self.frames.items()}},
            action=np.stack(self.executed),
            reward=reward,
            terminated=bool(self.outcome),
            success=self.outcome,
            extras={"proposed": np.stack(self.proposed), "written": np.array(self.written)},
            meta={"ended": self.ended, **self.guard, **layout},
            **about,
        )


def drive(
    driver,
    policy,
    guard: Guard,
    *,
    hz: float,
    steps: int,
    seed: int = 0,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
    stopping: Callable[[], bool] = lambda: False,
    film: bool = True,
) -> Driven:
    """Drive for `steps` actions, or until the driver, the guard or `stopping` ends it. An action that comes late moves
    all that follow: none is hurried after it. With `film` the frames that the policy saw are kept."""
    columns = policy.robot["action"] if policy.robot else slice(None)
    low, high = (bound.cpu().numpy()[columns] for bound in (policy.low, policy.high))
    _refuse_a_watchdog_of_all(guard, hz)
    hold = getattr(driver, "hold_action", None)
    names = {name: i for i, name in enumerate(observed.names(policy.obs_shapes))}
    keeper = StepGuard(low, high, 1, guard.step, hold, guard.interventions, clock, names)
    made, slot = Driven(1 / hz), np.array([0])
    made.frames = {name: [] for name in policy.cameras} if film else {}
    gc.collect()
    gc.disable()  # it would come in the middle of a step
    try:
        _episode(driver, policy, keeper, made, steps, seed, clock, sleep, stopping)
    except Exception as error:  # what was done until then is kept
        made.error, made.ended, made.outcome = error, _words(error), None
        for rows in (made.proposed, made.executed, made.due, made.read, made.written):
            del rows[max(0, len(made.obs) - 1) :]
    finally:
        gc.enable()
        try:
            driver.write(keeper.resting(slot)[0])
        except Exception as error:
            made.error, made.ended = made.error or error, made.ended if made.error else _words(error)
        finally:
            driver.close()
    made.guard = keeper.told(0)
    made.stepped_in = {name: n for name, n in keeper.count.items() if name != "steps"}
    return made


def _episode(driver, policy, keeper, made: Driven, steps: int, seed: int, clock, sleep, stopping) -> None:
    """Drive, and keep in `made` what was seen and done."""
    slot = np.array([0])
    _warm(policy, seed)
    obs = driver.reset()
    policy.reset([0], [seed])
    keeper.begin(0)
    begun = due = clock()
    for _ in range(steps):
        row = observed.pack(obs, policy.obs_shapes, "this policy was trained on")[0][0]
        read = clock()
        if not np.isfinite(row).all():
            made.ended = "an observation is not finite"
            break
        frames = _frames(obs, made)
        wish = np.asarray(policy.act({**obs, **frames} if frames else obs), np.float32)
        action = keeper(wish[None], slot, row[None])[0]
        driver.write(action)
        for rows, new in ((made.obs, row.copy()), (made.proposed, wish), (made.executed, action)):
            rows.append(new)
        for name, frame in frames.items():
            made.frames[name].append(frame)
        for times, when in ((made.due, due), (made.read, read), (made.written, clock())):
            times.append(when - begun)
        due = max(due + made.period, clock())
        if (left := due - clock()) > 0:
            sleep(left)
        obs = driver.read()
        made.outcome = driver.outcome() if hasattr(driver, "outcome") else None
        if why := _why(made, keeper.ends(slot)[0], stopping):
            made.ended = why
            break
    _last(made, obs, policy)


def _frames(obs, made: Driven) -> dict[str, np.ndarray]:
    """Copies of what the cameras show now: a driver may write the next into the same memory."""
    return {name: np.array(obs[name]) for name in made.frames if name in obs}


def _words(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"


def _refuse_a_watchdog_of_all(guard: Guard, hz: float) -> None:
    """ValueError where each action would come too late, however quick the policy is."""
    late = (guard.step.get("watchdog") or {}).get("seconds", 0.1) if "watchdog" in guard.step else None
    if late is not None and late < 1.5 / hz:
        raise ValueError(
            f"guard.step.watchdog.seconds={late:g}: at {hz:g} Hz an action comes each {1 / hz:g} s: all would be "
            f"late; expected at least {1.5 / hz:g}"
        )


def _warm(policy, seed: int) -> None:
    """A first call costs what no other does: it is made before the robot moves."""
    nothing = {key: np.zeros(shape, np.float32) for key, shape in policy.obs_shapes.items()}
    nothing |= {name: np.zeros(shape, np.uint8) for name, shape in getattr(policy, "cameras", {}).items()}
    for _ in range(3):
        policy.reset([0], [seed])
        policy.act(nothing)


def _why(made: Driven, guarded: bool, stopping: Callable[[], bool]) -> str:
    """What ends the episode now, or nothing."""
    if made.outcome is not None:
        return "success" if made.outcome else "failure"
    return "the guard" if guarded else "a signal" if stopping() else ""


def _last(made: Driven, obs, policy) -> None:
    """The observation after the last action; where it is not finite, or a camera fails, the step before is the last."""
    row = observed.pack(obs, policy.obs_shapes, "this policy was trained on")[0][0]
    frames = _frames(obs, made)
    shown = all(name in frames and _same(frames[name], many) for name, many in made.frames.items())
    if np.isfinite(row).all() and shown:
        made.obs.append(row.copy())
        for name, frame in frames.items():
            made.frames[name].append(frame)
        return
    for rows in (made.proposed, made.executed, made.due, made.read, made.written):
        del rows[-1:]


def _same(frame: np.ndarray, others: list[np.ndarray]) -> bool:
    """Is a frame like those before it?"""
    return not others or (frame.shape, frame.dtype) == (others[-1].shape, others[-1].dtype)
