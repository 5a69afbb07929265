"""Trackio: a local board with the same keys as Weights & Biases. It keeps no artifacts: where they lie is a line of its
table `artifacts`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any


class Sink:
    """A run of Trackio."""

    def __init__(self, client):
        self.client = client
        self.kept: list[list[Any]] = []

    def numbers(self, kind: str, values: Mapping[str, float]) -> None:
        self.client.log({f"{kind}/{name}": value for name, value in values.items()})

    def table(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        self.client.log({name: self.client.Table(columns=list(columns), data=[list(row) for row in rows])})

    def video(self, name: str, path: Path) -> None:
        self.client.log({name: self.client.Video(str(path))})

    def artifact(self, name: str, type: str, path: Path | str, about: Mapping[str, Any]) -> None:
        self.kept.append([name, type, str(path), str(dict(about))])

    def close(self) -> None:
        if self.kept:
            self.table("artifacts", ["name", "type", "path", "about"], self.kept)
        self.client.finish()


def begin(settings: Mapping[str, Any], folder: Path) -> Sink:
    """Begin a run; ValueError where Trackio is missing."""
    try:
        import trackio as client
    except ModuleNotFoundError as error:
        raise ValueError(
            "log=trackio needs Trackio: pip install 'robot-flywheel[trackio]'; log=none goes without"
        ) from error
    told = {key: settings[key] for key in ("project", "name", "group", "config", "space_id") if settings.get(key)}
    told["config"] = {**told.get("config", {}), "job_type": settings.get("job_type"), "tags": settings.get("tags")}
    client.init(resume="allow", embed=False, **told)
    return Sink(client)
