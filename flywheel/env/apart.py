"""Environments in processes of their own: what hangs or dies there is ended from outside, and the rollout goes on.

    this process                  socket pair                   each of W workers, with every W-th environment
    Apart.reset_at(i, seed)  --  ("reset_at", i // W, seed) --> GymBatch.reset_at
                            <--  obs                     --
    Apart.step(action, rows) --  which are active        -->    GymBatch.step
                                 shared memory: action, obs, reward, flags, and marks: since when each environment is
                                 being stepped

A step (or reset) that lasts longer than `limit` seconds cannot be ended from within: C code that holds the
interpreter's lock listens to nobody. So the worker is killed, a new one made, and `Lost` says which environments were
to blame: their episodes failed, all others begin anew at their seeds, and come out equal to the bit. Where several were
being stepped at that moment (two threads, and one may only have waited for the other) nobody is blamed yet, and the
next worker steps them one by one.

Workers are kept for the next batch of the same process: one interpreter's start (half a second) a stage, not one a
batch. Whoever waits looks again and again for a moment before it sleeps: a virtual machine may take longer to wake a
processor than an environment takes for a step."""

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
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from typing import Any

import numpy as np

from flywheel.env.faults import Fault, Lost
from flywheel.env.gym_batch import GymBatch, TaskError

OPENING = 300.0  # s, for imports and the first environment
SPIN = 0.002  # s that whoever waits looks before it sleeps; it lets all others go first
ROOM = 4096  # environments that `marks` has room for
STEP = b"s"  # a step's message begins with it, and is answered by it where there was no fault
KEPT = 16  # workers that wait for the next batch, at most
FEWEST = 4  # environments that are worth a worker
UNEXPLAINED = 3  # deaths in a row that no environment is to blame for, before that is an error
SAYS = (  # what a batch tells of itself when it is opened
    "id", "task", "num_envs", "obs_dim", "action_dim", "action_low", "action_high", "max_steps", "fps", "success",
    "obs_shapes", "obs_names", "obs_units", "cameras",
)  # fmt: skip
SIZES = ("num_envs", "obs_dim", "action_dim", "cameras")  # of a board
_waiting: list[_Worker] = []


