"""What data cards say: a YAML file of a person, and units, the first word of "m, controller goal less position" or
"rad/s"."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from flywheel.episode import EpisodeError

LARGEST = 2**20  # bytes of a card
UNITS = (
    "m",
    "cm",
    "mm",
    "rad",
    "deg",
    "m/s",
    "cm/s",
    "mm/s",
    "rad/s",
    "deg/s",
    "m/s2",
    "rad/s2",
    "N",
    "Nm",
    "kg",
    "s",
    "Hz",
    "A",
    "V",
    "K",
    "Pa",
    "px",
    "cos",
    "sin",
    "quaternion",
    "one-hot",
    "1",
)


def unit(text: object, where: str) -> str:
    """The unit that `text` begins with; EpisodeError, beginning with `where`, for a word that is none."""
    word = re.split(r"[\s,;:]", str(text).strip(), maxsplit=1)[0]
    if word not in UNITS:
        raise EpisodeError(
            f"{where}: unit {str(text)[:80]!r}; expected one of {', '.join(UNITS)} as its first word (1: no unit)"
        )
    return word


def card(path: Path) -> dict[str, Any]:
    """A card's mapping; EpisodeError for other YAML, and for aliases, of which a few letters may stand for
    gigabytes."""
    import yaml

    class Plain(yaml.SafeLoader):
        def compose_node(self, parent, index):
            if self.check_event(yaml.AliasEvent):
                raise EpisodeError(f"{path}: an alias (*NAME); write out what it stands for")
            return super().compose_node(parent, index)

    if (size := path.stat().st_size) > LARGEST:
        raise EpisodeError(f"{path}: a card of {size:,} bytes; expected at most {LARGEST:,}")
    try:
        told = yaml.load(path.read_text(encoding="utf-8"), Plain)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise EpisodeError(f"{path}: no YAML: {str(error)[:500]}") from error
    if not isinstance(told, dict):
        raise EpisodeError(f"{path}: found {type(told).__name__}; expected a card's keys and values")
    return told
