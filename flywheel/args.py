"""What a stage is asked: frozen dataclasses, the only schema. They give Hydra its config, the help its lines, and
errors their words.

    batch_size: int = arg(256, "transitions a batch", least=1)     a key with its default, a line of help, its limits
    build(Args, {"batch_size": 64}) -> Args                        UsageError names key, value and expectation
    plain(args) -> {"batch_size": 64, ...}                         as JSON keeps it, in the fields' order

Standard library only: `--help` is made from here.
"""

from __future__ import annotations

import ast
import dataclasses
import difflib
import functools
import re
import types
import typing
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from flywheel import success

REQUIRED = "???"  # as Hydra writes a value that nobody has given
INF = float("inf")
POLICY = {
    "width": (1, 1e5),
    "depth": (0, 100),
    "obs_steps": (1, 1000),
    "action_steps": (1, 1000),
    "steps": (1, INF),
    "members": (1, 1000),
}


class UsageError(ValueError):
    """Words that the command line does not understand; exit code 2."""


def arg(default: Any = REQUIRED, help: str = "", **about: Any) -> Any:
    """A field of arguments: its default, a line of help, and what is known of it.

    `least`, `most`: limits of a number. `choices`: all values there are. `typed`: taken as typed, before Hydra's
    grammar sees it."""
    about = {"help": help, **about}
    if isinstance(default, (list, dict)):
        return dataclasses.field(default_factory=lambda: type(default)(default), metadata=about)
    if callable(default):  # a class, or what makes a default of it
        return dataclasses.field(default_factory=default, metadata=about)
    return dataclasses.field(default=default, metadata=about)


@functools.cache
def hints(cls: type) -> dict[str, Any]:
    """The types of a dataclass's fields."""
    return typing.get_type_hints(cls)


def build(cls: type, told: Mapping[str, Any], where: str = "") -> Any:
    """The arguments that a plain dict says, defaults for the rest. UsageError names key, value and expectation."""
    known = {field.name: field for field in dataclasses.fields(cls)}
    refuse_unknown(told, known, where)
    made = {
        name: value(hints(cls)[name], told[name], field.metadata, where + name)
        for name, field in known.items()
        if name in told
    }
    try:
        return cls(**made)
    except UsageError as error:
        raise UsageError(f"{where}{error}") from None


def defaults(args: Any) -> dict[str, Any]:
    """The default of each argument of a stage."""
    none = dataclasses.MISSING
    return {
        one.name: one.default if one.default_factory is none else one.default_factory()
        for one in dataclasses.fields(args)
    }


def plain(args: Any) -> Any:
    """Arguments as JSON keeps them: dicts, in the fields' order."""
    if dataclasses.is_dataclass(args):
        return {field.name: plain(getattr(args, field.name)) for field in dataclasses.fields(args)}
    if isinstance(args, Mapping):
        return {key: plain(one) for key, one in args.items()}
    return [plain(one) for one in args] if isinstance(args, (list, tuple)) else args


def refuse_unknown(told: Iterable[str], known: Iterable[str], where: str) -> None:
    """UsageError for a key that nobody reads, with the nearest that somebody does."""
    for key in told:
        if key not in known:
            near = difflib.get_close_matches(str(key), list(known), 1)
            hint = f"; did you mean {where}{near[0]}=?" if near else "."
            raise UsageError(f"there is no {where}{key}{hint} There are: {', '.join(sorted(known))}")


def value(kind: Any, given: Any, about: Mapping[str, Any], key: str) -> Any:
    """`given` as a field of type `kind` takes it; UsageError where it does not."""
    union = typing.get_origin(kind) in (typing.Union, types.UnionType)
    kinds = [one for one in typing.get_args(kind) if one is not type(None)] if union else [kind]
    if given is None and union:
        return None
    if choices := about.get("choices"):
        if given not in choices or isinstance(given, bool) is not any(
            isinstance(one, bool) for one in choices if one == given
        ):
            raise UsageError(f"{key}={given}; expected {' or '.join(str(one) for one in choices if one is not None)}")
        return given
    kind, origin = kinds[0], typing.get_origin(kinds[0]) or kinds[0]
    if dataclasses.is_dataclass(kind):
        if dataclasses.is_dataclass(given):
            return given
        return build(kind, mapping(given or {}, key), f"{key}.")
    if kind in (int, float):
        return number(key, given, kind, about.get("least", -INF), about.get("most", INF))
    if kind is bool:
        if not isinstance(given, bool):
            raise UsageError(f"{key}={given}; expected true or false")
        return given
    if kind is str:
        if isinstance(given, (bool, dict, list)):
            raise UsageError(f"{key}={given}; expected text")
        return str(given)
    if origin is dict:
        return dict(mapping({} if given is None else given, key))
    if origin is list:
        if isinstance(given, str) or not isinstance(given, (list, tuple)):
            raise UsageError(f"{key}={given}; expected a list, such as [a, b]")
        return list(given)
    return given


