"""Environments in a process of their own: what hangs or dies there is ended from outside, and the rollout goes on.

    this process                  socket pair                   worker
    Apart.reset_at(i, seed)  --  ("reset_at", i, seed)  -->  GymBatch.reset_at
                            <--  obs                     --
    Apart.send(action)       --  which are active        -->  GymBatch.step, while the others' next actions are worked out here
                                 shared memory: action, obs, reward, flags, and marks: since when each environment is being stepped

A step (or reset) that lasts longer than `limit` seconds cannot be ended from within: C code that holds the interpreter's lock
listens to nobody. So the worker is killed, a new one made, and `Lost` says which environments were to blame: their episodes
failed, all others begin anew at their seeds, and come out equal to the bit. Where several were being stepped at that moment
(two threads, and one may only have waited for the other) nobody is blamed yet, and the next worker steps them one by one.

Workers are kept for the next batch of the same process: one interpreter's start (half a second) a stage, not one a batch.
"""

from __future__ import annotations

import atexit
import builtins
import mmap
import os
import pickle
import select
import signal
import socket
import subprocess
import sys
import tempfile
import time
import weakref
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

import numpy as np

from flywheel.faults import Fault, Lost
from flywheel.gym_task import GymBatch, TaskError

OPENING = 300.0  # s, for imports and the first environment
ROOM = 4096  # environments that `marks` has room for
STEP = b"s"  # a step's message begins with it, and is answered by it where there was no fault
KEPT = 2  # workers that wait for the next batch
UNEXPLAINED = 3  # deaths in a row that no environment is to blame for, before that is an error
SAYS = (  # what a batch tells of itself when it is opened
    "id", "task", "num_envs", "obs_dim", "action_dim", "action_low", "action_high", "max_steps", "fps", "success", "obs_sizes", "obs_names",
)  # fmt: skip
_waiting: list[_Worker] = []


class Apart:
    """A `GymBatch` in a worker: the same methods; those that begin or step may raise `Lost`."""

    def __init__(self, limit: float, threads: int, **options: Any):
        self.limit, self._threads, self._options = limit, threads, options
        self._careful, self._unexplained = False, 0
        self._flying, self._came = (
            False,
            None,
        )  # whether a step is under way, and what came of one that nobody received yet
        self._open()

    def _open(self) -> None:
        self._worker = _take()
        self._end = weakref.finalize(self, _give_back, self._worker)
        threads = 1 if self._careful else self._threads
        options = {**self._options, "threads": threads, "limit": self.limit}
        told = self._ask("open", options, limit=OPENING)
        if told.pop("holds"):
            self.hold_action = lambda i: self._ask("hold_action", int(i))
        self.__dict__.update(told)
        self._worker.board = _Board(self._worker.shared.fileno(), self.num_envs, self.obs_dim, self.action_dim)

    def reset_at(self, i: int, seed: int, state: dict[str, np.ndarray] | None = None) -> np.ndarray:
        """As `GymBatch.reset_at`; Fault where the environment cannot begin."""
        return self._ask("reset_at", i, seed, state)

    def reset(self, seeds) -> np.ndarray:
        """As `GymBatch.reset`."""
        return self._ask("reset", list(seeds))

    def step(self, action: np.ndarray, active=None):
        """As `GymBatch.step`."""
        self.send(action, range(self.num_envs) if active is None else active)
        return self.receive()

    def send(self, action: np.ndarray, active) -> None:
        """Begin a step of the environments `active`; `receive` waits for what came of it. One at a time is under way."""
        rows = np.asarray(active, np.uint16)
        if self._flying:
            self._arrive()  # a step that nobody waited for
        self._worker.board.action[rows] = action[rows]
        self._post(STEP + rows.tobytes())
        self._flying, self._came = True, None

    def receive(self):
        """What `GymBatch.step` returns, of the step that was begun."""
        if self._flying:
            self._arrive()
        came, self._came = self._came, None
        return came

    def _arrive(self) -> None:
        """Wait for the step that is under way, and keep what came of it: a reset may be asked for before `receive`."""
        self._flying, board = False, self._worker.board
        faults = self._answer()
        obs, reward, (terminated, truncated, won) = board.obs.copy(), board.reward.copy(), board.flags.copy()
        self._came = obs, reward, terminated, truncated, {"success": won, "faults": faults}

    def get_state(self, i: int) -> dict[str, np.ndarray]:
        """As `GymBatch.get_state`."""
        return self._ask("get_state", i)

    def set_state(self, i: int, state: dict[str, np.ndarray]) -> np.ndarray:
        """As `GymBatch.set_state`."""
        return self._ask("set_state", i, state)

    def frame(self, i: int, width: int = 320, height: int = 240) -> np.ndarray:
        """As `GymBatch.frame`."""
        return self._ask("frame", i, width, height)

    def drawing(self) -> dict[str, Any] | None:
        """As `GymBatch.drawing`."""
        return self._ask("drawing")

    def run(self, function: Callable, *args: Any) -> Any:
        """function(batch, *args) in the worker, for what needs the environments themselves; a function of a module."""
        return self._ask("run", function, args)

    def close(self) -> None:
        """Close the environments; the worker waits for the next batch."""
        self._end()

    def _ask(self, method: str, *args: Any, limit: float | None = None) -> Any:
        """What the worker's batch answers to a method; Lost where there was no answer."""
        if self._flying:
            self._arrive()
        self._post(pickle.dumps((method, args), 5))
        return self._answer(limit)

    def _post(self, message: bytes) -> None:
        """Send a message to the worker."""
        worker = self._worker
        if worker.busy:  # an answer that nobody waited for (Ctrl-C) is still to come
            self._lose({})
        worker.busy = True
        try:
            worker.pipe.send_bytes(message)
        except (BrokenPipeError, ConnectionResetError):
            self._lose({i: f"its process died: {worker.ended()}" for i in worker.late(None)})

    def _answer(self, limit: float | None = None) -> Any:
        """Wait for the answer to what was sent; `limit` is for all of it, in seconds, by default self.limit for an environment's step."""
        worker, since = self._worker, time.monotonic()
        try:
            while not worker.poll.poll(1000 * min(5.0, self.limit / 4)):
                late = worker.late(self.limit) if limit is None else []
                if late or (limit and time.monotonic() - since > limit):
                    self._lose({i: f"hung: it took longer than task.step_seconds={self.limit:g}" for i in late})
            answer = worker.pipe.recv_bytes()
        except (EOFError, ConnectionResetError):
            self._lose({i: f"its process died: {worker.ended()}" for i in worker.late(None)})
        worker.busy = False
        if answer == STEP:
            self._unexplained = 0
            return {}
        kind, value = pickle.loads(answer)
        if kind == "error":
            raise _error(*value)
        return value

    def _lose(self, causes: dict[int, str]) -> None:
        """End the worker and make a new one; raises Lost."""
        told = self._worker.ended() if self._worker.process.poll() is not None else "it did not answer"
        self._end.detach()
        self._worker.kill()
        self._flying, self._came = False, None
        self._careful = len(causes) > 1
        self._unexplained = 0 if causes else self._unexplained + 1
        if self._unexplained > UNEXPLAINED or not hasattr(self, "num_envs"):
            raise TaskError(
                f"task.id={self._options.get('id')!r}: the process of its environments ended while none was being stepped: {told}. "
                "Look for its own words above; task.step_seconds=0 steps them in this process, for a debugger"
            )
        self._open()
        raise Lost(causes if len(causes) == 1 else {})


