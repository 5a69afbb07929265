"""The window cache built here and by processes, in turns, from one corpus; the files are equal to the byte.

Episodes of 1,200 steps of 84 numbers (a minute at 20 Hz; docs/scale.md), 16 to a version; states compress like
smoothed noise. The workers are there before the clock starts."""

from __future__ import annotations

import argparse
import os
import shutil
import tempfile
import time
from pathlib import Path
from statistics import median

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np

FIELDS = ("obs.state", "action", "reward")
STEPS, STATE, ACTION = 1200, 76, 7


def episode(seed: int):
    """A minute of a robot that moves smoothly."""
    from flywheel.episode import Episode

    random = np.random.default_rng(seed)
    smooth = np.cumsum(random.standard_normal((STEPS + 1, STATE), np.float32), 0) * 0.01
    action = np.diff(smooth[:, :ACTION], axis=0)
    return Episode(
        task="minute", obs={"state": smooth}, action=action, reward=np.zeros(STEPS, np.float32), terminated=False,
        success=True, origin="scripted:benchmark", seed=seed, fps=20.0,
    )  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--episodes", type=int, default=1600)
    parser.add_argument("--workers", type=int, nargs="*", default=[1, 2])
    parser.add_argument("--turns", type=int, default=3)
    args = parser.parse_args()
    from flywheel import executors
    from flywheel.corpus import Corpus

    place = tempfile.TemporaryDirectory(prefix="decoding-")  # gone with the process
    folder = Path(place.name)
    corpus = Corpus(folder / "corpus", create=True)
    for first in range(0, args.episodes, 16):
        corpus.append([episode(seed) for seed in range(first, first + 16)])
    version, took, sums = corpus.at("latest"), {}, set()
    ways = {"here": None} | {f"{n} processes": executors.bound("processes", n) for n in args.workers}
    for way in ways.values():
        if way:
            way(abs, [(k,) for k in range(64)])
    for turn in range(args.turns):
        for name, way in ways.items():
            began = time.perf_counter()
            windows = corpus.windows(version, FIELDS, cache=folder / f"{turn}-{name}", map=way)
            took.setdefault(name, []).append(time.perf_counter() - began)
            sums.add((windows._index["crc"], windows._index["rows"]))
            size = windows.rows.nbytes
            del windows
            shutil.rmtree(folder / f"{turn}-{name}")
    assert len(sums) == 1, "the caches differ"
    for name, seconds in took.items():
        ratio = median(a / b for a, b in zip(took["here"], seconds, strict=True))
        print(f"{name:12} {median(seconds):6.2f} s, {size / median(seconds) / 1e6:6.0f} MB/s, {ratio:.2f} of here")
    shutil.rmtree(folder)


if __name__ == "__main__":
    main()
