"""How good an episode is as data: a few numbers computed once from its low-dimensional streams, cached by content hash.

    jerk        mean over steps of |third difference of the action|^2, in action units and steps
    sparc       spectral arc length of the speed |a_t+1 - a_t|: about -1.6 for one stroke, lower for each correction,
                whatever the speed (Balasubramanian et al. 2015, doi:10.1186/s12984-015-0090-9); needs fps
    idle        share of steps in which no dimension of the state moves by more than 0.1 % of its range in the episode
    saturation  share of action components at the end of the range -1..1; unknown where an action lies outside of it
    tracking    root mean square of what was executed less what was proposed (extras.proposed)
    skew        seconds between a control tick and the sample that stands for it, the largest of any stream; of
                with clocks (meta.skew_s: {stream: [median, largest]}, see docs/formats.md)

NaN where unknown. Near-duplicates are found by hashes of the coarse trajectory (`coarse`): 16 points of states and
actions on random lines, cut into cells (Datar et al. 2004, p-stable hashing). Two episodes at a distance of 0.01 over
all these numbers share a hash in about 99 of 100 cases, two at a distance of 3 in fewer than one of a million;
distances are in the units of the streams. Equal episodes are refused by `append` already."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable
from contextlib import nullcontext, suppress
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from flywheel import store

if TYPE_CHECKING:
    from flywheel.corpus.version import Version

METRICS = ("jerk", "sparc", "idle", "saturation", "tracking", "skew")
REVISION = 2  # of what is computed: another one begins another cache
STILL, AT_END = 1e-3, 0.999
CUTOFF, THRESHOLD, PADDING = 10.0, 0.05, 4  # Hz, share of the peak, zero-padding levels: as in the paper
POINTS, TABLES, LINES, CELL, WIDTH = 16, 2, 6, 0.5, 1024  # of wider rows the first 1,024 numbers count
RECORD = np.dtype([("hash", "S64"), ("schema", "S8"), *((name, "f8") for name in METRICS), ("coarse", "i8", (TABLES,))])
PARTS = 16  # files in the cache before they become one


def measure(
    state: np.ndarray, action: np.ndarray, proposed: np.ndarray | None, fps: float, meta: dict[str, Any] | None = None
) -> tuple[float, ...]:
    """METRICS of one episode: state [T+1, Do], action [T, Da], proposed [T, Da] or None, fps in Hz (0: unknown), its
    meta."""
    if not state.shape[1]:
        state = np.full((len(state), 1), np.nan)
    state, action = state.astype(np.float64), action.astype(np.float64)
    jerk = (np.diff(action, 3, axis=0) ** 2).sum(axis=1).mean() if len(action) > 3 else np.nan
    speed = np.linalg.norm(np.diff(action, axis=0), axis=1)
    still = (np.abs(np.diff(state, axis=0)) <= STILL * np.ptp(state, axis=0)).all(axis=1)
    idle = still.mean() if np.isfinite(state).all() else np.nan
    inside = action.size and np.abs(action).max() <= 1 + 1e-6
    saturation = (np.abs(action) >= AT_END).mean() if inside else np.nan
    off = np.nan if proposed is None or not action.size else np.sqrt(((action - proposed) ** 2).mean())
    return float(jerk), sparc(speed, fps), float(idle), float(saturation), float(off), skew(meta or {})


def skew(meta: dict[str, Any]) -> float:
    """The largest distance that `meta["skew_s"]` has of any stream, in seconds; NaN where it has none."""
    told = meta.get("skew_s")
    try:
        return (
            float(max((largest for _, largest in told.values()), default=np.nan)) if isinstance(told, dict) else np.nan
        )
    except (TypeError, ValueError):  # somebody else's skew_s
        return np.nan


def sparc(speed: np.ndarray, fps: float) -> float:
    """Spectral arc length of a speed profile [N] sampled at `fps` Hz: <= 0, nearer to 0 is smoother. NaN without
    motion.

    - integral over [0, w] of sqrt((1/w)^2 + (dV/df)^2) df, V the amplitude spectrum over its value at 0, w the last
    frequency below 10 Hz at which V is above 0.05.
    """
    if not 0 < fps < np.inf or not speed.any():
        return float("nan")
    size = 2 ** (int(np.ceil(np.log2(len(speed)))) + PADDING)
    spectrum = np.abs(np.fft.rfft(speed, size))
    frequency = np.arange(len(spectrum)) * fps / size
    spectrum = (spectrum / spectrum.max())[frequency <= CUTOFF]
    last = int(np.flatnonzero(spectrum >= THRESHOLD)[-1]) if np.isfinite(spectrum).all() else 0
    if last == 0:
        return float("nan")
    return float(-np.hypot(1 / last, np.diff(spectrum[: last + 1])).sum())


def coarse(task: str, state: np.ndarray, action: np.ndarray) -> list[int]:
    """TABLES 64-bit hashes of state [T+1, Do] and action [T, Da]; episodes that share one are near-duplicates."""
    rows = np.concatenate([state[:-1], action], axis=1).astype(np.float64)
    at = np.linspace(0, len(rows) - 1, POINTS)
    points = np.stack([np.interp(at, np.arange(len(rows)), column) for column in rows.T], axis=1)
    lines, offset = _lines()
    width = min(WIDTH, points.shape[1])
    cells = np.floor(np.einsum("tlpd,pd->tl", lines[..., :width], points[:, :width]) / CELL + offset)
    name = f"{task} {state.shape[1]} {action.shape[1]} ".encode()
    digests = [hashlib.sha256(name + row.astype("<f8").tobytes()).digest() for row in cells + 0.0]
    return [int.from_bytes(digest[:8], "little", signed=True) for digest in digests]


@cache
def _lines() -> tuple[np.ndarray, np.ndarray]:
    """Directions [TABLES, LINES, POINTS, WIDTH] and where the cells begin [TABLES, LINES], the same for ever."""
    random = np.random.Generator(np.random.PCG64(REVISION))
    return random.standard_normal((TABLES, LINES, POINTS, WIDTH)), random.random((TABLES, LINES))


def groups(labels: np.ndarray) -> np.ndarray:
    """Which episodes hang together: labels [E, L], equal ones in a column connect; a group's first position for each
    [E]."""
    group = np.arange(len(labels))
    columns = [np.unique(column, return_inverse=True)[1] for column in labels.T]
    while True:
        before = group
        for column in columns:
            least = np.full(len(labels), len(labels))
            np.minimum.at(least, column, group)
            group = least[column]
        if (group == before).all():
            return group


def measured(
    version: Version, folder: str | Path, progress: Callable[[str, int], Any] | None = None
) -> dict[str, np.ndarray]:
    """{metric: [E] float64} of a version's episodes, and "near": how many episodes of it are near-duplicates of each.

    Only episodes that are not in the cache below `folder` are read, a segment at a time and without images. The cache
    may be deleted. "near_group" [E] is the hash of one episode of each group, "schema" [E] names what robots are told
    apart by (corpus.segment.robot)."""
    folder = Path(folder) / f"quality-{REVISION}"
    known = _load(folder)
    hashes = np.asarray(version.hashes, "S64")
    missing = np.flatnonzero(~np.isin(hashes, known["hash"]))
    if len(missing):
        new = _measure_all(version, missing, progress)
        with suppress(OSError):  # a store that only is to be read: it is measured again next time
            _keep(folder, known, new)
        known = np.concatenate([known, new])
    order = np.argsort(known["hash"], kind="stable")
    found = known[order[np.searchsorted(known["hash"], hashes, sorter=order)]] if len(hashes) else known[:0]
    group = groups(found["coarse"])
    sizes = np.bincount(group, minlength=len(group))
    return {
        "schema": found["schema"],
        **{name: found[name] for name in METRICS},
        "near": sizes[group] - 1,
        "near_group": hashes[group],
    }


def _measure_all(version: Version, missing: np.ndarray, progress: Callable[[str, int], Any] | None) -> np.ndarray:
    """RECORDs of the episodes at positions `missing`."""
    state, reader = version.corpus.history.state, version.corpus.reader
    rows = version.rows[missing]
    parts, local = state.parts(rows), state.take("local", rows)
    out = np.zeros(len(missing), RECORD)
    with progress("quality", len(missing)) if progress else nullcontext(lambda: None) as tick:
        for part in np.unique(parts).tolist():
            segment = reader.segment(part)
            shape = segment.schema["rows"]
            flat = [name for name, (dtype, row, _) in shape.items() if len(row) <= 1 and np.dtype(dtype).kind in "biuf"]
            seen = [name for name in flat if name.startswith("obs.")]
            arrays = segment.arrays([name for name in flat if name in (*seen, "action", "extras.proposed")])
            for at in np.flatnonzero(parts == part).tolist():
                index = int(local[at])
                first, steps = int(segment.first[index]), int(segment.lengths[index])
                cut = {name: value[first : first + steps].reshape(steps, -1) for name, value in arrays.items()}
                whole = [
                    arrays[name][first : first + steps + 1].reshape(steps + 1, -1) for name in seen if name in arrays
                ]
                moved = np.concatenate(whole, axis=1) if whole else np.zeros((steps + 1, 0))
                action = cut.get("action", np.zeros((steps, 0)))
                proposed = cut.get("extras.proposed")
                proposed = proposed if proposed is not None and proposed.shape == action.shape else None
                with np.errstate(over="ignore", invalid="ignore"):
                    about = float(segment.columns["fps"][index]), segment.columns["meta"][index]
                    numbers = measure(moved, action, proposed, *about)
                    hashed = coarse(segment.columns["task"][index], moved, action)
                out[at] = (segment.columns["hash"][index].encode(), segment.robot.encode(), *numbers, hashed)
                tick()
    return out


def _load(folder: Path) -> np.ndarray:
    """All RECORDs of a cache; a file that is not whole counts as missing."""
    parts = [np.zeros(0, RECORD)]
    for path in sorted(folder.glob("*.npy")):
        try:
            part = np.load(path, allow_pickle=False)
        except (OSError, ValueError, EOFError):
            continue
        if part.dtype == RECORD:
            parts.append(part)
    return np.concatenate(parts)


def _keep(folder: Path, known: np.ndarray, new: np.ndarray) -> None:
    """Add a file of new RECORDs; where there are many files, one of all of them instead."""
    files = sorted(store.make_dirs(folder).glob("*.npy"))
    many = len(files) >= PARTS
    data = io.BytesIO()
    np.save(data, np.concatenate([known, new]) if many else new)
    name = f"{hashlib.sha256(data.getvalue()).hexdigest()[:16]}.npy"
    store.write_atomic(folder / name, data.getvalue())
    for path in files if many else ():
        if path.name != name:
            path.unlink(missing_ok=True)
