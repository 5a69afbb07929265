"""Configuration: what was typed -> one plain dict for a stage. Hydra composes; a command seen before is not composed again.

Paths and free text are taken as typed, before Hydra's grammar sees them. The composed dict of a command is kept in
<store>/cache/commands/, keyed by its words, the files of conf/ and the environment that it names: a look-up needs no hydra.
"""

from __future__ import annotations

import contextlib
import difflib
import hashlib
import json
import os
import re
from pathlib import Path
from typing import Any

from flywheel import limits
from flywheel import store as files
from flywheel.limits import UsageError

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
PARTS = ("ingest", "pretrain", "retrain", "choose", "promote", "evaluate")  # what a nightly hands its own keys down to
SHARED = ("task", "seed", "night", "device", "threads", "num_envs", "log", "name", "demos")
FREE = (
    "algorithm.",
    "policy.",
    "task.",
    "log.",
)  # what a name stands for may be added to: what is unknown is refused below
TASK = (
    "reward",
    "solved",
    "success",
    "step_seconds",
    "faults",
)  # keys of a task of sim/, as conf/task/gym.yaml has them


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


def value_of(key: str, value: str) -> Any:
    """The value of key=value outside Hydra: text where it is taken as typed, else what YAML reads in it."""
    import yaml

    if value in ("null", "None", ""):
        return None
    try:
        return value if key in AS_TYPED - {"rounds"} else yaml.safe_load(value)
    except yaml.YAMLError:
        raise UsageError(f"{key}={value}: this is no value that YAML reads") from None


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
        with contextlib.suppress(ValueError):  # damaged: composed again
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
    policy: list[str] = []
    if stage == "nightly":  # what it hands down is checked against the stage that gets it, below
        policy = [word for word in overrides if re.match(r"\+*policy[.=]", word)]
        overrides = [routed(word) for word in overrides if word not in policy]
    cfg = _hydra(f"stage/{stage}", [f"++{word}" if word.startswith(FREE) else word for word in overrides])
    for key, value in typed.items():
        if key not in cfg:
            raise UsageError(f"{stage} has no {key}=; it has: {', '.join(sorted(cfg))}")
        cfg[key] = None if value in ("null", "None", "") else value
    for key in missing(cfg):
        raise UsageError(f"{stage} needs {key}=...")
    if stage == "nightly":
        cfg["policies"] = policies(policy, cfg.pop("policy"), cfg.pop("cloned"))
        for part in PARTS:
            cfg[part] = handed_down(part, cfg)
            limits.check(cfg[part], f"{part}.")
    if cfg.get("rounds") is not None:
        rounds = count(cfg["rounds"], more=stage == "nightly")
        cfg["rounds"] = cfg["rounds"] if stage == "nightly" else rounds
    limits.check(cfg)
    seconds(cfg.get("budget"))
    return cfg


