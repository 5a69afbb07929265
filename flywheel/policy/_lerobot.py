"""Every import of LeRobot that policies need stands here, inside functions: it takes seconds, and --help needs none.

LeRobot finds the parts of a policy by their names (configuration_X.XConfig, modeling_X.XPolicy, processor_X.make_X...),
and so does this module. What differs between its releases (0.4.4 is the last for Python 3.11) is asked for by
`inspect`: nothing here depends on a release's number."""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import functools
import importlib
import importlib.util
import inspect
import io
import os
from collections import deque
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from flywheel import store

STATE, ENV, IMAGE, ACTION = "observation.state", "observation.environment_state", "observation.images.", "action"
STATISTICS = ("min", "max", "mean", "std", "q01", "q10", "q50", "q90", "q99")
PICTURES = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225), "min": (0.0,) * 3, "max": (1.0,) * 3}
STEPS = ("n_action_steps", "action_chunk_size")  # what a type calls the actions that are executed
MODEL = "model.safetensors"
NO_IMITATION = {"tdmpc": "a world model with rewards", "sarm": "a reward", "reward_classifier": "a reward", "sac": "Q"}
FIXED = ("act",)  # types that make the same action of any noise


def imported(name: str) -> Any:
    """A module of LeRobot. ValueError that names the extra where something that it needs is not installed."""
    os.environ.setdefault("HF_HUB_OFFLINE", "1")  # else whatever is missing is looked for on the hub
    try:
        return importlib.import_module(name)
    except ImportError as error:
        missing = error.name or str(error)
        raise ValueError(
            f"policy=lerobot: {name} needs {missing}, which is not installed: pip install 'robot-flywheel[vla]'"
        ) from error


@functools.cache
def parts(type: str) -> tuple[Any, Any, Any]:
    """The classes of a type's configuration and policy, and what makes its processors. ValueError lists the types."""
    imported("lerobot.policies")
    known = imported("lerobot.configs.policies").PreTrainedConfig.get_known_choices()
    if type in NO_IMITATION:
        raise ValueError(f"policy.type={type} learns {NO_IMITATION[type]}, and does not imitate; take one that does")
    if type not in known:
        there = ", ".join(sorted({*known} - {*NO_IMITATION}))
        raise ValueError(f"policy.type={type}: LeRobot has no such policy here. There are: {there}")
    made, place = known[type], known[type].__module__
    modeling, processor = (imported(place.replace("configuration_", f"{part}_")) for part in ("modeling", "processor"))
    name = made.__name__.removesuffix("Config")
    return made, getattr(modeling, f"{name}Policy"), getattr(processor, f"make_{type}_pre_post_processors")


def configured(
    type: str, told: Mapping[str, Any], inputs: Mapping[str, Any], cameras: Mapping[str, Any], action_dim: int
) -> Any:
    """The configuration of a type with what is `told` besides its defaults. `inputs` {key: number of values}.

    ValueError for a key that the type does not have, and for a value that it refuses."""
    import draccus

    made = parts(type)[0]
    known = {field.name for field in dataclasses.fields(made)}
    for key in told:
        if key not in known:
            near = difflib.get_close_matches(key, known, 1)
            hint = f"; did you mean policy.settings.{near[0]}=?" if near else "."
            raise ValueError(f"{type} of LeRobot has no policy.settings.{key}{hint} It has: {', '.join(sorted(known))}")
    quiet = {"device": "cpu", "push_to_hub": False, "pretrained_backbone_weights": None}  # nothing is downloaded
    raw = {key: value for key, value in quiet.items() if key in known} | dict(told)
    try:
        with _silent():
            config = draccus.decode(made, raw)
    except Exception as error:  # draccus, and each type's own checks
        raise ValueError(f"policy.type={type}: {' '.join(str(error).split())}") from error
    mapping = config.normalization_mapping
    mapping.setdefault("ENV", mapping.get("STATE"))  # else an environment's state is not normalised at all
    config.input_features, config.output_features = features(inputs, cameras, action_dim)
    return config


def features(inputs: Mapping[str, int], cameras: Mapping[str, Any], action_dim: int) -> tuple[dict, dict]:
    """What goes in and comes out, as LeRobot describes it."""
    types = imported("lerobot.configs.types")
    kind, feature = types.FeatureType, types.PolicyFeature
    found = {key: feature(kind.ENV if key == ENV else kind.STATE, (size,)) for key, size in inputs.items()}
    found |= {f"{IMAGE}{name}": feature(kind.VISUAL, (c, h, w)) for name, (h, w, c) in cameras.items()}
    return found, {ACTION: feature(kind.ACTION, (action_dim,))}


