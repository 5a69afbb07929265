"""Diffusion policy's replay buffer, one folder replay_buffer.zarr in Zarr v2: data/* [N, ...] and meta/episode_ends.

The final observation of each episode stands in meta/final.*, the rest of what flywheel knows in the group's attributes.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from flywheel.episode import Episode
from flywheel.stages import _export_survey

NAME = "replay_buffer_zarr"
CHUNK_BYTES, FLUSH_BYTES = 2**20, 32 * 2**20


def write(folder: Path, episodes: Iterable[Episode], seen: _export_survey.Survey, cfg: dict[str, Any]) -> None:
    """folder/replay_buffer.zarr; arrays grow by some 32 MB at a time."""
    import zarr
    from numcodecs import Blosc

    kept = _export_survey.keep(seen, lambda s: True, "")
    _export_survey.decoded(seen)
    taken = {"action", "reward"}
    kept = {s.key if s.kind == "obs" and s.key not in taken else s.name: s for s in kept}
    seen.aside.append("final observation (meta/final.*), origin, seed, fps, terminated, success and meta (attributes)")
    root = zarr.open_group(str(folder / "replay_buffer.zarr"), mode="w", zarr_format=2)

    def create(name: str, stream: _export_survey.Stream):
        wide = max(1, int(np.prod(stream.shape))) * np.dtype(stream.dtype).itemsize
        chunks = (max(1, min(8192, CHUNK_BYTES // wide)), *stream.shape)
        packer = Blosc(cname="lz4", clevel=5, shuffle=Blosc.SHUFFLE)
        return root.create_array(
            name, shape=(0, *stream.shape), chunks=chunks, dtype=stream.dtype, compressors=packer, fill_value=0
        )

    stored = {f"data/{name}": (create(f"data/{name}", stream), []) for name, stream in kept.items()}
    stored |= {f"meta/final.{n}": (create(f"meta/final.{n}", s), []) for n, s in kept.items() if s.longer}

    def flush() -> None:
        for array, parts in stored.values():
            array.append(np.concatenate(parts))
            parts.clear()

    ends, records, waiting = [0], [], 0
    for episode in episodes:
        steps = len(episode)
        for name, stream in kept.items():
            value = np.asarray(stream.of(episode))
            stored[f"data/{name}"][1].append(value[:steps])
            if stream.longer:
                stored[f"meta/final.{name}"][1].append(value[steps:])
            waiting += value.nbytes
        ends.append(ends[-1] + steps)
        records.append(_export_survey.record(episode))
        if waiting > FLUSH_BYTES:
            flush()
            waiting = 0
    if waiting:
        flush()
    ends = ends[1:]
    root.create_array("meta/episode_ends", data=np.array(ends, np.int64), chunks=(len(ends),))
    root.attrs["flywheel"] = {"streams": _export_survey.streams(kept), "episodes": records}
