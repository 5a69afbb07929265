"""Durable files: whole or not at all, one winner of several, a lock that says who holds it."""

import hashlib
import multiprocessing
import subprocess
import sys

import pytest

from flywheel import store


def _names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_write_atomic_replaces_and_leaves_nothing_beside(tmp_path):
    store.write_atomic(tmp_path / "a", b"one")
    store.write_atomic(tmp_path / "a", b"two")
    assert (tmp_path / "a").read_bytes() == b"two"
    assert _names(tmp_path) == ["a"]
    assert store.sha256_file(tmp_path / "a") == hashlib.sha256(b"two").hexdigest()


def test_link_new_never_replaces(tmp_path):
    assert store.link_new(tmp_path / "a", b"one")
    assert not store.link_new(tmp_path / "a", b"two")
    assert (tmp_path / "a").read_bytes() == b"one"
    assert _names(tmp_path) == ["a"]


def _race(folder, worker, results):
    results.put([number for number in range(50) if store.link_new(folder / str(number), str(worker).encode())])


def test_of_several_writers_one_wins_each_name(tmp_path):
    context = multiprocessing.get_context("fork")
    results = context.Queue()
    workers = [context.Process(target=_race, args=(tmp_path, worker, results)) for worker in range(3)]
    for worker in workers:
        worker.start()
    won = sorted(number for _ in workers for number in results.get(timeout=60))
    for worker in workers:
        worker.join()
    assert won == list(range(50))


def test_write_tree_appears_at_once_or_not_at_all(tmp_path):
    store.write_tree(tmp_path / "tree", {"a/b/c": b"1", "d": b"2"})
    assert (tmp_path / "tree/a/b/c").read_bytes() == b"1"
    with pytest.raises(TypeError):
        store.write_tree(tmp_path / "bad", {"a": b"1", "b": None})
    assert _names(tmp_path) == ["tree"]


def test_json_is_equal_bytes_for_equal_values_and_names_the_file_that_is_not_json(tmp_path):
    assert store.to_json({"b": 1, "a": 2}) == store.to_json({"a": 2, "b": 1})
    store.write_json(tmp_path / "a.json", {"file": "caf\udce9"})  # a file name that is not UTF-8
    assert store.read_json(tmp_path / "a.json") == {"file": "caf\udce9"}
    (tmp_path / "b.json").write_bytes(b"{")
    with pytest.raises(ValueError, match=r"b\.json: not JSON"):
        store.read_json(tmp_path / "b.json")


def test_lock_says_who_holds_it_and_goes_with_its_holder(tmp_path):
    program = (
        "import sys; from flywheel.store import Lock\n"
        "with Lock(sys.argv[1], what='nightly'): print('held', flush=True); sys.stdin.read()"
    )
    holder = subprocess.Popen(
        [sys.executable, "-c", program, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert holder.stdout.readline() == "held\n"
    with pytest.raises(store.LockError, match=rf"(?s)nightly \(pid {holder.pid} on .*since 20.*with Lock"):
        store.Lock(tmp_path, what="gc").__enter__()
    holder.kill()
    holder.wait()
    holder.stdin.close()
    holder.stdout.close()
    with store.Lock(tmp_path, what="gc"), pytest.raises(store.LockError, match=r"in use by gc \(pid"):
        store.Lock(tmp_path).__enter__()
    with store.Lock(tmp_path, wait=True):
        pass
