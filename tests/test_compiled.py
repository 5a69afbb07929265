"""Compiled updates are the updates: as traced, to the last bit; as compiled, to float32's rounding. What cannot be
compiled says so."""

import shutil

import pytest
import small
import torch
from small import often

from flywheel.cli import algorithms
from flywheel.policy.categorical import one_hot
from flywheel.rl import learner as learning

UNTRACED = {"recap"}  # torch.quantile looks at its argument


def learner(name, **more):
    torch.manual_seed(0)
    return small.learner(name, {"obs_dim": 3, "action_dim": 2}, **more)


def batch(held, seed=0, n=32):
    """A batch of what any loss may ask for."""
    rng, policy = torch.Generator().manual_seed(seed), held.nets["policy"]
    draw = lambda *shape: torch.randn(n, *shape, generator=rng)  # noqa: E731
    made = {
        "obs": draw(1, 3), "next_obs": draw(1, 3), "action": draw(1, 2).tanh(), "next_action": draw(1, 2),
        "reward": draw(), "discount": torch.full((n,), 0.9), "return": draw(),
    }  # fmt: skip
    if policy.discrete:
        made["action"] = one_hot(made["action"])
    if held.advantage:
        with torch.no_grad():
            chain = policy.chain(made["obs"], draw(*policy.noise_shape))
            made |= {"chain": chain, "log_prob": policy.chain_log_prob(made["obs"], chain)[0], "advantage": draw()}
    return made


def updated(name, **more):
    """What three updates of each act make of a learner: nets, optimisers, random generator and numbers told."""
    held = learner(name, **more)
    for i in range(3):
        for act in ("evaluate", "improve"):
            held.act(act, batch(held, i))
        held.nets["policy"].explores(held.nets["policy"].explore * 1.5)
    return held.state()


def equal(one, two):
    return one.keys() == two.keys() and all(torch.equal(one[key], two[key]) for key in one)


@pytest.mark.parametrize("name", often(sorted(algorithms.tables()), "ogpo"))
def test_a_traced_update_is_the_update(name, monkeypatch, capsys):
    """Every table, to the last bit, in bfloat16 too; compiling it is torch's business."""
    monkeypatch.setattr(torch, "compile", lambda graph, **how: graph)
    monkeypatch.setattr(learning, "multiplies_bf16", lambda device: True)
    monkeypatch.setattr("flywheel.policy.nets.LARGE", 0)
    assert equal(updated(name, compile=True), updated(name))
    said = capsys.readouterr().err
    assert "compiled in" in said
    assert (name in UNTRACED) == ("policy of improve runs uncompiled: It appears that" in said)


def test_without_a_compiler_updates_run_as_they_are_and_a_line_says_so(monkeypatch, capsys):
    monkeypatch.setenv("CXX", "no-such-compiler")
    assert equal(updated("sac", compile=True), updated("sac"))
    assert "there is no C++ compiler (no-such-compiler; CXX names another)" in capsys.readouterr().err


@pytest.mark.skipif(not shutil.which("g++"), reason="there is no C++ compiler")
@pytest.mark.slow
def test_compiled_updates_are_the_uncompiled_ones_also_after_a_break(capsys):
    """20 updates, the last ones with a smaller batch; a second learner that takes over has the same bits."""
    plain, quick, second = (learner("dqn", compile=compile) for compile in (False, True, True))
    first = plain.state()
    for i in range(20):
        if i == 13:
            second.load_state(quick.state())
        for held in (plain, quick, second)[: 2 if i < 13 else 3]:
            held.act("evaluate", batch(held, i, 32 if i < 18 else 20))
    assert capsys.readouterr().err.count("q of evaluate: compiled in") == 4  # two learners, two shapes
    mine, theirs = quick.state(), plain.state()
    for key in (key for key in theirs if key.startswith("nets/q") and "net.weight" in key):
        assert (mine[key] - theirs[key]).norm() <= 1e-5 * theirs[key].norm(), key
        assert (theirs[key] - first[key]).norm() > 1e-3 * theirs[key].norm(), key
    assert equal(mine, second.state())
