"""The guard: what steps in between policy and environment, what undoes updates, what says that practice goes wrong."""

import hashlib
import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from flywheel import env as envs
from flywheel import regret, stats
from flywheel.args import Guard, UsageError
from flywheel.env.guard import StepGuard
from flywheel.policy import base
from flywheel.rl import guards as learning
from flywheel.rl.guarding import Guarding
from flywheel.rl.learner import Learner
from flywheel.rl.slump import BETS, Slump

LOW, HIGH = np.float32([-1, -1]), np.float32([1, 1])
ZERO = np.array([0])


def chain(table, **more):
    """A guard of one slot with limits -1 to 1 in two dimensions."""
    return StepGuard(LOW, HIGH, 1, table, **more)


def test_limits_may_be_narrower_than_the_environments_in_each_dimension():
    guard = chain({"limits": {"low": [-0.5, -9], "high": 0.5, "tolerance": 0.1}})
    assert guard(np.array([[-0.8, -0.8]]), ZERO).tolist() == [[-0.5, np.float32(-0.8)]]
    assert guard.count == {"steps": 1, "limits": 1}  # 0.3 beyond, tolerated is 0.1 of a range of 1


def test_rate_bounds_the_change_from_what_was_executed():
    guard = chain({"rate": {"share": [0.1, 0.5]}})  # of ranges of 2: 0.2 and 1.0 a step
    steps = [guard(np.array([[1.0, 1.0]]), ZERO)[0].tolist() for _ in range(3)]
    np.testing.assert_allclose(steps, [[0.2, 1.0], [0.4, 1.0], [0.6, 1.0]], atol=1e-6)
    assert guard.count["rate"] == 3
    guard.begin(0)
    np.testing.assert_allclose(guard(np.array([[1.0, 0.0]]), ZERO), [[0.2, 0.0]], atol=1e-6)


def test_workspace_stops_motions_outwards_and_moves_targets_to_the_wall():
    guard = chain({"workspace": {"obs": [2], "low": [0.0], "high": [0.4], "dims": [1]}})
    inside, above = np.array([[9.0, 9.0, 0.2]]), np.array([[9.0, 9.0, 0.5]])
    assert guard(np.array([[0.3, 0.7]]), ZERO, inside).tolist() == [[np.float32(0.3), np.float32(0.7)]]
    assert guard(np.array([[0.3, 0.7]]), ZERO, above).tolist() == [[np.float32(0.3), 0.0]]
    assert guard(np.array([[0.3, -0.7]]), ZERO, above)[0, 1] == np.float32(-0.7)  # back in
    targets = chain({"workspace": {"obs": [2], "low": [0.0], "high": [0.4], "dims": [1], "positions": True}})
    assert targets(np.array([[0.3, 0.7]]), ZERO, above)[0, 1] == np.float32(0.4)


def test_what_is_observed_has_the_same_name_for_a_robot_and_in_simulation():
    """guard.step.*.obs: by name, wherever the numbers lie; a name that is none is refused with those there are."""
    table = {"force": {"obs": ["touch[1]", 0], "most": 5}}
    guard = StepGuard(LOW, HIGH, 1, table, names={"grip": 0, "touch[0]": 1, "touch[1]": 2})
    assert guard(np.array([[1.0, 1.0]]), ZERO, np.array([[0.0, 9.0, 4.0]])).tolist() == [[1.0, 1.0]]
    assert guard(np.array([[1.0, 1.0]]), ZERO, np.array([[0.0, 9.0, 6.0]])).tolist() == [[0.0, 0.0]]
    with pytest.raises(ValueError, match=r"guard.step.force.obs names tuch; what is observed here: grip"):
        StepGuard(LOW, HIGH, 1, {"force": {"obs": ["tuch"], "most": 5}}, names={"grip": 0})
    env = envs.make({"name": "gym", "id": "toy:Reach-v0", "max_steps": 20, "step_seconds": 0}, 1, 1)
    env.guard = Guard(step={"workspace": {"obs": ["obs[2]"], "low": [-1], "high": [1]}})
    assert StepGuard.of(env).chain[0][1].keywords["obs"] == [2]
    env.close()


