"""Units as data cards name them: the first word of "m, controller goal less position" or "rad/s"."""

from __future__ import annotations

import re

from flywheel.episode import EpisodeError

UNITS = (
    "m", "cm", "mm", "rad", "deg", "m/s", "cm/s", "mm/s", "rad/s", "deg/s", "m/s2", "rad/s2", "N", "Nm", "kg", "s", "Hz", "A", "V", "K", "Pa",
    "px", "cos", "sin", "quaternion", "one-hot", "1",
)  # fmt: skip


def unit(text: object, where: str) -> str:
    """The unit that `text` begins with; EpisodeError, beginning with `where`, for a word that is none."""
    word = re.split(r"[\s,;:]", str(text).strip(), maxsplit=1)[0]
    if word not in UNITS:
        raise EpisodeError(
            f"{where}: unit {str(text)!r}; expected one of {', '.join(UNITS)} as its first word (1: no unit)"
        )
    return word
