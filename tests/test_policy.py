"""The contract of every policy in flywheel/policy/, found by being there."""

import os

import numpy as np
import pytest
import torch

from flywheel.policy import base
from flywheel.policy.best_of_n import BestOfN
from flywheel.policy.categorical import one_hot
from flywheel.policy.critic import Critic
from flywheel.policy.residual import Residual
from flywheel.store import sha256_file

SHAPE = dict(obs_dim=3, action_dim=2, obs_steps=2, action_steps=4)
PLAIN = [
    name for name in base.names() if name not in ("best_of_n", "residual", "lerobot")
]  # two wrap another; test_lerobot
UNET = {
    "horizon": 8,
    "down_dims": [8, 16],
    "n_groups": 4,
    "diffusion_step_embed_dim": 8,
    "num_train_timesteps": 10,
    "num_inference_steps": 3,
}
KINDS = [
    pytest.param(name, marks=pytest.mark.xdist_group("lerobot")) if name == "lerobot" else name for name in base.names()
]


def make(kind: str, seed: int = 0, **more):
    torch.manual_seed(seed)
    if kind == "best_of_n":
        inner = make("flow", seed)
        critic = Critic(**SHAPE, members=2, width=16)
        return BestOfN.of(inner, critic, make("flow", seed + 1), n=4)
    if kind == "residual":
        return Residual.of(make("flow", seed, **more), alpha=0.5, width=32).eval()
    own = dict(type="diffusion", settings=UNET) if kind == "lerobot" else dict(width=32, depth=2)
    policy = base.build(dict(kind=kind, **own, **SHAPE, **more))
    rows = np.random.default_rng(0).normal(2.0, 3.0, (100, 5))
    policy.fit_normaliser(rows[:, :3], rows[:, 3:])
    return policy.eval()


@pytest.fixture(params=KINDS)
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
    """action = (obs[0], -obs[0]) at every step of the chunk, or which of the two is larger: after some updates
    samples are close to it."""
    policy = make(kind, action_low=-15.0, action_high=15.0)
    rng = torch.Generator().manual_seed(0)
    optim = torch.optim.Adam(policy.parameters(), 3e-3)
    x = 2 + 3 * torch.randn(512, 1, 1, generator=rng)
    obs, action = x.expand(-1, 2, 3), torch.cat([x, -x], 2).expand(-1, 4, -1)
    if policy.discrete:
        action = one_hot(action)
    policy.fit_normaliser(obs[:, 0], None if policy.discrete else action[:, 0])
    for _ in range(600):
        i = torch.randint(512, (128,), generator=rng)
        optim.zero_grad()
        policy.bc_loss(obs[i], action[i], rng, None).mean().backward()
        optim.step()
    with torch.no_grad():
        made = policy.sample(obs, torch.randn((512, *policy.noise_shape), generator=rng))
    error = (made - action).abs().mean().item()
    assert error < (0.05 if policy.discrete else 0.5), f"{kind}: mean error {error:.2f}, the actions' spread is 3"


def test_diffusion_may_predict_the_noise_or_the_action():
    one, two = make("diffusion"), make("diffusion", predict="eps")
    x, t = torch.randn(3, 4, 2), torch.tensor([0, 50, 99])
    two.load_state_dict(one.state_dict())
    assert torch.equal(
        *(p.predicted(x, t, p.encode(torch.zeros(3, 2, 3))) for p in (one, two))
    )  # one net, two meanings
    # at the lowest level the noise hardly counts: a net of zeros gives x / sqrt(abar_0), or 0
    one, two = make("diffusion", steps=1), make("diffusion", steps=1, predict="eps")
    for p in (one, two):
        torch.nn.init.zeros_(p.net[-1].weight)
        torch.nn.init.zeros_(p.net[-1].bias)
    middle = one.action_norm.mean.expand(3, 4, 2)
    torch.testing.assert_close(one.sample(torch.zeros(3, 2, 3), x), middle)
    assert not torch.allclose(two.sample(torch.zeros(3, 2, 3), x), middle)
    with pytest.raises(ValueError, match="policy.predict='velocity'; expected x0"):
        make("diffusion", predict="velocity")


@pytest.mark.parametrize("kind", [k for k in PLAIN if k != "greedy_q"])
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
    with pytest.raises(ValueError, match=f"a {kind} policy has no log pi.*SAC and CQL need policy=tanh_gaussian"):
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
    """Two candidates of equal mean: the one on which the critics agree is taken; exploration noise moves only every
    second."""
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


class Told(torch.nn.Module):
    """A critic that says these numbers, [E, B * n], of whatever candidates."""

    def __init__(self, spec, *numbers):
        super().__init__()
        self.spec, self.numbers = spec, torch.tensor(numbers)

    def forward(self, obs, action):
        return self.numbers


