"""The peers' own code, from checkouts that CORL_DIR (tinkoff-ai/CORL) and CLEANRL_DIR (vwxyzjn/cleanrl) name.

Their files import what has no part in an update (d4rl, gym, wandb, pyrallis, tyro, tensorboard): where such a package
is not installed, an empty stand-in takes its place. Everything that is measured is theirs, unchanged."""

from __future__ import annotations

import ast
import importlib.util
import os
import sys
import types
from pathlib import Path

import numpy as np


class _Nothing(types.ModuleType):
    """A module, and a function, that has every attribute and does nothing; as a decorator it returns what it
    decorates."""

    def __getattr__(self, name: str):
        if name.startswith("__"):
            raise AttributeError(name)
        return _Nothing(name)

    def __call__(self, *args, **kwargs):
        return args[0] if len(args) == 1 and callable(args[0]) else _Nothing("nothing")


def folder(variable: str) -> Path | None:
    """The checkout that an environment variable names, or None."""
    found = os.environ.get(variable)
    return Path(found) if found and Path(found).is_dir() else None


def _stand_in(*names: str) -> None:
    for name in names:
        try:
            importlib.import_module(name)
        except ImportError:
            sys.modules[name] = _Nothing(name)


def corl(algorithm: str):
    """The module algorithms/offline/NAME.py of CORL."""
    _stand_in("d4rl", "gym", "gym.wrappers", "pyrallis", "wandb", "tqdm")
    path = folder("CORL_DIR") / "algorithms" / "offline" / f"{algorithm}.py"
    spec = importlib.util.spec_from_file_location(f"corl_{algorithm}", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # its dataclasses look themselves up
    spec.loader.exec_module(module)
    return module


def corl_trainer(algorithm: str, obs_dim: int, action_dim: int, updates: int, depth: int | None = None):
    """(module, trainer, actor) as CORL's own `train` builds them with its defaults; update = trainer.train(batch).

    `depth` hidden layers in the Q functions of CQL, by default its own (3).
    """
    import torch

    module = corl(algorithm)
    adam, config = torch.optim.Adam, module.TrainConfig(device="cpu")
    if algorithm == "iql":
        q, v = module.TwinQ(obs_dim, action_dim), module.ValueFunction(obs_dim)
        actor = module.GaussianPolicy(obs_dim, action_dim, 1.0)
        return module, module.ImplicitQLearning(
            max_action=1.0, actor=actor, actor_optimizer=adam(actor.parameters(), lr=config.actor_lr), q_network=q,
            q_optimizer=adam(q.parameters(), lr=config.qf_lr), v_network=v,
            v_optimizer=adam(v.parameters(), lr=config.vf_lr), iql_tau=config.iql_tau, beta=config.beta,
            max_steps=updates, discount=config.discount, tau=config.tau,
        ), actor  # fmt: skip
    if algorithm == "td3_bc":
        actor = module.Actor(obs_dim, action_dim, 1.0)
        critics = [module.Critic(obs_dim, action_dim) for _ in range(2)]
        optimisers = [adam(net.parameters(), lr=3e-4) for net in (*critics, actor)]
        return module, module.TD3_BC(
            max_action=1.0, actor=actor, actor_optimizer=optimisers[2], critic_1=critics[0],
            critic_1_optimizer=optimisers[0], critic_2=critics[1], critic_2_optimizer=optimisers[1],
            discount=config.discount, tau=config.tau, policy_noise=config.policy_noise, noise_clip=config.noise_clip,
            policy_freq=config.policy_freq, alpha=config.alpha,
        ), actor  # fmt: skip
    if algorithm == "awac":
        size = {"state_dim": obs_dim, "action_dim": action_dim, "hidden_dim": config.hidden_dim}
        actor, critics = module.Actor(**size), [module.Critic(**size) for _ in range(2)]
        optimisers = [adam(net.parameters(), lr=config.learning_rate) for net in (*critics, actor)]
        trainer = module.AdvantageWeightedActorCritic(
            actor=actor, actor_optimizer=optimisers[2], critic_1=critics[0], critic_1_optimizer=optimisers[0],
            critic_2=critics[1], critic_2_optimizer=optimisers[1], gamma=config.gamma, tau=config.tau,
            awac_lambda=config.awac_lambda,
        )  # fmt: skip
        trainer.train = trainer.update
        return module, trainer, actor
    actor = module.TanhGaussianPolicy(obs_dim, action_dim, 1.0, log_std_multiplier=config.policy_log_std_multiplier,
                                      orthogonal_init=config.orthogonal_init)  # fmt: skip
    critics = [
        module.FullyConnectedQFunction(obs_dim, action_dim, config.orthogonal_init, depth or config.q_n_hidden_layers)
        for _ in range(2)
    ]
    optimisers = [adam(net.parameters(), lr=config.qf_lr) for net in critics]
    return module, module.ContinuousCQL(
        critic_1=critics[0], critic_2=critics[1], critic_1_optimizer=optimisers[0], critic_2_optimizer=optimisers[1],
        actor=actor, actor_optimizer=adam(actor.parameters(), lr=config.policy_lr), discount=config.discount,
        soft_target_update_rate=config.soft_target_update_rate, device="cpu", target_entropy=-float(action_dim),
        alpha_multiplier=config.alpha_multiplier, use_automatic_entropy_tuning=config.use_automatic_entropy_tuning,
        backup_entropy=config.backup_entropy, policy_lr=config.policy_lr, qf_lr=config.qf_lr, bc_steps=config.bc_steps,
        target_update_period=config.target_update_period, cql_n_actions=config.cql_n_actions,
        cql_importance_sample=config.cql_importance_sample, cql_lagrange=config.cql_lagrange,
        cql_target_action_gap=config.cql_target_action_gap, cql_temp=config.cql_temp, cql_alpha=config.cql_alpha,
        cql_max_target_backup=config.cql_max_target_backup, cql_clip_diff_min=config.cql_clip_diff_min,
        cql_clip_diff_max=config.cql_clip_diff_max,
    ), actor  # fmt: skip


def corl_buffer(module, data: dict[str, np.ndarray]):
    """CORL's replay buffer with `data` in it: observations, actions, rewards, next_observations, terminals."""
    buffer = module.ReplayBuffer(data["observations"].shape[1], data["actions"].shape[1], len(data["rewards"]), "cpu")
    buffer.load_d4rl_dataset(data)
    return buffer


def _script(name: str):
    """cleanrl's NAME.py: the namespace of its definitions, what compiles more of its lines for it, and its main
    block."""
    import gymnasium as gym

    _stand_in("tyro", "wandb", "torch.utils.tensorboard")
    path = folder("CLEANRL_DIR") / "cleanrl" / f"{name}.py"
    sys.path.insert(0, str(path.parent.parent))
    tree = ast.parse(path.read_text())
    main = next(node for node in tree.body if isinstance(node, ast.If))
    module = types.ModuleType("cleanrl_script")
    sys.modules[module.__name__], module.__file__ = module, str(path)  # its dataclass looks itself up
    space = vars(module)

    def run(body):
        return compile(ast.Module(body, []), str(path), "exec")

    exec(run([node for node in tree.body if node is not main]), space)
    clip = gym.wrappers.TransformObservation  # written for an older Gymnasium, which asked for no space
    gym.wrappers.TransformObservation = lambda env, f, space=None: clip(env, f, space or env.observation_space)
    return space, run, main


def cleanrl_envs(id: str, count: int):
    """The vector environment that cleanrl's PPO collects from, by its own `make_env`."""
    import gymnasium as gym

    space, _, _ = _script("ppo_continuous_action")
    return gym.vector.SyncVectorEnv([space["make_env"](id, i, False, "benchmark", 0.99) for i in range(count)])


def cleanrl(name: str, env: str, **args):
    """One training step of cleanrl's NAME.py as a function without arguments, its replay buffer full of random data.

    The scripts have no functions: their set-up and, from their loop, the branch that trains are compiled as they stand
    and run in one namespace, with `env` and `args` in place of the command line.
    """
    import gymnasium as gym

    space, run, main = _script(name)
    loop = next(i for i, node in enumerate(main.body) if isinstance(node, ast.For))
    space["tyro"].cli = lambda kind: kind(env_id=env, cuda=False, **args)
    exec(run(main.body[:loop]), space)
    if name.startswith("ppo"):
        return _ppo(space, run, main.body[loop].body)
    buffer, rng, obs = space["rb"], np.random.default_rng(0), space["envs"].single_observation_space
    action = space["envs"].single_action_space
    for _ in range(20_000):
        a, b = (rng.normal(size=(1, *obs.shape)).astype(np.float32) for _ in range(2))
        act = (
            np.array([rng.integers(action.n)])
            if isinstance(action, gym.spaces.Discrete)
            else rng.uniform(-1, 1, (1, *action.shape))
        )
        buffer.add(a, b, act, rng.normal(size=1), np.zeros(1), [{}])
    train = [n for n in main.body[loop].body if isinstance(n, ast.If) and "learning_starts" in ast.unparse(n.test)][-1]
    code = run(train.body)

    def step() -> None:
        space["global_step"] += 1
        exec(code, space)

    space["global_step"] = 1  # never a multiple of 100 that prints
    return step


def _ppo(space: dict, run, body: list):
    """One round of PPO's updates over a batch that means nothing: what flattens the batch and the loop over epochs,
    as they stand."""
    import torch

    args, agent = space["args"], space["agent"]
    space["obs"], space["actions"] = torch.randn_like(space["obs"]), torch.randn_like(space["actions"])
    with torch.no_grad():
        seen, done = (space[key].flatten(0, 1) for key in ("obs", "actions"))
        _, log_prob, _, value = agent.get_action_and_value(seen, done)
    shape = (args.num_steps, args.num_envs)
    space |= {
        "logprobs": log_prob.view(shape),
        "values": value.view(shape),
        "advantages": torch.randn(shape),
        "returns": torch.randn(shape),
    }
    flatten = [
        n for n in body if isinstance(n, ast.Assign) and ast.unparse(n.targets[0]).startswith(("b_", "clipfracs"))
    ]
    code = run([*flatten, next(n for n in body if isinstance(n, ast.For) and ast.unparse(n.target) == "epoch")])
    return lambda: exec(code, space)
