"""Reading for training, writing and appending, against what robot learning uses today: ratios in one run, equality
first.

    lerobot      LeRobotDataset (installed), parquet behind an Arrow cache
    robomimic    its SequenceDataset over HDF5, read through h5py; and in its fastest mode, everything in memory
    diffusion    diffusion policy's ReplayBuffer and SequenceSampler, in memory
    numpy        the same transitions gathered from arrays in RAM: four gathers, and three numbers looked up

flywheel is the source that trains (rl.source.Offline): with its transitions kept in memory, as they are where they fit,
and from the window cache's map, where they do not. It serves obs [64, 2, 60] and action [64, 16, 24] and, as numpy
does, next_obs, next_action, reward, discount and return; the others serve obs and action of the same (episode, step) as
torch tensors, with 0 and with 2 workers (of torch's DataLoader but for flywheel). Batches are compared bit by bit
before anything is timed; the clock starts at the first batch, so that starting workers costs nobody. Rates are the best
of --repeats interleaved ones; `--numpy` leaves all but numpy out.

robomimic and diffusion policy are used from the checkouts that ROBOMIMIC and DIFFUSION_POLICY name (robomimic's source
distribution will do); without them, from their access pattern as it is written down here. Cameras: cameras.py.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

os.environ["HF_HUB_OFFLINE"] = "1"
STATE, ACTION, STEPS, FPS = 60, 24, 200, 20
TO, TA, BATCH, GAMMA = 2, 16, 64, 0.99
TARGETS = {"lerobot": 300, "robomimic": 100, "diffusion": 1, "numpy": 0.8}


def made(corpus, cache: Path, kept: bool, workers: int = 0, cameras: tuple = (), frames: int | None = None):
    """The source that trains on all episodes of a corpus."""
    from flywheel.rl import packed
    from flywheel.rl.source import Offline

    packed.ROOM = 2**30 if kept else 0
    version = corpus.at("latest")
    windows = corpus.windows(version, cache=cache)
    shown = [corpus.windows(version, (name,), cache=cache) for name in cameras]
    return Offline(
        windows, {"all": np.arange(len(windows))}, {"improve": {"all": 1.0}}, obs_steps=TO, action_steps=TA, batch_size=BATCH,
        gamma=GAMMA, workers=workers, cameras=shown, frames=frames,
    )  # fmt: skip


def batches(source, count: int) -> Iterator[dict]:
    """Its first batches."""
    source.load_state({"taken": {"improve": 0}})
    return (source.batch("improve") for _ in range(count))


def listed(source, count: int) -> np.ndarray:
    """(episode, step) of its first `count` batches, [count * BATCH, 2]."""
    return np.stack(source.where(source.steps("improve", 0, count)), 1)


class Ram:
    """The same transitions by hand from arrays of all steps; of an episode STEPS + 1 observations. No step has a
    reward."""

    def __init__(self, episodes: list, pairs: np.ndarray):
        self.obs = np.concatenate([one.obs["state"] for one in episodes])
        self.action = np.concatenate([one.action for one in episodes])
        left = np.minimum(TA, STEPS - np.arange(STEPS))
        self.left, self.discount = left, (GAMMA**left).astype(np.float32)
        self.reward = self.returns = np.zeros(len(self.action), np.float32)
        self.pairs = pairs

    def __getitem__(self, number: int) -> dict:
        import torch

        episode, step = self.pairs[number * BATCH : (number + 1) * BATCH].T
        low, first = episode * STEPS, episode * (STEPS + 1)
        here, high, left = low + step, low + STEPS - 1, self.left[step]
        past = (first + step)[:, None] + np.arange(1 - TO, 1)
        chunk = np.minimum(here[:, None] + np.arange(TA), high[:, None])
        out = {
            "obs": self.obs.take(np.maximum(past, first[:, None]), 0),
            "action": self.action.take(chunk, 0),
            "next_obs": self.obs.take(np.maximum(past + left[:, None], first[:, None]), 0),
            "next_action": self.action.take(np.minimum(chunk + TA, high[:, None]), 0),
            "reward": self.reward[here],
            "discount": self.discount[step],
            "return": self.returns[here],
        }
        return {name: torch.from_numpy(value) for name, value in out.items()}


class ReplayBuffer:
    """The access pattern of diffusion policy: arrays of all episodes in memory, a table of windows, one slice a key
    and sample, padded by its first and last row (horizon To - 1 + Ta)."""

    def __init__(self, episodes: list):
        self.data = {
            "obs": np.concatenate([one.obs["state"][:-1] for one in episodes]),
            "action": np.concatenate([one.action for one in episodes]),
        }
        self.horizon, table = TO - 1 + TA, []
        for first in range(0, len(self.data["obs"]), STEPS):
            for begin in range(1 - TO, STEPS - self.horizon + TA):
                low, high = max(begin, 0) + first, min(begin + self.horizon, STEPS) + first
                table.append([low, high, low - begin - first, high - begin - first])
        self.table = np.asarray(table)

    def __getitem__(self, number: int) -> dict:
        import torch

        low, high, begin, end = self.table[number]
        out = {}
        for name, values in self.data.items():
            sample = values[low:high]
            if begin > 0 or end < self.horizon:
                data = np.zeros((self.horizon, *values.shape[1:]), values.dtype)
                data[:begin], data[end:] = sample[0], sample[-1]
                data[begin:end] = sample
                sample = data
            out[name] = sample
        return {"obs": torch.from_numpy(out["obs"][:TO]), "action": torch.from_numpy(out["action"][TO - 1 :])}


class Robomimic:
    """robomimic's SequenceDataset, or its access pattern: one h5py read a key and sample, then padding."""

    def __init__(self, path: Path, episodes: int, memory: bool):
        self.path, self.file, self.inner = path, None, None
        if os.environ.get("ROBOMIMIC"):
            sys.path.insert(0, os.environ["ROBOMIMIC"])
            import robomimic.utils.obs_utils as obs_utils
            from robomimic.utils.dataset import SequenceDataset

            obs_utils.initialize_obs_utils_with_obs_specs({"obs": {"low_dim": ["state"]}})
            self.inner = SequenceDataset(
                str(path), ["state"], ["actions"], frame_stack=TO, seq_length=TA, load_next_obs=False,
                hdf5_use_swmr=False, hdf5_cache_mode="all" if memory else None,
            )  # fmt: skip
            order = {demo: int(demo.split("_")[1]) for demo in self.inner.demos}
            self.first = {order[demo]: start for demo, start in self.inner._demo_id_to_start_indices.items()}

    def __getitem__(self, number: int) -> dict:
        episode, step = divmod(number, STEPS)
        if self.inner:
            found = self.inner[self.first[episode] + step]
            return {"obs": found["obs"]["state"][:TO], "action": found["actions"][TO - 1 :]}
        if self.file is None:
            import h5py

            self.file = h5py.File(self.path)
        group = self.file[f"data/demo_{episode}"]
        obs, action = group["obs/state"][max(0, step + 1 - TO) : step + 1], group["actions"][step : step + TA]
        return {
            "obs": np.pad(obs, ((TO - len(obs), 0), (0, 0)), "edge"),
            "action": np.pad(action, ((0, TA - len(action)), (0, 0)), "edge"),
        }


