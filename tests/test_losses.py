"""Arithmetic by hand: each number is worked out in a comment, then asserted."""

import math
from types import SimpleNamespace

import pytest
import torch

from flywheel.rl import advantage, evaluate, gate, improve
from flywheel.rl.learner import Learner, resolve


def value(*numbers):
    """A net that answers these numbers, whatever it is asked; [E, B] from nested lists."""
    return lambda *args: torch.tensor(numbers, dtype=torch.float64)


class Imitated:
    """A policy whose imitation loss is given; remembers the condition."""

    horizon = action_steps = 1

    def __init__(self, *losses):
        self.losses = torch.tensor(losses, dtype=torch.float64)

    def bc_loss(self, obs, action, rng, condition):
        self.condition = condition
        return self.losses


BATCH = {
    "obs": None,
    "action": None,
    "next_obs": None,
    "next_action": None,
    "reward": torch.tensor([1.0, 0.5], dtype=torch.float64),
    "discount": torch.tensor([0.0, 0.9], dtype=torch.float64),
    "return": torch.tensor([1.0, 2.0], dtype=torch.float64),
    "rng": None,
}


def test_td_with_state_value():
    # targets: 1 + 0 * 3 = 1 (terminated) and 0.5 + 0.9 * 2 = 2.3; q = 0.5, 2.0: (0.25 + 0.09) / 2 = 0.17
    nets = {"q": value([0.5, 2.0]), "v": value([3.0, 2.0])}
    loss, info = evaluate.td(nets, BATCH, next_value=evaluate.state_value)
    assert loss.item() == pytest.approx(0.17)
    assert info["q"]().item() == pytest.approx(1.25)


def test_sarsa_fits_each_member_to_its_own_target_and_never_below_the_return():
    # members' own targets: (1, 0.5 + 0.9 * 1 = 1.4) and (1, 0.5 + 0.9 * 2 = 2.3); lifted to the return: (1, 2) and (1,
    # 2.3)
    # q = 0: (1 + 4 + 1 + 5.29) / 4 = 2.8225; without the bound (1 + 1.96 + 1 + 5.29) / 4 = 2.3125
    nets = {"q": value([0.0, 0.0], [0.0, 0.0]), "q.lag": value([9.0, 1.0], [9.0, 2.0])}
    loss, _ = evaluate.td(nets, BATCH, next_value=evaluate.data_action, lower_bound=True)
    assert loss.item() == pytest.approx(2.8225)
    loss, _ = evaluate.td(nets, BATCH, next_value=evaluate.data_action)
    assert loss.item() == pytest.approx(2.3125)


def test_expectile():
    # min over members: q = (1, 0); v = (0, 1): errors +1 (weight 0.7) and -1 (weight 0.3): (0.7 + 0.3) / 2 = 0.5
    nets = {"q.lag": value([1.0, 5.0], [2.0, 0.0]), "v": value([0.0, 1.0])}
    assert evaluate.expectile(nets, BATCH, tau=0.7)[0].item() == pytest.approx(0.5)


def test_returns():
    # v = (0, 1), returns (1, 2): (1 + 1) / 2
    assert evaluate.returns({"v": value([0.0, 1.0])}, BATCH)[0].item() == pytest.approx(1.0)


def test_advantage_weighted():
    # A = (1 - 0, 0 - 1) = (1, -1); weights e^2, e^-2; losses (1, 2): (7.389056 + 2 * 0.135335) / 2 = 3.829863
    nets = {"q.lag": value([1.0, 0.0]), "v": value([0.0, 1.0]), "policy": Imitated(1.0, 2.0)}
    assert improve.advantage_weighted(nets, BATCH, beta=2.0)[0].item() == pytest.approx(3.829863)
    # with a limit of 2: (2 + 0.270671) / 2
    assert improve.advantage_weighted(nets, BATCH, beta=2.0, limit=2.0)[0].item() == pytest.approx(1.135335)


