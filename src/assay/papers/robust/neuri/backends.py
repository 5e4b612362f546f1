"""Ways to run a model other than eagerly. Each takes the model and its tensors and returns its outputs."""

from __future__ import annotations

import os
import shutil
import warnings
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

from assay.papers.robust.neuri.models import Model

Outputs = tuple[Tensor, ...]
Backend = Callable[[Model, list[Tensor]], Outputs]


def _eager(model: Model, tensors: list[Tensor]) -> Outputs:
    return model.function()(*tensors)


def _fx(model: Model, tensors: list[Tensor]) -> Outputs:
    from torch import fx

    outputs: Outputs = tuple(fx.symbolic_trace(model.module())(*tensors))
    return outputs


def _trace(model: Model, tensors: list[Tensor]) -> Outputs:
    traced: Any = torch.jit.trace(model.module(), tuple(tensors), check_trace=False)
    return tuple(traced(*tensors))


def _export(model: Model, tensors: list[Tensor]) -> Outputs:
    return tuple(torch.export.export(model.module(), tuple(tensors)).module()(*tensors))


def _compiled(with_backend: str) -> Backend:
    def run(model: Model, tensors: list[Tensor]) -> Outputs:
        torch._dynamo.reset()  # each model is another function: what was compiled before would only fill the memory
        compiled: Any = torch.compile(model.function(), backend=with_backend, dynamic=False, fullgraph=True)
        return tuple(compiled(*tensors))

    return run


def _onnx(model: Model, tensors: list[Tensor]) -> Outputs:
    program = torch.onnx.export(model.module().eval(), tuple(tensors), dynamo=True, verbose=False)
    assert program is not None
    return tuple(program(*tensors))


#: By name, the fast ones first.
BACKENDS: dict[str, Backend] = {
    "eager": _eager,
    "fx": _fx,
    "trace": _trace,
    "export": _export,
    "decomposed": _compiled("aot_eager_decomp_partition"),
    "compile": _compiled("inductor"),
    "onnx": _onnx,
}

#: What each is, for people.
WHAT = {
    "eager": "the same format, one call at a time",
    "fx": "torch.fx: symbolic trace, then interpreted",
    "trace": "torch.jit.trace",
    "export": "torch.export",
    "decomposed": "torch.compile up to its decompositions into simpler calls, without generated code",
    "compile": "torch.compile with its default backend (generated C++)",
    "onnx": "torch.onnx export, run by ONNX Runtime",
}


def missing(name: str) -> str:
    """Why a backend cannot run here, or nothing."""
    if name == "compile" and not any(shutil.which(one) for one in (os.environ.get("CXX", "g++"), "g++", "clang++")):
        return "there is no C++ compiler (g++ or clang++)"
    if name == "onnx":
        absent = [package for package in ("onnx", "onnxscript", "onnxruntime") if find_spec(package) is None]
        if absent:
            return f"{', '.join(absent)} not installed: pip install 'assay[onnx]'"
    return ""


def run(name: str, model: Model, tensors: list[Tensor]) -> Outputs:
    """The outputs of the model by a backend.

    Raises:
        Exception: whatever the backend raises.
    """
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        return BACKENDS[name](model, [tensor.clone() for tensor in tensors])