@pytest.mark.parametrize(
    ("numbers", "taken"),
    [
        ([[0.5, 0.5, 0.5, 0.5], [0.2, 0.2, 0.2, 0.2]], 0),  # they cannot tell
        ([[0.5, 0.5, 0.9, 0.5], [0.5, 0.5, 0.4, 0.5]], 0),  # +0.4 and -0.1: mean 0.15, deviation 0.354
        ([[0.5, 0.5, 0.9, 0.5], [0.1, 0.1, 0.4, 0.1]], 2),  # +0.4 and +0.3: sure, though they differ on all by 0.4
        ([[0.5, 0.6, 0.5, 0.5], [0.5, 0.6, 0.5, 0.5]], 1),  # another sample of the anchor
    ],
)
def test_a_guarded_best_of_n_does_what_its_anchor_would_unless_the_critics_are_sure(numbers, taken):
    """The bound is one of differences from the first candidate: mean - 1 std over members."""
    policy = make("best_of_n")
    policy.guarded, policy.critic = True, Told(policy.critic.spec, *numbers)
    obs, noise = torch.zeros(1, 2, 3), torch.randn(1, *policy.noise_shape)
    candidates = policy.candidates(obs, noise[:, 0])
    plain = policy.anchor.sample(obs, noise[:, 0, 2])  # the second half of the noise is the anchor's
    torch.testing.assert_close(candidates[:, 0], plain)
    torch.testing.assert_close(policy.sample(obs, noise)[0], candidates[0, taken].clamp(-1, 1))
    spec = BestOfN.of(policy.base, make("best_of_n").critic, policy.anchor, guarded=True).spec
    assert base.build(spec).guarded and "guarded" not in make("best_of_n").spec


@pytest.mark.parametrize("kind", [*PLAIN, "best_of_n"])
def test_a_residual_begins_as_its_base_and_moves_no_action_further_than_alpha(kind):
    if make(kind).discrete:
        return
    inner = make(kind)
    policy = Residual.of(inner, alpha=0.25, width=16)
    obs, noise = torch.randn(6, 2, 3), torch.randn(6, *policy.noise_shape)
    plain = policy.bounded(inner.sample(obs, noise))
    assert torch.equal(policy.sample(obs, noise), plain) and policy.fixed == inner.fixed
    assert {name.split(".")[0] for name, p in policy.named_parameters() if p.requires_grad} == {"net"}
    torch.nn.init.constant_(policy.net[-1].bias, 100.0)  # tanh is 1: half the range is 1, so +0.25
    torch.testing.assert_close(policy.sample(obs, noise), (plain + 0.25).clamp(-1, 1))


def test_a_residual_imitates_by_itself_alone():
    """From a base that is 0.3 off it learns to be right; the base stays what it is."""
    torch.manual_seed(0)
    inner = base.build({"kind": "deterministic", "width": 8, "depth": 1, **SHAPE})
    policy = Residual.of(inner, alpha=0.5, width=32)
    rng, before = torch.Generator().manual_seed(0), {k: v.clone() for k, v in inner.state_dict().items()}
    obs = torch.randn(128, 2, 3, generator=rng)
    wanted = (inner.sample(obs, torch.zeros(128, 4, 2)) + 0.3).detach()
    optim = torch.optim.Adam([p for p in policy.parameters() if p.requires_grad], 3e-3)
    for _ in range(200):
        optim.zero_grad()
        policy.bc_loss(obs, wanted, rng, None).mean().backward()
        optim.step()
    assert policy.bc_loss(obs, wanted, rng, None).mean() < 0.01
    assert all(torch.equal(v, before[k]) for k, v in inner.state_dict().items())


@pytest.mark.parametrize("kind", ["diffusion", "flow"])
def test_one_step_of_a_chain_has_the_log_prob_that_it_has_in_the_chain(kind):
    policy = make(kind).explores(0.2)
    obs = torch.randn(5, 2, 3)
    chain = policy.chain(obs, torch.randn(5, *policy.noise_shape))
    whole, spread = policy.chain_log_prob(obs, chain)
    step, row = torch.tensor([0, 3, 7, 1, 2]), torch.arange(5)
    one = policy.chain_log_prob(obs, torch.stack([chain[row, step], chain[row, step + 1]], 1), step)
    torch.testing.assert_close(one[0], whole[row, step][:, None])
    torch.testing.assert_close(one[1], spread[row, step][:, None])


CHAINED = ("gaussian", "tanh_gaussian", "categorical", "diffusion", "flow")


