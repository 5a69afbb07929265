"""Milliseconds a frame of each task's two cameras, on one core: what `batch.look` takes in states that random actions
lead to, by wall time.

    python benchmarks/drawing.py            # 64x64 pixels
    python benchmarks/drawing.py --side 96"""

from __future__ import annotations

import argparse
import importlib.metadata
import os
import time

import flywheel_sim
import numpy as np

CAMERAS, BOUND = ("wrist", "top"), 2.0


def milliseconds(task: str, side: int, steps: int) -> np.ndarray:
    """Of each step, the time a frame [steps]."""
    batch = flywheel_sim.make_batch(task, 1, threads=1, cameras=dict.fromkeys(CAMERAS, side))
    rng, found = np.random.default_rng(0), []
    batch.reset([0])
    batch.look([0])  # opens OpenGL
    for _ in range(steps):
        batch.step(rng.uniform(-1, 1, (1, batch.action_dim)).astype(np.float32))
        before = time.perf_counter()
        batch.look([0])
        found.append(1000 * (time.perf_counter() - before) / len(CAMERAS))
    batch.close()
    return np.array(found)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--side", type=int, default=64, help="pixels (default %(default)s)")
    parser.add_argument("--steps", type=int, default=300)
    args = parser.parse_args()
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})  # before OpenGL starts threads of its own
    for task in ("assemble", "insert", "lift", "push"):
        p50, p99 = np.percentile(milliseconds(task, args.side, args.steps), [50, 99])
        print(f"{task:10} {args.side}x{args.side}: {p50:.2f} ms a frame (p99 {p99:.2f}); target <= {BOUND:g}")
    print("versions: " + ", ".join(f"{n} {importlib.metadata.version(n)}" for n in ("mujoco", "numpy")))


if __name__ == "__main__":
    main()
