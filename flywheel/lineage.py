"""Back in time: a finished run done again and compared, and the walk from a checkpoint to its demonstrations."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

from flywheel import log
from flywheel.run import Run, RunError, Store, hashes, stage_module


def scratch(place: Store, folder: Path, leave_out: set[str]) -> Store:
    """A store beside `place` in which runs can be done again: its files are hard links, its names a copy."""

    def link(a, b):
        try:
            os.link(a, b)
        except OSError:
            shutil.copy2(a, b)

    if os.environ.get("FLYWHEEL_CORPUS"):
        raise RunError(
            f"a replay works on a copy of the store, and the corpus is at {place.corpus_path}: copy it into "
            f"{place.root / 'corpus'} and unset FLYWHEEL_CORPUS"
        )
    if place.has_corpus:
        shutil.copytree(place.corpus_path, folder / "corpus", copy_function=link)
    if (place.root / "names").exists():
        shutil.copytree(place.root / "names", folder / "names")
    for done in place.runs():
        if f"{done['stage']}/{done['key']}" not in leave_out:
            shutil.copytree(place.dir(done), folder / "runs" / done["stage"] / done["key"], copy_function=link)
        else:  # the checkpoints that it made stay readable for others until they are made again
            (folder / "runs" / done["stage"]).mkdir(parents=True, exist_ok=True)
    return Store(folder)


def replay(name: str, place: Store) -> dict[str, Any]:
    """Do a finished run again, in a scratch store, from its config and input versions; compare every output hash.

    A nightly is replayed stage by stage. {"status": done | failed, "metrics": {"equal", "different"}, "different": [...]}.
    """
    import yaml

    done = place.find(name)
    parts = [place.find(child) for child in done.get("content", {}).get("runs", [])] or [done]
    different, equal = [], 0
    with tempfile.TemporaryDirectory(prefix="flywheel-replay-") as folder:
        for part in parts:
            one = Path(folder) / part["key"]
            copy = scratch(place, one, {f"{part['stage']}/{part['key']}"})
            cfg = yaml.safe_load((place.dir(part) / "config.yaml").read_text())
            run = Run(part["stage"], part["key"], cfg, copy, part["inputs"])
            with run.careful():
                run.begin()
                log.say(f"replay {run.name}")
                made = stage_module(part["stage"]).run(cfg, run)
                run.log.close()
            for what, old, new in (
                ("outputs", part["result"]["outputs"], made.get("outputs", {})),
                ("content", part["content"], made.get("content", {})),
                ("files", part["files"], hashes(run.out)),
            ):
                for item in sorted({*old, *new}):
                    if what == "outputs" and item == "corpus":
                        continue  # a version number; the content is compared by hash
                    if old.get(item) == new.get(item):
                        equal += 1
                    else:
                        different.append(f"{run.name} {what} {item}: {old.get(item)!s:.64} -> {new.get(item)!s:.64}")
    return {
        "status": "failed" if different else "done",
        "run": f"{done['stage']}/{done['key']}",
        "inputs": {},
        "outputs": {},
        "metrics": {"equal": equal, "different": len(different)},
        "different": different,
        **({"error": "; ".join(different)} if different else {}),
    }


def lineage(ref: str, place: Store) -> list[dict[str, Any]]:
    """From a checkpoint back to the demonstrations: [{"depth", "what", "run", "detail"}], a walk in depth."""
    lines: list[dict[str, Any]] = []
    seen: set[str] = set()

    def checkpoint(ref: str, depth: int) -> None:
        record = place.names.resolve(ref)
        lines.append({"depth": depth, "what": f"{record['name']}@{record['id']}", "run": record["run"], "detail": ""})
        walk(record["run"], depth + 1)

    def walk(run: str, depth: int) -> None:
        if run in seen:
            return
        seen.add(run)
        try:
            done = place.find(run)
        except RunError:
            return
        for kind, value in done["inputs"].items():
            if kind in ("checkpoint", "against"):
                checkpoint(value["ref"], depth)
            elif kind == "corpus":
                detail = ", ".join(f"{n} {origin}" for origin, n in value.get("origins", {}).items())
                files = ", ".join(value.get("files", []))
                what = f"corpus@{value.get('version')} ({value['id'][:12]})"
                lines.append({"depth": depth, "what": what, "run": run, "detail": f"{detail} {files}".strip()})

    checkpoint(ref, 0)
    return lines