def test_advantage_conditioned_tells_good_from_bad():
    nets = {"q.lag": value([1.0, 0.0]), "v": value([0.0, 0.0]), "policy": Imitated(1.0, 3.0)}
    batch = {**BATCH, "rng": torch.Generator().manual_seed(0)}
    loss, info = improve.advantage_conditioned(nets, batch, percentile=50.0, drop=0.0)
    assert nets["policy"].condition.tolist() == [1.0, -1.0]  # advantages 1 and 0, the median is 0.5
    assert (loss.item(), info["good"]().item()) == (2.0, 0.5)
    improve.advantage_conditioned(nets, batch, percentile=50.0, drop=1.0)
    assert nets["policy"].condition.tolist() == [0.0, 0.0]


def test_imitate_is_the_policys_own_loss():
    assert improve.imitate({"policy": Imitated(1.0, 3.0)}, BATCH)[0].item() == 2.0


class Fixed:
    """A policy of one step and one action in -1..1 that always samples `action` with log pi = `log_prob`."""

    noise_shape, action_steps, action_dim, discrete = (1, 1), 1, 1, False
    half_range = torch.ones(1, dtype=torch.float64)

    def __init__(self, action, log_prob=0.0):
        self.action, self.log_prob = action, log_prob

    def sample(self, obs, noise):
        return torch.full((len(obs), 1, 1), self.action, dtype=torch.float64)

    def sample_with_log_prob(self, obs, noise):
        return self.sample(obs, noise), torch.full((len(obs),), self.log_prob, dtype=torch.float64)

    def bounds(self, like):
        return torch.tensor([-1.0], dtype=torch.float64), torch.tensor([1.0], dtype=torch.float64)

    def bounded(self, action):
        return action.clamp(-1, 1)


def slope(*weights):
    """Q_e(s, a) = w_e * sum of a; [E, B]."""
    return lambda obs, action, which=None: torch.stack([w * action.sum((1, 2)) for w in weights])[which or slice(None)]


def with_obs():
    rng = torch.Generator().manual_seed(0)
    obs = torch.zeros(2, 1, 1, dtype=torch.float64)
    return {**BATCH, "obs": obs, "next_obs": obs, "action": torch.full((2, 1, 1), 0.5, dtype=torch.float64), "rng": rng}


def test_the_values_of_what_comes_next():
    nets = {"q.lag": slope(2.0, 3.0), "policy": Fixed(0.5, -1.0), "policy.lag": Fixed(0.5)}
    batch = with_obs()
    assert evaluate.policy_action(nets, batch).tolist() == [1.0, 1.0]  # min(2, 3) * 0.5
    assert evaluate.soft(nets, batch, alpha=0.2).tolist() == pytest.approx([1.2, 1.2])  # 1 - 0.2 * -1
    nets["alpha"] = lambda: torch.tensor(0.5)
    assert evaluate.soft(nets, batch).tolist() == pytest.approx([1.5, 1.5])  # 1 - 0.5 * -1: what was learnt
    assert evaluate.soft(nets, batch, alpha=0.0).tolist() == pytest.approx([1.0, 1.0])  # unless a number is given
    far = evaluate.smoothed(nets, batch, noise=100.0, clip=0.25)  # the noise is +- 0.25 all the time: 0.25 or 0.75
    assert set(far.tolist()) <= {0.5, 1.5}


def test_smoothing_stays_inside_the_range():
    nets = {"q.lag": slope(1.0), "policy.lag": Fixed(0.9)}
    assert evaluate.smoothed(nets, with_obs(), noise=100.0, clip=0.5).max() <= 1.0


def test_conservative():
    # Q = 0 everywhere but for the data: log of the mean over uniform (density 1/2) and pi (density e^0 = 1) samples:
    # log(n * (2 + 1 + 1)) with n = 1 sample each = log 4; Q(data) = 0, two members: weight 5 * 2 * log 4 = 13.862944
    nets = {"q": slope(0.0, 0.0), "policy": Fixed(0.5)}
    loss, info = evaluate.conservative(nets, with_obs(), weight=5.0, samples=1)
    assert loss.item() == pytest.approx(13.862944)
    assert info["gap"]().item() == pytest.approx(1.386294)


