"""A store that machines share, on an object store: runs, names and ledger. Real servers, started by tests/servers.py;
a machine is a cache of its own."""

import os
import random
import signal
import threading
from pathlib import Path

import machine
import pytest
import servers
import small
import toy

import flywheel
from flywheel import store
from flywheel.cli import app, commands, doctor
from flywheel.corpus import objects
from flywheel.corpus.copies import Copies
from flywheel.runs import lease, lineage
from flywheel.runs.mirror import DamagedError
from flywheel.runs.names import Moved
from flywheel.runs.run import RunError, Store

remote = pytest.mark.parametrize("place", ["s3", "az"], indirect=True)
A, B, C = (digit * 64 for digit in "abc")
NAME = "policy/Reach-v0"


def words(url: str, folder: Path) -> list[str]:
    return [f"store={url}" if word.startswith("store=") else word for word in small.words(folder)]


def store_at(url: str, cache: Path) -> Store:
    """The store as another machine sees it."""
    with pytest.MonkeyPatch.context() as its:
        its.setenv("FLYWHEEL_CACHE", str(cache))
        return Store(url)


def at_once(*calls) -> list:
    """What each call answers, or raises, all begun at the same moment."""
    together, found = threading.Barrier(len(calls)), [None] * len(calls)

    def work(number, call):
        together.wait()
        try:
            found[number] = call()
        except Exception as error:
            found[number] = error

    threads = [threading.Thread(target=work, args=row) for row in enumerate(calls)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return found


@pytest.fixture(scope="module")
def shared(s3_server, tmp_path_factory):
    """(URL of a store after one nightly, the folder of its demonstrations). The machine that was at it was killed with
    -9 while it retrained; another one, that has nothing but the store, went on."""
    url, environment = s3_server
    folder, url = tmp_path_factory.mktemp("shared"), f"{url}/night-{os.urandom(4).hex()}"
    kills(url, folder, environment, [90])
    return url, folder


def kills(url: str, folder: Path, environment: dict[str, str], writes: list[int]) -> None:
    """A night on one machine after the other, each but the last killed right before so many writes to the store."""
    folder.mkdir(exist_ok=True)
    toy.demonstrations(folder / "demos.hdf5")
    more = {**environment, "FLYWHEEL_LEASE": "0"}  # we know that those before are gone
    for number, count in enumerate(writes):
        ended = machine.start(folder / f"machine{number}", str(count), *words(url, folder), **more)
        with ended.stdout:
            assert ended.wait() == -signal.SIGKILL, (number, count)
    with pytest.MonkeyPatch.context() as its:
        for name, value in {**more, "FLYWHEEL_CACHE": str(folder / "last")}.items():
            its.setenv(name, value)
        assert app.main(words(url, folder)) == 0


@pytest.fixture
def other(shared, s3_server, tmp_path, monkeypatch):
    """The same, seen from a machine that has nothing of it yet."""
    for name, value in {**s3_server[1], "FLYWHEEL_CACHE": str(tmp_path / "cache")}.items():
        monkeypatch.setenv(name, value)
    return shared


@pytest.mark.slow
def test_machines_that_are_killed_make_together_what_one_makes_in_a_folder(night, other, tmp_path, capsys):
    url, folder = other
    assert small.hashes(Store(url)) == small.hashes(night[1])
    code, out = small.call(*words(url, folder), capsys=capsys)  # on another machine: nothing is new
    assert (code, out["status"]) == (0, "noop")
    for command in (["runs"], ["lineage", NAME], ["status"], ["report"], ["fsck"], ["corpus", "show"]):
        assert small.call(*command, f"store={url}", capsys=capsys)[0] == 0, command
    assert doctor.shared(Store(url))[0] == "good" and Store(url).mirror.objects.listed("doctor") == []
    policy, same = flywheel.load(NAME, store=url), night[1].load(NAME)
    assert policy.spec == same.spec
    here = [path.name for path in (tmp_path / "cache" / "stores").rglob("*.safetensors")]
    assert len(here) == 1  # what was asked for, no more
    mirror = Store(url).mirror
    there = [e["path"] for part in ("report", "runs", "names", "leases") for e in mirror.objects.listed(part)]
    assert "report/index.html" in there and mirror.at_work() == {}
    assert [name for name in there if "/ckpt/" in name or "beat.json" in name or "error.txt" in name] == []
    written = [mirror.objects.read(name) for name in there]
    written += [p.read_bytes() for at in (tmp_path, folder) for p in at.rglob("*") if p.is_file()]
    assert len(written) > 100 and not [data for data in written if servers.S3_SECRET.encode() in data]


@pytest.mark.slow
def test_a_damaged_object_is_found_by_fsck_and_by_who_needs_it(other, capsys):
    url, _ = other
    place = Store(url)
    objects, weights = place.mirror.objects, place.names.resolve(NAME)["path"]
    scores = next(e["path"] for e in objects.listed("runs") if e["path"].endswith("out/checkpoint.npz"))
    entry = f"names/{NAME}/00000002.json"
    whole = {name: objects.read(name) for name in (weights, scores, entry)}
    try:
        for name, data in whole.items():
            objects.replace(name, data[:-9] + b"?" + data[-8:])
        code, out = small.call("fsck", f"store={url}", capsys=capsys)
        told = "\n".join(out["findings"])
        assert code == 1 and "out/checkpoint.npz is not what was written" in told and f"{url}/{entry}: this" in told
        objects.replace(entry, whole[entry])
        assert f"its weights are damaged ({weights})" in "\n".join(
            small.call("fsck", f"store={url}", capsys=capsys)[1]["findings"]
        )
        with pytest.raises(DamagedError, match=f"{weights} is damaged: its sha256 .* or remove {url}/runs/"):
            flywheel.load(NAME, store=url)
        with pytest.raises(DamagedError, match="out/checkpoint.npz is damaged"):
            Store(url).dir("/".join(scores.split("/")[1:3]))
        objects.remove(weights)
        objects.remove(scores)
        with pytest.raises(RunError, match=f"{url}/{weights}: the weights of {NAME}@.* are gone"):
            flywheel.load(NAME, store=url)
        with pytest.raises(DamagedError, match="out/checkpoint.npz is gone"):
            Store(url).dir("/".join(scores.split("/")[1:3]))
    finally:
        for name, data in whole.items():
            objects.replace(name, data)
    file = place.checkpoint(NAME)["file"]
    file.write_bytes(file.read_bytes()[:-1] + b"?")
    assert store.sha256_file(place.checkpoint(NAME)["file"]) == place.names.resolve(NAME)["sha256"]  # fetched again
    assert small.call("fsck", f"store={url}", capsys=capsys)[1]["findings"] == []


@pytest.mark.slow
def test_what_does_not_work_on_a_shared_store_says_so(other, tmp_path):
    url, _ = other
    with pytest.raises(RunError, match=f"a replay works on a copy .*aws s3 sync {url} DIR"):
        lineage.scratch(Store(url), tmp_path / "copy", set())


@pytest.mark.slow
def test_killed_at_many_writes_nothing_is_lost(night, s3_server, tmp_path, monkeypatch):
    for name, value in s3_server[1].items():
        monkeypatch.setenv(name, value)
    rng = random.Random(0)
    for loop in range(2):
        url = f"{s3_server[0]}/many-{loop}-{os.urandom(4).hex()}"
        kills(url, tmp_path / str(loop), {}, [rng.randint(1, 50) for _ in range(6)])
        monkeypatch.setenv("FLYWHEEL_CACHE", str(tmp_path / str(loop) / "reader"))
        assert small.hashes(Store(url)) == small.hashes(night[1])


@remote
def test_a_run_is_held_by_one_machine_and_others_are_told(place, tmp_path, monkeypatch):
    run, here = "pretrain/0123456789abcdef", Store(place)
    folder = here.root / "runs" / run
    holder = machine.start(tmp_path / "holder", "hold", run, place)
    assert holder.stdout.readline() == "held\n"
    monkeypatch.setattr(lease, "LOOK", 0.1)
    told = f"cannot start, the run is in use by pretrain .pid {holder.pid} on .*, since 2.*command: .*machine.py hold"
    with pytest.raises(store.LockError, match=told), here.mirror.hold(folder, "pretrain"):
        pass
    assert [(name, who["pid"]) for name, (who, _) in here.mirror.at_work().items()] == [(run, holder.pid)]
    holder.kill()
    holder.wait()
    again = machine.start(tmp_path / "holder", "hold", run, place)  # its own lease, of a process that is gone
    assert again.stdout.readline() == "held\n"
    again.kill()
    again.wait()
    monkeypatch.setenv("FLYWHEEL_LEASE", "0")  # we know that it is gone
    with here.mirror.hold(folder, "pretrain"):
        pass
    monkeypatch.delenv("FLYWHEEL_LEASE")
    assert here.mirror.at_work() == {}
    for process in (holder, again):
        process.stdout.close()


@remote
def test_a_machine_whose_lease_was_taken_over_hands_nothing_over(place, tmp_path, monkeypatch):
    run = "pretrain/0123456789abcdef"
    slow, quick = (store_at(place, tmp_path / name) for name in ("slow", "quick"))
    folder, same = (one.root / "runs" / run for one in (slow, quick))
    with slow.mirror.hold(folder, "pretrain"):
        (folder / "out").mkdir()
        (folder / "out" / "a").write_bytes(b"made")
        slow.mirror.keep(folder)
        with pytest.MonkeyPatch.context() as its:
            its.setenv("FLYWHEEL_LEASE", "0")
            taken = quick.mirror.hold(same, "pretrain")
            taken.__enter__()
        assert (same / "out" / "a").read_bytes() == b"made"  # it goes on from there
        (folder / "out" / "a").write_bytes(b"late")
        with pytest.raises(store.LockError, match="pretrain ends here: the run is in use by pretrain"):
            slow.mirror.commit(folder, {"by": "slow"})
        quick.mirror.commit(same, {"by": "quick"})
        taken.__exit__(None, None, None)
    objects = Store(place).mirror.objects
    assert objects.read(f"runs/{run}/out/a") == b"made" and b"quick" in objects.read(f"runs/{run}/_DONE.json")
    assert [entry["path"] for entry in objects.listed("leases")] == [lease.CLOCK]


@remote
def test_of_eight_machines_at_the_same_moment_one_holds_the_run(place, tmp_path):
    run, machines = "pretrain/0123456789abcdef", [store_at(place, tmp_path / str(n)) for n in range(8)]
    for _ in range(3):
        leases = [lease.Lease(one.mirror.objects, run, "pretrain", str(n)) for n, one in enumerate(machines)]
        found = at_once(*(it._take for it in leases))
        (holder,) = (it for it, busy in zip(leases, found, strict=True) if busy == "")
        assert all(
            "the run is in use by pretrain (pid " in busy
            for it, busy in zip(leases, found, strict=True)
            if it != holder
        )
        holder.say()
        holder.held()
        holder.give_back(done=False)


@remote
def test_two_that_move_a_name_at_once_one_wins_and_the_other_is_told(place, tmp_path):
    one, two = (store_at(place, tmp_path / name).names for name in "ab")
    for digest in (A, B, C):
        one.make("policy/x", digest, f"runs/pretrain/{digest[:4]}/out/p.safetensors", "pretrain/x")
    one.promote("policy/x", A, "nightly/0", "the first", over=None)
    calls = (lambda: one.promote("policy/x", B, "promote/1", "better", over=A[:12]),
             lambda: two.promote("policy/x", C, "promote/2", "better", over=A[:12]))  # fmt: skip
    found = at_once(*calls)
    assert {type(answer) for answer in found} == {dict, Moved}
    (won,) = (answer for answer in found if isinstance(answer, dict))
    assert one.production("policy/x") == two.production("policy/x") == won["id"]


@remote
def test_eight_writers_lose_no_entry_and_no_number_is_given_out_twice(place, tmp_path):
    machines = [store_at(place, tmp_path / str(n)) for n in range(8)]

    def work(number, one):
        one.names.make("policy/x", f"{number}" * 64, f"runs/pretrain/{number}/out/p", f"pretrain/{number}")
        return one.ledger.take("night", f"nightly/{number}")

    assert sorted(at_once(*(lambda n=n, one=one: work(n, one) for n, one in enumerate(machines)))) == [*range(8)]
    logs = [[entry["id"] for entry in one.names.log("policy/x")] for one in machines]
    assert all(log == logs[0] for log in logs) and sorted(logs[0]) == [f"{n}" * 12 for n in range(8)]


@remote
def test_what_another_machine_removed_is_gone_here_and_a_run_begins_from_what_the_store_has(place, tmp_path):
    one, two = (store_at(place, tmp_path / name) for name in "ab")
    run = "pretrain/0123456789abcdef"
    folder, same = (each.root / "runs" / run for each in (one, two))
    with one.mirror.hold(folder, "pretrain"):
        (folder / "ckpt").mkdir()
        (folder / "ckpt" / "state.safetensors").write_bytes(b"first")
        one.mirror.keep(folder)
        (folder / "ckpt" / "state.safetensors").write_bytes(b"killed before it was handed over")
    with two.mirror.hold(same, "pretrain"):
        assert (same / "ckpt" / "state.safetensors").read_bytes() == b"first"
        (same / "ckpt" / "state.safetensors").write_bytes(b"second")
        two.mirror.keep(same)
    with one.mirror.hold(folder, "pretrain"):
        assert (folder / "ckpt" / "state.safetensors").read_bytes() == b"second"
        one.mirror.commit(folder, {"stage": "pretrain", "key": "k", "finished": "", "files": {}})
    assert [done["key"] for done in two.runs()] == ["k"]
    one.mirror.objects.remove(f"runs/{run}/_DONE.json")
    os.utime(same / "_DONE.json", (0, 0))  # it was fetched long ago
    assert two.runs() == [] and not (same / "_DONE.json").exists()


@pytest.mark.slow
def test_gc_takes_runs_that_nobody_goes_on_with(other, tmp_path, monkeypatch, capsys):
    url, _ = other
    place, runs = Store(url), [f"pretrain/{digit * 16}" for digit in "01"]
    for run in runs:
        place.mirror.objects.replace(f"runs/{run}/config.yaml", b"seed: 1\n")
    assert small.call("gc", f"store={url}", "apply=true", capsys=capsys)[1]["metrics"]["places"] == 0  # too young
    monkeypatch.setattr(commands, "GRACE", -60)
    holder = store_at(url, tmp_path / "holder")
    with holder.mirror.hold(holder.root / "runs" / runs[0], "pretrain"):
        assert small.call("gc", f"store={url}", capsys=capsys)[1]["metrics"]["places"] == 1
        assert small.call("gc", f"store={url}", "apply=true", capsys=capsys)[1]["metrics"]["places"] == 1
    assert [name for name in runs if place.mirror.objects.listed(f"runs/{name}")] == runs[:1]
    place.mirror.drop(runs[0])
    assert place.mirror.abandoned(9e9) == {} and small.hashes(place)


@remote
def test_large_files_are_the_same_there_and_back(place, tmp_path, monkeypatch):
    monkeypatch.setattr(objects, "PART", 1 << 16)
    one, two = (store_at(place, tmp_path / name) for name in "ab")
    path = store.make_dirs(one.root / "runs" / "pretrain" / "x" / "out") / "large.safetensors"
    path.write_bytes(random.Random(0).randbytes(11 << 20))
    one.mirror.hand_over(path)
    digest = store.sha256_file(path)
    assert two.mirror.digest(one.mirror._inside(path)) == digest
    assert store.sha256_file(two.mirror.weights(one.mirror._inside(path), digest)) == digest


def test_copies_that_make_room_leave_runs_at_work_alone(tmp_path, monkeypatch):
    monkeypatch.setenv("FLYWHEEL_CACHE_GB", "0")
    (tmp_path / "stores" / "one").mkdir(parents=True)
    (tmp_path / "stores" / "one" / "state").write_bytes(b"x")
    Copies("s3://a/x", tmp_path).keep("a", b"12")
    Copies("s3://a/x", tmp_path).keep("b", b"12")
    assert sorted(path.name for path in tmp_path.rglob("*") if path.is_file()) == ["b", "state"]


@remote
def test_weights_of_finished_runs_make_room_and_are_fetched_again(place, tmp_path, monkeypatch):
    monkeypatch.setenv("FLYWHEEL_CACHE_GB", "0")
    one, made = store_at(place, tmp_path / "a"), {}
    for name in "xyz":
        run = one.mirror.root / "runs" / "pretrain" / name
        path = store.make_dirs(run / "out") / "policy.safetensors"
        path.write_bytes(name.encode() * 1000)
        made[name] = one.mirror._inside(path), store.sha256_file(path)
        if name != "z":  # z is at work
            one.mirror.hand_over(path)
            one.mirror.commit(run, {"files": {}})
    here = lambda: sorted(p.parts[-3] for p in one.mirror.root.rglob("*.safetensors"))  # noqa: E731
    assert here() == ["y", "z"]
    assert store.sha256_file(one.mirror.weights(*made["x"])) == made["x"][1] and here() == ["x", "z"]
    assert (one.mirror.root / "runs/pretrain/y/_DONE.json").exists()


@pytest.mark.parametrize("seconds", ["-1", "soon", "inf", "nan"])
def test_a_patience_that_is_none_is_refused(monkeypatch, seconds):
    monkeypatch.setenv("FLYWHEEL_LEASE", seconds)
    with pytest.raises(ValueError, match="FLYWHEEL_LEASE=.*expected seconds"):
        lease.patience()
