"""export: episodes of the corpus as files that others read: LeRobotDataset v3.0, robomimic HDF5, a Zarr replay buffer.

    out/            the data set, as format= lays it out; appears whole or not at all
    out/flywheel.json   what it is made of (episode hashes), what only flywheel finds in it, and what it could not hold

`flywheel ingest` reads it back equal to the last bit; what a format cannot hold is said, and stands in flywheel.json.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

from flywheel import store as files
from flywheel.log import progress, say
from flywheel.stages import _inputs
from flywheel.stages._export_survey import survey

MARK = "flywheel.json"


def writer(name: str):
    """The module that writes a format; ValueError lists the formats."""
    from flywheel.stages import _export_hdf5, _export_lerobot, _export_zarr

    known = {"lerobot_v3": _export_lerobot, "robomimic_hdf5": _export_hdf5, "replay_buffer_zarr": _export_zarr}
    if (name := "replay_buffer_zarr" if name == "zarr" else name) not in known:
        raise ValueError(f"format={name!r} cannot be written. There are: {', '.join(known)}")
    return known[name]


def choose(cfg: dict[str, Any], store, ref):
    """The episodes to export, in an order that does not depend on when they came; ValueError if there are none."""
    version = store.corpus().at(ref)
    chosen = version.select(task=_inputs.title(cfg), **({"origin": cfg["origin"]} if cfg.get("origin") else {}))
    if not len(chosen):
        here = ", ".join(f"{t} ({n})" for t, n in version.summary()["task"].items()) or "nothing"
        origins = f" of origin {cfg['origin']}" if cfg.get("origin") else ""
        raise ValueError(
            f"corpus@{version.number} has no episode of {_inputs.title(cfg)}{origins}. It holds: {here}. Name a task="
        )
    return chosen.canonical()


def mark(cfg: dict[str, Any], chosen) -> dict[str, Any]:
    """What tells one export from another."""
    return {"format": writer(cfg["format"]).NAME, "corpus": chosen.id, "fps": cfg.get("fps")}


def place(cfg: dict[str, Any]) -> Path:
    return Path(os.path.expanduser(str(cfg["out"]))).absolute()


def inputs(cfg: dict[str, Any], store) -> dict[str, Any]:
    """The episodes, and whether `out` still has to be made: an export that somebody deleted is made again."""
    chosen, out = choose(cfg, store, cfg.get("corpus") or "latest"), place(cfg)
    present = (out / MARK).exists()
    if present and (there := {k: files.read_json(out / MARK).get(k) for k in mark(cfg, chosen)}) != mark(cfg, chosen):
        raise ValueError(
            f"out={out}: it holds another export ({there['format']} of corpus {there['corpus']!s:.12}); name a new folder"
        )
    if not present and out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ValueError(f"out={out}: it exists and is no export of flywheel; name a new folder")
    made = sum(done["content"].get("out") == str(out) for done in store.runs("export"))
    return {"corpus": _inputs.describe(chosen), "out": {"id": f"{out}#{max(0, made - present)}", "ref": str(out)}}


def run(cfg: dict[str, Any], run) -> dict[str, Any]:
    out, write = place(cfg), writer(cfg["format"])
    chosen = choose(cfg, run.store, run.inputs["corpus"]["version"])
    seen = survey(chosen)
    aside = out.with_name(f".{out.name}.partial")
    shutil.rmtree(aside, ignore_errors=True)
    files.make_dirs(aside)
    try:
        with progress(f"export {write.NAME}", len(chosen)) as tick:
            write.write(aside, told(chosen, tick, run), seen, cfg)
        for line in seen.aside:
            say(f"  kept where only flywheel looks: {line}")
        for line in seen.lost:
            say(f"  not in this export: {line}")
        about = {**mark(cfg, chosen), "task": _inputs.title(cfg), "episodes": chosen.hashes}
        files.write_json(aside / MARK, {**about, "lost": seen.lost, "aside": seen.aside}, indent=1)
        made = {p.relative_to(aside).as_posix(): files.sha256_file(p) for p in sorted(aside.rglob("*")) if p.is_file()}
        publish(aside, out, made)
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


def publish(aside: Path, out: Path, made: dict[str, str]) -> None:
    """Give `aside` its name, durably; an equal export that is there already stays as it is."""
    if out.exists() and any(out.iterdir()):
        there = {p.relative_to(out).as_posix(): files.sha256_file(p) for p in sorted(out.rglob("*")) if p.is_file()}
        if there != made:
            names = sorted(k for k in {*there, *made} if there.get(k) != made.get(k))
            raise ValueError(
                f"out={out}: {len(names)} files differ from what would be written ({', '.join(names[:3])}); it was changed,"
                " or written by another flywheel. Name a new folder"
            )
        return
    for path in sorted(aside.rglob("*"), reverse=True):
        if path.is_dir():
            files.fsync_dir(path)
        else:
            with open(path, "rb") as file:
                os.fsync(file.fileno())
    files.fsync_dir(aside)
    os.rename(aside, out)
    files.fsync_dir(out.parent)