def test_conservative_with_a_floor_lifts_the_policys_values_to_the_return():
    # returns 1 and 2: log(2 e^0 + 2 e^1) = 2.006409 and log(2 + 2 e^2) = 2.820076, mean 2.413243
    nets = {"q": slope(0.0), "policy": Fixed(0.5)}
    assert evaluate.conservative(nets, with_obs(), weight=1.0, samples=1, floor=True)[0].item() == pytest.approx(
        2.413, abs=1e-3
    )


def test_maximize_q_takes_the_first_critic_and_may_be_scaled():
    nets = {"q": slope(-4.0, 9.0), "policy": Fixed(0.5)}
    assert improve.maximize_q(nets, with_obs())[0].item() == 2.0  # -(-4 * 0.5)
    assert improve.maximize_q(nets, with_obs(), scale=2.5)[0].item() == 2.5  # 2.5 / 2 * 2


def test_maximize_soft_q():
    nets = {"q": slope(2.0, 4.0), "policy": Fixed(0.5, -1.0)}
    # min: 0.2 * -1 - 1 = -1.2; mean: -0.2 - 1.5 = -1.7
    assert improve.maximize_soft_q(nets, with_obs(), alpha=0.2)[0].item() == pytest.approx(-1.2)
    assert improve.maximize_soft_q(nets, with_obs(), alpha=0.2, pessimism="mean")[0].item() == pytest.approx(-1.7)


def test_match_entropy_raises_the_temperature_when_the_entropy_is_too_low():
    # log pi = 2, target -1: loss = -log(alpha) * (2 - 1): its slope in log alpha is -1, so alpha grows
    log_alpha = torch.tensor(math.log(3.0), dtype=torch.float64, requires_grad=True)
    nets = {"policy": Fixed(0.5, 2.0), "alpha": SimpleNamespace(log=log_alpha)}
    loss, _ = improve.match_entropy(nets, with_obs())
    assert loss.item() == pytest.approx(-1.098612)
    assert torch.autograd.grad(loss, log_alpha)[0].item() == pytest.approx(-1.0)
    told, _ = improve.match_entropy(nets, with_obs() | {"pi_log_prob": torch.tensor([0.0, -4.0])})
    assert told.item() == pytest.approx(3 * 1.098612)  # -log(3) * (-2 - 1)


def test_policy_baseline():
    nets = {"q.lag": slope(2.0, 4.0), "policy": Fixed(0.25)}
    assert improve.policy_baseline(nets, with_obs()).tolist() == [0.5, 0.5]


class Table:
    """Q of every action, [E, B, Da], for whatever observation; actions are one-hot."""

    def __init__(self, *values):
        self.values = torch.tensor(values, dtype=torch.float64)

    def every(self, obs):
        return self.values

    def __call__(self, obs, action):
        return (self.values * action[:, 0]).sum(-1)


def test_greedy_and_double_greedy():
    # fast: actions 1 and 0 are best; slow: (1, 4) and (3, 2): the largest are 4 and 3, those of the fast net's choice 4
    # and 3;
    # with a fast net that prefers (0, 1) the slow one says 1 and 2
    nets = {"q.lag": Table([[1.0, 4.0], [3.0, 2.0]]), "q": Table([[5.0, 0.0], [0.0, 5.0]])}
    assert evaluate.greedy(nets, {"next_obs": None}).tolist() == [[4.0, 3.0]]
    assert evaluate.double_greedy(nets, {"next_obs": None}).tolist() == [[1.0, 2.0]]


def test_conservative_sums_over_actions_that_can_be_counted():
    # log(e^0 + e^0) - 0 = log 2 for both rows, one member: 5 * log 2 = 3.465736
    nets = {"q": Table([[0.0, 0.0], [0.0, 0.0]]), "policy": type("P", (), {"discrete": True})}
    batch = {"obs": None, "action": torch.tensor([[[1.0, 0.0]], [[0.0, 1.0]]], dtype=torch.float64)}
    assert evaluate.conservative(nets, batch, weight=5.0)[0].item() == pytest.approx(3.465736)


