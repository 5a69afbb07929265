"""A policy as a file that runs without flywheel: every kind in every format, equal to what acts here."""

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from small import call, often
from test_policy import make

from flywheel import exports
from flywheel.exports import _write
from flywheel.policy import base
from flywheel.policy.best_of_n import BestOfN
from flywheel.policy.critic import Critic

EYES = {"wrist": [24, 24, 3], "top": [32, 40, 3]}
FOREIGN = """
import sys, json, numpy as np, torch
graph, data = torch.jit.load(sys.argv[1]), np.load(sys.argv[2])
action = graph(*map(torch.from_numpy, data.values())).numpy()
assert not [name for name in sys.modules if name.startswith("flywheel")]
print(json.dumps(action.tolist()))
"""


def needs(format):
    if format == "onnx":
        for package in ("onnx", "onnxruntime", "onnxscript"):
            pytest.importorskip(package)


def grouped(kind, format):
    marks = [pytest.mark.xdist_group("lerobot")] if "lerobot" in kind + format else []
    marks += (
        [pytest.mark.slow]
        if (kind, format) == ("best_of_n", "lerobot_policy") or (format == "onnx" and kind not in ("flow", "lerobot"))
        else []
    )
    return pytest.param(kind, format, marks=marks)


@pytest.mark.parametrize(("kind", "format"), [grouped(k, f) for k in base.names() for f in exports.names()])
def test_every_policy_in_every_format_does_what_act_does(tmp_path, kind, format):
    needs(format)
    policy, path = make(kind), tmp_path / f"policy{exports.named(format).SUFFIX}"
    if kind == "lerobot" and format != "lerobot_policy":
        with pytest.raises(ValueError, match="a policy of LeRobot is exported as format=lerobot_policy"):
            _write.write(policy, format, path)
        return
    found = _write.write(policy, format, path)
    assert found["difference"] <= 1e-5 and found["compared"] > 32
    about = _write.about(policy)
    assert about["inputs"] == {"obs": [1, 2, 3], "noise": [1, *policy.noise_shape]}
    assert about["outputs"] == {"action": [1, 4, 2]} and about["obs"] == [{"key": "state", "shape": [3]}]
    file = _write.played(policy, exports.named(format).load(path))
    obs = np.random.default_rng(1).normal(2.0, 3.0, (9, 3)).astype(np.float32)
    for one in (policy, file):
        one.reset([0], [7])
    acted = np.stack([policy.act(row) for row in obs]).clip(-1, 1)
    np.testing.assert_allclose(np.stack([file.act(row) for row in obs]), acted, atol=1e-5)


def seeing(kind):
    """A policy that looks: by nets none of which begins at zero."""
    torch.manual_seed(0)
    if kind == "best_of_n":
        inner, anchor = seeing("flow"), seeing("flow")
        policy = BestOfN.of(inner, Critic.of(inner, actions=True, members=2, width=8), anchor, n=4)
    else:
        shape = {"obs": [["state", [3]]], "action_dim": 2, "cameras": EYES}
        policy = base.build({"kind": kind, "width": 8, "depth": 1, **shape}).eval()
    for net in policy.modules():
        if isinstance(net, torch.nn.Linear):
            torch.nn.init.normal_(net.weight, std=0.5)
    return policy


