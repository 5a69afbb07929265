"""A run: one execution of a stage, found again by its key, gone on with after a kill, repeated to compare.

    key  = sha256 over stage, config (less what only steers the run), ids of the inputs, code and libraries that decide
    runs/<stage>/<key>/   config.yaml  inputs.json  log.jsonl  ckpt/  out/  _DONE.json (whole or not at all: the commit point)

A stage is a module of flywheel/stages/ with `inputs(cfg, store) -> {kind: {"id": ...}}`, which is quick (no torch), and
`run(cfg, run) -> {"outputs": ..., "metrics": ...}`.
"""

from __future__ import annotations

import importlib
import json
import os
import signal
import time
from contextlib import contextmanager, nullcontext
from functools import cached_property
from pathlib import Path
from typing import Any

from flywheel import log, store
from flywheel.identity import PACKAGE, identity, key_of
from flywheel.names import Names


class RunError(ValueError):
    """A run that cannot begin or is not there; the message says what there is and what to do."""


class Store:
    """The folder that holds everything: corpus/ runs/ names/ cache/ report/."""

    def __init__(self, root: str | Path):
        self.root = Path(root).expanduser().absolute()

    @property
    def corpus_path(self) -> Path | str:
        """Where the corpus lies: in the store, or at the s3://, gs:// or az:// URL that $FLYWHEEL_CORPUS names."""
        return os.environ.get("FLYWHEEL_CORPUS") or self.root / "corpus"

    @property
    def has_corpus(self) -> bool:
        from flywheel.corpus import files_at

        return files_at(self.corpus_path).exists("format.json")

    @property
    def cache(self) -> Path:
        return self.root / "cache"

    @cached_property
    def names(self) -> Names:
        return Names(self.root)

    def corpus(self, create: bool = False):
        """The corpus of this store; an error that says what to do where there is none yet."""
        from flywheel.corpus import Corpus

        return Corpus(self.corpus_path, create=create)

    def runs(self, stage: str = "*") -> list[dict[str, Any]]:
        """The finished runs, oldest first: what their _DONE.json says."""
        paths = sorted(self.root.glob(f"runs/{stage}/*/_DONE.json"), key=lambda p: p.stat().st_mtime_ns)
        return [store.read_json(path) for path in paths]

    def find(self, run: str) -> dict[str, Any]:
        """The finished run that `run` names: stage/key, or a beginning of key; RunError lists the newest."""
        stage, _, key = run.strip("/").removeprefix("runs/").rpartition("/")
        found = [r for r in self.runs(stage or "*") if r["key"].startswith(key)] if key else []
        if len(found) != 1:
            newest = ", ".join(f"{r['stage']}/{r['key']}" for r in self.runs()[-5:]) or "none yet"
            what = "is no finished run" if not found else f"names {len(found)} runs"
            raise RunError(f"{run!r} {what} in {self.root}. The newest: {newest}; `flywheel runs` lists all")
        return found[0]

    def dir(self, run: dict[str, Any]) -> Path:
        return self.root / "runs" / run["stage"] / run["key"]

    def checkpoint(self, ref: str) -> dict[str, Any]:
        """The record of NAME or NAME@ID with `file`, where its weights lie."""
        record = self.names.resolve(ref)
        return {**record, "file": self.root / record["path"]}


