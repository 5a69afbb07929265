"""Recordings that an executor reads, some files at once; what is taken, and in which order, is decided here, as if they
were read one after the other."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from flywheel import executors
from flywheel.episode import Episode, EpisodeError, passing
from flywheel.intake.accept import carded, every
from flywheel.intake.recordings import layout

AGAIN = "may be read later"


def recordings(paths: list[Path], options: dict[str, Any], args) -> Iterator[tuple[Path, Iterator]]:
    """Each file with its (episode or error, card). Another executor than local reads as many files at once as it has
    workers, whole: that many are in memory, and it must see the same folder."""
    read = layout(args.format).read
    if args.executor == "local":
        yield from ((path, carded(read, path, options, args)) for path in paths)
        return
    do = executors.bound(args.executor, args.workers, args.resources)
    together = args.workers or os.cpu_count() or 1
    for begin in range(0, len(paths), together):
        asked: list[tuple[str, str, dict[str, Any]]] = []
        held = [
            list(carded(read, path, options, args, _noting(args.format, asked)))
            for path in paths[begin : begin + together]
        ]
        several = iter(do(whole, asked))
        for path, found in zip(paths[begin : begin + together], held, strict=True):
            yield path, _filled(found, several)


def _noting(format: str, asked: list):
    """A reading that notes what is to be read, and yields its place."""

    def reading(path: Path, options: dict[str, Any]) -> Iterator[None]:
        asked.append((format, str(path), options))
        yield None

    return reading


def _filled(found: list, several: Iterator) -> Iterator:
    """What was read, in the place that stood for it."""
    for one, own in found:
        if one is None:
            yield from ((_unpacked(read), own) for read in next(several))
        else:
            yield one, own


def whole(format: str, path: str, options: dict[str, Any]) -> list[Episode | tuple[str, bool]]:
    """All of a file; of what could not be read its reason, and whether that may pass."""
    found = every(layout(format).read, Path(path), options)
    return [(str(one), passing(one)) if isinstance(one, EpisodeError) else one for one in found]


def _unpacked(read: Episode | tuple[str, bool]) -> Episode | EpisodeError:
    if isinstance(read, Episode):
        return read
    error = EpisodeError(read[0])
    if read[1]:
        error.__cause__ = OSError(errno.EAGAIN, AGAIN)
    return error
