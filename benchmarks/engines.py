"""One night by each executor: the same checkpoints, to the last bit of their weights (their names are their hashes).

Each plays the default `flywheel nightly task=lift` into a fresh store (`--words debug=tiny task=lift threads=1`: a toy). Ray
is this machine's, on loopback; Slurm is a real one of two nodes on loopback where Debian's packages are there and this
is root (tests/slurm_nodes.py), else its jobs are processes of this machine, and the line says so."""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "tests"))
NIGHT = ["task=lift", "threads=1", "gate.budget=null"]  # no budget of time: nothing depends on how fast it was
NEEDS = {"ray": "ray", "slurm": "submitit"}


def night(kind: str, store: Path, words: list[str], resources: list[str]) -> list[tuple[str, str]]:
    """[(what, checkpoint)] of a night by this executor."""
    from flywheel.runs.run import Store

    command = [sys.executable, "-m", "flywheel.cli.app", "nightly", *words, f"store={store}", f"executor={kind}"]
    command += [*resources, *(["workers=2"] if kind != "local" else [])]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    if done.returncode:
        sys.exit(f"{kind} failed: {done.stderr[-2000:]}")
    (record,) = Store(store).runs("nightly")
    return [(row["policy"], row["checkpoint"], row["success"]) for row in record["content"]["table"]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("executors", nargs="*", default=["local", "processes", "ray", "slurm"])
    parser.add_argument("--words", nargs="*", default=NIGHT, help="of the night")
    args = parser.parse_args()
    import slurm_nodes

    first, ok = None, True
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    with tempfile.TemporaryDirectory(prefix="engines-") as folder, contextlib.ExitStack() as stack:
        for kind in args.executors:
            if kind in NEEDS and importlib.util.find_spec(NEEDS[kind]) is None:
                print(f"{kind:10} left out: {NEEDS[kind]} is not installed")
                continue
            resources, how = [], ""
            if kind == "slurm":
                why = slurm_nodes.missing()
                if not why:
                    os.environ["SLURM_CONF"] = stack.enter_context(slurm_nodes.nodes(Path(folder) / "slurm"))
                cluster = "local" if why else "slurm"
                resources = [f"resources={{cluster: {cluster}, folder: {folder}/shared, minutes: 30, mem_gb: 1}}"]
                how = f" (as processes: {why})" if why else " (a real one, two nodes on loopback)"
            began = time.monotonic()
            table = night(kind, Path(folder) / kind, args.words, resources)
            first = first or table
            ok &= table == first
            said = "the same" if table == first else "OTHERS"
            rows = ", ".join(f"{what} {ref.partition('@')[2]} {success:.2f}" for what, ref, success in table)
            print(f"{kind:10} {time.monotonic() - began:5.0f} s  {said}: {rows}{how}", flush=True)
    sys.exit(0 if ok else 1)


if __name__ == "__main__":
    main()
