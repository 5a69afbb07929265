"""The command line, thin over the Python API. What only looks things up imports neither hydra nor torch.

flywheel STAGE key=value ... [--json] [--dry-run] [--help]
"""

from __future__ import annotations

import difflib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

from flywheel.args import Task, UsageError, build, plain
from flywheel.cli.config import about, commands, help_of, stages
from flywheel.parallel import leads

OPTIONS = """
  store=DIR    where everything is kept, or s3://BUCKET/PREFIX; default $FLYWHEEL_STORE, else ./store
  --json       the last line on stdout is one object: status, run, inputs, outputs, metrics, seconds, error
  --dry-run    say for each stage: hit, resume or miss, and why
  --cfg        print what was composed, as YAML, and do nothing
  --help       after a command: what it takes

Exit code: 0 done, noop or refused; 1 failed; 2 not understood; 130 or 143 stopped by a signal (README).
"""
ALARM = 60.0  # s that a command of on_failure may take
FLAGS = ("--json", "--dry-run", "--cfg", "--help", "-h", "--version")


def main(argv: list[str] | None = None) -> int:
    """Run a command; its exit code (ending.py): 0 done, noop or refused, 1 failed, 2 bad usage, 128 + n stopped by
    signal n."""
    words = list(sys.argv[1:] if argv is None else argv)
    if words[:2] == ["complete", "--"]:  # a shell asks what may stand next
        from flywheel.cli.complete import candidates

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
    try:
        return _named(words, flags)
    except UsageError as error:
        return _usage(str(error), flags)


def _named(words: list[str], flags: set[str]) -> int:
    """Run the command that the first word names."""
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
    """Run a command that exists and tell how it ended, whatever happened: a line for people or for programs, and the
    exit code."""
    from flywheel import ending

    asked = ending.Signals() if command in (*stages(), "replay") and ending.Signals.now is None else nullcontext()
    try:
        with asked:  # from the first moment, not only once a stage is at work
            result = _dispatch(command, words, flags)
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
    if not leads():
        return code
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


def _overview() -> str:
    """The general help, made of what is there: the stages, and commands.py."""
    lines = [
        "flywheel: robot learning that keeps getting better by itself, with proof.",
        "",
        "  Stages, flywheel STAGE key=value ...:",
    ]
    lines += [f"    {stage:10} {about(stage)}" for stage in stages()]
    lines += ["", "  Commands:"]
    lines += [f"    {name:10} {about}" for name, about in commands().items()]
    return "\n".join(lines) + "\n" + OPTIONS


def _help(command: str) -> str:
    """What a command does and, for a stage, its keys."""
    if command in commands():
        text = f"flywheel {command}: {commands()[command]}\n"
        if command == "corpus":
            from flywheel.cli.commands import CORPUS

            text += "".join(f"\n  {words:36} {what}" for words, what in CORPUS.items())
            text += "\n\nAll take store=DIR and --json. "
            text += "FLYWHEEL_CORPUS=s3://BUCKET/PREFIX (gs://, az://): the corpus is there.\n"
        return text
    return help_of(command)


def _store(words: list[str]):
    """The store that the words name, and the other words."""
    from flywheel.runs.run import Store

    root = next((w.partition("=")[2] for w in words if w.startswith("store=")), None)
    return Store(root or os.environ.get("FLYWHEEL_STORE") or "store"), [w for w in words if not w.startswith("store=")]


def _dispatch(command: str, words: list[str], flags: set[str]) -> dict[str, Any]:
    place, rest = _store(words)
    if command in stages():
        return _stage(command, rest, place, flags)
    if found := flags & {"--dry-run", "--cfg"}:
        raise UsageError(f"{found.pop()} is for stages: {command} would do it. Nothing was done")
    if command == "replay":
        return _replay(rest, place)
    from flywheel.cli import commands

    return getattr(commands, command)(rest, place)


