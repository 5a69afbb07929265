"""What an export is about to write: its streams, who has them, and what a format cannot hold."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from flywheel import obs
from flywheel.corpus.media import is_camera
from flywheel.corpus.segment import schema
from flywheel.episode import Episode
from flywheel.frames import Frames


@dataclass(frozen=True)
class Stream:
    """An array that every exported episode has: "obs.state", "action", "reward", "extras.env_reward"."""

    name: str
    dtype: str
    shape: tuple[int, ...]  # of a row
    longer: bool  # T+1 rows instead of T
    codecs: frozenset[tuple[str, str]] = frozenset()  # of a camera: how its episodes keep it, and its channels

    @property
    def kind(self) -> str:
        return self.name.partition(".")[0]

    @property
    def key(self) -> str:
        return self.name.partition(".")[2] or self.name

    @property
    def codec(self) -> str:
        return ", ".join(
            f"{codec} ({channels})" if channels != "rgb" else codec for codec, channels in sorted(self.codecs)
        )

    def of(self, episode: Episode):
        """This stream's array [T or T+1, ...] of an episode."""
        part = getattr(episode, self.kind)
        return part if self.kind in ("action", "reward") else part[self.key]


@dataclass
class Survey:
    """What the chosen episodes have in common, and what some of them have besides; `videos` {stream: frames of each
    episode}."""

    streams: list[Stream]
    odd: dict[str, int]  # {stream that is not in all, or not in one form: episodes that have it}
    fps: Counter
    unknown: int  # episodes whose success nobody knows
    start: int  # episodes with a simulator state to begin from
    lost: list[str] = field(default_factory=list)
    aside: list[str] = field(default_factory=list)
    videos: dict[str, list[Frames]] = field(default_factory=dict)
    names: list[str] | None = None  # of the numbers of obs.state, where all episodes say what they are (flywheel.obs)


def survey(chosen) -> Survey:
    """Read every episode once: which streams all of them have in one form; ValueError if states or actions differ."""
    forms: dict[str, Counter] = {}
    codecs: dict[str, set] = {}
    seen, said = Survey([], {}, Counter(), 0, 0), []
    for episode in chosen:
        shape_of = schema(episode)
        for name, (dtype, shape, longer) in shape_of["rows"].items():
            forms.setdefault(name, Counter())[dtype, tuple(shape), bool(longer)] += 1
            if is_camera(name, dtype, shape):
                codecs.setdefault(name, set()).add(("raw", "rgb"))
        for name, (codec, shape, channels) in shape_of.get("frames", {}).items():
            forms.setdefault(name, Counter())["|u1", tuple(shape), True] += 1
            codecs.setdefault(name, set()).add((codec, channels))
            if codec == "mp4":
                seen.videos.setdefault(name, []).append(episode.obs[name.removeprefix("obs.")])
        seen.fps[episode.fps] += 1
        seen.unknown += episode.success is None
        seen.start += bool(episode.start)
        said += [one] if (one := episode.meta.get("obs_shapes")) not in said else []
    seen.names = obs.names(obs.read(said[0])) if len(said) == 1 and said[0] else None
    for name, counts in forms.items():
        if len(counts) == 1 and counts.total() == len(chosen):
            seen.streams.append(Stream(name, *next(iter(counts)), frozenset(codecs.get(name, ()))))
        elif name in ("action", "reward", "obs.state"):
            words = ", ".join(f"{n} episodes with {dtype} {list(shape)}" for (dtype, shape, _), n in counts.items())
            raise ValueError(f"{name} differs: {words}; one export has one robot. Choose with task= and origin=")
        else:
            seen.odd[name] = counts.total()
    return seen


def keep(seen: Survey, holds, reason: str) -> list[Stream]:
    """The streams that a format can hold (`holds(stream)`); the others are noted as lost, with the reason."""
    for name, count in seen.odd.items():
        seen.lost.append(f"{name}: only {count} of {seen.fps.total()} episodes have it in one form")
    for stream in seen.streams:
        if not holds(stream):
            seen.lost.append(f"{stream.name} {stream.dtype} {list(stream.shape)}: {reason}")
    if seen.start:
        seen.lost.append(f"start, the simulator state to replay from, of {seen.start} episodes")
    return [stream for stream in seen.streams if holds(stream)]


def decoded(seen: Survey) -> None:
    """Note the cameras of a format that only has arrays for them."""
    for stream in seen.streams:
        if stream.codecs - {("raw", "rgb")}:
            seen.lost.append(f"{stream.name}: {stream.codec} as it is (its pixels are there)")


def record(episode: Episode) -> dict[str, Any]:
    """What flywheel knows of an episode besides its arrays, as JSON (see datasets/_exported.py)."""
    names = ("task", "origin", "seed", "fps", "success", "terminated", "meta")
    return {name: getattr(episode, name) for name in names}


def streams(kept: dict[str, Stream]) -> dict[str, list]:
    """{stored name: stream} as datasets/_exported.py reads it."""
    return {name: [s.kind, s.key, "T+1" if s.longer else "T", list(s.shape)] for name, s in kept.items()}
