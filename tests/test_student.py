"""Students of any teacher: what a teacher does in each state, labelled once, and imitated."""

import numpy as np
import pytest
import torch
from test_policy import make

from flywheel.corpus.rows import Rows
from flywheel.episode import Episode
from flywheel.policy import base
from flywheel.rl import improve
from flywheel.rl.labelled import Labelled


def rows(discrete=False):
    """Two episodes of three steps; obs[t] = t."""
    action = np.eye(2, dtype=np.float32)[[0, 1, 0]] if discrete else np.zeros((3, 2), np.float32)
    state = np.arange(4, dtype=np.float32)[:, None].repeat(3, 1)
    made = [
        Episode("toy", {"state": state + 10 * k}, action, np.zeros(3, np.float32), False, False, "human:x", fps=10.0)
        for k in range(2)
    ]
    return Rows(made, ("obs.state", "action", "reward"))


def labelled(teacher, obs_steps=2, action_steps=4, **more):
    pools, mixture = {"demos": np.arange(2)}, {"improve": {"demos": 1.0}}
    return Labelled(
        rows(teacher.discrete),
        pools,
        mixture,
        obs_steps=obs_steps,
        action_steps=action_steps,
        batch_size=8,
        teacher=teacher,
        **more,
    )


class Doubles:
    """Does twice what it observes last, and the mean of its noise."""

    noise_shape, greedy, discrete = (5, 1), False, False

    def sample(self, obs, noise):
        return 2 * obs[:, -1:, :2].expand(-1, 4, -1) + noise.mean((1, 2))[:, None, None]


def test_a_state_is_labelled_once_by_seed_and_step():
    teacher = Doubles()
    asked, sample = [], teacher.sample
    teacher.sample = lambda obs, noise: asked.append(len(obs)) or sample(obs, noise)
    source = labelled(teacher, draws=3, seed=7)
    assert asked == [6, 6, 6], "six states, three tries"
    batches = [source.batch("improve") for _ in range(3)]
    assert asked == [6, 6, 6]
    for batch in batches:
        last = batch["obs"][:, -1, 0]
        for i, t in enumerate(last.tolist()):
            step = int(t % 10) + (3 if t >= 10 else 0)
            noise = np.random.default_rng([7, step]).standard_normal((3, 5, 1), np.float32)
            assert batch["chosen"][i].numpy() == pytest.approx(2 * t + noise.mean((1, 2)).mean(), abs=1e-5)
    teacher.greedy = True
    batch = labelled(teacher).batch("improve")
    assert torch.equal(batch["chosen"][:, 0], 2 * batch["obs"][:, -1, :2])


@pytest.mark.parametrize("kind", base.names())
def test_every_policy_teaches_and_a_few_updates_bring_its_student_nearer(kind):
    teacher = make(kind).requires_grad_(False)
    student = make("categorical" if teacher.discrete else "deterministic", seed=5)
    batch = labelled(teacher).batch("improve") | {"rng": torch.Generator().manual_seed(0)}
    assert batch["chosen"].shape == (8, 4, 2) and batch["chosen"].isfinite().all()
    optimiser = torch.optim.Adam(student.parameters(), lr=1e-2)
    losses = []
    for _ in range(60):
        loss, _ = improve.distil({"policy": student, "teacher": teacher}, batch)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < 0.75 * losses[0], (losses[0], losses[-1])