def _stage(stage: str, words: list[str], place, flags: set[str]) -> dict[str, Any]:
    from flywheel import ending
    from flywheel.cli import config
    from flywheel.runs import run

    if stage == "promote" and words and "=" not in words[0]:
        words = [f"checkpoint={words[0]}", *words[1:]]
    if stage == "sweep":
        from flywheel.runs import sweep

        words = sweep.spelled(words)
    args = config.load(stage, words, place.root)
    ending.check()
    args = _where_it_was_trained(args, stage, words, place)
    if "--cfg" in flags:
        import yaml

        print(yaml.safe_dump(plain(args), sort_keys=False), end="")
        return {"status": "noop"}
    budget, dry = config.seconds(getattr(args, "budget", None)), "--dry-run" in flags
    if dry and stage == "nightly":
        from flywheel.runs import nightly

        return nightly.plan(args, place, budget)
    if dry:
        planned = run.plan(stage, args, place, bool(budget))
        print(f"{stage}: {planned['action']} {planned['run']} ({planned['why']})")
        return {"status": "noop", "run": planned["run"], "action": planned["action"], "why": planned["why"]}
    return _alarmed(args, place, lambda: _executed(stage, args, place, budget))


def _alarmed(args, place, work: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """Do the work; where it fails `on_failure` is run, and the failure goes on its way. To be stopped is no failure."""
    from flywheel import ending, log

    try:
        return work()
    except Exception as error:
        if leads() and (command := getattr(args, "on_failure", None)):
            told, _ = ending.told(error, getattr(error, "flywheel_run", None))
            run = told.get("run") or getattr(error, "flywheel_run", "")
            env = {"FLYWHEEL_ERROR": str(told["error"]), "FLYWHEEL_RUN": str(run), "FLYWHEEL_STORE": str(place)}
            try:
                done = subprocess.run(command, shell=True, env=os.environ | env, stdout=2, timeout=ALARM)
                said = f"exit code {done.returncode}" if done.returncode else ""
            except (OSError, subprocess.TimeoutExpired) as trouble:
                said = str(trouble)
            if said:
                log.say(f"  on_failure={command}: {said}")
        raise


def _executed(stage: str, args, place, budget: float | None) -> dict[str, Any]:
    from flywheel.runs import run

    if stage == "nightly":
        from flywheel.runs import nightly

        return nightly.nightly(args, place, budget)
    video = getattr(args, "video", None)
    film = bool(video) and not Path(video).exists()  # looked up, but nobody filmed it yet
    return run.execute(stage, args, place, deadline=time.monotonic() + budget if budget else None, again=film)


def _where_it_was_trained(args, stage: str, words: list[str], place):
    """The arguments with a checkpoint's own task, where none was named, and with the name that an older flywheel
    gave it here."""
    from flywheel import log, selection
    from flywheel.cli import config

    checkpoint = getattr(args, "checkpoint", None)
    told = checkpoint not in (None, "none") and not any(word.startswith("task") for word in words)
    if told and (task := place.names.resolve(checkpoint).get("task")):
        args = replace(args, task=build(Task, task, "task."))
    if hasattr(args, "name") and (kept := selection.kept_name(args, place)):
        log.say(f"  going on under the name that this store has: {kept}")
        parts = {part: getattr(args, part) for part in config.PARTS if stage == "nightly"}
        parts = {part: replace(value, name=kept) for part, value in parts.items() if hasattr(value, "name")}
        args = replace(args, name=kept, **parts)
        if stage == "distil":
            args = replace(args, checkpoint=args.checkpoint or kept)
    return args


def _replay(words: list[str], place) -> dict[str, Any]:
    from flywheel.cli import config
    from flywheel.runs import lineage, run

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
    told, stage = yaml.safe_load((place.dir(done) / "config.yaml").read_text()), done["stage"]
    if unknown := set(changes) - set(config.fields(stage)):
        raise UsageError(f"{stage} has no {', '.join(unknown)}; it has: {', '.join(sorted(config.fields(stage)))}")
    args = config.checked(stage, told | {key: config.value_of(stage, key, value) for key, value in changes.items()})
    budget = config.seconds(getattr(args, "budget", None))
    return run.execute(stage, args, place, deadline=time.monotonic() + budget if budget else None)


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