def test_policy_sample_is_the_members_mean():
    nets = {"q.lag": slope(2.0, 4.0), "policy": Fixed(0.5)}
    assert evaluate.policy_sample(nets, with_obs()).tolist() == [1.5, 1.5]  # (1 + 2) / 2


def test_maximize_q_with_a_sample_takes_the_members_mean():
    nets = {"q": slope(-4.0, 9.0), "policy": Fixed(0.5)}
    assert improve.maximize_q(nets, with_obs(), sample=True)[0].item() == -1.25  # -(-2 + 4.5) / 2


def test_next_state():
    # in normalised units (std 2): the model says 0, the data 2 and 4: errors 1 and 2: (1 + 4) / 2
    def model(obs, action):
        return torch.zeros(1, 2, 1, 1)

    model.encoder = lambda x: x / 2
    batch = {"obs": None, "action": None, "next_obs": torch.tensor([2.0, 4.0]).view(2, 1, 1)}
    assert evaluate.next_state({"model": model}, batch)[0].item() == 2.5


def test_distil_asks_both_for_the_same_noise():
    class Scaled(Fixed):
        def sample(self, obs, noise):
            return self.action * noise

        action_norm = staticmethod(lambda x: x)

    batch = with_obs()
    rng = torch.Generator().manual_seed(0)
    z = torch.randn((2, 1, 1), generator=rng, dtype=torch.float64)
    loss, _ = improve.distil({"policy": Scaled(3.0), "teacher": Scaled(1.0)}, batch, weight=0.5)
    assert loss.item() == pytest.approx(0.5 * (2 * z).square().mean().item())  # (3 z - z)^2


def test_distil_imitates_what_a_source_has_labelled():
    class Pupil(Fixed):
        horizon = 1

        def bc_loss(self, obs, action, generator, condition):
            return (self.action - action).square().mean((1, 2))

    chosen = torch.tensor([1.0, 3.0], dtype=torch.float64).view(2, 1, 1)
    loss, _ = improve.distil({"policy": Pupil(2.0), "teacher": None}, with_obs() | {"chosen": chosen}, weight=0.5)
    assert loss.item() == 0.5  # ((2 - 1)^2 + (2 - 3)^2) / 2, half of it


class Chained:
    """A policy whose log pi of the steps is given; [B, K]."""

    def __init__(self, log_prob, entropy=0.0):
        self.log_prob = torch.tensor(log_prob, dtype=torch.float64)
        self.entropy = torch.full_like(self.log_prob, entropy)

    def chain_log_prob(self, obs, chain):
        return self.log_prob, self.entropy


def surrogate(log_prob, advantage, entropy=0.0, **args):
    batch = {"obs": None, "chain": None, "advantage": torch.tensor(advantage, dtype=torch.float64)}
    batch["log_prob"] = torch.zeros(len(log_prob), len(log_prob[0]), dtype=torch.float64)
    return improve.clipped_surrogate({"policy": Chained(log_prob, entropy)}, batch, **args)


def test_clipped_surrogate():
    # whitened: (1, -1) / sqrt(2) = +-0.707107. Ratios 1.5 and 0.5, clip 0.2: min(1.5, 1.2) A = 0.848528 and, A < 0,
    # min(-0.353553, -0.565685) = -0.565685: mean 0.141421
    rows = [[math.log(1.5)], [math.log(0.5)]]
    loss, info = surrogate(rows, [3.0, 1.0], clip=0.2)
    assert loss.item() == pytest.approx(-0.141421, abs=1e-6)
    assert info["clipped"]().item() == 1.0
    # k3 = r - 1 - log r: 0.5 - 0.405465 and -0.5 + 0.693147: mean 0.143841
    assert info["kl"]().item() == pytest.approx(0.143841, abs=1e-6)
    assert surrogate(rows, [3.0, 1.0], entropy=2.0)[0].item() == pytest.approx(-0.141421, abs=1e-6)
    bonus = improve.clipped_surrogate(
        {"policy": Chained(rows, 2.0)},
        {
            "obs": None,
            "chain": None,
            "advantage": torch.tensor([3.0, 1.0]).double(),
            "log_prob": torch.zeros(2, 1).double(),
        },
        entropy=0.1,
    )
    assert bonus[0].item() == pytest.approx(-0.141421 - 0.2, abs=1e-6)