class Item:
    """A LeRobotDataset whose items are called as ours."""

    def __init__(self, data):
        self.data = data

    def __getitem__(self, number: int) -> dict:
        found = self.data[number]
        return {"obs": found["observation.state"], "action": found["action"]}


def lerobot_features() -> dict:
    return {
        "observation.state": {"dtype": "float32", "shape": (STATE,), "names": None},
        "action": {"dtype": "float32", "shape": (ACTION,), "names": None},
    }


def lerobot_open(root: Path):
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

    stamps = {"observation.state": [k / FPS for k in range(1 - TO, 1)], "action": [k / FPS for k in range(TA)]}
    return LeRobotDataset("bench/reading", root=root, delta_timestamps=stamps)


def lerobot_add(data, episodes: list) -> None:
    for one in episodes:
        for state, action in zip(one.obs["state"], one.action, strict=False):
            data.add_frame({"observation.state": state, "action": action, "task": "bench"})
        data.save_episode()
    data.finalize()


def make_episodes(count: int, seed: int) -> list:
    from flywheel.episode import Episode

    random = np.random.default_rng(seed)
    return [
        Episode(
            task="bench",
            obs={"state": random.normal(size=(STEPS + 1, STATE)).astype(np.float32)},
            action=random.normal(size=(STEPS, ACTION)).astype(np.float32),
            reward=np.zeros(STEPS, np.float32),
            terminated=False,
            success=None,
            origin="scripted:bench",
            fps=float(FPS),
        )
        for _ in range(count)
    ]


