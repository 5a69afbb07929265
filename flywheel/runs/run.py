"""A run: one execution of a stage, found again by its key, gone on with after a kill, repeated to compare.

    key  = sha256 over stage, config (less what only steers the run), ids of the inputs, code and libraries that decide
    runs/<stage>/<key>/   config.yaml  inputs.json  log.jsonl  ckpt/  out/  _DONE.json (the commit point)

A stage is a module of flywheel/stages/ with a dataclass `Args`, `inputs(args, store) -> {kind: {"id": ...}}`, which is
quick (no torch), and `run(args, inputs, run) -> {"outputs": ..., "metrics": ...}`. What `inputs` found is decided:
`args` then name that, and no "latest"."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import math
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import cached_property
from pathlib import Path
from typing import Any

from flywheel import log, store
from flywheel.args import plain
from flywheel.cli import config
from flywheel.ending import Failed, OutOfTime, Signals, check
from flywheel.parallel import ALONE, STAGES, Peers, joined
from flywheel.runs.identity import PACKAGE, identity, key_of, versions
from flywheel.runs.ledger import Ledger
from flywheel.runs.mirror import BEAT, at, hashes
from flywheel.runs.names import Names

LOOKS = 16  # updates between two words of several processes about the time


class RunError(ValueError):
    """A run that cannot begin or is not there; the message says what there is and what to do."""


class Store:
    """What holds everything: corpus/ runs/ names/ cache/ report/. A folder, or a URL of an object store, of which
    `root` is then this machine's mirror."""

    def __init__(self, root: str | Path):
        self.mirror = at(root)
        self.root = self.mirror.root

    def __str__(self) -> str:
        return str(self.mirror)

    @property
    def corpus_path(self) -> Path | str:
        """Where the corpus lies: in the store, or at the s3://, gs:// or az:// URL that $FLYWHEEL_CORPUS names."""
        return os.environ.get("FLYWHEEL_CORPUS") or self.mirror.corpus

    @property
    def has_corpus(self) -> bool:
        from flywheel.corpus import files_at

        return files_at(self.corpus_path).exists("format.json")

    @property
    def cache(self) -> Path:
        return self.root / "cache"

    @cached_property
    def names(self) -> Names:
        return Names(self.root, self.mirror)

    @cached_property
    def ledger(self) -> Ledger:
        return Ledger(self.root, self.mirror)

    def corpus(self, create: bool = False):
        """The corpus of this store; an error that says what to do where there is none yet."""
        from flywheel.corpus import Corpus

        return Corpus(self.corpus_path, create=create)

    def runs(self, stage: str = "*") -> list[dict[str, Any]]:
        """The finished runs, oldest first: what their _DONE.json says. A damaged one is named and left out."""
        found = []
        for path in (folder / "_DONE.json" for folder in self.begun(stage) if (folder / "_DONE.json").exists()):
            try:
                found.append(store.read_json(path))
            except ValueError as error:
                log.say(f"  left out: {error}; `flywheel fsck` checks the whole store")
        return sorted(found, key=lambda done: (done.get("order", 0), done["finished"], done["key"]))

    def begun(self, stage: str = "*") -> list[Path]:
        """The folders of all runs, finished or not."""
        self.mirror.refresh(self.root / "runs" / stage.replace("*", ""))
        return list(self.root.glob(f"runs/{stage}/*"))

    def find(self, run: str) -> dict[str, Any]:
        """The finished run that `run` names: stage/key, or a beginning of key; RunError lists the newest."""
        stage, _, key = run.strip("/").removeprefix("runs/").rpartition("/")
        found = [r for r in self.runs(stage or "*") if r["key"].startswith(key)] if key else []
        if len(found) != 1:
            newest = ", ".join(f"{r['stage']}/{r['key']}" for r in self.runs()[-5:]) or "none yet"
            what = "is no finished run" if not found else f"names {len(found)} runs"
            raise RunError(f"{run!r} {what} in {self}. The newest: {newest}; `flywheel runs` lists all")
        return found[0]

    def dir(self, run: dict[str, Any] | str) -> Path:
        """The folder of a finished run, by its record or as stage/key; all but its weights is there."""
        name = run if isinstance(run, str) else f"{run['stage']}/{run['key']}"
        self.mirror.whole(name)
        return self.root / "runs" / name

    def checkpoint(self, ref: str) -> dict[str, Any]:
        """The record of NAME or NAME@ID with `file`, where its weights lie."""
        record = self.names.resolve(ref)
        file = self.mirror.weights(record["path"], record["sha256"])
        if not file.exists():  # another run made the same weights, perhaps
            made = [e for e in self.names.log(record["name"]) if e["op"] == "make" and e["id"] == record["id"]]
            there = (self.mirror.weights(e["path"], e["sha256"]) for e in reversed(made))
            file = next((path for path in there if path.exists()), file)
        return {**record, "file": file}

    def load(self, ref: str, device: str = "cpu"):
        """The policy of NAME or NAME@ID, its weights compared with the hash that they are named by (a millisecond a
        megabyte)."""
        from flywheel.policy import base

        record = self.checkpoint(ref)
        if not record["file"].exists():
            raise RunError(
                f"{self}/{record['path']}: the weights of {record['name']}@{record['id']} are gone. Bring the file "
                f"back from a copy, or remove runs/{record['run']} and give its command again; `flywheel fsck` checks "
                "all"
            )
        if (found := store.sha256_file(record["file"])) != record["sha256"]:
            raise RunError(
                f"{record['file']}: the weights of {record['name']}@{record['id']} are damaged: their sha256 is "
                f"{found[:12]}. Bring the file back from a copy, or remove runs/{record['run']} and give its command "
                "again; `flywheel fsck` checks all"
            )
        return base.load(record["file"], device)


