"""The corpus against its peers, as ratios in one run: random windows, and the cost of an append as the log grows.

    windows     rows of the memory-mapped cache (Windows.gather) against
                numpy gathers of the same windows from an array in RAM (np.take, and the slower ram[index]), and
                h5py in robomimic's layout (data/demo_i/{obs/state, actions, rewards}), window by window
    append      two episodes to a corpus of 10 versions and to one of 1,000, by a process that is at work and by one
                that has just opened the corpus

All are compared for equality before anything is timed; each figure is the median of interleaved repetitions.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np

from flywheel.corpus import Corpus, Windows
from flywheel.episode import Episode

STATE, ACTION, STEPS = 60, 23, 200  # 84 floats a row with the reward
FIELDS = ("obs.state", "action", "reward")


def make_episode(random: np.random.Generator, steps: int = STEPS) -> Episode:
    return Episode(
        task="bench",
        obs={"state": random.normal(size=(steps + 1, STATE)).astype(np.float32)},
        action=random.normal(size=(steps, ACTION)).astype(np.float32),
        reward=random.normal(size=steps).astype(np.float32),
        terminated=False,
        success=None,
        origin="scripted:bench",
    )


def write_robomimic(path: Path, episodes: list[Episode]) -> None:
    """robomimic's layout: one group an episode, one contiguous dataset a key."""
    with h5py.File(path, "w") as file:
        for number, episode in enumerate(episodes):
            group = file.create_group(f"data/demo_{number}")
            group["obs/state"] = episode.obs["state"][:-1]
            group["actions"] = episode.action
            group["rewards"] = episode.reward


def medians(functions: dict[str, Callable[[int], int]], repeats: int) -> dict[str, float]:
    """Median seconds for one unit of work; each function is given the repetition and returns the units that it did."""
    seconds: dict[str, list[float]] = {name: [] for name in functions}
    for repeat in range(repeats):
        for name, function in functions.items():
            begin = time.perf_counter()
            units = function(repeat)
            seconds[name].append((time.perf_counter() - begin) / units)
    return {name: float(np.median(values)) for name, values in seconds.items()}


def bench_windows(folder: Path, episodes: int, batch: int, length: int, repeats: int) -> dict[str, float]:
    """Windows a second of each reader, over the same episodes and the same indices."""
    random = np.random.default_rng(0)
    made = [make_episode(random) for _ in range(episodes)]
    corpus = Corpus(folder / "corpus", create=True)
    corpus.append(made)
    windows: Windows = corpus.windows(corpus.at("latest"), FIELDS, cache=folder / "cache")
    ram = np.array(windows.rows)
    write_robomimic(folder / "robomimic.hdf5", made)
    offsets = np.arange(length)
    batches = []
    for _ in range(40):
        which, t = random.integers(0, episodes, batch), random.integers(0, STEPS - length, batch)
        batches.append((which, t, windows.start[which] + t))
    low, high = windows.start, windows.start + windows.length

    def cache(which: np.ndarray, t: np.ndarray, index: np.ndarray) -> np.ndarray:
        return windows.gather(index, offsets, low[which], high[which])

    def fancy(which: np.ndarray, t: np.ndarray, index: np.ndarray) -> np.ndarray:
        return ram[index[:, None] + offsets]

    def take(which: np.ndarray, t: np.ndarray, index: np.ndarray) -> np.ndarray:
        return np.take(ram, index[:, None] + offsets, axis=0, mode="clip")

    with h5py.File(folder / "robomimic.hdf5") as file:

        def robomimic(which: np.ndarray, t: np.ndarray, index: np.ndarray) -> np.ndarray:
            out = np.empty((len(which), length, STATE + ACTION + 1), np.float32)
            for row, (e, at) in enumerate(zip(which, t, strict=True)):
                group = file[f"data/demo_{e}"]
                out[row, :, :STATE] = group["obs/state"][at : at + length]
                out[row, :, STATE:-1] = group["actions"][at : at + length]
                out[row, :, -1] = group["rewards"][at : at + length]
            return out

        readers = {"cache": cache, "ram": take, "ram_fancy": fancy, "h5py": robomimic}
        for one in batches[:3]:
            expected = robomimic(*one)
            for name, reader in readers.items():
                if not np.array_equal(reader(*one), expected):
                    raise SystemExit(f"{name} gave other windows than h5py; nothing was timed")

        def work(reader: Callable, number: int) -> Callable[[int], int]:
            def run(repeat: int) -> int:
                for k in range(number):
                    reader(*batches[(repeat + k) % len(batches)])
                return number * batch

            return run

        timed = {name: work(reader, 2 if name == "h5py" else 40) for name, reader in readers.items()}
        seconds = medians(timed, repeats)
    rate = {f"{name}_windows_per_s": 1 / value for name, value in seconds.items()}
    return rate | {
        "cache_over_ram": seconds["ram"] / seconds["cache"],
        "cache_over_ram_fancy": seconds["ram_fancy"] / seconds["cache"],
        "cache_over_h5py": seconds["h5py"] / seconds["cache"],
    }


