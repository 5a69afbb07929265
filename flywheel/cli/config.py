"""Configuration: what was typed -> the arguments of a stage. Hydra composes; a command seen before is not composed
again.

The dataclass `Args` of a stage's module is its schema; groups of conf/ (task, policy, algorithm, log) and `GROUPS` of
the module say what stands where at first. Paths and free text are taken as typed, before Hydra's grammar sees them.
What was composed is kept in <store>/cache/commands/, keyed by its words, the files of conf/ and the environment that it
names: a look-up needs no hydra."""

from __future__ import annotations

import ast
import contextlib
import copy
import dataclasses
import difflib
import functools
import hashlib
import importlib
import importlib.util
import json
import operator
import os
import re
import sys
import types
from pathlib import Path
from typing import Any

from flywheel import args as arguments
from flywheel import store as files
from flywheel.args import UsageError, build, plain, seconds

PARTS = ("ingest", "pretrain", "retrain", "online", "distil", "choose", "promote", "evaluate")  # of a nightly
SHARED = ("task", "seed", "night", "device", "threads", "num_envs", "log", "name", "demos", "guard", "executor",
          "workers", "resources")  # fmt: skip
OPTIONAL = ("online", "distil")  # of these, what a nightly may leave out: online=null
GROUPS = ("task", "policy", "algorithm", "guard", "log", "experiment", "debug")
FIRST = {"task": "lift", "guard": "default", "log": "none"}  # what stands in a group where nothing else is said
OPEN = ("algorithm", "policy", "task", "log", "guard")  # what a name stands for may be added to
BY_NET = ("evaluate", "improve", "lag", "mixture")  # of an algorithm, what has an entry for each net, or for each act
TABLE = re.compile(
    rf"\+*(?:(?P<part>\w+)\.)??(?P<keys>algorithm(?:\.(?:{'|'.join(BY_NET)}|advantage|gate)(?:\.\w+)*)?)=(?P<text>[^$]*)$"
)
VARIABLE = re.compile(r"oc\.env:\s*(\w+)")  # of the environment, in a file or a word
ELSEWHERE = {"nightly": "flywheel.runs.nightly", "sweep": "flywheel.runs.sweep"}  # stages that are no file of stages/


# -- stages ----------------------------------------------------------------------------------------------------------


def stages() -> dict[str, Path]:
    """The stages: the files of flywheel/stages/, nightly, sweep, and stage/NAME.py of one's own folders."""
    here = Path(__file__).parent.parent
    found = {path.stem: path for path in here.glob("stages/[!_]*.py")}
    found |= {
        name: here / f"{module.removeprefix('flywheel.').replace('.', '/')}.py" for name, module in ELSEWHERE.items()
    }
    return dict(sorted((found | {p.stem: p for place in folders()[1:] for p in place.glob("stage/[!_]*.py")}).items()))


def module(stage: str):
    """The module of a stage: Args, inputs(args, store) and run(args, inputs, run)."""
    path = stages().get(stage)
    if path is None:
        raise UsageError(f"no stage {stage!r}. There are: {', '.join(stages())}")
    if path.parent.name == "stages" or stage in ELSEWHERE:
        return importlib.import_module(ELSEWHERE.get(stage) or f"flywheel.stages.{stage}")
    name = f"flywheel_own_stage_{stage}"
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, path)
        sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[name])
    return sys.modules[name]


def about(stage: str) -> str:
    """What a stage does, in one line: the docstring of its Args, read without importing it."""
    tree = ast.parse(stages()[stage].read_text(encoding="utf-8"))
    found = [node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == "Args"]
    return (ast.get_docstring(found[0]) or "").split("\n")[0] if found else ""


def commands() -> dict[str, str]:
    """{command: what it does} of those that are no stages: the public functions of commands.py, and replay; read
    without importing."""
    tree = ast.parse(Path(__file__).with_name("commands.py").read_text(encoding="utf-8"))
    made = [node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name[0] != "_"]
    return {
        "replay": "RUN: do a finished run again and compare every output hash; exit code 0 only if all are equal.",
        **{node.name: ast.get_docstring(node).split("\n")[0] for node in made},
    }


def fields(stage: str) -> dict[str, dataclasses.Field]:
    """The keys of a stage, its own first."""
    known = {field.name: field for field in dataclasses.fields(module(stage).Args)}
    shared = {field.name for field in dataclasses.fields(arguments.Bounded)}
    return {name: known[name] for name in sorted(known, key=lambda name: name in shared)}