def test_a_chain_has_one_advantage_and_the_noisier_steps_less_of_it():
    # ratios 1: sum over two steps of A (0.5 + 1) and of -A: 0; then only the first row's last step at ratio 1.1:
    # 0.707107 * (0.5 + 1.1 - 1.5) / 2 = 0.035355
    still, _ = surrogate([[0.0, 0.0], [0.0, 0.0]], [3.0, 1.0], denoise=0.5)
    assert still.item() == pytest.approx(0.0, abs=1e-9)
    moved, _ = surrogate([[0.0, math.log(1.1)], [0.0, 0.0]], [3.0, 1.0], denoise=0.5)
    assert moved.item() == pytest.approx(-0.0353553, abs=1e-6)


def test_the_clip_grows_along_the_chain():
    left = torch.tensor([2, 1, 0])
    grown = improve._grown(0.001, 0.01, left)
    # exp(x) - 1 over e - 1 at 0, 1/2, 1: 0, 0.377541, 1
    assert grown.tolist() == pytest.approx([0.001, 0.001 + 0.009 * 0.377541, 0.01], abs=1e-7)


def test_too_far_from_the_policy_that_acted_is_enough_for_this_round():
    rows = [[math.log(1.5)], [math.log(0.5)]]
    assert bool(surrogate(rows, [3.0, 1.0], target_kl=0.1)[1]["stop"])
    assert not bool(surrogate(rows, [3.0, 1.0], target_kl=0.2)[1]["stop"])


class Acted(Chained):
    def chain(self, obs, noise):
        return noise


def test_gae():
    # one episode of two chunks, cut off by time: delta_2 = 1 + 0.5 * 4 - 2 = 1, A_2 = 1; delta_1 = 0 + 0.5 * 2 - 1 = 0,
    # A_1 = 0 + 0.5 * 0.5 * 1 = 0.25. Another of one, terminated: A = 3 + 0 - 1 = 2. Returns: A + V
    nets = {"policy": Acted([[0.0]] * 3), "v": lambda obs: obs[None, :, 0, 0]}
    batch = {
        "obs": torch.tensor([1.0, 2.0, 1.0]).view(3, 1, 1), "next_obs": torch.tensor([2.0, 4.0, 9.0]).view(3, 1, 1),
        "reward": torch.tensor([0.0, 1.0, 3.0]), "discount": torch.tensor([0.5, 0.5, 0.0]),
        "last": torch.tensor([False, True, True]), "noise": torch.zeros(3, 1, 1, 1),
    }  # fmt: skip
    made = advantage.gae(nets, batch, lam=0.5)
    assert made["advantage"].tolist() == [0.25, 1.0, 2.0]
    assert made["return"].tolist() == [1.25, 3.0, 3.0]


def test_resample():
    # the old policy draws 0.5: min(2, 4) * 0.5 = 1, V = 0.25
    class Old(Fixed, Acted):
        def __init__(self):
            Acted.__init__(self, [[-1.0], [-1.0]])
            self.action = 0.5

    nets = {"policy.old": Old(), "q.lag": slope(2.0, 4.0), "v": value([0.25, 0.25])}
    made = advantage.resample(nets, with_obs())
    assert made["advantage"].tolist() == [0.75, 0.75] and made["log_prob"].tolist() == [[-1.0], [-1.0]]