def bench_append(folder: Path, short: int, long: int, repeats: int) -> dict[str, float]:
    """Milliseconds of an append of two episodes to a corpus of `short` and to one of `long` versions."""
    random = np.random.default_rng(1)
    paths = {"short": folder / "short", "long": folder / "long"}
    for path, versions in zip(paths.values(), (short, long), strict=True):
        corpus = Corpus(path, create=True)
        for number in range(versions):
            corpus.append([make_episode(random, 20) for _ in range(2)])
            if number % 100 == 99:
                print(f"  append: {number + 1} of {versions} versions", file=sys.stderr)
    opened = {name: Corpus(path) for name, path in paths.items()}
    if [corpus.head for corpus in opened.values()] != [short, long]:
        raise SystemExit("an append made no version; nothing was timed")
    fresh = iter([[make_episode(random, 20) for _ in range(2)] for _ in range(4 * repeats)])

    def at_work(corpus: Corpus) -> Callable[[int], int]:
        return lambda repeat: len(corpus.append(next(fresh)).added) // 2

    def just_opened(path: Path) -> Callable[[int], int]:
        return lambda repeat: len(Corpus(path).append(next(fresh)).added) // 2

    seconds = medians({name: at_work(corpus) for name, corpus in opened.items()}, repeats)
    cold = medians({name: just_opened(path) for name, path in paths.items()}, repeats)
    return {
        "append_ms_short": 1e3 * seconds["short"],
        "append_ms_long": 1e3 * seconds["long"],
        "append_ratio": seconds["long"] / seconds["short"],
        "open_and_append_ms_short": 1e3 * cold["short"],
        "open_and_append_ms_long": 1e3 * cold["long"],
        "open_and_append_ratio": cold["long"] / cold["short"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--episodes", type=int, default=1000, help=f"episodes of {STEPS} steps (default %(default)s)")
    parser.add_argument("--batch", type=int, default=256, help="windows in a batch (default %(default)s)")
    parser.add_argument("--length", type=int, default=16, help="rows in a window (default %(default)s)")
    parser.add_argument("--versions", type=int, default=1000, help="versions of the long log (default %(default)s)")
    parser.add_argument("--repeats", type=int, default=15, help="repetitions, the median counts (default %(default)s)")
    parser.add_argument("--json", action="store_true", help="the last line on stdout is one JSON object")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        found = bench_windows(Path(folder), args.episodes, args.batch, args.length, args.repeats)
        found |= bench_append(Path(folder), 10, args.versions, args.repeats)
    targets = {"cache_over_ram": 0.7, "cache_over_h5py": 100, "append_ratio": 1.3, "open_and_append_ratio": 1.3}
    for name, value in found.items():
        bound = (
            f"   target {'<=' if name.endswith('append_ratio') else '>='} {targets[name]}" if name in targets else ""
        )
        print(f"{name:28} {value:14,.2f}{bound}")
    if args.json:
        print(json.dumps({name: round(value, 4) for name, value in found.items()}))


if __name__ == "__main__":
    main()