def typed(stage: str) -> set[str]:
    """The keys that are taken as typed."""
    return {name for name, field in fields(stage).items() if field.metadata.get("typed")}


# -- folders ---------------------------------------------------------------------------------------------------------


def folder() -> Path:
    """Where conf/ lies."""
    import flywheel_conf

    return Path(flywheel_conf.__file__).parent


def folders() -> list[Path]:
    """conf/, a conf/ beside you, and the folder that $FLYWHEEL_CONF names: tables of one's own in task/, policy/,
    algorithm/, experiment/, and stages in stage/."""
    own = os.environ.get("FLYWHEEL_CONF")
    if own and not Path(own).is_dir():
        raise UsageError(
            f"FLYWHEEL_CONF={own} is no folder; expected one with algorithm/NAME.yaml, policy/NAME.yaml ... in it"
        )
    beside = Path("conf").resolve()
    found = [folder().resolve(), *([beside] if beside.is_dir() else []), *([Path(own).resolve()] if own else [])]
    return list(dict.fromkeys(found))


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


def sources(kind: Any) -> set[Path]:
    """The files that say what arguments there are, and their defaults: of a dataclass, its bases and fields."""
    if isinstance(kind, types.UnionType):
        return set().union(*map(sources, kind.__args__))
    if not dataclasses.is_dataclass(kind):
        return set()
    found = {Path(sys.modules[base.__module__].__file__) for base in kind.__mro__ if dataclasses.is_dataclass(base)}
    return found.union(*map(sources, arguments.hints(kind).values()))


def _conf_state(stage: str) -> str:
    """A fingerprint of all that a config is composed of."""
    import flywheel_sim

    digest = hashlib.sha256(" ".join(flywheel_sim.tasks()).encode())
    tables = [p for place in folders() for group in GROUPS for p in sorted((place / group).glob("*.yaml"))]
    asked = (stage, *PARTS) if stage == "nightly" else (stage,)
    code = {Path(__file__)}.union(*(sources(module(one).Args) for one in asked))
    for path in (*tables, *sorted(code)):
        digest.update(path.name.encode() + path.read_bytes())
    return digest.hexdigest()


# -- from words to arguments -----------------------------------------------------------------------------------------


def load(stage: str, words: list[str], root: Path) -> Any:
    """The arguments of `stage` for the typed words; composed, or as composed before. UsageError for what is not
    understood."""
    digest = hashlib.sha256(json.dumps([stage, words, _conf_state(stage), str(Path.cwd())]).encode())
    digest.update((os.environ.get("FLYWHEEL_DEMOS") or "").encode())
    kept = root / "cache" / "commands" / f"{digest.hexdigest()[:24]}.json"
    if kept.exists():
        with contextlib.suppress(ValueError):  # damaged: composed again
            return rebuilt(stage, files.read_json(kept))
    args = compose(stage, words)
    kept.parent.mkdir(parents=True, exist_ok=True)
    files.write_atomic(
        kept, json.dumps(plain(args)).encode()
    )  # in its own order: that of a table decides who draws noise first
    return args


def rebuilt(stage: str, kept: dict[str, Any]) -> Any:
    """The arguments of a stage as `plain` gave them."""
    there = [part for part in (PARTS if stage == "nightly" else ()) if kept[part] is not None]
    parts = {part: build(module(part).Args, kept[part]) for part in there}
    return build(module(stage).Args, {**kept, **parts})


def split(stage: str, words: list[str]) -> tuple[dict[str, str], list[str]]:
    """What was typed -> ({key: text} for keys taken as typed, overrides for Hydra)."""
    free, overrides, taken = {}, [], typed(stage)
    for word in words:
        key, equals, text = word.partition("=")
        if not equals:
            raise UsageError(f"{word!r} is not key=value (and not a flag: --json, --dry-run, --cfg, --help)")
        if key in taken:
            free[key] = text
        else:
            overrides.append(word)
    return free, overrides


def value_of(stage: str, key: str, text: str) -> Any:
    """The value of key=text outside Hydra: text where it is taken as typed, else what YAML reads in it."""
    import yaml

    if text in ("null", "None", ""):
        return None
    try:
        kind = arguments.hints(module(stage).Args)[key]
        if kind in (int, int | None) and not text.isdecimal():
            return text
        return text if key in typed(stage) and kind in (str, str | None) else yaml.safe_load(text)
    except yaml.YAMLError:
        raise UsageError(f"{key}={text}: this is no value that YAML reads") from None