def told(chosen: Any) -> dict[str, Any]:
    """A configuration as JSON values: what a type has of its own, not where it lies and what it runs on."""
    import draccus

    base = {field.name for field in dataclasses.fields(imported("lerobot.configs.policies").PreTrainedConfig)}
    keep = {"n_obs_steps"} | ({field.name for field in dataclasses.fields(chosen)} - base)
    return {key: value for key, value in draccus.encode(chosen).items() if key in keep}


def steps(chosen: Any) -> str:
    """What a configuration calls the actions that are executed before the policy looks again."""
    return next(name for name in STEPS if hasattr(chosen, name))


def made(chosen: Any) -> nn.Module:
    """The policy of a configuration, random. ValueError that says what is on a hub, where something is."""
    kind = chosen.type
    if wants_other_transformers(parts(kind)[1]):
        raise ValueError(
            f"policy.type={kind} of this LeRobot needs a changed transformers that is in no package index; take "
            "LeRobot 0.6 (Python 3.12 or later), or policy.type=smolvla"
        )
    try:
        with _silent():
            return parts(kind)[1](chosen)
    except (OSError, ImportError, ValueError) as error:
        words = " ".join(str(error).split())
        if isinstance(error, ValueError) and not _is_of_hub(words):
            raise ValueError(f"policy.type={kind}: {words}") from error
        said = f"{words[:200]}{' ...' if len(words) > 200 else ''}"
        if isinstance(error, ImportError) and "required but not installed" in words:  # an extra of newer LeRobots
            raise ValueError(f"policy.type={kind} needs a package that is not here: {said}") from error
        raise ValueError(
            f"policy.type={kind} is built from files of the Hugging Face hub, and nothing is downloaded here ({said}). "
            "Put them into a folder and name it, as in policy.settings.vlm_model_name=FOLDER; or set HF_HUB_OFFLINE=0"
        ) from error


def wants_other_transformers(policy: type) -> bool:
    """Does a type refuse the transformers that is here? It says so itself, but not before gigabytes were made."""
    asks = "transformers.models.siglip import check" in inspect.getsource(inspect.getmodule(policy))
    try:
        return asks and importlib.util.find_spec("transformers.models.siglip.check") is None
    except ModuleNotFoundError:
        return False  # no transformers at all, which is another sentence


def _is_of_hub(words: str) -> bool:
    return any(sign in words.lower() for sign in ("hub", "huggingface", "offline", "transformers"))


def processors(chosen: Any, statistics: Mapping[str, Mapping[str, Tensor]]) -> tuple[Any, Any]:
    """What stands before and behind a policy: (batch -> batch, action -> action), with these statistics."""
    make = parts(chosen.type)[2]
    more = {"dataset_meta": None} if "dataset_meta" in inspect.signature(make).parameters else {}
    try:
        return make(chosen, dataset_stats={key: dict(value) for key, value in statistics.items()}, **more)
    except (OSError, ImportError) as error:
        words = " ".join(str(error).split())[:200]
        raise ValueError(
            f"policy.type={chosen.type} needs a tokenizer that is not here ({words}); pip install "
            "'robot-flywheel[vla]', and put its files where policy.settings says or, where there is no setting for it "
            "(pi0), into the hub's cache (HF_HOME); or set HF_HUB_OFFLINE=0"
        ) from error


def presets(net: nn.Module, updates: int) -> tuple[torch.optim.Optimizer, Any, float]:
    """The optimiser of a policy's preset, with its groups; its schedule, a factor of the rate of each group by the
    number of updates, or None; and the norm at which gradients are cut."""
    preset, plan = net.config.get_optimizer_preset(), net.config.get_scheduler_preset()
    optimiser = preset.build(net.get_optim_params())
    schedule = plan.build(optimiser, max(1, updates)) if plan is not None else None
    if schedule is not None and not hasattr(schedule, "lr_lambdas"):
        raise ValueError(
            f"policy.type={net.config.type}: its schedule {type(schedule).__name__} is no factor of the rate; take "
            "algorithm.optimiser=adamw"
        )
    return optimiser, schedule and schedule.lr_lambdas, float(getattr(preset, "grad_clip_norm", 0.0) or np.inf)


