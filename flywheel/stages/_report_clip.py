"""A success and a failure as moving pictures: animated WebP inside the page."""

from __future__ import annotations

import base64
import io
from typing import Any

import numpy as np

from flywheel.log import say
from flywheel.stages import _inputs, evaluate

EVERY = 2  # control steps a frame
BYTES = 900_000  # a clip
TRIES = 3


def choose(columns: dict[str, np.ndarray], first: np.ndarray | None = None) -> dict[str, list[int]]:
    """{"success", "failure": seeds}: successes of middling length; failures, those marked in `first` [n] bool before others."""
    seed, won = columns["seed"], np.asarray(columns["success"], bool)
    middle = np.median(columns["steps"][won]) if won.any() else 0
    good = sorted(np.flatnonzero(won), key=lambda i: (abs(columns["steps"][i] - middle), i))
    first = np.zeros(len(seed), bool) if first is None else first
    bad = sorted(np.flatnonzero(~won), key=lambda i: (not first[i], i))
    return {"success": [int(seed[i]) for i in good[:TRIES]], "failure": [int(seed[i]) for i in bad[:TRIES]]}


def film(
    place, ref: str, config: dict[str, Any], columns: dict[str, np.ndarray], seeds: dict[str, list[int]]
) -> dict[str, Any]:
    """{"success", "failure": (data URI, still URI, seed) or a text that says why there is none}."""
    import flywheel_sim  # noqa: F401 (tells MuJoCo how to draw without a screen, before it is imported)

    from flywheel.env import drawn

    try:
        env = drawn(_inputs.open_env(config, 1))
        try:
            env.reset_at(0, int(columns["seed"][0]))
            env.frame(0, 320, 240)  # is there anything to draw with?
            policy = place.load(ref)
            rate = (env.fps or 20) / EVERY
            steps = dict(zip(columns["seed"].tolist(), columns["steps"].tolist(), strict=True))
            return {kind: _clip(policy, env, few, kind, steps, rate) for kind, few in seeds.items()}
        finally:
            env.close()
    except (RuntimeError, ValueError, OSError, ImportError) as error:
        say(f"  no clip: {error}")
        return dict.fromkeys(seeds, f"No clip: {error}")


def _clip(policy, env, seeds: list[int], kind: str, steps: dict[int, int], rate: float):
    """The first of `seeds` that ends when drawn as it did when scored."""
    for seed in seeds:
        frames = evaluate.clip(policy, env, seed, EVERY)
        if frames and len(frames) == -(-steps[seed] // EVERY):
            uri, still = encode(frames, rate)
            return uri, still, seed
    return (
        f"There was no {kind} to show."
        if not seeds
        else f"No clip: none of {len(seeds)} tries ended in a {kind} again."
    )


def encode(frames: list[np.ndarray], rate: float) -> tuple[str, str]:
    """frames [H, W, 3] uint8 at `rate` a second -> an animated WebP and its last frame as data URIs, of at most BYTES."""
    from PIL import Image

    images = [Image.fromarray(frame) for frame in frames]
    step, data = 1, b""
    for quality in (60, 40, 25, 25, 25):
        some = images[::step]
        pause = [round(1000 * step / rate)] * (len(some) - 1) + [1500]
        file = io.BytesIO()
        some[0].save(
            file, "WEBP", save_all=True, append_images=some[1:], duration=pause, loop=0, quality=quality, method=4
        )
        data = file.getvalue()
        if len(data) <= BYTES:
            break
        step += quality <= 40
    still = io.BytesIO()
    images[-1].save(still, "WEBP", quality=60)
    return tuple("data:image/webp;base64," + base64.b64encode(d).decode() for d in (data, still.getvalue()))