@pytest.mark.parametrize("format", ["onnx", "torchscript"])
@pytest.mark.parametrize("kind", often(["flow", "deterministic", "best_of_n"], "flow"))
def test_a_policy_that_sees_looks_in_its_file_too(tmp_path, kind, format):
    """Numbers, noise and each camera's frame as it comes, [H, W, 3] uint8: the file does what act does."""
    needs(format)
    policy, path = seeing(kind), tmp_path / f"policy{exports.named(format).SUFFIX}"
    found = _write.write(policy, format, path)
    assert found["difference"] <= 1e-5 and found["compared"] >= 4
    about = _write.about(policy)
    assert about["cameras"] == sorted(EYES)
    assert about["inputs"] == {
        "obs": [1, 2, 3],
        "noise": [1, *policy.noise_shape],
        **{k: [1, *s] for k, s in EYES.items()},
    }
    file, rng = _write.played(policy, exports.named(format).load(path)), np.random.default_rng(1)
    numbers = rng.normal(size=(5, 3)).astype(np.float32)
    frames = {name: rng.integers(0, 256, (5, *shape)).astype(np.uint8) for name, shape in EYES.items()}
    acted = {}
    for name, one in (("policy", policy), ("file", file)):
        one.reset([0], [7])
        acted[name] = [one.act({"state": row, **{k: v[i] for k, v in frames.items()}}) for i, row in enumerate(numbers)]
    np.testing.assert_allclose(acted["file"], np.clip(acted["policy"], -1, 1), atol=1e-5)
    file.reset([0], [7])
    other = [file.act({"state": row, **{k: 255 - v[i] for k, v in frames.items()}}) for i, row in enumerate(numbers)]
    assert np.abs(np.subtract(other, acted["file"])).max() > 1e-3, "it does not look"


def test_what_a_file_of_one_that_sees_cannot_be_used_for_is_said(tmp_path):
    inner = seeing("flow")
    knowing = BestOfN.of(inner, Critic.of(inner, actions=True, members=2, width=8, knows=5), n=4)
    with pytest.raises(ValueError, match="asks for 5 numbers that only the simulator knows; export the policy that"):
        _write.write(knowing, "torchscript", tmp_path / "x")
    spec = {"kind": "flow", "obs_dim": 3, "action_dim": 2, "cameras": {"noise": [24, 24, 3]}}
    with pytest.raises(ValueError, match="camera 'noise' is also what an input or output of the file is called"):
        _write.write(base.build(spec).eval(), "torchscript", tmp_path / "x")


@pytest.mark.parametrize(("kind", "make"), [("flow", make), ("best_of_n", make), ("deterministic", seeing)])
def test_torchscript_runs_in_a_process_without_flywheel(tmp_path, kind, make):
    policy, path = make(kind), tmp_path / "policy.pt"
    _write.write(policy, "torchscript", path)
    given = _write.drawn(policy, 1)
    np.savez(tmp_path / "in.npz", *(x.numpy() for x in given))
    words = [sys.executable, "-I", "-c", FOREIGN, str(path), str(tmp_path / "in.npz")]
    out = json.loads(subprocess.run(words, capture_output=True, text=True, check=True, cwd=tmp_path).stdout)
    with torch.no_grad():
        np.testing.assert_allclose(out, _write.Acting(policy)(*given).numpy(), atol=1e-5)


@pytest.mark.parametrize("made", [make, seeing])
def test_the_loop_of_the_documentation_acts_as_the_policy_does(tmp_path, monkeypatch, made):
    """docs/robot.md, as it stands."""
    text = (Path(__file__).parent.parent / "docs" / "robot.md").read_text()
    (example,) = re.findall(r"```python\n(\"\"\"my_loop.*?)```", text, re.S)
    policy = made("deterministic")
    (tmp_path / "robot").mkdir()
    _write.write(policy, "torchscript", tmp_path / "robot" / "policy.pt")
    about = {**_write.about(policy), "file": "policy.pt"}
    (tmp_path / "robot" / "flywheel.json").write_text(json.dumps(about))
    monkeypatch.chdir(tmp_path)
    loop, rng = {}, np.random.default_rng(1)
    exec(compile(example, "my_loop", "exec"), loop)
    policy.reset()
    for row in rng.normal(2.0, 3.0, (9, 3)).astype(np.float32):
        frames = {name: rng.integers(0, 256, shape).astype(np.uint8) for name, shape in policy.cameras.items()}
        obs = {"state": row, **frames}
        np.testing.assert_allclose(loop["act"](obs), policy.act(obs), atol=1e-5)