@pytest.mark.parametrize("kind", CHAINED)
def test_a_chain_ends_in_the_action_and_its_log_prob_is_that_of_its_steps(kind):
    policy = make(kind).explores(0.2)
    obs, noise = torch.randn(5, 2, 3), torch.randn(5, *policy.noise_shape)
    chain = policy.chain(obs, noise)
    log_prob, entropy = policy.chain_log_prob(obs, chain)
    steps = max(1, chain.shape[1] - 1)
    assert log_prob.shape == entropy.shape == (5, steps)
    end = {"tanh_gaussian": policy.squash if kind == "tanh_gaussian" else None, "categorical": lambda x: x}
    ended = end.get(kind, policy.action_norm.inverse)(chain[:, -1])
    assert torch.equal(policy.sample(obs, noise), ended)
    assert torch.equal(policy.ended(chain), ended)
    if kind in ("diffusion", "flow"):  # the noise of each step is what was drawn: z = noise, with one sigma
        size = 8
        by_hand = -0.5 * noise[:, 1:].square().sum((2, 3)) - size * (np.log(0.2) + 0.5 * np.log(2 * np.pi))
        torch.testing.assert_close(log_prob, by_hand, rtol=1e-4, atol=1e-3)
        torch.testing.assert_close(
            entropy, torch.full((5, steps), size * (np.log(0.2) + 1.4189385)), rtol=1e-5, atol=1e-4
        )
        last = policy.step_mean(chain[:, -2], torch.full((5,), steps - 1), policy.encode(obs))
        assert not torch.allclose(last, chain[:, -1])  # the last step is scored because it is random, too
    elif kind != "categorical":
        assert log_prob[:, 0].std() > 0


@pytest.mark.parametrize("kind", ["diffusion", "flow"])
def test_a_deterministic_chain_is_never_scored_as_a_gaussian(kind):
    policy = make(kind)
    chain = policy.chain(torch.zeros(2, 2, 3), torch.randn(2, *policy.noise_shape))
    with pytest.raises(ValueError, match="deterministic steps, which have no density"):
        policy.chain_log_prob(torch.zeros(2, 2, 3), chain)


@pytest.mark.parametrize("kind", ["deterministic", "one_step", "greedy_q"])
def test_what_has_no_steps_with_a_density_is_refused(kind):
    with pytest.raises(ValueError, match=f"a {kind} policy has no log pi of the steps.*on-policy"):
        make(kind).chain_log_prob(torch.zeros(1, 2, 3), torch.zeros(1, 1, 4, 2))


@pytest.mark.parametrize("kind", CHAINED)
def test_a_seed_gives_back_the_noise_that_an_episode_was_made_from(kind):
    policy = make(kind).explores(0.3)
    policy.reset([0], [11])
    acted = np.stack([policy.act(np.full(3, 0.1 * t, np.float32)) for t in range(8)])
    noise = torch.from_numpy(policy.noises(11, 2))
    obs = torch.tensor([[[0.0] * 3, [0.0] * 3], [[0.3] * 3, [0.4] * 3]])
    with torch.no_grad():
        again = policy.sample(obs, noise)
    np.testing.assert_allclose(again.reshape(8, 2).numpy(), acted, rtol=1e-4, atol=1e-5)


def test_a_learnt_noise_lies_between_half_and_twice_and_can_be_thrown_away():
    policy = make("flow").explores(0.1)
    policy.learn_noise()
    sigma = policy.sigma(torch.zeros(9, 4, 2), torch.arange(9) % 8, torch.randn(9, policy.features))
    assert (sigma > 0.05).all() and (sigma < 0.2).all() and sigma.std() > 0
    policy.noise_net = None
    assert set(policy.state_dict()) == set(make("flow").state_dict())


def test_categorical_samples_by_its_probabilities_and_greedy_takes_the_likeliest():
    policy = make("categorical")
    obs = torch.zeros(4000, 2, 3)
    share = policy.logits(policy.encode(obs[:1])).exp()[0]
    drawn = policy.sample(obs, torch.randn(4000, *policy.noise_shape))
    torch.testing.assert_close(drawn.mean(0), share, rtol=0, atol=0.03)
    assert torch.equal(policy.sample(obs[:1], torch.zeros(1, 4, 2))[0], one_hot(share))


def test_greedy_q_explores_with_the_probability_it_is_told():
    policy = make("greedy_q").explores(0.3)
    obs = torch.zeros(4000, 2, 3)
    best = policy.explores(0.0).sample(obs[:1], torch.zeros(1, 2, 2))
    other = (policy.explores(0.3).sample(obs, torch.randn(4000, 2, 2)) != best).any(-1)[:, 0].float().mean()
    assert other.item() == pytest.approx(0.15, abs=0.02)  # half of the random ones are the best one