def by_row(net: nn.Module) -> bool:
    """Does the policy say a loss of each row?"""
    return "reduction" in inspect.signature(net.forward).parameters


def loss(net: nn.Module, batch: dict[str, Any], updates: int) -> Tensor:
    """The imitation loss of a batch that was processed: of each row [B], or of all [].

    `updates` so far: VQ-BeT trains its codes first, and counts in a number that no file of weights holds."""
    codes = getattr(getattr(getattr(net, "vqbet", None), "action_head", None), "vqvae_model", None)
    if codes is not None:
        codes.optimized_steps = updates
        for p in codes.vq_layer.parameters():
            p.requires_grad_(not bool(codes.discretized))
    batch["actions_id_pad"] = batch["action_is_pad"]  # the name under which SmolVLA looks for it
    with _silent():
        value, _ = net.forward(batch, **({"reduction": "none"} if by_row(net) else {}))
    return value


def takes_noise(net: nn.Module) -> bool:
    """Can the noise that an action is made from be given?"""
    known = inspect.signature(net.predict_action_chunk).parameters
    inner = getattr(getattr(net, "model", None), "sample_actions", None)
    through = any(one.kind is one.VAR_KEYWORD for one in known.values())
    return "noise" in known or (through and inner is not None and "noise" in inspect.signature(inner).parameters)


def noise_size(net: nn.Module) -> tuple[int, int]:
    """Steps and width of the noise that one chunk is made from."""
    config = net.config
    length = next(getattr(config, name) for name in ("horizon", "chunk_size", *STEPS) if hasattr(config, name))
    return length, getattr(config, "max_action_dim", config.action_feature.shape[0])


def chunk(net: nn.Module, batch: dict[str, Any], noise: Tensor | None) -> Tensor:
    """The actions [B, T, Da] that a policy makes of a batch that was processed, the first of them for now."""
    queues = getattr(net, "_queues", None) or {}
    batch = {key: value for key, value in batch.items() if key != ACTION}  # the processors leave one, empty
    pictures = [batch[key] for key in net.config.image_features]
    if pictures and "observation.images" in queues:
        batch = {**batch, "observation.images": torch.stack(pictures, dim=-4)}
    for key in queues:  # it looks into queues of one batch: they are filled with what each row has seen
        if key in batch:
            queues[key] = deque(batch[key].unbind(1), maxlen=batch[key].shape[1])
    return net.predict_action_chunk(batch, **({} if noise is None else {"noise": noise}))


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    """LeRobot prints where it should log."""
    with contextlib.redirect_stdout(io.StringIO()):
        yield


# -- a folder that LeRobot reads -------------------------------------------------------------------------------------


def read(folder: Path) -> tuple[str, dict[str, Any], dict[str, Any], dict[str, Tensor], dict[str, dict[str, Tensor]]]:
    """A policy that LeRobot wrote: its type, its configuration, its input features, its weights, the statistics of
    its normaliser.

    ValueError where its processors do what those of its type do not, or something is missing."""
    from safetensors.torch import load_file

    raw = store.read_json(folder / "config.json")
    kind, inputs, outputs = (raw.get(key) for key in ("type", "input_features", "output_features"))
    if not kind or not inputs or not outputs:
        raise ValueError(f"{folder}/config.json: it has no type, input_features or output_features; is it LeRobot's?")
    base = {field.name for field in dataclasses.fields(imported("lerobot.configs.policies").PreTrainedConfig)}
    own = {key: value for key, value in raw.items() if key != "type" and (key == "n_obs_steps" or key not in base)}
    statistics: dict[str, dict[str, Tensor]] = {}
    for side in ("pre", "post"):
        file = folder / f"policy_{side}processor.json"
        if not file.exists():
            raise ValueError(f"{folder}: {file.name} is missing; expected a folder as LeRobot 0.4 or later writes it")
        for step in store.read_json(file)["steps"]:
            if renamed := (step.get("config") or {}).get("rename_map"):
                raise ValueError(f"{file}: it renames {renamed}; here names are as in the corpus: rename them there")
            for key, value in load_file(folder / step["state_file"]).items() if step.get("state_file") else ():
                name, _, number = key.rpartition(".")
                statistics.setdefault(name, {})[number] = value
    features = {"inputs": inputs, "action": outputs[ACTION]["shape"][0]}
    return kind, own, features, load_file(folder / MODEL), statistics