def stream(source, pairs: np.ndarray, workers: int, whole: bool) -> Iterator[dict]:
    """Batches of the list: by the source that trains, by torch's DataLoader with whole batches from `source[k]`, or
    64 items each."""
    from torch.utils.data import DataLoader

    from flywheel.rl.source import Offline

    if isinstance(source, Offline):
        source.workers = workers
        return batches(source, len(pairs) // BATCH)
    if whole and not workers:
        return (source[number] for number in range(len(pairs) // BATCH))  # bare: nothing is faster
    if whole:
        return iter(DataLoader(source, batch_size=None, sampler=range(len(pairs) // BATCH), num_workers=workers))
    numbers = (pairs[:, 0] * STEPS + pairs[:, 1]).tolist()
    return iter(DataLoader(source, batch_size=BATCH, sampler=numbers, num_workers=workers))


def rate(source, pairs: np.ndarray, workers: int, whole: bool, batches: int) -> float:
    """Samples a second, from the first batch on."""
    found = stream(source, pairs[: (batches + 1) * BATCH], workers, whole)
    next(found)
    began = time.perf_counter()
    count = sum(len(batch["obs"]) for batch in found)
    return count / (time.perf_counter() - began)


def bench_readers(sources: dict, pairs: np.ndarray, repeats: int) -> dict[str, float]:
    """Equality over six batches, then rates."""
    for several in zip(
        *(stream(source, pairs[: 6 * BATCH], 0, whole) for source, whole, _ in sources.values()), strict=True
    ):
        for name, batch in zip(sources, several, strict=True):
            whole = several[0].keys() if name.startswith(("flywheel", "numpy")) else ("obs", "action")
            for key in whole:
                if batch[key].shape != several[0][key].shape or not batch[key].equal(several[0][key]):
                    raise SystemExit(f"{name} gave another {key} than flywheel; nothing was timed")
    found: dict[str, float] = {}
    for workers in (0, 2):
        rates: dict[str, list[float]] = {name: [] for name in sources}
        for _ in range(repeats):
            for name, (source, whole, batches) in sources.items():
                rates[name].append(rate(source, pairs, workers, whole, batches))
        for name, values in rates.items():
            found[f"{name}, {workers} workers: samples/s"] = max(values)
            if not name.startswith("flywheel"):
                found[f"flywheel / {name}, {workers} workers"] = max(rates["flywheel"]) / max(values)
        mapped = max(rates["flywheel, from the map"])
        found[f"flywheel, from the map / numpy, {workers} workers"] = mapped / max(rates["numpy"])
    return found


def size(*folders: Path) -> int:
    """Bytes in files."""
    return sum(path.stat().st_size for folder in folders for path in folder.rglob("*") if path.is_file())


def timed(function: Callable[[], object]) -> float:
    began = time.perf_counter()
    function()
    return time.perf_counter() - began


def measured(
    doc: str, bench: Callable[[Path, int, int], dict], episodes: int, **others: Callable
) -> tuple[dict, argparse.Namespace]:
    """What `bench(folder, episodes, repeats)` found, or the one of `others` that is asked for (--two), and the command
    line that asked for it."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--episodes", type=int, default=episodes, help=f"of {STEPS} steps (default %(default)s)")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", action="store_true", help="the last line on stdout is one JSON object")
    for name in others:
        parser.add_argument(f"--{name}", action="store_true", help="the other question, see above")
    args = parser.parse_args()
    bench = next((other for name, other in others.items() if getattr(args, name)), bench)
    with tempfile.TemporaryDirectory() as folder:
        return bench(Path(folder), args.episodes, args.repeats), args


def main() -> None:
    found, args = measured(__doc__, bench, 200, numpy=alone)
    for name, value in found.items():
        text = f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
        bound = next(
            (f"   target >= {t}" for peer, t in TARGETS.items() if name.startswith(f"flywheel / {peer}, ")), ""
        )
        print(f"{name:52} {text:>12}{bound}")
    print(
        "versions: " + ", ".join(f"{n} {importlib.metadata.version(n)}" for n in ("lerobot", "torch", "numpy", "h5py"))
    )
    told = {"robomimic": "ROBOMIMIC", "diffusion policy": "DIFFUSION_POLICY"}
    print("; ".join(f"{n}: {'its own code' if os.environ.get(v) else 'access pattern'}" for n, v in told.items()))
    if args.json:
        print(json.dumps(found))


def alone(folder: Path, count: int, repeats: int) -> dict[str, float]:
    """The source that trains against numpy, nobody else, of processor time: a busy neighbour counts less. Medians."""
    import torch

    from flywheel.corpus import Corpus

    torch.set_num_threads(1)
    episodes = make_episodes(count, 0)
    corpus = Corpus(folder / "corpus", create=True)
    corpus.append(episodes)
    kept, mapped = (made(corpus, folder / "cache", kept) for kept in (True, False))
    peer = Ram(episodes, listed(kept, 1001))

    def rate(read: Callable[[int], Iterator]) -> float:
        """Samples a second of processor time, from the second batch on."""
        found = read(1001)
        next(found)
        began = time.process_time()
        return sum(len(batch["obs"]) for batch in found) / (time.process_time() - began)

    reads = {"kept": lambda n: batches(kept, n), "from the map": lambda n: batches(mapped, n)}
    reads["numpy"] = lambda n: (peer[number] for number in range(n))
    for one, other in zip(*(read(6) for name, read in reads.items() if name != "kept"), strict=True):
        assert all(one[key].equal(other[key]) for key in other)
    rates = {name: [] for name in reads}
    for _ in range(repeats):
        for name, read in reads.items():
            rates[name].append(rate(read))
    found = {f"{name}: samples/s of processor time": float(np.median(rates[name])) for name in reads}
    for name in ("kept", "from the map"):
        found[f"flywheel, {name} / numpy (target >= 0.8)"] = float(np.median(np.divide(rates[name], rates["numpy"])))
    return found


def bench(folder: Path, count: int, repeats: int) -> dict[str, float]:
    os.environ["HF_HOME"] = str(folder / "hf")  # its Arrow cache: what an append writes there counts
    import torch
    from corpus import write_robomimic
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

    from flywheel.corpus import Corpus

    torch.set_num_threads(1)
    episodes, found = make_episodes(count, 0), {}
    corpus, cache, lerobot = Corpus(folder / "corpus", create=True), folder / "cache", folder / "lerobot"
    corpus.append(make_episodes(1, 2))  # imports zarr
    corpus.tombstone(corpus.at(1).hashes, "only to import zarr")
    others = [Corpus(folder / f"corpus{number}", create=True) for number in range(4)]
    busy = time.process_time()
    spent = float(np.median([timed(lambda: other.append(episodes)) for other in (corpus, *others)]))  # noqa: B023
    busy = (time.process_time() - busy) / (1 + len(others))
    data = LeRobotDataset.create("bench/reading", fps=FPS, features=lerobot_features(), root=lerobot, use_videos=False)
    peer = time.process_time()
    slow = timed(lambda: lerobot_add(data, episodes))
    peer = time.process_time() - peer
    found["writing: frames/s"], found["writing, lerobot: frames/s"] = count * STEPS / spent, count * STEPS / slow
    found["writing: flywheel / lerobot (target >= 100)"] = slow / spent
    found["writing, of processor time: lerobot / flywheel"] = peer / busy  # in all threads: neighbours do not change it
    found["on disk: corpus / lerobot"] = size(corpus.path) / size(lerobot)
    write_robomimic(folder / "robomimic.hdf5", episodes)
    mimic_attributes(folder / "robomimic.hdf5")
    ours, mapped = (made(corpus, cache, kept) for kept in (True, False))
    pairs = listed(ours, 2001)
    sources = {  # source, whether its items are whole batches, how many batches a repetition takes
        "flywheel": (ours, True, 2000),
        "flywheel, from the map": (mapped, True, 2000),
        "numpy": (Ram(episodes, pairs), True, 2000),
        "diffusion": (replay_buffer(folder, episodes), False, 100),
        "robomimic": (Robomimic(folder / "robomimic.hdf5", count, memory=False), False, 15),
        "lerobot": (Item(lerobot_open(lerobot)), False, 10),
    }
    if os.environ.get("ROBOMIMIC"):
        sources["robomimic in memory"] = (Robomimic(folder / "robomimic.hdf5", count, memory=True), False, 50)
    found |= bench_readers(sources, pairs, repeats)
    del sources
    found |= bench_append(folder, corpus, lerobot)
    return found


def bench_append(folder: Path, corpus, lerobot: Path) -> dict[str, float]:
    """Ten episodes more, by one that opens what is there, and opening it for training up to the first batch; medians
    of 5."""
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

    from flywheel.corpus import Corpus

    def ours_open() -> None:
        made(Corpus(corpus.path), folder / "cache", kept=False).batch("improve")

    def peer_open() -> None:
        data = Item(lerobot_open(lerobot))
        for number in range(BATCH):
            data[number]

    found: dict[str, list[float]] = defaultdict(list)
    for repeat in range(5):
        more = make_episodes(10, 10 + repeat)
        raw = sum(one.obs["state"].nbytes + one.action.nbytes + one.reward.nbytes for one in more)
        before = size(corpus.path, folder / "cache")
        found["append of 10: ms"].append(1e3 * timed(lambda: Corpus(corpus.path).append(more)))  # noqa: B023
        found["open after it, to the first batch: ms"].append(1e3 * timed(ours_open))
        found["written by both: bytes / bytes of the 10"].append((size(corpus.path, folder / "cache") - before) / raw)
        before = size(lerobot, folder / "hf")
        add = lambda: lerobot_add(LeRobotDataset("bench/reading", root=lerobot), more)  # noqa: B023, E731
        found["append of 10, lerobot: ms"].append(1e3 * timed(add))
        found["open after it, lerobot: ms"].append(1e3 * timed(peer_open))
        found["written by both, lerobot: bytes / bytes of the 10"].append((size(lerobot, folder / "hf") - before) / raw)
    middle = {name: float(np.median(values)) for name, values in found.items()}
    slow, spent = middle["append of 10, lerobot: ms"], middle["append of 10: ms"]
    middle["append of 10: lerobot / flywheel (target >= 20)"] = slow / spent
    slow, spent = middle["open after it, lerobot: ms"], middle["open after it, to the first batch: ms"]
    middle["open after an append: lerobot / flywheel (target >= 10)"] = slow / spent
    return middle


def mimic_attributes(path: Path) -> None:
    """What robomimic wants to know beside the arrays."""
    import h5py

    with h5py.File(path, "r+") as file:
        for demo in file["data"].values():
            demo.attrs["num_samples"] = STEPS


def replay_buffer(folder: Path, episodes: list):
    """diffusion policy's own classes from a checkout, or their access pattern."""
    if not os.environ.get("DIFFUSION_POLICY"):
        return ReplayBuffer(episodes)
    sys.path.insert(0, os.environ["DIFFUSION_POLICY"])
    import torch
    from diffusion_policy.common.replay_buffer import ReplayBuffer as Buffer
    from diffusion_policy.common.sampler import SequenceSampler

    buffer = Buffer.create_empty_numpy()
    for one in episodes:
        buffer.add_episode({"obs": one.obs["state"][:-1], "action": one.action})
    sampler = SequenceSampler(buffer, TO - 1 + TA, pad_before=TO - 1, pad_after=TA - 1)

    class Data:
        def __getitem__(self, number: int) -> dict:
            found = sampler.sample_sequence(number)
            return {
                "obs": torch.from_numpy(found["obs"][:TO]),
                "action": torch.from_numpy(found["action"][TO - 1 :]),
            }

    return Data()


if __name__ == "__main__":
    main()
