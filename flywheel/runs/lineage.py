"""Back in time: a finished run done again and compared, and the walk from a checkpoint to its demonstrations."""

from __future__ import annotations

import os
import shutil
import tempfile
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from flywheel import log
from flywheel.args import Acting, build
from flywheel.cli import config
from flywheel.ending import Signals
from flywheel.runs.ancestry import graph
from flywheel.runs.run import Run, RunError, Store, content, hashes


def scratch(place: Store, folder: Path, leave_out: set[str]) -> Store:
    """A store beside `place` in which runs can be done again: its files are hard links, its names a copy."""

    def link(a, b):
        try:
            os.link(a, b)
        except OSError:
            shutil.copy2(a, b)

    if url := place.mirror.url:
        raise RunError(
            f"a replay works on a copy of the store, and this one is at {url}: copy it into a folder (it has a "
            f"folder's layout: `aws s3 sync {url} DIR`, or your provider's tool) and replay there with store=DIR"
        )
    if os.environ.get("FLYWHEEL_CORPUS"):
        raise RunError(
            f"a replay works on a copy of the store, and the corpus is at {place.corpus_path}: copy it into "
            f"{place.root / 'corpus'} and unset FLYWHEEL_CORPUS"
        )
    if place.has_corpus:
        shutil.copytree(place.corpus_path, folder / "corpus", copy_function=link)
    for part in ("names", "ledger"):
        if (place.root / part).exists():
            shutil.copytree(place.root / part, folder / part)
    for done in place.runs():
        if f"{done['stage']}/{done['key']}" not in leave_out:
            shutil.copytree(place.dir(done), folder / "runs" / done["stage"] / done["key"], copy_function=link)
        else:  # the checkpoints that it made stay readable for others until they are made again
            (folder / "runs" / done["stage"]).mkdir(parents=True, exist_ok=True)
    return Store(folder)


def replay(name: str, place: Store) -> dict[str, Any]:
    """Do a finished run again, in a scratch store, from its config and input versions; compare every output hash.

    A nightly is replayed stage by stage. {"status": done | failed, "metrics": {"equal", "different"}, "different":
    [...]}."""
    import yaml

    done = place.find(name)
    parts = [place.find(child) for child in done.get("content", {}).get("runs", [])] or [done]
    different, equal, apart = [], 0, []
    with tempfile.TemporaryDirectory(prefix="flywheel-replay-") as folder:
        for part in parts:
            one = Path(folder) / part["key"]
            copy = scratch(place, one, {f"{part['stage']}/{part['key']}"})
            module = config.module(part["stage"])
            args = build(module.Args, yaml.safe_load((place.dir(part) / "config.yaml").read_text()))
            run = Run(part["stage"], part["key"], args, copy, part["inputs"], recorded=part)
            with nullcontext() if Signals.now else Signals():
                run.begin()
                log.say(f"replay {run.name}")
                made = module.run(run.args, run.inputs, run)
                run.log.close()
            seeded = _honours_seeds(args)
            for what, old, new in (
                ("outputs", part["result"]["outputs"], made.get("outputs", {})),
                ("content", part["content"], content(run, made)),
                ("files", part["files"], hashes(run.out)),
            ):
                for item in sorted({*old, *new}):
                    if what == "outputs" and item == "corpus":
                        continue  # a version number; the content is compared by hash
                    if old.get(item) == new.get(item):
                        equal += 1
                    else:
                        told = f"{run.name} {what} {item}: {old.get(item)!s:.64} -> {new.get(item)!s:.64}"
                        (different if seeded else apart).append(told)
    return {
        "status": "failed" if different else "done",
        "run": f"{done['stage']}/{done['key']}",
        "inputs": {},
        "outputs": {},
        "metrics": {"equal": equal, "different": len(different), "not_comparable": len(apart)},
        "different": different,
        **({"error": "; ".join(different)} if different else {}),
    }


def _honours_seeds(args: Any) -> bool:
    """Can what a stage did in its environment be compared at all? Said where it cannot."""
    if args.task.name != "gym" or not isinstance(args, Acting):
        return True
    from flywheel.env import honours_seeds, opened

    env = opened(args, 1)
    seeded, why = honours_seeds(env)
    env.close()
    if not seeded:
        log.say(f"  what differs is not compared: {env.task} does not honour its seeds ({why})")
    return seeded


def lineage(ref: str, place: Store) -> list[dict[str, Any]]:
    """From a checkpoint back to the files of its demonstrations: [{"depth", "what", "run", "detail"}], a walk in
    depth."""
    nodes, parents = graph(place, place.runs(), ref)
    known = {node["node"]: node for node in nodes}
    lines: list[dict[str, Any]] = []

    def walk(node: str, depth: int, run: str) -> None:
        told = known.pop(node, None)
        if told is None:  # listed above
            return
        if told["kind"] == "run":  # it stands beside what it made
            for parent in parents[node]:
                walk(parent, depth, told["title"])
            return
        maker = next((known[p]["title"] for p in parents[node] if p in known and known[p]["kind"] == "run"), run)
        detail = told["detail"]
        if told["kind"] == "corpus":
            detail += "".join(f" {p.removeprefix('file ')}" for p in _files(node, parents))
        lines.append({"depth": depth, "what": told["title"], "run": maker, "detail": detail})
        for parent in parents[node]:
            walk(parent, depth + 1, maker)

    walk(nodes[0]["node"], 0, "")
    return lines


def _files(node: str, parents: dict[str, list[str]]) -> list[str]:
    """The files that a corpus version was read from, by whichever ingest."""
    return [p for run in [node, *parents[node]] for p in parents.get(run, []) if p.startswith("file ")]
