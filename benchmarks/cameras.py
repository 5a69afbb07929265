"""Reading one 96x96 camera for training against LeRobotDataset, and what frames take on disk: ratios in one run,
equality first.

    lerobot, images   its image mode: a PNG a frame in Parquet; our corpus has the same frames raw (zstd, chunks of 16)
    lerobot, video    its video mode (AV1, its default); our corpus has LeRobot's own MP4 files, ingested from that data set

Every reader serves the same list of (episode, step): obs [64, 2, 60], action [64, 16, 24] and the camera [64, 2, 96,
96, 3], with 0 and with 2 workers. LeRobot's frames are float32 in 0..1, channels first; `uint8` is our source as it is,
`float32` the same and converted to LeRobot's form in the process that trains. Batches are compared bit by bit before
anything is timed; of the video both must decode the same pixels (LeRobot through PyAV). Rates are the best of --repeats
interleaved ones.

`--two` is the other question: two cameras of 64x64, the newest frame of each, as `pretrain` draws for a policy that
sees. The source that trains, with its transitions in memory and from the window cache's map (frames come from a map
either way), beside a bare numpy gather of the same from arrays in RAM and LeRobotDataset (images); all fields equal to
the bit first, rates by processor time, which neighbours change least.

The scene is drawn: a smooth background and discs that move. `noisy` has a camera's noise besides (sigma 2 of 255),
which no lossless codec makes smaller."""

from __future__ import annotations

import importlib.metadata
import json
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

os.environ["HF_HUB_OFFLINE"] = "1"
sys.path.insert(0, str(Path(__file__).parent))

from reading import (
    ACTION,
    BATCH,
    FPS,
    STATE,
    STEPS,
    TA,
    TO,
    Ram,
    batches,
    listed,
    made,
    make_episodes,
    measured,
    size,
    timed,
)

SIDE, KEY = 96, "observation.images.front"
TARGET = 5
EYES, SMALL, TWO = ("top", "wrist"), 64, {"numpy": 0.8, "lerobot": 100}


def scene(count: int, seed: int, noise: float, side: int = SIDE) -> np.ndarray:
    """[count, side, side, 3] uint8."""
    random = np.random.default_rng(seed)
    y, x = np.mgrid[:side, :side] / side
    phase = random.uniform(0, 6, (3, 2))
    back = np.stack([110 + 60 * np.sin(3 * x + p) * np.cos(2 * y + q) for p, q in phase], -1)
    out = np.empty((count, side, side, 3), np.uint8)
    speed, colour = random.uniform(0.02, 0.08, (4, 2)), random.uniform(0, 255, (4, 3))
    for k in range(count):
        frame = back.copy()
        for (u, v), c in zip(speed, colour, strict=True):
            inside = (x - 0.5 - 0.35 * np.sin(u * k)) ** 2 + (y - 0.5 - 0.35 * np.cos(v * k)) ** 2 < 0.01
            frame[inside] = c
        out[k] = np.clip(frame + noise * random.standard_normal(frame.shape), 0, 255)
    return out


class Item:
    """A LeRobotDataset whose items are called as ours."""

    def __init__(self, data):
        self.data = data

    def __getitem__(self, number: int) -> dict:
        found = self.data[number]
        return {"obs": found["observation.state"], "action": found["action"], "obs.front": found[KEY]}


def lerobot_make(root: Path, episodes: list, video: bool):
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

    features = {
        "observation.state": {"dtype": "float32", "shape": (STATE,), "names": None},
        "action": {"dtype": "float32", "shape": (ACTION,), "names": None},
        KEY: {
            "dtype": "video" if video else "image",
            "shape": (SIDE, SIDE, 3),
            "names": ["height", "width", "channels"],
        },
    }
    data = LeRobotDataset.create("bench/cameras", fps=FPS, features=features, root=root, use_videos=video)
    for one in episodes:
        for state, action, frame in zip(one.obs["state"], one.action, one.obs["front"], strict=False):
            data.add_frame({"observation.state": state, "action": action, KEY: frame, "task": "bench"})
        data.save_episode()
    data.finalize()


def lerobot_open(root: Path) -> Item:
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

    past = [k / FPS for k in range(1 - TO, 1)]
    stamps = {"observation.state": past, KEY: past, "action": [k / FPS for k in range(TA)]}
    return Item(LeRobotDataset("bench/cameras", root=root, delta_timestamps=stamps, video_backend="pyav"))


