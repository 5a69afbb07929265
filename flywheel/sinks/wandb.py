"""Weights & Biases. Without a key, and with no mode asked for, a run is kept offline and says so."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from flywheel.log import STEPS, say


class Sink:
    """A run of Weights & Biases."""

    def __init__(self, client, run):
        self.client, self.run = client, run
        for kind, step in STEPS.items():  # the axis that each kind of metric is drawn over
            run.define_metric(f"{kind}/{step}")
            run.define_metric(f"{kind}/*", step_metric=f"{kind}/{step}")

    def numbers(self, kind: str, values: Mapping[str, float]) -> None:
        told = {f"{kind}/{name}": value for name, value in values.items()}
        self.run.log(told)
        self.run.summary.update(told)

    def table(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        self.run.log({name: self.client.Table(columns=list(columns), data=[list(row) for row in rows])})

    def video(self, name: str, path: Path) -> None:
        self.run.log({name: self.client.Video(str(path), format=Path(path).suffix[1:])})

    def artifact(self, name: str, type: str, path: Path | str, about: Mapping[str, Any]) -> None:
        """By reference: the bytes stay where they are. Offline too, where nothing can be asked of the server."""
        made = self.client.Artifact(_title(name), type=type, metadata=dict(about))
        where = str(path) if "://" in str(path) else Path(path).absolute().as_uri()
        made.add_reference(where, name=Path(str(path)).name, checksum=Path(str(path)).is_file())
        self.run.log_artifact(made, aliases=["latest", _title(name).rpartition("-")[2]])

    def close(self) -> None:
        self.run.finish()


def begin(settings: Mapping[str, Any], folder: Path) -> Sink:
    """Begin a run; ValueError where Weights & Biases would not, with what to do."""
    import wandb as client

    told = {key: value for key, value in settings.items() if value is not None}
    if "mode" not in told and not os.environ.get("WANDB_MODE") and not client.api.api_key:
        say(f"  log=wandb: no key of Weights & Biases here: kept offline, `wandb sync {folder}/wandb/*` sends it")
        told["mode"] = "offline"
    try:
        return Sink(client, client.init(dir=str(folder), **told))
    except Exception as error:
        raise ValueError(
            f"log=wandb: Weights & Biases would not begin: {error}. `wandb login` first, or log.wandb.mode=offline; "
            "log=none goes without"
        ) from error


def _title(name: str) -> str:
    """policy/lift@1234 -> policy-lift-1234, as artifacts may be called."""
    return name.replace("/", "-").replace("@", "-").replace(":", "-")
