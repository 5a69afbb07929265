"""Damaged and hostile recordings of every format, in one ingest with good ones: `python tests/fuzz.py --count 3000`.

Each is read right, or quarantined with its reason, while all the good ones are taken; no file of somebody else is
opened (looked at from Python, by an audit hook, and from the kernel, by inotify); memory stays below what the file can
hold and a constant."""

import argparse
import ctypes
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import fuzz_inputs
import gymnasium as gym
import numpy as np
from small import outcome

from flywheel.cli import config
from flywheel.log import progress
from flywheel.runs import run

BATCH = 20  # damaged ones in one ingest, with a good one
GOOD = 10**6  # the number of the good ones
ROOM = 4 * 2**30  # address space beyond that of the beginning; threads reserve some of it
MOST = 600 * 2**20  # resident memory beyond that of the beginning: 64 MiB in every copy that a reader makes on the way


class Any(gym.Env):
    """Three numbers seen, two done."""

    observation_space, action_space = gym.spaces.Box(-np.inf, np.inf, (3,)), gym.spaces.Box(-1, 1, (2,))

    def reset(self, *, seed=None, options=None):
        return np.zeros(3, np.float32), {}

    def step(self, action):
        return np.zeros(3, np.float32), 0.0, False, False, {"success": False}


if "Any-v0" not in gym.registry:
    gym.register("Any-v0", entry_point=Any, max_episode_steps=9)


class Watch:
    """Says whether anybody opened something in a folder: in C (inotify) or in Python (an audit hook)."""

    def __init__(self, folder):
        self.folder, self.opened = str(folder), []
        libc = ctypes.CDLL(None, use_errno=True)
        self.fd = libc.inotify_init1(os.O_NONBLOCK)
        self.names = {}
        for path in [Path(folder), *Path(folder).rglob("*")]:
            if path.is_file():
                self.names[libc.inotify_add_watch(self.fd, str(path).encode(), 0x21)] = str(path)  # IN_OPEN, IN_ACCESS
        self.on = True
        sys.addaudithook(self._hook)

    def _hook(self, event, words):
        if (
            self.on
            and event == "open"
            and isinstance(words[0], (str, bytes))
            and self.folder in os.path.realpath(os.fsdecode(words[0]))
        ):
            self.opened.append(os.fsdecode(words[0]))

    def end(self):
        """What was opened."""
        self.on = False
        try:
            seen = os.read(self.fd, 2**16)
        except BlockingIOError:
            seen = b""
        os.close(self.fd)
        return [*self.opened, *(self.names.get(int.from_bytes(seen[:4], "little"), "?") for _ in seen[:1])]


def memory(what):
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(what):
            return int(line.split()[1]) * 1024
    return 0


def write(folder, name, numbers):
    """Damaged recordings and a good one in folder/source, and in done.json what was done to each."""
    source, done, (suffix, good) = folder / "source", {}, fuzz_inputs.GOOD[name]
    source.mkdir(parents=True)
    traps = fuzz_inputs.Traps(folder / "theirs")
    for number in numbers:
        rng = np.random.default_rng([number, sum(name.encode())])
        _, done[f"bad{number}"] = fuzz_inputs.make(source, name, number, rng, traps)
    good(source / (f"good.{suffix}" if suffix else "good"), GOOD)
    for path in source.glob("of-*"):
        shutil.rmtree(path)
    (folder / "done.json").write_text(json.dumps(done))


def ingest(folder, name):
    """One ingest of what `write` wrote; a Counter of outcomes."""
    done, watch = json.loads((folder / "done.json").read_text()), Watch(folder / "theirs")
    words = ["task=gym", "task.id=fuzz:Any-v0", "task.max_steps=9", f"format={name}"]
    words += ["obs_keys=[a,b]"] if name == "robomimic_hdf5" else []
    cfg = config.compose("ingest", [f"source={folder / 'source'}", *words])
    made = outcome("ingest", cfg, run.Store(folder / "store"))
    opened = watch.end()
    assert not opened, (name, done, opened)
    return judged(folder, name, made, done)