def ours(corpus, cache: Path):
    """The source that trains, and how long it took to decode the camera's window cache."""
    spent = timed(lambda: corpus.windows(corpus.at("latest"), ("obs.front",), cache=cache))
    return made(corpus, cache, kept=False, cameras=("obs.front",)), spent


def as_lerobot(batch: dict) -> dict:
    """A batch of ours in LeRobot's form: [B, To, 3, H, W] float32 in 0..1."""
    frames = batch["obs.front"].permute(0, 1, 4, 2, 3).contiguous().float().div_(255)
    return {**batch, "obs.front": frames}


def stream(source, pairs: np.ndarray, workers: int) -> Iterator[dict]:
    from torch.utils.data import DataLoader

    from flywheel.rl.source import Offline

    if isinstance(source, Offline):
        source.workers = workers
        return batches(source, len(pairs) // BATCH)
    numbers = (pairs[:, 0] * STEPS + pairs[:, 1]).tolist()
    return iter(DataLoader(source, batch_size=BATCH, sampler=numbers, num_workers=workers))


def rate(source, pairs: np.ndarray, workers: int, batches: int, convert: bool) -> float:
    """Samples a second, from the first batch on."""
    found = stream(source, pairs[: (batches + 1) * BATCH], workers)
    next(found)

    def consume() -> None:
        for batch in found:
            batch = as_lerobot(batch) if convert else batch

    return batches * BATCH / timed(consume)


def compare(name: str, peer: Item, source, pairs: np.ndarray, repeats: int) -> dict[str, float]:
    """Equality over three batches, then rates. LeRobot's last step is not ours where it recorded: no observation
    comes after it."""
    inside = np.split(pairs[: 3 * BATCH, 1] < STEPS - TA - 1, 3)
    several = stream(source, pairs[: 3 * BATCH], 0), stream(peer, pairs[: 3 * BATCH], 0), inside
    for one, other, same in zip(*several, strict=True):
        one = {key: value[same] for key, value in as_lerobot(one).items()}
        other = {key: value[same] for key, value in other.items()}
        for key in ("obs", "action", "obs.front"):
            value = one[key]
            if value.shape != other[key].shape or not value.equal(other[key]):
                raise SystemExit(f"{name}: LeRobot gave another {key} than flywheel; nothing was timed")
    found: dict[str, float] = {}
    for workers in (0, 2):
        rates: dict[str, list[float]] = {"uint8": [], "float32": [], "lerobot": []}
        for _ in range(repeats):
            rates["uint8"].append(rate(source, pairs, workers, 200, False))
            rates["float32"].append(rate(source, pairs, workers, 200, True))
            rates["lerobot"].append(rate(peer, pairs, workers, 4, False))
        best = {kind: max(values) for kind, values in rates.items()}
        found[f"lerobot, {name}, {workers} workers: samples/s"] = best["lerobot"]
        for kind in ("uint8", "float32"):
            found[f"flywheel, {name}, {workers} workers, {kind}: samples/s"] = best[kind]
            found[f"flywheel / lerobot, {name}, {workers} workers, {kind} (target >= {TARGET})"] = (
                best[kind] / best["lerobot"]
            )
    return found


class Ram2(Ram):
    """The same transitions and the newest frame of each camera, gathered by hand from arrays of all steps."""

    def __init__(self, episodes: list, pairs: np.ndarray):
        super().__init__(episodes, pairs)
        self.frames = {name: np.concatenate([one.obs[name] for one in episodes]) for name in EYES}

    def __getitem__(self, number: int) -> dict:
        import torch

        episode, step = self.pairs[number * BATCH : (number + 1) * BATCH].T
        at = (episode * (STEPS + 1) + step)[:, None]
        return super().__getitem__(number) | {
            f"obs.{name}": torch.from_numpy(frames.take(at, 0)) for name, frames in self.frames.items()
        }


class Item2(Item):
    """A LeRobotDataset of two cameras whose items are called as ours."""

    def __getitem__(self, number: int) -> dict:
        found = self.data[number]
        named = {"obs": found["observation.state"], "action": found["action"]}
        return named | {f"obs.{name}": found[f"observation.images.{name}"] for name in EYES}


def channels_first(batch: dict) -> dict:
    """A batch of ours with its frames in LeRobot's form: [B, 1, 3, H, W] float32 in 0..1."""
    frames = {k: v.permute(0, 1, 4, 2, 3).contiguous().float().div_(255) for k, v in batch.items() if k[4:] in EYES}
    return {**batch, **frames}


def two_data(folder: Path, count: int):
    """Episodes with two cameras: themselves, their corpus and a LeRobotDataset of images."""
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

    from flywheel.corpus import Corpus

    shots = [[scene(STEPS + 1, 2 * n + k, 0.0, SMALL) for k in range(2)] for n in range(count)]
    plain = make_episodes(count, 0)
    episodes = [
        one.replace(obs={**one.obs, **dict(zip(EYES, s, strict=True))}) for one, s in zip(plain, shots, strict=True)
    ]
    corpus = Corpus(folder / "two", create=True)
    corpus.append(episodes)
    camera = {"dtype": "image", "shape": (SMALL, SMALL, 3), "names": ["height", "width", "channels"]}
    features = {
        "observation.state": {"dtype": "float32", "shape": (STATE,), "names": None},
        "action": {"dtype": "float32", "shape": (ACTION,), "names": None},
        **{f"observation.images.{name}": camera for name in EYES},
    }
    place = folder / "lerobot2"
    data = LeRobotDataset.create("bench/two", fps=FPS, features=features, root=place, use_videos=False)
    for one in episodes:
        for t, action in enumerate(one.action):
            frames = {f"observation.images.{name}": one.obs[name][t] for name in EYES}
            data.add_frame({"observation.state": one.obs["state"][t], "action": action, **frames, "task": "bench"})
        data.save_episode()
    data.finalize()
    stamps = {"observation.state": [k / FPS for k in range(1 - TO, 1)], "action": [k / FPS for k in range(TA)]}
    stamps |= {f"observation.images.{name}": [0.0] for name in EYES}
    return episodes, corpus, Item2(LeRobotDataset("bench/two", root=place, delta_timestamps=stamps))


def two(folder: Path, count: int, repeats: int) -> dict[str, float]:
    """Samples a second of processor time, and ratios to numpy and LeRobotDataset."""
    os.environ["HF_HOME"] = str(folder / "hf")
    import torch
    from torch.utils.data import DataLoader

    torch.set_num_threads(1)
    episodes, corpus, peer = two_data(folder, count)
    fields = tuple(f"obs.{name}" for name in EYES)
    kept, mapped = (made(corpus, folder / "cache", k, cameras=fields, frames=1) for k in (True, False))
    pairs = listed(kept, 401)
    ram, numbers = Ram2(episodes, pairs), (pairs[:, 0] * STEPS + pairs[:, 1]).tolist()

    def gathered(number: int) -> Iterator[dict]:
        return (ram[k] for k in range(number))

    def loaded(number: int) -> Iterator[dict]:
        return iter(DataLoader(peer, batch_size=BATCH, sampler=numbers[: number * BATCH], num_workers=0))

    for one, other, bare, theirs in zip(batches(kept, 3), batches(mapped, 3), gathered(3), loaded(3), strict=True):
        wrong = [key for key in bare if not (one[key].equal(bare[key]) and other[key].equal(bare[key]))]
        wrong += [key for key in ("obs", *fields) if not channels_first(one)[key].equal(theirs[key])]
        if wrong:
            raise SystemExit(f"{wrong} differ; nothing was timed")
    readers = {
        "kept": (lambda n: batches(kept, n), 400),
        "mapped": (lambda n: batches(mapped, n), 400),
        "numpy": (gathered, 400),
        "kept, float32": (lambda n: map(channels_first, batches(kept, n)), 100),
        "lerobot": (loaded, 4),
    }
    best = dict.fromkeys(readers, 0.0)
    for _ in range(repeats):
        for name, (reader, number) in readers.items():
            found = reader(number + 1)
            next(found)
            begun = time.process_time()
            for batch in found:  # noqa: B007
                pass
            best[name] = max(best[name], number * BATCH / (time.process_time() - begun))
    out = {f"two cameras, {name}: samples/s": rate for name, rate in best.items()}
    for name in ("kept", "mapped"):
        out[f"two cameras, {name} / numpy (target >= {TWO['numpy']})"] = best[name] / best["numpy"]
    for name in ("kept", "mapped", "kept, float32"):
        out[f"two cameras, {name} / lerobot (target >= {TWO['lerobot']})"] = best[name] / best["lerobot"]
    return out


def on_disk(folder: Path, frames: list[np.ndarray]) -> dict[str, float]:
    """Bytes a frame: as they are, in a corpus (raw, and JPEG as a camera gives it), as LeRobot's PNG and as its
    video."""
    import io

    from PIL import Image

    from flywheel import frames as encoded
    from flywheel.corpus import Corpus

    def jpeg(frame: np.ndarray) -> bytes:
        data = io.BytesIO()
        Image.fromarray(frame).save(data, "JPEG", quality=95)
        return data.getvalue()

    plain = make_episodes(len(frames), 5)
    raw = [one.replace(obs={**one.obs, "front": shown}) for one, shown in zip(plain, frames, strict=True)]
    packed = [one.replace(obs={**one.obs, "front": encoded.pictures(map(jpeg, one.obs["front"]))}) for one in raw]
    found, count = {"in memory": float(frames[0][0].nbytes)}, sum(map(len, frames))
    for name, episodes in (("no camera", plain), ("corpus, raw", raw), ("corpus, JPEG 95", packed)):
        Corpus(folder / name, create=True).append(episodes)
        found[name] = size(folder / name) / count
    nothing = found.pop("no camera")
    found |= {name: value - nothing for name, value in found.items() if name.startswith("corpus")}
    for name, video in (("lerobot, PNG", False), ("lerobot, video", True)):
        lerobot_make(folder / name, raw, video)
    lerobot_numbers = size(folder / "lerobot, video") - size(folder / "lerobot, video" / "videos")
    found["lerobot, video"] = size(folder / "lerobot, video" / "videos") / count
    found["lerobot, PNG"] = (size(folder / "lerobot, PNG") - lerobot_numbers) / count
    return found


def bench(folder: Path, count: int, repeats: int) -> dict[str, float]:
    os.environ["HF_HOME"] = str(folder / "hf")
    import torch
    from flywheel_datasets import lerobot_v3

    from flywheel.corpus import Corpus

    torch.set_num_threads(1)
    found: dict[str, float] = {}
    shots = [scene(STEPS + 1, number, 0.0) for number in range(count)]
    episodes = [one.replace(obs={**one.obs, "front": s}) for one, s in zip(make_episodes(count, 0), shots, strict=True)]
    corpus = Corpus(folder / "raw", create=True)
    found["writing raw frames: frames/s"] = count * STEPS / timed(lambda: corpus.append(episodes))
    slow = timed(lambda: lerobot_make(folder / "images", episodes, video=False))
    found["writing, lerobot, images: frames/s"] = count * STEPS / slow
    source, spent = ours(corpus, folder / "cache")
    pairs = listed(source, 201)
    found["window cache from raw frames: frames/s"] = count * (STEPS + 1) / spent
    found["window cache: bytes a frame"] = float(source.cameras["obs.front"][0].bytes)
    found |= compare("images", lerobot_open(folder / "images"), source, pairs, repeats)

    found["writing, lerobot, video: frames/s"] = (
        count * STEPS / timed(lambda: lerobot_make(folder / "video", episodes, video=True))
    )
    kept = Corpus(folder / "kept", create=True)
    read = timed(lambda: kept.append(one.replace(task="bench") for one in lerobot_v3.read(folder / "video")))
    found["ingesting lerobot's video as it is: frames/s"] = count * STEPS / read
    source, spent = ours(kept, folder / "cache")
    pairs = listed(source, 201)
    found["window cache from video: frames/s"] = count * STEPS / spent
    found |= compare("video", lerobot_open(folder / "video"), source, pairs, repeats)
    for name, noise in (("drawn", 0.0), ("noisy", 2.0)):
        inside = on_disk(folder / name, [scene(STEPS + 1, number, noise) for number in range(4)])
        found |= {f"on disk, {name}, {kind}: bytes a frame": value for kind, value in inside.items()}
    return found


def main() -> None:
    found, args = measured(__doc__, bench, 20, two=two)
    for name, value in found.items():
        print(f"{name:72} {f'{value:,.0f}' if value >= 100 else f'{value:.3g}':>12}")
    names = ("lerobot", "torch", "numpy", "zarr", "av", "pillow")
    print("versions: " + ", ".join(f"{name} {importlib.metadata.version(name)}" for name in names))
    if args.json:
        print(json.dumps(found))


if __name__ == "__main__":
    main()