def write(net: nn.Module, before: Any, after: Any, folder: Path) -> None:
    """Write a policy and its processors as LeRobot loads them (`--policy.path=`)."""
    with _silent():
        net.save_pretrained(folder)
        for processor in (before, after):
            processor.save_pretrained(folder)


def plugged(spec: str, inputs: Mapping[str, int], cameras: Mapping[str, Any], action_dim: int) -> nn.Module:
    """A policy of flywheel as the plugin has it, random."""
    plugin = imported("lerobot_policy_flywheel.modeling_flywheel")
    with _silent():
        config = plugin.FlywheelConfig(device="cpu", push_to_hub=False, spec=spec)
    config.input_features, config.output_features = features(inputs, cameras, action_dim)
    return plugin.FlywheelPolicy(config)


def opened(folder: Path) -> tuple[nn.Module, Any, Any]:
    """What LeRobot's commands load of a folder: the policy, and what stands before and behind it."""
    imported("lerobot.policies")
    imported("lerobot_policy_flywheel")
    config = imported("lerobot.configs.policies").PreTrainedConfig.from_pretrained(folder)
    config.pretrained_path, config.device = folder, "cpu"
    factory = imported("lerobot.policies.factory")
    with _silent():
        net = factory.get_policy_class(config.type).from_pretrained(folder, config=config)
        around = factory.make_pre_post_processors(
            config, pretrained_path=str(folder), preprocessor_overrides={"device_processor": {"device": "cpu"}}
        )
    return net, *around


def asked(acting: nn.Module) -> Any:
    """What acts as a function of numpy arrays."""

    @torch.no_grad()
    def run(*given):
        return acting(*map(torch.from_numpy, given)).numpy()

    return run


# -- chance ----------------------------------------------------------------------------------------------------------

SIZED = ("randn", "rand")
LIKE = ("randn_like", "rand_like")
GIVEN = ("multinomial", "bernoulli", "normal_", "uniform_", "exponential_")


class ByRow(TorchFunctionMode):
    """Random numbers of each row from a generator of its own: an action depends on nobody beside it, and not on what
    was drawn before. `seeds` [B]."""

    def __init__(self, seeds: list[int], device: torch.device):
        super().__init__()
        self.rngs = [torch.Generator(device).manual_seed(seed) for seed in seeds]

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs, name = dict(kwargs or {}), getattr(function, "__name__", "")
        if name in SIZED or (name == "normal" and "size" in kwargs):
            size = kwargs.pop("size", None)
            if size is None:
                size, args = (args[0] if isinstance(args[0], (tuple, list, torch.Size)) else args), ()
            call = functools.partial(function, *args) if name == "normal" else function
            if name == "normal":
                return self._drawn(lambda shape, rng: call(size=shape, generator=rng, **kwargs), size, kwargs)
            return self._drawn(lambda shape, rng: call(shape, generator=rng, **kwargs), size, kwargs)
        if name in LIKE:
            one, sized = args[0], getattr(torch, name.removesuffix("_like"))
            how = {"dtype": kwargs.get("dtype") or one.dtype, "device": one.device}
            return self._drawn(lambda shape, rng: sized(shape, generator=rng, **how), one.shape, {})
        if name in GIVEN:
            kwargs.pop("generator", None)
            pieces = args[0].split(self._each(args[0].shape))
            drawn = [function(p, *args[1:], generator=g, **kwargs) for p, g in zip(pieces, self.rngs, strict=True)]
            return args[0] if name.endswith("_") else torch.cat(drawn)
        return function(*args, **kwargs)

    def _drawn(self, draw, size, kwargs: dict[str, Any]) -> Tensor:
        kwargs.pop("generator", None)
        shape = (self._each(size), *size[1:])
        return torch.cat([draw(shape, rng) for rng in self.rngs])

    def _each(self, size) -> int:
        """Rows of a draw for each of the batch; ValueError where they cannot be told apart."""
        if not size or size[0] % len(self.rngs):
            raise ValueError(
                f"this policy draws random numbers {list(size)} for a batch of {len(self.rngs)}; expected some for "
                "each row, or episodes would depend on each other"
            )
        return size[0] // len(self.rngs)
