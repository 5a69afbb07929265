"""What the values of a config may be: a wrong one is refused before anything begins, with its key, what it is and what was expected."""

from __future__ import annotations

import ast
import difflib
from pathlib import Path
from typing import Any

INF = float("inf")
NUMBERS: dict[str, tuple[type, float, float]] = {  # key: whole or not, least, most
    "batch_size": (int, 1, 1e6),
    "gamma": (float, 0, 1),
    "score_every": (int, 0, INF),
    "score_episodes": (int, 0, 1250),
    "episodes": (int, 1, 1e6),
    "first": (int, 0, 1e7),
    "max_steps": (int, 1, INF),
    "anchor_until": (int, 1, INF),
    "warmup": (int, 0, INF),
    "seed": (int, 0, 2**31),
    "night": (int, 0, 999),
    "threads": (int, 1, 1024),
    "num_envs": (int, 1, 100_000),
    "alpha": (float, 1e-6, 0.1),
    "fps": (float, 1e-3, 1e6),
    "step_seconds": (float, 0, 1e6),
    "faults": (float, 0, 1),
    "n": (int, 1, 100_000),
    "k": (float, 0, 100),
    "explore": (float, 0, 10),
    "width": (int, 1, 1e5),
    "depth": (int, 0, 100),
    "obs_steps": (int, 1, 1000),
    "action_steps": (int, 1, 1000),
    "steps": (int, 1, INF),
    "rounds": (int, 1, INF),
    "rollouts": (int, 1, INF),
    "evaluate": (int, 0, INF),
    "improve": (int, 0, INF),
    "members": (int, 1, 1000),
    "clip": (float, 0, INF),
    "weight_decay": (float, 0, 1),
}
PARTS = {  # of a config: the names in it that have limits
    "": {
        "batch_size", "gamma", "score_every", "score_episodes", "episodes", "first", "max_steps", "anchor_until", "warmup", "seed",
        "night", "threads", "num_envs", "alpha", "fps", "rollouts",
    },
    "algorithm.collect": {"steps", "explore"},
    "collect": {"episodes", "n", "k", "explore"},
    "policy": {"width", "depth", "obs_steps", "action_steps", "steps", "members"},
    "task": {"max_steps", "step_seconds", "faults"},
    "algorithm": {"clip", "weight_decay", "explore"},
    "algorithm.cadence": {"rounds", "evaluate", "improve", "warmup"},
    "algorithm.critic": {"members", "width", "depth"},
}  # fmt: skip
CHOSEN = 2500  # episodes of a choice at most: the next seeds are another question's (stages/choose.py)
CHOICES = {
    "restart": ("last", "anchor"),
    "block": ("gate", "report", "collect"),
    "check": (None, "replay"),
    "what": ("base", "candidate"),
}
WITHIN = {  # of the parts of a config: names with choices
    "task": {"reward": (None, "success", "env")},
    "algorithm": {
        "precision": ("bf16", "float32"),
        "optimiser": ("adamw", "sgd"),
        "schedule": (None, "plateau"),
        "compile": (True, False),
    },
    "demos": {"failures": (True, False)},
    "": {"prior": (True, False), "restore": (True, False)},
}
TABLE = {  # keys of an algorithm's table
    "name", "source", "cadence", "advantage", "evaluate", "improve", "gate", "lag", "mixture", "act", "collect", "explore", "lr",
    "schedule", "noise", "critic", "clip", "weight_decay", "optimiser", "precision", "compile",
}  # fmt: skip
TASK = {
    "name", "id", "max_steps", "success_key", "kwargs", "reward", "solved", "also", "within", "compare", "success", "step_seconds",
    "faults", "obs_keys",
}  # fmt: skip

GYM = {"id", "max_steps", "success_key", "obs_keys"}  # of them, those of other people's environments


class UsageError(ValueError):
    """Words that the command line does not understand; exit code 2."""