def test_force_and_watchdog_move_nothing_while_something_is_wrong():
    now = iter([1.0, 1.05, 1.3, 1.35])
    guard = chain({"force": {"obs": [0], "most": 5}}, rest=lambda slot: np.array([0.5, 0.5]))
    guard.begin(0)
    assert guard(np.array([[1.0, 1.0]]), ZERO, np.array([[-6.0]])).tolist() == [[0.5, 0.5]]
    assert guard(np.array([[1.0, 1.0]]), ZERO, np.array([[4.0]])).tolist() == [[1.0, 1.0]]
    timed = chain({"watchdog": {"seconds": 0.1}}, clock=lambda: next(now))
    assert [timed(np.array([[1.0, 1.0]]), ZERO)[0, 0] for _ in range(4)] == [1, 1, 0, 1]


def test_a_burst_is_a_short_rest_and_then_a_slow_mode_and_never_for_good():
    """Windows of 4, bad from 2 interventions on; two bad of the last three: 2 steps of rest, 6 at half of the asked."""
    table = {"limits": {"tolerance": 0.0}, "burst": {"window": 4, "freeze": 2, "steps": 6}}
    guard = chain(table)
    wild, calm = np.array([[3.0, 0.0]]), np.array([[1.0, 0.0]])
    moved = [guard(wild, ZERO)[0, 0] for _ in range(8)]
    assert moved == [*[1.0] * 7, 0.0]  # two windows
    moved = [guard(calm, ZERO)[0, 0] for _ in range(8)]
    assert moved == [0.0, *[0.5] * 6, 1.0]
    forever = [float(guard(wild, ZERO)[0, 0]) for _ in range(400)]
    assert np.mean(np.array(forever) == 0.0) < 0.25 and max(forever[-50:]) > 0


def test_a_guard_that_is_not_there_or_lacks_an_argument_is_refused_with_what_there_is():
    with pytest.raises(ValueError, match=r"guard.step names 'speed'; there are: burst, finite, force, limits, rate"):
        chain({"speed": {}})
    with pytest.raises(ValueError, match=r"guard.step.rate has no most; it has: share"):
        chain({"rate": {"most": 1}})
    with pytest.raises(ValueError, match=r"guard.step.force needs obs, most"):
        chain({"force": {}})
    assert [name for name, _ in chain({"finite": None, "limits": {}}).chain] == ["limits"]


class Wild:
    """Acts far outside, always."""

    def reset(self, slots, seeds):
        pass

    def act(self, obs, slots=None):
        return np.full((len(obs), 2), 7.0)


def test_a_simulator_waits_for_its_policy_so_nothing_is_too_late_there():
    env = envs.make({"name": "gym", "id": "toy:Reach-v0", "max_steps": 20}, 2)
    env.guard = Guard(step={"watchdog": {"seconds": 1e-12}})
    done, counts = envs.rollout(env, Wild(), range(3), origin="test")
    assert "watchdog" not in counts and all("guard" not in e.meta for e in done)
    env.close()


def test_episodes_are_told_in_the_order_of_their_seeds_not_as_they_end():
    """What succeeds ends early: told as they end, a round's failures would be a run of failures, and an alarm."""
    import odd  # noqa: F401  (registers the environment)

    env = envs.make({"name": "gym", "id": "odd:Odd-v0", "kwargs": {"does": "raise", "at": [4, 5, 7]}, "faults": 1.0}, 3)
    told = []
    done, _ = envs.rollout(env, Wild(), range(3, 12), origin="test", each=lambda e: told.append((e.seed, len(e))))
    assert told == [(e.seed, len(e)) for e in done] and {n for _, n in told} == {2, 20}
    env.close()


def test_each_trip_stands_in_the_episode_and_beyond_the_budget_the_episode_ends():
    env = envs.make({"name": "gym", "id": "toy:Reach-v0", "max_steps": 20}, 2)
    env.guard = Guard(interventions=5)
    done, counts = envs.rollout(env, Wild(), range(3), origin="test")
    for episode in done:
        assert len(episode) == 5 and not episode.terminated and not episode.success
        assert episode.meta["guard"] == {"limits": [5, 0]} and episode.meta["guard_ended"] == "5 interventions"
        assert (episode.action == 1).all() and (episode.extras["proposed"] == 7).all()
    assert counts["limits"] == 15


