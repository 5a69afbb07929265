"""Frames for the tests of cameras: raw ones, pictures and a video, small and different from each other."""

import io

import av
import numpy as np
from corpus_cases import episode
from PIL import Image

from flywheel import frames

SIZE = (16, 24)  # H, W


def raw(seed, rows, size=SIZE):
    """[rows, H, W, 3] uint8 of blocks, so that a codec has something to keep."""
    random = np.random.default_rng(seed)
    return np.repeat(np.repeat(random.integers(0, 256, (rows, size[0] // 8, size[1] // 8, 3), np.uint8), 8, 1), 8, 2)


def encoded(pixels, kind="jpeg"):
    """The bytes of each frame of [N, H, W, 3]."""
    out = []
    for frame in pixels:
        data = io.BytesIO()
        Image.fromarray(frame).save(data, kind)
        out.append(data.getvalue())
    return out


def seen(seed):
    """`episode(seed)`; every third has a raw camera and one of JPEG pictures."""
    one = episode(seed)
    if seed % 3:
        return one
    pixels = raw(seed, len(one) + 1)
    return one.replace(obs={**one.obs, "sim": pixels, "top": frames.pictures(encoded(pixels))})


def film(path, pixels, rate=10, codec="libx264", gop=4):
    """A video file of [N, H, W, 3], lossy as cameras' are."""
    with av.open(str(path), "w", format="mp4") as file:
        stream = file.add_stream(codec, rate=rate)
        stream.height, stream.width = pixels.shape[1:3]
        stream.pix_fmt = "yuv420p"
        stream.options = {"g": str(gop), "bf": "0" if codec == "mpeg4" else "2"}
        for frame in pixels:
            file.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        file.mux(stream.encode())
    return path


def decoded(path):
    """[N, H, W, 3]: the whole video, by PyAV alone."""
    with av.open(str(path)) as file:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in file.decode(video=0)])


def with_cameras(folder, seed=0, count=4):
    """`count` episodes with a raw camera `sim`, pictures `top` and a video `front` that all of them share."""
    plain = [episode(seed + number) for number in range(count)]
    ends = np.cumsum([len(one) + 1 for one in plain])
    path = film(folder / f"front-{seed}.mp4", raw(seed + 100, int(ends[-1])))
    out = []
    for number, one in enumerate(plain):
        rows = len(one) + 1
        cameras = {
            "sim": raw(seed + number, rows),
            "top": frames.pictures(encoded(raw(seed + number + 50, rows))),
            "front": frames.video(path, (ends[number] - rows) / 10, rows, 10.0),
        }
        out.append(one.replace(obs={**one.obs, **cameras}))
    return out, path