class _Board:
    """The arrays of a batch in shared memory: action [N, Da], obs [N, Do], reward [N], flags [3, N] (terminated, truncated, success)."""

    def __init__(self, file: int, num_envs: int, obs_dim: int, action_dim: int):
        parts = {
            "reward": (np.float64, (num_envs,)),
            "action": (np.float32, (num_envs, action_dim)),
            "obs": (np.float32, (num_envs, obs_dim)),
            "flags": (np.bool_, (3, num_envs)),
        }
        sizes = [int(np.prod(shape)) * np.dtype(kind).itemsize for kind, shape in parts.values()]
        at, end = 8 * ROOM, 8 * ROOM + sum(sizes)
        if os.fstat(file).st_size < end:
            os.truncate(file, end)
        memory = mmap.mmap(file, end)
        for (name, (kind, shape)), size in zip(parts.items(), sizes, strict=True):
            setattr(self, name, np.frombuffer(memory, kind, int(np.prod(shape)), at).reshape(shape))
            at += size


class _Worker:
    """A process that serves one batch after the other."""

    def __init__(self):
        self.key, self.busy = _surroundings(), False
        self.shared = tempfile.TemporaryFile()  # noqa: SIM115 (as long as the worker lives)
        self.shared.truncate(8 * ROOM)
        self.marks = np.frombuffer(mmap.mmap(self.shared.fileno(), 8 * ROOM), np.float64)
        here, there = socket.socketpair()
        life, self.life = (
            os.pipe()
        )  # nobody else holds its other end: when this process dies, whatever of, the worker is told
        fds = (there.fileno(), self.shared.fileno(), life)
        code = f"import sys; sys.path[:] = {sys.path!r}; from flywheel.apart import serve; serve{fds!r}"
        self.process = subprocess.Popen(
            [sys.executable, "-c", code], stdin=subprocess.DEVNULL, stdout=2, pass_fds=fds, close_fds=True
        )
        self.pipe = Connection(here.detach())
        self.poll = select.poll()
        self.poll.register(self.pipe.fileno(), select.POLLIN)
        there.close()
        os.close(life)

    def late(self, limit: float | None) -> list[int]:
        """The environments that have been stepped for longer than `limit` seconds; None: all that are being stepped."""
        now = time.monotonic()
        return [int(i) for i in np.flatnonzero(self.marks) if limit is None or now - self.marks[i] >= limit]

    def ended(self) -> str:
        """How the process ended, in words."""
        code = self.process.wait()
        return f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"

    def kill(self) -> None:
        if not self.pipe.closed:
            self.process.kill()
            self.process.wait()
            self.pipe.close()
            self.shared.close()
            os.close(self.life)