def test_a_stage_ends_where_guards_have_stepped_in_too_often(copied, capsys):
    from small import LITTLE, call

    _, at = copied
    made = call("pretrain", "policy=flow", "algorithm.cadence.improve=10", *LITTLE, *at, capsys=capsys)[1]
    words = [
        "retrain",
        f"checkpoint={made['outputs']['checkpoint']}",
        "rounds=5",
        "collect.episodes=4",
        "batch_size=16",
        *at,
    ]
    words += ["algorithm.cadence={rounds: 5, evaluate: 2, improve: 2}", "guard.step.limits={tolerance: 0.0}"]
    words += ["guard.step.rate={share: 0.001}", "guard.in_all=60", "algorithm.critic={members: 2, width: 16}"]
    code, out = call(*words, capsys=capsys)
    assert code == 0 and out["metrics"]["rounds"] < 5, out


def test_what_moves_nothing_is_asked_for_where_the_arm_is_now():
    at = [2.0]
    guard = StepGuard(
        np.float32([-3]), np.float32([3]), 1, {"force": {"obs": [0], "most": 5}}, lambda slot: np.array(at)
    )
    guard.begin(0)
    at[0] = -1.0  # it moved
    assert guard(np.array([[2.5]]), ZERO, np.array([[9.0]])).tolist() == [[-1.0]]


def test_jerks_and_then_a_steady_command_end_the_slow_mode_and_cost_no_episode():
    table = {"burst": {}, "finite": {}, "limits": {}, "rate": {"share": 0.2}}  # burst comes last, wherever it is named
    guard = StepGuard(LOW, HIGH, 1, table, most=100)
    for k in range(20):
        guard(np.array([[(-1.0) ** k, 0.0]]), ZERO)
    moved = [float(guard(np.array([[1.0, 0.0]]), ZERO)[0, 0]) for _ in range(500)]
    assert moved[-300:] == [1.0] * 300 and not guard.ends(ZERO)[0]


# -- updates ---------------------------------------------------------------------------------------------------------


class Line:
    """A run's log, to read."""

    def __init__(self):
        self.lines = []

    def log(self, kind, **more):
        self.lines.append((kind, more))


def learner(loss="imitate", lr=1e-3, **tables):
    torch.manual_seed(0)
    policy = base.build({"kind": "deterministic", "obs_dim": 3, "action_dim": 2, "width": 16, "depth": 1})
    return Learner({"policy": policy}, evaluate={}, improve={"policy": {loss: {}}}, lag={}, lr=lr)


def batch(value=0.5, n=8):
    obs = torch.linspace(-1, 1, n * 6).view(n, 2, 3)
    action = torch.full((n, 4, 2), value)
    return {"obs": obs, "action": action, "next_obs": obs, "reward": torch.zeros(n), "discount": torch.ones(n)}


def watched(made, guard, anchored=True):
    return Guarding(made, guard, Line(), anchored, "success")


def test_an_update_that_goes_wrong_is_undone_whole_and_the_rate_halved():
    made = learner(lr=1.0)  # absurd
    guard = watched(made, Guard(every=5, trips=3, update={"drift": {"most": 0.05}}))
    guard.passed = 1
    before = made.state()
    over = [guard.act("improve", batch(value=0.9)) for _ in range(15)]
    assert over == [False] * 14 + [True] and guard.act("improve", batch())
    after = made.state()
    assert all(torch.equal(before[key], after[key]) for key in before if not key.startswith(("sums", "counts", "acts")))
    assert made.optim["policy"].lr == 1.0 / 8 and guard.scale == 1 / 8
    assert [kind for kind, _ in guard.run.lines] == ["guard"] * 3
    guard.begin_round()
    assert not guard.act("improve", batch())  # the next round has trips of its own


def test_where_nothing_passes_at_all_that_is_an_error_that_says_what_to_do():
    guard = watched(learner(lr=1.0), Guard(every=1, trips=2, update={"drift": {"most": 0.0}}))
    with pytest.raises(FloatingPointError, match=r"undid all that was learnt, 2 times.*guard.update.drift=null"):
        for _ in range(2):
            guard.act("improve", batch(value=0.9))


def test_a_resumed_guard_goes_on_to_the_same_bytes():
    def straight():
        made = learner(lr=0.3)
        return made, watched(made, Guard(every=4, trips=9, update={"drift": {"most": 0.3}}))

    one, first = straight()
    for _ in range(18):
        first.act("improve", batch())
    two, second = straight()
    for _ in range(7):
        second.act("improve", batch())
    kept = json.loads(json.dumps(second.state()))
    three, third = straight()
    three.load_state(two.state())
    third.load_state(kept, second.before)
    for _ in range(11):
        third.act("improve", batch())
    assert first.events and first.events == third.events
    assert all(torch.equal(a, b) for a, b in zip(one.state().values(), three.state().values(), strict=True))