class Run:
    """What a stage is given: its folder, its inputs, a log, and a place to save its state."""

    def __init__(self, stage: str, key: str, cfg: dict, store_: Store, inputs: dict, deadline: float | None = None):
        self.stage, self.key, self.cfg, self.store, self.inputs, self.deadline = (
            stage,
            key,
            cfg,
            store_,
            inputs,
            deadline,
        )
        self.dir = store_.root / "runs" / stage / key
        self.out, self.ckpt = self.dir / "out", self.dir / "ckpt"
        self.stopping = False
        self.saved = time.monotonic()

    @property
    def name(self) -> str:
        return f"{self.stage}/{self.key}"

    def begin(self) -> None:
        import yaml

        for folder in (self.out, self.ckpt):
            store.make_dirs(folder)
        store.write_atomic(self.dir / "config.yaml", yaml.safe_dump(self.cfg, sort_keys=False).encode())
        store.write_json(self.dir / "inputs.json", self.inputs, indent=1)
        wandb = (self.cfg.get("log") or {}).get("wandb")
        if wandb:
            wandb = {**wandb, "id": f"{self.stage}-{self.key}", "resume": "allow", "config": self.cfg}
        self.log = log.Log(self.dir / "log.jsonl", wandb)

    def save(self, tensors: dict, state: dict[str, Any]) -> None:
        """Write the stage's state as one safetensors file, whole or not at all."""
        from safetensors.torch import save

        store.write_atomic(self.ckpt / "state.safetensors", save(tensors, {"state": json.dumps(state)}))
        self.saved = time.monotonic()

    def load(self) -> tuple[dict, dict[str, Any]] | None:
        """What `save` wrote last, or None."""
        from safetensors import safe_open

        path = self.ckpt / "state.safetensors"
        if not path.exists():
            return None
        with safe_open(path, "pt") as file:
            return {k: file.get_tensor(k) for k in file.keys()}, json.loads(file.metadata()["state"])  # noqa: SIM118

    def due(self, seconds: float = 20.0) -> bool:
        """Time to save? Also when someone asked the run to stop."""
        return self.stopping or time.monotonic() - self.saved > seconds

    def stop_if_asked(self) -> None:
        """Call right after `save`."""
        if self.stopping:
            raise KeyboardInterrupt

    def out_of_time(self) -> bool:
        return self.deadline is not None and time.monotonic() > self.deadline

    def publish(self, file: str, name: str, **more: Any) -> str:
        """Give the checkpoint out/`file` a place under `name`; its reference NAME@ID."""
        path = self.out / file
        digest = store.sha256_file(path)
        record = self.store.names.make(
            name, digest, path.relative_to(self.store.root).as_posix(), self.name, task=self.cfg["task"], **more
        )  # fmt: skip
        return f"{name}@{record['id']}"

    @contextmanager
    def careful(self):
        """The first Ctrl-C or SIGTERM asks the run to save and stop; the second stops it at once."""

        def ask(number, frame):
            if self.stopping:
                raise KeyboardInterrupt
            self.stopping = True
            log.say("Saving and stopping; once more to stop at once.")

        try:
            before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
        except ValueError:  # not in the main thread
            before = {}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def stage_module(stage: str):
    names = sorted(p.stem for p in (PACKAGE / "stages").glob("*.py") if not p.stem.startswith("_"))
    if stage not in names:
        raise RunError(f"no stage {stage!r} in flywheel/stages/. There are: {', '.join(names)}")
    return importlib.import_module(f"flywheel.stages.{stage}")


def plan(stage: str, cfg: dict[str, Any], place: Store) -> dict[str, Any]:
    """What `execute` would do: {"action": hit | resume | miss, "run", "inputs", "why"}."""
    inputs = stage_module(stage).inputs(cfg, place)
    what = identity(stage, cfg, inputs)
    key = key_of(what)
    folder = place.root / "runs" / stage / key
    if (folder / "_DONE.json").exists():
        action, why = "hit", "done before"
    elif (folder / "config.yaml").exists():
        action, why = "resume", "begun before and not finished"
    else:
        action, why = "miss", difference(what, place)
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
    cfg: dict[str, Any],
    place: Store,
    *,
    lock: bool = True,
    deadline: float | None = None,
    again: bool = False,
) -> dict[str, Any]:
    """Look the run up, or go on with it, or do it; the result (see README, --json). Raises what the stage raises."""
    planned = plan(stage, cfg, place)
    folder = place.root / "runs" / planned["run"]
    if planned["action"] == "hit" and not again:
        done = store.read_json(folder / "_DONE.json")
        return {**done["result"], "status": "noop" if done["result"]["status"] == "done" else done["result"]["status"]}
    run = Run(stage, planned["key"], cfg, place, planned["inputs"], deadline)
    with store.Lock(place.root, stage) if lock else nullcontext(), run.careful():
        began = time.monotonic()
        run.begin()
        log.say(f"{run.name}: {planned['why']}" if planned["action"] != "resume" else f"{run.name}: going on")
        try:
            made = stage_module(stage).run(cfg, run)
        finally:
            run.log.close()
        seconds = round(time.monotonic() - began, 1)
        result = {
            "status": made.get("status", "done"),
            "run": run.name,
            "inputs": {kind: value.get("ref", value["id"]) for kind, value in run.inputs.items()},
            "outputs": made.get("outputs", {}),
            "metrics": made.get("metrics", {}),
            "seconds": seconds,
        }
        done = {
            "stage": stage,
            "key": run.key,
            "identity": planned["identity"],
            "inputs": run.inputs,
            "result": result,
            "content": made.get("content", {}),
            "files": hashes(run.out),
            "finished": store.now(),
        }
        store.write_json(run.dir / "_DONE.json", done, indent=1)
        state = run.ckpt / "state.safetensors"
        if state.exists():
            os.remove(state)
    return result


def hashes(folder: Path) -> dict[str, str]:
    """{relative path: sha256} of a folder's files, without what a killed `write_atomic` left beside them."""
    files = sorted(p for p in folder.rglob("*") if p.is_file() and not (p.name[0] == "." and p.suffix == ".tmp"))
    return {p.relative_to(folder).as_posix(): store.sha256_file(p) for p in files}
