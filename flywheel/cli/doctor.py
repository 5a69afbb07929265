"""What a machine has, and lacks, for flywheel: a check says what it found and, where something is wrong, what to do.

A check is a function of this file with a docstring that names it: `check(place) -> (state, words)`, state one of
"good", "slow" (it works, but) and "bad"."""

from __future__ import annotations

import os
import platform
import shutil
import tempfile
import time
from collections.abc import Callable
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path

from flywheel import store

State = tuple[str, str]
FREE = 5e9  # bytes of disk that a night may want
SYNC = 0.05  # s that a durable write may take
AHEAD = 60.0  # s that another clock of this store may be ahead
NEEDED = ("torch", "mujoco", "zarr", "h5py", "hydra-core", "numpy", "lerobot", "gymnasium")
EXTRAS = {  # package: (extra, what it is for)
    "gymnasium_robotics": ("adroit", "Adroit, Fetch, Kitchen"),
    "duckdb": ("query", "flywheel corpus query"),
    "mcap": ("ros", "MCAP and ROS bags"),
    "onnxruntime": ("export", "ONNX"),
    "obstore": ("cloud", "s3://, gs://, az://"),
}


def versions(place) -> State:
    """Python and libraries"""
    found = []
    for name in NEEDED:
        try:
            found.append(f"{name} {metadata.version(name)}")
        except metadata.PackageNotFoundError:
            return "bad", f"{name} is not installed; `pip install robot-flywheel`, or `make setup` in a checkout"
    return "good", f"Python {platform.python_version()}, {', '.join(found)}"


def extras(place) -> State:
    """Optional packages"""
    lack = [f"{what} (extra [{extra}])" for package, (extra, what) in EXTRAS.items() if find_spec(package) is None]
    return "good", f"not there: {', '.join(lack)}" if lack else "all there"


def processor(place) -> State:
    """Processor and memory"""
    import torch

    tiles = ", multiplies bfloat16 in tiles" if torch.cpu._is_amx_tile_supported() else ""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    words = f"{len(os.sched_getaffinity(0))} of {os.cpu_count()} cores{tiles}, {memory:.0f} GiB"
    return ("slow", f"{words}; a night wants 8 GiB: take fewer num_envs=") if memory < 7.5 else ("good", words)


def gpu(place) -> State:
    """GPU"""
    import torch

    if torch.cuda.is_available():
        name, memory = torch.cuda.get_device_name(), torch.cuda.mem_get_info()
        return "good", f"{name}, {memory[0] / 2**30:.0f} of {memory[1] / 2**30:.0f} GiB free"
    if Path("/dev/nvidia0").exists() or shutil.which("nvidia-smi"):
        return (
            "slow",
            f"there is one, but torch {torch.__version__} does not see it; install a build with CUDA for its driver",
        )
    return "good", "none: processors it is (device=cpu)"


def opengl(place) -> State:
    """OpenGL, for cameras and clips"""
    import flywheel_sim

    batch = flywheel_sim.make_batch("lift", 1, cameras={"top": 64})
    try:
        batch.look([0])
        began, count = time.perf_counter(), 50
        for _ in range(count):
            batch.look([0])
        each = 1e3 * (time.perf_counter() - began) / count
    except RuntimeError as error:
        return "slow", f"{error}: policies of states work, cameras and clips do not"
    finally:
        batch.close()
    words = f"MUJOCO_GL={os.environ.get('MUJOCO_GL', 'unset')}, a frame of 64 x 64 in {each:.1f} ms"
    return ("slow", f"{words}; 2 ms is usual: is the processor busy?") if each > 5 else ("good", words)


def disk(place) -> State:
    """Disk"""
    folder = _there(place.root)
    free = shutil.disk_usage(folder).free
    with tempfile.TemporaryDirectory(dir=folder, prefix=".doctor-") as where:
        began, count = time.perf_counter(), 5
        for k in range(count):
            store.write_atomic(Path(where) / f"{k}", b"x" * 4096)
        each = (time.perf_counter() - began) / count
    words = f"{free / 1e9:.0f} GB free, a durable write in {1e3 * each:.0f} ms ({folder})"
    if free < FREE:
        return "bad", f"{words}; a night may want {FREE / 1e9:.0f} GB: `flywheel gc`, `flywheel corpus expire keep=N`"
    return (
        ("slow", f"{words}; expected {1e3 * SYNC:.0f} ms: a network disk? Runs are safe, and slower")
        if each > SYNC
        else ("good", words)
    )


def locks(place) -> State:
    """Locks of the file system"""
    with tempfile.TemporaryDirectory(dir=_there(place.root), prefix=".doctor-") as where:
        with store.Lock(where, "doctor"):
            if store.holder(Path(where) / "lock") is None:
                return "bad", (
                    f"{where}: a lock that is held is not seen (NFS mounted with nolock?): two runs could write at "
                    "once; mount it with locks, or keep the store on a local disk"
                )
        links = store.link_new(Path(where) / "a", b"") and not store.link_new(Path(where) / "a", b"")
    return ("good", "flock and hard links work") if links else ("bad", "hard links do not work here: take another disk")


def shared(place) -> State:
    """Store that machines share"""
    if not place.mirror.url:
        return "good", "none: this one is a folder"
    objects, name = place.mirror.objects, f"doctor/{os.urandom(8).hex()}"
    try:
        only = objects.create(name, b"first") and not objects.create(name, b"second")
    finally:
        objects.remove(name)
    if only:
        return "good", f"{place} lets one of two creates win; what this machine has of it is in {place.root}"
    return "bad", (
        f"{place} lets two create the same object (it does not know If-None-Match: *): two machines could do the same "
        "run and lose names and episodes; take another server, or keep the store in a folder"
    )


def clock(place) -> State:
    """Clock"""
    newest = max((p.stat().st_mtime for p in place.root.glob("runs/*/*/_DONE.json")), default=0.0)
    ahead = newest - time.time()
    if ahead > AHEAD:
        return "slow", f"the store's newest run ended {ahead:.0f} s from now: set the clock (chrony, systemd-timesyncd)"
    return "good", store.now()


def work(place) -> State:
    """At work in this store"""
    from flywheel.runs import status

    rows, left = status.at_work(place), status.unfinished(place)
    silent = [row["run"] for row in rows if row["silent"] > 10 * status.SILENT]
    words = f"{len(rows)} runs; {len(left)} that nobody is at" + (f" ({', '.join(left[:3])})" if left else "")
    if silent:
        return (
            "slow",
            f"{words}; {', '.join(silent)} said nothing for {10 * status.SILENT / 60:.0f} minutes: does it hang?",
        )
    return "good", words


def _there(folder: Path) -> Path:
    """The folder, or the nearest above that exists."""
    return next(one for one in (folder, *folder.parents) if one.exists())


CHECKS: tuple[Callable, ...] = (versions, extras, processor, gpu, opengl, disk, locks, shared, clock, work)


def examine(place) -> list[dict[str, str]]:
    """Do all checks: {"check", "state", "words"} each. One that raises is bad, with its words."""
    rows = []
    for check in CHECKS:
        try:
            state, words = check(place)
        except Exception as error:
            state, words = "bad", f"{type(error).__name__}: {error}"
        rows.append({"check": check.__doc__, "state": state, "words": words})
    return rows