def seen(q, before=None, **more):
    """A look at critics that say q [E, B]."""
    made = SimpleNamespace(nets={"q": lambda obs, action: torch.tensor(q)}, anchor=None, optim={}, mean={}.get)
    from flywheel.rl.guarding import Seen

    rows = {"obs": None, "action": None, "reward": torch.tensor([0.0, -2.0]), "discount": torch.tensor([0.9, 0.9])}
    return Seen(made, rows, {}, {} if before is None else before, True, **{"reward": "success", **more})


def check(name, look, **args):
    from flywheel.env.guard import named

    return named(learning, name, args, 1, "guard.update")(look)


def test_values_are_held_against_what_the_reward_allows():
    assert check("values", seen([[0.1, 1.4], [0.3, 1.2]])) == ""
    assert check("values", seen([[0.1, 5.4], [0.3, 5.2]])).startswith(
        "values from 0.2 to 5.3, where the reward allows 0 to 1"
    )
    own = seen([[-30.0, -12.0]], reward="env")  # -2 a chunk at 0.9: -20 at least; the margin is as much again
    assert check("values", own) == "" and own.memory == {"least": -2.0, "most": 0.0, "discount": pytest.approx(0.9)}
    assert "allows -20" in check("values", seen([[-50.0, -12.0]], reward="env"))
    assert check("values", seen([[float("nan"), 0.0]])) != ""


def test_disagreement_that_collapses_is_seen():
    memory = {}
    assert check("disagreement", seen([[0.0, 1.0], [1.0, 0.0]], memory)) == ""
    assert check("disagreement", seen([[0.5, 0.5], [0.4, 0.6]], memory)) == ""  # a fifth of it
    assert "fell from" in check("disagreement", seen([[0.5, 0.5], [0.5001, 0.5]], memory))


def test_kl_and_clip_share_read_what_the_surrogate_logged():
    look = seen([[0.0]])
    assert check("kl", look) == check("clip_share", look) == ""  # nothing was logged
    look.learner.mean = {"policy.kl": 4.0, "policy.clipped": 0.9}.get
    assert check("kl", look) == "KL to the policy that acted is 4"
    assert check("clip_share", look) == "90% of the ratios were clipped"


def test_weights_that_are_no_numbers_are_seen():
    made = learner()
    guard = watched(made, Guard(every=1, update={"finite": {}}))
    guard.passed = 1
    made.flat["policy"].values[3] = float("nan")
    assert "not finite" in check("finite", SimpleNamespace(learner=made))


# -- acting ----------------------------------------------------------------------------------------------------------


def test_the_alarm_is_the_mean_of_its_bets_by_hand():
    alarm = Slump(below=0.05, false_alarm=1e9)
    alarm.base = 0.85  # m = 0.8: a failure multiplies by 1 + 4 f, a success by 1 - f
    alarm.saw(False), alarm.saw(False), alarm.saw(True)
    np.testing.assert_allclose(alarm.evidence, (1 + 4 * BETS) ** 2 * (1 - BETS))
    alarm.saw(True), alarm.saw(True), alarm.saw(True)
    assert alarm.evidence[-1] == pytest.approx(0.2)  # 17.64 * 0.2^2 = 0.71, below 1: begun anew, and one more success
    assert not Slump(below=None, false_alarm=10).watches


def test_false_alarms_are_as_rare_as_promised_and_a_fall_is_seen_soon():
    rng, waits = np.random.default_rng(3), []
    for _ in range(60):  # at m itself: at least 200 episodes between two, on average
        alarm, n = Slump(0.05, 200), 0
        alarm.base = 0.9
        while not alarm.saw(rng.random() < 0.85) and n < 2000:
            n += 1
        waits.append(n)
    assert np.mean(waits) > 200
    for rate, most in ((0.5, 60), (0.0, 12)):
        alarm = Slump(0.05, 2000)
        alarm.base = 0.9
        assert next(n for n in range(1, 500) if alarm.saw(rng.random() < rate)) <= most