def judged(folder, name, made, done):
    """Compare what was taken with what was written; a Counter of outcomes."""
    place = run.Store(folder / "store")
    quarantined = run.store.read_json(folder / "store" / "runs" / made["run"] / "out" / "quarantine.json")
    bad, taken = Counter(), Counter()
    for one in quarantined:
        assert one["reason"] and len(one["reason"]) < 2100 and not one.get("passing"), one
        assert "MemoryError" not in one["reason"], one
        bad[stem(one["file"])] += 1
    rows = {
        row.tobytes()
        for number in [*(int(k[3:]) for k in done), GOOD]
        for r in fuzz_inputs.recordings(number)
        for row in r["state"]
    }
    for episode in place.corpus().at("latest"):
        key = stem(episode.meta.get("trial") or episode.meta["file"])
        if episode.meta.get("trial_only"):
            taken[key] += 1
            continue
        taken[key] += 1
        for value in (episode.obs["state"], episode.action):
            assert not (np.abs(value - fuzz_inputs.CANARY) < 1).any(), (
                name,
                key,
                done.get(key),
                "somebody else's numbers",
            )
        blind = key in done and not set(done[key].split("+")).isdisjoint(fuzz_inputs.BLIND)
        if not blind and name not in ("ros2_mcap", "hand_dapg_policy"):
            assert {row.tobytes() for row in episode.obs["state"]} <= rows, (
                name,
                key,
                done[key],
                "rows that nobody wrote",
            )
    expected = {"aloha_hdf5": 1, "ros2_mcap": 1, "hand_dapg_policy": 0}.get(name, 3)
    assert taken["good"] == expected, (name, taken, [q for q in quarantined if stem(q["file"]) == "good"])
    out = Counter()
    for key, what in done.items():
        assert taken[key] or bad[key] or made["metrics"]["duplicates"], (name, key, what, "nothing was said")
        out["read right" if not bad[key] else "quarantined in part" if taken[key] else "quarantined"] += 1
    return out


def stem(file):
    return file.split(".")[0]


def batches(count, first, formats):
    """(format, numbers) of `count` inputs from number `first` on, the formats in turn."""
    names = list(formats or fuzz_inputs.GOOD)
    end = first - (-count // len(names))
    return [(name, range(at, min(at + BATCH, end))) for name in names for at in range(first, end, BATCH)]


def read(folder, todo):
    """Ingest every batch; a Counter of outcomes. AssertionError for the first that is not as promised."""
    out, start = Counter(), memory("VmRSS")
    resource.setrlimit(resource.RLIMIT_AS, (memory("VmSize") + ROOM, resource.RLIM_INFINITY))
    with progress("fuzz", len(todo)) as tick:
        for name, numbers in todo:
            out += ingest(folder / f"{name}-{numbers[0]}", name)
            used = (
                memory("VmHWM") - start
            )  # of this process alone; getrusage tells also that of the one that started it
            assert used < MOST, f"{name} {numbers}: {used:,} bytes beyond the beginning"
            tick()
    return {"inputs": sum(out.values()), **out, "MB": used // 2**20}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--formats", nargs="*", default=None)
    parser.add_argument("--write", type=Path, help="only write them, into this folder")
    asked = parser.parse_args()
    todo = batches(asked.count, asked.first, asked.formats)
    if asked.write:
        for name, numbers in todo:
            write(asked.write / f"{name}-{numbers[0]}", name, numbers)
        return
    with tempfile.TemporaryDirectory() as folder:  # written by another process: bombs take memory to make
        subprocess.run([sys.executable, *sys.argv, "--write", folder], check=True)
        print(json.dumps(read(Path(folder), todo)))


if __name__ == "__main__":
    sys.modules["fuzz"] = sys.modules["__main__"]
    main()
