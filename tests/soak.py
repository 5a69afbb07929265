"""The durability tests at length: `make soak`. What each part does and the figures are in docs/reliability.md.

kills       two writers at a time, each killed with -9 at a random point; every acknowledged version is checked after each
            turn, and at the end gc frees every orphan
writers     8 processes x 25 appends at once: none lost, none twice
damage      a random byte flipped or a random file cut, again and again: fsck names the file and no reader is served
objects     kills and writers again, on an S3 server (moto) on loopback
model       the state machine of test_corpus_model.py, 20 times as long as in CI
inputs      thousands of damaged and hostile recordings over all formats (fuzz.py)
"""

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import servers
import test_corpus_model
from camera_cases import seen
from corpus_cases import episode, same
from hypothesis import settings
from hypothesis.stateful import run_state_machine_as_test
from test_corpus_crash import check, finish, start

from flywheel.corpus import Corpus, CorpusError
from flywheel.corpus.maintenance import fsck, gc
from flywheel.log import progress


def kills(place: Path | str, turns: int) -> str:
    corpus, chance, acknowledged = Corpus(place, create=True), random.Random(1), []
    corpus.append([seen(0)])
    with progress("kills", 2 * turns) as tick:
        for turn in range(turns):
            writers = [start(place, 1000 * (2 * turn + n) + 1, 50, chance.randrange(60_000)) for n in (0, 1)]
            lines = []
            for writer in writers:
                status, more = finish(writer)
                assert status == -signal.SIGKILL
                lines += more
                tick()
            acknowledged += lines
            fresh = Corpus(place)
            for version, seed, _ in lines:
                assert seen(seed).hash in fresh.at(version).hashes
                same(fresh.at("latest").read(seen(seed).hash), seen(seed))
    corpus = check(place, acknowledged)
    freed = gc(corpus, grace=-60, dry_run=False)
    assert corpus.orphans() == {} and corpus.files.leftovers() == {} and fsck(corpus) == []
    return (
        f"{2 * turns} kills: {len(acknowledged)} acknowledged appends, all there and equal to the last bit, "
        f"{len(acknowledged) - sum(new for *_, new in acknowledged)} of them duplicates; {corpus.head} versions; "
        f"gc freed {len(freed)} leftovers, fsck found nothing"
    )


def writers(place: Path | str, count: int, appends: int) -> str:
    Corpus(place, create=True)
    ended = [finish(writer) for writer in [start(place, 1000 * (n + 1) + 1, appends) for n in range(count)]]
    assert all(status == 0 for status, _ in ended)
    lines = [line for _, part in ended for line in part]
    assert len(lines) == count * appends
    corpus = check(place, lines)
    added = [version for version, _, new in lines if new]
    assert len(added) == len(set(added)) == corpus.head == len(corpus.at("latest")) and fsck(corpus) == []
    return f"{count} processes x {appends} appends at once: {len(added)} versions, none lost, none twice, {len(lines) - len(added)} duplicates refused"


def damage(place: Path, times: int) -> str:
    corpus, chance = Corpus(place, create=True), random.Random(2)
    for seed in range(40):
        corpus.append([episode(seed), episode(100 + seed, width=5)])
    files = [path for path in place.rglob("*") if path.is_file() and path.parent != place]
    served = 0
    with progress("damage", times) as tick:
        for _ in range(times):
            path = chance.choice(files)
            data = path.read_bytes()
            at = chance.randrange(len(data))
            path.write_bytes(data[:at] if chance.random() < 0.5 else data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])
            named = {finding.where for finding in fsck(Corpus(place))}
            assert path.relative_to(place).as_posix() in named, (path, at, named)
            try:
                for one in Corpus(place).at("latest"):
                    same(one, episode(one.seed, width=one.obs["state"].shape[1]))
                served += 1  # the file was not needed: every episode is what it was
            except CorpusError:
                pass
            path.write_bytes(data)
            tick()
    assert fsck(Corpus(place)) == []
    return f"{times} damaged files: all named by fsck; {times - served} times an error, {served} times not needed, never other data"


def objects(turns: int, count: int, appends: int) -> str:
    with servers.s3() as (url, environment):
        os.environ |= environment
        return f"on S3 (moto): {kills(f'{url}/kills', turns)}; {writers(f'{url}/writers', count, appends)}"


def model(examples: int) -> str:
    run_state_machine_as_test(
        test_corpus_model.Model,
        settings=settings(test_corpus_model.Model.TestCase.settings, max_examples=examples, stateful_step_count=30),
    )
    return f"{examples} random histories of up to 30 operations agree with the model"


def inputs(count: int) -> str:
    """In processes of a tenth each: memory is counted from the beginning of one."""
    seen = Counter()
    for part in range(10):
        words = ["--count", str(-(-count // 10)), "--first", str(100_000 * part)]
        done = subprocess.run(
            [sys.executable, Path(__file__).with_name("fuzz.py"), *words], capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr[-5000:]
        told = json.loads(done.stdout.splitlines()[-1])
        most = max(seen.pop("MB", 0), told.pop("MB"))
        seen += Counter(told)
        seen["MB"] = most
    return (
        f"{seen['inputs']} damaged and hostile recordings: {seen['read right']} read right, "
        f"{seen['quarantined in part']} in part and "
        f"{seen['quarantined']} whole quarantined, every good one beside them taken, no other file opened, at most "
        f"{seen['MB']} MB"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scale", type=float, default=1.0, help="a fraction of it (default %(default)s)")
    part = parser.parse_args().scale
    began = time.monotonic()

    def times(number: int) -> int:
        return max(1, round(part * number))

    with tempfile.TemporaryDirectory() as folder:
        os.environ["FLYWHEEL_CACHE"] = f"{folder}/cache"
        for run in (
            lambda: kills(Path(folder) / "kills", times(100)),
            lambda: writers(Path(folder) / "writers", 8, times(25)),
            lambda: damage(Path(folder) / "damage", times(200)),
            lambda: objects(times(10), 4, times(10)),
            lambda: model(times(200)),
            lambda: inputs(times(3000)),
        ):
            print(f"{run()}  [{time.monotonic() - began:.0f} s]", flush=True)


if __name__ == "__main__":
    main()
