"""How a command ends: one status, one sentence and one exit code for whatever happened. Cron and systemd rely on it.

    done, noop, refused   0
    failed                1        usage: 2
    stopped               128 + the signal's number: 130 by Ctrl-C, 143 by TERM; the same command goes on

`Signals` turns the first Ctrl-C or TERM into a wish to stop, which every long loop looks at; the second stops at once.
"""

from __future__ import annotations

import signal
import threading
import traceback
from pathlib import Path
from typing import Any

from flywheel import log, store

CODES = {"done": 0, "noop": 0, "refused": 0, "failed": 1}


class Failed(RuntimeError):
    """A stage that did all that it could and has to call it a failure; `result` is what it has."""

    def __init__(self, text: str, result: dict[str, Any] | None = None):
        super().__init__(text)
        self.result = result or {}


class OutOfTime(Exception):
    """The budget is spent: what there is so far is what there is."""


class Stopped(KeyboardInterrupt):
    """Somebody asked the process to stop, by the signal `number`."""

    def __init__(self, number: int = signal.SIGINT):
        super().__init__(signal.Signals(number).name)
        self.number = number


class Signals:
    """`with Signals() as asked:` the first signal is remembered (`asked.number`), the second raises Stopped where it
    strikes."""

    now: Signals | None = None  # those of this process, if a command is at work

    def __init__(self):
        self.number: int | None = None
        self.before: dict[int, Any] = {}

    def __enter__(self) -> Signals:
        self.outer, Signals.now = Signals.now, self
        if threading.current_thread() is threading.main_thread():
            self.before = {n: signal.signal(n, self._ask) for n in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *exc: object) -> None:
        Signals.now = self.outer
        for number, handler in self.before.items():
            signal.signal(number, handler)

    def _ask(self, number: int, frame: Any) -> None:
        if self.number is not None:
            raise Stopped(number)
        self.number = number
        log.say("Saving and stopping; once more to stop at once.")


def check() -> None:
    """Raise Stopped if somebody asked this process to stop. For loops that have nothing to save."""
    asked = Signals.now
    if asked is not None and asked.number is not None:
        raise Stopped(asked.number)


def told(error: BaseException, folder: Path | None = None) -> tuple[dict[str, Any], int]:
    """What a command that ended by `error` answers, and its exit code. What nobody foresaw leaves its traceback in
    `folder`."""
    if isinstance(error, KeyboardInterrupt):
        number = getattr(error, "number", signal.SIGINT)
        text = f"stopped by {signal.Signals(number).name}; the same command goes on where it stopped"
        return {"status": "stopped", "error": text}, 128 + number
    if isinstance(error, Failed):
        return {**error.result, "status": "failed", "error": str(error)}, 1
    text = str(error).strip()
    if not isinstance(error, (ValueError, RuntimeError, OSError, ArithmeticError)) or not text:
        text = f"{type(error).__name__}: {text}" if text else type(error).__name__
        text = f"unforeseen: {text}{_left(error, folder)}"
    return {"status": "failed", "error": text}, 1


def _left(error: BaseException, folder: Path | None) -> str:
    """Write the traceback beside the run; where it is, in words."""
    if folder is None or not folder.is_dir():
        return "; FLYWHEEL_TRACEBACK=1 shows where"
    path = folder / "error.txt"
    try:
        store.write_atomic(path, "".join(traceback.format_exception(error)).encode(), durable=False)
    except OSError:
        return "; FLYWHEEL_TRACEBACK=1 shows where"
    return f". The traceback is in {path}"
