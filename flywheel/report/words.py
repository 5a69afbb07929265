"""Numbers, times and foreign text as a person reads them; every function returns plain text, which templates escape."""

from __future__ import annotations

import re
from typing import Any

CONTROL = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\ud800-\udfff]")


def clean(value: Any, most: int = 600) -> str:
    """Any value as text of at most `most` characters, without those that control a terminal."""
    text = "–" if value is None else CONTROL.sub("\N{REPLACEMENT CHARACTER}", str(value))
    return text if len(text) <= most else text[: most - 1] + "…"


def rate(value: float | None) -> str:
    """0.875 as 0.88."""
    return "–" if value is None else f"{value:.2f}"


def p_value(p: float | None) -> str:
    """3.2e-12 as 3e-12, 0.0412 as 0.041."""
    if p is None:
        return "–"
    return f"{p:.0e}" if p < 1e-4 else f"{p:.2g}" if p < 0.995 else "1"


def size(count: float) -> str:
    """1500 bytes as 1.5 kB."""
    units = ("B", "kB", "MB", "GB")
    step = 0
    while count >= 1000 and step < 3:
        count, step = count / 1000, step + 1
    return f"{count:.{0 if step == 0 or count >= 100 else 1}f} {units[step]}"


def moment(stamp: str) -> str:
    """2025-11-22T06:41:07Z as 2025-11-22 06:41 UTC."""
    return stamp[:16].replace("T", " ") + " UTC" if len(stamp) >= 16 else stamp
