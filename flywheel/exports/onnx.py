"""ONNX: for onnxruntime, TensorRT and whatever else reads it; inputs obs, noise and each camera by its name, output
action. Needs the extra `export`."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

SUFFIX = ".onnx"
OPSET = 18


def _needs():
    """The packages; ValueError that names the extra where they are not installed."""
    try:
        import onnx
        import onnxruntime
        import onnxscript  # noqa: F401 (torch.onnx asks for it)
    except ImportError as error:
        raise ValueError(
            f"format=onnx needs {error.name}, which is not installed: pip install 'robot-flywheel[export]'; or take "
            "format=torchscript"
        ) from error
    return onnx, onnxruntime


def write(module: nn.Module, example: tuple[Tensor, Tensor], path: Path) -> None:
    """Export `module` for `example`'s shapes, weights inside; what the exporter notes of its files is left out."""
    onnx, _ = _needs()
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()), torch.no_grad():
        warnings.simplefilter("ignore")
        made = torch.onnx.export(
            module,
            example,
            input_names=["obs", "noise", *module.policy.cameras],
            output_names=["action"],
            opset_version=OPSET,
            dynamo=True,
            verbose=False,
        )
    graph = made.model_proto
    for part in (graph.graph, *graph.graph.node, *graph.graph.value_info, *graph.functions):
        part.ClearField("metadata_props")
    for node in graph.graph.node:
        node.ClearField("doc_string")
    onnx.checker.check_model(graph)
    path.write_bytes(graph.SerializeToString(deterministic=True))


def load(path: Path) -> Callable:
    """The file as a function of numpy arrays, on one core."""
    _, onnxruntime = _needs()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    used = [one.name for one in session.get_inputs()]  # a policy that knows no chance has no noise
    cameras = [name for name in used if name not in ("obs", "noise")]

    def run(obs, noise, *frames):
        given = {"obs": obs, "noise": noise, **dict(zip(cameras, frames, strict=True))}
        return session.run(["action"], {name: given[name] for name in used})[0]

    return run
