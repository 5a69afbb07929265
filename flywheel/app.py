"""The command line, thin over the Python API. What only looks things up imports neither hydra nor torch.

flywheel STAGE key=value ... [--json] [--dry-run] [--help]
"""

from __future__ import annotations

import ast
import difflib
import importlib.util
import json
import os
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Any

OPTIONS = """
  store=DIR    where everything is kept; default $FLYWHEEL_STORE, else ./store
  --json       the last line on stdout is one object: status, run, inputs, outputs, metrics, seconds, error
  --dry-run    say for each stage: hit, resume or miss, and why
  --help       after a command: what it takes

Exit code: 0 done, noop or refused; 1 failed; 2 not understood; 130 or 143 stopped by a signal. README has all on one page.
"""
FLAGS = ("--json", "--dry-run", "--help", "-h", "--version")


def stages() -> list[str]:
    """The stages there are: the files of conf/stage/."""
    return sorted(path.stem for path in (conf() / "stage").glob("*.yaml"))


def conf() -> Path:
    """Where conf/ lies."""
    return Path(importlib.util.find_spec("flywheel_conf").origin).parent


def main(argv: list[str] | None = None) -> int:
    """Run a command; its exit code (ending.py): 0 done, noop or refused, 1 failed, 2 bad usage, 128 + n stopped by signal n."""
    words = list(sys.argv[1:] if argv is None else argv)
    if words[:2] == ["complete", "--"]:  # a shell asks what may stand next
        from flywheel.complete import candidates

        print("\n".join(candidates(" ".join(words[2:]), Path(os.environ.get("FLYWHEEL_STORE") or "store"))))
        return 0
    flags = {w for w in words if w in FLAGS}
    words = [w for w in words if w not in FLAGS]
    if unknown := [w for w in words if w.startswith("--")]:
        return _usage(f"no flag {unknown[0]}. There are: {', '.join(FLAGS)}", flags)
    if "--version" in flags:
        from flywheel import __version__

        print(__version__)
        return 0
    if not words:
        if "--json" in flags and not flags & {"--help", "-h"}:
            return _usage("no command; `flywheel --help` lists them", flags)
        print(_overview(), end="")
        return 0 if flags & {"--help", "-h"} else 2
    command, *rest = words
    if command == "corpus" and rest[:1] == ["export"]:  # the stage under its other name, where a version is at=
        command, rest = "export", [f"corpus={w[3:]}" if w.startswith("at=") else w for w in rest[1:]]
    if command not in (*stages(), *commands()):
        near = difflib.get_close_matches(command, (*stages(), *commands()), 1)
        hint = f"; did you mean {near[0]}?" if near else "."
        return _usage(f"no command {command!r}{hint} There are: {', '.join((*stages(), *commands()))}", flags)
    if flags & {"--help", "-h"}:
        print(_help(command), end="")
        return 0
    os.environ.setdefault("HF_HUB_OFFLINE", "1")  # lerobot would turn to the network
    # small nets: a busy neighbour stalls two threads; the simulator has its own
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    return _ended(command, rest, flags)


def _ended(command: str, words: list[str], flags: set[str]) -> int:
    """Run a command that exists and tell how it ended, whatever happened: a line for people or for programs, and the exit code."""
    from flywheel import ending
    from flywheel.config import UsageError

    asked = ending.Signals() if command in (*stages(), "replay") and ending.Signals.now is None else nullcontext()
    try:
        with asked:  # from the first moment, not only once a stage is at work
            result = _dispatch(command, words, "--dry-run" in flags)
        code = ending.CODES[result["status"]]
    except UsageError as error:
        return _usage(str(error), flags)
    except BrokenPipeError:  # `flywheel runs | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except BaseException as error:
        if os.environ.get("FLYWHEEL_TRACEBACK"):
            raise
        result, code = ending.told(error, getattr(error, "flywheel_run", None))
    if result.get("error"):
        print(f"flywheel: {result['error']}", file=sys.stderr)
    if "--json" in flags:
        print(json.dumps(result, default=str))
    elif (command in stages() or command == "replay") and code in (0, 1) and "run" in result:
        _tell(result)
    return code


def _usage(text: str, flags: set[str] = frozenset()) -> int:
    print(f"flywheel: {text}", file=sys.stderr)
    if "--json" in flags:
        print(json.dumps({"status": "failed", "error": text}))
    return 2


def commands() -> dict[str, str]:
    """{command: what it does} of those that are no stages: the public functions of commands.py, and replay."""
    tree = ast.parse(Path(__file__).with_name("commands.py").read_text(encoding="utf-8"))
    made = [node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name[0] != "_"]
    listed = {node.name: ast.get_docstring(node).split("\n")[0] for node in made}
    return {
        "replay": "RUN: do a finished run again and compare every output hash; exit code 0 only if all are equal.",
        **listed,
    }


def _overview() -> str:
    """The general help, made of what is there: conf/stage/, whose second line says what a stage does, and commands.py."""
    lines = [
        "flywheel: robot learning that keeps getting better by itself, with proof.",
        "",
        "  Stages, flywheel STAGE key=value ...:",
    ]
    for stage in stages():
        about = (conf() / "stage" / f"{stage}.yaml").read_text().splitlines()[1].lstrip("# ")
        lines.append(f"    {stage:10} {about}")
    lines += ["", "  Commands:"]
    lines += [f"    {name:10} {about}" for name, about in commands().items()]
    return "\n".join(lines) + "\n" + OPTIONS