def mapping(given: Any, key: str) -> Mapping[str, Any]:
    """A dict; UsageError for anything else."""
    if not isinstance(given, Mapping):
        raise UsageError(f"{key}={given}; expected {{key: value, ...}}")
    return given


def number(key: str, given: Any, kind: type, least: float, most: float) -> Any:
    """A number of its kind between its limits, or UsageError."""
    what = "a whole number" if kind is int else "a number"
    bounds = f" from {least:g} to {most:g}" if most < INF else f" of at least {least:g}" if least > -INF else ""
    right = (
        isinstance(given, (int, float)) and not isinstance(given, bool) and (kind is float or float(given).is_integer())
    )
    if not right or not least <= given <= most:
        given = f"{given:g}" if isinstance(given, float) else given
        raise UsageError(f"{key}={given}; expected {what}{bounds}")
    return kind(given)


def seconds(text: str | None) -> float | None:
    """A duration with its unit, 8h, 30m or 90s, in seconds; UsageError for one without."""
    if not text:
        return None
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([hms])", str(text))
    if not found or not float(found[1]):
        raise UsageError(f"budget={text}; expected a duration with its unit, such as 8h, 30m or 90s")
    return float(found[1]) * {"h": 3600.0, "m": 60.0, "s": 1.0}[found[2]]


@dataclasses.dataclass(frozen=True)
class Task:
    """What is to be done, and how it is judged."""

    name: str = arg("lift", "a task of sim/, gym: any Gymnasium environment, or robot: one without a simulator")
    id: str | None = arg(None, "of gym: a registered id, or module:id; of robot: what its task is called")
    max_steps: int | None = arg(None, "of gym: steps of an episode", least=1)
    success_key: str | None = arg(None, "of gym: the entry of info that says success; none: nothing does")
    kwargs: dict[str, Any] = arg({}, "given to the environment when it is made")
    cameras: dict[str, Any] = arg(
        {}, "of a task of sim/: what is seen, {wrist: 64, top: 64} pixels a side; the state is then the robot's own"
    )
    keep_frames: bool = arg(
        True, "frames of rollouts stay in the corpus; false: they are drawn again where they are needed"
    )
    card: dict[str, Any] = arg(
        {}, "of robot: obs, action, fps, cameras, instruction (docs/robot.md); what it leaves out, the corpus says"
    )
    obs_keys: list[Any] | None = arg(None, "of gym: which keys of a Dict observation to learn from, in order")
    reward: str | None = arg(
        None, "what is learnt from: success, or env, the environment's own", choices=(None, "success", "env")
    )
    solved: float | None = arg(None, "with reward=env: the return that counts as success")
    success: str | None = arg(None, "which steps count: any, last, last:N or held:N")
    step_seconds: float | None = arg(
        None, "how long a step or a reset may take (30 s); 0: no limit, stepped in this process", least=0, most=1e6
    )
    faults: float | None = arg(
        None, "the share of episodes that may fail by the environment's fault (0.05)", least=0, most=1
    )
    also: list[Any] | None = arg(None, "further thresholds to report: [{name, obs, above}]")
    within: list[Any] | None = arg(None, "success within so many steps: [200, 300]")
    compare: list[Any] | None = arg(None, "what check=replay compares: [{name, obs, peak}]")

    def __post_init__(self) -> None:
        try:
            success.parse(self.success)
        except ValueError as error:
            raise UsageError(str(error).removeprefix("task.")) from None
        if self.name == "gym" and self.cameras:
            raise UsageError(f"cameras={self.cameras}: that is for a task of sim/")
        if self.card and self.name != "robot":
            raise UsageError(f"card={self.card}: that is for task=robot; {self.name} says itself what it observes")
        if self.name != "gym":
            what = "a robot" if self.name == "robot" else "a task of sim/"
            for key in ("id", "max_steps", "success_key", "obs_keys")[self.name == "robot" :]:
                if getattr(self, key) is not None:
                    raise UsageError(
                        f"{key}={getattr(self, key)}: that is for task=gym; {self.name} is {what}, which has its own"
                    )

    @property
    def recorded(self) -> bool:
        """Is there nothing that could be played: only recordings go in, and trials come out?"""
        return self.name == "robot"

    @property
    def learns(self) -> str:
        """The reward that is learnt from: "success" or "env"."""
        return self.reward or "success"