def compose(stage: str, words: list[str]) -> Any:
    """Compose with Hydra, lay the typed values on top, and check; a nightly's stages are composed with it."""
    free, overrides = split(stage, words)
    policy: list[str] = []
    if stage == "nightly":  # what it hands down is checked against the stage that gets it
        policy = [word for word in overrides if re.match(r"\+*policy[.=]", word)]
        overrides = [routed(word) for word in overrides if word not in policy]
    tables, overrides = of_tables(stage, overrides)
    told = _hydra(stage, overrides)
    for key, text in free.items():
        told[key] = value_of(stage, key, text)
    if stage == "nightly":
        told["policies"] = policies(policy, told.pop("policy"), told.pop("cloned"))
        for part in PARTS:
            told[part] = handed_down(part, told, tables.get(part, []))
    told = with_tables(told, tables.get("", []))
    return checked(stage, told)


def of_tables(stage: str, words: list[str]) -> tuple[dict[str, list[tuple[list[str], Any]]], list[str]]:
    """The words that say an algorithm's losses, rates or shares, by the stage of a nightly that they are for (else ""),
    as (keys, value); and all other words. Hydra would mix a table with the one that it is to replace."""
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    found: dict[str, list[tuple[list[str], Any]]] = {}
    others, parts = [], PARTS if stage == "nightly" else ("",)
    for word in words:
        match = TABLE.match(word)
        part = (match["part"] or "") if match else None
        if part in parts and "algorithm" in fields(part or stage):
            with contextlib.suppress(HydraException):  # not to be read: composed like the others, it is refused there
                read, keys = OverridesParser.create().parse_override(f"x={match['text']}"), match["keys"].split(".")
                typed_whole = len(keys) == 1  # a name of a table, or a dict that a nightly's `handed_down` lays over
                if not read.is_sweep_override() and (not typed_whole or (not part and isinstance(read.value(), dict))):
                    found.setdefault(part, []).append((keys, read.value()))
                    continue
        others.append(word)
    return found, others


def with_tables(told: dict[str, Any], tables: list[tuple[list[str], Any]]) -> dict[str, Any]:
    """A stage's arguments with what `of_tables` read of it, in the order in which it was typed: a loss, shares or a
    rate take the place of what is there; what is there of other nets or acts stays."""
    told = copy.deepcopy(told)
    for keys, value in tables:
        *path, last = keys
        if isinstance(value, dict) and len(path) < 2:  # the algorithm, or all nets of one of its tables
            told = merge(told, {"algorithm": {last: value} if path else value})
            continue
        place = told
        for key in path:
            if not isinstance(place.get(key), dict):
                place[key] = {}
            place = place[key]
        place[last] = value
    return told


def checked(stage: str, told: dict[str, Any], where: str = "") -> Any:
    """The arguments that a plain dict says; UsageError for what is missing or wrong, before anything begins."""
    for key in missing({k: v for k, v in told.items() if not dataclasses.is_dataclass(v)}):
        raise UsageError(f"{stage} needs {where}{key}=...")
    args = build(module(stage).Args, told, where)
    specs = getattr(args, "policies", None) or {"": getattr(args, "policy", None) or {}}
    for spec in specs.values():
        arguments.check_policy(spec, f"{where}policy.")
    seconds(getattr(args, "budget", None))
    return args


def table(stage: str, name: str) -> Any:
    """The algorithm of that name, as a stage takes it."""
    return build(arguments.hints(module(stage).Args)["algorithm"], _hydra(stage, [f"algorithm={name}"])["algorithm"])


