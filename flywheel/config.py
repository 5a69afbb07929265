"""Configuration: what was typed -> one plain dict for a stage. Hydra composes; a command seen before is not composed again.

Paths and free text are taken as typed, before Hydra's grammar sees them. The composed dict of a command is kept in
<store>/cache/commands/, keyed by its words, the files of conf/ and the environment that it names: a look-up needs no hydra.
"""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

from flywheel import store as files

AS_TYPED = {
    "store",
    "source",
    "checkpoint",
    "against",
    "video",
    "corpus",
    "message",
    "out",
    "name",
    "force",
    "rounds",
    "budget",
}
PARTS = ("ingest", "pretrain", "retrain", "promote", "evaluate")  # what a nightly hands its own keys down to
SHARED = ("task", "policy", "seed", "night", "device", "threads", "num_envs", "log", "name", "demos")
TASK = (
    "reward",
    "solved",
    "success",
    "step_seconds",
    "faults",
)  # keys of a task of sim/, as conf/task/gym.yaml has them
RESERVED = {"latest", "null", "true", "false"}


class UsageError(ValueError):
    """Words that the command line does not understand; exit code 2."""


def split(words: list[str]) -> tuple[dict[str, str], list[str]]:
    """What was typed -> ({key: text} for keys taken as typed, overrides for Hydra)."""
    typed, overrides = {}, []
    for word in words:
        key, equals, value = word.partition("=")
        if not equals:
            raise UsageError(f"{word!r} is not key=value (and not a flag: --json, --dry-run, --help)")
        if key in AS_TYPED:
            typed[key] = value
        else:
            overrides.append(word)
    return typed, overrides


def folder() -> Path:
    """Where conf/ lies."""
    import flywheel_conf

    return Path(flywheel_conf.__file__).parent


def folders() -> list[Path]:
    """conf/, and the folder of one's own tables that $FLYWHEEL_CONF names (with algorithm/, policy/, task/ in it)."""
    own = os.environ.get("FLYWHEEL_CONF")
    if own and not Path(own).is_dir():
        raise UsageError(
            f"FLYWHEEL_CONF={own} is no folder; expected one with algorithm/NAME.yaml, policy/NAME.yaml ... in it"
        )
    return [folder(), *([Path(own).resolve()] if own else [])]


def options(group: str) -> dict[str, Path]:
    """The files of a config group by name."""
    return {p.stem: p for place in folders() for p in sorted((place / group).glob("*.yaml"))}


def choices(group: str) -> list[str]:
    """The options of a config group; for tasks also every module of sim/."""
    names = set(options(group))
    if group == "task":
        import flywheel_sim

        names |= set(flywheel_sim.tasks())
    return sorted(names)


def load(stage: str, words: list[str], root: Path) -> dict[str, Any]:
    """The config of `stage` for the typed words; composed, or as composed before. UsageError for what is not understood."""
    typed, overrides = split(words)
    digest = hashlib.sha256(json.dumps([stage, sorted(typed.items()), overrides, _conf_state()]).encode())
    digest.update((os.environ.get("FLYWHEEL_DEMOS") or "").encode())
    kept = root / "cache" / "commands" / f"{digest.hexdigest()[:24]}.json"
    if kept.exists():
        return files.read_json(kept)
    cfg = compose(stage, typed, overrides)
    kept.parent.mkdir(parents=True, exist_ok=True)
    files.write_atomic(
        kept, json.dumps(cfg).encode()
    )  # in its own order: that of a table decides who draws noise first
    return cfg


def _conf_state() -> str:
    """A fingerprint of the files of conf/ and the names of sim/."""
    import flywheel_sim

    digest = hashlib.sha256(" ".join(flywheel_sim.tasks()).encode())
    for path in (p for place in folders() for p in sorted(place.rglob("*.yaml"))):
        digest.update(path.name.encode() + path.read_bytes())
    digest.update(Path(__file__).read_bytes())
    return digest.hexdigest()


def compose(stage: str, typed: dict[str, str], overrides: list[str]) -> dict[str, Any]:
    """Compose with Hydra, resolve, and lay the typed values on top; a nightly's stages are composed with it."""
    if stage == "nightly":  # what it hands down is checked against the stage that gets it, below
        overrides = [f"++{word}" if word.split(".")[0] in PARTS else word for word in overrides]
    cfg = _hydra(f"stage/{stage}", overrides)
    for key, value in typed.items():
        if key not in cfg:
            raise UsageError(f"{stage} has no {key}=; it has: {', '.join(sorted(cfg))}")
        cfg[key] = None if value in ("null", "None", "") else value
    for key in missing(cfg):
        raise UsageError(f"{stage} needs {key}=...")
    if stage == "nightly":
        for part in PARTS:
            cfg[part] = handed_down(part, cfg)
    elif cfg.get("rounds") is not None:
        cfg["rounds"] = count(cfg["rounds"])
    return cfg


