"""A real Slurm of two nodes on loopback, from Debian's packages (munge, slurmctld, slurmd, slurm-client), as root, in a
folder of its own: what it computes with 1, 2 and 5 jobs, with jobs killed and a node lost, is compared to this process.
Prints "equal". Usage: slurm_nodes.py FOLDER

    with nodes(FOLDER) as conf:     SLURM_CONF, for as long as the block lasts
"""

import contextlib
import os
import secrets
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from flywheel import executors
from flywheel.executors import slurm

NODES = 2
NEEDED = ("munged", "slurmctld", "slurmd", "sbatch")
CONF = """ClusterName=flywheel
SlurmctldHost=localhost
SlurmctldPort={port}
SlurmUser=root
AuthInfo=socket={folder}/munge.socket
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/%n.log
SlurmdParameters=config_overrides
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
MpiDefault=none
ReturnToService=2
MailProg=/bin/true
{nodes}
PartitionName=short Default=YES MaxTime=60 State=UP Nodes={names}
"""


def missing() -> str | None:
    """What keeps a Slurm from being started here."""
    from shutil import which

    lacking = [name for name in NEEDED if not which(name)]
    if lacking:
        return f"no {', '.join(lacking)}: apt-get install munge slurmctld slurmd slurm-client"
    return "Slurm's node daemon wants to be root" if os.geteuid() else None


@contextlib.contextmanager
def nodes(folder: Path, port: int = 16817) -> Iterator[str]:
    """A controller and its nodes, processes of this machine that end with the block."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "state").mkdir(exist_ok=True)
    key = folder / "munge.key"
    key.write_bytes(secrets.token_bytes(1024))
    key.chmod(0o400)
    names = [f"n{k + 1}" for k in range(NODES)]
    lines = [
        f"NodeName={name} NodeHostname=localhost NodeAddr=127.0.0.1 Port={port + 1 + k} CPUs=8 RealMemory=16000"
        for k, name in enumerate(names)
    ]
    conf = folder / "slurm.conf"
    conf.write_text(CONF.format(folder=folder, port=port, nodes="\n".join(lines), names=",".join(names)))
    munge = [f"--{what}={folder}/munge.{end}" for what, end in (("key-file", "key"), ("socket", "socket"))]
    munge += [f"--{what}={folder}/munge.{end}" for what, end in (("pid-file", "pid"), ("log-file", "log"))]
    commands = [
        ["munged", "--foreground", "--force", *munge, f"--seed-file={folder}/munge.seed"],
        ["slurmctld", "-D", "-f", str(conf)],
        *(["slurmd", "-D", "-N", name, "-f", str(conf)] for name in names),
    ]
    env, log = {**os.environ, "SLURM_CONF": str(conf)}, (folder / "daemons.log").open("w")
    started = []
    try:
        for command in commands:
            started.append(subprocess.Popen(command, env=env, stdout=log, stderr=log, start_new_session=True))
            if command[0] == "munged":
                _until(lambda: (folder / "munge.socket").exists(), started, folder)
        ready = ["sinfo", "--noheader", "--states=idle", "--format=%D"]
        _until(lambda: _said(ready, env) == str(NODES), started, folder)
        yield str(conf)
    finally:
        for process in reversed(started):  # the controller says goodbye with munge's help
            process.terminate()
            process.wait()
        log.close()


def _said(command: list[str], env: dict[str, str]) -> str:
    return subprocess.run(command, env=env, capture_output=True, text=True).stdout.strip()


def _until(done, started: list[subprocess.Popen], folder: Path) -> None:
    """Wait for it, unless a daemon ended; the daemons' last words in the error."""
    from threading import Event

    pause = Event()
    while not done():
        if any(process.poll() is not None for process in started):
            words = [line for path in sorted(folder.glob("*.log")) for line in path.read_text().splitlines()[-3:]]
            raise RuntimeError("a daemon ended: " + " | ".join(words))
        pause.wait(0.1)


def node_dies(marks: str, task: int) -> int:
    """The square; the first time task 2 takes its job's node out of the cluster, as one that failed."""
    mark = Path(marks) / f"node-{task}"
    if task == 2 and not mark.exists():
        mark.touch()
        node = os.environ["SLURMD_NODENAME"]
        subprocess.run(["scontrol", "update", f"NodeName={node}", "State=DOWN", "Reason=pulled"], check=True)
        signal.pause()
    return task * task


def job(task: int) -> str:
    return os.environ["SLURM_JOB_ID"]


def main(folder: str) -> None:
    """All of it, in some half a minute."""
    from test_executors import dies, doomed, drawn, wrong

    with nodes(Path(folder) / "slurm") as conf:
        os.environ["SLURM_CONF"] = conf

        def on_slurm(function, tasks, workers=2, stay=0):
            more = {"cluster": "slurm", "folder": folder, "minutes": 5, "mem_gb": 1, "slurm_partition": "short"}
            return executors.bound("slurm", workers, {**more, "stay": stay})(function, tasks)

        tasks = [(seed, 1000 - 150 * seed) for seed in range(6)]
        here = executors.named("local")(drawn, tasks)
        for workers in (1, 2, 5):
            there = on_slurm(drawn, tasks, workers)
            assert all(a.tobytes() == b.tobytes() for a, b in zip(here, there, strict=True)), workers
        squares = [task * task for task in range(6)]
        assert on_slurm(dies, [(folder, task, 3) for task in range(6)]) == squares
        for error, words, function, one in (
            (ValueError, "task 1 has no answer", wrong, [(0,), (1,), (2,)]),
            (RuntimeError, "executor=slurm: workers died", doomed, [(0,)]),
        ):
            try:
                on_slurm(function, one)
            except error as found:
                assert words in str(found), found
            else:
                raise AssertionError(f"nothing raised: {words}")
        assert on_slurm(node_dies, [(folder, task) for task in range(6)], 4) == squares
        stayed = {one for _ in range(4) for one in on_slurm(job, [(k,) for k in range(40)], stay=60)}
        assert len(stayed) <= 2, "jobs did not stay"
        assert on_slurm(dies, [(folder, task, 3) for task in range(6, 12)], stay=60) == [k * k for k in range(6, 12)]
        slurm.leave()
        left = _said(["squeue", "--noheader", "--states=running,pending"], dict(os.environ))
        assert not left, f"jobs that nobody waits for: {left}"
    print("equal")


if __name__ == "__main__":
    main(sys.argv[1])
