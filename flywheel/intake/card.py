"""The data card of a recording, FILE.yaml beside it or card=: which keys make up the state, their sizes and units, the
rate.

    format: robomimic_hdf5
    rate_hz: 20
    obs_keys: {gripper_pos: {size: 3, unit: m}, cube_pos: {size: 3, unit: m}}     # side by side, in this order
    action: {dx: '-1..1, 2.5 cm at 1', gripper: -1 opens}                         # a word on each number, in order
    cameras: {front: {height: 96, width: 96}}                                     # those that are read; without it all

All of it is compared with what is read; other entries are for people. (`ros2_mcap` reads by a card of its own.)
"""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

from flywheel import bounds
from flywheel.episode import Episode, EpisodeError

RATE = 0.01  # that a rate may be off


def place(path: Path, named: str | None) -> Path | None:
    """Where the card of a recording lies, None where it has none; ValueError where the one that was named is not
    there."""
    if named and not Path(named).is_file():
        raise ValueError(f"card={named}: there is no such file; name a YAML file, or leave card= out")
    beside = Path(named) if named else path.with_suffix(".yaml")
    return beside if beside.is_file() and (named or bounds.within(path.parent, beside)) else None


class Card:
    """A checked card. EpisodeError where it is not one."""

    def __init__(self, path: Path, format_: str, units: dict[str, str]):
        """`units` {key: text} are those of the task, where it knows them."""
        from flywheel_datasets import _units

        self.path = path
        try:
            told = _units.card(path)
            self.sizes = {str(key): int(about["size"]) for key, about in (told.get("obs_keys") or {}).items()}
            said = {str(key): about["unit"] for key, about in (told.get("obs_keys") or {}).items()}
            self.cameras = {
                str(key): (int(about["height"]), int(about["width"]))
                for key, about in (told.get("cameras") or {}).items()
            }
            self.action, self.rate = [str(name) for name in told.get("action") or {}], float(told.get("rate_hz") or 0)
        except Exception as error:  # a person wrote it, or nobody
            raise EpisodeError(
                f"{path}: no data card: {error!r}; expected rate_hz, obs_keys {{KEY: {{size: N, unit: m}}}}, action "
                f"{{NAME: words}} and "
                "cameras {{NAME: {{height: H, width: W}}}}"
            ) from error
        if told.get("format") not in (None, format_):
            raise EpisodeError(
                f"{path}: a card of format {told['format']}, and this is read as {format_}; say format={told['format']}"
            )
        for key, text in said.items():
            if text == units.get(key):
                continue
            found = _units.unit(text, f"{path}: obs_keys.{key}")
            if key in units and found != _units.unit(units[key], f"task: {key}"):
                raise EpisodeError(
                    f"{path}: obs_keys.{key} is in {text!r} and the task observes it in {units[key]!r}; convert the "
                    "recording, or correct the card if it is wrong"
                )

    def options(self, read, options: dict[str, Any]) -> dict[str, Any]:
        """What the reader is told: the card's keys and, where it would only assume a rate, the card's rate."""
        known, more = inspect.signature(read).parameters, {}
        if self.sizes and "obs_keys" in known:
            more["obs_keys"] = list(self.sizes)
        if self.cameras and "cameras" in known:
            more["cameras"] = list(self.cameras)
        if self.rate and "fps" in known and known["fps"].default is not None:
            more["fps"] = self.rate
        return more | options

    def check(self, episode: Episode, asked: list[str] | None, where: str) -> Episode:
        """The episode, with the card's rate where it had none; EpisodeError for what the card says otherwise."""
        if unknown := [key for key in asked or () if self.sizes and key not in self.sizes]:
            raise EpisodeError(
                f"{where}: {self.path} has no {', '.join(unknown)}, which obs_keys asks for; it has "
                f"{', '.join(self.sizes)}"
            )
        sizes = {key: self.sizes[key] for key in asked or self.sizes} if self.sizes else {}
        width = episode.obs["state"].shape[1] if "state" in episode.obs else 0
        if sizes and width != sum(sizes.values()):
            listed = ", ".join(f"{key} {size}" for key, size in sizes.items())
            raise EpisodeError(
                f"{where}: the state has {width} numbers; expected {sum(sizes.values())}, as {self.path} says "
                f"({listed}). Correct the card "
                "or name other keys with obs_keys=[...]"
            )
        for key, size in self.cameras.items():
            if key in episode.obs and tuple(episode.obs[key].shape[1:3]) != size:
                raise EpisodeError(
                    f"{where}: camera {key} is {list(episode.obs[key].shape[1:3])} (height, width); expected "
                    f"{list(size)}, as {self.path} says; correct the card, or leave the camera out with cameras=[...]"
                )
        if self.action and episode.action.shape[1] != len(self.action):
            raise EpisodeError(
                f"{where}: action has {episode.action.shape[1]} numbers; expected {len(self.action)}, as {self.path} "
                f"says ({', '.join(self.action)}); correct the card, or record the action it describes"
            )
        if self.rate and episode.fps and abs(episode.fps / self.rate - 1) > RATE:
            raise EpisodeError(
                f"{where}: recorded at {episode.fps:g} Hz; expected {self.rate:g}, the rate_hz of {self.path}. Correct "
                "the card; fps= overrules the recording"
            )
        return episode if episode.fps or not self.rate else episode.replace(fps=self.rate)