def _surroundings() -> tuple:
    """What a worker has taken from this process: it serves again only where that is the same."""
    return os.getpid(), os.getcwd(), tuple(sys.path), tuple(sorted(os.environ.items()))


def _take() -> _Worker:
    """A worker that waits, or a new one."""
    key = _surroundings()
    for worker in list(_waiting):
        if worker.key != key or worker.process.poll() is not None:
            _waiting.remove(worker)
            if worker.key[0] == os.getpid():
                worker.kill()
    return _waiting.pop() if _waiting else _Worker()


def _give_back(worker: _Worker) -> None:
    """Close a worker's batch and keep it; one that does not answer at once is ended."""
    if worker.key[0] != os.getpid():  # a fork's copy: it is not ours
        return
    if not worker.busy and len(_waiting) < KEPT and not sys.is_finalizing():
        try:
            worker.pipe.send_bytes(pickle.dumps(("close", ())))
            if worker.poll.poll(5000) and pickle.loads(worker.pipe.recv_bytes()) == ("value", None):
                _waiting.append(worker)
                return
        except (OSError, EOFError):
            pass
    worker.kill()


@atexit.register
def _end_all() -> None:
    while _waiting:
        worker = _waiting.pop()
        if worker.key[0] == os.getpid():
            worker.kill()


def _error(name: str, text: str) -> Exception:
    """An exception of the worker, as far as it is one that callers know."""
    known = {"TaskError": TaskError, "Fault": Fault}
    kind = known.get(name) or getattr(builtins, name, None)
    if not (isinstance(kind, type) and issubclass(kind, Exception)) or issubclass(kind, UnicodeError):
        kind, text = RuntimeError, f"{name}: {text}"
    return kind(text)


def serve(pipe: int, shared: int, life: int) -> None:
    """The worker's side: answer until nobody asks any more."""
    import fcntl

    for number in (signal.SIGINT, signal.SIGTERM):  # whoever is asked to stop asks us, or dies, which we are told
        signal.signal(number, signal.SIG_IGN)
    if hasattr(signal, "SIGIO"):  # the kernel ends us when the other end is gone, whoever holds the interpreter's lock
        fcntl.fcntl(life, fcntl.F_SETOWN, os.getpid())
        fcntl.fcntl(life, fcntl.F_SETFL, fcntl.fcntl(life, fcntl.F_GETFL) | os.O_ASYNC | os.O_NONBLOCK)
    marks = np.frombuffer(mmap.mmap(shared, 8 * ROOM), np.float64)
    asked, batch, board = Connection(pipe), None, None
    while True:
        try:
            message = asked.recv_bytes()
        except (EOFError, ConnectionResetError):
            os._exit(0)
        try:
            if message[:1] == STEP:
                faults = _step(batch, board, np.frombuffer(message[1:], np.uint16).tolist())
                answer = pickle.dumps(("value", faults)) if faults else STEP
            else:
                method, args = pickle.loads(message)
                if method == "open":
                    marks[:] = 0
                    batch = GymBatch(marks=marks, **args[0])
                    board = _Board(shared, batch.num_envs, batch.obs_dim, batch.action_dim)
                    value = {key: getattr(batch, key) for key in SAYS}
                    value |= {
                        "discrete": batch.discrete,
                        "one_hot": batch.one_hot,
                        "holds": hasattr(batch, "hold_action"),
                    }
                elif method == "run":
                    value = args[0](batch, *args[1])
                else:
                    value = getattr(batch, method)(*args)
                answer = pickle.dumps(("value", value), 5)
        except BaseException as error:
            marks[:] = 0
            answer = pickle.dumps(("error", (type(error).__name__, str(error))))
        asked.send_bytes(answer)


def _step(batch: GymBatch, board: _Board, active: list[int]) -> dict[int, str]:
    """Step what is on the board; the faults."""
    board.obs[:], board.reward[:], *flags, info = batch.step(board.action, active)
    board.flags[:] = (*flags, info["success"])
    return info["faults"]
