"""The contract of every policy in flywheel/policy/, found by being there."""

import numpy as np
import pytest
import torch

from flywheel.critic import Critic
from flywheel.policy import base
from flywheel.policy.best_of_n import BestOfN
from flywheel.store import sha256_file

SHAPE = dict(obs_dim=3, action_dim=2, obs_steps=2, action_steps=4)
PLAIN = [name for name in base.names() if name != "best_of_n"]


def make(kind: str, seed: int = 0, **more):
    torch.manual_seed(seed)
    if kind == "best_of_n":
        inner = make("flow", seed)
        critic = Critic(**SHAPE, members=2, width=16)
        return BestOfN.of(inner, critic, make("flow", seed + 1), n=4)
    policy = base.build(dict(kind=kind, width=32, depth=2, **SHAPE, **more))
    rows = np.random.default_rng(0).normal(2.0, 3.0, (100, 5))
    policy.fit_normaliser(rows[:, :3], rows[:, 3:])
    return policy.eval()


@pytest.fixture(params=base.names())
def policy(request):
    return make(request.param)


def test_acts_for_one_and_for_many(policy):
    policy.reset()
    action = policy.act(np.zeros(3))
    assert action.shape == (2,) and action.dtype == np.float32 and np.isfinite(action).all()
    policy.reset(range(5), range(5))
    assert policy.act(np.zeros((5, 3))).shape == (5, 2)


def test_an_episode_depends_on_its_seed_not_on_its_neighbours(policy):
    obs = np.random.default_rng(1).normal(size=(9, 3)).astype(np.float32)

    def run(slot, slots):
        policy.reset(slots, [7 if s == slot else 100 + s for s in slots])
        return [policy.act(np.tile(o, (len(slots), 1)), slots)[list(slots).index(slot)] for o in obs]

    alone, among = run(0, [0]), run(3, [1, 3, 4])
    np.testing.assert_allclose(alone, among, rtol=1e-4, atol=1e-5)


def test_a_chunk_is_executed_before_the_next_is_asked_for(policy):
    policy.reset([0], [3])
    asked = []
    sample = policy.sample
    policy.sample = lambda obs, noise: asked.append(obs.clone()) or sample(obs, noise)
    for t in range(9):
        policy.act(np.full(3, t, np.float32))
    # asked at t = 0, 4, 8 with the observations of t-1 and t; before the first there is the first
    assert [o[0, :, 0].tolist() for o in asked] == [[0.0, 0.0], [3.0, 4.0], [7.0, 8.0]]


def test_a_file_gives_the_same_policy_and_equal_weights_equal_bytes(policy, tmp_path):
    base.save(policy, tmp_path / "a.safetensors")
    loaded = base.load(tmp_path / "a.safetensors")
    base.save(loaded, tmp_path / "b.safetensors")
    assert sha256_file(tmp_path / "a.safetensors") == sha256_file(tmp_path / "b.safetensors")
    for p in (policy, loaded):
        p.reset([0], [5])
    assert np.array_equal(policy.act(np.ones(3)), loaded.act(np.ones(3)))


def test_wrong_observations_and_files_are_refused(policy, tmp_path):
    with pytest.raises(ValueError, match="observation has 4 numbers, this policy was trained on 3"):
        policy.act(np.zeros(4))
    from safetensors.torch import save_file

    save_file({"x": torch.zeros(1)}, tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match="not a policy of flywheel"):
        base.load(tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match="no policy 'gausian'.*There are: best_of_n, .*flow, gaussian"):
        base.build({"kind": "gausian"})


@pytest.mark.parametrize("kind", PLAIN)
def test_imitation_learns_a_function_of_the_observation(kind):
    """action = (obs[0], -obs[0]) at every step of the chunk: after some updates samples are close to it."""
    policy = make(kind, action_low=-15.0, action_high=15.0)
    rng = torch.Generator().manual_seed(0)
    optim = torch.optim.Adam(policy.parameters(), 3e-3)
    x = 2 + 3 * torch.randn(512, 1, 1, generator=rng)
    obs, action = x.expand(-1, 2, 3), torch.cat([x, -x], 2).expand(-1, 4, -1)
    policy.fit_normaliser(obs[:, 0], action[:, 0])
    for _ in range(600):
        i = torch.randint(512, (128,), generator=rng)
        optim.zero_grad()
        policy.bc_loss(obs[i], action[i], rng, None).mean().backward()
        optim.step()
    with torch.no_grad():
        made = policy.sample(obs, torch.randn((512, *policy.noise_shape), generator=rng))
    error = (made - action).abs().mean().item()
    assert error < 0.5, f"{kind}: mean error {error:.2f}, the actions' spread is 3"


