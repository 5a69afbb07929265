"""What a run says while it works: metrics as JSON lines always, to Weights & Biases if asked; progress for people.

On a terminal a loop shows a bar; elsewhere (a cron mail, CI) a line when it begins, every half minute, and when it
ends."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

STEPS = {
    "curve": "updates",
    "round": "steps",
    "scored": "steps",
    "learned": "round",
}  # of Log: what a kind is drawn over


BEAT = 5.0  # s


def say(text: str) -> None:
    """One line for the person at the terminal (stderr: stdout is for results)."""
    if "tqdm" in sys.modules and sys.stderr.isatty():
        sys.modules["tqdm"].tqdm.write(text, file=sys.stderr)  # above the bar, not through it
    else:
        print(text, file=sys.stderr, flush=True)


class Progress:
    """Counts towards `total`; call it with the number of units just done and a note, or a function that makes one
    when it is shown. `beat(what, done, total, note)`, where there is one, is told each few seconds."""

    beat: ClassVar[Callable[[str, int, int, str], None] | None] = None
    beaten = 0.0

    def __init__(self, what: str, total: int, done: int = 0):
        self.what, self.total, self.done = what, total, done
        self.bar = None
        self.began = self.said = time.monotonic()
        if sys.stderr.isatty():
            from tqdm import tqdm

            self.bar = tqdm(total=total, initial=done, desc=what, leave=False, dynamic_ncols=True)

    def __call__(self, n: int = 1, note: str | Callable[[], str] = "") -> None:
        self.done += n
        now = time.monotonic()
        if Progress.beat and now - Progress.beaten > BEAT:
            Progress.beaten = now
            Progress.beat(self.what, self.done, self.total, note() if callable(note) else note)
        if now - self.said > (30 if self.bar is None else 0.2):
            self.said, note = now, note() if callable(note) else note
            if self.bar is None:
                say(f"  {self.what}: {self.done} of {self.total} {note}".rstrip())
            elif note:
                self.bar.set_postfix_str(note, refresh=False)
        if self.bar is not None:
            self.bar.update(n)

    def close(self) -> None:
        if self.bar is not None:
            self.bar.close()
        elif time.monotonic() - self.began > 10:
            say(f"  {self.what}: {self.done} of {self.total}, {time.monotonic() - self.began:.0f} s")


@contextmanager
def progress(what: str, total: int, done: int = 0) -> Iterator[Progress]:
    """`with progress("collect", 64) as tick: ... tick()`."""
    bar = Progress(what, total, done)
    try:
        yield bar
    finally:
        bar.close()


class Log:
    """Metrics of one run: `log(kind, **values)` appends a line to log.jsonl; `wandb` mirrors numbers."""

    def __init__(self, path: Path, wandb: dict[str, Any] | None = None):
        path.parent.mkdir(parents=True, exist_ok=True)
        self.file = open(path, "a", encoding="utf-8")  # noqa: SIM115 (closed by close)
        self.run, self.steps = None, {}
        if wandb:
            import wandb as client

            settings = {k: v for k, v in wandb.items() if k != "config" and v is not None}
            try:
                self.run = client.init(config=wandb.get("config"), dir=str(path.parent), **settings)
            except Exception as error:
                self.file.close()
                raise ValueError(
                    f"log=wandb: Weights & Biases would not begin: {error}. `wandb login` first, or "
                    "log.wandb.mode=offline; log=none goes without"
                ) from error
            for kind, step in STEPS.items():  # the axis that each kind of metric is drawn over
                self.run.define_metric(f"{kind}/*", step_metric=f"{kind}/{step}")

    def __call__(self, kind: str, **values: Any) -> None:
        self.file.write(json.dumps({"kind": kind, **values}, default=float) + "\n")
        self.file.flush()
        if self.run is not None:
            numbers = {f"{kind}/{k}": v for k, v in values.items() if isinstance(v, (int, float))}
            self.run.log(numbers)
            self.run.summary.update(numbers)

    def media(self, kind: str, path: Path) -> None:
        """Show a video to Weights & Biases, if it listens."""
        if self.run is not None:
            import wandb as client

            self.run.log({kind: client.Video(str(path))})

    def artifact(self, name: str, path: Path, **metadata: Any) -> None:
        """Keep a checkpoint with Weights & Biases too, if it listens, under its own name."""
        if self.run is not None:
            import wandb as client

            made = client.Artifact(name.replace("/", "-").replace("@", "-"), type="checkpoint", metadata=metadata)
            made.add_file(str(path))
            self.run.log_artifact(made)

    def close(self) -> None:
        self.file.close()
        if self.run is not None:
            self.run.finish()


def read(path: Path) -> list[dict[str, Any]]:
    """The lines of a log.jsonl; a half-written last line (a killed run) is left out."""
    lines = []
    if Path(path).exists():
        for line in Path(path).read_text(encoding="utf-8").splitlines():
            try:
                lines.append(json.loads(line))
            except json.JSONDecodeError:
                continue
    return lines
