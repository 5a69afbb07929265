"""A success and a failure as moving pictures: animated WebP inside the page."""

from __future__ import annotations

import base64
import io
import math
from typing import Any, NamedTuple

import numpy as np
from markupsafe import Markup

from flywheel.env import scoring
from flywheel.log import say

EVERY = 2  # control steps a frame
BYTES = 900_000  # a clip
LEAST, MOST = 2.0, 8.0  # s: a shorter one is slowed down, a longer one leaves frames out
TRIES = 3


class Clip(NamedTuple):
    """One episode: an animation and its last frame as data URIs."""

    moving: Markup
    still: Markup
    seed: int


def choose(columns: dict[str, np.ndarray], first: np.ndarray | None = None) -> dict[str, list[int]]:
    """Choose seeds to film, {"success", "failure"}: of middling length; those marked in `first` [n] before others."""
    seed, success = columns["seed"], np.asarray(columns["success"], bool)
    middle = np.median(columns["steps"][success]) if success.any() else 0
    first = np.zeros(len(seed), bool) if first is None else first
    good = sorted(np.flatnonzero(success), key=lambda i: (abs(columns["steps"][i] - middle), i))
    bad = sorted(np.flatnonzero(~success), key=lambda i: (not first[i], i))
    return {"success": [int(seed[i]) for i in good[:TRIES]], "failure": [int(seed[i]) for i in bad[:TRIES]]}


def film(
    place, ref: str, task: dict[str, Any], columns: dict[str, np.ndarray], seeds: dict[str, list[int]]
) -> dict[str, Clip | str]:
    """Film the first of `seeds` {kind: [seed]} that ends as it was scored; a text says why there is no clip."""
    import flywheel_sim  # noqa: F401 (tells MuJoCo how to draw without a screen, before it is imported)

    from flywheel.env import drawn, make

    try:
        env = drawn(make(task, num_envs=1, threads=1))
        try:
            env.reset_at(0, int(columns["seed"][0]))
            env.frame(0, 320, 240)  # is there anything to draw with?
            policy = place.load(ref)
            steps = dict(zip(columns["seed"].tolist(), columns["steps"].tolist(), strict=True))
            return {kind: _clip(policy, env, few, kind, steps) for kind, few in seeds.items()}
        finally:
            env.close()
    except (RuntimeError, ValueError, OSError, ImportError) as error:
        say(f"  no clip: {error}")
        return dict.fromkeys(seeds, f"No clip: {error}")


def _clip(policy, env, seeds: list[int], kind: str, steps: dict[int, int]) -> Clip | str:
    """Film the first of `seeds` that ends when drawn as it did when scored."""
    for seed in seeds:
        frames = scoring.clip(policy, env, seed, EVERY)
        if frames and len(frames) == -(-steps[seed] // EVERY):
            return Clip(*encode(frames, min((env.fps or 20) / EVERY, len(frames) / LEAST)), seed)
    if not seeds:
        return f"There was no {kind} to show."
    return f"No clip: none of {len(seeds)} tries ended in a {kind} again."


def encode(frames: list[np.ndarray], rate: float) -> tuple[Markup, Markup]:
    """Encode frames [H, W, 3] uint8, `rate` a second, as an animated WebP of at most BYTES and a still: data URIs."""
    from PIL import Image

    images = [Image.fromarray(frame) for frame in frames]
    images, step = images[:: max(1, math.ceil(len(images) / rate / MOST))], 1
    for quality in (60, 40, 25, 25, 25):
        some = images[::step]
        pause = [max(20, round(1000 * step / rate))] * (len(some) - 1) + [1500]
        file = io.BytesIO()
        options = {"append_images": some[1:], "duration": pause, "loop": 0, "quality": quality, "method": 4}
        some[0].save(file, "WEBP", save_all=True, **options)
        if file.tell() <= BYTES:
            break
        step += quality <= 40
    still = io.BytesIO()
    images[-1].save(still, "WEBP", quality=60)
    head = "data:image/webp;base64,"  # nothing in it means anything to HTML, and it must not be cut: no text to escape
    return tuple(Markup(head + base64.b64encode(image.getvalue()).decode()) for image in (file, still))