def test_a_robot_of_several_sees_and_does_its_own_columns(tmp_path):
    torch.manual_seed(0)
    robot = {"obs": [2, 0], "action": [1], "keys": [["arm", [2]]]}
    policy = base.build(
        dict(kind="deterministic", obs_dim=3, action_dim=2, action_steps=1, width=8, robot=robot)
    ).eval()
    _write.write(policy, "torchscript", tmp_path / "policy.pt")
    file = exports.named("torchscript").load(tmp_path / "policy.pt")
    about = _write.about(policy)
    assert (
        about["inputs"]["obs"] == [1, 2, 2]
        and about["outputs"] == {"action": [1, 1, 1]}
        and about["action_low"] == [-1]
    )
    obs = np.array([0.3, -0.4], np.float32)
    policy.reset()
    given = file(np.tile(obs, (1, 2, 1)), np.zeros((1, *policy.noise_shape), np.float32))
    np.testing.assert_allclose(given[0, 0], policy.act({"arm": obs}), atol=1e-6)


def test_what_a_format_cannot_hold_and_what_differs_is_said(tmp_path, monkeypatch):
    policy = make("deterministic")
    with pytest.raises(ValueError, match="format='gguf': a policy is written as lerobot_policy or onnx or torchscript"):
        _write.write(policy, "gguf", tmp_path / "x")
    maker = exports.named("torchscript")

    def fails(*_):
        raise RuntimeError("aten::odd is not supported\nmore")

    with monkeypatch.context() as patch:
        patch.setattr(maker, "write", fails)
        with pytest.raises(
            ValueError, match="a deterministic policy cannot be written as torchscript: aten::odd is not supported;"
        ):
            _write.write(policy, "torchscript", tmp_path / "x")
    with monkeypatch.context() as patch:
        patch.setattr(maker, "load", lambda path: lambda obs, noise: np.zeros((1, 4, 2), np.float32))
        with pytest.raises(ValueError, match="it differs from the deterministic policy by .* expected at most 1e-05"):
            _write.write(policy, "torchscript", tmp_path / "x")
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(
        ValueError, match=r"needs onnxruntime, which is not installed: pip install 'robot-flywheel\[export\]'"
    ):
        _write.write(policy, "onnx", tmp_path / "x")


def test_two_choices_that_are_equally_good_are_no_difference():
    """A best of N whose critics see no difference takes any candidate: that row is counted, not compared."""

    class Steps(torch.nn.Module):
        def forward(self, obs, noise):
            return (obs[:, -1:, :1] > 1.0).float()

    obs = torch.tensor([0.5, 1.0 + 1e-7, 3.0]).view(3, 1, 1)
    found = _write.compared(Steps(), lambda obs, noise: (obs[:, -1:, :1] > 1.0 + 1e-6).astype(np.float32), obs, obs)
    assert found == {"difference": 0.0, "compared": 2, "undecided": 1}


def test_export_writes_a_policy_and_says_what_it_is(copied, tmp_path, capsys):
    copy, at = copied
    ref, out = copy.runs("retrain")[-1]["result"]["outputs"]["checkpoint"], tmp_path / "robot"
    words = ["export", f"checkpoint={ref}", "format=torchscript", at[3]]
    code, made = call(*words, f"out={out}", capsys=capsys)
    assert (code, made["status"]) == (0, "done") and made["metrics"]["difference"] <= 1e-5
    about = json.loads((out / "flywheel.json").read_text())
    assert about["checkpoint"] == ref and about["sha256"].startswith(ref.partition("@")[2])
    assert (
        about["kind"] == "best_of_n"
        and about["task"] == "toy:Reach-v0"
        and about["noise"].startswith("standard normal")
    )
    assert sorted(path.name for path in out.iterdir()) == ["flywheel.json", about["file"]]
    assert call(*words, f"out={out}", capsys=capsys)[1]["status"] == "noop"
    code, again = call("export", f"checkpoint={ref}", at[3], f"out={tmp_path / 'two'}", capsys=capsys)
    assert (
        code == 1
        and "format='lerobot_v3': a policy is written as lerobot_policy or onnx or torchscript" in again["error"]
    )
    code, again = call("export", "format=onnx", *at[:4], f"out={tmp_path / 'two'}", capsys=capsys)
    assert code == 1 and "of a policy, name its checkpoint=. There are:" in again["error"]
    code, again = call("export", "format=zarr", *at[:4], f"out={out}", capsys=capsys)
    assert code == 1 and f"it holds another export (torchscript of policy {ref}); name a new folder" in again["error"]
