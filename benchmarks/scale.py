"""The corpus at a million versions: a synthetic log (metadata real, data faked), and what each operation costs on it.

The log entries are real files with real hashes and a real chain, and one version in a thousand is a tombstone;
checkpoints are made by the corpus itself while the log grows. Only the segments are missing: their columns (task,
origin, success, length ...) come from a generator. Peer: the same operations on a corpus of 10 versions. Each figure is
the median over repetitions of a newly opened corpus, in a process whose imports are done; `cold` is the first after the
checkpoints and the newest entries were dropped from the page cache.

    python benchmarks/scale.py [--versions 1000000] [--folder DIR] [--json]

With --folder the log is made once and kept. A million versions of ten episodes take about four minutes and 6 GB.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import sys
import tempfile
import time
import tracemalloc
import zlib
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
from corpus import make_episode

from flywheel import store
from flywheel.corpus import Corpus, Windows
from flywheel.corpus.log import Log, seal
from flywheel.corpus.sampling import Pool, divided, fractions
from flywheel.corpus.state import BASE
from flywheel.corpus.windows import _check

TASKS = ("lift", "push", "insert", "door")


def fake_columns(name: str, each: int) -> dict[str, list]:
    """What the episodes.json of a segment would say: follows from its name, a number."""
    number = int(name)
    return {
        "task": [TASKS[number % 4]] * each,
        "origin": [f"human:operator{number % 50}" if number % 3 else f"policy:{number // 10_000:012x}"] * each,
        "seed": [number * each + i for i in range(each)],
        "success": [(number + i) % 5 > 0 for i in range(each)],
        "terminated": [True] * each,
        "fps": [20.0] * each,
        "length": [100 + (number + i) % 400 for i in range(each)],
        "return_": [1.0] * each,
    }


def generate(folder: Path, versions: int, each: int) -> float:
    """Write the log and let the corpus make its checkpoints; seconds that it took."""
    began = time.perf_counter()
    corpus = Corpus(folder, create=True)
    random, first = np.random.default_rng(0), []
    corpus.append(
        [make_episode(random) for _ in range(each)]
    )  # a real segment: the window cache asks one for its widths

    def columns(name: str, sha256: str) -> dict[str, list]:
        return fake_columns(name, each) if name.isdecimal() else corpus.reader._columns(name, sha256)

    log = Log(corpus.files, corpus.id, columns)
    log.refresh()
    for version in range(2, versions + 1):
        hashes = random.bytes(32 * each).hex()
        hashes = [hashes[at : at + 64] for at in range(0, len(hashes), 64)]
        entry = {"op": "append", "add": [{"segment": f"{version:026d}", "sha256": hashes[0], "hashes": hashes, "steps": 300 * each}]}  # fmt: skip
        if version % 1000 == 0:
            entry = {"op": "tombstone", "add": [], "remove": first[:3]}
        elif version % 1000 == 2:
            first = hashes
        common = {"version": version, "parent": log.state.tip, "remove": [], "time": "2026-01-01T00:00:00Z"}
        data = seal({**common, "author": "bench", "message": "synthetic", **entry})
        path = folder / log.name(version)
        if not path.parent.exists():
            path.parent.mkdir()
        path.write_bytes(data)
        log._apply(data)
        if version % 65_536 == 0 or version == versions:
            log._save()
            seconds = time.perf_counter() - began
            print(f"  {version} of {versions} versions, {seconds:.0f} s", file=sys.stderr, flush=True)
    return time.perf_counter() - began


def forget(folder: Path, corpus: Corpus) -> None:
    """Drop the checkpoints and the newest entries from the page cache."""
    newest = [folder / corpus.history.name(version) for version in range(max(1, corpus.head - 64), corpus.head + 1)]
    for path in [*(folder / "checkpoints").iterdir(), *newest, folder / "format.json"]:
        with open(path, "rb") as file:
            os.fsync(file.fileno())  # only clean pages can be dropped
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def timed(function: Callable[[], object]) -> float:
    began = time.perf_counter()
    function()
    return time.perf_counter() - began


def worked(function: Callable[[], object]) -> tuple[float, float]:
    """Seconds that it took, and of the processor that it needed, in all its threads: what neighbours do not change."""
    began, busy = time.perf_counter(), time.process_time()
    function()
    return time.perf_counter() - began, time.process_time() - busy


def open_and_append(folder: Path, episodes: list) -> object:
    return Corpus(folder).append(episodes)


def measure(large: Path, small: Path, repeats: int) -> dict[str, float]:
    """Seconds of each operation, and the appends beside those of the small corpus."""
    head = Corpus(large).head
    random = np.random.default_rng([1, head])  # a folder that is used again gets other episodes
    found: dict[str, float] = {}

    def each(name: str, function: Callable[[Corpus], object]) -> None:
        forget(large, Corpus(large))
        cold = timed(lambda: function(Corpus(large)))
        found[f"{name}, cold"], found[name] = (
            cold,
            float(np.median([timed(lambda: function(Corpus(large))) for _ in range(5)])),
        )

    each("open at head", lambda corpus: corpus.head)
    each("open, the episodes at head", lambda corpus: len(corpus.at("latest")))
    each("open, the episodes at half", lambda corpus: len(corpus.at(head // 2)))
    each("open, query task and success", lambda corpus: len(corpus.at("latest").select(task="lift", success=True)))
    each("open, query origin by pattern", lambda corpus: len(corpus.at("latest").select(origin="policy:*")))
    each("open, steps of all episodes", lambda corpus: int(corpus.at("latest").table["length"].sum()))
    tags = iter(range(99))
    each("open, tag", lambda corpus: corpus.tag(f"t{head}-{next(tags)}", head // 2))
    each("open, log of the last 20", lambda corpus: corpus.log(last=20))

    corpora = {"large": Corpus(large), "small": Corpus(small)}
    paths = {"large": large, "small": small}
    times: dict[str, list] = {f"{what} {name}": [] for what in ("append", "open+append") for name in paths}
    for _ in range(repeats):  # interleaved: a busy neighbour slows all alike
        for name in paths:
            fresh = [make_episode(random, 20) for _ in range(4)]
            times[f"append {name}"].append(worked(partial(corpora[name].append, fresh[:2])))
            times[f"open+append {name}"].append(worked(partial(open_and_append, paths[name], fresh[2:])))
    for what in ("append", "open+append"):
        large_, small_ = (np.asarray(times[f"{what} {name}"]) for name in paths)
        for clock, column in (("", 0), (", processor", 1)):
            for size, series in ((f"{head:,}", large_), ("10", small_)):
                found[f"{what} at version {size}{clock}"] = float(np.median(series[:, column]))
            for kind, function in (("", np.median), (", means", np.mean)):
                ratio = function(large_[:, column]) / function(small_[:, column])
                found[f"{what}: ratio{clock}{kind}"] = float(ratio)
    return found


def measure_reading(folder: Path, cache: Path) -> dict[str, float]:
    """A window cache over all episodes (its rows are a hole in a file), its index in memory, and draws from it."""
    corpus = Corpus(folder)
    version = corpus.at("latest")
    held = corpus.windows(version.select(np.arange(1)), cache=cache)  # the real segment
    index = store.read_json(held.folder / "index.json")
    rows = version.table["length"] + 1
    crcs = np.zeros(rows.max() + 1, np.int64)
    for count in np.unique(rows).tolist():
        crcs[count] = zlib.crc32(bytes(4 * held.width * count))
    episodes = np.stack([version.rows, np.cumsum(rows) - rows, rows, crcs[rows]], 1)
    episodes.tofile(held.folder / f"{index['file']}.i64")
    for number, columns in enumerate(held.columns.values()):
        for size in (0, int(rows.sum()) * (columns.stop - columns.start) * 4):
            os.truncate(held._file(index, number), size)
    index |= {"rows": int(rows.sum()), "episodes": len(rows), "crc": zlib.crc32(episodes)}
    del index["check"], version, rows, crcs, episodes
    store.write_json(held.folder / "index.json", {**index, "check": _check(index)})

    def opened() -> Windows:
        corpus = Corpus(folder)
        return corpus.windows(corpus.at("latest"), cache=cache)

    found = {"open the window cache of all": float(np.median([timed(opened) for _ in range(3)]))}
    tracemalloc.start()
    windows = opened()
    half, first, pools = len(windows) // 2, np.cumsum(windows.length) - windows.length, {"a": Pool(), "b": Pool()}
    for name, part in (("a", slice(0, half)), ("b", slice(half, None))):
        pools[name].add(first[part], windows.length[part])
    del first
    found["index in memory: bytes an episode"] = tracemalloc.get_traced_memory()[0] / len(windows)
    tracemalloc.stop()

    def drawn(number: int) -> list:
        at = np.split(fractions(0, np.arange(64 * number, 64 * number + 64)), [45])
        return [pools[name].at(part) for name, part in zip(divided({"a": 0.7, "b": 0.3}, pools, 64), at, strict=True)]

    found["64 samples of a mixture"] = timed(lambda: [drawn(number) for number in range(1000)]) / 1000
    corpus = Corpus(folder)
    corpus.append([make_episode(np.random.default_rng(3)) for _ in range(10)])
    found["the window cache after an append of 10"] = timed(lambda: windows.extend(corpus.at("latest")))
    return found


def measure_rates(folder: Path) -> dict[str, float]:
    """What one core writes and decodes: 400 episodes of 200 steps of 84 floats, as on paper in docs/scale.md."""
    random = np.random.default_rng(4)
    made, corpus = [make_episode(random) for _ in range(400)], Corpus(folder / "rates", create=True)
    corpus.append(made[:1])
    spent = timed(lambda: corpus.append(made[1:]))
    built = timed(lambda: corpus.windows(corpus.at("latest"), cache=folder / "rates-cache"))
    size = sum(4 * 84 * (len(one) + 1) for one in made)
    frames = sum(len(one) for one in made[1:])
    return {"append: frames a second": frames / spent, "window cache built: MB a second": size / built / 1e6}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--versions", type=int, default=1_000_000)
    parser.add_argument("--episodes", type=int, default=10, help="in each version (default %(default)s)")
    parser.add_argument("--repeats", type=int, default=60, help="appends (default %(default)s)")
    parser.add_argument("--folder", help="keep the log here, or use the one that is here")
    parser.add_argument("--json", action="store_true", help="the last line on stdout is one JSON object")
    args = parser.parse_args()
    args.versions -= args.versions % BASE  # faked segments are all in checkpoints
    with tempfile.TemporaryDirectory() as scratch:
        folder, found = Path(args.folder or f"{scratch}/large"), {}
        if not (folder / "format.json").exists():
            found["generating the log"] = generate(folder, args.versions, args.episodes)
        small, random = Corpus(f"{scratch}/small", create=True), np.random.default_rng(2)
        for _ in range(10):
            small.append([make_episode(random, 20) for _ in range(2)])
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        found |= measure(folder, small.path, args.repeats)
        found |= measure_reading(folder, Path(scratch) / "cache") | measure_rates(Path(scratch))
        sizes = {
            name: sum(512 * p.stat().st_blocks for p in (folder / name).rglob("*")) for name in ("log", "checkpoints")
        }
        for name, value in found.items():
            print(f"{name:44} {value:10,.2f}" if ":" in name else f"{name:44} {1e3 * value:10.2f} ms")
        for name, size in sizes.items():
            print(f"{name + '/ on disk':44} {size / 1e6:10.0f} MB")
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        print(f"{'most memory while measuring, pages included':44} {peak / 1e3:10.0f} MB (before: {before / 1e3:.0f})")
        if args.json:
            print(json.dumps({name: round(value, 6) for name, value in (found | sizes).items()}))
        print("removing the log", file=sys.stderr)


if __name__ == "__main__":
    main()
