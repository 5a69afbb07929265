"""export: what others read: episodes as LeRobotDataset v3.0, robomimic HDF5, a Zarr replay buffer; or a policy as ONNX,
TorchScript, or a folder that LeRobot loads (exports/).

    out/            the data set, as format= lays it out, or the policy; appears whole or not at all
    out/flywheel.json   what it is made of, and what it could not hold; of a policy what goes in and comes out

`flywheel ingest` reads episodes back equal to the last bit; a policy's file is compared with the policy.
"""

from __future__ import annotations

import dataclasses
import importlib
import shutil
from pathlib import Path
from typing import Any

from flywheel import exports, selection
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
        hint = "; of a policy, name its checkpoint=" if name in exports.names() else ""
        raise ValueError(f"format={name!r} cannot be written{hint}. There are: {', '.join(formats())}")
    return importlib.import_module(f"flywheel_datasets.{name}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Args(Common):
    """Episodes of the corpus, or a policy, as files for others."""

    out: str = arg(help="a new folder", typed=True)
    format: str = arg("lerobot_v3", "or robomimic_hdf5, zarr; of a policy onnx, torchscript, lerobot_policy")
    checkpoint: str | None = arg(None, "NAME or NAME@ID: this policy, not episodes", typed=True)
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


def mark(args: Args, source: dict[str, Any]) -> dict[str, Any]:
    """What tells one export from another."""
    ((kind, what),) = source.items()
    if kind == "checkpoint":
        return {"format": exports.checked(args.format), kind: what["ref"]}
    return {"format": writer(args.format).__name__.rpartition(".")[2], kind: what["id"], "fps": args.fps}


def place(args: Args) -> Path:
    return Path(args.out).expanduser().absolute()


def inputs(args: Args, store) -> dict[str, Any]:
    """The episodes or the policy, and whether `out` still has to be made: one that somebody deleted is made again."""
    if args.checkpoint:
        source = {"checkpoint": selection.checkpoint(args.checkpoint, store)}
    else:
        source = {"corpus": selection.describe(choose(args, store, args.corpus))}
    out, own = place(args), mark(args, source)
    present = (out / MARK).exists()
    there = files.read_json(out / MARK) if present else own
    if any(there.get(key) != value for key, value in own.items()):
        of = f"policy {there['checkpoint']}" if "checkpoint" in there else f"corpus {there['corpus']:.12}"
        raise ValueError(f"out={out}: it holds another export ({there['format']} of {of}); name a new folder")
    if not present and out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ValueError(f"out={out}: it exists and is no export of flywheel; name a new folder")
    made = sum(done["content"].get("out") == str(out) for done in store.runs("export"))
    return {**source, "out": {"id": f"{out}#{max(0, made - present)}", "ref": str(out)}}


def run(args: Args, inputs: dict[str, Any], run) -> dict[str, Any]:
    out, source = place(args), {kind: what for kind, what in inputs.items() if kind != "out"}
    aside = out.with_name(f".{out.name}.partial")
    shutil.rmtree(aside, ignore_errors=True)
    files.make_dirs(aside)
    try:
        about, metrics = (_policy if args.checkpoint else _episodes)(args, inputs, run, aside)
        files.write_json(aside / MARK, {**mark(args, source), "task": selection.title(args.task), **about}, indent=1)
        made = {p.relative_to(aside).as_posix(): files.sha256_file(p) for p in sorted(aside.rglob("*")) if p.is_file()}
        files.publish_folder(aside, out, made)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    metrics["bytes"] = sum((out / name).stat().st_size for name in made)
    run.log("export", **metrics)
    content = {"out": str(out), "files": made, "lost": about.get("lost", [])}
    return {"outputs": {"export": str(out)}, "metrics": metrics, "content": content}


def _episodes(args: Args, inputs: dict[str, Any], run, folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Write the episodes; what flywheel.json says of them, and metrics."""
    from flywheel_datasets import _survey

    write, chosen = writer(args.format), choose(args, run.store, inputs["corpus"]["version"])
    seen = _survey.survey(chosen)
    with progress(f"export {args.format}", len(chosen)) as tick:
        write.write(folder, told(chosen, tick, run), seen, args.fps)
    for line in seen.aside:
        say(f"  kept where only flywheel looks: {line}")
    for line in seen.lost:
        say(f"  not in this export: {line}")
    about = {"episodes": chosen.hashes, "lost": seen.lost, "aside": seen.aside}
    return about, {"episodes": len(chosen), "steps": int(chosen.table["length"].sum()), "lost": len(seen.lost)}


def _policy(args: Args, inputs: dict[str, Any], run, folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Write the policy and compare the file with it; what flywheel.json says of it, and metrics."""
    from flywheel.exports import _write

    ref, suffix = inputs["checkpoint"]["ref"], exports.named(args.format).SUFFIX
    policy, file = run.store.load(ref), f"policy{suffix}" if suffix else "."  # a folder of several files is all of it
    found = _write.write(policy, args.format, folder / file)
    say(f"  {args.format} and {ref}: on {found['compared']} observations at most {found['difference']:.2g} apart")
    return {"file": file, "sha256": inputs["checkpoint"]["id"], **_write.about(policy), **found}, found


def told(chosen, tick, run):
    """The episodes, counted; a run that is asked to stop leaves nothing behind."""
    for episode in chosen:
        run.stop_if_asked()
        yield episode
        tick()