class Group(Chained):
    """A policy of two steps from noise to action, [B, 1, 1]: x, 2 x, 4 x; log pi of step k is -k."""

    noise_shape = (1, 1)

    def __init__(self):
        pass

    def chain(self, obs, noise):
        return torch.stack([noise, 2 * noise, 4 * noise], 1)

    def ended(self, chain):
        return chain[:, -1]

    def chain_log_prob(self, obs, chain, step):
        assert torch.equal(chain[:, 1], 2 * chain[:, 0]), "two neighbours of the chain"
        return -step[:, None].double(), None


def grouped(*members, **args):
    """What is made of two states with three samples each, of which the members say these numbers, [E, 6]."""
    asked = []

    def critic(obs, action):
        asked.append(obs)
        return torch.tensor(members, dtype=torch.float64)

    batch = with_obs() | {"obs": torch.arange(5.0, dtype=torch.float64).view(5, 1, 1)}
    made = advantage.group_advantage({"policy.old": Group(), "q.lag": critic}, batch, states=2, samples=3, **args)
    assert asked[0][:, 0, 0].tolist() == [0, 0, 0, 2, 2, 2]  # evenly over the batch, each so often
    assert torch.equal(made["chain_obs"], asked[0]) and torch.equal(made["log_prob"][:, 0], -made["step"].double())
    assert made["chain"].shape == (6, 2, 1, 1) and set(made["step"].tolist()) <= {0, 1}
    return made["advantage"].tolist()


def test_group_advantage_is_q_less_the_groups_mean():
    # members' means of the six are (2, 3, 4) and (0, 0, 3), less 3 and less 1
    told = grouped([1.0, 3.0, 5.0, 0.0, 0.0, 3.0], [3.0, 3.0, 3.0, 0.0, 0.0, 3.0])
    assert told == [-1.0, 0.0, 1.0, -1.0, -1.0, 2.0]


def test_group_advantage_by_consensus_is_the_least_that_all_members_grant():
    # each member less its own group's mean: (-2, 0, 2), (-1, -1, 2) and (-1, 2, -1), (-2, 1, 1): the nearest to 0 of
    # equal signs, and 0 where one says 0 or they differ
    told = grouped([1.0, 3.0, 5.0, 0.0, 0.0, 3.0], [0.0, 3.0, 0.0, 0.0, 3.0, 3.0], consensus=True)
    assert told == [-1.0, 0.0, 0.0, -1.0, 0.0, 1.0]
    assert advantage.agreed(torch.tensor([[2.0, -3.0, 1.0], [0.5, -1.0, -1.0]])).tolist() == [0.5, -1.0, 0.0]


def test_a_surrogate_that_is_not_centred_keeps_signs_and_zeros():
    # rms of (3, 0, -4, 0) is 2.5: A = 1.2, 0, -1.6, 0. Ratios 1.5, 1.5, 1, 1, clip 0.2: 1.2 * 1.2 = 1.44; 0; -1.6; 0:
    # the mean of -1.44 + 1.6 over four is 0.04
    rows = [[math.log(1.5)], [math.log(1.5)], [0.0], [0.0]]
    assert surrogate(rows, [3.0, 0.0, -4.0, 0.0], clip=0.2, centre=False)[0].item() == pytest.approx(0.04, abs=1e-6)
    assert surrogate(rows, [0.0] * 4, centre=False)[0].item() == 0.0


def test_imitation_of_successes_is_the_mean_over_rows_that_earned_something():
    # losses (1, 3, 5), returns (0, 0.5, 0.9): 0.1 * (3 + 5) / 2; of none 0
    batch = {**BATCH, "return": torch.tensor([0.0, 0.5, 0.9], dtype=torch.float64)}
    nets = {"policy": Imitated(1.0, 3.0, 5.0)}
    loss, info = improve.imitate(nets, batch, weight=0.1, successes=True)
    assert (loss.item(), info["won"]().item()) == (pytest.approx(0.4), pytest.approx(2 / 3))
    assert improve.imitate(nets, {**batch, "return": torch.zeros(3)}, successes=True)[0].item() == 0.0


