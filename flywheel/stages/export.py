"""export: episodes of the corpus as files that others read: LeRobotDataset v3.0, robomimic HDF5, a Zarr replay buffer.

    out/            the data set, as format= lays it out; appears whole or not at all
    out/flywheel.json   what it is made of (episode hashes), what only flywheel finds in it, and what it could not hold

`flywheel ingest` reads it back equal to the last bit; what a format cannot hold is said, and stands in flywheel.json.
"""

from __future__ import annotations

import dataclasses
import importlib
import os
import shutil
from pathlib import Path
from typing import Any

from flywheel import selection
from flywheel import store as files
from flywheel.args import Common, arg
from flywheel.log import progress, say

MARK = "flywheel.json"


def formats() -> dict[str, Path]:
    """The formats that can be written: the modules of datasets/ that have `write`, by name."""
    import flywheel_datasets

    known = [p for d in flywheel_datasets.__path__ for p in sorted(Path(d).glob("[!_]*.py"))]
    return {path.stem: path for path in known if "\ndef write(" in path.read_text(encoding="utf-8")}


def writer(name: str):
    """The module that writes a format; ValueError lists the formats."""
    name = "replay_buffer_zarr" if name == "zarr" else name
    if name not in formats():
        raise ValueError(f"format={name!r} cannot be written. There are: {', '.join(formats())}")
    return importlib.import_module(f"flywheel_datasets.{name}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Args(Common):
    """Episodes of the corpus as files for others."""

    out: str = arg(help="a new folder", typed=True)
    format: str = arg("lerobot_v3", "or robomimic_hdf5, replay_buffer_zarr (zarr for short)")
    corpus: str = arg("latest", "a version, a tag or a view", typed=True)
    origin: Any = arg(None, 'only these: a pattern ("human:*") or a list of them')
    fps: float | None = arg(None, "control rate in Hz, for episodes that do not know theirs", least=1e-3, most=1e6)


def choose(args: Args, store, ref):
    """The episodes to export, in an order that does not depend on when they came; ValueError if there are none."""
    version = store.corpus().at(ref)
    chosen = version.select(task=selection.title(args.task), **({"origin": args.origin} if args.origin else {}))
    if not len(chosen):
        here = ", ".join(f"{t} ({n})" for t, n in version.summary()["task"].items()) or "nothing"
        origins = f" of origin {args.origin}" if args.origin else ""
        raise ValueError(
            f"corpus@{version.number} has no episode of {selection.title(args.task)}{origins}. It holds: {here}. Name "
            "a task="
        )
    return chosen.canonical()


def mark(args: Args, chosen) -> dict[str, Any]:
    """What tells one export from another."""
    return {"format": writer(args.format).__name__.rpartition(".")[2], "corpus": chosen.id, "fps": args.fps}


def place(args: Args) -> Path:
    return Path(os.path.expanduser(args.out)).absolute()


def inputs(args: Args, store) -> dict[str, Any]:
    """The episodes, and whether `out` still has to be made: an export that somebody deleted is made again."""
    chosen, out = choose(args, store, args.corpus), place(args)
    present = (out / MARK).exists()
    if present and (there := {k: files.read_json(out / MARK).get(k) for k in mark(args, chosen)}) != mark(args, chosen):
        raise ValueError(
            f"out={out}: it holds another export ({there['format']} of corpus {there['corpus']!s:.12}); name a new "
            "folder"
        )
    if not present and out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ValueError(f"out={out}: it exists and is no export of flywheel; name a new folder")
    made = sum(done["content"].get("out") == str(out) for done in store.runs("export"))
    return {"corpus": selection.describe(chosen), "out": {"id": f"{out}#{max(0, made - present)}", "ref": str(out)}}


def run(args: Args, inputs: dict[str, Any], run) -> dict[str, Any]:
    from flywheel_datasets import _survey

    out, write = place(args), writer(args.format)
    chosen = choose(args, run.store, inputs["corpus"]["version"])
    seen = _survey.survey(chosen)
    aside = out.with_name(f".{out.name}.partial")
    shutil.rmtree(aside, ignore_errors=True)
    files.make_dirs(aside)
    try:
        with progress(f"export {args.format}", len(chosen)) as tick:
            write.write(aside, told(chosen, tick, run), seen, args.fps)
        for line in seen.aside:
            say(f"  kept where only flywheel looks: {line}")
        for line in seen.lost:
            say(f"  not in this export: {line}")
        about = {**mark(args, chosen), "task": selection.title(args.task), "episodes": chosen.hashes}
        files.write_json(aside / MARK, {**about, "lost": seen.lost, "aside": seen.aside}, indent=1)
        made = {p.relative_to(aside).as_posix(): files.sha256_file(p) for p in sorted(aside.rglob("*")) if p.is_file()}
        files.publish_folder(aside, out, made)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    size = sum((out / name).stat().st_size for name in made)
    metrics = {
        "episodes": len(chosen),
        "steps": int(chosen.table["length"].sum()),
        "bytes": size,
        "lost": len(seen.lost),
    }
    run.log("export", **metrics)
    return {
        "outputs": {"export": str(out)},
        "metrics": metrics,
        "content": {"out": str(out), "files": made, "lost": seen.lost},
    }


def told(chosen, tick, run):
    """The episodes, counted; a run that is asked to stop leaves nothing behind."""
    for episode in chosen:
        run.stop_if_asked()
        yield episode
        tick()