SPARED = 19  # of the time that writing a state took, before the next one


class Run:
    """What a stage is given: its folder, its inputs, a log, and a place to save its state.

    What is decided when a run is planned is decided: `args` name the very versions and checkpoints of `inputs`.
    `recorded` is the record of the run that this one repeats; it ends where that one was ended."""

    def __init__(
        self,
        stage: str,
        key: str,
        args: Any,
        store_: Store,
        inputs: dict,
        deadline: float | None = None,
        recorded: dict | None = None,
        peers: Peers = ALONE,
    ):
        self.peers, self.looks = peers, 0
        self.stage, self.key, self.store, self.inputs, self.deadline = stage, key, store_, inputs, deadline
        self.args = pinned(args, inputs)
        self.dir = store_.root / "runs" / stage / key
        self.out, self.ckpt = self.dir / "out", self.dir / "ckpt"
        self.recorded = (recorded or {}).get("content") or {}
        self.stopped: dict[str, Any] | None = None  # what ended it early: {"why", "at"}
        self.saved, self.pause = time.monotonic(), 0.0

    @property
    def name(self) -> str:
        return f"{self.stage}/{self.key}"

    def begin_beside(self, folder: Path) -> None:
        """Begin in a process that trains beside the first one: what it writes goes to a folder that nobody keeps."""
        self.dir, self.out, self.ckpt = folder, folder / "out", folder / "ckpt"
        store.make_dirs(self.out)
        self.log = log.Log(folder / "log.jsonl")

    def begin(self) -> None:
        import yaml

        for folder in (self.out, self.ckpt):
            store.make_dirs(folder)
        store.write_atomic(self.dir / "config.yaml", yaml.safe_dump(plain(self.args), sort_keys=False).encode())
        store.write_json(self.dir / "inputs.json", self.inputs, indent=1)
        self.store.mirror.keep(self.dir)
        self.log = log.Log(self.dir / "log.jsonl", {name: self._told(about) for name, about in self.args.log.items()})
        for kind, found in self.inputs.items() if self.args.log else ():
            if kind == "corpus":
                about = {key: found[key] for key in ("version", "episodes", "id") if key in found}
                self.log.artifact(f"corpus@{found['id'][:12]}", str(self.store.corpus_path), "dataset", **about)

    def _told(self, settings: dict[str, Any] | None) -> dict[str, Any]:
        """What a sink is told of this run: its own settings over what is known of the run."""
        task, wanted = self.args.task.id or self.args.task.name, {k: v for k, v in (settings or {}).items() if v}
        own = {"name": f"{self.stage} {task} {self.key[:6]}", "group": f"night-{getattr(self.args, 'night', 0)}"}
        own |= {"job_type": self.stage, "id": f"{self.stage}-{self.key}", "resume": "allow"}
        refs = {kind: str(found.get("ref", found["id"])) for kind, found in self.inputs.items()}
        config = {**plain(self.args), "code": source_commit(), "versions": versions(), "inputs": refs}
        return {**own, **wanted, "tags": [self.stage, task, *(wanted.get("tags") or [])], "config": config}

    def save(self, tensors: dict, state: dict[str, Any]) -> None:
        """Write the stage's state as one safetensors file, whole or not at all."""
        from safetensors.torch import save

        began = time.monotonic()
        store.write_atomic(self.ckpt / "state.safetensors", save(tensors, {"state": json.dumps(state)}))
        self.store.mirror.keep(self.dir)
        self.saved = time.monotonic()
        self.pause = SPARED * (self.saved - began)

    def load(self) -> tuple[dict, dict[str, Any]] | None:
        """What `save` wrote last, or None; also where that cannot be read any more, which is said."""
        return self.peers.first(self._load)

    def _load(self) -> tuple[dict, dict[str, Any]] | None:
        from safetensors import SafetensorError, safe_open

        path = self.ckpt / "state.safetensors"
        if not path.exists():
            return None
        try:
            with safe_open(path, "pt") as file:
                state = json.loads(file.metadata()["state"])
                return {k: file.get_tensor(k) for k in file.keys()}, state  # noqa: SIM118
        except (SafetensorError, OSError, TypeError, KeyError, ValueError) as error:
            log.say(f"  {path} cannot be read ({error}): the run begins again")
            return None

    @property
    def stopping(self) -> bool:
        """Did somebody ask the process to stop?"""
        return Signals.now is not None and Signals.now.number is not None

    def due(self, seconds: float = 20.0) -> bool:
        """Time to save? Also when someone asked the run to stop. A state that takes long to write is saved less often:
        no more than a twentieth of the time goes into that."""
        if self.peers.rank:
            return False
        return self.stopping or time.monotonic() - self.saved > (max(seconds, self.pause) if seconds else 0.0)

    def beat(self, what: str, done: int, total: int, note: str) -> None:
        """Say how far it is, for `flywheel status`; each few seconds, and nobody depends on it."""
        with contextlib.suppress(OSError):
            told = {"what": what, "done": done, "total": total, "note": note, "time": time.time()}
            store.write_atomic(self.dir / BEAT, store.to_json(told), durable=False)

    def save_soon(self) -> None:
        """Something was done that nobody wants to do again: the next moment to save is due."""
        self.saved = -math.inf

    def stop_if_asked(self) -> None:
        """Call right after `save`."""
        check()

    def out_of_time(self, at: Any) -> bool:
        """Is the budget spent? `at` says how far the run is (a number, or a list of them, that grows): it becomes an
        output of the run, and a replay is out of time at the same place."""
        before = self.recorded.get("stopped")
        if self.recorded:
            late = before is not None and before["why"] == "budget" and at >= before["at"]
        else:
            late = self.deadline is not None and self._late()
        if late and self.stopped is None:
            self.stopped = {"why": "budget", "at": before["at"] if before else at}
        return late

    def _late(self) -> bool:
        """Is it past the deadline? Of several processes the first one says, each LOOKS times that all of them ask."""
        self.looks += 1
        if self.peers.size > 1 and self.looks % LOOKS:
            return False
        return self.peers.first(lambda: time.monotonic() > self.deadline)

    @contextmanager
    def ended_early(self, at: Callable[[], Any]) -> Iterator[None]:
        """What ends learning early is no error: a spent budget, or gradients that are not finite; it is said, and an
        output of the run.

        `at()` says how far it came, as `out_of_time` is told.
        """
        try:
            yield
        except OutOfTime:
            log.say(f"  {self.name}: the budget is spent; it ends here with what it has")
        except FloatingPointError as error:
            log.say(f"  {self.name} ends here, with what it had before: {error}")
            self.stopped = {"why": str(error), "at": at()}

    def publish(self, file: str, name: str, **more: Any) -> str:
        """Give the checkpoint out/`file` a place under `name`; its reference NAME@ID."""
        if self.peers.rank:
            return name
        path = self.out / file
        digest = store.sha256_file(path)
        self.store.mirror.hand_over(path)
        task = {key: value for key, value in plain(self.args.task).items() if value not in (None, {})}
        record = self.store.names.make(
            name, digest, path.relative_to(self.store.root).as_posix(), self.name, task=task, **more
        )  # fmt: skip
        about = {k: v for k, v in more.items() if k != "parents"}
        self.log.artifact(
            f"{name}@{record['id']}", self.store.mirror.where(path), run=self.name, sha256=digest, **about
        )
        return f"{name}@{record['id']}"