def test_imitation_of_what_did_better_counts_the_members_that_think_so():
    # the policy does 0.5, the data 0.5 and 1: members 2 a, 4 a, -1 a find (no, no, no) and (yes, yes, no) better:
    # weights 0 and 2/3; losses 1 and 3; 10 * (0 + 2) / 2
    class Judged(Fixed, Imitated):
        def __init__(self):
            Fixed.__init__(self, 0.5)
            Imitated.__init__(self, 1.0, 3.0)
            self.horizon = 1

    batch = with_obs() | {"action": torch.tensor([0.5, 1.0], dtype=torch.float64).view(2, 1, 1)}
    loss, info = improve.imitate_better({"q.lag": slope(2.0, 4.0, -1.0), "policy": Judged()}, batch, weight=10.0)
    assert (loss.item(), info["better"]().item()) == (pytest.approx(10.0), pytest.approx(1 / 3))


def test_offline_policy_evaluation_wants_a_margin():
    class Model:
        net = type("N", (), {"weight": [torch.zeros(2, 1, 1)]})

        def __call__(self, obs, action):
            return torch.stack([obs, obs])

    def judged(new, old):
        nets = {"q": slope(1.0, 3.0), "policy": Fixed(new), "policy.old": Fixed(old), "model": Model()}
        return gate.ope(nets, with_obs(), margin=0.05, chunks=3)  # all states gain the same: no error

    reason, told = judged(0.55, 0.5)
    assert (reason, told) == (
        "",
        {"gain": pytest.approx(0.05), "error": pytest.approx(0, abs=1e-12)},
    )  # min(1, 3) * action: gained 0.05, wanted 0.025
    assert "J = 0.5100, before 0.5000: gained 0.0100, wanted 0.0250" in judged(0.51, 0.5)[0]


def test_offline_policy_evaluation_wants_more_than_its_own_noise():
    class Model:
        net = type("N", (), {"weight": [torch.zeros(2, 1, 1)]})

        def __call__(self, obs, action):
            return torch.stack([obs, obs])

    class Better(Fixed):
        def sample(self, obs, noise):
            return super().sample(obs, noise) + torch.tensor([0.0, 0.2], dtype=obs.dtype).view(-1, 1, 1)

    nets = {"q": slope(1.0, 3.0), "policy": Better(0.5), "policy.old": Fixed(0.5), "model": Model()}
    # the two states gain 0 and 0.2: 0.1 on average, with a standard error of 0.1414 / sqrt(2) = 0.1
    assert gate.ope(nets, with_obs(), sigmas=0.99, chunks=2) == (
        "",
        {"gain": pytest.approx(0.1), "error": pytest.approx(0.1)},
    )
    assert "gained 0.1000, wanted 0.1010" in gate.ope(nets, with_obs(), sigmas=1.01, chunks=2)[0]


def test_unknown_losses_and_arguments_are_refused_with_the_list():
    with pytest.raises(ValueError, match="no 'tdd' in rl/evaluate.py. There are: .*expectile.*td"):
        resolve("evaluate", "tdd", {})
    with pytest.raises(ValueError, match="expectile has no tua; it has: tau"):
        resolve("evaluate", "expectile", {"tua": 0.7})


class Scale(torch.nn.Module):
    def __init__(self, start):
        super().__init__()
        self.w = torch.nn.Parameter(torch.tensor(float(start), dtype=torch.float64))

    def forward(self, *args):
        return self.w.expand(1, 2)


def learner(**more):
    nets = {"q": Scale(0.0), "v": Scale(1.0)}
    table = {"q": {"td": {"next_value": "state_value"}}}
    return Learner(nets, evaluate=table, improve={}, lag={"q": 0.5}, lr=0.1, weight_decay=0.0, **more)