def policies(words: list[str], default: list[str], laid_over: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The classes of policy that a nightly compares: policy=[flow, gaussian], or policy=flow; {name: config}.

    `laid_over`, and words such as policy.width=512, count for each class that has the key.
    """
    chosen = [word.partition("=")[2] for word in words if word.lstrip("+").startswith("policy=")]
    names = [name.strip() for name in chosen[-1].strip("[]").split(",")] if chosen else list(default)
    asked, words = words, [*(f"policy.{key}={value}" for key, value in laid_over.items()), *words]
    more = {word: word.lstrip("+").partition("=")[0].partition(".")[2] for word in words if "policy." in word}
    found = {}
    for name in names:
        if name not in choices("policy"):
            raise UsageError(f"no policy {name!r}. There are: {', '.join(choices('policy'))}")
        base = _hydra("stage/pretrain", [f"policy={name}"])["policy"]
        kind = limits.arguments(str(base["kind"]))
        mine = [f"++{word.lstrip('+')}" for word, key in more.items() if key.split(".")[0] in {*kind, *base}]
        found[name] = _hydra("stage/pretrain", [f"policy={name}", *mine])["policy"] if mine else base
        limits.check({"policy": found[name]})
    if unknown := [
        w
        for w, key in more.items()
        if w in asked
        if not any(key.split(".")[0] in limits.arguments(str(p["kind"])) for p in found.values())
    ]:
        raise UsageError(f"{unknown[0]}: none of the policies {', '.join(found)} has that")
    return found


def own_keys(stage: str) -> set[str]:
    """The keys of a stage's own file in conf/stage/, without its groups."""
    lines = (folder() / "stage" / f"{stage}.yaml").read_text().splitlines()
    return {found[1] for line in lines if (found := re.match(r"([a-z_]+):", line)) and found[1] != "defaults"}


def routed(word: str) -> str:
    """A word of a nightly's command line; a key that only one of its stages has goes to that stage: obs_keys= is ingest.obs_keys=."""
    key = word.lstrip("+").partition("=")[0]
    top = key.split(".")[0]
    if top in PARTS:
        return f"++{word.lstrip('+')}"
    if top in own_keys("nightly") or top in ("task", "policy", "log", "experiment", "debug"):
        return word
    homes = [
        part for part in PARTS if top in own_keys(part) or (top == "algorithm" and part in ("pretrain", "retrain"))
    ]
    if len(homes) > 1:
        raise UsageError(f"nightly: {top}= could be {' or '.join(f'{home}.{top}=' for home in homes)}; say which")
    return f"++{homes[0]}.{word.lstrip('+')}" if homes else word


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
        if key not in base and not _open(where):
            raise UsageError(f"there is no {where}{key}; there are: {', '.join(sorted(base))}")
        free = where.endswith(("evaluate.", "improve.", "lag.", "mixture.")) or not base.get(key)
        nested = isinstance(value, dict) and isinstance(base.get(key), dict) and not free
        out[key] = merge(base[key], value, f"{where}{key}.") if nested else value
    return out


def _open(where: str) -> bool:
    """May a part of a stage's config get keys that its file does not list? What is unknown there is refused by `limits`."""
    return any(f".{part}" in f".{where}" for part in FREE)


def count(text: str, more: bool = False) -> int:
    """The number of rounds, in a nightly also +N; UsageError for anything else."""
    found = re.fullmatch(r"(\+?)0*([1-9]\d{0,8})", str(text))
    if not found or (found[1] and not more):
        what = "a whole number of at least 1" + (", or +N: N further rounds from the incumbent" if more else "")
        raise UsageError(f"rounds={text}; expected {what}")
    return int(found[2])


def seconds(text: str | None) -> float | None:
    """A duration with its unit, 8h, 30m or 90s, in seconds; UsageError for one without."""
    if not text:
        return None
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([hms])", str(text))
    if not found or not float(found[1]):
        raise UsageError(f"budget={text}; expected a duration with its unit, such as 8h, 30m or 90s")
    return float(found[1]) * {"h": 3600.0, "m": 60.0, "s": 1.0}[found[2]]


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
        group, _, choice = word.lstrip("+").partition("=")
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
    if override := getattr(error, "override", None) or getattr(
        cause, "override", None
    ):  # Hydra's grammar could not read it
        return f"{stage}: cannot read {override}; text with spaces or signs in a list or a dict needs quotes of its own: key='{{a: \"b > c\"}}'"
    key = getattr(cause, "full_key", None) or getattr(error, "full_key", None)
    if "FLYWHEEL_DEMOS" in str(error):
        return "the variable FLYWHEEL_DEMOS does not name the folder of demonstrations; export it first"
    if "Missing mandatory" in text and key:
        return f"{stage} needs {key}=..."
    if "not in struct" in text or "Could not override" in str(error):
        key = str(key or text).split("'")[1] if "'" in str(key or text) else str(key or text)
        near = difflib.get_close_matches(key.split(".")[0], own_keys(stage), 1)
        return f"{stage} does not know {key}{f'; did you mean {near[0]}=?' if near else '.'} `flywheel {stage} --help` lists its keys"
    return f"{stage}: {text}"