def policies(words: list[str], default: list[str], laid_over: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The classes of policy that a nightly compares: policy=[flow, gaussian], or policy=flow; {name: config}.

    `laid_over`, and words such as policy.width=512, count for each class that has the key.
    """
    chosen = [word.partition("=")[2] for word in words if word.lstrip("+").startswith("policy=")]
    names = [name.strip() for name in chosen[-1].strip("[]").split(",")] if chosen else list(default)
    asked, words = words, [*(f"policy.{key}={value}" for key, value in laid_over.items()), *words]
    more = {word: word.lstrip("+").partition("=")[0].partition(".")[2] for word in words if "policy." in word}
    found, known = {}, set()
    for name in names:
        if name not in choices("policy"):
            raise UsageError(f"no policy {name!r}. There are: {', '.join(choices('policy'))}")
        base = _hydra("pretrain", [f"policy={name}"])["policy"]
        known |= (kind := {*arguments.keywords(str(base["kind"])), *base})
        mine = [word for word, key in more.items() if key.split(".")[0] in kind]
        found[name] = _hydra("pretrain", [f"policy={name}", *mine])["policy"] if mine else base
    if unknown := [word for word, key in more.items() if word in asked and key.split(".")[0] not in known]:
        raise UsageError(f"{unknown[0]}: none of the policies {', '.join(found)} has that")
    return found


def routed(word: str) -> str:
    """A word of a nightly's command line; a key that only one of its stages has goes to that stage: obs_keys= is
    ingest.obs_keys=."""
    word = word.lstrip("+")
    top = word.partition("=")[0].split(".")[0]
    if top in fields("nightly") or (top in GROUPS and top != "algorithm"):
        return word
    homes = [part for part in PARTS if top in fields(part)]
    if len(homes) > 1:
        raise UsageError(f"nightly: {top}= could be {' or '.join(f'{home}.{top}=' for home in homes)}; say which")
    return f"{homes[0]}.{word}" if homes else word


def handed_down(part: str, told: dict[str, Any], tables: list[tuple[list[str], Any]]) -> Any:
    """A stage's arguments inside a nightly: its defaults, what the nightly shares, what the nightly says under its
    name, what was typed of its algorithm's tables; None of one that is left out."""
    if told[part] is None:
        if part in OPTIONAL:
            return None
        raise UsageError(
            f"nightly: {part}=null; a night can do without {' and '.join(OPTIONAL)} alone. Take it away, or run the "
            "stages that you want by themselves (flywheel --help lists them)"
        )
    own = dict(told[part])
    table = own.get("algorithm")
    named = table if isinstance(table, str) else (table or {}).get("name")
    overrides = [f"algorithm={named}"] if named else []
    if isinstance(table, str):
        del own["algorithm"]
    base = _hydra(part, overrides)
    for key in (*SHARED, *(("format",) if part == "ingest" else ())):
        if key in base and key in told:
            base[key] = told[key]
    base = {key: "" if value == arguments.REQUIRED else value for key, value in base.items()}  # the nightly names it
    if part == "choose":
        base["checkpoints"] = ["none yet"]
    return checked(part, with_tables(merge(base, own), tables), f"{part}.")


def missing(told: dict[str, Any], where: str = "") -> list[str]:
    """The keys that nobody has given a value (???)."""
    found = []
    for key, value in told.items():
        found += (
            missing(value, f"{where}{key}.")
            if isinstance(value, dict)
            else [f"{where}{key}"] * (value == arguments.REQUIRED)
        )
    return found


def merge(base: dict[str, Any], own: dict[str, Any], where: str = "") -> dict[str, Any]:
    """`own` laid over `base`; a table of losses, rates or shares is replaced, not mixed."""
    out = dict(base)
    for key, value in own.items():
        free = where.endswith(tuple(f"{table}." for table in BY_NET)) or not base.get(key)
        free = free or f"{where}{key}" in ("algorithm.advantage", "algorithm.gate")
        nested = isinstance(value, dict) and isinstance(base.get(key), dict) and not free
        out[key] = merge(base[key], value, f"{where}{key}.") if nested else value
    return out


# -- Hydra -----------------------------------------------------------------------------------------------------------


def _open(cls: type, defaults: tuple = ()) -> type:
    """`cls` as Hydra may write to it (a frozen one is read-only), with its defaults list."""
    kinds = arguments.hints(cls)
    fields = [
        (one.name, _unfrozen(kinds[one.name]), dataclasses.field(default_factory=functools.partial(_first, one)))
        for one in dataclasses.fields(cls)
    ]
    if defaults:
        fields.append(("defaults", list[Any], dataclasses.field(default_factory=lambda: list(defaults))))
    return dataclasses.make_dataclass(f"{cls.__name__}Schema", fields, kw_only=True)


def _unfrozen(kind: Any) -> Any:
    """A type with dataclasses as `_open` makes them; what `build` looks into is Any to Hydra."""
    if dataclasses.is_dataclass(kind):
        return _opened(kind)
    if isinstance(kind, types.UnionType):
        return functools.reduce(operator.or_, map(_unfrozen, kind.__args__)) if not _loose(kind) else Any
    return Any if _loose(kind) else kind


def _loose(kind: Any) -> bool:
    """Is it a list or a dict, perhaps, or a dataclass that may be missing (into which OmegaConf merges nothing)?"""
    kinds = getattr(kind, "__args__", ())
    maybe = isinstance(kind, types.UnionType) and any(map(dataclasses.is_dataclass, kinds))
    return maybe or any(getattr(one, "__origin__", one) in (list, dict) for one in (kind, *kinds))


_opened = functools.cache(_open)


def _first(field: dataclasses.Field) -> Any:
    """A field's default, of the types that `_open` makes."""

    def opened(value: Any) -> Any:
        if not dataclasses.is_dataclass(value):
            return value
        return _opened(type(value))(**{one.name: opened(getattr(value, one.name)) for one in dataclasses.fields(value)})

    return opened(field.default if field.default is not dataclasses.MISSING else field.default_factory())


@functools.cache
def _schema(stage: str) -> type:
    """The dataclass that Hydra is given: the stage's Args, and what stands in its groups at first."""
    found = module(stage)
    kinds, first = arguments.hints(found.Args), {**FIRST, **getattr(found, "GROUPS", {})}
    defaults = ["_self_", *({f"/{group}": name} for group, name in first.items() if group in kinds)]
    if stage == "nightly":
        defaults += [{"/experiment": None}, {"/debug": None}]
    return _open(found.Args, tuple(defaults))


def _register(stage: str) -> None:
    """Tell Hydra what there is."""
    import flywheel_sim
    from hydra.core.config_store import ConfigStore

    known = ConfigStore.instance()
    for task in flywheel_sim.tasks():
        known.store(group="task", name=task, node={"name": task})
    known.store(group="stage", name=stage, node=_schema(stage), package="_global_")


def _hydra(stage: str, overrides: list[str]) -> dict[str, Any]:
    """Hydra's compose, once for the same words over the same files: a tenth of a second each, and a night has sixteen
    that are much alike."""
    files = sorted(path for place in folders() for path in place.rglob("*.yaml"))
    seen = tuple((str(path), path.stat().st_mtime_ns, path.stat().st_size) for path in files)
    around = {name: os.environ.get(name) for name in _variables(seen) | set(VARIABLE.findall(" ".join(overrides)))}
    return copy.deepcopy(_composed(stage, tuple(overrides), seen, tuple(sorted(around.items()))))


@functools.lru_cache(maxsize=16)
def _variables(seen: tuple[tuple[str, int, int], ...]) -> frozenset[str]:
    """The variables of the environment that these files name."""
    return frozenset(name for path, *_ in seen for name in VARIABLE.findall(Path(path).read_text()))


@functools.lru_cache(maxsize=256)
def _composed(stage: str, overrides: tuple[str, ...], *seen: Any) -> dict[str, Any]:
    """Hydra's compose, with its refusals in our words."""
    from hydra import compose as hydra_compose
    from hydra import initialize_config_module
    from hydra.errors import HydraException
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    words = list(overrides)
    for word in words:
        group, _, choice = word.lstrip("+").partition("=")
        if group in GROUPS and choice not in (*choices(group), "null") and not choice.startswith("{"):
            raise UsageError(f"no {group} {choice!r}. There are: {', '.join(choices(group))}")
    words = [f"++{word.lstrip('+')}" if _adds(stage, word.lstrip("+")) else word.lstrip("+") for word in words]
    try:
        _register(stage)
        with initialize_config_module("flywheel_conf", version_base="1.3"):
            own = ", ".join(f"file://{place}" for place in folders()[1:])
            told = hydra_compose(f"stage/{stage}", [*words, f"hydra.searchpath=[{own}]"] if own else words)
        return OmegaConf.to_container(told, resolve=True, throw_on_missing=False)
    except (HydraException, OmegaConfBaseException) as error:
        raise UsageError(_words(error, stage)) from error


def _adds(stage: str, word: str) -> bool:
    """May a word name keys that are not there yet: KEY.MORE=..., KEY={more: ...}? What is unknown is refused by
    `build`."""
    key, _, value = word.partition("=")
    root, dot, _ = key.partition(".")
    made = getattr(fields(stage).get(root), "default_factory", dataclasses.MISSING)
    free = made is not dataclasses.MISSING and isinstance(made(), dict)
    return (free or root in OPEN or (stage == "nightly" and root in PARTS)) and bool(dot or value.startswith("{"))


def _expected(cls: type, key: str, value: Any) -> str | None:
    """What `build` says of a value that Hydra would not take."""
    *path, name = key.split(".")
    try:
        for part in path:
            cls = arguments.hints(cls)[part]
        kinds = {field.name: field for field in dataclasses.fields(cls)}
        arguments.value(arguments.hints(cls)[name], value, kinds[name].metadata, key)
    except UsageError as error:
        return str(error)
    except (KeyError, TypeError):  # within a table of losses
        pass
    return None


def _words(error: Exception, stage: str) -> str:
    from omegaconf.errors import ValidationError

    cause = error.__cause__ or error
    text = str(cause).split("\n")[0].strip()
    if override := getattr(error, "override", None) or getattr(
        cause, "override", None
    ):  # Hydra's grammar could not read it
        quoted = "text with spaces or signs in a list or a dict needs quotes of its own: key='{a: \"b > c\"}'"
        return f"{stage}: cannot read {override}; {quoted}"
    key = getattr(cause, "full_key", None) or getattr(error, "full_key", None)
    if "FLYWHEEL_DEMOS" in str(error):
        return "the variable FLYWHEEL_DEMOS does not name the folder of demonstrations; export it first"
    if "Missing mandatory" in text and key:
        return f"{stage} needs {key}=..."
    if isinstance(cause, ValidationError) and key:
        return _expected(module(stage).Args, str(key), getattr(cause, "value", None)) or f"{stage}: {key}: {text}"
    if "not in struct" in text or "not in '" in text or "Could not override" in str(error):
        key = str(key or text).split("'")[1] if "'" in str(key or text) else str(key or text)
        near = difflib.get_close_matches(key.split(".")[0], fields(stage), 1)
        hint = f"; did you mean {near[0]}=?" if near else "."
        return f"{stage} does not know {key}{hint} `flywheel {stage} --help` lists its keys"
    return f"{stage}: {text}"


# -- help ------------------------------------------------------------------------------------------------------------


def help_of(stage: str) -> str:
    """A stage's page: each key with its type, default and limits, one line each."""
    own = fields(stage)
    first = {k: v for k, v in FIRST.items() if k in own} | getattr(module(stage), "GROUPS", {})
    lines = [f"flywheel {stage} key=value ...: {about(stage)}", ""]
    for name, field in fields(stage).items():
        kind = _kind(arguments.hints(module(stage).Args)[name])
        default = first[name] if name in first else _default(field)
        lines.append(
            f"  {f'{name}: {kind} = {default}' if default is not None else f'{name}: {kind}, required':44} "
            f"{_meaning(field)}"
        )
        nested = arguments.hints(module(stage).Args)[name]
        if dataclasses.is_dataclass(nested) and name in ("demos", "collect", "gate", "guard"):
            lines += [
                f"    {f'{name}.{one.name} = {_default(one)}':42} {_meaning(one)}" for one in dataclasses.fields(nested)
            ]
    groups = [group for group in GROUPS if group in first or (stage == "nightly" and group != "algorithm")]
    lines += ["", *(f"  {group}= is one of {', '.join(choices(group))}" for group in groups)]
    lines += ["", f"`flywheel {stage} --cfg` prints what was composed, with each key's own keys."]
    return "\n".join(lines) + "\n"


def _kind(kind: Any) -> str:
    """A type, for people: int, number, text, list, {...}."""
    text = str(getattr(kind, "__name__", kind)) if not getattr(kind, "__args__", None) else str(kind)
    text = re.sub(r"typing\.|flywheel\.[\w.]*\.", "", text).replace(" | None", "")
    text = re.sub(r"^dict.*", "{...}", re.sub(r"^list.*", "[...]", text))
    return {"float": "number", "str": "text", "Any": "any", "bool": "true/false"}.get(text, text)


def _default(field: dataclasses.Field) -> str | None:
    """A field's default as it is typed; None where it must be given."""
    value = field.default
    if value is dataclasses.MISSING:
        made = field.default_factory()
        return "..." if dataclasses.is_dataclass(made) else json.dumps(made).replace('"', "")
    if value == arguments.REQUIRED:
        return None
    return (
        {None: "null", True: "true", False: "false"}.get(value, str(value))
        if isinstance(value, bool | None)
        else str(value)
    )


def _meaning(field: dataclasses.Field) -> str:
    """A field's line, with its limits or choices."""
    about, text = field.metadata, field.metadata.get("help", "")
    if about.get("choices"):
        text += f" ({', '.join('null' if c is None else str(c) for c in about['choices'])})"
    elif about.get("most", arguments.INF) < arguments.INF:
        text += f" ({about.get('least', '')} to {about['most']:g})"
    return text