def _help(command: str) -> str:
    """What a command does and, for a stage, its keys from conf/stage/."""
    if command in commands():
        text = f"flywheel {command}: {commands()[command]}\n"
        if command == "corpus":
            from flywheel.commands import CORPUS

            text += "".join(f"\n  {words:36} {what}" for words, what in CORPUS.items())
            text += "\n\nAll take store=DIR and --json. FLYWHEEL_CORPUS=s3://BUCKET/PREFIX (gs://, az://): the corpus is there.\n"
        return text
    first, *lines = (conf() / "stage" / f"{command}.yaml").read_text().splitlines()[1:]
    text = f"flywheel {command} key=value ...: {first.lstrip('# ')}\n"
    text += f"\nKeys and defaults (conf/stage/{command}.yaml; task, policy, algorithm are groups of conf/):\n\n"
    return text + "".join(f"  {line}\n" for line in lines)


def _store(words: list[str]):
    """The store that the words name, and the other words."""
    from flywheel.run import Store

    root = next((w.partition("=")[2] for w in words if w.startswith("store=")), None)
    return Store(root or os.environ.get("FLYWHEEL_STORE") or "store"), [w for w in words if not w.startswith("store=")]


def _dispatch(command: str, words: list[str], dry: bool) -> dict[str, Any]:
    place, rest = _store(words)
    if command in stages():
        return _stage(command, rest, place, dry)
    if dry:
        from flywheel.config import UsageError

        raise UsageError(f"--dry-run is for stages: {command} would do it. Nothing was done")
    if command == "replay":
        return _replay(rest, place)
    from flywheel import commands

    return getattr(commands, command)(rest, place)


def _stage(stage: str, words: list[str], place, dry: bool) -> dict[str, Any]:
    from flywheel import config, ending, log, run
    from flywheel.stages import _inputs

    if stage == "promote" and words and "=" not in words[0]:
        words = [f"checkpoint={words[0]}", *words[1:]]
    cfg = config.load(stage, words, place.root)
    ending.check()
    if cfg.get("checkpoint") not in (None, "none") and not any(w.startswith("task") for w in words):
        cfg["task"] = place.names.resolve(cfg["checkpoint"]).get("task") or cfg["task"]  # the one it was trained on
    if "name" in cfg and (kept := _inputs.kept_name(cfg, place)):
        log.say(f"  going on under the name that this store has: {kept}")
        for part in (cfg, *(cfg[p] for p in config.PARTS if isinstance(cfg.get(p), dict) and "name" in cfg[p])):
            part["name"] = kept
        if stage == "distil":
            cfg["checkpoint"] = cfg["checkpoint"] or kept
    if stage == "nightly":
        from flywheel import nightly

        return (nightly.plan if dry else nightly.nightly)(cfg, place, config.seconds(cfg.get("budget")))
    if dry:
        planned = run.plan(stage, cfg, place, bool(cfg.get("budget")))
        print(f"{stage}: {planned['action']} {planned['run']} ({planned['why']})")
        return {"status": "noop", "run": planned["run"], "action": planned["action"], "why": planned["why"]}
    budget = config.seconds(cfg.get("budget"))
    import time

    film = bool(cfg.get("video")) and not Path(cfg["video"]).exists()  # looked up, but nobody filmed it yet
    return run.execute(stage, cfg, place, deadline=time.monotonic() + budget if budget else None, again=film)


def _replay(words: list[str], place) -> dict[str, Any]:
    import time

    from flywheel import config, limits, lineage, run
    from flywheel.config import UsageError

    names = [w for w in words if "=" not in w]
    if len(names) != 1:
        raise UsageError("replay takes one run: `flywheel replay RUN`; `flywheel runs` lists them")
    changes = dict(w.split("=", 1) for w in words if "=" in w)
    if not changes:
        return lineage.replay(names[0], place)
    import yaml

    done = place.find(names[0])
    if done["stage"] == "nightly":
        raise UsageError(
            "a nightly is replayed as it was; with changes replay one of its runs, or start another nightly"
        )
    cfg = yaml.safe_load((place.dir(done) / "config.yaml").read_text())
    if unknown := set(changes) - set(cfg):
        raise UsageError(f"{done['stage']} has no {', '.join(unknown)}; it has: {', '.join(sorted(cfg))}")
    cfg |= {key: config.value_of(key, value) for key, value in changes.items()}
    limits.check(cfg)
    budget = config.seconds(cfg.get("budget"))
    return run.execute(done["stage"], cfg, place, deadline=time.monotonic() + budget if budget else None)


def _tell(result: dict[str, Any]) -> None:
    """The result for people, on stdout."""
    print(f"{result['status']}: {result.get('run', '')} ({result.get('seconds', 0)} s)")
    for kind, value in (result.get("outputs") or {}).items():
        print(f"  {kind}: {value}")
    for key, value in (result.get("metrics") or {}).items():
        if not isinstance(value, (dict, list)) and value is not None:
            print(f"  {key}: {value:.4g}" if isinstance(value, float) else f"  {key}: {value}")
    for line in result.get("different", []):
        print(f"  different: {line}")


if __name__ == "__main__":
    sys.exit(main())