def check(cfg: dict[str, Any], where: str = "") -> None:
    """Refuse values outside their limits and keys that nobody reads. UsageError names key, value and expectation."""
    for part, names in PARTS.items():
        found = cfg
        for key in part.split(".") if part else ():
            found = found.get(key) if isinstance(found, dict) else None
        for name in names & set(found) if isinstance(found, dict) else ():
            number(f"{where}{part}{'.' if part else ''}{name}", found[name], *NUMBERS[name])
    for key, allowed in CHOICES.items():
        if key in cfg and cfg[key] not in allowed:
            raise UsageError(f"{where}{key}={cfg[key]}; expected {' or '.join(str(a) for a in allowed)}")
    for part, table in WITHIN.items():
        found = cfg.get(part) if part else cfg
        for key, allowed in table.items() if isinstance(found, dict) else ():
            if key in found and found[key] not in allowed:
                dot = "." if part else ""
                raise UsageError(
                    f"{where}{part}{dot}{key}={found[key]}; expected {' or '.join(str(a) for a in allowed)}"
                )
    rates(cfg.get("algorithm"), where)
    if "checkpoints" in cfg:
        number(f"{where}episodes", cfg["episodes"], int, 1, CHOSEN)
        if cfg["checkpoints"] != "???" and (not isinstance(cfg["checkpoints"], list) or not cfg["checkpoints"]):
            raise UsageError(f"{where}checkpoints={cfg['checkpoints']}; expected some, as in '[NAME@ID, NAME@ID]'")
    if isinstance(cfg.get("task"), dict):
        mode(cfg["task"].get("success"), where)
        own = cfg["task"].get("name") not in (None, "gym")
        known(cfg["task"], TASK - (GYM if own else set()), f"{where}task.")
    if isinstance(cfg.get("algorithm"), dict):
        known(cfg["algorithm"], TABLE, f"{where}algorithm.")
    if isinstance(cfg.get("policy"), dict) and cfg["policy"].get("kind"):
        known(cfg["policy"], {"kind", *arguments(str(cfg["policy"]["kind"]))}, f"{where}policy.")


def rates(algorithm: Any, where: str) -> None:
    """Refuse rates of learning that are no numbers above 0 (one, or one for each net), and of following (lag) not up to 1."""
    for key, most in (("lr", 1e3), ("lag", 1.0)) if isinstance(algorithm, dict) else ():
        told = algorithm.get(key)
        for net, value in told.items() if isinstance(told, dict) else [("", told)]:
            number(f"{where}algorithm.{key}{'.' if net else ''}{net}", value, float, 1e-12, most)


def mode(success: str | None, where: str) -> None:
    """Refuse a task.success that is none."""
    from flywheel.success import parse

    try:
        parse(success)
    except ValueError as error:
        raise UsageError(f"{where}{error}") from None


def number(key: str, value: Any, kind: type, least: float, most: float) -> None:
    """Refuse a value that is no number of its kind between its limits; null stands for a default."""
    if value is None:
        return
    what = "a whole number" if kind is int else "a number"
    bounds = f"from {least:g} to {most:g}" if most < INF else f"of at least {least:g}"
    right = (
        isinstance(value, (int, float)) and not isinstance(value, bool) and (kind is float or float(value).is_integer())
    )
    if not right or not least <= value <= most:
        raise UsageError(f"{key}={value}; expected {what} {bounds}")


def known(part: dict[str, Any], names: set[str], where: str) -> None:
    """Refuse keys that nobody reads."""
    for key in part:
        if key not in names:
            near = difflib.get_close_matches(key, names, 1)
            hint = f"; did you mean {where}{near[0]}=?" if near else "."
            raise UsageError(f"there is no {where}{key}{hint} There are: {', '.join(sorted(names))}")


def arguments(kind: str) -> set[str]:
    """The keywords that a policy of this kind takes, its bases' too, read without importing it; none for an unknown kind."""
    here = Path(__file__).parent / "policy"
    if not (here / f"{kind}.py").exists():
        return set()
    found, waiting, seen = set(), [kind, "base"], set()
    while waiting:
        name = waiting.pop()
        if name in seen or not (here / f"{name}.py").exists():
            continue
        seen.add(name)
        tree = ast.parse((here / f"{name}.py").read_text(encoding="utf-8"))
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef) and node.name == "__init__":
                found |= {argument.arg for argument in node.args.kwonlyargs}
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("flywheel.policy"):
                waiting += [node.module.rsplit(".", 1)[-1], *(alias.name for alias in node.names)]
    return found
