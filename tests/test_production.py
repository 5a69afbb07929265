"""What runs flywheel each night: the examples are what their engines take; status, doctor, and who is told of a failure."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import toy
import yaml
from small import LITTLE, call

from flywheel import store
from flywheel.runs import status
from flywheel.runs.run import Store

ROOT = Path(__file__).parent.parent
HERE = ROOT / "docs" / "production"


def runs_on(child: subprocess.Popen) -> None:
    """Let the child go on for a moment; it must not have ended."""
    try:
        raise AssertionError(f"it ended with {child.wait(0.05)}")
    except subprocess.TimeoutExpired:
        return


def test_every_example_is_on_the_page():
    page = (ROOT / "docs" / "production.md").read_text()
    assert all(f"production/{path.name}" in page for path in HERE.iterdir())


@pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="no systemd here")
def test_systemd_takes_its_units(tmp_path):
    for path in HERE.glob("flywheel*"):
        text = (
            path.read_text()
            .replace("%h/flywheel/.venv/bin/flywheel", "/bin/true")
            .replace("/usr/bin/logger", "/bin/true")
        )
        (tmp_path / path.name).write_text(text)
    done = subprocess.run(["systemd-analyze", "verify", *tmp_path.glob("*")], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_the_batch_script_saves_and_asks_to_be_queued_again(tmp_path):
    """Slurm is played by a signal and a `scontrol` that writes down what it was asked."""
    home, tools = tmp_path / "home" / ".venv" / "bin", tmp_path / "tools"
    home.mkdir(parents=True)
    tools.mkdir()
    work = "import os, signal, sys\nsignal.signal(15, lambda *_: sys.exit(143))\nopen('ready', 'w').close()\nsignal.pause()\n"
    (home / "flywheel").write_text(f"#!{sys.executable}\n{work}")
    (tools / "scontrol").write_text(f'#!/bin/bash\necho "$@" > {tmp_path}/asked\n')
    for path in (home / "flywheel", tools / "scontrol"):
        path.chmod(0o755)
    env = os.environ | {
        "FLYWHEEL_HOME": str(tmp_path / "home"),
        "SLURM_JOB_ID": "7",
        "PATH": f"{tools}:{os.environ['PATH']}",
    }
    job = subprocess.Popen(["bash", HERE / "nightly.sbatch"], env=env)
    while not (tmp_path / "home" / "ready").exists():
        runs_on(job)
    job.send_signal(signal.SIGTERM)
    assert job.wait(60) == 143 and (tmp_path / "asked").read_text() == "requeue 7\n"


def test_the_manifests_are_what_their_engines_read():
    job = yaml.safe_load((HERE / "cronjob.yaml").read_text())
    pod = job["spec"]["jobTemplate"]["spec"]["template"]["spec"]
    assert job["kind"] == "CronJob" and pod["containers"][0]["command"][:2] == ["flywheel", "nightly"]
    assert {m["name"] for m in pod["containers"][0]["volumeMounts"]} == {v["name"] for v in pod["volumes"]}
    for name in ("nightly.yml", "sky.yaml"):
        assert yaml.safe_load((HERE / name).read_text())["name"]
    lines = [line for line in (HERE / "crontab").read_text().splitlines() if line[:1] not in "#M"]
    assert all(line.split()[0] == "@reboot" or len(line.split()) > 6 for line in lines) and len(lines) == 2


def test_status_names_what_is_at_work_and_two_stages_work_in_one_store_at_once(tmp_path, capsys):
    """Another stage begins and ends while one is at work; the same run a second time says who is at it."""
    toy.demonstrations(tmp_path / "demos.hdf5")
    at = [*toy.TASK, f"store={tmp_path / 's'}"]
    assert call("ingest", f"source={tmp_path / 'demos.hdf5'}", *at, capsys=capsys)[0] == 0
    place = Store(tmp_path / "s")
    code, out = call("status", f"store={place.root}", capsys=capsys)
    assert (code, out["working"], out["unfinished"]) == (0, [], [])
    words = ["pretrain", *LITTLE, *at, "policy=flow", "algorithm.cadence.improve=100000000", "score_every=100000000"]
    child = subprocess.Popen(
        [sys.executable, "-m", "flywheel.cli.app", *words], cwd=ROOT / "tests", stderr=subprocess.DEVNULL
    )
    while not any(row.get("what") == "pretrain" for row in status.at_work(place)):
        runs_on(child)
    code, out = call("status", f"store={place.root}", capsys=capsys)
    (row,) = out["working"]
    assert row["pid"] == child.pid and row["what"] == "pretrain" and row["total"] == 100000000 and row["silent"] < 60
    assert "pretrain/" in status.line(row) and f"pid {child.pid}, since 20" in status.line(row)
    code, other = call("evaluate", "checkpoint=none", *at, capsys=capsys)
    assert code == 1 and "in use" not in other["error"], "another stage of the store does not wait for it"
    short = ["algorithm.cadence.improve=2", "score_every=2", "score_episodes=2"]
    code, out = call("pretrain", *LITTLE, *at, "policy=gaussian", *short, capsys=capsys)
    assert code == 0, out
    code, out = call(*words, capsys=capsys)
    assert code == 1 and f"pid {child.pid}" in out["error"], out
    code, out = call("gc", "apply=true", f"store={place.root}", capsys=capsys)
    assert code == 1 and "others" in out["error"], out
    child.kill()
    child.wait()
    code, out = call("status", f"store={place.root}", capsys=capsys)
    assert out["working"] == [] and out["unfinished"] == [row["run"]]


def test_a_failure_is_told_and_a_stop_is_not(tmp_path, capsys):
    told = tmp_path / "told"
    tell = f'on_failure=echo "$FLYWHEEL_STORE: $FLYWHEEL_ERROR" > {told}; exit 3'
    code, out = call("pretrain", "task=lift", f"store={tmp_path / 's'}", tell, capsys=capsys)
    assert code == 1 and told.read_text().startswith(f"{tmp_path / 's'}: ") and out["error"] in told.read_text()
    told.unlink()
    with store.Lock(tmp_path / "s", "gc"):
        code, out = call("pretrain", "task=lift", f"store={tmp_path / 's'}", tell, capsys=capsys)
    assert code == 1 and told.exists()


def test_the_doctor_looks_at_everything_and_says_what_to_do(tmp_path, capsys, monkeypatch):
    from flywheel.cli import doctor

    code, out = call("doctor", f"store={tmp_path}", capsys=capsys)
    assert len(out["checks"]) == len(doctor.CHECKS) and {"check", "state", "words"} == set(out["checks"][0])
    monkeypatch.setattr(doctor, "FREE", 1e18)
    monkeypatch.setattr(store, "holder", lambda path: None)
    rows = {row["check"]: row for row in doctor.examine(Store(tmp_path))}
    assert rows["Disk"]["state"] == "bad" and "flywheel gc" in rows["Disk"]["words"]
    assert (
        rows["Locks of the file system"]["state"] == "bad"
        and "mount it with locks" in rows["Locks of the file system"]["words"]
    )
    code, out = call("doctor", f"store={tmp_path}", capsys=capsys)
    assert code == 1 and "Disk: " in out["error"] and json.dumps(out)
    ahead = tmp_path / "runs" / "pretrain" / "x"
    ahead.mkdir(parents=True)
    (ahead / "_DONE.json").write_text("{}")
    os.utime(ahead / "_DONE.json", (time.time() + 3600,) * 2)
    assert "set the clock" in doctor.clock(Store(tmp_path))[1]