@dataclasses.dataclass(frozen=True)
class Demos:
    """Which episodes of the task are imitated."""

    origin: Any = arg(None, 'by whom: a pattern ("human:*") or a list of them; null: all that no policy made')
    failures: bool = arg(False, "those that are known to have failed, too")
    first: int | None = arg(None, "only so many of them, the first by hash; null: all", least=1)


@dataclasses.dataclass(frozen=True)
class Guard:
    """What every loop that acts or learns is kept by; a table is {guard: arguments}, null leaves a guard out."""

    step: dict[str, Any] = arg(
        {"finite": {}, "limits": {}}, "between policy and environment: guards of env/guards/, in this order"
    )
    interventions: int | None = arg(None, "steps of an episode at which they may step in; then it ends", least=1)
    in_all: int | None = arg(None, "steps of a stage's practice at which they may step in; then it ends", least=1)
    update: dict[str, Any] = arg(
        {"finite": {}, "values": {}, "disagreement": {}, "drift": {}}, "what may undo updates: guards of rl/guards/"
    )
    every: int = arg(250, "updates between two looks at what was learnt", least=1)
    trips: int = arg(3, "of a round: then its updates end", least=1)
    below: float | None = arg(0.05, "so far below its start's success the acting policy is sent back", least=0, most=1)
    false_alarm: float = arg(2000, "episodes, on average at least, between two false alarms of that", least=1)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Common:
    """What every stage takes."""

    task: Task = arg(Task, "what is to be done")
    log: dict[str, Any] = arg({}, "where numbers go beside log.jsonl: none, wandb or trackio")
    store: str | None = arg(None, "where everything is kept; default $FLYWHEEL_STORE, else ./store", typed=True)
    seed: int = arg(1, "of weights, batches and, by its last digit, environments", least=0, most=2**31)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Acting(Common):
    """What every stage takes that computes or acts."""

    night: int = arg(0, "environment seeds are those of this night", least=0, most=999)
    device: str = arg("auto", "cpu, cuda, ...; auto: a GPU where there is one")
    threads: int = arg(2, "that step environments", least=1, most=1024)
    num_envs: int = arg(32, "environments that are stepped together", least=1, most=100_000)
    guard: Guard = arg(Guard, "what steps in where a policy, an update or a round goes wrong")
    executor: str = arg("local", "who does tasks that do not wait for each other: a file of executors/")
    workers: int = arg(0, "of that executor; 0: as many as it has room for", least=0, most=10_000)
    resources: dict[str, Any] = arg({}, "of a task, where the executor takes them: {cpus: 2, gpus: 1, mem_gb: 8}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Bounded(Acting):
    """What every stage takes that can end in time."""

    budget: str | None = arg(None, "8h, 30m, 90s: end in time, with what there is by then", typed=True)
    on_failure: str | None = arg(
        None, "a command of the shell where it fails: FLYWHEEL_ERROR, _RUN and _STORE say what and where", typed=True
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Learning(Bounded):
    """What every stage takes that learns from demonstrations."""

    corpus: str = arg("latest", "a version, a tag or a view", typed=True)
    data: dict[str, float] | None = arg(
        None,
        "instead of corpus and demos: views and their shares of what is imitated, '{door_human: 0.6, rollouts: 0.4}'",
    )
    name: str | None = arg(None, "of the checkpoints that are made; default: policy/TASK", typed=True)
    demos: Demos = arg(Demos, "which episodes are imitated")
    batch_size: int = arg(256, "transitions a batch", least=1, most=1e6)
    gamma: float = arg(0.99, "discount a step", least=0, most=1)


@functools.cache
def keywords(kind: str) -> frozenset[str]:
    """The keywords that a policy of this kind takes, its bases' too, read without importing it; none for an unknown
    kind."""
    here = Path(__file__).parent / "policy"
    if not (here / f"{kind}.py").exists():
        return frozenset()
    found, waiting, read = set(), [kind, "base"], set()
    while waiting:
        name = waiting.pop()
        if name in read or not (here / f"{name}.py").exists():
            continue
        read.add(name)
        for node in ast.walk(ast.parse((here / f"{name}.py").read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef) and node.name == "__init__":
                found |= {argument.arg for argument in node.args.kwonlyargs}
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("flywheel.policy"):
                waiting += [node.module.rsplit(".", 1)[-1], *(alias.name for alias in node.names)]
    return frozenset(found)


def check_policy(spec: Mapping[str, Any], where: str = "policy.") -> None:
    """Refuse what a policy of this kind does not take: its schema is the signature of its class."""
    if spec.get("kind"):
        refuse_unknown(spec, {"kind", *keywords(str(spec["kind"]))}, where)
    for key, (least, most) in POLICY.items():
        if spec.get(key) is not None:
            number(where + key, spec[key], int, least, most)