class Apart:
    """A `GymBatch` in workers: the same methods; those that begin or step may raise `Lost`."""

    def __init__(self, limit: float, threads: int, *, num_envs: int, **options: Any):
        count = max(1, min(threads, num_envs // FEWEST))
        shares = [len(range(w, num_envs, count)) for w in range(count)]
        self._parts = [_Part(limit, max(1, threads // count), {**options, "num_envs": n}) for n in shares]
        told, *_ = [part.opened() for part in self._parts]
        if told.pop("holds"):
            self.hold_action = lambda i: self._at(i, "hold_action")
        self.__dict__.update(told, num_envs=num_envs, limit=limit)

    def _at(self, i: int, method: str, *args: Any) -> Any:
        """What a method of the batch answers that is asked about environment `i`."""
        part, i = int(i) % len(self._parts), int(i) // len(self._parts)
        try:
            return self._parts[part].ask(method, i, *args)
        except Lost as lost:
            raise self._lost(part, lost) from None

    def _lost(self, part: int, lost: Lost) -> Lost:
        """`lost`, by the batch's own numbers; what the other workers are at is of no use any more."""
        causes = {part: lost.causes}
        for other, of in enumerate(self._parts):
            try:
                if other != part and of.flying:
                    of.receive()
            except Lost as more:
                causes[other] = more.causes
        return Lost({i * len(self._parts) + w: cause for w, found in causes.items() for i, cause in found.items()})

    def reset_at(self, i: int, seed: int, state: dict[str, np.ndarray] | None = None) -> np.ndarray:
        """As `GymBatch.reset_at`; Fault where the environment cannot begin."""
        return self._at(i, "reset_at", seed, state)

    def reset(self, seeds: Sequence[int]) -> np.ndarray:
        """As `GymBatch.reset`."""
        return np.stack([self.reset_at(i, seed) for i, seed in enumerate(seeds)])

    def step(self, action: np.ndarray, active: Sequence[int] | None = None):
        """As `GymBatch.step`; rows that are not `active` mean nothing."""
        active, count = np.arange(self.num_envs) if active is None else np.asarray(active, np.int64), len(self._parts)
        obs, reward = np.zeros((self.num_envs, self.obs_dim), np.float32), np.zeros(self.num_envs)
        flags, faults = np.zeros((3, self.num_envs), bool), {}
        asked = {w: rows for w in range(count) if len(rows := active[active % count == w])}
        try:
            for w, rows in asked.items():
                self._parts[w].send(action[rows], rows // count)
            for w in asked:
                obs[w::count], reward[w::count], flags[:, w::count], found = self._parts[w].receive()
                faults |= {i * count + w: cause for i, cause in found.items()}
        except Lost as lost:
            raise self._lost(w, lost) from None
        terminated, truncated, won = flags
        return obs, reward, terminated, truncated, {"success": won, "faults": faults}

    def look(self, rows: Sequence[int]) -> dict[str, np.ndarray]:
        """As `GymBatch.look`."""
        rows, count = np.asarray(rows, np.intp), len(self._parts)
        found = {key: np.empty((len(rows), *shape), np.uint8) for key, shape in self.cameras.items()}
        for key, frames in found.items():
            for w, part in enumerate(self._parts):
                mine = rows % count == w
                frames[mine] = part.pictures[key][rows[mine] // count]
        return found

    def get_state(self, i: int) -> dict[str, np.ndarray]:
        """As `GymBatch.get_state`."""
        return self._at(i, "get_state")

    def set_state(self, i: int, state: dict[str, np.ndarray]) -> np.ndarray:
        """As `GymBatch.set_state`."""
        return self._at(i, "set_state", state)

    def frame(self, i: int, width: int = 320, height: int = 240) -> np.ndarray:
        """As `GymBatch.frame`."""
        return self._at(i, "frame", width, height)

    def drawing(self) -> dict[str, Any] | None:
        """As `GymBatch.drawing`."""
        return self._parts[0].ask("drawing")

    def run(self, function: Callable, *args: Any) -> Any:
        """function(batch, *args) in the first worker, for what needs the environments themselves; a function of a
        module."""
        return self._parts[0].ask("run", function, args)

    def close(self) -> None:
        """Close the environments; the workers wait for the next batch."""
        for part in self._parts:
            part.close()


class _Part:
    """A worker's share of the environments, by its own numbers from 0; a new worker where one was lost."""

    def __init__(self, limit: float, threads: int, options: dict[str, Any]):
        self.limit, self._threads, self._options = limit, threads, options
        self._careful, self._unexplained, self._told = False, 0, None
        self._open()

    def _open(self) -> None:
        """Begin to open the batch in a worker; `opened` waits for it."""
        self._worker = _take()
        self._end = weakref.finalize(self, _give_back, self._worker)
        self.flying = False  # whether a step is under way
        threads = 1 if self._careful else self._threads
        self._post(pickle.dumps(("open", ({**self._options, "threads": threads, "limit": self.limit},)), 5))

    def opened(self) -> dict[str, Any]:
        """What the batch tells of itself, and room for its steps."""
        self._told = self._answer(OPENING)
        sizes = (self._told[key] for key in SIZES)
        self._worker.board = _Board(self._worker.shared.fileno(), *sizes)
        return dict(self._told)

    @property
    def pictures(self) -> dict[str, np.ndarray]:
        """What each camera saw last, {camera: [N, H, W, 3]}."""
        return self._worker.board.pictures

    def ask(self, method: str, *args: Any) -> Any:
        """What the worker's batch answers to a method; Lost where there was no answer."""
        self._post(pickle.dumps((method, args), 5))
        return self._answer()

    def send(self, action: np.ndarray, rows: np.ndarray) -> None:
        """Begin a step of the environments `rows` with action [len(rows), Da]."""
        self._worker.board.action[rows] = action
        self._post(STEP + rows.astype(np.uint16).tobytes())
        self.flying = True

    def receive(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, dict[int, str]]:
        """obs, reward, flags and faults of the step that was begun: views, until the next one."""
        self.flying, board = False, self._worker.board
        return board.obs, board.reward, board.flags, self._answer()

    def close(self) -> None:
        """Close the batch; the worker waits for the next one."""
        self._end()

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
        """Wait for the answer to what was sent; `limit` is for all of it, in seconds, by default self.limit for an
        environment's step."""
        worker, since = self._worker, time.monotonic()
        try:
            while not _comes(worker.poll) and not worker.poll.poll(1000 * min(5.0, self.limit / 4)):
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
        self._careful = len(causes) > 1
        self._unexplained = 0 if causes else self._unexplained + 1
        if self._unexplained > UNEXPLAINED or self._told is None:
            raise TaskError(
                f"task.id={self._options.get('id')!r}: the process of its environments ended while none was being "
                f"stepped: {told}. "
                "Look for its own words above; task.step_seconds=0 steps them in this process, for a debugger"
            )
        self._open()
        self.opened()
        raise Lost(causes if len(causes) == 1 else {})


class _Board:
    """The arrays of a batch in shared memory: action [N, Da], obs [N, Do], reward [N], flags [3, N] (terminated,
    truncated, success), and of each camera `pictures` [N, H, W, 3]."""

    def __init__(self, file: int, num_envs: int, obs_dim: int, action_dim: int, cameras: dict[str, tuple[int, ...]]):
        parts = {
            "reward": (np.float64, (num_envs,)),
            "action": (np.float32, (num_envs, action_dim)),
            "obs": (np.float32, (num_envs, obs_dim)),
            "flags": (np.bool_, (3, num_envs)),
        } | {("camera", key): (np.uint8, (num_envs, *shape)) for key, shape in cameras.items()}
        sizes = [int(np.prod(shape)) * np.dtype(kind).itemsize for kind, shape in parts.values()]
        at, end = 8 * ROOM, 8 * ROOM + sum(sizes)
        if os.fstat(file).st_size < end:
            os.truncate(file, end)
        memory = mmap.mmap(file, end)
        self.pictures = {}
        for (name, (kind, shape)), size in zip(parts.items(), sizes, strict=True):
            array = np.frombuffer(memory, kind, int(np.prod(shape)), at).reshape(shape)
            if isinstance(name, tuple):
                self.pictures[name[1]] = array
            else:
                setattr(self, name, array)
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
        code = f"import sys; sys.path[:] = {sys.path!r}; from flywheel.env.apart import serve; serve{fds!r}"
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


def _comes(poll: select.poll) -> bool:
    """Whether something can be read, or can in a moment: to wake a process that sleeps may cost more than a step."""
    until = time.perf_counter() + SPIN
    while not poll.poll(0):
        if time.perf_counter() > until:
            return False
        os.sched_yield()
    return True


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
    poll = select.poll()
    poll.register(pipe, select.POLLIN)
    while True:
        _comes(poll)
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
                    board = _Board(shared, *(getattr(batch, key) for key in SIZES))
                    batch.pictures = board.pictures
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
