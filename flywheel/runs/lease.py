"""A lease: the lock of a run on a store that machines share. One machine holds it, says each few seconds that it does,
and another takes it over where that word stopped.

    leases/<stage>/<key>/00000003   {"what", "pid", "host", "since", "command", "mirror", "token"}; empty: given back

The highest number holds. To take it is to create the next number, which of several exactly one can (as in the corpus'
log); to say that one still has it is to write one's own number again. How old a word is, the store's own clock says.
"""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import socket
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

from flywheel import log, store
from flywheel.corpus.objects import Objects
from flywheel.ending import check

PATIENCE = 120.0  # s without a word, after which a lease may be taken over
BEAT = 20.0  # s from word to word
LOOK = 2.0  # s from look to look of one who waits
FOLDER, CLOCK = "leases", "leases/clock"


class Lease:
    """The lease of `run` ("stage/key") for this machine's `mirror`, whose own lock of the run is held already."""

    def __init__(self, objects: Objects, run: str, what: str, mirror: str):
        self.objects, self.run, self.what = objects, run, what
        told = {"what": what, "pid": os.getpid(), "host": socket.gethostname(), "since": store.now()}
        self.me = {**told, "command": shlex.join(sys.orig_argv), "mirror": mirror, "token": os.urandom(8).hex()}
        self.number = 0
        self.heard: tuple | None = None  # the newest word of who holds it
        self.lost: str | None = None  # who took it over

    def take(self, wait: bool) -> None:
        """Get it, or wait for it; where somebody holds it and says so while we look, and we do not `wait`, LockError
        says who, since when, and what to do. One who says no more is waited for, and then followed."""
        heard = None
        while busy := self._take():
            if heard is None:
                heard = self.heard
                log.say(f"  {self.run}: {busy}. Is it still there? Its next word is awaited")
            if not wait and heard != self.heard:
                raise store.LockError(
                    f"{self.objects}/runs/{self.run}: {self.what} cannot start, {busy}. Wait until it ends, or stop it"
                )
            time.sleep(LOOK)
            check()

    def _take(self) -> str:
        """Get it, "", or say who holds it."""
        number, entry = _top(self.objects.listed(f"{FOLDER}/{self.run}"))
        if entry and entry["size"]:
            who, silent = _word(self.objects, entry), _silent(self.objects, entry)
            ours = who.get("host") == self.me["host"] and who.get("mirror") == self.me["mirror"]
            if not ours and silent < patience():  # of ours, the process is gone: else it would hold the folder's lock
                self.heard = entry["path"], entry["last_modified"]
                return f"{_told(who)}, which said so {silent:.0f} s ago"
        name = f"{FOLDER}/{self.run}/{number + 1:08d}"
        try:
            if not self.objects.create(name, store.to_json(self.me)):
                return self._take()
        except FileNotFoundError:  # another one made it, and is done with it already
            return self._take()
        self.number = number + 1
        there = self.objects.listed(f"{FOLDER}/{self.run}")
        if _top(there)[0] != self.number:  # one who gave it back was deleted between our two looks
            self.objects.remove(name)
            return self._take()
        for old in there:
            if old["path"] != name:
                self.objects.remove(old["path"])
        return ""

    def say(self) -> None:
        """Say that it is still held, or find out that it is not: `lost`."""
        number, entry = _top(self.objects.listed(f"{FOLDER}/{self.run}"))
        if number != self.number:
            who = _told(_word(self.objects, entry)) if entry and entry["size"] else "it was taken over"
            self.lost = f"{who}, because this machine had said nothing for long"
            return
        self.objects.replace(f"{FOLDER}/{self.run}/{self.number:08d}", store.to_json(self.me))

    def held(self) -> None:
        """LockError where another machine took it over."""
        if self.lost:
            raise store.LockError(
                f"{self.objects}/runs/{self.run}: {self.what} ends here: {self.lost}. What was handed over before is "
                "there, and that machine goes on from it"
            )

    @contextlib.contextmanager
    def kept(self, each: Callable[[], Any]):
        """While this lasts, say each BEAT seconds that it is held, and do `each` beside it."""
        over = threading.Event()

        def work():
            while not over.wait(BEAT) and not self.lost:
                with contextlib.suppress(OSError):  # the network is away: the next word may get through
                    self.say()
                    if not self.lost:
                        each()

        thread = threading.Thread(target=work, name=f"lease of {self.run}", daemon=True)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()

    def give_back(self, done: bool) -> None:
        """Let others have it. Of a run that is `done` nothing stays: who takes it sees that there is nothing to do."""
        name = f"{FOLDER}/{self.run}/{self.number:08d}"
        if self.lost:
            return
        with contextlib.suppress(OSError):  # else it ends by itself
            if done:
                self.objects.remove(name)
            else:
                self.objects.replace(name, b"")


def patience() -> float:
    """The seconds without a word after which a lease may be taken over, $FLYWHEEL_LEASE."""
    told = os.environ.get("FLYWHEEL_LEASE") or PATIENCE
    try:
        seconds = float(told)
    except ValueError:
        seconds = -1.0
    if not 0 <= seconds < float("inf"):
        raise ValueError(f"FLYWHEEL_LEASE={told!r}; expected seconds, such as {PATIENCE:.0f} (0: take it over at once)")
    return seconds


def holders(objects: Objects) -> dict[str, tuple[dict[str, Any], float]]:
    """{run: (who holds it, for how many seconds nothing was heard)} of all leases that are held."""
    by_run: dict[str, list] = {}
    for entry in objects.listed(FOLDER):
        if entry["path"] != CLOCK:
            by_run.setdefault(entry["path"].removeprefix(f"{FOLDER}/").rpartition("/")[0], []).append(entry)
    tops = {run: _top(entries)[1] for run, entries in by_run.items()}
    told = {run: (_word(objects, top), _silent(objects, top)) for run, top in tops.items() if top and top["size"]}
    return {run: row for run, row in sorted(told.items()) if row[1] < patience()}


def _top(entries: list) -> tuple[int, Any]:
    """The highest number and its entry; (0, None) where there is none."""
    numbers = {int(entry["path"].rpartition("/")[2]): entry for entry in entries}
    return max(numbers.items(), default=(0, None), key=lambda item: item[0])


def _word(objects: Objects, entry: Any) -> dict[str, Any]:
    with contextlib.suppress(FileNotFoundError, ValueError):
        return json.loads(objects.read(entry["path"]))
    return {}


def _silent(objects: Objects, entry: Any) -> float:
    objects.replace(CLOCK, b"")
    return max(0.0, objects.age(CLOCK) - entry["last_modified"].timestamp())


def _told(who: dict[str, Any]) -> str:
    words = ("what", "pid", "host", "since", "command")
    what, pid, host, since, command = (who.get(word, "?") for word in words)
    return f"the run is in use by {what} (pid {pid} on {host}, since {since}, command: {command})"