def handed_down(part: str, cfg: dict[str, Any]) -> dict[str, Any]:
    """A stage's config inside a nightly: its defaults, what the nightly shares, what the nightly says under its name."""
    own = dict(cfg[part])
    overrides = [f"algorithm={own['algorithm']}"] if isinstance(own.get("algorithm"), str) else []
    if overrides:
        own.pop("algorithm")
    base = _hydra(f"stage/{part}", overrides)
    for key in (*SHARED, *(("format",) if part == "ingest" else ())):
        if key in base and key in cfg:
            base[key] = cfg[key]
    return merge(base, own, f"{part}.")


def missing(cfg: dict[str, Any], where: str = "") -> list[str]:
    """The keys that nobody has given a value (??? in conf/)."""
    found = []
    for key, value in cfg.items():
        found += missing(value, f"{where}{key}.") if isinstance(value, dict) else [f"{where}{key}"] * (value == "???")
    return found


def merge(base: dict[str, Any], own: dict[str, Any], where: str = "") -> dict[str, Any]:
    """`own` laid over `base`; UsageError for a key that base does not have."""
    out = dict(base)
    for key, value in own.items():
        if key not in base:
            raise UsageError(f"there is no {where}{key}; there are: {', '.join(sorted(base))}")
        free = where.endswith(("evaluate.", "improve.", "lag.", "mixture.")) or not base[key]
        nested = isinstance(value, dict) and isinstance(base[key], dict) and not free
        out[key] = merge(base[key], value, f"{where}{key}.") if nested else value
    return out


def count(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise UsageError(f"rounds={text!r}; expected a whole number") from None


def seconds(text: str | None) -> float | None:
    """A duration: 8h, 30m, 90s, 120 (seconds) -> seconds."""
    if not text:
        return None
    unit = {"h": 3600.0, "m": 60.0, "s": 1.0}.get(text[-1])
    try:
        return float(text[:-1]) * unit if unit else float(text)
    except ValueError:
        raise UsageError(f"budget={text!r}; expected a duration such as 8h, 30m or 90s") from None


def _hydra(name: str, overrides: list[str]) -> dict[str, Any]:
    """Hydra's compose, with its refusals in our words."""
    import flywheel_sim
    from hydra import compose as hydra_compose
    from hydra import initialize_config_module
    from hydra.core.config_store import ConfigStore
    from hydra.errors import HydraException
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    for task in flywheel_sim.tasks():
        ConfigStore.instance().store(group="task", name=task, node={"name": task, **dict.fromkeys(TASK), "kwargs": {}})
    for word in overrides:
        group, _, choice = word.partition("=")
        if (folder() / group).is_dir() and group != "stage" and choice not in (*choices(group), "null"):
            raise UsageError(f"no {group} {choice!r}. There are: {', '.join(choices(group))}")
    try:
        with initialize_config_module("flywheel_conf", version_base="1.3"):
            own = ", ".join(f"file://{place}" for place in folders()[1:])
            cfg = hydra_compose(name, [*overrides, f"hydra.searchpath=[{own}]"] if own else overrides)
        plain = OmegaConf.to_container(cfg, resolve=True, throw_on_missing=False)
    except (HydraException, OmegaConfBaseException) as error:
        raise UsageError(_words(error, name.removeprefix("stage/"))) from error
    return plain


def _words(error: Exception, stage: str) -> str:
    cause = error.__cause__ or error
    text = str(cause).split("\n")[0].strip()
    key = getattr(cause, "full_key", None) or getattr(error, "full_key", None)
    if "FLYWHEEL_DEMOS" in str(error):
        return "the variable FLYWHEEL_DEMOS does not name the folder of demonstrations; export it first"
    if "Missing mandatory" in text and key:
        return f"{stage} needs {key}=..."
    if "not in struct" in text or "Could not override" in str(error):
        return f"{stage} does not know {key or text}: {text}. `flywheel {stage} --help` lists its keys"
    return f"{stage}: {text}"
