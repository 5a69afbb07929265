"""What is at work in a store: each run whose lock somebody holds, how far it is, and when it last said so."""

from __future__ import annotations

import json
import socket
from contextlib import suppress
from pathlib import Path
from typing import Any

from flywheel.runs.mirror import BEAT

SILENT = 120.0  # s without a word, after which that is said


def at_work(place) -> list[dict[str, Any]]:
    """A row for each run at work: run, pid, host, since, command, and what it last said of itself: what, done, total,
    note, silent (s)."""
    rows = []
    for run, (holder, silent) in place.mirror.at_work().items():
        told = _beat(place.root / "runs" / run / BEAT)
        about = {key: holder[key] for key in ("pid", "host", "since", "command") if key in holder}
        rows.append({"run": run, **about, **told, "silent": round(silent, 1)})
    return rows


def unfinished(place) -> list[str]:
    """Runs that were begun, and that nobody is at: the same command goes on with them."""
    found, held = [], place.mirror.at_work()
    for folder in sorted(place.begun()):
        begun, run = (folder / "config.yaml").exists() or (folder / "begin.json").exists(), "/".join(folder.parts[-2:])
        if begun and not (folder / "_DONE.json").exists() and run not in held:
            found.append(run)
    return found


def line(row: dict[str, Any]) -> str:
    """A row for people."""
    far = f"{row['what']}: {row['done']:,} of {row['total']:,} {row['note']}".rstrip() if "what" in row else "begins"
    where = f"pid {row.get('pid', '?')}" + ("" if row.get("host") == socket.gethostname() else f" on {row.get('host')}")
    quiet = f"; silent for {row['silent']:.0f} s" if row["silent"] > SILENT else ""
    return f"{row['run']:28} {far}; {where}, since {row.get('since', '?')}{quiet}"


def _beat(path: Path) -> dict[str, Any]:
    with suppress(OSError, ValueError, TypeError):
        told = json.loads(path.read_bytes())
        return {k: told[k] for k in ("what", "done", "total", "note") if k in told}
    return {}
