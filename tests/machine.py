"""Another machine, for the tests of stores that machines share: a process with a cache of its own.

python machine.py hold STAGE/KEY URL        holds the run's lease, says so, and waits to be ended
python machine.py N WORD...                 `flywheel WORD...`, killed with -9 right before its N-th write to the store
                                            (0: never); it saves each EVERY times that it could
"""

import itertools
import os
import signal
import subprocess
import sys
from pathlib import Path

EVERY = 12


def start(cache: Path, *words: str, **environment: str) -> subprocess.Popen:
    """The machine with `cache`, at work on `words`; what it prints can be read from its stdout."""
    told = {**os.environ, "FLYWHEEL_CACHE": str(cache), "OMP_NUM_THREADS": "1", **environment}
    command = [sys.executable, __file__, *words]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=told)


def hold(run: str, url: str) -> None:
    from flywheel.runs import lease
    from flywheel.runs.run import Store

    lease.BEAT = 0.1
    place = Store(url)
    with place.mirror.hold(place.root / "runs" / run, run.partition("/")[0]):
        print("held", flush=True)
        signal.pause()


def work(writes: int, words: list[str]) -> int:
    from flywheel.cli import app
    from flywheel.corpus.objects import Objects
    from flywheel.runs import run

    asked = itertools.count(1)
    run.Run.due = lambda self, seconds=20.0: next(asked) % EVERY == 0 or self.stopping
    count = iter(range(writes - 1, -1, -1))
    for name in ("create", "replace", "hand_over", "remove"):
        setattr(Objects, name, _counted(getattr(Objects, name), writes, count))
    return app.main(words)


def _counted(write, writes: int, left):
    """`write`, of which the last one kills the process."""

    def counted(*args):
        if writes and next(left, 0) == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return write(*args)

    return counted


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent))
    sys.exit(hold(*sys.argv[2:]) if sys.argv[1] == "hold" else work(int(sys.argv[1]), sys.argv[2:]))
