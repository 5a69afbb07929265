"""An episode as a rerun recording (.rrd): cameras, states, actions as proposed and as executed, values, guard events.

    camera/NAME   state   action/executed   action/proposed   reward   intervention   value   events

over the timelines `step` and `time` (s). rerun-sdk is the extra `view` and imported here only."""

from __future__ import annotations

import io
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np

from flywheel import obs as observed
from flywheel.log import say

QUALITY = 85  # of a camera's JPEGs


def write(episode, path: Path, policy=None, names: list[str] | None = None) -> list[str]:
    """Write an episode, whole or not at all; the entities that it has. `policy` says what its critics think of each
    step, where it has some; `names` are those of the action's numbers. ValueError where rerun-sdk is missing."""
    try:
        import rerun as rr
    except ModuleNotFoundError as error:
        raise ValueError(
            "flywheel view needs rerun-sdk: pip install 'robot-flywheel[view]', or `flywheel export` writes them for "
            "other viewers"
        ) from error
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.tmp")
    with rr.RecordingStream("flywheel", recording_id=episode.hash[:12]) as recording:
        recording.save(aside, default_blueprint=_layout(rr, episode, policy))
        entities = [*_numbers(rr, recording, episode, policy, names), *_cameras(rr, recording, episode)]
        entities += _events(rr, recording, episode)
        text = "\n".join(f"* {key}: {value}" for key, value in _about(episode).items())
        recording.log("about", rr.TextDocument(text, media_type="text/markdown"), static=True)
        recording.flush()
    recording.disconnect()
    os.replace(aside, path)
    return [*entities, "about"]


def values(policy, episode) -> np.ndarray | None:
    """[T, 2]: at each step, what the critics of a policy think of what was executed from there, mean and lower bound;
    None where it has none."""
    critic = getattr(policy, "critic", None)
    if critic is None or "state" not in episode.obs:
        return None
    import torch

    steps = len(episode)
    at = np.arange(steps)[:, None]
    stack = np.asarray(episode.obs["state"], np.float32)[np.maximum(at + np.arange(1 - policy.obs_steps, 1), 0)]
    chunk = episode.action[np.minimum(at + np.arange(policy.action_steps), steps - 1)]
    frames = {name: np.asarray(episode.obs[name])[:steps] for name in policy.cameras}
    with torch.no_grad():
        q = critic(policy._seen(stack, frames), torch.from_numpy(np.ascontiguousarray(chunk)).to(policy.device))
    lower = q.mean(0) - getattr(policy, "k", 1.0) * q.std(0, correction=min(1, len(q) - 1))
    return torch.stack([q.mean(0), lower], 1).cpu().numpy()


def maker(place, episode, checkpoint: str | None):
    """The policy to ask for values: `checkpoint`, else the one that made the episode, where this store has it."""
    id_ = episode.origin.removeprefix("policy:") if episode.origin.startswith("policy:") else None
    refs = [checkpoint] if checkpoint else []
    if not refs and id_ and place.names.path.exists():
        made = ((name, entry) for name in place.names.names() for entry in place.names.log(name))
        refs = [f"{name}@{entry['id']}" for name, entry in made if entry["op"] == "make" and entry["id"] == id_]
    try:
        return place.load(refs[0]) if refs else None
    except (ValueError, OSError) as error:
        if checkpoint:
            raise
        say(f"  no values: {error}")
        return None