def pinned(args: Any, inputs: dict[str, Any]) -> Any:
    """The arguments with the versions and checkpoints that `inputs` found in the place of names that may come to
    mean others."""
    fixed = {kind: value["ref"] for kind, value in inputs.items() if hasattr(args, kind) and "ref" in value}
    if getattr(args, "data", None):  # views are named for good
        fixed.pop("corpus", None)
    return dataclasses.replace(args, **fixed)


def source_commit() -> str | None:
    """The git commit of this code, with + where it was changed since; None outside a checkout."""
    import subprocess

    def git(*words: str) -> str:
        return subprocess.run(["git", *words], cwd=PACKAGE, capture_output=True, text=True, check=True).stdout.strip()

    try:
        return git("rev-parse", "HEAD") + ("+" if git("status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.CalledProcessError):
        return None


def plan(stage: str, args: Any, place: Store, bounded: bool = False) -> dict[str, Any]:
    """What `execute` would do: {"action": hit | resume | miss, "run", "inputs", "why"}.

    A run that its budget cut short is found again by commands that are `bounded` by one too, until the whole, another
    run, is done."""
    inputs = config.module(stage).inputs(args, place)
    place.mirror.refresh(place.root / "runs" / stage)
    what = identity(stage, config.stages()[stage], plain(args), inputs)
    for what in (what, {**what, "whole": True}):  # noqa: B020 (the first is the run itself)
        key = key_of(what)
        folder = place.root / "runs" / stage / key
        if not (folder / "_DONE.json").exists():
            begun = (folder / "config.yaml").exists()
            action, why = ("resume", "begun before and not finished") if begun else ("miss", difference(what, place))
            break
        stopped = (store.read_json(folder / "_DONE.json").get("content") or {}).get("stopped")
        action, why = "hit", "done before"
        whole = place.root / "runs" / stage / key_of({**what, "whole": True}) / "_DONE.json"
        if (bounded and not whole.exists()) or "whole" in what or not stopped or stopped["why"] != "budget":
            break
    return {"action": action, "run": f"{stage}/{key}", "key": key, "inputs": inputs, "identity": what, "why": why}


def difference(what: dict[str, Any], place: Store) -> str:
    """How a new run differs from the most similar finished one of its stage, in words."""
    best: list[str] | None = None
    for done in place.runs(what["stage"]):
        old = done.get("identity") or {}
        words = []
        for part, word in (("config", "config"), ("inputs", "new version of"), ("fingerprint", "changed")):
            a, b = flat(old.get(part, {})), flat(what[part])
            for name in sorted({*a, *b}):
                if a.get(name) != b.get(name):
                    detail = "" if part == "inputs" else f" {a.get(name)!s:.40} -> {b.get(name)!s:.40}"
                    words.append(f"{word} {name}{detail}")
        if best is None or len(words) < len(best):
            best = words
    if not best:
        return "never run"
    return "; ".join(best[:6]) + (f"; and {len(best) - 6} more" if len(best) > 6 else "")


def flat(tree: dict[str, Any], where: str = "") -> dict[str, Any]:
    """Nested keys with dots."""
    out: dict[str, Any] = {}
    for key, value in tree.items():
        out |= flat(value, f"{where}{key}.") if isinstance(value, dict) else {f"{where}{key}": value}
    return out


def execute(
    stage: str,
    args: Any,
    place: Store,
    *,
    lock: bool = True,
    deadline: float | None = None,
    again: bool = False,
) -> dict[str, Any]:
    """Look the run up, or go on with it, or do it; the result (see README, --json). Raises what the stage raises, and
    ending.Failed where the stage itself says that it failed."""
    peers = _together(stage)
    planned = peers.first(lambda: plan(stage, args, place, deadline is not None))
    folder = place.root / "runs" / planned["run"]
    if planned["action"] == "hit" and not again:
        done = store.read_json(folder / "_DONE.json")
        return {**done["result"], "status": "noop" if done["result"]["status"] == "done" else done["result"]["status"]}
    run = Run(stage, planned["key"], args, place, planned["inputs"], deadline, peers=peers)
    anew = functools.partial(execute, stage, args, place, lock=lock, deadline=deadline)
    if peers.rank:
        return _beside(run, anew)
    with (
        store.Lock(place.root, stage, shared=True) if lock else nullcontext(),  # gc waits; others may work beside it
        place.mirror.hold(run.dir, stage, wait=not lock),  # two nights may need the same run: the second looks it up
        nullcontext() if Signals.now else Signals(),
    ):
        if not again and (folder / "_DONE.json").exists():  # somebody did it while we came to the lock
            peers.first(lambda: False)
            return anew()
        began = time.monotonic()
        run.begin()
        peers.first(lambda: True)
        log.say(f"{run.name}: {planned['why']}" if planned["action"] != "resume" else f"{run.name}: going on")
        made = _worked(run)
        result = {
            "status": made.get("status", "done"),
            "run": run.name,
            "inputs": {kind: value.get("ref", value["id"]) for kind, value in run.inputs.items()},
            "outputs": made.get("outputs", {}),
            "metrics": made.get("metrics", {}),
            "seconds": round(time.monotonic() - began, 1),
            **({"stopped": run.stopped["why"]} if run.stopped else {}),
        }
        if result["status"] == "failed":
            raise Failed(made.get("error") or f"{run.name} failed", result)
        commit(run, planned["identity"], result, made)
    peers.first(lambda: result)
    if deadline is not None and (over := time.monotonic() - deadline) > 1:
        log.say(f"  {run.name} ended {over:.0f} s after its budget")
    return result


def _together(stage: str) -> Peers:
    """The processes that do the stage; RunError where torchrun started several, and one is expected."""
    peers = joined()
    if peers.size > 1 and stage not in STAGES:
        raise RunError(
            f"{stage}: torchrun started {peers.size} processes; expected one, but for {', '.join(STAGES)}. Start it "
            "without torchrun; executor= spreads what it plays"
        )
    return peers


def _worked(run: Run) -> dict[str, Any]:
    """What the stage made, its progress told for `flywheel status`."""
    log.Progress.beat = run.beat
    try:
        return config.module(run.stage).run(run.args, run.inputs, run)
    except Exception as error:
        error.flywheel_run = run.dir  # where its traceback may be kept
        raise
    finally:
        log.Progress.beat = None
        run.log.close()


def _beside(run: Run, again: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What `execute` does in a process beside the first one: it trains, and says and keeps nothing."""
    if not run.peers.first(dict):  # somebody did it
        return again()
    try:
        with tempfile.TemporaryDirectory() as folder, open(os.devnull, "w") as nobody:
            with contextlib.redirect_stderr(nobody):
                run.begin_beside(Path(folder))
                config.module(run.stage).run(run.args, run.inputs, run)
            run.log.close()
        return run.peers.first(dict)
    except RuntimeError:
        check()  # the first one was asked to stop, saved and is gone
        raise


def commit(run: Run, what: dict[str, Any], result: dict[str, Any], made: dict[str, Any]) -> None:
    """Write the record that makes a run a finished one, and drop what it needed to go on."""
    done = {
        "stage": run.stage,
        "key": run.key,
        "identity": what,
        "inputs": run.inputs,
        "result": result,
        "content": content(run, made),
        "files": hashes(run.out),
        "finished": store.now(),
        "order": 1 + max((done.get("order", 0) for done in run.store.runs()), default=0),
    }
    run.store.mirror.commit(run.dir, done)
    for left in (run.ckpt / "state.safetensors", run.dir / "lock", run.dir / "error.txt", run.dir / BEAT):
        left.unlink(missing_ok=True)


def content(run: Run, made: dict[str, Any]) -> dict[str, Any]:
    """What a run made that is no file: what its stage says, and what ended it early."""
    return {**made.get("content", {}), **({"stopped": run.stopped} if run.stopped else {})}