def test_regret_by_hand():
    outcomes = "1" * 50 + "1" * 30 + "0" * 20 + "0" * 10 + "1" * 45  # what is left joins the last: 55 of which 45
    assert regret.windows(outcomes) == [(0, 50, 50), (50, 30, 50), (100, 45, 55)]
    told = regret.summary(outcomes, 0.9)
    assert told["regret"] == pytest.approx(50 * 0.3 + 55 * (0.9 - 45 / 55), abs=0.01)
    low = 50 * (0.9 - stats.wilson(30, 50)[1]) + 55 * (0.9 - stats.wilson(45, 55)[1])
    assert told["regret_ci95"][0] == pytest.approx(low, abs=0.01)
    assert told["worst_window"] == 0.4 and told["worst_window_at"] == 60  # episodes 60 to 109: 20 successes
    assert told["worst_by_chance"] == 0.0
    assert regret.summary(outcomes, None) == {} == regret.summary("", 0.9)


def test_chance_alone_makes_a_worst_window_and_that_is_said():
    told = regret.summary("1110" * 50, 0.75)
    assert told["regret"] < 2 and told["worst_by_chance"] > 0.9  # it never was as low as chance makes it
    dip = "1" * 100 + "1111011110" * 5 + "1" * 50
    known, guessed = (regret.summary(dip, 0.95, n)["worst_by_chance"] for n in (0, 20))
    assert known < 0.01 < 0.1 < guessed, "a start that was tried on few episodes may have been worse than it looked"


def test_a_nightly_may_leave_online_out_and_a_policy_without_chance_gets_a_residual():
    from flywheel.cli import config

    args = config.compose("nightly", [])
    assert (args.online.algorithm.name, args.distil) == ("ogpo", None)
    assert config.compose("nightly", ["online=null"]).online is None
    for part in set(config.PARTS) - set(config.OPTIONAL):
        with pytest.raises(UsageError, match=f"nightly: {part}=null; a night can do without online and distil alone"):
            config.compose("nightly", [f"{part}=null"])
    assert config.compose("nightly", ["online.algorithm=residual"]).online.algorithm.name == "residual"
    assert config.table("online", "residual").residual == {"alpha": 0.2}
    told = config.compose("nightly", ["guard=real", "guard.step.rate.share=0.1"])
    assert told.retrain.guard.step["rate"] == told.evaluate.guard.step["rate"] == {"share": 0.1}
    assert told.guard.interventions == 100 and list(told.guard.step)[:2] == ["finite", "limits"]


def test_the_first_demonstrations_are_the_first_by_hash(tmp_path):
    from types import SimpleNamespace as Of

    from corpus_cases import episode

    from flywheel import selection
    from flywheel.args import Demos, Task
    from flywheel.runs.run import Store

    store = Store(tmp_path)
    made = [episode(seed).replace(origin="human:x", success=True) for seed in range(6)]
    store.corpus(create=True).append(made)
    args = Of(corpus="latest", task=Task(name="gym", id=made[0].task), demos=Demos(first=4))
    assert selection.demonstrations(args, store).hashes == sorted(e.hash for e in made)[:4]


def test_practice_begins_with_a_class_that_knows_chance(tmp_path):
    """Of a deterministic base a best of N would have nothing to choose among."""
    from flywheel.policy import base
    from flywheel.runs.nightly import _begun_from
    from flywheel.runs.run import Store

    store, refs = Store(tmp_path), {}
    for kind in ("flow", "deterministic", "gaussian"):
        file = tmp_path / f"{kind}.safetensors"
        base.save(base.build({"kind": kind, "obs_dim": 3, "action_dim": 2, "width": 8, "depth": 1}), file)
        digest = hashlib.sha256(file.read_bytes()).hexdigest()
        refs[kind] = f"policy/x@{store.names.make('policy/x', digest, file.name, 'r', task={})['id']}"

    def table(**rates):
        return [{"checkpoint": refs[kind], "success": rate} for kind, rate in rates.items()]

    some = table(flow=0.6, deterministic=0.7, gaussian=0.65)
    assert _begun_from(refs["deterministic"], some, 0.15, store) == refs["flow"]  # the first that is near enough
    assert _begun_from(refs["deterministic"], some, 0.06, store) == refs["gaussian"]
    assert _begun_from(refs["deterministic"], some, 0.01, store) == refs["deterministic"]
    assert _begun_from(refs["gaussian"], table(flow=0.6, gaussian=0.65), 0.15, store) == refs["gaussian"]