def show(paths: list[Path]) -> bool:
    """Open rerun's viewer where there is a screen and it is installed; was it opened?"""
    program = shutil.which("rerun")
    if not program or not (os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")):
        return False
    subprocess.Popen([program, *map(str, paths)], start_new_session=True, stderr=subprocess.DEVNULL)
    return True


def _axes(rr, episode, count: int) -> list[Any]:
    """The timelines of `count` rows."""
    seconds = np.arange(count) / (episode.fps or 20.0)
    return [rr.TimeColumn("step", sequence=np.arange(count)), rr.TimeColumn("time", duration=seconds)]


def _numbers(rr, recording, episode, policy, names: list[str] | None) -> list[str]:
    """Log what is numbers, a line for each column."""
    told = episode.meta.get("obs_shapes")
    series = {"action/executed": episode.action, "reward": episode.reward[:, None]}
    if "state" in episode.obs:
        series["state"] = episode.obs["state"]
    for key, entity in (("proposed", "action/proposed"), ("intervention", "intervention")):
        if key in episode.extras:
            series[entity] = np.asarray(episode.extras[key], np.float64).reshape(len(episode), -1)
    if (value := values(policy, episode)) is not None:
        series["value"] = value
    labels = {"value": ["value", "lower bound"]}
    if told:
        labels["state"] = observed.names(observed.read(told))
    if names and len(names) == episode.action.shape[1]:
        labels |= {f"action/{kind}": [f"{name} {kind}" for name in names] for kind in ("executed", "proposed")}
    for entity, rows in series.items():
        if entity in labels and len(labels[entity]) == rows.shape[1]:
            recording.log(entity, rr.SeriesLines(names=labels[entity]), static=True)
        columns = rr.Scalars.columns(scalars=np.asarray(rows, np.float64))
        recording.send_columns(entity, indexes=_axes(rr, episode, len(rows)), columns=columns)
    return list(series)


def _cameras(rr, recording, episode) -> list[str]:
    """Log each camera's frames as JPEG."""
    from PIL import Image

    cameras = {key: value for key, value in episode.obs.items() if getattr(value, "ndim", len(value.shape)) == 4}
    for name, frames in cameras.items():
        blobs = []
        for frame in np.asarray(frames):
            file = io.BytesIO()
            Image.fromarray(frame).save(file, "JPEG", quality=QUALITY)
            blobs.append(file.getvalue())
        columns = rr.EncodedImage.columns(blob=blobs, media_type=["image/jpeg"] * len(blobs))
        recording.send_columns(f"camera/{name}", indexes=_axes(rr, episode, len(blobs)), columns=columns)
    return [f"camera/{name}" for name in cameras]


def _events(rr, recording, episode) -> list[str]:
    """Log where the guard changed an action, where a person took over, and how it ended."""
    told, guard = [], episode.meta.get("guard") or {}
    for name, (steps, first) in guard.items():
        told.append((first, "WARN", f"guard {name}: {steps} steps of this episode, the first here"))
    if "proposed" in episode.extras and guard:
        changed = np.flatnonzero((episode.extras["proposed"] != episode.action).any(axis=1)).tolist()
        told += [(step, "INFO", "guard: executed is not what was proposed") for step in changed]
    if "intervention" in episode.extras:
        taken = np.flatnonzero(np.diff(np.asarray(episode.extras["intervention"], int).ravel(), prepend=0) > 0)
        told += [(step, "WARN", "a person takes over") for step in taken.tolist()]
    words = {True: "success", False: "failure", None: "outcome unknown"}[episode.success]
    told.append((len(episode), "INFO", words + (f": {episode.meta['cause']}" if "cause" in episode.meta else "")))
    for step, level, text in sorted(told):
        recording.set_time("step", sequence=step)
        recording.set_time("time", duration=step / (episode.fps or 20.0))
        recording.log("events", rr.TextLog(text, level=level))
    return ["events"]


def _about(episode) -> dict[str, Any]:
    """What is told in words."""
    words = {True: "success", False: "failure", None: "unknown"}[episode.success]
    about = {"episode": episode.hash[:12], "task": episode.task, "origin": episode.origin, "outcome": words}
    about |= {"steps": len(episode), "seed": episode.seed, "fps": episode.fps}
    return about | {key: value for key, value in episode.meta.items() if key not in about}


def _layout(rr, episode, policy):
    """Cameras above, curves below, words at the side."""
    import rerun.blueprint as rrb

    cameras = [key for key, value in episode.obs.items() if len(value.shape) == 4]
    curves = [rrb.TimeSeriesView(origin="/", contents=["/action/**"], name="action")]
    curves += [rrb.TimeSeriesView(origin="/state", name="state")] if "state" in episode.obs else []
    if getattr(policy, "critic", None) is not None:
        curves.append(rrb.TimeSeriesView(origin="/value", name="value"))
    pictures = [rrb.Spatial2DView(origin=f"/camera/{name}", name=name) for name in cameras]
    side = rrb.Vertical(rrb.TextDocumentView(origin="/about", name="about"), rrb.TextLogView(origin="/events"))
    main = [rrb.Horizontal(*pictures)] if pictures else []
    return rrb.Blueprint(rrb.Horizontal(rrb.Vertical(*main, *curves), side, column_shares=[2, 1]), collapse_panels=True)