def test_only_the_named_net_moves_and_its_slow_copy_follows():
    moved = learner()
    batch = {k: v for k, v in BATCH.items() if isinstance(v, torch.Tensor)}
    moved.act("evaluate", {**batch, "obs": torch.zeros(2), "action": torch.zeros(2), "next_obs": torch.zeros(2)})
    # Adam's first step is lr in the gradient's direction: w = 0.1; the lag goes half the way: 0.05
    assert moved.nets["q"].w.item() == pytest.approx(0.1, abs=1e-6)
    assert moved.nets["q.lag"].w.item() == pytest.approx(0.05, abs=1e-6)
    assert moved.nets["v"].w.item() == 1.0


def test_state_restores_everything():
    one, two = learner(seed=1), learner(seed=2)
    batch = {k: v for k, v in BATCH.items() if isinstance(v, torch.Tensor)}
    batch |= {"obs": torch.zeros(2), "action": torch.zeros(2), "next_obs": torch.zeros(2)}
    for _ in range(3):
        one.act("evaluate", batch)
    two.load_state(one.state())
    for _ in range(3):
        one.act("evaluate", batch)
        two.act("evaluate", batch)
    assert one.nets["q"].w.item() == two.nets["q"].w.item()
    assert one.metrics() == two.metrics()
    assert torch.equal(torch.rand(3, generator=one.rng), torch.rand(3, generator=two.rng))


def test_what_cannot_work_fails_before_the_first_update():
    broken = Learner({"q": Scale(0.0)}, evaluate={"q": {"td": {"next_value": "data_action"}}}, improve={}, lag={})
    with pytest.raises(ValueError, match=r"evaluate\.q\.td needs the net or batch entry 'q\.lag'"):
        broken.try_all(
            {
                "evaluate": {k: v for k, v in BATCH.items() if isinstance(v, torch.Tensor)}
                | {"next_obs": torch.zeros(2), "next_action": torch.zeros(2)}
            }
        )
    with pytest.raises(ValueError, match="evaluate names the net 'z'; there are: q"):
        Learner({"q": Scale(0.0)}, evaluate={"z": {}}, improve={}, lag={})


def test_a_loss_may_say_that_it_is_enough():
    batch = {
        **{k: v for k, v in BATCH.items() if isinstance(v, torch.Tensor)},
        "obs": torch.zeros(2),
        "chain": torch.zeros(2),
    }
    batch |= {"log_prob": torch.zeros(2, 1), "advantage": torch.tensor([1.0, 0.0])}

    class Far(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.w = torch.nn.Parameter(torch.tensor(1.0))

        def chain_log_prob(self, obs, chain):
            return self.w.expand(2, 1), torch.zeros(2, 1)

    table = {"policy": {"clipped_surrogate": {"target_kl": 0.1}}}
    moved = Learner({"policy": Far()}, evaluate={}, improve=table, lag={})
    assert moved.act("improve", batch) is True
    assert moved.nets["policy"].w.item() == 1.0
    table = {"policy": {"clipped_surrogate": {"target_kl": 10.0}}}
    assert Learner({"policy": Far()}, evaluate={}, improve=table, lag={}).act("improve", batch) is False


def test_each_net_may_have_its_own_rate_and_the_plain_gradient_step_is_one():
    batch = {k: v for k, v in BATCH.items() if isinstance(v, torch.Tensor)}
    batch |= {"obs": torch.zeros(2), "action": torch.zeros(2), "next_obs": torch.zeros(2)}
    table = {"q": {"td": {"next_value": "state_value"}}, "v": {"returns": {}}}
    nets = {"q": Scale(0.0), "v": Scale(1.0)}
    moved = Learner(
        nets, evaluate=table, improve={}, lag={}, lr={"q": 0.1, "v": 0.2}, optimiser="sgd", weight_decay=0.0
    )
    moved.act("evaluate", batch)
    # targets 1 + 0 and 0.5 + 0.9 * 1 = 1.4: dq = -2 * 1.2 = -2.4, q = 0.24; returns 1 and 2: dv = 2 * (1 - 1.5) = -1, v
    # = 1.2
    assert moved.nets["q"].w.item() == pytest.approx(0.24)
    assert moved.nets["v"].w.item() == pytest.approx(1.2)