def test_diffusion_may_predict_the_noise_or_the_action():
    one, two = make("diffusion"), make("diffusion", predict="eps")
    x, t = torch.randn(3, 4, 2), torch.tensor([0, 50, 99])
    two.load_state_dict(one.state_dict())
    assert torch.equal(
        *(p.predicted(x, t, p.encode(torch.zeros(3, 2, 3))) for p in (one, two))
    )  # one net, two meanings
    # at the lowest level the noise hardly counts: a net of zeros gives x / sqrt(abar_0), or 0
    for p in (one, two):
        p.steps = 1
        torch.nn.init.zeros_(p.net[-1].weight)
        torch.nn.init.zeros_(p.net[-1].bias)
    middle = one.action_norm.mean.expand(3, 4, 2)
    torch.testing.assert_close(one.sample(torch.zeros(3, 2, 3), x), middle)
    assert not torch.allclose(two.sample(torch.zeros(3, 2, 3), x), middle)
    with pytest.raises(ValueError, match="policy.predict='velocity'; expected x0"):
        make("diffusion", predict="velocity")


@pytest.mark.parametrize("kind", PLAIN)
def test_a_condition_is_asked_for_when_acting(kind):
    policy = make(kind, condition=True)
    obs = torch.zeros(4, 2, 3)
    assert policy.encode(obs)[:, -1].tolist() == [1.0] * 4
    assert policy.encode(obs, torch.tensor([1.0, -1.0, 0.0, 1.0]))[:, -1].tolist() == [1.0, -1.0, 0.0, 1.0]
    loss = policy.bc_loss(obs, torch.zeros(4, 4, 2), torch.Generator(), torch.zeros(4))
    assert loss.shape == (4,)


def test_gaussian_log_prob_by_hand():
    policy = make("gaussian")
    obs, action = torch.randn(6, 2, 3), torch.randn(6, 4, 2)
    mean, log_std = policy.distribution(policy.encode(obs))
    dist = torch.distributions.Normal(mean, log_std.exp())
    expected = dist.log_prob(policy.action_norm(action)).sum((1, 2))
    torch.testing.assert_close(policy.log_prob(obs, action), expected)


def test_tanh_gaussian_log_prob_by_change_of_variables():
    policy = make("tanh_gaussian", action_low=-2.0, action_high=3.0).double()
    obs, noise = torch.randn(5, 2, 3, dtype=torch.float64), torch.randn(5, 4, 2, dtype=torch.float64)
    action, log_prob = policy.sample_with_log_prob(obs, noise)
    assert (action > -2).all() and (action < 3).all()
    mean, log_std = policy.distribution(policy.encode(obs))
    chain = [torch.distributions.TanhTransform(), torch.distributions.AffineTransform(0.5, 2.5)]
    dist = torch.distributions.TransformedDistribution(torch.distributions.Normal(mean, log_std.exp()), chain)
    torch.testing.assert_close(log_prob, dist.log_prob(action).sum((1, 2)), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(policy.bc_loss(obs, action, None) * 8, -log_prob, rtol=1e-3, atol=1e-2)


@pytest.mark.parametrize("kind", [k for k in PLAIN if k != "tanh_gaussian"])
def test_a_density_is_never_faked(kind):
    with pytest.raises(ValueError, match=f"a {kind} policy has no log pi.*tanh_gaussian"):
        make(kind).sample_with_log_prob(torch.zeros(1, 2, 3), torch.zeros(1, 4, 2))


def test_best_of_n_takes_the_surest_candidate():
    policy = make("best_of_n")
    wanted = torch.tensor([[[0.3, -0.2]]]).expand(1, 4, 2)

    class Judge(torch.nn.Module):
        spec = policy.critic.spec

        def forward(self, obs, action):
            near = -(action - wanted).square().sum((1, 2))
            return torch.stack([near, near])

    policy.critic = Judge()
    noise = torch.randn(1, *policy.noise_shape)
    candidates = policy.candidates(torch.zeros(1, 2, 3), noise[:, 0]).clamp(-1, 1)
    best = (candidates - wanted[:, None]).square().sum((2, 3)).argmin(1)
    assert torch.equal(policy.sample(torch.zeros(1, 2, 3), noise)[0], candidates[0, best[0]])


def test_best_of_n_cannot_tell_and_takes_a_plain_sample_of_the_policy():
    policy = make("best_of_n")

    class Undecided(torch.nn.Module):
        spec = policy.critic.spec

        def forward(self, obs, action):
            return torch.zeros(2, len(obs))

    policy.critic = Undecided()
    noise = torch.randn(3, *policy.noise_shape)
    plain = policy.base.sample(torch.zeros(3, 2, 3), noise[:, 0, 0]).clamp(-1, 1)
    torch.testing.assert_close(policy.sample(torch.zeros(3, 2, 3), noise), plain)


def test_a_member_that_disagrees_lowers_the_bound():
    """Two candidates of equal mean: the one on which the critics agree is taken; exploration noise moves only every second."""
    policy = make("best_of_n")
    policy.n, policy.k = 2, 1.0

    class Split(torch.nn.Module):
        spec = policy.critic.spec

        def forward(self, obs, action):
            return torch.tensor([[1.0, 0.5], [0.0, 0.5]])  # means 0.5 and 0.5, spreads 0.7 and 0

    policy.critic = Split()
    noise = torch.randn(1, 2, 2, 4, 2)
    both = policy.candidates(torch.zeros(1, 2, 3), noise[:, 0]).clamp(-1, 1)
    assert torch.equal(policy.sample(torch.zeros(1, 2, 3), noise)[0], both[0, 1])
