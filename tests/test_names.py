"""Names of checkpoints: made, promoted, refused, rolled back, found again."""

import multiprocessing

import pytest

from flywheel.runs.names import Moved, Names, NamesError

A, B, C = (digit * 64 for digit in "abc")


@pytest.fixture
def names(tmp_path):
    names = Names(tmp_path)
    for run, sha256 in enumerate((A, B, C)):
        names.make(
            "policy/lift", sha256, f"runs/pretrain/{run}/out/policy.safetensors", f"r{run}", parents=["corpus@1"]
        )
    return names


def test_a_name_alone_is_the_newest_until_something_is_promoted(names):
    record = names.resolve("policy/lift")
    assert (record["id"], record["sha256"], record["run"]) == (C[:12], C, "r2")
    assert record["path"] == "runs/pretrain/2/out/policy.safetensors"
    assert record["parents"] == ["corpus@1"] and not record["production"]
    names.promote("policy/lift", A[:12], "gate-1", "0.9 against 0.5")
    assert names.resolve("policy/lift")["id"] == names.resolve("policy/lift@production")["id"] == A[:12]
    assert names.resolve("policy/lift@bbbbbb")["run"] == "r1"
    assert names.resolve(f"policy/lift@{B}")["run"] == "r1"


def test_rollback_walks_back_through_what_was_production(names):
    for run, sha256 in enumerate((A, B, C)):
        names.promote("policy/lift", sha256, f"gate-{run}", "better")
    assert names.rollback("policy/lift", "fails on Mondays") == B[:12]
    assert names.rollback("policy/lift", "and Tuesdays") == A[:12]
    names.promote("policy/lift", C, "gate-9", "fixed")
    assert names.rollback("policy/lift", "no") == A[:12]
    with pytest.raises(NamesError, match="only aaaaaaaaaaaa was ever promoted"):
        names.rollback("policy/lift", "further")
    assert names.log("policy/lift")[-1]["reason"] == "no"


def test_production_goes_back_over_several_at_once(names):
    """To the best of what stood there, by the lower end of the interval of all that the gate saw of it."""
    ids = [digest[:12] for digest in (A, B, C)]
    for run, (id_, over) in enumerate(zip(ids, (None, *ids), strict=False)):
        seen = {"candidate": [6, 10], "incumbent": [9, 10]} if over else {}
        names.promote("policy/lift", id_, f"gate-{run}", "better", over=over, success=seen)
    assert names.high_water("policy/lift") == (ids[0], [9, 10])  # of B: 15 of 20
    names.refuse("policy/lift", A, "gate-8", "no", over=ids[2], success={"candidate": [0, 10], "incumbent": [5, 10]})
    assert names.high_water("policy/lift") == (ids[1], [15, 20])
    with pytest.raises(Moved, match="production is"):
        names.restore("policy/lift", ids[0], "gate-9", "better", over=ids[1])
    entry = names.restore("policy/lift", ids[0], "gate-9", "better", over=ids[2])
    assert (entry["op"], entry["from"], names.production("policy/lift")) == ("rollback", ids[2], ids[0])
    assert names.high_water("policy/lift") is None
    with pytest.raises(NamesError, match="only aaaaaaaaaaaa was ever promoted"):
        names.rollback("policy/lift", "further")


def test_the_same_run_again_adds_nothing_and_does_not_undo_a_rollback(names):
    names.promote("policy/lift", A, "gate-0", "better")
    names.promote("policy/lift", B, "gate-1", "better")
    names.rollback("policy/lift", "worse on the robot")
    before = names.log("policy/lift")
    names.make("policy/lift", B, "elsewhere", "r1")
    names.promote("policy/lift", B, "gate-1", "better")
    assert names.log("policy/lift") == before
    assert names.resolve("policy/lift")["id"] == A[:12]
    names.promote("policy/lift", B, "", "by hand")
    assert names.resolve("policy/lift")["id"] == B[:12]


def test_refused_candidates_stay_with_their_reason(names):
    names.promote("policy/lift", A, "gate-0", "first")
    names.refuse("policy/lift", B, "gate-1", "0.50 against 0.52", p=0.7)
    assert names.resolve("policy/lift")["id"] == A[:12]
    assert names.log("policy/lift")[-1]["reason"] == "0.50 against 0.52"
    assert names.log("policy/lift")[-1]["p"] == 0.7
    assert names.resolve("policy/lift@bbbb")["id"] == B[:12]


def test_errors_list_what_there_is(names, tmp_path):
    with pytest.raises(NamesError, match=r"no name 'policy/lfit'.*There are: policy/lift"):
        names.resolve("policy/lfit")
    with pytest.raises(NamesError, match=r"no checkpoint of that id\. There are: cccccccccccc .*aaaaaaaaaaaa"):
        names.resolve("policy/lift@123456")
    with pytest.raises(NamesError, match=r"nothing was promoted yet\. There are: cccccccccccc"):
        names.resolve("policy/lift@production")
    with pytest.raises(NamesError, match="nothing was promoted yet"):
        names.rollback("policy/lift", "why")
    with pytest.raises(NamesError, match="such as policy/lift"):
        names.make("../evil", A, "x", "r")
    with pytest.raises(NamesError, match="expected the sha256"):
        names.make("policy/lift", "xyz", "x", "r")
    names.make("policy/push", A, "x", "r")
    assert names.names() == Names(tmp_path).names() == ["policy/lift", "policy/push"]


def _promote(folder, worker):
    names = Names(folder)
    for number in range(10):
        names.make("policy/lift", f"{worker:x}{number:x}" * 32, "path", f"run-{worker}-{number}")
        names.promote("policy/lift", f"{worker:x}{number:x}" * 32, f"gate-{worker}-{number}", "better")


def test_concurrent_writers_lose_nothing(tmp_path):
    context = multiprocessing.get_context("fork")
    workers = [context.Process(target=_promote, args=(tmp_path, worker)) for worker in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    log = Names(tmp_path).log("policy/lift")
    for worker in range(3):
        mine = [entry["run"] for entry in log if entry["run"].split("-")[1] == str(worker)]
        assert mine == [f"{op}-{worker}-{number}" for number in range(10) for op in ("run", "gate")]
    assert len(log) == 60
