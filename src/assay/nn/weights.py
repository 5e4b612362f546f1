"""Weights from elsewhere: read from a file or the hub's cache, and put in place by name."""

from __future__ import annotations

import pickle
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from assay.errors import AssayError

#: Pairs of (regular expression, replacement or function of the match), applied one after the other to a foreign name.
Names = Sequence[tuple[str, str | Callable[[re.Match[str]], str]]]

_PARALLEL = "module."  # what nn.DataParallel puts before every name


def load_weights(
    model: nn.Module, source: str | Path | Mapping[str, Tensor], names: Names = (), leave: Sequence[str] = ()
) -> None:
    """Fill a network with weights that carry other names. Everything must fit, or nothing is changed.

    Args:
        model: the network; its weights keep their type, device and memory layout.
        source: foreign name -> tensor, or whatever :func:`read_weights` understands.
        names: how a foreign name becomes one of the model's.
        leave: beginnings of the model's names that stay as they are (a new head: ``("head.",)``); what the source has there
            is not used.

    Raises:
        AssayError: a weight is missing, superfluous, or has another shape.
    """
    given = source if isinstance(source, Mapping) else read_weights(source)
    where = "the weights" if isinstance(source, Mapping) else f"the weights of {source}"
    renamed: dict[str, Tensor] = {}
    for foreign, value in given.items():
        if not isinstance(value, Tensor):
            raise AssayError(f"{foreign!r} of {where} is no tensor but {type(value).__name__}: give the state dict of a network.")
        name = foreign
        for pattern, replacement in names:
            name = re.sub(pattern, replacement, name)
        if name in renamed:
            raise AssayError(f"Two weights of {where} are called {name!r} here (one is {foreign!r}): mend the table of names.")
        renamed[name] = value
    kept = tuple(leave)
    wanted = {name: value for name, value in model.state_dict().items() if not name.startswith(kept)}
    found = {name: value for name, value in renamed.items() if not name.startswith(kept)}
    # Counters of batch normalisation are left out of some files, and nothing depends on them.
    missing = [name for name in wanted if name not in found and not name.endswith("num_batches_tracked")]
    superfluous = [name for name in found if name not in wanted]
    other = [name for name in wanted if name in found and wanted[name].shape != found[name].shape]
    if missing or superfluous:
        what = f"lack {missing[0]!r}" if missing else f"have {superfluous[0]!r} besides"
        raise AssayError(
            f"{where[0].upper()}{where[1:]} {what} ({len(missing)} missing, {len(superfluous)} superfluous): build the network "
            "that they are of."
        )
    if other:
        shapes = f"{tuple(found[other[0]].shape)} instead of {tuple(wanted[other[0]].shape)}"
        raise AssayError(
            f"{other[0]!r} of {where} is {shapes}: build the network with their sizes, or leave that part out "
            "(load_pretrained's head=False leaves the last layer)."
        )
    with torch.no_grad():
        for name, value in wanted.items():
            if name in found:
                value.copy_(found[name])


def read_weights(source: str | Path) -> dict[str, Tensor]:
    """Weights by name from a file, or from a model of the hub that was downloaded before. Nothing is fetched or unpickled.

    Args:
        source: a ``.safetensors`` file, a file of ``torch.save`` (tensors only), or a hub's name as
            ``"timm/resnet50.a1_in1k"``. In a file of ``torch.save`` they may be an entry of a checkpoint (``"state_dict"`` or
            ``"model"``), and what ``DataParallel`` puts before their names is left out.

    Raises:
        AssayError: there is no such file, or it holds something else than tensors.
    """
    path = Path(source).expanduser()
    if not path.is_file():
        path = _in_hub_cache(str(source))
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            loaded: Any = load_file(path)
        else:
            loaded = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        raise AssayError(
            f"{path} holds no weights that could be read safely, but something damaged or a whole object: save the weights "
            "alone, torch.save(model.state_dict(), path)."
        ) from None
    except Exception as error:  # whatever the two readers meet in a damaged file
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise AssayError(f"{path} holds no weights that could be read safely ({reason}): give a file of tensors alone.") from None
    for entry in ("state_dict", "model"):
        if isinstance(loaded, Mapping) and isinstance(loaded.get(entry), Mapping):
            loaded = loaded[entry]
    if not isinstance(loaded, Mapping) or not loaded or not all(isinstance(name, str) for name in loaded):
        raise AssayError(f"{path} holds no weights by name, but {type(loaded).__name__}: save model.state_dict().")
    if all(name.startswith(_PARALLEL) for name in loaded):
        loaded = {name.removeprefix(_PARALLEL): value for name, value in loaded.items()}
    return dict(loaded)


def _in_hub_cache(name: str) -> Path:
    hint = f"download it first (`hf download {name} model.safetensors`), or give the path of a file"
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", name):
        raise AssayError(f"There is no file {name}: give a .safetensors file, or a hub's name like timm/resnet50.a1_in1k.")
    try:
        from huggingface_hub import try_to_load_from_cache
    except ImportError:
        raise AssayError(f"Reading {name} from the hub's cache needs `pip install 'assay[hub]'`: or give a file.") from None
    found = try_to_load_from_cache(name, "model.safetensors")
    if not isinstance(found, str):
        raise AssayError(f"{name} is not in the hub's cache: {hint}.")
    return Path(found)
