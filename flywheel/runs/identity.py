"""What decides the outputs of a run: stage, config, input versions, the code and the libraries. Its hash is the key."""

from __future__ import annotations

import functools
import hashlib
import importlib.util
import json
import os
import re
from importlib import metadata
from pathlib import Path
from typing import Any

PACKAGE = Path(__file__).parent.parent
LIBRARIES = ("torch", "numpy", "mujoco", "gymnasium", "gymnasium-robotics", "h5py", "safetensors")
# Steer a run, decide no output. Of `device` its kind decides (fingerprint); what a budget cut short is an output of the
# run.
RUNTIME = {
    "store",
    "log",
    "device",
    "video",
    "threads",
    "budget",
    "resident",
    "asked_by",
    "executor",
    "workers",
    "resources",
    "on_failure",
}


def canonical(value: Any) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), default=str).encode()


def modules(*starts: Path) -> set[Path]:
    """The files of flywheel that these import, directly or through others, themselves included."""
    there = {str(path) for path in (*PACKAGE.rglob("*.py"), *starts) if path.exists()}
    seen, left = set(), [str(path) for path in starts]
    while left:
        path = left.pop()
        if path in there and path not in seen:
            seen.add(path)
            known = os.stat(path)
            left += _imported(path, known.st_mtime_ns, known.st_size)
    return {Path(path) for path in seen}


@functools.lru_cache(maxsize=4096)
def _imported(path: str, *seen: int) -> list[str]:
    """The files that a file may import; read once, as long as it is the same."""
    found = []
    text = Path(path).read_text(encoding="utf-8")
    for base, names in re.findall(r"^\s*from (flywheel[\w.]*) import (\([^)]*\)|[\w, ]+)", text, re.M):
        folder = "/".join([str(PACKAGE), *base.split(".")[1:]])
        for part in [folder, *(f"{folder}/{name}" for name in re.findall(r"\w+", names))]:
            found += [f"{part}.py", f"{part}/__init__.py"]
    return found


def deciding(cfg: dict[str, Any], parts: tuple[str, ...] = ()) -> dict[str, Any]:
    """A config without what only steers; in the `parts` of a nightly's config, which are those of its stages, too."""
    return {k: deciding(v) if k in parts and v else v for k, v in cfg.items() if k not in RUNTIME}


def device_kind(device: str | None) -> str:
    """The kind of device that `device` stands for, "cpu", "cuda" or another of PyTorch's; without importing torch.

    `auto` is a GPU where there is one that the installed PyTorch is built for.
    """
    if device and device != "auto":
        return str(device).partition(":")[0]
    torch = importlib.util.find_spec("torch")
    built = Path(torch.origin).with_name("version.py") if torch and torch.origin else None
    text = built.read_text(encoding="utf-8") if built and built.exists() else ""
    for_gpu = re.search(r"^(cuda|hip)\b[^=]*=\s*'", text, re.M)
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES", "any").strip() in ("", "-1")
    here = any(Path("/dev").glob("nvidia[0-9]*")) or Path("/dev/kfd").exists()
    return "cuda" if for_gpu and here and not hidden else "cpu"


@functools.cache
def _environment(id: str, kwargs: str) -> str:
    from flywheel.env import ids as gym_names

    try:
        told = gym_names.identity(id, json.loads(kwargs))
    except Exception as error:  # it cannot be made here: the stage will say so better
        told = {"id": id, "error": repr(error)}
    return hashlib.sha256(canonical(told)).hexdigest()[:16]


def environment(id: str, kwargs: dict[str, Any] | None) -> str:
    """A hash of the code and the version of the distribution that a Gymnasium id stands for here; without torch."""
    return _environment(id, json.dumps(kwargs or {}, sort_keys=True, default=str))


@functools.cache
def versions() -> dict[str, str]:
    """{library: version} of those that decide results; "none" of one that is not installed."""
    found = {}
    for library in LIBRARIES:
        try:
            found[library] = metadata.version(library)
        except metadata.PackageNotFoundError:
            found[library] = "none"
    return found


def fingerprint(code: Path, cfg: dict[str, Any]) -> dict[str, Any]:
    """Which code (from the stage's file on), libraries, environment and kind of device decide what a stage makes:
    {"code": sha256, library: version, ...}."""
    here = PACKAGE
    files = modules(code)
    for room, user in (
        ("policy", here / "policy" / "base.py"),
        ("rl/beside", here / "rl" / "build.py"),
        ("rl/guards", here / "rl" / "guarding.py"),
        ("env/guards", here / "env" / "guard.py"),
        ("exports", here / "exports" / "__init__.py"),
    ):
        if user in files:  # what is built by name
            files |= modules(*(here / room).glob("*.py"))
    chosen = cfg.get("task") or {}
    task = chosen.get("name", "gym")
    if task not in ("gym", "robot"):
        import flywheel_sim

        sim = Path(flywheel_sim.__file__).parent
        files |= {*sim.glob("_*.py"), *sim.glob("panda.xml"), *sim.glob(f"{task}.*")}
    if cfg.get("format"):
        import flywheel_datasets

        readers = Path(next(iter(flywheel_datasets.__path__)))
        files |= {readers / f"{cfg['format']}.py", *readers.glob("_*.py")}
    digest = hashlib.sha256()
    for path in sorted(files):
        if path.exists():
            digest.update(path.name.encode() + path.read_bytes())
    found = {"code": digest.hexdigest()[:16], **versions()}
    if task == "gym" and chosen.get("id"):
        found["environment"] = environment(chosen["id"], chosen.get("kwargs"))
    if "device" in cfg:
        found["device"] = device_kind(cfg["device"])
    return found


def identity(stage: str, code: Path, cfg: dict[str, Any], inputs: dict[str, Any]) -> dict[str, Any]:
    """All that decides the outputs of a run; its sha256 is the key."""
    return {
        "stage": stage,
        "config": deciding({k: v for k, v in cfg.items() if k not in inputs}),
        "inputs": {kind: value["id"] for kind, value in inputs.items()},
        "fingerprint": fingerprint(code, cfg),
    }


def key_of(what: dict[str, Any]) -> str:
    return hashlib.sha256(canonical(what)).hexdigest()[:16]