@pytest.mark.parametrize("kind", ["gaussian", "tanh_gaussian"])
def test_with_a_small_last_layer_a_policy_begins_near_its_middle_whatever_it_observes(kind):
    shape = {"kind": kind, "obs_dim": 3, "action_dim": 2, "obs_steps": 1, "action_steps": 1, "log_std": -1.0}
    means = {}
    for scale in (1.0, 0.01):
        torch.manual_seed(0)
        means[scale], log_std = base.build({**shape, "last_scale": scale}).distribution(5 * torch.eye(3))
    assert torch.allclose(means[0.01], 0.01 * means[1.0])  # weights and biases of the last layer, which is linear
    assert (log_std + 1).abs().max() < 0.01 * 3.5


def test_the_standard_deviation_of_a_tanh_gaussian_stays_within_its_span():
    shape = {"kind": "tanh_gaussian", "obs_dim": 3, "action_dim": 2, "obs_steps": 1, "action_steps": 1, "log_std": -1.0}
    for span in (1.0, 3.5):
        policy = base.build({**shape, "log_std_span": span})
        torch.nn.init.constant_(policy.net[-1].bias, 100.0)
        assert policy.distribution(torch.zeros(1, 3))[1].tolist() == [[[span - 1.0, span - 1.0]]]
        assert base.build(policy.spec).log_std_span == span


@pytest.mark.parametrize("kind", ["gaussian", "tanh_gaussian"])
def test_log_std_is_where_the_standard_deviation_begins(kind):
    torch.manual_seed(0)
    shape = {"obs_dim": 3, "action_dim": 2, "obs_steps": 1, "action_steps": 1}
    for begins in (-1.5, 0.0):
        policy = base.build({"kind": kind, "log_std": begins, **shape})
        _, log_std = policy.distribution(torch.zeros(1, 3))
        assert (log_std - begins).abs().max() < 0.5
        torch.nn.init.zeros_(policy.net[-1].weight)
        torch.nn.init.zeros_(policy.net[-1].bias)
        assert policy.distribution(torch.zeros(1, 3))[1].tolist() == [[[begins, begins]]]


def test_one_wild_value_does_not_blind_the_normaliser(capsys):
    """findings B5: one observation of 1e6 among 3,000 changes nothing in what the others look like, and is said."""
    from flywheel.policy.nets import Normaliser

    rng = np.random.default_rng(0)
    rows = np.c_[rng.normal(2, 3, 3000), np.zeros(3000), rng.random(3000) < 0.001]
    clean, wild = Normaliser(3), Normaliser(3)
    assert clean.fit(rows) == {}
    assert torch.allclose(clean.mean[0].double(), torch.tensor(rows[:, 0].mean()), atol=1e-6)
    rows[17, 0], rows[99, 1] = 1e6, -4e4
    assert wild.fit(rows) == {0: 1, 1: 1}
    assert torch.allclose(clean.mean, wild.mean, atol=0.01) and torch.allclose(clean.std, wild.std, atol=0.01)
    policy = base.build({"kind": "flow", "obs_dim": 3, "action_dim": 2, "width": 8, "depth": 1})
    policy.fit_normaliser(rows, rng.normal(size=(3000, 2)))
    assert "obs[0]: 1 value lies far outside all others" in capsys.readouterr().err


@pytest.mark.parametrize("wide", [1, 2, 8, 10, 16, 28, 64, 256])
def test_a_row_is_multiplied_alike_wherever_it_stands(wide):
    """Else the last bit of an action depends on its slot (flywheel/__init__.py)."""
    torch.manual_seed(0)
    for deep in (6, 30, 134, 256):
        layer = torch.nn.Linear(deep, wide)
        for rows in (16, 32, 64):
            made = layer(torch.randn(1, deep).expand(rows, deep).contiguous())
            assert torch.equal(made, made[:1].expand(rows, wide)), (deep, rows)


def test_mkl_is_asked_to_be_reproducible_where_the_processor_is_not_intels(tmp_path, monkeypatch):
    import flywheel

    told = tmp_path / "cpuinfo"
    for words, wanted in (("vendor_id : GenuineIntel", None), ("", None), ("vendor_id : AuthenticAMD", "AUTO")):
        monkeypatch.delenv("MKL_CBWR", raising=False)
        told.write_text(f"processor : 0\n{words}\n")
        flywheel._same_bits(str(told))
        assert os.environ.get("MKL_CBWR") == wanted
    flywheel._same_bits(str(tmp_path / "none"))
    monkeypatch.setenv("MKL_CBWR", "AVX2")
    flywheel._same_bits(str(told))
    assert os.environ["MKL_CBWR"] == "AVX2", "what is asked for already stays"
